"""How a file comes to disk whole or not at all: written aside, synced, renamed, its directory synced.

Blobs and the vault both depend on it: whoever is told "kept" must find the bytes again after the power fails.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def sync_directory(path: Path) -> None:
    """Make the names in one directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: Path) -> None:
    """Create `path` and what is missing above it, mode 0700, durably; an existing directory is left as it is."""
    missing = [parent for parent in (path, *path.parents) if not parent.is_dir()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)


def write_durably(path: Path, *parts: bytes, scratch: Path | None = None, replace: bool = True) -> None:
    """Write the concatenated `parts` to `path`: see `write_pieces_durably`."""
    write_pieces_durably(path, parts, scratch=scratch, replace=replace)


def write_pieces_durably(
    path: Path, pieces: Iterable[bytes], *, scratch: Path | None = None, replace: bool = True
) -> None:
    """Write `pieces`, each as it is made, to `path`, mode 0600, durable when this returns.

    `scratch` is where the unfinished file lives, on the same file system; by default the directory of `path`.
    With `replace` false an existing file is kept and FileExistsError raised. Raises OSError when the disk refuses;
    nothing is left behind then.
    """
    unfinished = (scratch or path.parent) / f".{secrets.token_hex(16)}.tmp"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            unfinished.replace(path)
        else:
            path.hardlink_to(unfinished)
            unfinished.unlink()
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
