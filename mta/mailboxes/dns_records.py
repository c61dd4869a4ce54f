"""The DNS records an operator publishes so that mail programs find their services and other operators believe its mail.

Made from what the gateway really offers and holds, to be pasted into a zone: SRV for programs (RFC 6186, RFC 8314 §5.1,
RFC 5804 §1.8), names of the HTTPS door, MX, SPF, DKIM, DMARC, MTA-STS and TLSA for other operators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mta.mailboxes.services import ClientServices, Security

_NOT_OFFERED = "0 0 0 ."
"""RFC 6186 §3.4: decidedly not available."""
DOOR_NAMES = ("autoconfig", "autodiscover", "mta-sts")
"""Below each domain, names of the HTTPS door; its certificate must have them."""


@dataclass(frozen=True, slots=True)
class DnsRecord:
    """One record, in presentation format (RFC 1035 §5.1, RFC 3597)."""

    name: str
    """Owner, lower case, without the final dot."""
    kind: str
    value: str
    """Names in it end with a dot; TXT without quotes."""
    why: str
    """What it is for, a few words."""

    def zone_line(self) -> str:
        """As in a zone file; TXT in strings of at most 255 octets."""
        value = self.value
        if self.kind == "TXT":
            pieces = [value[start : start + 255] for start in range(0, len(value), 255)] or [""]
            value = " ".join('"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"' for piece in pieces)
        return f"{self.name}. IN {self.kind} {value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MailHost:
    """What other operators see of us."""

    host: str
    """Name in the MX record and in EHLO."""
    certificate: x509.Certificate | None = None
    """What it shows on port 25; None where it cannot be read."""
    dkim_selector: str = ""
    dkim_public_key: str = ""
    """The `p=` value; empty: mail is not signed."""


def client_records(services: ClientServices, *, door: bool = True) -> Iterator[DnsRecord]:
    """What mail programs look for, for each of our domains. Without a `door` no name leads to it: whoever were there
    would be sent addresses."""
    target = services.site.host
    for domain in services.domains:
        yield _service(domain, "imaps", services.imap.host, services.imap.port, "IMAP under TLS (RFC 6186)")
        sending = {each.security: each for each in services.submission}
        for security, kind in ((Security.TLS, "submissions"), (Security.STARTTLS, "submission")):
            if security in sending:
                service = sending[security]
                yield _service(domain, kind, service.host, service.port, "sending (RFC 8314, RFC 6186)")
            else:
                yield _absent(domain, kind)
        for name in ("imap", "pop3", "pop3s"):
            yield _absent(domain, name)
        if services.sieve is not None:
            yield _service(domain, "sieve", services.sieve.host, services.sieve.port, "filters (RFC 5804)")
        if services.address_book is not None:
            book = services.address_book.service
            yield _service(domain, "ldaps", book.host, book.port, "address book")
        if not door:
            yield _absent(domain, "autodiscover")
            continue
        yield _service(domain, "autodiscover", target, services.site.port, "Outlook")
        for label in DOOR_NAMES[:2]:
            yield from _door(f"{label}.{domain}", target)


def mail_records(domains: Iterable[str], mail: MailHost, policy: str = "", door: str = "") -> Iterator[DnsRecord]:
    """What other operators look for. `policy`: that of MTA-STS, which the HTTPS door of that name serves; empty: none
    is."""
    domains = tuple(domains)
    for domain in domains:
        yield DnsRecord(domain, "MX", f"10 {mail.host}.", "where mail comes in")
        yield DnsRecord(domain, "TXT", f"v=spf1 a:{mail.host} -all", "who sends (SPF, RFC 7208)")
        if mail.dkim_public_key:
            name = f"{mail.dkim_selector}._domainkey.{domain}"
            yield DnsRecord(name, "TXT", f"v=DKIM1; k=rsa; p={mail.dkim_public_key}", "signatures (DKIM, RFC 6376)")
        yield DnsRecord(f"_dmarc.{domain}", "TXT", "v=DMARC1; p=reject", "what fails both is refused (RFC 7489)")
        if policy:
            digest = hashlib.sha256(policy.encode()).hexdigest()[:32]
            yield DnsRecord(f"_mta-sts.{domain}", "TXT", f"v=STSv1; id={digest}", "our policy's number (RFC 8461)")
            yield from _door(f"mta-sts.{domain}", door)
    if mail.host not in domains:  # whose own text says it already; two would count for none
        why = "notifications have no sender, so this name is asked for (RFC 7208 §2.4)"
        yield DnsRecord(mail.host, "TXT", "v=spf1 a -all", why)
    if mail.certificate is not None:
        key = mail.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        value = f"3 1 1 {hashlib.sha256(key).hexdigest()}"
        why = "port 25's key (DANE, RFC 7672); only under DNSSEC, a new key's before that key"
        yield DnsRecord(f"_25._tcp.{mail.host}", "TLSA", value, why)


def mta_sts_policy(mail: MailHost, at: datetime | None = None) -> str:
    """The policy of our domains (RFC 8461 §3.2). `enforce` when the certificate of port 25 names the host and is valid
    now; else `testing`, for nobody who heeds the policy could deliver."""
    shown = mail.certificate
    believed = (
        shown is not None
        and not unnamed(shown, [mail.host])
        and shown.not_valid_before_utc <= (at or datetime.now(UTC)) <= shown.not_valid_after_utc
    )
    mode = "enforce" if believed else "testing"
    return f"version: STSv1\r\nmode: {mode}\r\nmx: {mail.host}\r\nmax_age: 604800\r\n"


def door_names(services: ClientServices) -> list[str]:
    """Names under which the HTTPS door is asked for."""
    labels = DOOR_NAMES if services.mta_sts else DOOR_NAMES[:2]
    return [services.site.host, *(f"{label}.{domain}" for domain in services.domains for label in labels)]


def unnamed(certificate: x509.Certificate, hosts: Iterable[str]) -> list[str]:
    """Those that the certificate does not name (RFC 6125 §6.4; `*` for one whole label)."""
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = {name.lower() for name in alternative.get_values_for_type(x509.DNSName)}
    except (x509.ExtensionNotFound, ValueError):
        names = set()
    return [host for host in dict.fromkeys(hosts) if not {host, f"*.{host.partition('.')[2]}"} & names]


def _door(name: str, target: str) -> Iterator[DnsRecord]:
    if name != target:  # the door may have one of these names itself
        yield DnsRecord(name, "CNAME", f"{target}.", "the HTTPS door")


def _absent(domain: str, name: str) -> DnsRecord:
    return DnsRecord(f"_{name}._tcp.{domain}", "SRV", _NOT_OFFERED, "not offered")


def _service(domain: str, name: str, host: str, port: int, why: str) -> DnsRecord:
    return DnsRecord(f"_{name}._tcp.{domain}", "SRV", f"0 1 {port} {host}.", why)
