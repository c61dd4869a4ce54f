"""What BER allows and DER forbids: indefinite lengths, and octet strings in chunks (ITU-T X.690 §8.1.5, §8.7).

OpenSSL `-stream`, Outlook, Apple Mail and NSS write both, and attackers write them by the million: both are stepped
through here without recursion, without an object for each, and within budgets that are linear in the size of the input.
`trust.der` is the door to all this.
"""

from __future__ import annotations

from collections.abc import Iterator

OCTET_STRING = 0x04
CONSTRUCTED = 0x20

MAX_DEPTH = 32
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


class Source:
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


class Octets:
    """The value of an octet string where it stands in the input; its chunks are stepped through, never kept.

    `len(octets)` is the size of the value. Going through it takes no memory but for a piece at a time; `bytes(octets)`
    joins once.
    """

    __slots__ = ("_body", "_depth", "_size", "_source", "_stop")

    def __init__(self, source: Source, body: int, stop: int, depth: int | None) -> None:
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
