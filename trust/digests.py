"""Digests of contents, without giving the interpreter's lock away for what takes microseconds.

`hashlib` lets other threads go first whenever it is handed more than 2,047 octets. For what is small the wait to have
the lock back is longer than the hashing: of two threads that prepare a mail each, one then does everything while the
other computes its signature, instead of both waiting for each other many times (docs/benchmarks.md, smime).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash

SMALL_OCTETS = 1 << 18
"""Hashed in less than 0.2 ms, which no other thread minds."""
_KEEPS_THE_LOCK = 2047


def digest(name: str, content: bytes | bytearray | memoryview) -> bytes:
    """Of `content`; `name` as `hashlib.new` has it. Raises ValueError for a name it does not know."""
    running = hashlib.new(name)
    update(running, content)
    return running.digest()


def update(running: _Hash, content: bytes | bytearray | memoryview) -> None:
    """Hash `content` too, octets in one piece."""
    if len(content) > SMALL_OCTETS:
        running.update(content)
        return
    view = memoryview(content)
    for start in range(0, len(view), _KEEPS_THE_LOCK):
        running.update(view[start : start + _KEEPS_THE_LOCK])
