"""Making a backup: one consistent cut of one or several gateways, while they run or not.

The order is what makes it consistent. First the blobs that are there are copied, which takes longest. Then the heads of
the journal, so that none is in the backup which its database does not know. Then the databases are fixed at one moment.
Then the blobs that came meanwhile; blobs never change, so each one the fixed database names is either copied already
or still there. Should one have been purged in between, the moment is chosen again. When the databases are copied they
are let go, for what they have to keep of older moments grows. Then keys, mailboxes and all other files: a mail that was
filed after the moment is delivered once more after a restore and recognised by its delivery id.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from config.backup.manifest import LISTING as LISTING_FILE
from config.backup.manifest import MANIFEST, OBJECTS, FileDigest, Manifest, Root, Row
from config.backup.overlay import OverlayError, dump_private, dump_remote
from config.backup.portable import export, named_blobs, names_blob
from config.backup.sealed_files import SealedFileError, chunks, seal, sealed_size
from config.backup.snapshot import copy, fixed
from config.backup.sources import BLOBS, DATABASE, OVERLAY, RECORD, SCRATCH, Source, alone
from config.backup.store import BackupError, BackupStore, hashes, parts, write_listing, write_synced
from config.node import open_database
from trust.escrow import belongs_to, fingerprint
from trust.key_ring import read_kek, ring_version
from trust.sealing import Sealing
from trust.store.durable import write_durably

_THREADS = 4
"""Copying waits for the disk; it must not starve the gateway beside it."""
_ATTEMPTS = 5
_BLOB = re.compile(r"[0-9a-f]{32}")
_RESERVE_BYTES = 128 * 1024 * 1024
_PRIVATE = 0o600


class BackupRecord(msgspec.Struct, frozen=True):
    """What the state remembers of its last backup."""

    cut: str
    at: float
    """The moment of the cut, UNIX seconds."""


@dataclass(frozen=True, slots=True)
class CutReport:
    """What a backup did."""

    cut: str
    at: datetime
    copied: int
    reused: int
    size: int
    """Bytes of all objects of the cut."""
    notes: tuple[str, ...]
    """What is not in it, a sentence each."""


class _ChangedError(Exception):
    """A blob that the fixed database names has been purged meanwhile."""


@dataclass
class _Part:
    """One gateway on its way into a cut."""

    source: Source
    kek: bytes
    vault: Sealing
    """What seals the backup: the key-encryption key itself, whatever master keys it opens besides."""
    rows: list[Row] = field(default_factory=list)
    objects: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    """By name: SHA-256, and size."""
    blobs: set[bytes] = field(default_factory=set)
    """What is in the store already."""
    cut: set[bytes] = field(default_factory=set)
    """What the fixed database names of it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the manifest says of the fixed database."""
    notes: list[str] = field(default_factory=list)


def _part(source: Source) -> _Part:
    """Raises what opening the vault raises."""
    source.place.open()  # a key that is not the vault's would seal what nobody opens
    kek, _ = read_kek(source.place.vault)
    return _Part(source, kek, Sealing((kek,)))


class Cutter:
    """Makes one backup."""

    def __init__(self, sources: Sequence[Source], store: BackupStore, say: Callable[[str], None]) -> None:
        """Raises what opening the vaults raises."""
        self._parts = [_part(source) for source in sources]
        self._store = store
        self._say = say
        self._known: dict[bytes, bytes] = {}
        self._copied = self._reused = 0
        self._counting = threading.Lock()

    def run(self) -> CutReport:
        """Raises `BackupError`, OSError when a disk refuses."""
        with ExitStack() as stack:
            stack.enter_context(self._store.writing())
            for part in self._parts:
                stack.enter_context(alone(part.source.state))
                for leftover in part.source.state.glob(f"{SCRATCH}*"):
                    shutil.rmtree(leftover)  # a copy of the database, of a run that was killed
            for name in self._store.cuts()[-1:]:
                try:
                    for folder in parts(self._store.cut(name)):
                        self._known |= hashes(folder)
                except BackupError as error:
                    self._say(f"nothing of the last backup is taken on trust: {error}")
            return self._cut()

    def _cut(self) -> CutReport:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="backup") as threads:
            for part in self._parts:
                self._blobs(part, threads)
            for attempt in range(_ATTEMPTS):
                heads = [self._heads(part) for part in self._parts]
                with self._fixed() as (moment, readers):
                    try:
                        for part, reader in zip(self._parts, readers, strict=True):
                            self._fill(part, reader, threads)
                        break
                    except _ChangedError:
                        self._say(f"mail was purged meanwhile: once more ({attempt + 1})")
                        for part in self._parts:
                            part.rows.clear()
                            part.notes.clear()
            else:
                raise BackupError("mail is being purged all the time: try again when `relais purge` has ended")
            name = self._store.free_name(moment)
            folder = self._store.new_cut()
            for part, head in zip(self._parts, heads, strict=True):
                if head is not None:
                    part.rows.append(head)
                self._files(part, threads)
                self._overlay(part)
                self._write(part, folder / part.source.name, name, moment)
            self._store.finish(folder, name)
        record = msgspec.json.encode(BackupRecord(name, moment.timestamp()))
        for part in self._parts:
            write_durably(part.source.state / RECORD, record)
        return CutReport(
            name,
            moment,
            self._copied,
            self._reused,
            sum(part.facts["size"] for part in self._parts),
            tuple(note for part in self._parts for note in part.notes),
        )

    @contextmanager
    def _fixed(self) -> Iterator[tuple[datetime, list[sqlite3.Connection]]]:
        """The databases at one moment."""
        if not any(part.source.remote for part in self._parts):
            with fixed([part.source.database for part in self._parts]) as found:
                yield found
            return
        if len(self._parts) > 1:
            raise BackupError("gateways with PostgreSQL are backed up one by one: name one with --config")
        source = self._parts[0].source
        assert source.place.loaded is not None  # noqa: S101 - its configuration says that it is remote
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=source.state) as scratch:
            file = Path(scratch) / DATABASE
            with closing(open_database(source.place.loaded)) as server:
                moment = export(server, file, _RESERVE_BYTES)
            with closing(sqlite3.connect(file, isolation_level=None)) as reader:
                yield moment, [reader]

    def _fill(self, part: _Part, reader: sqlite3.Connection, threads: ThreadPoolExecutor) -> None:
        self._blobs(part, threads)
        named = set(_named_blobs(reader))
        if missing := named - part.blobs:
            self._explain(part, missing)
        part.cut = named & part.blobs
        part.facts = _facts(reader)
        self._database(part, reader)

    # --- Blobs --------------------------------------------------------------------------------------------------------

    def _blobs(self, part: _Part, threads: ThreadPoolExecutor) -> None:
        """Whatever the store holds and we have not."""
        root = part.source.blobs

        def keep(blob: str) -> tuple[str, FileDigest] | None:
            path = root / blob[:2] / blob[2:]
            try:
                size = path.stat().st_size
                known = self._reusable(blob, size, partial(_same, path))
                if known is not None:
                    return blob, known
                with path.open("rb") as file:
                    return blob, self._store.put(blob, chunks(file))
            except FileNotFoundError:
                return None

        new = (blob for blob in _stored_blobs(root) if bytes.fromhex(blob) not in part.blobs)
        while batch := list(islice(new, 256)):
            for found in threads.map(keep, batch):
                if found is not None:
                    blob, digest = found
                    part.blobs.add(bytes.fromhex(blob))
                    self._note(part, blob, digest)

    def _explain(self, part: _Part, missing: set[bytes]) -> None:
        """Purged since, or lost? Raises `_ChangedError` when purged."""
        lost = missing & _named_now(part.source)
        root = part.source.blobs
        if missing - lost or any((root / each.hex()[:2] / each.hex()[2:]).exists() for each in lost):
            raise _ChangedError
        part.notes.append(f"{len(lost)} blobs that the database names are lost already, among them {min(lost).hex()}")

    # --- The database -------------------------------------------------------------------------------------------------

    def _database(self, part: _Part, reader: sqlite3.Connection) -> None:
        """Copied beside itself, where its plain text is anyway, then sealed into the store."""
        source = part.source
        (pages,), (of,) = reader.execute("PRAGMA page_count").fetchone(), reader.execute("PRAGMA page_size").fetchone()
        size = pages * of
        if shutil.disk_usage(source.state).free < size + _RESERVE_BYTES:
            raise BackupError(f"{source.state} has no room for a copy of its database ({size} bytes): make room first")
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=source.state) as scratch:
            path = Path(scratch) / source.database.name
            copy(reader, path)
            with path.open("rb") as file:
                part.rows.append(self._sealed(part, "state", source.database.name, chunks(file), path.stat().st_size))

    # --- Files --------------------------------------------------------------------------------------------------------

    def _heads(self, part: _Part) -> Row | None:
        """Whole lines only."""
        path = part.source.heads
        if path is None or not path.exists():
            return None
        content = path.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        return self._sealed(part, "state", str(path.relative_to(part.source.state)), [content], len(content))

    def _files(self, part: _Part, threads: ThreadPoolExecutor) -> None:
        def keep(found: tuple[Root, Path, Path]) -> tuple[Row, FileDigest] | None:
            root, path, file = found
            try:
                return self._file(part, root, str(path), file)
            except FileNotFoundError:
                return None
            except OSError as error:
                part.notes.append(f"{file} cannot be read: {error.strerror}")
                return None

        vault = part.source.place.vault
        ring = ring_version(vault)
        files = part.source.files(part.notes)
        while batch := list(islice(files, 256)):
            for kept in threads.map(keep, batch):
                if kept is not None:
                    row, digest = kept
                    part.rows.append(row)
                    self._note(part, row.object, digest)
        if ring_version(vault) != ring or read_kek(vault)[0] != part.kek or not belongs_to(part.kek, vault):
            raise BackupError("the key-encryption key was replaced meanwhile: give the same command again")

    def _file(self, part: _Part, root: Root, path: str, file: Path) -> tuple[Row, FileDigest]:
        """One file; a mail that was copied before is not copied again."""
        for last in (False, False, True):
            before = file.stat()
            mode = stat.S_IMODE(before.st_mode) & 0o755
            version = map(str, (part.source.name, before.st_ino, before.st_size, before.st_mtime_ns))
            name = secrets.token_hex(16) if last else part.vault.pseudonym("backup file", root, path, *version)[:32]
            known = self._reusable(name, sealed_size(before.st_size), partial(self._opens, part, name))
            if known is not None:
                return Row(name, root, path, before.st_size, mode, sealed=True), known
            read = 0

            def counted(pieces: Iterable[bytes]) -> Iterator[bytes]:
                nonlocal read
                for piece in pieces:
                    read += len(piece)
                    yield piece

            with file.open("rb") as opened:
                digest = self._store.put(name, seal(counted(chunks(opened)), part.vault, name))
            after = file.stat()
            if last or (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                break
        return Row(name, root, path, read, mode, sealed=True), digest

    def _overlay(self, part: _Part) -> None:
        """The records of the directory that no national file would bring back."""
        source = part.source
        try:
            if source.shared is not None:
                pieces = dump_private(source.shared / "directory")
                row = self._sealed(part, "shared", OVERLAY, pieces)
            elif source.name or source.place.loaded is None:
                return
            else:
                row = self._sealed(part, "outside", OVERLAY, dump_remote(source.place.loaded))
        except OverlayError as error:
            part.notes.append(str(error))
        else:
            part.rows.append(row)

    # --- What all have in common --------------------------------------------------------------------------------------

    def _sealed(self, part: _Part, root: Root, path: str, pieces: Iterable[bytes], size: int | None = None) -> Row:
        name, read = secrets.token_hex(16), 0

        def counted() -> Iterator[bytes]:
            nonlocal read
            for piece in pieces:
                read += len(piece)
                yield piece

        digest = self._store.put(name, seal(counted(), part.vault, name))
        if size is not None and read != size:
            raise BackupError(f"{path} changed while it was read")
        self._note(part, name, digest)
        return Row(name, root, path, read, _PRIVATE, sealed=True)

    def _reusable(self, name: str, size: int, whole: Callable[[FileDigest], bool]) -> FileDigest | None:
        """An object of an earlier run: of the last finished one as it was, of another one if it is `whole`."""
        digest = None
        if self._store.size_of(name) == size:
            known = self._known.get(bytes.fromhex(name))
            digest = FileDigest(known.hex(), size) if known is not None else self._store.digest(name)
            if known is None and not whole(digest):
                digest = None
        with self._counting:
            self._reused += digest is not None
            self._copied += digest is None
        return digest

    def _opens(self, part: _Part, name: str, _: FileDigest) -> bool:
        try:
            for _piece in self._store.open(Row(name, "state", "", 0, 0, sealed=True), part.vault):
                pass
        except SealedFileError:
            return False
        return True

    def _note(self, part: _Part, name: str, digest: FileDigest) -> None:
        part.objects[bytes.fromhex(name)] = bytes.fromhex(digest.sha256), digest.size

    def _write(self, part: _Part, folder: Path, name: str, moment: datetime) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        blobs = (_blob_row(each.hex(), part.objects[each][1]) for each in sorted(part.cut))
        listing = write_listing(folder / LISTING_FILE, (*part.rows, *blobs), part.vault)
        used = {bytes.fromhex(row.object) for row in part.rows} | part.cut
        lines = (
            f"{sha256.hex()}  {each.hex()}\n".encode()
            for each, (sha256, _) in sorted(part.objects.items())
            if each in used
        )
        objects = write_synced(folder / OBJECTS, lines)
        loaded = part.source.place.loaded
        part.facts["size"] = sum(size for each, (_, size) in part.objects.items() if each in used)
        manifest = Manifest(
            relais=metadata.version("relais-sante"),
            cut=name,
            places=tuple(each.source.name for each in self._parts),
            cut_at=moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            place=part.source.name,
            host=loaded.settings.operator.host if loaded else "",
            key=fingerprint(part.kek),
            objects=len(used),
            blobs=len(part.cut),
            journal_name=(loaded.settings.journal.name or loaded.settings.operator.host) if loaded else "",
            vault=part.source.vault,
            elsewhere=part.source.elsewhere,
            notes=tuple(part.notes),
            objects_file=objects,
            listing_file=listing,
            **part.facts,
        )
        write_synced(
            folder / MANIFEST, [msgspec.json.format(msgspec.json.encode(manifest.signed(part.vault)), indent=1)]
        )


def _blob_row(blob: str, size: int) -> Row:
    return Row(blob, "state", f"{BLOBS}/{blob[:2]}/{blob[2:]}", size, _PRIVATE, sealed=False)


def _stored_blobs(root: Path) -> Iterator[str]:
    for shard in range(256):
        folder = root / f"{shard:02x}"
        try:
            names = sorted(path.name for path in folder.iterdir())
        except FileNotFoundError:
            continue
        yield from (blob for name in names if _BLOB.fullmatch(blob := folder.name + name))


def _same(path: Path, digest: FileDigest) -> bool:
    """Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest.sha256


