"""What a mail program must be told to serve a mailbox of ours: the contract behind every way it can find out.

One `ClientServices` for a gateway; SRV records, autoconfiguration, Apple's profile, Outlook's autodiscover, the page
and the printed sheet all say the same because they all say this. It names services and domains, never a mailbox:
nothing made from it can tell whether an address exists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import quote

from cryptography import x509

from mta.smtp.address import is_address

_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


class Security(Enum):
    """How a connection is protected. Nothing is offered without."""

    TLS = "tls"
    """From the first octet (RFC 8314 §3)."""
    STARTTLS = "starttls"


@dataclass(frozen=True, slots=True)
class Service:
    """One port that people's programs connect to."""

    host: str
    """Host name, lower case; a certificate of ours names it."""
    port: int
    security: Security = Security.TLS

    def __post_init__(self) -> None:
        """Raises ValueError for what is no host name or no port."""
        if not _HOST.fullmatch(self.host) or not 0 < self.port < 65536:
            raise ValueError(f"not a host name and port: {self.host!r}, {self.port}")


@dataclass(frozen=True, slots=True)
class AddressBook:
    """The directory, as an address book over ldaps (RFC 4510)."""

    service: Service
    base: str
    """DN below which is searched."""
    login: str = ""
    """DN to log in with; empty: nobody has to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientServices:
    """Of one gateway."""

    name: str
    """The operator, as people know it."""
    domains: tuple[str, ...]
    """Mail domains, lower case."""
    imap: Service
    submission: tuple[Service, ...]
    """TLS from the first octet first (RFC 8314 §3.3)."""
    site: Service
    """The HTTPS door itself."""
    patient_domains: frozenset[str] = frozenset()
    """Their addresses hold a matricule, and so are put into no link."""
    sieve: Service | None = None
    address_book: AddressBook | None = None
    tokens: bool = False
    """An identity provider's access tokens log in too (XOAUTH2, OAUTHBEARER)."""
    authorities: tuple[x509.Certificate, ...] = field(default=(), repr=False)
    """What a device must trust to believe our certificates; empty where every device already does."""
    mta_sts: str = ""
    """The policy of our domains (RFC 8461 §3.2); empty: none is served."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not self.domains or not self.submission:
            raise ValueError("mail programs need a domain and a submission service")
        for domain in self.domains:
            if not _HOST.fullmatch(domain):
                raise ValueError(f"not a lower-case mail domain: {domain!r}")

    def our_address(self, text: str) -> str:
        """`text` in lower case when it can be an address of one of our domains, else empty. Says nothing about
        whether there is such a mailbox."""
        address = text.strip().lower()
        return address if is_address(address) and address.rpartition("@")[2] in self.domains else ""

    def link(self, address: str = "") -> str:
        """Where the page is, with `query`."""
        port = "" if self.site.port == 443 else f":{self.site.port}"
        return f"https://{self.site.host}{port}/{self.query(address)}"

    def query(self, address: str) -> str:
        """What a link says of an address of ours; nothing of a patient's."""
        known = self.our_address(address)
        return f"?email={quote(known)}" if known and known.rpartition("@")[2] not in self.patient_domains else ""
