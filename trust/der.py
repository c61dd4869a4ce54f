"""Reading and writing ASN.1 by hand: a bounded BER reader and a DER writer (ITU-T X.690).

Certificates travel inside mail, so what is read here is written by attackers: the reader is iterative, never copies,
looks only where it is asked to, and stops at budgets on depth and on elements, which keeps it linear in the size of the
input whatever the input is. Indefinite lengths and octet strings in chunks are read in `trust.ber`. What Relais writes
is DER, with pieces joined once.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

from trust.ber import CONSTRUCTED, MAX_DEPTH, MAX_INDEFINITE, OCTET_STRING, Buffer, DerError, Octets, Source

__all__ = [
    "BIT_STRING",
    "CONSTRUCTED",
    "GENERALIZED_TIME",
    "INTEGER",
    "MAX_CHILDREN",
    "MAX_DEPTH",
    "MAX_INDEFINITE",
    "MAX_OID_OCTETS",
    "NULL",
    "OCTET_STRING",
    "OID",
    "SEQUENCE",
    "SET",
    "UTC_TIME",
    "Buffer",
    "DerError",
    "Element",
    "Octets",
    "context",
    "header",
    "integer",
    "null",
    "octet_string",
    "oid",
    "only",
    "read",
    "sequence",
    "set_of",
    "time",
    "tlv",
]

INTEGER = 0x02
BIT_STRING = 0x03
NULL = 0x05
OID = 0x06
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31

MAX_OID_OCTETS = 64
MAX_CHILDREN = 1024
"""Elements in one other that are looked at one by one, unless the caller expects more."""

_blank = object.__new__


def context(number: int, *, constructed: bool = True) -> int:
    """Identifier octet of the context-specific tag `[number]`, 0 to 30 (X.690 §8.1.2)."""
    return 0x80 | (CONSTRUCTED if constructed else 0) | number


# --- Reading ---------------------------------------------------------------------------------------------------------


class Element:
    """One TLV of the input: positions only, the bytes stay where they are.

    Children are looked at when asked for; values are slices of the input as `memoryview`. Every method raises
    `DerError` when the element is not what the caller says it must be.
    """

    __slots__ = ("_body", "_depth", "_end", "_source", "_start", "_stop", "tag")

    def __init__(self, source: Source, start: int, limit: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise DerError("nested too deeply")
        source.elements -= 1
        if source.elements < 0:
            raise DerError("too many elements")
        raw = source.raw
        if start + 2 > limit:
            raise DerError("truncated header")
        tag, length = raw[start], raw[start + 1]
        if tag & 0x1F == 0x1F:
            raise DerError("tag number above 30")
        if not tag:
            raise DerError("end of contents")
        body = start + 2
        if length < 0x80:
            stop = end = body + length
        elif length == 0x80:
            if not tag & CONSTRUCTED:
                raise DerError("indefinite length of a primitive")
            stop = source.close(body, limit, depth)
            end = stop + 2
        else:
            body += length - 0x80
            if length > 0x88 or body > limit:
                raise DerError("length field")
            stop = end = body + int.from_bytes(raw[start + 2 : body], "big")
        if end > limit:
            raise DerError("truncated value")
        self._source = source
        self.tag: int = tag
        self._start = start
        self._body = body
        self._stop = stop
        self._end = end
        self._depth = depth

    @property
    def encoded(self) -> memoryview:
        """The whole TLV as received."""
        return self._source.view[self._start : self._end]

    def copy(self) -> bytes:
        """The same, apart from the input."""
        return bytes(self._source.raw[self._start : self._end])

    @property
    def content(self) -> memoryview:
        """The contents octets as received, without end-of-contents."""
        return self._source.view[self._body : self._stop]

    @property
    def size(self) -> int:
        """Number of contents octets."""
        return self._stop - self._body

    def children(self, most: int = MAX_CHILDREN) -> list[Element]:
        """The elements inside a constructed element, which must not be more than `most`. They are read anew each
        time."""
        if not self.tag & CONSTRUCTED:
            raise DerError("not constructed")
        source, position, stop, depth = self._source, self._body, self._stop, self._depth + 1
        raw, element = source.raw, Element
        found: list[Element] = []
        if position < stop and depth > MAX_DEPTH:
            raise DerError("nested too deeply")
        for _ in range(min(most, source.elements)):
            if position == stop:
                break
            body = position + 2
            if body > stop:
                raise DerError("truncated header")
            tag, length = raw[position], raw[position + 1]
            if length > 0x7F:
                octets = length - 0x80
                if not 0 < octets < 5:
                    octets, tag = 0, 0  # not here
                length = int.from_bytes(raw[body : body + octets], "big")
                body += octets
            end = body + length
            if tag and tag & 0x1F != 0x1F:  # what most elements are, in half the time
                if end > stop:
                    raise DerError("truncated value")
                child = _blank(element)
                child.tag = tag
                child._source = source
                child._start = position
                child._body = body
                child._stop = child._end = position = end
                child._depth = depth
            else:
                child = element(source, position, stop, depth)
                source.elements += 1  # it is counted below
                position = child._end
            found.append(child)
        source.elements -= len(found)
        if position != stop:
            raise DerError("too many elements")
        return found

    def expect(self, tag: int) -> Element:
        """This element, when it has that identifier octet."""
        if self.tag != tag:
            raise DerError(f"tag {self.tag:#04x} where {tag:#04x} is due")
        return self

    def sequence(self, most: int = MAX_CHILDREN) -> list[Element]:
        if self.tag != SEQUENCE:
            self.expect(SEQUENCE)
        return self.children(most)

    def exactly(self, count: int, tag: int = SEQUENCE) -> list[Element]:
        """The elements of a SEQUENCE, or of what has that tag, which must be so many."""
        if self.tag != tag:
            self.expect(tag)
        found = self.children(count)
        if len(found) != count:
            raise DerError("a field is missing")
        return found

    def set(self, most: int = MAX_CHILDREN) -> list[Element]:
        if self.tag != SET:
            self.expect(SET)
        return self.children(most)

    def explicit(self) -> Element:
        """The one element inside an explicit tag."""
        return only(self.children(2))

    def integer(self) -> int:
        """An INTEGER, at most 4096 octets long."""
        if self.tag != INTEGER:
            self.expect(INTEGER)
        if not 0 < self._stop - self._body <= 4096:
            raise DerError("integer size")
        return int.from_bytes(self._source.raw[self._body : self._stop], "big", signed=True)

    def oid(self) -> str:
        """An OBJECT IDENTIFIER in dotted form."""
        if self.tag != OID:
            self.expect(OID)
        if not 0 < self._stop - self._body <= MAX_OID_OCTETS:
            raise DerError("object identifier size")
        return _dotted(bytes(self._source.raw[self._body : self._stop]))

    def chunks(self) -> Octets:
        """The value of an octet string, whole or in chunks of chunks (X.690 §8.7); its own tag may be implicit."""
        return Octets(self._source, self._body, self._stop, self._depth if self.tag & CONSTRUCTED else None)

    def octets(self) -> bytes:
        """An OCTET STRING's value, joined once."""
        if self.tag & ~CONSTRUCTED != OCTET_STRING:
            raise DerError("not an octet string")
        if self.tag == OCTET_STRING:
            return bytes(self._source.raw[self._body : self._stop])
        return bytes(self.chunks())

    def time(self) -> datetime:
        """UTCTime or GeneralizedTime in the form RFC 5280 §4.1.2.5 allows: UTC, seconds, `Z`, no fraction."""
        text = bytes(self.content) if self.size <= 15 else b""
        digits = text[:-1]
        if not text.endswith(b"Z") or not digits.isdigit():
            raise DerError("time")
        if self.tag == UTC_TIME and len(digits) == 12:
            digits = (b"19" if digits >= b"50" else b"20") + digits
        elif self.tag != GENERALIZED_TIME or len(digits) != 14:
            raise DerError("time")
        try:
            day, clock = divmod(int(digits), 1_000_000)
            hour, seconds = divmod(clock, 10_000)
            return datetime(day // 10_000, day // 100 % 100, day % 100, hour, *divmod(seconds, 100), tzinfo=UTC)
        except ValueError:
            raise DerError("time") from None


def read(data: Buffer, elements: int | None = None) -> Element:
    """The one element `data` consists of; raises `DerError` on trailing bytes.

    `elements` is the number of headers that may be looked at, including those looked at later through `children`, and
    that of the chunks a value may consist of. By default both are 10,000 plus one for each 16 octets, so that
    a message in one-octet chunks costs nothing.
    """
    size = len(data)
    root = Element(Source(data, elements), 0, size, 1)
    if root._end != size:
        raise DerError("trailing bytes")
    return root


def only(elements: list[Element]) -> Element:
    """The one element of a list that must have exactly one."""
    if len(elements) != 1:
        raise DerError(f"{len(elements)} elements where one is due")
    return elements[0]


@lru_cache(maxsize=1024)
def _dotted(content: bytes) -> str:
    arcs: list[int] = []
    value = 0
    for octet in content:
        if octet == 0x80 and not value:  # X.690 §8.19.2
            raise DerError("object identifier with padding")
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    if content[-1] & 0x80:
        raise DerError("object identifier cut short")
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))


