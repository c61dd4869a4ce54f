"""Lines of one length, looked at and cut all at once, beside other threads.

Much of a mail is base64: thousands of lines of 76 characters. As bytes they are looked at and cut line by line, or in
passes that keep the interpreter's lock; as an array of as many columns they take memory's time, and NumPy gives the
lock away meanwhile. Octets only, no arithmetic.
"""

from __future__ import annotations

import numpy as np

_CR, _LF = 0x0D, 0x0A
_CRLF = np.frombuffer(b"\r\n", np.uint16)[0]
_FIRST, _LAST = 0x20, 0x7E


def cut(encoded: bytes, length: int) -> bytes:
    """`encoded` in lines of `length` octets, the last one shorter perhaps, each ended with CRLF. `length` is even."""
    count = len(encoded) // length
    lines = np.empty((count, length + 2), np.uint8)
    lines[:, :length] = np.frombuffer(encoded, np.uint8, count * length).reshape(count, length)
    lines.view(np.uint16)[:, length // 2] = _CRLF
    rest = encoded[count * length :]
    return b"".join((lines.tobytes(), rest, b"\r\n")) if rest else lines.tobytes()


def is_plain(data: bytes | bytearray, start: int, stop: int, length: int) -> bool:
    """Whether `data[start:stop]` is printable ASCII (0x20 to 0x7E) in lines of `length` octets, CRLF included."""
    if not _ends_are_crlf(data, start, stop, length):
        return False
    octets = np.frombuffer(data, np.uint8, stop - start, start)
    # unsigned: what is below the range wraps around to above it
    return _only_ends(octets - np.uint8(_FIRST) > np.uint8(_LAST - _FIRST), length)


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
    return int(np.count_nonzero(found)) == 2 * (len(found) // length)
