"""Mailboxes with keys for tests, and a directory that knows them."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import rsa

from directory.partners import PartnerBook
from directory.records import MailboxKind, Partner, Recipient
from directory.resolve import DirectoryUnavailableError
from mta.agreements import Agreements
from smime import DkimKey
from trust.certificates import CertificateValidator
from trust.issuing import DemonstrationAuthority, Issued
from trust.vault import KeyUse, KeyVault


@dataclass
class Mailboxes:
    """Keys are made once for all tests; each test installs them into its own vault."""

    authority: DemonstrationAuthority
    keys: dict[str, dict[KeyUse, Issued]] = field(default_factory=dict)
    dkim: dict[str, DkimKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.validator = CertificateValidator([self.authority.root], [self.authority.intermediate])
        for address in (
            "labo@op1.example",
            "dr.gris@op1.example",
            "dr.noir@op2.example",
            "medecin@ville.mssante.test",
        ):
            self.issue(address)
        for domain in ("op1.example", "op2.example"):
            self.dkim[domain] = DkimKey(domain, "s1", rsa.generate_private_key(65537, 2048))

    def issue(self, address: str) -> None:
        self.keys[address] = {
            KeyUse.SIGNING: self.authority.issue_mailbox(address, "BAL", "signing", "p256"),
            KeyUse.ENCRYPTION: self.authority.issue_mailbox(address, "BAL", "encryption"),
        }

    def install(self, vault: KeyVault, *addresses: str) -> None:
        for address in addresses:
            for use, issued in self.keys[address].items():
                vault.install(address, use, issued.key, issued.certificate, issued.chain)


def agreements(
    *partners: Partner, known: dict[str, tuple[str, ...]] | None = None, floor: str = "aes128-gcm"
) -> Agreements:
    """Of these partners, with correspondents whose capabilities are these."""
    listed = known or {}

    class Known:
        def capabilities(self, address: str) -> tuple[str, ...] | None:
            return listed.get(address)

    return Agreements(PartnerBook(partners), Known(), floor)


@dataclass
class Directory:
    """Resolves what it was given; `down` makes it unavailable."""

    recipients: dict[str, Recipient] = field(default_factory=dict)
    down: bool = False

    def resolve(self, address: str) -> Recipient | None:
        if self.down:
            raise DirectoryUnavailableError
        return self.recipients.get(address.lower())

    @classmethod
    def of(cls, mailboxes: Mailboxes) -> Directory:
        return cls(
            {
                address: Recipient(
                    address, MailboxKind.PER, "", encryption_certificates=(keys[KeyUse.ENCRYPTION].certificate,)
                )
                for address, keys in mailboxes.keys.items()
            }
        )
