"""Reading and writing ASN.1 by hand: a bounded BER reader and a DER writer (ITU-T X.690).

Certificates travel inside mail, so what is read here is written by attackers: the reader is iterative, never copies,
looks only where it is asked to, and stops at budgets on depth and on elements, which keeps it linear in the size of the
input whatever the input is. OpenSSL `-stream`, Outlook, Apple Mail and NSS write BER with indefinite lengths and octet
strings in chunks: both are read. What Relais writes is DER, with pieces joined once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
MAX_CHILDREN = 1024
"""Elements in one other that are looked at one by one, unless the caller expects more."""
MAX_INDEFINITE = 10_000

_MANY = 10_000
_MEAN_OCTETS = 16
"""Beyond the first many, elements and chunks must have so many octets on the average."""
_PIECE = 1 << 16
_CHUNK_COST = 200
"""Octets of memory a slice of the input takes for itself."""
_ALIKE = 16
_MOST_AT_ONCE = 4096

Buffer = bytes | bytearray | memoryview


class DerError(ValueError):
    """The bytes are not the BER or DER expected, or exceed a budget. The text names the rule, never the content."""


def context(number: int, *, constructed: bool = True) -> int:
    """Identifier octet of the context-specific tag `[number]`, 0 to 30 (X.690 §8.1.2)."""
    return 0x80 | (CONSTRUCTED if constructed else 0) | number


# --- Reading ---------------------------------------------------------------------------------------------------------


class _Source:
    """The input, what may still be spent on it, and where the indefinite lengths in it end."""

    __slots__ = ("elements", "ends", "fixed", "indefinite", "raw", "view")

    def __init__(self, data: Buffer, elements: int | None) -> None:
        self.raw = data
        self.view = memoryview(data)
        self.fixed = elements
        self.elements = _MANY + len(data) // _MEAN_OCTETS if elements is None else elements
        self.indefinite = MAX_INDEFINITE
        self.ends: dict[int, int] = {}
        """Position of the end-of-contents octets, by that of the first contents octet."""

    def ceiling(self, octets: int) -> int:
        """How many headers may be stepped over within so many octets."""
        return _MANY + octets // _MEAN_OCTETS if self.fixed is None else self.fixed

    def close(self, body: int, limit: int, depth: int) -> int:
        """Where the end-of-contents octets of an indefinite length are (X.690 §8.1.5); notes nested ones too.

        Elements on the way are stepped over without an object for each: there may be a chunk for every few octets.
        """
        known = self.ends.get(body)
        if known is not None:
            return known
        raw, ends = self.raw, self.ends
        passed, position, size, alike = 0, body, 0, 0
        ceiling = self.ceiling(0)
        waiting = [body]
        self._open(depth)
        while waiting:
            start = position
            position += 2
            if position > limit:
                raise DerError("no end of contents")
            tag, length = raw[start], raw[start + 1]
            if not tag:
                if length:
                    raise DerError("end of contents")
                ends[waiting.pop()] = start
                continue
            passed += 1
            if passed > ceiling:
                ceiling = self.ceiling(start - body)
                if passed > ceiling:
                    raise DerError("too many elements")
            if tag & 0x1F == 0x1F:
                raise DerError("tag number above 30")
            if length == 0x80:
                if not tag & CONSTRUCTED:
                    raise DerError("indefinite length of a primitive")
                self._open(depth + len(waiting))
                waiting.append(position)
                continue
            if length > 0x80:
                octets = length - 0x80
                position += octets
                if octets > 8 or position > limit:
                    raise DerError("length field")
                length = int.from_bytes(raw[position - octets : position], "big")
            if length != size:
                size, alike = length, 0
            elif alike < _ALIKE:
                alike += 1
            else:
                count = _repeated(raw, start, position - start, length, limit)
                alike = 0
                if count:
                    passed += count - 1
                    position += (count - 1) * (position - start + length)
            position += length
        return ends[body]

    def _open(self, depth: int) -> None:
        """One more indefinite length, each of which has to be remembered."""
        if depth > MAX_DEPTH:
            raise DerError("nested too deeply")
        self.indefinite -= 1
        if self.indefinite < 0:
            raise DerError("too many indefinite lengths")


def _repeated(raw: Buffer, start: int, header_octets: int, length: int, limit: int) -> int:
    """How many elements with the header at `start` follow each other there, itself included; not all may be found.

    Columns of octets are compared instead of headers one by one: small chunks are all alike, but for the last.
    """
    first = bytes(raw[start : start + header_octets])
    stride = header_octets + length
    count, many = 0, 64
    while True:
        end = start + many * stride
        if end > limit:
            return count
        for column in range(header_octets):
            if raw[start + column : end : stride] != first[column : column + 1] * many:
                return count
        count, start, many = count + many, end, min(many * 2, _MOST_AT_ONCE)


class Element:
    """One TLV of the input: positions only, the bytes stay where they are.

    Children are looked at when asked for; values are slices of the input as `memoryview`. Every method raises
    `DerError` when the element is not what the caller says it must be.
    """

    __slots__ = ("_body", "_children", "_depth", "_end", "_source", "_start", "_stop", "tag")

    def __init__(self, source: _Source, start: int, limit: int, depth: int) -> None:
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
        self._children: list[Element] | None = None

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

    def children(self, most: int = MAX_CHILDREN) -> list[Element]:
        """The elements inside a constructed element, which must not be more than `most`."""
        if self._children is None:
            if not self.tag & CONSTRUCTED:
                raise DerError("not constructed")
            found: list[Element] = []
            source, position, stop, depth = self._source, self._body, self._stop, self._depth + 1
            while position < stop:
                if len(found) == most:
                    raise DerError("too many elements")
                child = Element(source, position, stop, depth)
                found.append(child)
                position = child._end
            self._children = found
        elif len(self._children) > most:
            raise DerError("too many elements")
        return self._children

    def expect(self, tag: int) -> Element:
        """This element, when it has that identifier octet."""
        if self.tag != tag:
            raise DerError(f"tag {self.tag:#04x} where {tag:#04x} is due")
        return self

    def sequence(self, most: int = MAX_CHILDREN) -> list[Element]:
        return self.expect(SEQUENCE).children(most)

    def set(self, most: int = MAX_CHILDREN) -> list[Element]:
        return self.expect(SET).children(most)

    def explicit(self) -> Element:
        """The one element inside an explicit tag."""
        return only(self.children(2))

    def integer(self) -> int:
        """An INTEGER, at most 4096 octets long."""
        self.expect(INTEGER)
        if not 0 < self.size <= 4096:
            raise DerError("integer size")
        return int.from_bytes(self._source.raw[self._body : self._stop], "big", signed=True)

    def oid(self) -> str:
        """An OBJECT IDENTIFIER in dotted form."""
        self.expect(OID)
        if not 0 < self.size <= MAX_OID_OCTETS:
            raise DerError("object identifier size")
        return _dotted(bytes(self._source.raw[self._body : self._stop]))

    def chunks(self) -> Octets:
        """The value of an octet string, whole or in chunks of chunks (X.690 §8.7); its own tag may be implicit."""
        return Octets(self._source, self._body, self._stop, self._depth if self.tag & CONSTRUCTED else None)

    def octets(self) -> bytes:
        """An OCTET STRING's value, joined once."""
        if self.tag & ~CONSTRUCTED != OCTET_STRING:
            raise DerError("not an octet string")
        return bytes(self.content) if self.tag == OCTET_STRING else bytes(self.chunks())

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
            month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
            return datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            raise DerError("time") from None


