"""Lines of one length, looked at and cut all at once, beside other threads.

Much of a mail is base64: thousands of lines of 76 characters. As bytes they are looked at and cut line by line, or in
passes that keep the interpreter's lock; as an array of as many columns they take memory's time, and NumPy gives the
lock away meanwhile. Octets only, no arithmetic.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_CR, _LF = 0x0D, 0x0A
_FIRST, _DELETE = 0x20, 0x7F
_KEEPS_THE_LOCK = 500
"""As many elements as NumPy works on without giving the interpreter's lock away."""
_FEW_LINES = 4096


@lru_cache(maxsize=16)
def _line(length: int) -> np.dtype[np.void]:
    return np.dtype([("octets", f"V{length}"), ("end", "V2")])


def cut(encoded: bytes, length: int) -> bytes:
    """`encoded` in lines of `length` octets, the last one shorter perhaps, each ended with CRLF. `length` is even."""
    count = len(encoded) // length
    if not count:
        return encoded + b"\r\n" if encoded else b""
    lines = bytearray(b"\r\n") * (count * (length // 2 + 1))
    octets = np.frombuffer(lines, _line(length), count)["octets"]
    whole = np.frombuffer(encoded, f"V{length}", count)
    # a few microseconds of work: who waits for the lock would be woken for it, and too late
    step = _KEEPS_THE_LOCK if count <= _FEW_LINES else count
    for start in range(0, count, step):
        octets[start : start + step] = whole[start : start + step]
    rest = encoded[count * length :]
    return b"".join((lines, rest, b"\r\n")) if rest else bytes(lines)


def is_plain(data: bytes | bytearray, start: int, stop: int, length: int) -> bool:
    """Whether `data[start:stop]` is printable ASCII (0x20 to 0x7E) in lines of `length` octets, CRLF included."""
    if not _ends_are_crlf(data, start, stop, length):
        return False
    # signed: what is beyond ASCII is below the range too
    octets = np.frombuffer(data, np.int8, stop - start, start)
    return data.find(_DELETE, start, stop) < 0 and _only_ends(octets < _FIRST, length)


def is_lines(data: bytes | bytearray, start: int, stop: int, length: int) -> bool:
    """Whether CR and LF stand at the end of each `length` octets of `data[start:stop]`, and nowhere else."""
    if not _ends_are_crlf(data, start, stop, length):
        return False
    octets = np.frombuffer(data, np.uint8, stop - start, start)
    return _only_ends((octets == _CR) | (octets == _LF), length)


def _ends_are_crlf(data: bytes | bytearray, start: int, stop: int, length: int) -> bool:
    # as bytes: these are few, and to give the lock away for a microsecond and wait for it costs more
    count, rest = divmod(stop - start, length)
    return (
        length > 1
        and not rest
        and data[start + length - 2 : stop : length] == b"\r" * count
        and data[start + length - 1 : stop : length] == b"\n" * count
    )


def _only_ends(found: np.typing.NDArray[np.bool_], length: int) -> bool:
    # compared as bytes, which keeps the lock: to count them would give it away once more
    return found.tobytes() == (b"\0" * (length - 2) + b"\1\1") * (len(found) // length)
