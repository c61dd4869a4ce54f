"""Message and document bytes: one encrypted file per blob, durable before anybody learns its id.

Every blob has a fresh AES-256-GCM data key, wrapped by the vault and kept in the file's head. The additional data
binds the ciphertext to the blob's id and kind, so that two files cannot be swapped. Files are laid down before the
rows that name them; what no row names is collected later (`trust.store.orphans`), never the reverse.

File: `RLB1`, length of the wrapped key (2 bytes, big-endian), wrapped key, nonce (12 bytes), ciphertext and tag.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from trust.store.durable import make_private_directory, sync_directory, write_durably

_MAGIC = b"RLB1"
_HEAD = struct.Struct(">4sH")
_NONCE_BYTES = 12
_ID = re.compile(r"[0-9a-f]{32}")
_ABANDONED_AFTER_SECONDS = 3600.0
SHARDS = range(256)
"""A blob lies in the directory named by the first two digits of its id."""


class KeyWrapper(Protocol):
    """Who protects data keys: the vault."""

    def wrap(self, dek: bytes) -> bytes: ...

    def unwrap(self, blob: bytes) -> bytes:
        """Raises ValueError when the wrapped key was altered or wrapped by somebody else."""
        ...


class BlobMissingError(Exception):
    """No blob has this id."""


class BlobDamagedError(Exception):
    """The file was altered, cut, swapped with another, or its key is not ours. Nothing of it can be trusted."""


class BlobStore:
    """Encrypted blobs below `root` (created 0700 when missing). Thread-safe; several processes may share a root."""

    def __init__(self, root: Path, wrapper: KeyWrapper) -> None:
        self._root = root
        self._wrapper = wrapper
        self._unfinished = root / "unfinished"
        self._expected: set[str] = set()
        """Ids that somebody in this process has been given, or is about to be, and may yet write into a row."""
        self._expected_lock = threading.Lock()
        make_private_directory(self._unfinished)
        # All shards now, so that `put` has one directory to sync and no race over who created it.
        for shard in SHARDS:
            (root / f"{shard:02x}").mkdir(mode=0o700, exist_ok=True)
        sync_directory(root)
        self._remove_abandoned()

    def put(self, kind: str, content: bytes) -> str:
        """Keep `content`; returns its id (32 hexadecimal digits), durable. Raises OSError when the disk refuses.

        The blob is no orphan until `release` or `delete`, whatever the rows say.
        """
        blob_id = secrets.token_hex(16)
        with self._expected_lock:
            self._expected.add(blob_id)
        try:
            self._write(kind, blob_id, content)
        except BaseException:
            self.release(blob_id)
            raise
        return blob_id

    def release(self, blob_id: str) -> None:
        """The transaction that names this blob has ended, however it did: from now on the rows decide."""
        with self._expected_lock:
            self._expected.discard(blob_id)

    def expected(self) -> frozenset[str]:
        """Blobs of this process that were put and not released: a row may yet name them."""
        with self._expected_lock:
            return frozenset(self._expected)

    def _write(self, kind: str, blob_id: str, content: bytes) -> None:
        dek = AESGCM.generate_key(256)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        wrapped = self._wrapper.wrap(dek)
        ciphertext = AESGCM(dek).encrypt(nonce, content, _binding(kind, blob_id))
        head = _HEAD.pack(_MAGIC, len(wrapped)) + wrapped + nonce
        write_durably(self._path(blob_id), head, ciphertext, scratch=self._unfinished)

    def get(self, kind: str, blob_id: str) -> bytes:
        """The content, whole. Raises `BlobMissingError`, `BlobDamagedError` (also for another kind than was put)."""
        try:
            stored = memoryview(self._path(blob_id).read_bytes())
        except FileNotFoundError:
            raise BlobMissingError(blob_id) from None
        try:
            magic, wrapped_length = _HEAD.unpack_from(stored)
            nonce_at = _HEAD.size + wrapped_length
            content_at = nonce_at + _NONCE_BYTES
            if magic != _MAGIC:
                raise BlobDamagedError(blob_id)
            dek = self._wrapper.unwrap(bytes(stored[_HEAD.size : nonce_at]))
            return AESGCM(dek).decrypt(bytes(stored[nonce_at:content_at]), stored[content_at:], _binding(kind, blob_id))
        except (struct.error, ValueError, InvalidTag):
            raise BlobDamagedError(blob_id) from None

    def delete(self, blob_id: str) -> None:
        """Forget a blob; one that is not there is already forgotten."""
        try:
            self._path(blob_id).unlink(missing_ok=True)
        except BlobMissingError:
            return
        self.release(blob_id)

    def size(self, blob_id: str) -> int:
        """Octets on disk; 0 when it is not there."""
        try:
            return self._path(blob_id).stat().st_size
        except (FileNotFoundError, BlobMissingError):
            return 0

    def ids(self, shards: range = SHARDS) -> Iterator[tuple[str, float]]:
        """The ids in these shards, each with its time of writing (UNIX seconds), in no order."""
        for shard in shards:
            with os.scandir(self._root / f"{shard:02x}") as files:
                for file in files:
                    blob_id = f"{shard:02x}{file.name}"
                    if not _ID.fullmatch(blob_id):
                        continue
                    try:
                        written = file.stat().st_mtime
                    except FileNotFoundError:  # deleted meanwhile
                        continue
                    yield blob_id, written

    def _path(self, blob_id: str) -> Path:
        if not _ID.fullmatch(blob_id):  # an id is never a way to another file
            raise BlobMissingError("not a blob id")
        return self._root / blob_id[:2] / blob_id[2:]

    def _remove_abandoned(self) -> None:
        """Drop what a killed process left half written; nobody was ever told about it."""
        too_old = time.time() - _ABANDONED_AFTER_SECONDS
        for file in self._unfinished.iterdir():
            try:
                if file.stat().st_mtime < too_old:
                    file.unlink()
            except FileNotFoundError:  # another process finished or removed it
                continue


def _binding(kind: str, blob_id: str) -> bytes:
    return _MAGIC + blob_id.encode() + kind.encode()
