"""Bringing a cut back: into an empty place, checked before it takes its place, and told what may happen twice.

Everything is written below `.restoring` in the state, migrated and checked there, and only then moved where it belongs,
the database last; a gateway does not start while that folder is there. Killed before the moves, a restore begins anew;
killed between them, it goes on.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgspec
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from config.backup.manifest import MANIFEST, Manifest, Row
from config.backup.overlay import OverlayError, load_private
from config.backup.portable import load, refuse_filled
from config.backup.sealed_files import SealedFileError
from config.backup.sources import BLOBS, CONFIGURATION, DATABASE, OVERLAY, RESTORING, alone
from config.backup.store import BackupError, BackupStore, parts, read_listing, read_manifest
from config.backup.verifying import verify
from config.migrations import upgrade
from mta.restored import mark_in_flight
from trust.journal import Journal, JournalEntry
from trust.journal_check import against_published, check
from trust.kept_heads import last_number
from trust.sealing import Sealing, VaultError
from trust.signed_heads import SealedHeadSigner, parse_head, parse_line
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.store.durable import make_private_directory, sync_directory, write_durably
from trust.vault import KeyVault

_COMPLETE = "complete"
_THREADS = 4


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back of one gateway."""

    state: Path
    manifest: Manifest
    files: int
    in_flight: int
    """Deliveries that had not ended at the cut: their mails may arrive a second time."""
    journal_entries: int
    later_heads: int
    """Heads that were published after the cut: what they cover is lost here."""
    notes: tuple[str, ...]


