"""Where backups are kept: a directory with a pool of objects, and one folder for each cut.

    TARGET/objects/ab/cdef...     ciphertext, immutable, shared by all cuts
    TARGET/cuts/20261121T182234Z/[gateway/]{manifest.json, objects.sha256, listing}
    TARGET/unfinished/            what was being written; TARGET/lock

An object is written aside, synced and renamed; a cut's folder takes its name last, when all it needs is durable. So a
run that was killed leaves objects that the next run need not copy again, and never half a cut. The folder may be copied
elsewhere with any tool: it holds nothing in the clear.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec

from config.backup.manifest import FORMAT, LISTING, MANIFEST, OBJECTS, FileDigest, Manifest, Row
from config.backup.sealed_files import SealedFileError, chunks, seal, unseal
from trust.sealing import Sealing
from trust.store.durable import make_private_directory, sync_directory

_NAME = re.compile(r"[0-9a-f]{32}")
_CUT = re.compile(r"[0-9]{8}T[0-9]{6}Z(-[0-9]+)?")
_LINE = re.compile(rb"([0-9a-f]{64})  ([0-9a-f]{32})\n")


class BackupError(Exception):
    """A backup cannot be made, read or believed; the message is a sentence for the person at the terminal."""


class BackupStore:
    """One TARGET."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._objects = root / "objects"
        self._cuts = root / "cuts"
        self._unfinished = root / "unfinished"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folders, and be the only one who writes. Raises `BackupError`."""
        if self.root.exists() and not self._cuts.exists() and any(self.root.iterdir()):
            raise BackupError(f"{self.root} holds files that are no backup: choose an empty or a new directory")
        for folder in (self.root, self._objects, self._unfinished, self._cuts):
            make_private_directory(folder)
        for shard in range(256):
            (self._objects / f"{shard:02x}").mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(f"another backup into {self.root} is under way") from None
            for leftover in self._unfinished.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield
        finally:
            os.close(descriptor)

    # --- Objects ------------------------------------------------------------------------------------------------------

    def size_of(self, name: str) -> int | None:
        """Of the object, None when there is none."""
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, name: str, pieces: Iterable[bytes]) -> FileDigest:
        """Keep an object, durably but for its name: see `settle`. Raises OSError; what was begun is removed then."""
        unfinished = self._unfinished / secrets.token_hex(16)
        hashed, size = hashlib.sha256(), 0
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                for piece in pieces:
                    file.write(piece)
                    hashed.update(piece)
                    size += len(piece)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._path(name))
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return FileDigest(hashed.hexdigest(), size)

    def digest(self, name: str) -> FileDigest:
        """Of the object as it stands there now. Raises OSError."""
        hashed, size = hashlib.sha256(), 0
        with self._path(name).open("rb") as file:
            for piece in chunks(file):
                hashed.update(piece)
                size += len(piece)
        return FileDigest(hashed.hexdigest(), size)

    def open(self, row: Row, vault: Sealing) -> Iterator[bytes]:
        """A file's own bytes. Raises `SealedFileError`, OSError."""
        with self._path(row.object).open("rb") as file:
            yield from unseal(file, vault, row.object) if row.sealed else chunks(file)

    def settle(self) -> None:
        """Make the names of all objects durable."""
        for shard in range(256):
            sync_directory(self._objects / f"{shard:02x}")

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise BackupError(f"{name!r} is no object of a backup")
        return self._objects / name[:2] / name[2:]

    # --- Cuts ---------------------------------------------------------------------------------------------------------

    def cuts(self) -> list[str]:
        """All finished ones, the oldest first."""
        try:
            return sorted(each.name for each in self._cuts.iterdir() if _CUT.fullmatch(each.name))
        except (FileNotFoundError, NotADirectoryError):
            raise BackupError(f"{self.root} holds no backup") from None

    def cut(self, name: str | None) -> Path:
        """The folder of one cut, by default the newest. Raises `BackupError`."""
        known = self.cuts()
        if not known:
            raise BackupError(f"{self.root} holds no finished backup")
        if name is None:
            return self._cuts / known[-1]
        if name not in known:
            raise BackupError(f"{self.root} has no cut {name}: relais backup list shows those it has")
        return self._cuts / name

    def new_cut(self) -> Path:
        """An unfinished folder for one."""
        folder = self._unfinished / f"cut-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        return folder

    def free_name(self, moment: datetime) -> str:
        """For a cut of this moment: the last of all in order, also when the clock was set back."""
        name = f"{moment:%Y%m%dT%H%M%SZ}"
        last = max(self.cuts(), default="")
        if name > last:
            return name
        base, _, number = last.partition("-")
        return f"{base}-{int(number or 0) + 1:04d}"

    def finish(self, folder: Path, name: str) -> None:
        """Give the cut its name, once and for all."""
        self.settle()
        for each in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
            sync_directory(each)
        folder.rename(self._cuts / name)
        sync_directory(self._cuts)

    def keep_only(self, number: int) -> tuple[int, int]:
        """Remove all but the newest cuts, and the objects that none of these needs; how many of each. Raises
        `BackupError` when a cut that stays is not whole: then nothing can be told to be needed no more."""
        names = self.cuts()
        old = names[:-number]
        needed = {name for cut in names[-number:] for name in _needed(self._cuts / cut)}
        for name in old:
            folder = self._unfinished / name
            (self._cuts / name).rename(folder)
            shutil.rmtree(folder)
        sync_directory(self._cuts)
        removed = 0
        for shard in range(256):
            folder = self._objects / f"{shard:02x}"
            for each in os.scandir(folder):
                if _NAME.fullmatch(folder.name + each.name) and bytes.fromhex(folder.name + each.name) not in needed:
                    Path(each.path).unlink()
                    removed += 1
        return len(old), removed


