"""Reading and writing ASN.1 by hand: a bounded BER reader and a DER writer (ITU-T X.690).

Certificates travel inside mail, so what is read here is written by attackers: the reader is iterative, never copies,
looks only where it is asked to, and stops at budgets on depth and on elements, which keeps it linear in the size of the
input whatever the input is. OpenSSL `-stream`, Outlook, Apple Mail and NSS write BER with indefinite lengths and octet
strings in chunks: both are read. What Relais writes is DER, with pieces joined once.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache

INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = 0x05
OID = 0x06
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31
CONSTRUCTED = 0x20

MAX_DEPTH = 32
MAX_OID_OCTETS = 64

Buffer = bytes | bytearray | memoryview


class DerError(ValueError):
    """The bytes are not the BER or DER expected, or exceed a budget. The text names the rule, never the content."""


def context(number: int, *, constructed: bool = True) -> int:
    """Identifier octet of the context-specific tag `[number]`, 0 to 30 (X.690 §8.1.2)."""
    return 0x80 | (CONSTRUCTED if constructed else 0) | number


# --- Reading ---------------------------------------------------------------------------------------------------------


class _Source:
    """The input and what may still be spent on it."""

    __slots__ = ("elements", "raw", "view")

    def __init__(self, data: Buffer, elements: int) -> None:
        self.raw = data
        self.view = memoryview(data)
        self.elements = elements


class Element:
    """One TLV of the input: positions only, the bytes stay where they are.

    Children are looked at when asked for; values are slices of the input as `memoryview`. Every method raises
    `DerError` when the element is not what the caller says it must be.
    """

    __slots__ = ("_body", "_children", "_depth", "_end", "_source", "_start", "_stop", "tag")

    def __init__(self, source: _Source, start: int, limit: int, depth: int) -> None:
        """Read the header at `start`; an indefinite length leaves `_end` at -1 until `_close` finds it."""
        if depth > MAX_DEPTH:
            raise DerError("nested too deeply")
        source.elements -= 1
        if source.elements < 0:
            raise DerError("too many elements")
        raw = source.raw
        if start + 2 > limit:
            raise DerError("truncated header")
        tag = raw[start]
        if tag & 0x1F == 0x1F:
            raise DerError("tag number above 30")
        length = raw[start + 1]
        body = start + 2
        if length > 0x80:
            body += length & 0x7F
            if length > 0x88 or body > limit:
                raise DerError("length field")
            length = int.from_bytes(raw[start + 2 : body], "big")
        elif length == 0x80:
            if not tag & CONSTRUCTED:
                raise DerError("indefinite length of a primitive")
            length = -1
        if body + length > limit:
            raise DerError("truncated value")
        self._source = source
        self.tag: int = tag
        self._start = start
        self._body = body
        self._stop = self._end = body + length if length >= 0 else -1
        self._depth = depth
        self._children: list[Element] | None = None if length >= 0 else []

    def _close(self, limit: int) -> None:
        """Find the end-of-contents octets of an indefinite length (X.690 §8.1.5), noting children on the way."""
        source = self._source
        raw = source.raw
        stack = [self]
        position = self._body
        while stack:
            parent = stack[-1]
            if position + 2 > limit:
                raise DerError("no end of contents")
            if raw[position] == 0 and raw[position + 1] == 0:
                parent._stop = position
                position += 2
                parent._end = position
                stack.pop()
                continue
            child = Element(source, position, limit, parent._depth + 1)
            if parent._children is not None:
                parent._children.append(child)
            if child._end < 0:
                stack.append(child)
                position = child._body
            else:
                position = child._end

    @property
    def encoded(self) -> memoryview:
        """The whole TLV as received."""
        return self._source.view[self._start : self._end]

    @property
    def content(self) -> memoryview:
        """The contents octets as received, without end-of-contents."""
        return self._source.view[self._body : self._stop]

    @property
    def size(self) -> int:
        """Number of contents octets."""
        return self._stop - self._body

    def children(self) -> list[Element]:
        """The elements inside a constructed element."""
        if self._children is None:
            if not self.tag & CONSTRUCTED:
                raise DerError("not constructed")
            found: list[Element] = []
            position, stop = self._body, self._stop
            while position < stop:
                child = Element(self._source, position, stop, self._depth + 1)
                if child._end < 0:
                    child._close(stop)
                found.append(child)
                position = child._end
            self._children = found
        return self._children

    def expect(self, tag: int) -> Element:
        """This element, when it has that identifier octet."""
        if self.tag != tag:
            raise DerError(f"tag {self.tag:#04x} where {tag:#04x} is due")
        return self

    def sequence(self) -> list[Element]:
        return self.expect(SEQUENCE).children()

    def set(self) -> list[Element]:
        return self.expect(SET).children()

    def explicit(self) -> Element:
        """The one element inside an explicit tag."""
        return only(self.children())

    def integer(self) -> int:
        """An INTEGER, at most 4096 octets long."""
        self.expect(INTEGER)
        if not 0 < self.size <= 4096:
            raise DerError("integer size")
        return int.from_bytes(self.content, "big", signed=True)

    def oid(self) -> str:
        """An OBJECT IDENTIFIER in dotted form."""
        self.expect(OID)
        if not 0 < self.size <= MAX_OID_OCTETS:
            raise DerError("object identifier size")
        return _dotted(bytes(self.content))

    def chunks(self) -> list[memoryview]:
        """The pieces of an octet string, whole or in chunks of chunks (X.690 §8.7); its own tag may be implicit."""
        if not self.tag & CONSTRUCTED:
            return [self.content]
        pieces: list[memoryview] = []
        waiting = [iter(self.children())]
        while waiting:
            child = next(waiting[-1], None)
            if child is None:
                waiting.pop()
            elif child.tag == OCTET_STRING:
                pieces.append(child.content)
            elif child.tag == OCTET_STRING | CONSTRUCTED:
                waiting.append(iter(child.children()))
            else:
                raise DerError("octet string of something else")
        return pieces

    def octets(self) -> bytes:
        """An OCTET STRING's value, joined once."""
        if self.tag & ~CONSTRUCTED != OCTET_STRING:
            raise DerError("not an octet string")
        return b"".join(self.chunks())

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
            return datetime.strptime(digits.decode("ascii"), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        except ValueError:
            raise DerError("time") from None


def read(data: Buffer, elements: int | None = None) -> Element:
    """The one element `data` consists of; raises `DerError` on trailing bytes.

    `elements` is the number of headers that may be looked at, including those looked at later through `children`;
    by default 10,000 plus one for each 16 octets, so that a message in one-octet chunks costs nothing.
    """
    size = len(data)
    source = _Source(data, 10_000 + size // 16 if elements is None else elements)
    root = Element(source, 0, size, 1)
    if root._end < 0:
        root._close(size)
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
