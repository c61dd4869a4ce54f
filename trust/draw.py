"""Random octets for identifiers, salts, nonces and data keys, drawn from the kernel some thousands at a time.

A call to the kernel lets other threads have the interpreter, and waiting to have it back costs more than all else that
is done for a small message. Every octet is handed out once, to one caller, and forgotten; a forked child begins anew.
"""

from __future__ import annotations

import os
import threading

_AT_ONCE = 4096


class _Stock(threading.local):
    def __init__(self) -> None:
        self.octets = bytearray()


_STOCK = _Stock()


def draw(count: int) -> bytes:
    """`count` octets nobody can predict, as good as `os.urandom`."""
    if count > _AT_ONCE // 4:
        return os.urandom(count)
    octets = _STOCK.octets
    if len(octets) < count:
        octets[:] = os.urandom(_AT_ONCE)
    drawn = bytes(octets[-count:]) if count else b""
    del octets[len(octets) - count :]
    return drawn


def _forget() -> None:
    global _STOCK  # noqa: PLW0603 - the child must not draw what its parent draws
    _STOCK = _Stock()


os.register_at_fork(after_in_child=_forget)
