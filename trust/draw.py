"""Random octets for identifiers, salts and nonces, drawn from the kernel some thousands at a time.

A call to the kernel lets other threads have the interpreter, and waiting to have it back costs more than all else that
is done for a small message. Every octet is handed out once, to one caller, and forgotten; a forked child begins anew.
A virtual machine that is set back to a snapshot would draw what it drew before: so nothing stays in stock for longer
than `FRESH_SECONDS`, and keys are not drawn here but asked of the kernel one by one, which hears of such things.
"""

from __future__ import annotations

import os
import threading
import time

FRESH_SECONDS = 1.0
_AT_ONCE = 4096


class _Stock(threading.local):
    def __init__(self) -> None:
        self.octets = bytearray()
        self.drawn_at = 0.0


_STOCK = _Stock()


def draw(count: int) -> bytes:
    """`count` octets nobody can predict, as good as `os.urandom`, but for keys."""
    if count > _AT_ONCE // 4:
        return os.urandom(count)
    # Taken out while it is used: a signal handler or a finaliser that draws in the midst finds none and makes its own.
    stock = _STOCK
    octets, stock.octets = stock.octets, bytearray()
    now = time.monotonic()
    if len(octets) < count or not 0 <= now - stock.drawn_at < FRESH_SECONDS:
        octets = bytearray(os.urandom(_AT_ONCE))
        stock.drawn_at = now
    left = len(octets) - count
    drawn = bytes(octets[left:])
    del octets[left:]
    stock.octets = octets
    return drawn


def _forget() -> None:
    global _STOCK  # noqa: PLW0603 - the child must not draw what its parent draws
    _STOCK = _Stock()


os.register_at_fork(after_in_child=_forget)