class Octets:
    """The value of an octet string where it stands in the input; its chunks are stepped through, never kept.

    `len(octets)` is the size of the value. Going through it takes no memory but for a piece at a time; `bytes(octets)`
    joins once.
    """

    __slots__ = ("_body", "_depth", "_size", "_source", "_stop")

    def __init__(self, source: _Source, body: int, stop: int, depth: int | None) -> None:
        """`depth` of the constructed element, None of a primitive one. Raises DerError when something is no chunk."""
        self._source = source
        self._body = body
        self._stop = stop
        self._depth = depth
        self._size = stop - body if depth is None else sum(length * count for _, _, length, count in self._runs(depth))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self)

    def whole(self) -> bytes | memoryview:
        """The value in one piece: a slice of the input where it stands so, otherwise joined once."""
        if self._depth is None:
            return self._source.view[self._body : self._stop]
        pieces = list(self)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        """The value in pieces that are worth a call each: large chunks as slices of the input, small ones joined."""
        view = self._source.view
        if self._depth is None:
            yield view[self._body : self._stop]
            return
        small: list[memoryview] = []
        gathered = 0
        for first, header_octets, length, count in self._runs(self._depth):
            if length >= _PIECE:
                if small:
                    yield b"".join(small)
                    small.clear()
                    gathered = 0
                for start in range(first, first + count * (header_octets + length), header_octets + length):
                    yield view[start : start + length]
                continue
            stride = header_octets + length
            at_once = _PIECE // (length + _CHUNK_COST) + 1
            for begin in range(0, count, at_once):
                start = first + begin * stride
                starts = range(start, start + min(at_once, count - begin) * stride, stride)
                small += [view[at : at + length] for at in starts]
                gathered += len(starts) * (length + _CHUNK_COST)
                if gathered >= _PIECE:
                    yield b"".join(small)
                    small.clear()
                    gathered = 0
        if small:
            yield b"".join(small)

    def _runs(self, depth: int) -> Iterator[tuple[int, int, int, int]]:
        """Chunks alike that follow each other: position of the first one's value, octets of each one's header and of
        its value, and their number. Found without recursion."""
        source = self._source
        raw, position, stop = source.raw, self._body, self._stop
        passed, ceiling, size, alike = 0, source.ceiling(0), 0, 0
        around: list[tuple[int, int]] = []
        """Where to go on after the chunk of chunks at hand, and until where."""
        while True:
            while position < stop:
                passed += 1
                if passed > ceiling:
                    ceiling = source.ceiling(position - self._body)
                    if passed > ceiling:
                        raise DerError("too many chunks")
                start = position
                position += 2
                if position > stop:
                    raise DerError("truncated header")
                tag, length = raw[start], raw[start + 1]
                indefinite = length == 0x80
                if length > 0x80:
                    octets = length - 0x80
                    position += octets
                    if octets > 8 or position > stop:
                        raise DerError("length field")
                    length = int.from_bytes(raw[position - octets : position], "big")
                if tag == OCTET_STRING and not indefinite:
                    header_octets = position - start
                    if position + length > stop:
                        raise DerError("truncated value")
                    count = 1
                    if length != size:
                        size, alike = length, 0
                    elif alike < _ALIKE:
                        alike += 1
                    else:
                        alike = 0
                        count = _repeated(raw, start, header_octets, length, stop) or 1
                        passed += count - 1
                    yield position, header_octets, length, count
                    position = start + count * (header_octets + length)
                elif tag == OCTET_STRING | CONSTRUCTED:
                    inside = depth + len(around) + 1
                    if inside > MAX_DEPTH:
                        raise DerError("nested too deeply")
                    end = source.close(position, stop, inside) if indefinite else position + length
                    after = end + 2 if indefinite else end
                    if after > stop:
                        raise DerError("truncated value")
                    around.append((after, stop))
                    stop = end
                else:
                    raise DerError("octet string of something else")
            if not around:
                return
            position, stop = around.pop()


def read(data: Buffer, elements: int | None = None) -> Element:
    """The one element `data` consists of; raises `DerError` on trailing bytes.

    `elements` is the number of headers that may be looked at, including those looked at later through `children`, and
    that of the chunks a value may consist of. By default both are 10,000 plus one for each 16 octets, so that
    a message in one-octet chunks costs nothing.
    """
    size = len(data)
    root = Element(_Source(data, elements), 0, size, 1)
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
