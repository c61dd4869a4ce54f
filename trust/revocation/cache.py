"""What was fetched, kept on disk so that a restart does not begin with not knowing.

One file each, mode 0600, in a directory of mode 0700, written whole or not at all. Nothing in it is believed for being
there: whoever loads a file verifies it as if it had just been fetched, against an issuer that is verified again when a
path is validated. The directory is bounded; what was written longest ago goes first.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock

from trust.store.durable import make_private_directory, write_durably

_MAGIC = b"relais-revocation-1\n"
_MAX_HEAD = 1 << 17
_SUFFIX = ".rev"
_NOT_A_HEAD = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading a file raises that somebody else wrote; JSON nests as deeply as its author wants."""


@dataclass(frozen=True, slots=True)
class Record:
    """One thing that was fetched."""

    kind: str
    """"crl", "ocsp" or "issuers"."""
    url: str
    serial: int
    """Of the certificate an OCSP response is about; otherwise 0."""
    issuers: tuple[bytes, ...]
    """Certificates in DER on whose behalf it was fetched."""
    body: bytes
    as_of: datetime | None = None
    """thisUpdate, and nextUpdate below: for people, never for decisions."""
    ends: datetime | None = None

    @property
    def name(self) -> str:
        """File name: one for each thing that is fetched, telling nothing."""
        issuer = self.issuers[0] if self.kind == "ocsp" and self.issuers else b""
        identity = f"{self.kind}\n{self.url if self.kind != 'ocsp' else ''}\n{self.serial:x}\n".encode() + issuer
        return hashlib.sha256(identity).hexdigest() + _SUFFIX


@dataclass(frozen=True, slots=True)
class Kept:
    """What the cache says of one of its files: enough to tell a person, not verified."""

    kind: str
    url: str
    as_of: datetime | None
    ends: datetime | None


def kept(directory: Path) -> list[Kept]:
    """What a cache directory holds, by its files' first lines; raises OSError when it cannot be listed."""
    out = []
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        try:
            with path.open("rb") as file:
                if file.readline(64) == _MAGIC:
                    head = json.loads(file.readline(_MAX_HEAD))
                    dates = [datetime.fromisoformat(head[key]) if head[key] else None for key in ("as_of", "ends")]
                    if all(date is None or date.tzinfo is not None for date in dates):
                        out.append(Kept(str(head["kind"]), str(head["url"]), *dates))
        except (OSError, *_NOT_A_HEAD):
            continue
    return out


class DiskCache:
    """The directory. Thread-safe; a disk that fails costs the memory across restarts and nothing else."""

    def __init__(self, directory: Path, max_bytes: int, max_files: int = 20_000) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_files = max_files
        self._lock = Lock()
        self._sizes: dict[str, int] = {}
        """Of the files, oldest first."""

    def load(self, max_body: int) -> Iterator[tuple[str, Record]]:
        """Every readable record with its file's name, oldest first; what is no record is deleted. Raises OSError when
        the directory cannot be made or listed."""
        make_private_directory(self._directory)
        self._directory.chmod(0o700)
        found = []
        for path in self._directory.iterdir():
            with suppress(OSError):  # one file that cannot be touched must not cost the others
                if path.name.endswith(".tmp"):
                    path.unlink(missing_ok=True)
                elif path.suffix == _SUFFIX and path.is_file() and not path.is_symlink():
                    state = path.stat()
                    found.append((state.st_mtime, path.name, state.st_size))
        self._sizes = {name: size for _, name, size in sorted(found)}
        for name, size in list(self._sizes.items()):
            record = self._read(name) if size <= max_body + _MAX_HEAD + 64 else None
            if record is None:
                self.drop(name)
            else:
                yield name, record

    def _read(self, name: str) -> Record | None:
        try:
            descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if file.readline(64) != _MAGIC:
                    return None
                head = json.loads(file.readline(_MAX_HEAD))
                record = Record(
                    str(head["kind"]),
                    str(head["url"]),
                    int(str(head["serial"]), 16),
                    tuple(base64.b64decode(each, validate=True) for each in head["issuers"]),
                    file.read(),
                )
            return record if record.name == name else None
        except (OSError, *_NOT_A_HEAD):
            return None

    def store(self, record: Record) -> None:
        """Write one record over its older self, and make room. Raises OSError."""
        head = {
            "kind": record.kind,
            "url": record.url,
            "serial": f"{record.serial:x}",
            "issuers": [base64.b64encode(each).decode() for each in record.issuers],
            "as_of": record.as_of.isoformat() if record.as_of else None,
            "ends": record.ends.isoformat() if record.ends else None,
        }
        line = json.dumps(head).encode() + b"\n"
        size = len(_MAGIC) + len(line) + len(record.body)
        if len(line) > _MAX_HEAD or size > self._max_bytes:
            return
        with self._lock:
            before = self._sizes.get(record.name, 0)
            taken = sum(self._sizes.values()) - before + size
            for oldest in list(self._sizes):
                if taken <= self._max_bytes and len(self._sizes) < self._max_files + (before > 0):
                    break
                if oldest != record.name:
                    taken -= self._sizes.pop(oldest)
                    (self._directory / oldest).unlink(missing_ok=True)
            write_durably(self._directory / record.name, _MAGIC, line, record.body)
            self._sizes.pop(record.name, None)
            self._sizes[record.name] = size

    def drop(self, name: str) -> None:
        """Forget one file; one that cannot be deleted is looked at again at the next start."""
        with self._lock, suppress(OSError):
            self._sizes.pop(name, None)
            (self._directory / name).unlink(missing_ok=True)

    def names(self) -> Sequence[str]:
        """File names, oldest first."""
        with self._lock:
            return tuple(self._sizes)