def _named_now(source: Source) -> set[bytes]:
    """The blobs that the database names now."""
    if source.remote and source.place.loaded is not None:
        with closing(open_database(source.place.loaded)) as server:
            return named_blobs(server)
    live = sqlite3.connect(f"{source.database.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)
    with closing(live):
        return set(_named_blobs(live))


def _named_blobs(connection: sqlite3.Connection) -> Iterator[bytes]:
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()]
    for table in tables:
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")').fetchall()]
        for column in filter(names_blob, columns):
            query = f'SELECT "{column}" FROM "{table}" WHERE "{column}" IS NOT NULL'  # noqa: S608 - names of our schema
            for (value,) in connection.execute(query):
                if isinstance(value, str) and _BLOB.fullmatch(value):
                    yield bytes.fromhex(value)


def _facts(reader: sqlite3.Connection) -> dict[str, Any]:
    def one(query: str) -> Any:
        return reader.execute(query).fetchone()[0]

    return {
        "schema": str(one("SELECT version_num FROM alembic_version")),
        "messages": int(one("SELECT count(*) FROM mta_messages")),
        "waiting": int(one("SELECT count(*) FROM mta_deliveries WHERE state = 'ready'")),
        "journal": dict(reader.execute("SELECT writer, sequence FROM journal_heads").fetchall()),
        "head": int(one("SELECT coalesce(max(number), 0) FROM journal_checkpoints")),
    }
