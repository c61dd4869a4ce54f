"""What belongs to a gateway and must survive its machine, and what must not or need not be kept.

Everything below the state directory is taken, so that nothing added later is forgotten, but for: the key-encryption
key, which a backup must never hold; the database and the blobs, which have their own way; sockets, locks and what is
made anew by itself. The files that the configuration names elsewhere come along: a machine that is lost is lost whole.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from config.backup.manifest import Root
from config.backup.store import BackupError
from config.key_places import Place

DATABASE = "relais.db"
BLOBS = "blobs"
RECORD = "backup.json"
"""Of the last backup, in the state; monitoring reads it."""
RESTORING = ".restoring"
SCRATCH = ".backup-"
"""How the names of folders begin in which a database is copied."""
CONFIGURATION = "configuration"
"""Below a restored state: what stood elsewhere on the machine."""
VAULT = "vault"
"""Where in a restored state the vault is that stood elsewhere."""
OVERLAY = "directory-overlay.ldif"
"""LDIF of what the directory holds beside the national files."""

_OWN_WAY = {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal", BLOBS, RECORD, RESTORING}
_NOT_KEPT = {"serve.lock", "lock", "endpoints.json", ".relais-state", "log", "ballast"}
_KEYS = {"kek", "kek.new"}
"""In a vault: the key-encryption key, and the one that is about to take its place."""
_LONGEST_NAMED = 16 * 1024 * 1024
"""Of a file that the configuration names: lists, certificates, keys, passwords."""


@dataclass(frozen=True, slots=True)
class Source:
    """One gateway."""

    place: Place
    name: str
    """Its directory below the state of `relais up`; empty for a gateway of its own."""
    shared: Path | None
    """The state of `relais up`, for the one gateway whose part brings it along."""
    siblings: frozenset[str] = frozenset()
    """Directories below `shared` that are gateways."""
    configuration: Path | None = None

    @property
    def state(self) -> Path:
        return self.place.state

    @property
    def database(self) -> Path:
        return self.state / DATABASE

    @property
    def remote(self) -> bool:
        """Whether the database is a PostgreSQL server's."""
        return self.place.loaded is not None and bool(self.place.loaded.settings.store.url)

    @property
    def vault(self) -> str:
        """Where the vault is in the backup, below the state."""
        own = self.place.vault
        return own.relative_to(self.state).as_posix() if own.is_relative_to(self.state) else VAULT

    @property
    def elsewhere(self) -> dict[str, str]:
        """What a restore brings into the state though it stood outside of it: name there, and path it had."""
        found = {DATABASE: "PostgreSQL"} if self.remote else {}
        found |= {} if self.place.vault == self.state / self.vault else {self.vault: str(self.place.vault)}
        return found if self.blobs == self.state / BLOBS else found | {BLOBS: str(self.blobs)}

    @property
    def blobs(self) -> Path:
        """Where message bytes are that are not in the database."""
        loaded = self.place.loaded
        elsewhere = loaded.settings.store.blob_directory if loaded else ""
        return loaded.path(elsewhere) if loaded and elsewhere else self.state / BLOBS

    @property
    def mailboxes(self) -> Path | None:
        """Dovecot's mails, when they are not below the state."""
        if self.place.loaded is None:
            return None
        home = self.place.loaded.path(self.place.loaded.settings.mailboxes.home).resolve()
        return None if home.is_relative_to(self.state.resolve()) else home

    def files(self, notes: list[str]) -> Iterator[tuple[Root, Path, Path]]:
        """Root, path below it, and where the file is. What cannot be read is noted."""
        skipped = {self.state / each for each in _OWN_WAY | _NOT_KEPT}
        vault, place = self.place.vault, self.state / self.vault
        skipped |= {top / name for top in (vault, self.state / VAULT) for name in (*_KEYS, "lock")}
        skipped |= {self.blobs, *self._remade()}
        if vault != place and place.exists():
            notes.append(f"{place}, which is not used: the vault is {vault}")
            skipped.add(place)
        for path in _tree(self.state, skipped, notes):
            yield "state", path.relative_to(self.state), path
        if vault != place:
            for path in _tree(vault, skipped, notes):
                yield "state", Path(self.vault) / path.relative_to(vault), path
        if self.shared is not None:
            skipped = {self.shared / each for each in _NOT_KEPT | self.siblings | {"directory", "dovecot"}}
            for path in _tree(self.shared, skipped, notes):
                yield "shared", path.relative_to(self.shared), path
        if self.mailboxes is not None:
            for path in _tree(self.mailboxes, set(), notes):
                yield "outside", path.relative_to("/"), path
        for path in sorted(self._named()):
            inside = [self.state, *([self.shared] if self.shared else [])]
            if self.name and self.shared is None:  # the first gateway's part has it
                inside.append(self.state.parent)
            if not any(path.is_relative_to(each) for each in inside):
                yield "outside", path.relative_to("/"), path

    @property
    def heads(self) -> Path | None:
        """The file published heads are appended to, when it is below the state."""
        loaded = self.place.loaded
        if loaded is None or not loaded.settings.journal.heads:
            return None
        path = loaded.path(loaded.settings.journal.heads)
        return path if path.is_relative_to(self.state) else None

    def _remade(self) -> set[Path]:
        """Read anew, or read before the cut."""
        found = {self.heads} if self.heads else set()
        if self.place.loaded is not None and self.place.loaded.settings.revocation.cache:
            found.add(self.state / self.place.loaded.settings.revocation.cache)
        return found

    def _named(self) -> set[Path]:
        """Existing files that a text of the configuration names, and the configuration itself."""
        found = {self.configuration.resolve()} if self.configuration else set()
        loaded = self.place.loaded
        if loaded is None:
            return found
        libraries = {loaded.settings.keys.pkcs11_module, loaded.settings.keys.pin_file}
        for text in _texts(msgspec.to_builtins(loaded.settings)):
            if not text or len(text) > 4096 or "\0" in text or text in libraries:
                continue
            path = loaded.path(text).resolve()
            try:
                status = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_size <= _LONGEST_NAMED and path.name not in _KEYS:
                found.add(path)
        return found


@contextmanager
def alone(state: Path) -> Iterator[None]:
    """Be the only backup or restore of this state. Raises `BackupError`."""
    descriptor = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"another backup or restore of {state} is under way") from None
        yield
    finally:
        os.close(descriptor)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _tree(top: Path, skipped: set[Path], notes: list[str]) -> Iterator[Path]:
    """Ordinary files; in each directory what Dovecot calls an index before the mails it points to, so that no copied
    index knows a mail that was not copied."""

    def failed(error: OSError) -> None:
        notes.append(f"{error.filename} cannot be read: {error.strerror}")

    for folder, directories, names in os.walk(top, onerror=failed):
        here = Path(folder)
        for name in list(directories):
            if here / name in skipped or name.startswith(SCRATCH):
                directories.remove(name)
            elif (here / name).is_symlink():
                notes.append(f"{here / name} is a link to a directory elsewhere: back that up by itself")
        for name in sorted(names, key=lambda each: (not each.startswith("dovecot"), each)):
            path = here / name
            if path in skipped or _passing(name):
                continue
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if stat.S_ISREG(mode):
                yield path
            elif stat.S_ISLNK(mode):
                notes.append(f"{path} is a link: what it points to is not in the backup")


def _passing(name: str) -> bool:
    return name == "dovecot.index.cache" or name.endswith((".lock", ".tmp", ".sock", ".pid"))
