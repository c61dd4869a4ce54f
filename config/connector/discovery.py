"""What a domain says of its own mail service, so that nobody has to type it: SRV records (RFC 6186, RFC 8314 §5.1),
else the file for Thunderbird (draft-ietf-mailmaint-autoconfig).

Nothing found here is believed when it matters: the servers prove their names with certificates of the authorities the
practice trusts, and whoever sets up the connector sees what was found and says yes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lxml import etree

from directory.pool import DirectoryUnavailableError
from directory.srv import SrvRecord, in_order
from trust.revocation.fetching import FetchError

Lookup = Callable[[str, str], list[SrvRecord]]
"""Domain and service (`_imaps._tcp`); raises `DirectoryUnavailableError`."""
Get = Callable[[str, int], bytes]
"""Address, and octets at most; raises `FetchError`."""

_MAX_FILE = 256 * 1024
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Server:
    host: str
    port: int
    tls: Literal["implicit", "starttls"] = "implicit"


@dataclass(frozen=True, slots=True)
class Found:
    """None: the domain does not say."""

    imap: Server | None = None
    """Always TLS from the first octet."""
    smtp: Server | None = None
    ldaps: Server | None = None


def discover(domain: str, lookup: Lookup, get: Get) -> Found:
    """What `domain` (lower case) says. Blocks; never raises for what the network does."""
    imap = _server(domain, lookup, "_imaps._tcp")
    smtp = _server(domain, lookup, "_submissions._tcp") or _server(domain, lookup, "_submission._tcp", "starttls")
    ldaps = _server(domain, lookup, "_ldaps._tcp")
    if imap is None or smtp is None:
        written = _file(domain, get)
        imap, smtp = imap or written.imap, smtp or written.smtp
    return Found(imap, smtp, ldaps)


def _server(
    domain: str, lookup: Lookup, service: str, tls: Literal["implicit", "starttls"] = "implicit"
) -> Server | None:
    try:
        records = in_order(lookup(domain, service), chance=lambda most: most)
    except DirectoryUnavailableError:
        return None
    return next((Server(each.target, each.port, tls) for each in records if _HOST.fullmatch(each.target)), None)


def _file(domain: str, get: Get) -> Found:
    """The first of the two places that has one (§3.1). The address is not told to anybody."""
    for url in (
        f"https://autoconfig.{domain}/mail/config-v1.1.xml",
        f"https://{domain}/.well-known/autoconfig/mail/config-v1.1.xml",
    ):
        try:
            found = read_autoconfig(get(url, _MAX_FILE))
        except FetchError:
            continue
        if found.imap is not None or found.smtp is not None:
            return found
    return Found()


def read_autoconfig(content: bytes) -> Found:
    """`config-v1.1.xml`; what is not under TLS, and what cannot be read, is not there."""
    try:
        root = etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except (etree.XMLSyntaxError, ValueError):
        return Found()
    if root.getroottree().docinfo.internalDTD is not None:
        return Found()
    imap = next((each for each in _servers(root, "incomingServer", "imap") if each.tls == "implicit"), None)
    return Found(imap, next(_servers(root, "outgoingServer", "smtp"), None))


def _servers(root: etree._Element, element: str, kind: str) -> Iterator[Server]:
    for each in root.iterfind(f"emailProvider/{element}[@type='{kind}']"):
        host, port = (each.findtext(name, "").strip() for name in ("hostname", "port"))
        how = each.findtext("socketType", "").strip().upper()
        if _HOST.fullmatch(host) and port.isdecimal() and 0 < int(port) < 65536 and how in ("SSL", "STARTTLS"):
            yield Server(host.lower(), int(port), "implicit" if how == "SSL" else "starttls")
