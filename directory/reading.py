"""What an entry of the directory says of a mailbox, and where each of its certificates comes from.

The mailbox itself is read as leniently as `directory.entries` reads it; here come the choice among its certificates and
the marks by which a certificate that was learned is told from one that somebody put there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from directory import entries, schema
from directory.choosing import newest_valid
from directory.records import Recipient

RANK = "RangBAL"
DEPARTMENT = "ou"
READ_ATTRIBUTES = (*entries.READ_ATTRIBUTES, DEPARTMENT, RANK)
"""What `read_mailbox` needs from slapd."""
EXPLAINED_ATTRIBUTES = (*READ_ATTRIBUTES, schema.SOURCE, schema.LOCAL_ATTRIBUTES, "listeRouge")
"""And what an explanation shows besides."""

Attributes = Mapping[str, Sequence[bytes]]


class CertificateOrigin(Enum):
    """How a certificate came into a mailbox's entry."""

    REGISTER = "register"
    """With the national register's entry."""
    MANUAL = "manual"
    """Put there by somebody: never replaced by what is learned."""
    MAIL = "mail"
    """Learned from signed mail of the mailbox's holder."""
    UPSTREAM = "upstream"
    """Learned from the LDAP directory of the mailbox's domain."""


LEARNED = frozenset({CertificateOrigin.MAIL, CertificateOrigin.UPSTREAM})


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One entry, read."""

    dn: str
    recipient: Recipient
    attributes: Attributes

    @property
    def source(self) -> str:
        """`NATIONAL` or `LOCAL`; empty when it was not asked for."""
        return _text(self.attributes, schema.SOURCE)

    @property
    def red_list(self) -> bool:
        return _text(self.attributes, "listeRouge") == "TRUE"

    def origin(self, der: bytes) -> CertificateOrigin:
        """Of one certificate of this entry; needs `EXPLAINED_ATTRIBUTES`."""
        marks = {
            value.decode("ascii", "replace").lower() for value in _values(self.attributes, schema.LOCAL_ATTRIBUTES)
        }
        for origin in LEARNED:
            if mark(der, origin).lower() in marks:
                return origin
        owned = "usercertificate" in marks or self.source != schema.NATIONAL.decode()
        return CertificateOrigin.MANUAL if owned else CertificateOrigin.REGISTER


def mark(der: bytes, origin: CertificateOrigin) -> str:
    """What stands in `AttributLocal` for a learned certificate: an attribute description with a private option.

    Whoever renews national data compares what stands before the first `;` (RFC 4512 §2.5), so the certificate is kept.
    """
    return f"userCertificate;x-{origin.value}-{hashlib.sha256(der).hexdigest()}"


def read_mailbox(dn: str, attributes: Attributes, at: datetime | None = None, address: str = "") -> Mailbox | None:
    """The mailbox an entry describes, None when it is none: no kind, or no address that could be one.

    `at`: for when certificates are chosen; None: now. An entry may have several addresses (`mail`, RFC 4524 §2.16):
    `address` (lower case) is the one asked for, where it has that one; else the first counts.
    """
    recipient = entries.to_recipient(attributes)
    if recipient is None:
        return None
    if not address or recipient.address != address:
        wanted = address.encode("ascii", "replace")
        if wanted and any(each.lower() == wanted for each in _values(attributes, "mail")):
            recipient = replace(recipient, address=address)
        elif not entries.is_address(recipient.address):
            return None
    rank = _text(attributes, RANK)
    if len(recipient.encryption_certificates) > 1 or len(recipient.signing_certificates) > 1 or rank:
        moment = at or datetime.now(UTC)
        recipient = replace(
            recipient,
            encryption_certificates=newest_valid(recipient.encryption_certificates, moment),
            signing_certificates=_newest_first(recipient.signing_certificates),
            rank=int(rank) if rank.lstrip("-").isdigit() else None,
        )
    if department := _text(attributes, DEPARTMENT):
        recipient = replace(recipient, department=department)
    return Mailbox(dn, recipient, attributes)


def certificates_in(attributes: Attributes) -> list[bytes]:
    """The values of `userCertificate`, as they stand."""
    return [value for name in ("userCertificate", schema.CERTIFICATE) for value in _values(attributes, name)]


def encoded(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _newest_first(certificates: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...]:
    """All of them: also a signature made under an expired certificate is looked at."""
    return tuple(sorted(certificates, key=lambda each: each.not_valid_before_utc, reverse=True))


def _values(attributes: Attributes, name: str) -> Sequence[bytes]:
    found = attributes.get(name)
    if found is None:
        wanted = name.lower()
        found = next((values for each, values in attributes.items() if each.lower() == wanted), ())
    return found


def _text(attributes: Attributes, name: str) -> str:
    values = _values(attributes, name)
    return values[0].decode("utf-8", "replace") if values else ""
