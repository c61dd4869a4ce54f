"""The C library's allocator told to keep the memory of large messages instead of giving it back after each, and
Python's collector to leave alone what stays.

glibc serves blocks of 128 KB and more with a mapping of their own, returned to the kernel when freed; a mail of 5 MB
passes through a dozen such blocks, and clearing their fresh pages costs more than its cryptography (docs/benchmarks.md,
smime). Each Relais process therefore sets mallopt(3) when it starts. The price: a process keeps up to `TRIM_OCTETS` of
free memory for the next message.
"""

from __future__ import annotations

import ctypes
import gc

MMAP_OCTETS = 32 << 20
"""Blocks from this size on get a mapping of their own. glibc takes no more than this."""
TRIM_OCTETS = 256 << 20
"""Free memory at the end of the heap that is not given back."""
TOP_PAD_OCTETS = 64 << 20
"""By how much the heap grows at a time."""

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Set the thresholds for this process, best before it starts threads; False where the C library is another."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    wanted = (
        (_M_MMAP_THRESHOLD, MMAP_OCTETS),
        (_M_TRIM_THRESHOLD, TRIM_OCTETS),
        (_M_TOP_PAD, TOP_PAD_OCTETS),
        # What one thread has freed serves the next: by itself each would keep the memory of the largest message it met.
        (_M_ARENA_MAX, 1),
    )
    taken = [mallopt(parameter, value) == 1 for parameter, value in wanted]
    return all(taken)


_COLLECT_EVERY = 20_000
"""Objects made and not freed between two looks for cycles; Python's own 700 suits programs that make few."""


def collect_rarely() -> None:
    """Once everything is loaded: it stays for good, and is not looked through again for garbage with every few
    messages."""
    gc.freeze()  # with what little garbage there is: collecting it now would keep the doors waiting
    gc.set_threshold(_COLLECT_EVERY, 10, 10)
