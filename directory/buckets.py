"""Records on disk in a fixed number of buckets, by a digest of their key: how two sets too large for memory are joined.

Records with the same key land in the same bucket, so two sets are compared bucket by bucket, and only one bucket of one
side is in memory at a time. Work and disk grow with the number of records, memory does not.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

BUCKETS = 64
_LENGTH = 4


def bucket_of(key: str) -> int:
    return zlib.crc32(key.encode()) % BUCKETS


class BucketWriter:
    """Writes records into the buckets of one folder, which it makes; what the folder held is overwritten.

    A context manager; complete once it was left without an exception. Raises OSError when the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with ExitStack() as opened:
            self._files = [opened.enter_context(private_file(_path(folder, number))) for number in range(BUCKETS)]
            self._open = opened.pop_all()

    def add(self, key: str, record: bytes) -> None:
        file = self._files[bucket_of(key)]
        file.write(len(record).to_bytes(_LENGTH, "big"))
        file.write(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._open.close()


def read_bucket(folder: Path, number: int) -> Iterator[bytes]:
    """The records of one bucket, in the order they were written."""
    return read_records(_path(folder, number))


def read_records(path: Path) -> Iterator[bytes]:
    """The records of one file, each behind its length. Raises ValueError when the file ends within one."""
    with path.open("rb") as file:
        while length := file.read(_LENGTH):
            record = file.read(int.from_bytes(length, "big"))
            if len(length) < _LENGTH or len(record) < int.from_bytes(length, "big"):
                raise ValueError(f"{path.name} ends within a record")
            yield record


def write_record(file: IO[bytes], record: bytes) -> None:
    file.write(len(record).to_bytes(_LENGTH, "big"))
    file.write(record)


def private_file(path: Path) -> IO[bytes]:
    """A new file for writing, readable by its owner alone."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    return path.open("wb")


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:03d}"
