"""The text of one national file, alone or in the ZIP it is published in, line by line and never more than agreed.

Whoever hands us a file can make it as large as he likes: an archive of four megabytes unpacks to four gigabytes, of one
line or of a billion. So bytes, lines and members are counted, and nothing is unpacked to disk.
"""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LINE_BYTES = 64 * 1024
"""A longer line is not a line of these files."""
FILE_BYTES = 4 * 1024**3
"""Uncompressed; the largest national file is 0.8 GB."""
LINES = 20_000_000
"""Of one file; the largest national one has 2.3 million. Short lines cost more time than their bytes do."""
_ZIP_MEMBERS = 64
_ZIP_DIRECTORY_BYTES = 1 << 20
_ZIP_WAYS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ExtractionError(Exception):
    """The file as a whole is not what it should be; the text says why."""


def lines_of(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number, line) for every line; of one longer than `LINE_BYTES` its beginning, longer by one."""
    number = total = 0
    while line := file.readline(LINE_BYTES + 1):
        number += 1
        total += len(line)
        rest = line
        while len(rest) > LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(LINE_BYTES + 1)
            total += len(rest)
            _check_size(total, number)
        _check_size(total, number)
        yield number, line


def _check_size(total: int, lines: int) -> None:
    if total > FILE_BYTES:
        raise ExtractionError(f"the extraction is larger than {FILE_BYTES} bytes")
    if lines > LINES:
        raise ExtractionError(f"the extraction has more than {LINES} lines")


@contextmanager
def opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    """The text itself, or in a ZIP the one whose name begins like this, else the only one. Raises `ExtractionError`."""
    with path.open("rb") as file:
        # By how it begins: `zipfile.is_zipfile` also takes a text that ends like an archive for one
        if file.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
            file.seek(0)
            yield file
            return
    with opened_archive(path) as archive:
        texts = [info for info in archive.infolist() if info.filename.lower().endswith(".txt")]
        wanted = [info for info in texts if is_named(info.filename, member)] or texts
        if len(wanted) != 1:
            raise ExtractionError(f"{path.name} holds {len(wanted)} files that could be {member}; one is expected")
        if wanted[0].compress_type not in _ZIP_WAYS:
            raise ExtractionError(f"{path.name} is packed in a way we do not know; fetch it again")
        with archive.open(wanted[0]) as file:
            yield file


@contextmanager
def opened_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A ZIP of a few members. Raises `ExtractionError` when it is damaged, encrypted, or has thousands.

    Nothing is ever unpacked to disk: what the members are called, `../` or not, names no file of ours.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _ZIP_END_BYTES))
            _, found, end = file.read().rpartition(b"PK\x05\x06")
        if not found or int.from_bytes(end[8:12], "little") > _ZIP_DIRECTORY_BYTES:
            raise zipfile.BadZipFile
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _ZIP_MEMBERS:
                raise ExtractionError(f"{path.name} holds more than {_ZIP_MEMBERS} files")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise ExtractionError(f"{path.name} is a damaged or encrypted archive; fetch it again") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # of the disk
            raise
        raise ExtractionError(f"{path.name} is a damaged archive; fetch it again") from error  # it points before itself


def is_named(name: str, beginning: str) -> bool:
    """Whether a file, or the member of an archive, has this name, whatever its folder, case and hyphens."""
    name = name.replace("\\", "/").rpartition("/")[2]
    return name.lower().replace("-", "_").startswith(beginning.lower())


_ZIP_END_BYTES = 22 + 0xFFFF
"""End of central directory record (APPNOTE.TXT §4.3.16): its fixed part and the longest comment."""
