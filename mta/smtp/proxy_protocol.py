"""The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`), read without any I/O.

A load balancer in front says before everything else on whose behalf it connects. It is believed from configured
addresses only, where it is then required: a door that guessed whether a header is there would let anybody claim any
address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

MAX_HEADER = 16 + 65535
"""Version 2: fixed part and what its length field can say."""
_SHORTEST = 15
"""`PROXY UNKNOWN` and CRLF; version 2 has one octet more."""
_V1_LONGEST = 107
"""With CRLF, as the specification computes it."""
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_ADDRESS_OCTETS = {0x11: (4, 12), 0x21: (16, 36)}
"""TCP over IPv4, TCP over IPv6: octets of one address, of the whole block."""


class ProxyHeaderError(ValueError):
    """What came is no header of the protocol; the connection must be closed."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    source: str
    """The client's address; empty when the proxy speaks for itself (LOCAL, UNKNOWN)."""
    length: int
    """Octets of the header; what follows is the client's."""


def is_proxy(address: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Whether a header is required from there."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in network for network in networks)


def octets_missing(data: bytes) -> int:
    """How many octets at least an incomplete header still lacks: who reads no more reads nothing of what follows."""
    if len(data) < _SHORTEST:
        return _SHORTEST - len(data)
    if data[:1] == b"\r" and len(data) >= 16:
        return 16 + int.from_bytes(data[14:16], "big") - len(data)
    return 1


def read_header(data: bytes) -> ProxyHeader | None:
    """The header at the beginning of `data`; None while it is not complete. Raises `ProxyHeaderError`."""
    if data.startswith(_V2_SIGNATURE[: len(data)]) and (data[:1] == b"\r" or not data):
        return _version_2(data) if len(data) >= 16 else None
    if data.startswith(b"PROXY "[: len(data)]):
        return _version_1(data)
    raise ProxyHeaderError("no header of the PROXY protocol")


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST or b"\n" in data:
            raise ProxyHeaderError("header of version 1 without its end")
        return None
    try:
        words = data[:end].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProxyHeaderError("header of version 1 is not ASCII") from None
    if words[1] == "UNKNOWN":
        return ProxyHeader("", end + 2)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise ProxyHeaderError("malformed header of version 1")
    kind = ipaddress.IPv4Address if words[1] == "TCP4" else ipaddress.IPv6Address
    try:
        source, _ = kind(words[2]), kind(words[3])
        if "%" in words[2]:  # an interface, which may have any name
            raise ValueError
    except ValueError:
        raise ProxyHeaderError("malformed address in a header of version 1") from None
    if not all(_is_port(port) for port in words[4:]):
        raise ProxyHeaderError("malformed port in a header of version 1")
    return ProxyHeader(str(source), end + 2)


def _is_port(text: str) -> bool:
    plain = text.isascii() and text.isdigit() and len(text) <= 5 and (text == "0" or text[0] != "0")
    return plain and int(text) <= 65535


def _version_2(data: bytes) -> ProxyHeader | None:
    version, command = divmod(data[12], 16)
    length = 16 + int.from_bytes(data[14:16], "big")
    if version != 2 or command > 1:
        raise ProxyHeaderError("unknown version or command")
    if len(data) < length:
        return None
    octets = _ADDRESS_OCTETS.get(data[13])
    if command == 0 or (octets is None and data[13] == 0):  # LOCAL, or UNSPEC
        return ProxyHeader("", length)
    if octets is None or length - 16 < octets[1]:
        raise ProxyHeaderError("address family or length that is not TCP's")
    return ProxyHeader(str(ipaddress.ip_address(data[16 : 16 + octets[0]])), length)
