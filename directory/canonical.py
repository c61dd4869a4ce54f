"""Entries in one form that can be compared byte for byte, whether the national files or the directory gave them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache

import msgspec
from ldap.dn import dn2str, str2dn

from directory import schema

Attributes = dict[str, list[bytes]]

ALWAYS_LOCAL = frozenset(
    {"usercertificate", "usersmimecertificate", "listerouge", "rangbal", schema.LOCAL_ATTRIBUTES.lower()}
)
"""Attributes, without options, that the national files never say anything about: nobody but the overlay writes them."""

_SIMPLE = re.compile(r"[a-z]+=[!#-*.-:=?-\[\]-~]+(?:,[a-z]+=[!#-*.-:=?-\[\]-~]+)*")
"""A DN whose text is already what slapd would say: no escapes, no blanks, no quotes, one value per RDN."""


class HeldEntry(msgspec.Struct, frozen=True, array_like=True):
    """One entry of the directory, as far as the national files are concerned."""

    key: str
    dn: str
    source: str
    """`NATIONAL`, `LOCAL`, or empty for an entry that is neither (a branch)."""
    owned: list[str]
    """National attributes the overlay has taken over (`AttributLocal`), lower case."""
    local: bool
    """Whether the overlay wrote something into it."""
    content: bytes
    """`pack` of what the national files could have said."""


class WantedEntry(msgspec.Struct, frozen=True, array_like=True):
    """One entry as the national files want it."""

    key: str
    dn: str
    content: bytes


def key_of(dn: str) -> str:
    """Equal for two spellings of one DN (RFC 4514): case, escapes and blanks left aside.

    Raises `ldap.DECODING_ERROR` when this is no DN.
    """
    lowered = dn.lower()
    if _SIMPLE.fullmatch(lowered):
        return lowered
    parsed = str2dn(dn)  # type: ignore[no-untyped-call]
    text: str = dn2str([[(name, " ".join(value.split()), flags) for name, value, flags in rdn] for rdn in parsed])  # type: ignore[no-untyped-call]
    return text.lower()


def depth(key: str) -> int:
    """How many RDNs a key has: parents have fewer than their children."""
    return key.replace("\\,", "").count(",") + 1


def pack(attributes: Mapping[str, Sequence[bytes]]) -> bytes:
    """Names in lower case and in order, values in order and each once."""
    content = [
        (_facts(name)[0], values if len(values) == 1 else sorted(set(values)))
        for name, values in attributes.items()
        if values
    ]
    content.sort()  # names differ: values are never compared
    return _encode(content)


def unpack(content: bytes) -> Attributes:
    return dict(_decode_content(content))


def without_options(name: str) -> str:
    """`usercertificate` of `userCertificate;binary`."""
    return name.partition(";")[0].lower()


def wanted_entry(dn: str, attributes: Mapping[str, Sequence[bytes]]) -> WantedEntry:
    return WantedEntry(key_of(dn), dn, pack(attributes))


def held_entry(dn: str, attributes: Mapping[str, Sequence[bytes]]) -> HeldEntry:
    owned = list[str]()
    national: dict[str, Sequence[bytes]] = {}
    for name, values in attributes.items():
        lowered, local = _facts(name)
        if not local:
            national[lowered] = values
        elif lowered == _LOCAL_ATTRIBUTES:
            owned = sorted({value.decode("ascii", "replace").lower() for value in values} - ALWAYS_LOCAL)
    source = national.get(_SOURCE, (b"",))[0].decode("ascii", "replace").upper()
    return HeldEntry(key_of(dn), dn, source, owned, len(national) < len(attributes), pack(national))


@cache
def _facts(name: str) -> tuple[str, bool]:
    """An attribute's name in lower case, and whether only the overlay writes it. Asked for often."""
    return name.lower(), without_options(name) in ALWAYS_LOCAL


_SOURCE = schema.SOURCE.lower()
_LOCAL_ATTRIBUTES = schema.LOCAL_ATTRIBUTES.lower()
_encode = msgspec.msgpack.Encoder().encode
_decode_content = msgspec.msgpack.Decoder(list[tuple[str, list[bytes]]]).decode
encode = _encode
decode_held = msgspec.msgpack.Decoder(HeldEntry).decode
decode_wanted = msgspec.msgpack.Decoder(WantedEntry).decode
