"""The Merkle tree of RFC 6962 §2: one hash that stands for a whole journal, and short proofs about it.

A leaf is hashed behind a zero octet and a node behind a one, so that neither can pass for the other. `Frontier` is all
that must be remembered of a tree to make it grow: the roots of its perfect subtrees, one for each bit of its size.
Proofs are made in one pass over the leaves, whatever their number, with the memory of a few frontiers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

_HASH_BYTES = 32
_BLOCK = 256
"""Leaves hashed level by level together; a power of two."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """A tree that only grows: `size` leaves, and no more memory than one hash for each bit of that number."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Raises ValueError when there are not as many peaks as bits set in `size`."""
        if size < 0 or len(peaks) != size.bit_count():
            raise ValueError("these are not the peaks of a tree of this size")
        self.size = size
        self._peaks = list(peaks)

    @classmethod
    def from_bytes(cls, size: int, packed: bytes) -> Frontier:
        """The frontier again from its size and `bytes(frontier)`. Raises ValueError when they do not fit."""
        if len(packed) % _HASH_BYTES:
            raise ValueError("peaks have 32 octets each")
        return cls(size, [packed[start : start + _HASH_BYTES] for start in range(0, len(packed), _HASH_BYTES)])

    def __bytes__(self) -> bytes:
        return b"".join(self._peaks)

    def copy(self) -> Frontier:
        return Frontier(self.size, self._peaks)

    def add(self, data: bytes) -> None:
        """Append one leaf, O(log size) at the worst, one node on average."""
        self._push(leaf_hash(data), 0)

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Append many leaves; blocks that stand at their place are hashed level by level, which is faster."""
        position = 0
        while position < len(leaves):
            if self.size % _BLOCK or len(leaves) - position < _BLOCK:
                self.add(leaves[position])
                position += 1
                continue
            self._push(_block_root(leaves[position : position + _BLOCK]), _BLOCK.bit_length() - 1)
            position += _BLOCK

    def root(self) -> bytes:
        """MTH of the leaves so far; SHA-256 of nothing for the empty tree."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        root = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            root = node_hash(peak, root)
        return root

    def _push(self, root: bytes, level: int) -> None:
        """Append a perfect subtree of 2**level leaves; the size is a multiple of that."""
        carry = self.size >> level
        while carry & 1:
            root = node_hash(self._peaks.pop(), root)
            carry >>= 1
        self._peaks.append(root)
        self.size += 1 << level


def root_of(leaves: Iterable[bytes]) -> bytes:
    """MTH(D[n])."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.add(leaf)
    return frontier.root()


Range = tuple[int, int]
"""Leaves `start` up to and without `end`."""


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Which subtrees' roots are the audit path of leaf `index`, counted from 0, in a tree of `size`: RFC 6962 §2.1.1.

    Raises ValueError when the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("the tree has no such leaf")
    path: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
    return path[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """Which subtrees' roots prove that the tree of `old` leaves is the beginning of that of `new`: RFC 6962 §2.1.2.

    Raises ValueError unless 0 < old <= new.
    """
    if not 0 < old <= new:
        raise ValueError("a proof needs two trees, the older not empty and not larger than the newer")
    path: list[Range] = []
    start, end = 0, new
    whole = True  # the old tree is all of the subtree in hand: its root is known
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((start, middle))
            start = middle
            whole = False
    if not whole:
        path.append((start, end))
    return path[::-1]


def roots_of_ranges(leaves: Iterable[bytes], ranges: Sequence[Range]) -> list[bytes]:
    """The root over each of these disjoint ranges, in one pass. Raises ValueError when the leaves end early."""
    roots: dict[Range, bytes] = {}
    waiting: Iterator[Range] = iter(sorted(ranges))
    current = next(waiting, None)
    frontier = Frontier()
    for index, leaf in enumerate(leaves):
        if current is None:
            break
        if index < current[0]:
            continue
        frontier.add(leaf)
        if index + 1 == current[1]:
            roots[current] = frontier.root()
            frontier = Frontier()
            current = next(waiting, None)
    if current is not None:
        raise ValueError("the tree has fewer leaves than that")
    return [roots[each] for each in ranges]


def _split(size: int) -> int:
    """The largest power of two smaller than `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def _block_root(leaves: Sequence[bytes]) -> bytes:
    sha256 = hashlib.sha256
    level = [sha256(b"\x00" + leaf).digest() for leaf in leaves]
    while len(level) > 1:
        pairs = iter(level)
        level = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
    return level[0]
