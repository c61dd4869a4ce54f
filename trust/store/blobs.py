"""Message and document bytes: one encrypted file per blob, or one row of the database when it is small.

Every blob has a fresh AES-256-GCM data key, wrapped by the vault and kept in its head. The additional data binds the
ciphertext to the blob's id and kind, so that two blobs cannot be swapped. A file is laid down, durable, before the row
that names it; what no row names is collected later (`trust.store.orphans`), never the reverse. What a small blob would
cost most is its own two disk syncs: as a row it is committed with the row that names it, and shares that one sync.

Stored: `RLB1`, length of the wrapped key (2 bytes, big-endian), wrapped key, nonce (12 bytes), ciphertext and tag.
"""

from __future__ import annotations

import os
import re
import secrets
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from sqlalchemy import Connection, bindparam, delete, func, select

from trust.draw import draw
from trust.store.database import Database
from trust.store.direct import DirectStatement, insertion
from trust.store.durable import make_private_directory, sync_directory, write_pieces_durably
from trust.tables import blobs

_MAGIC = b"RLB1"
_HEAD = struct.Struct(">4sH")
_KEY_BYTES = 32
_NONCE_BYTES = 12
_PIECE_BYTES = 1024 * 1024
_ID = re.compile(r"[0-9a-f]{32}")
_ROW_ID = re.compile(r"t[0-9a-f]{32}")
"""Behind every file's id in order; the first 12 digits are milliseconds since 1970, so that new rows are neighbours."""
ROW_BYTES = 256 * 1024
"""Longest content of a blob that is kept as a row, where there is a database for it."""
ALL_ROWS = 1 << 30
"""As `row_bytes`: everything, for nodes that share a database and no disk."""
_ABANDONED_AFTER_SECONDS = 3600.0
SHARDS = range(256)
"""A blob lies in the directory named by the first two digits of its id."""


class KeyWrapper(Protocol):
    """Who protects data keys: the vault."""

    def wrap(self, dek: bytes) -> bytes: ...

    def unwrap(self, blob: bytes) -> bytes:
        """Raises ValueError when the wrapped key was altered or wrapped by somebody else."""
        ...


@dataclass(frozen=True, slots=True)
class Draft:
    """A blob whose id may be written into a row, by the transaction that also calls `BlobStore.keep`."""

    id: str
    stored: bytes | None
    """What goes into the table of blobs; None: it is durable already, as a file."""


_INSERT = insertion(blobs)
_SELECT = DirectStatement(select(blobs.c.content).where(blobs.c.id == bindparam("blob_id")))
_DELETE = DirectStatement(delete(blobs).where(blobs.c.id == bindparam("blob_id")))


class BlobMissingError(Exception):
    """No blob has this id."""


class BlobDamagedError(Exception):
    """The file was altered, cut, swapped with another, or its key is not ours. Nothing of it can be trusted."""


