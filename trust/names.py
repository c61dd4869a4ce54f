"""Distinguished names, compared by what they say and not by how they are written.

The trust list names operators in text that was typed and exported by many hands; certificates carry the same names
in DER. Both become a `DistinguishedName` here, and only these are compared: by RDN, type and folded value, never as
strings.

Order: a certificate stores a name root first (`C, ST, O, OU, CN`), RFC 4514 writes it leaf first (`CN=…,OU=…,O=…,C=FR`,
§2.1 "reversed"). A `DistinguishedName` holds certificate order; `parse` reverses the text and `str()` reverses it back.
Some tools print certificate order: since a country is always at the root, a name that has it only at the leaf end is
turned around, whether it came from text or from a certificate, so that both spellings are the same name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography import x509

from trust import der

MAX_TEXT = 4096
"""Longest text `parse` reads, in characters, and longest DER `comparable` reads, in octets."""
MAX_ATTRIBUTES = 32
"""Most attributes in one name."""

_COUNTRY = "2.5.4.6"

_KEYWORDS = {
    # RFC 4514 §3, then RFC 4519, then what OpenSSL, Microsoft and Java print
    "CN": "2.5.4.3",
    "L": "2.5.4.7",
    "ST": "2.5.4.8",
    "O": "2.5.4.10",
    "OU": "2.5.4.11",
    "C": _COUNTRY,
    "STREET": "2.5.4.9",
    "DC": "0.9.2342.19200300.100.1.25",
    "UID": "0.9.2342.19200300.100.1.1",
    "SN": "2.5.4.4",
    "SERIALNUMBER": "2.5.4.5",
    "TITLE": "2.5.4.12",
    "DESCRIPTION": "2.5.4.13",
    "BUSINESSCATEGORY": "2.5.4.15",
    "POSTALADDRESS": "2.5.4.16",
    "POSTALCODE": "2.5.4.17",
    "NAME": "2.5.4.41",
    "GIVENNAME": "2.5.4.42",
    "INITIALS": "2.5.4.43",
    "GENERATIONQUALIFIER": "2.5.4.44",
    "DNQUALIFIER": "2.5.4.46",
    "PSEUDONYM": "2.5.4.65",
    "ORGANIZATIONIDENTIFIER": "2.5.4.97",
    "EMAILADDRESS": "1.2.840.113549.1.9.1",
}
_SPELLINGS = {oid: keyword for keyword, oid in _KEYWORDS.items()}
_OIDS = _KEYWORDS | {
    "S": "2.5.4.8",
    "G": "2.5.4.42",
    "GN": "2.5.4.42",
    "T": "2.5.4.12",
    "SURNAME": "2.5.4.4",
    "E": "1.2.840.113549.1.9.1",
    "EMAIL": "1.2.840.113549.1.9.1",
    "COMMONNAME": "2.5.4.3",
    "COUNTRYNAME": _COUNTRY,
    "LOCALITYNAME": "2.5.4.7",
    "STATEORPROVINCENAME": "2.5.4.8",
    "ORGANIZATIONNAME": "2.5.4.10",
    "ORGANIZATIONALUNITNAME": "2.5.4.11",
}

_TYPE = re.compile(r"\s*(?:OID\.)?([A-Za-z][A-Za-z0-9-]{0,40}|[0-2](?:\.[0-9]{1,20}){1,20})\s*=\s*", re.IGNORECASE)
_HEX = re.compile(r"[0-9A-Fa-f]{2}")
_HEX_VALUE = re.compile(r"#((?:[0-9A-Fa-f]{2})+)\s*$")
_TEXT_TAGS = {
    0x0C: "utf-8",
    0x12: "ascii",
    0x13: "ascii",
    0x14: "latin-1",
    0x16: "ascii",
    0x1A: "ascii",
    0x1C: "utf-32-be",
    0x1E: "utf-16-be",
}

_TO_NOTHING = (
    *((0x01, 0x08), (0x0E, 0x1F), (0x7F, 0x84), (0x86, 0x9F), (0xAD, 0xAD), (0x034F, 0x034F), (0x06DD, 0x06DD)),
    *((0x070F, 0x070F), (0x1806, 0x1806), (0x180B, 0x180E), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x2063)),
    *((0x206A, 0x206F), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFC), (0x1D173, 0x1D17A)),
    *((0xE0001, 0xE0001), (0xE0020, 0xE007F)),
)
"""Characters that do not count in a comparison, from one to another (RFC 4518 §2.2); NUL does: it cut names short."""
_MAPPED = dict.fromkeys((code for first, last in _TO_NOTHING for code in range(first, last + 1)), None)

_Rdn = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DistinguishedName:
    """One name. Equal and hashed by `rdns`; build it with `from_x509` or `parse`."""

    rdns: tuple[frozenset[tuple[str, str]], ...]
    """RDNs in certificate order; each a set of (dotted OID, value folded for comparison)."""
    written: tuple[_Rdn, ...] = field(compare=False, repr=False)
    """The same RDNs with values as they were written, for people to read."""

    @classmethod
    def from_x509(cls, name: x509.Name) -> DistinguishedName:
        """The name in a certificate. An empty name is allowed and equals only another empty name."""
        return cls._of(
            [tuple((attribute.oid.dotted_string, _text(attribute.value)) for attribute in rdn) for rdn in name.rdns]
        )

    @classmethod
    def parse(cls, text: str) -> DistinguishedName:
        """Read RFC 4514 text, and the imperfect text of real lists.

        Accepted beyond the RFC: spaces around separators and `=`, values in quotes (RFC 2253), quotes and commas left
        unescaped inside a value (a separator counts only before a known `type=`), certificate order. `L` and `ST` are
        both understood and stay different attributes. Raises ValueError when no name can be read, or when it is longer
        than `MAX_TEXT` characters or `MAX_ATTRIBUTES` attributes.
        """
        if len(text) > MAX_TEXT:
            raise ValueError("distinguished name too long")
        rdns: list[_Rdn] = []
        position, joined, count = 0, False, 0
        while True:
            oid, start = _type_at(text, position)
            if not oid:
                raise ValueError(f"no known attribute type at character {position}")
            value, position = _value_at(text, start)
            rdns[-1:] = [(*rdns[-1], (oid, value))] if joined else [*rdns[-1:], ((oid, value),)]
            count += 1
            if position >= len(text):
                break
            if count >= MAX_ATTRIBUTES:
                raise ValueError("too many attributes in a distinguished name")
            joined = text[position] == "+"
            position += 1
        return cls._of(rdns[::-1])

    @classmethod
    def _of(cls, written: Sequence[_Rdn]) -> DistinguishedName:
        if written and _has_country(written[-1]) and not _has_country(written[0]):
            written = written[::-1]
        return cls(
            tuple(frozenset((oid, fold(value)) for oid, value in rdn) for rdn in written),
            tuple(written),
        )

    def values(self, oid: str) -> tuple[str, ...]:
        """Values of one attribute type (dotted OID) as written, root first."""
        return tuple(value for rdn in self.written for kind, value in rdn if kind == oid)

    def __str__(self) -> str:
        """RFC 4514 text, leaf first; `parse` reads it back to an equal name."""
        return ",".join(
            "+".join(f"{_SPELLINGS.get(oid, oid)}={_escape(value)}" for oid, value in rdn)
            for rdn in reversed(self.written)
        )


def fold(value: str) -> str:
    """A value as it is compared (RFC 5280 §7.1, RFC 4518 §2): compatibility forms, case and runs of white space made
    equal, characters without a form of their own (soft hyphens, joiners, controls) left out."""
    if value.isascii() and value.isprintable():
        return " ".join(value.lower().split())
    value = value.translate(_MAPPED)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
    return " ".join(folded.split())


Rdns = tuple[frozenset[tuple[str, str | bytes]], ...]
"""A name as certification paths compare it: RDNs in the order of the certificate, each a set of (dotted OID, folded
text or, where the value is no text, its DER)."""


@lru_cache(maxsize=1024)
def comparable(encoded: bytes) -> Rdns:
    """A Name in DER as paths and name constraints compare it: RDN by RDN, in order, spelling aside (RFC 5280 §7.1).

    Unlike a `DistinguishedName` it is never turned around. Raises ValueError when it is no name, or is longer than
    `MAX_TEXT` octets or `MAX_ATTRIBUTES` attributes.
    """
    if len(encoded) > MAX_TEXT:
        raise der.DerError("name too long")
    rdns: list[frozenset[tuple[str, str | bytes]]] = []
    left = MAX_ATTRIBUTES
    for rdn in der.read(encoded).sequence(MAX_ATTRIBUTES):
        attributes = set()
        for attribute in rdn.set(left):
            left -= 1
            kind, value = attribute.sequence(2)
            attributes.add((kind.oid(), _folded(value)))
        if not attributes:
            raise der.DerError("empty relative name")
        rdns.append(frozenset(attributes))
    return tuple(rdns)


def texts(encoded: bytes, oid: str) -> tuple[str, ...]:
    """Values of one attribute type (dotted OID) in a Name in DER, root first, as written; "" where one is no text.

    Raises ValueError as `comparable` does.
    """
    comparable(encoded)  # its limits
    found = []
    for rdn in der.read(encoded).sequence():
        for attribute in rdn.set():
            kind, value = attribute.sequence(2)
            if kind.oid() == oid:
                found.append(_decoded(value) or "")
    return tuple(found)


def _folded(value: der.Element) -> str | bytes:
    text = _decoded(value)
    return bytes(value.encoded) if text is None else fold(text)


def _decoded(value: der.Element) -> str | None:
    encoding = _TEXT_TAGS.get(value.tag)
    try:
        return None if encoding is None else bytes(value.content).decode(encoding)
    except UnicodeDecodeError:
        return None


def _has_country(rdn: Iterable[tuple[str, str]]) -> bool:
    return any(oid == _COUNTRY for oid, _ in rdn)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else "#" + value.hex()


def _type_at(text: str, position: int) -> tuple[str, int]:
    """The OID of the `type=` at `position` ("" when there is none) and where its value starts."""
    match = _TYPE.match(text, position)
    if match is None:
        return "", position
    name = match[1]
    return (name if "." in name else _OIDS.get(name.upper(), "")), match.end()


def _value_ends_at(text: str, position: int) -> bool:
    """Whether a value may end here: at the end of the text, or at a separator that a known `type=` follows."""
    return position >= len(text) or (text[position] in ",;+" and bool(_type_at(text, position + 1)[0]))


def _value_at(text: str, start: int) -> tuple[str, int]:
    """The value that starts at `start`, and the position of the separator after it (or the end of the text)."""
    if text[start : start + 1] == '"':
        quoted = _quoted_value_at(text, start + 1)
        if quoted is not None:
            return quoted
    position = start
    while not _value_ends_at(text, position):
        position += 2 if text[position] == "\\" else 1
    if position > len(text):
        raise ValueError("distinguished name ends inside an escape")
    raw = text[start:position]
    hexadecimal = _HEX_VALUE.match(raw)
    if hexadecimal:
        return _decode(bytes.fromhex(hexadecimal[1])), position
    return _unescape(_strip_end(raw)), position


def _quoted_value_at(text: str, start: int) -> tuple[str, int] | None:
    """The value whose opening quote is before `start`; None when no quote closes it just before a separator."""
    position = start
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == '"':
            after = position + 1
            while text[after : after + 1].isspace():
                after += 1
            if _value_ends_at(text, after):
                return _unescape(text[start:position]), after
        position += 1
    return None


def _strip_end(raw: str) -> str:
    stripped = raw.rstrip()
    # an escaped trailing space belongs to the value (RFC 4514 §2.4)
    trailing = len(stripped) - len(stripped.rstrip("\\"))
    return raw[: len(stripped) + 1] if trailing % 2 and len(stripped) < len(raw) else stripped


def _unescape(raw: str) -> str:
    """Undo RFC 4514 §2.4 escapes; raises ValueError on escaped bytes that are not UTF-8."""
    out = bytearray()
    position = 0
    while position < len(raw):
        if raw[position] == "\\":
            pair = _HEX.match(raw, position + 1)
            if pair:
                out += bytes.fromhex(pair[0])
                position += 3
                continue
            position += 1
        out += raw[position : position + 1].encode("utf-8", "surrogatepass")
        position += 1
    return out.decode("utf-8")


def _decode(der: bytes) -> str:
    """The text of a `#hex` value: one DER string (RFC 4514 §2.4)."""
    encoding = _TEXT_TAGS.get(der[0])
    if encoding is None or len(der) < 2 or der[1] != len(der) - 2 or der[1] > 127:
        raise ValueError("unreadable # value in a distinguished name")
    return der[2:].decode(encoding)


def _escape(value: str) -> str:
    """RFC 4514 §2.4, and control characters too so that a name cannot break a log line."""
    out = []
    for index, character in enumerate(value):
        at_edge = index in (0, len(value) - 1)
        if character in '"+,;<>\\' or (at_edge and character == " ") or (index == 0 and character == "#"):
            out.append("\\" + character)
        elif unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp") or (at_edge and character.isspace()):
            out.append("".join(f"\\{byte:02x}" for byte in character.encode()))
        else:
            out.append(character)
    return "".join(out)
