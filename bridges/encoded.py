"""Base64 as senders really write it: with line breaks inside, or without the final `=`."""

from __future__ import annotations

import binascii
from typing import NamedTuple

import pybase64

_WHITE = b" \t\r\n"


class Decoded(NamedTuple):
    """Decoded bytes, and whether the encoded form had to be repaired."""

    data: bytes
    repaired: bool


def decode_base64(encoded: bytes | memoryview) -> Decoded | None:
    """The bytes, or None when they were not Base64 or were cut in the middle of a quantum (RFC 4648 §4).

    Valid input is decoded where it lies; white space and missing padding are tolerated at the price of a copy.
    """
    try:
        return Decoded(pybase64.b64decode(encoded, validate=True), False)
    except (binascii.Error, ValueError):
        compact = bytes(encoded).translate(None, _WHITE)
    try:
        return Decoded(pybase64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True), True)
    except (binascii.Error, ValueError):
        return None