class Restore:
    """Of one cut."""

    def __init__(
        self,
        store: BackupStore,
        cut: Path,
        state: Path,
        keks: Mapping[str, bytes],
        say: Callable[[str], None],
        heads: Sequence[Path] = (),
        *,
        hold: bool = False,
        server: Database | None = None,
        handed_over: frozenset[str] = frozenset(),
    ) -> None:
        """`keks` by fingerprint, of which those `handed_over` are not written to disk; `heads` are files of published
        heads. With `hold` nothing that was under way goes out before a person has looked. The database goes to
        `server` when there is one. Raises `BackupError` when a key is missing."""
        self._store, self._cut, self._base, self._say, self._heads = store, cut, state, say, heads
        self._hold, self._server, self._handed_over = hold, server, handed_over
        self._parts = {part: read_manifest(part) for part in parts(cut)}
        self._keks = keks
        for manifest in self._parts.values():
            if manifest.key not in keks:
                raise BackupError(
                    f"the key-encryption key {manifest.key} of {manifest.host or 'the gateway'} is needed: give its "
                    "file with --kek, or recover it from its shares (relais keys recover)"
                )
        if server is not None and len(self._parts) > 1:
            raise BackupError("this cut is of several gateways, which cannot share one database: leave --config out")

    def run(self) -> list[Restored]:
        """Raises `BackupError`, what the migrations raise, OSError when the disk refuses."""
        with alone(self._base):
            return self._run(self._base / RESTORING)

    def _run(self, staging: Path) -> list[Restored]:
        if not (staging / _COMPLETE).exists():
            self._say("checking the backup")
            for each in verify(self._store, self._cut, {key: Sealing((kek,)) for key, kek in self._keks.items()}):
                if each.problems:
                    raise BackupError("; ".join(each.problems[:3]))
            for part, manifest in self._parts.items():
                self._refuse_to_overwrite(part, manifest)
            if self._server is not None:
                refuse_filled(self._server)
            if staging.exists():
                shutil.rmtree(staging)
            make_private_directory(staging)
            restored = [self._stage(part, manifest, staging) for part, manifest in self._parts.items()]
            os.sync()  # all files at once, before anything says they are there
            write_durably(staging / _COMPLETE, msgspec.json.encode((self._cut.name, restored), enc_hook=str))
        else:
            kept = (staging / _COMPLETE).read_bytes()
            cut, restored = msgspec.json.decode(
                kept, type=tuple[str, list[Restored]], dec_hook=lambda kind, text: kind(text)
            )
            if cut != self._cut.name:
                raise BackupError(f"cut {cut} is being restored in {self._base}: finish that one first, with --cut")
        notes = self._place(staging)
        if any(each.manifest.place for each in restored):
            notes += self._load_directory()
        shutil.rmtree(staging)
        sync_directory(self._base)
        *others, last = restored
        return [*others, replace(last, notes=(*last.notes, *notes))]

    # --- Before ---------------------------------------------------------------------------------------------------

    def _refuse_to_overwrite(self, part: Path, manifest: Manifest) -> None:
        state = self._state_of(manifest)
        blobs, vault = state / BLOBS, state / manifest.vault
        there = [state / DATABASE, state / "journal.key", vault / "check", vault / "keys"]
        found = [path for path in there if path.exists()]
        found += [blobs] if blobs.exists() and any(each.is_file() for each in blobs.rglob("*")) else []
        for row in self._rows(part, manifest):
            path = self._target(manifest, row)
            if row.root != "outside" and len(Path(row.path).parts) > 1 and path.exists():
                found.append(path)
            if len(found) > 2:
                break
        if found:
            named = ", ".join(map(str, found[:3]))
            raise BackupError(f"nothing is ever overwritten, and {named} exists: restore into an empty state directory")

    # --- Beside -------------------------------------------------------------------------------------------------------

    def _stage(self, part: Path, manifest: Manifest, staging: Path) -> Restored:
        self._say(f"restoring {manifest.host or manifest.place or self._cut.name}")
        top = staging / "files" / manifest.place
        vault = Sealing((self._keks[manifest.key],))

        def bring(row: Row) -> None:
            path = self._staged(staging, manifest, row)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                for piece in self._store.open(row, vault):
                    file.write(piece)
            if row.mode != 0o600:
                path.chmod(row.mode)

        files = 0
        rows = self._rows(part, manifest)
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="restore") as threads:
            try:
                while batch := list(islice(rows, 256)):
                    files += len(batch)
                    for _ in threads.map(bring, batch):
                        pass
            except SealedFileError as error:
                raise BackupError(str(error)) from error
        root = top / manifest.vault
        root.chmod(0o700)
        if manifest.key not in self._handed_over:
            write_durably(root / "kek", self._keks[manifest.key])
        try:
            return self._examine(top, manifest, KeyVault.open(root), files)
        except VaultError as error:
            raise BackupError(f"the vault of the cut does not open: {error}") from error

    def _examine(self, top: Path, manifest: Manifest, vault: KeyVault, files: int) -> Restored:
        """Migrate and check what was staged, and write into it what the restored gateway has to know."""
        with closing(sqlite3.connect(top / DATABASE)) as plain:
            (answer,) = plain.execute("PRAGMA quick_check").fetchone()
            if answer != "ok":
                raise BackupError(f"the database of the cut is damaged: {answer}")
        BlobStore(top / BLOBS, vault)  # its folders
        database = Database(f"sqlite:///{top / DATABASE}")
        try:
            upgrade(database)
            keys = _head_keys((top / "journal.key", top / manifest.vault / "journal.key"), vault)
            verdict = database.read(lambda connection: check(connection, vault, keys=keys))
            if not verdict.ok:
                raise BackupError(f"the journal of the cut does not hold: {verdict.problem}")
            later = self._compare_heads(database, top, manifest, keys)
            host = manifest.host or "relais"
            now = time.time()

            def write(connection: Connection) -> int:
                marked = mark_in_flight(connection, host[:64], now, manifest.cut_at, hold=self._hold)
                details = {"cut": self._cut.name, "cut_at": manifest.cut_at, "in_flight": str(marked)}
                details |= {"later_heads": str(later), "held": str(marked if self._hold else 0)}
                entry = JournalEntry(
                    "relais restore", "state.restored", "done", object_id=self._cut.name, details=details
                )
                Journal(vault, host[:64]).append(connection, entry)
                return marked

            marked = database.transact(write)
        except (SQLAlchemyError, CommandError) as error:
            raise BackupError(
                f"the database of the cut cannot be used by this version: {type(error).__name__}"
            ) from error
        finally:
            database.close()
        notes = [f"not in the backup: {each}" for each in manifest.notes]
        notes += self._moved(manifest)
        if later:
            notes.append(
                f"{later} heads of the journal were published after the cut: what they cover is lost here, and the "
                "published heads prove that it existed"
            )
        return Restored(self._state_of(manifest), manifest, files, marked, verdict.entries, later, tuple(notes))

    def _moved(self, manifest: Manifest) -> Iterator[str]:
        """What stood outside of the state and is in it now."""
        for name, before in sorted(manifest.elsewhere.items()):
            here = self._state_of(manifest) / name
            if name != DATABASE:
                yield f"{here} was {before}: move it there, or name it in relais.toml, before the gateway starts"
            elif self._server is None:
                yield f"{here} holds what was in {before}: give --config with store.url to bring it there, or leave it"

    def _compare_heads(self, database: Database, top: Path, manifest: Manifest, keys: Sequence[bytes]) -> int:
        """How many published heads are later than the cut. Raises `BackupError` when an earlier one does not agree."""
        last = database.read(last_number)
        files = [*self._heads, *top.glob("*.jsonl")]
        later = set()
        earlier: list[str] = []
        for path in files:
            for line in path.read_text("ascii", "replace").splitlines():
                signed = parse_line(line)
                head = parse_head(signed.text) if signed else None
                if head is None or head.journal != manifest.journal_name:
                    continue
                if head.number > last:
                    later.add(head.number)
                else:
                    earlier.append(line)
        verdict = database.read(
            lambda connection: against_published(connection, manifest.journal_name, earlier, frozenset(keys))
        )
        if verdict.problem:
            raise BackupError(f"the journal of the cut is not the one that was published: {verdict.problem}")
        return len(later)

    # --- Into its place -----------------------------------------------------------------------------------------------

    def _place(self, staging: Path) -> list[str]:
        """Move what was staged; what somebody put there before (a configuration, a recovered key) stays."""
        notes: list[str] = []
        top = staging / "files"
        databases: list[tuple[Path, Path]] = []
        for source, target in _moves(top, self._base, Path(), notes):
            if source.name == DATABASE:
                databases.append((source, target))
            else:
                _move(source, target)
        for folder in {target.parent for _, target in databases} | {self._base}:
            sync_directory(folder)
        for source, target in databases:
            for leftover in ("-wal", "-shm"):
                source.with_name(source.name + leftover).unlink(missing_ok=True)  # closed: nothing is in them
            if self._server is not None:
                load(source, self._server)
                source.unlink()
                continue
            source.rename(target)
            sync_directory(target.parent)
        return notes

    def _load_directory(self) -> list[str]:
        """The private slapd of `relais up`, from its records."""
        from config.demonstration import BASE, World
        from directory.slapd import PrivateSlapd, SlapdError, SlapdOptions

        ldif, world = self._base / OVERLAY, World(self._base)
        if not ldif.exists():
            return []
        folder = self._base / "directory"
        try:
            known = json.loads(world.secrets.read_text())
            if folder.exists():
                shutil.rmtree(folder)  # of a restore that was killed here
            slapd = PrivateSlapd(
                SlapdOptions(
                    state=folder,
                    port=1,  # chosen when it starts
                    certificate_chain=world.server_chain,
                    key=world.server_key,
                    ca=world.anchors,
                    admin_password=known["directory-admin"],
                    gateway_password=known["directory-gateway"],
                )
            )
            slapd.prepare()
            with ldif.open("rb") as file:
                load_private(folder / "slapd.conf", file, BASE)
        except (OverlayError, SlapdError, OSError, KeyError, ValueError) as error:
            return [f"the directory was not loaded, its records are in {ldif}: {error}"]
        ldif.unlink()
        return []

    # --- Where --------------------------------------------------------------------------------------------------------

    def _rows(self, part: Path, manifest: Manifest) -> Iterator[Row]:
        for row in read_listing(part, Sealing((self._keks[manifest.key],))):
            path = Path(row.path)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise BackupError(f"{part / MANIFEST}: the listing leads out of the state")
            yield row

    def _state_of(self, manifest: Manifest) -> Path:
        return self._base / manifest.place

    def _target(self, manifest: Manifest, row: Row) -> Path:
        return self._base / self._relative(manifest, row)

    def _staged(self, staging: Path, manifest: Manifest, row: Row) -> Path:
        return staging / "files" / self._relative(manifest, row)

    def _relative(self, manifest: Manifest, row: Row) -> Path:
        match row.root:
            case "state":
                return Path(manifest.place) / row.path
            case "shared":
                return Path(row.path)
            case _:
                return Path(manifest.place) / CONFIGURATION / row.path


def _head_keys(files: Sequence[Path], vault: KeyVault) -> tuple[bytes, ...]:
    return tuple(SealedHeadSigner.open(path, vault).public_key for path in files if path.exists())


def _move(source: Path, target: Path) -> None:
    """Also into a directory that is a file system of its own."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        aside = target.with_name(f".{target.name}.tmp")
        if source.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(source, aside)
        else:
            shutil.copy2(source, aside)
        os.sync()
        aside.rename(target)
        shutil.rmtree(source) if source.is_dir() else source.unlink()


def _moves(source: Path, target: Path, below: Path, notes: list[str]) -> Iterator[tuple[Path, Path]]:
    """Each file or whole directory to rename, deepest where directories meet; kept ones are told."""
    for each in sorted((source / below).iterdir()):
        relative = below / each.name
        there = target / relative
        if each.is_dir() and there.is_dir():
            yield from _moves(source, target, relative, notes)
        elif not there.exists():
            yield each, there
        elif each.is_file() and there.is_file() and each.read_bytes() == there.read_bytes():
            each.unlink()
        else:
            aside = target / CONFIGURATION / relative
            aside.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            notes.append(f"{there} was there already and stays; the backup's is {aside}")
            yield each, aside