# --- Writing ---------------------------------------------------------------------------------------------------------


def header(tag: int, length: int) -> bytes:
    """Identifier and minimal definite length (X.690 §10.1)."""
    if length < 0x80:
        return bytes((tag, length))
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big")


def tlv(tag: int, *parts: Buffer) -> bytes:
    """One element whose contents are `parts` one after the other."""
    return b"".join((header(tag, sum(map(len, parts))), *parts))


def sequence(*parts: Buffer) -> bytes:
    return tlv(SEQUENCE, *parts)


def set_of(parts: Iterable[bytes]) -> bytes:
    """A SET OF, its elements sorted as DER wants them (X.690 §11.6)."""
    return tlv(SET, *sorted(parts))


def integer(value: int) -> bytes:
    bits = (value if value >= 0 else ~value).bit_length()
    return tlv(INTEGER, value.to_bytes(bits // 8 + 1, "big", signed=True))


def octet_string(value: Buffer) -> bytes:
    return tlv(OCTET_STRING, value)


@lru_cache(maxsize=1024)
def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = map(int, dotted.split("."))
    content = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        content += bytes(reversed(groups))
    return tlv(OID, content)


def null() -> bytes:
    return b"\x05\x00"


def time(moment: datetime) -> bytes:
    """UTCTime until 2049, GeneralizedTime from 2050, to the second (RFC 5280 §4.1.2.5, RFC 5652 §11.3)."""
    moment = moment.astimezone(UTC)
    if 1950 <= moment.year < 2050:
        return tlv(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode("ascii"))
    return tlv(GENERALIZED_TIME, f"{moment.year:04}{moment:%m%d%H%M%SZ}".encode("ascii"))