class BlobStore:
    """Encrypted blobs below `root` (created 0700 when missing). Thread-safe; several processes may share a root."""

    def __init__(
        self, root: Path, wrapper: KeyWrapper, database: Database | None = None, row_bytes: int = ROW_BYTES
    ) -> None:
        """Contents of at most `row_bytes` octets are kept in `database`, when there is one; with more than `ROW_BYTES`
        those that are `put` as well, so that `ALL_ROWS` keeps nothing in files."""
        self._database = database
        self._row_bytes = row_bytes
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

    def draft(self, kind: str, content: bytes) -> Draft:
        """Get `content` ready to be kept together with the row that names it. Raises OSError when the disk refuses.

        The blob is no orphan until `release` or `discard`, whatever the rows say.
        """
        if self._database is None or len(content) > self._row_bytes:
            return Draft(self.put(kind, content), None)
        blob_id = f"t{int(time.time() * 1000):012x}{draw(10).hex()}"
        return Draft(blob_id, b"".join(self._encrypted(kind, blob_id, content)))

    def keep(self, connection: Connection, drafts: Iterable[Draft]) -> None:
        """In the transaction whose rows name them."""
        _INSERT.many(
            connection, [{"id": each.id, "content": each.stored} for each in drafts if each.stored is not None]
        )

    def discard(self, draft: Draft) -> None:
        """No row will ever name it. What the disk does not let go of now is swept one day."""
        if draft.stored is None:
            try:
                self.delete(draft.id)
            except OSError:
                self.release(draft.id)

    def put(self, kind: str, content: bytes) -> str:
        """Keep `content`; returns its id (at most 33 characters), durable. Raises OSError when the disk refuses.

        The blob is no orphan until `release` or `delete`, whatever the rows say.
        """
        if self._database is None or self._row_bytes <= ROW_BYTES or len(content) > self._row_bytes:
            return self._put_file(kind, content)
        draft = self.draft(kind, content)
        with self._expected_lock:
            self._expected.add(draft.id)
        try:
            self._database.transact(lambda connection: self.keep(connection, [draft]))
        except BaseException:
            self.release(draft.id)
            raise
        return draft.id

    def _put_file(self, kind: str, content: bytes) -> str:
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
        write_pieces_durably(self._path(blob_id), self._encrypted(kind, blob_id, content), scratch=self._unfinished)

    def _encrypted(self, kind: str, blob_id: str, content: bytes) -> Iterator[bytes]:
        """What is stored, piece by piece: a large content is never there a second time as a whole."""
        dek, nonce = os.urandom(_KEY_BYTES), draw(_NONCE_BYTES)
        wrapped = self._wrapper.wrap(dek)
        yield _HEAD.pack(_MAGIC, len(wrapped)) + wrapped + nonce
        if len(content) <= _PIECE_BYTES:
            yield AESGCM(dek).encrypt(nonce, content, _binding(kind, blob_id))
            return
        encryptor = Cipher(AES(dek), GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(_binding(kind, blob_id))
        view = memoryview(content)
        for start in range(0, len(view), _PIECE_BYTES):
            yield encryptor.update(view[start : start + _PIECE_BYTES])
        yield encryptor.finalize() + encryptor.tag

    def get(self, kind: str, blob_id: str) -> bytes:
        """The content, whole. Raises `BlobMissingError`, `BlobDamagedError` (also for another kind than was put)."""
        return self._decrypted(kind, blob_id, memoryview(self._stored(blob_id)))

    def get_rows(self, wanted: Iterable[tuple[str, str]]) -> dict[str, bytes]:
        """Contents by id of those (kind, id) that are kept as rows, read at once; what is missing or damaged is left
        out."""
        database = self._database
        ids = {blob_id: kind for kind, blob_id in wanted if database is not None and _ROW_ID.fullmatch(blob_id)}
        if database is None or not ids:
            return {}
        rows = database.read(lambda connection: [(each, _SELECT.first(connection, {"blob_id": each})) for each in ids])
        found: dict[str, bytes] = {}
        for blob_id, row in rows:
            if row is not None:
                with suppress(BlobDamagedError):
                    found[blob_id] = self._decrypted(ids[blob_id], blob_id, memoryview(row[0]))
        return found

    def _decrypted(self, kind: str, blob_id: str, stored: memoryview) -> bytes:
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

    def _stored(self, blob_id: str) -> bytes:
        if self._database is None or not _ROW_ID.fullmatch(blob_id):
            try:
                return self._path(blob_id).read_bytes()
            except FileNotFoundError:
                raise BlobMissingError(blob_id) from None
        row = self._database.read(lambda connection: _SELECT.first(connection, {"blob_id": blob_id}))
        if row is None:
            raise BlobMissingError(blob_id)
        return bytes(row[0])

    def delete(self, blob_id: str) -> None:
        """Forget a blob; one that is not there is already forgotten. Not from inside a transaction."""
        if self._database is not None and _ROW_ID.fullmatch(blob_id):
            self._database.transact_together(_delete_rows, blob_id)
            self.release(blob_id)
            return
        try:
            self._path(blob_id).unlink(missing_ok=True)
        except BlobMissingError:
            return
        self.release(blob_id)

    def delete_all(self, blob_ids: Iterable[str]) -> None:
        """As `delete`; those that are rows share their commits."""
        rows = []
        for blob_id in blob_ids:
            if self._database is not None and _ROW_ID.fullmatch(blob_id):
                rows.append((blob_id, self._database.submit_together(_delete_rows, blob_id)))
            else:
                self.delete(blob_id)
        for blob_id, gone in rows:
            gone.result()
            self.release(blob_id)

    def size(self, blob_id: str) -> int:
        """Octets that are kept; 0 when it is not there."""
        if self._database is not None and _ROW_ID.fullmatch(blob_id):
            length = select(func.length(blobs.c.content)).where(blobs.c.id == blob_id)
            return self._database.read(lambda connection: connection.scalar(length)) or 0
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

    def rows_before(self, written: float, after: str, limit: int) -> list[str]:
        """Ids of blobs that are rows and were made before `written` (UNIX seconds), in order, those behind `after`."""
        if self._database is None:
            return []
        end = f"t{max(0, int(written * 1000)):012x}"
        older = select(blobs.c.id).where(blobs.c.id > after, blobs.c.id < end).order_by(blobs.c.id).limit(limit)
        return list(self._database.read(lambda connection: connection.scalars(older).all()))

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


def _delete_rows(connection: Connection, blob_ids: Sequence[str]) -> Sequence[None]:
    _DELETE.many(connection, [{"blob_id": each} for each in blob_ids])
    return [None] * len(blob_ids)
