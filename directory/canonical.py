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


REFRESHED = "x-annuaire-"
"""How a value of `AttributLocal` begins that says when the FHIR API was asked about the entry (`YYYYMMDDhhmm`, UTC)."""


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
    kind: str
    """What losses are counted by: `PER`, `ORG`, ... of a mailbox, else the name of its branch."""
    refreshed: str
    """When the FHIR API was asked about it, `YYYYMMDDhhmm` in UTC; empty when it was not."""


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


def parts(key: str) -> list[str]:
    """The RDNs of a key, the entry's own first."""
    if "\\" not in key:
        return key.split(",")
    return [dn2str([rdn]) for rdn in str2dn(key)]  # type: ignore[no-untyped-call]


def depth(key: str) -> int:
    """How many RDNs a key has: parents have fewer than their children."""
    return len(parts(key))


def branch(key: str) -> str:
    """`professionnels` of an entry below it: the RDN before the base, for people to read."""
    return next((part[3:] for part in reversed(parts(key)) if part.startswith("ou=")), "")


def prefer(content: bytes, other: bytes) -> bool:
    """Whether the first of two `pack`ed descriptions of one entry counts, whichever of the files' lines came first.

    One person may be there twice, under an RPPS number and the ADELI number it replaced; a structure is described by
    everybody who works there. RPPS counts before others, then who says more.
    """
    return _weight(content) < _weight(other)


def _weight(content: bytes) -> tuple[bool, int, bytes]:
    identifier = unpack(content).get("idnat", [b""])[0]
    return not identifier.startswith(b"8"), -len(content), content


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
    marks = set[str]()
    national: dict[str, Sequence[bytes]] = {}
    for name, values in attributes.items():
        lowered, local = _facts(name)
        if not local:
            national[lowered] = values
        elif lowered == _LOCAL_ATTRIBUTES:
            marks = {value.decode("ascii", "replace").lower() for value in values}
    refreshed = max((mark for mark in marks if mark.startswith(REFRESHED)), default="").removeprefix(REFRESHED)
    marks = {mark for mark in marks if not mark.startswith(REFRESHED)}
    # What the FHIR API said of certificates, rank and red list is the register's, unless the overlay says it is its own
    local = bool(marks) if refreshed else len(national) < len(attributes)
    source = national.get(_SOURCE, (b"",))[0].decode("ascii", "replace").upper()
    key = key_of(dn)
    kind = national.get("typebal", (b"",))[0].decode("ascii", "replace").upper() or branch(key)
    return HeldEntry(key, dn, source, sorted(marks - ALWAYS_LOCAL), local, pack(national), kind, refreshed)


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