def _needed(cut: Path) -> Iterator[bytes]:
    """Names of the objects of a cut. Raises `BackupError`."""
    found = {part: read_manifest(part) for part in parts(cut)}
    if not found or {each.place for each in found.values()} != {
        place for each in found.values() for place in each.places
    }:
        raise BackupError(f"{cut} is not whole: relais backup verify says why; nothing was removed")
    for part, manifest in found.items():
        names = hashes(part)
        if file_digest(part / OBJECTS) != manifest.objects_file:
            raise BackupError(f"{part / OBJECTS} is not the file the manifest names: nothing was removed")
        yield from names


def parts(cut: Path) -> list[Path]:
    """The folders of the gateways in one cut."""
    return [cut] if (cut / MANIFEST).exists() else sorted(each.parent for each in cut.glob(f"*/{MANIFEST}"))


def read_manifest(part: Path) -> Manifest:
    """Raises `BackupError`."""
    try:
        manifest = msgspec.json.decode((part / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BackupError(f"{part / MANIFEST} cannot be read: {type(error).__name__}") from error
    if manifest.format != FORMAT:
        raise BackupError(f"{part / MANIFEST} has format {manifest.format}: this version reads format {FORMAT}")
    return manifest


def hashes(part: Path) -> dict[bytes, bytes]:
    """SHA-256 by name of the objects of one part, both in binary. Raises `BackupError`."""
    found: dict[bytes, bytes] = {}
    try:
        with (part / OBJECTS).open("rb") as file:
            for line in file:
                match = _LINE.fullmatch(line)
                if match is None:
                    raise BackupError(f"{part / OBJECTS} was altered")
                found[bytes.fromhex(match[2].decode())] = bytes.fromhex(match[1].decode())
    except OSError as error:
        raise BackupError(f"{part / OBJECTS} cannot be read: {error.strerror}") from error
    return found


def file_digest(path: Path) -> FileDigest | None:
    """Of a small file of a cut; None when it cannot be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return FileDigest(digest.hexdigest(), file.tell())
    except OSError:
        return None


def write_listing(path: Path, rows: Iterable[Row], vault: Sealing) -> FileDigest:
    """The sealed listing of one part."""
    return write_synced(path, seal((msgspec.json.encode(row) + b"\n" for row in rows), vault, LISTING))


def read_listing(part: Path, vault: Sealing) -> Iterator[Row]:
    """Raises `BackupError`."""
    held = b""
    try:
        with (part / LISTING).open("rb") as file:
            for piece in unseal(file, vault, LISTING):
                *lines, held = (held + piece).split(b"\n")
                for line in lines:
                    yield msgspec.json.decode(line, type=Row)
    except (OSError, SealedFileError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BackupError(f"{part / LISTING} cannot be read: {error}") from error


def write_synced(path: Path, pieces: Iterable[bytes]) -> FileDigest:
    """A new file, synced."""
    hashed, size = hashlib.sha256(), 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for piece in pieces:
            file.write(piece)
            hashed.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return FileDigest(hashed.hexdigest(), size)
