"""What the directory knows: mailboxes, the people behind them, and the partners mail is exchanged with.

Everybody else only reads these records.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from cryptography import x509


class MailboxKind(Enum):
    """Kinds of mailbox, TRE_R257-TypeBAL, and the patient's own."""

    PER = "PER"
    """One named professional."""
    ORG = "ORG"
    """A team or service."""
    APP = "APP"
    """A machine."""
    CAB = "CAB"
    """A practice."""
    PATIENT = "PATIENT"
    """A patient's mailbox, `<matricule>@<patient domain>`."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """One mailbox as the directory describes it."""

    address: str
    """Lower-case addr-spec (RFC 5321); the directory compares addresses case-insensitively."""
    kind: MailboxKind
    display_name: str
    """`Titre Prénom NOM` of a person, functional name of a team or machine; may be empty for a patient."""
    encryption_certificates: tuple[x509.Certificate, ...] = ()
    """Certificates whose KeyUsage allows encryption, the newest first: all that are valid now, for a mailbox is read on
    several devices; when none is, those that are not. The path is judged by the one who encrypts."""
    signing_certificates: tuple[x509.Certificate, ...] = ()
    id_nat: str = ""
    """National identifier of the person with its type digit (IdNat_PP, `8` + RPPS), or of the structure."""
    profession: str = ""
    """TRE_G15 code (`10` is a physician); empty for teams, machines and patients."""
    structure: str = ""
    """IdNat_Struct of the structure: `1` + FINESS, `3` + SIRET; empty when none."""
    organisation: str = ""
    department: str = ""
    """Service de rattachement of a team, as the register names it."""
    rank: int | None = None
    """Among several mailboxes of one professional: 1 is the one he wants to be written to; None: he has not said."""
    domain_certificate: bool = False
    """The encryption certificates are those of the whole mail domain: the mailbox has none of its own."""

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


def with_domain_certificates(
    recipient: Recipient, certificates: tuple[x509.Certificate, ...], whole_domain: bool = True
) -> Recipient:
    """The mailbox, to be encrypted to with certificates that its entry does not hold."""
    return replace(recipient, encryption_certificates=certificates, domain_certificate=whole_domain)


@dataclass(frozen=True, slots=True)
class Partner:
    """What is agreed with one mail domain, or with one sending system. Matched by exact domain."""

    domain: str
    host: str = ""
    """Where the domain's operator accepts mail; empty: its MX records say so (`mta.smtp.routes`)."""
    port: int = 25
    max_message_bytes: int = 25 * 1024 * 1024
    dkim_selector: str = ""
    dkim_public_key: str = ""
    """The `p=` value the domain publishes (RFC 6376 §3.6.1), pinned here where DNS is not the road."""
    content_cipher: str = ""
    """How its mailboxes are encrypted to (`smime.suites.ContentCipher` label); empty: AES-256-GCM, or what a
    correspondent's own signed mail says, never below the gateway's floor."""
    key_transport: str = "rsa-oaep-sha256"
    """`smime.suites.KeyTransportScheme` towards RSA certificates."""
    rsa_signature: str = "rsa-pkcs1v15"
    """`smime.suites.RsaSignatureScheme` of what it gets."""
    opaque_signature: bool = False
    """Sign around the content, for partners behind relays that rewrite lines."""
    header_protection: bool = False
    """Sign and encrypt the header fields too (RFC 9788). Off towards MSSanté, whose subject form is for filing."""
