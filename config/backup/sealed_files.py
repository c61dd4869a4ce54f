"""Files of any size under the key-encryption key: what a backup holds of a database, a mailbox, a configuration.

File: `RLS1`, length of the wrapped key (2 bytes, big-endian), wrapped key, then chunks of 1 MiB, each under AES-256-GCM
with a counter as nonce whose last byte marks the last chunk (the STREAM construction): a file that was cut, extended or
reordered does not open. The additional data is the object's name, so that two files cannot be swapped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trust.sealing import Sealing, VaultError

_MAGIC = b"RLS1"
_HEAD = struct.Struct(">4sH")
_CHUNK = 1 << 20
_TAG = 16
_WRAPPED = 40
"""AES key wrap of 32 bytes (RFC 3394)."""


class SealedFileError(ValueError):
    """A sealed file was altered, cut or swapped, or is under another key-encryption key."""


def sealed_size(size: int) -> int:
    """How long the sealed form of `size` bytes is."""
    return _HEAD.size + _WRAPPED + size + _TAG * max(1, -(-size // _CHUNK))


def seal(plain: Iterable[bytes], vault: Sealing, name: str) -> Iterator[bytes]:
    """The sealed form, piece by piece."""
    dek = AESGCM.generate_key(256)
    wrapped = vault.wrap(dek)
    yield _HEAD.pack(_MAGIC, len(wrapped)) + wrapped
    cipher, binding, number = AESGCM(dek), _binding(name), 0
    held = b""
    for piece in plain:
        held += piece
        while len(held) > _CHUNK:
            yield cipher.encrypt(_nonce(number, last=False), held[:_CHUNK], binding)
            held, number = held[_CHUNK:], number + 1
    yield cipher.encrypt(_nonce(number, last=True), held, binding)


def unseal(file: IO[bytes], vault: Sealing, name: str) -> Iterator[bytes]:
    """The content again, piece by piece; only when it ends without `SealedFileError` is it whole."""
    try:
        magic, length = _HEAD.unpack(file.read(_HEAD.size))
        if magic != _MAGIC or length != _WRAPPED:
            raise SealedFileError("not a sealed file of a backup")
        cipher, binding, number = AESGCM(vault.unwrap(file.read(length))), _binding(name), 0
        chunk = file.read(_CHUNK + _TAG)
        while True:
            following = file.read(_CHUNK + _TAG)
            yield cipher.decrypt(_nonce(number, last=not following), chunk, binding)
            if not following:
                return
            chunk, number = following, number + 1
    except (struct.error, InvalidTag, VaultError):
        raise SealedFileError("a file of the backup was altered, or is under another key-encryption key") from None


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes, in pieces of at most 1 MiB."""
    while piece := file.read(_CHUNK):
        yield piece


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _binding(name: str) -> bytes:
    return b"relais backup: " + name.encode()
