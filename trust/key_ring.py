"""The key-encryption key, where it comes from, and the master keys it opens.

A vault begins with its key-encryption key as its only master key. Renewed, it has a ring: the file `ring` holds all
master keys, oldest first, under AES key wrap (RFC 3394) by the key-encryption key, which opens nothing else from then
on and can be replaced without sealing everything anew. While it is being replaced the ring is wrapped under the old
one and the new one, so that whatever is killed, the key that is there opens it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from trust.sealing import KEK_BYTES, VaultError
from trust.secret_files import SecretFileError, credential, read_secret
from trust.store.durable import write_durably

CREDENTIAL = "relais-kek"
"""Name of the systemd credential that holds the key-encryption key, for a vault without the file `kek`."""
MAX_MASTERS = 64
_MAX_RING_BYTES = 64 << 10

Version = tuple[int, int]
"""Tells one ring from another: inode and time of writing; (0, 0) for none."""


class _Ring(msgspec.Struct, frozen=True):
    """What the file holds: the same master keys, once under each key-encryption key."""

    version: int
    wrapped: tuple[bytes, ...]


def kek_file(root: Path) -> Path | None:
    """Where the key-encryption key of a vault is, None when it is nowhere that we can see."""
    file = root / "kek"
    return file if os.path.lexists(file) else credential(CREDENTIAL)


def read_kek(root: Path) -> tuple[bytes, Path]:
    """The key-encryption key and where it came from. Raises `VaultError`."""
    file = kek_file(root)
    if file is None:
        raise VaultError(
            f"the key-encryption key {root / 'kek'} cannot be read: No such file or directory; restore it from your "
            f"backup or, when systemd has it, run this with systemd-run -P -p LoadCredentialEncrypted={CREDENTIAL}"
        )
    return read_kek_from(file), file


def read_kek_from(file: Path) -> bytes:
    """Raises `VaultError`."""
    try:
        kek = read_secret(file, "the key-encryption key")
    except SecretFileError as error:
        raise VaultError(str(error)) from None
    if len(kek) != KEK_BYTES:
        raise VaultError(f"{file} is not a key-encryption key: it must hold exactly {KEK_BYTES} bytes")
    return kek


def ring_version(root: Path) -> Version:
    """Raises OSError."""
    try:
        status = (root / "ring").stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def read_ring(root: Path, kek: bytes) -> tuple[bytes, ...]:
    """The master keys, oldest first. Raises `VaultError`, OSError."""
    ring = _read(root)
    if ring is None:
        return (kek,)
    for wrapped in ring.wrapped:
        try:
            masters = aes_key_unwrap(_wrapping_key(kek), wrapped)
        except (InvalidUnwrap, ValueError):
            continue
        return tuple(masters[start : start + KEK_BYTES] for start in range(0, len(masters), KEK_BYTES))
    raise VaultError(
        "the key-encryption key is not the key this vault was made with, or renewed to: restore the right one"
    )


def write_ring(root: Path, masters: Sequence[bytes], keks: Sequence[bytes]) -> None:
    """Durably, in one step. Raises OSError."""
    joined = b"".join(masters)
    ring = _Ring(1, tuple(aes_key_wrap(_wrapping_key(each), joined) for each in keks))
    write_durably(root / "ring", msgspec.msgpack.encode(ring))


def is_being_replaced(root: Path) -> bool:
    """Whether two key-encryption keys open the vault. Raises `VaultError`, OSError."""
    ring = _read(root)
    return ring is not None and len(ring.wrapped) > 1


def _read(root: Path) -> _Ring | None:
    try:
        with (root / "ring").open("rb") as file:
            content = file.read(_MAX_RING_BYTES)
    except FileNotFoundError:
        return None
    try:
        return msgspec.msgpack.decode(content, type=_Ring)
    except msgspec.MsgspecError:
        raise VaultError(
            f"{root / 'ring'} was altered: restore it from your backup, with the key of that day"
        ) from None


def _wrapping_key(kek: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"relais vault 1: wrap key ring").derive(kek)
