"""What the files want the directory to say, entry by entry, without making again what the day before has made.

Of one day to the next, 99 in 100 professionals have the same lines. Their entries are kept, ready to be compared, under
a digest of the lines: making them costs ten times as much as reading them. What is kept is about the files alone, and
only good for the same code and base; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from directory import canonical, entries, joining, register, schema, situations, words
from directory.buckets import BUCKETS, BucketWriter, private_file, read_bucket, write_record
from directory.canonical import encode, wanted_entry
from directory.joining import entries_of, groups, professional, structures_of

_MADE_BY = (canonical, entries, joining, register, schema, situations, words)
_ABOUT = "about.json"
_REMEMBERED = 1_000_000
"""Descriptions of structures that are not written twice: some 90 bytes each."""


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    key: str
    shared: bool
    """Whether other professionals want it too: a structure."""
    wanted: bytes


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    key: str
    digest: bytes
    entries: list[_Entry]


class _About(msgspec.Struct, frozen=True):
    code: str
    """Digest of the code that made the entries, and of their base."""
    names: list[str]
    """Attributes that occur in them, lower case."""


def write_wanted(
    lines: Path, folder: Path, base: str, kept: Path, seen: Callable[[int], None] = lambda _: None
) -> set[str]:
    """Put the entries of all lines a `Joiner` put into `lines` into the buckets of `folder` (`WantedEntry`).

    Returns the attribute names (lower case) that occur. `kept` is read when it fits, and replaced; `seen` is called
    with the number of entries every now and then, and may raise to end it. Memory: a bucket, and 90 MB at the most for
    structures. The order of the lines plays no part.
    """
    code = _code(base)
    about = _about(kept)
    usable = about is not None and about.code == code
    names = set(about.names) if about is not None and usable else set[str]()
    fresh = kept.with_name(kept.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    shared: set[int] = set()
    count = 0
    with _removed_on_failure(fresh), BucketWriter(folder) as buckets:
        for number in range(BUCKETS):
            before = dict(_kept(kept, number)) if usable else {}
            with private_file(fresh / f"{number:03d}") as file:
                for key, group in groups(lines, number).items():
                    digest = hashlib.blake2b(b"".join(group), digest_size=16).digest()
                    one = before.get(key)
                    if one is None or one.digest != digest:
                        one = _Kept(key, digest, list(_made(group, base, names)))
                    write_record(file, encode(one))
                    for entry in one.entries:
                        if entry.shared:
                            known = hash(entry.wanted)
                            if known in shared:
                                continue
                            if len(shared) < _REMEMBERED:  # the others are compared when they are needed
                                shared.add(known)
                        buckets.add(entry.key, entry.wanted)
                        count += 1
                        if count % 1000 == 0:
                            seen(count)
        (fresh / _ABOUT).write_bytes(msgspec.json.encode(_About(code, sorted(names))))
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)
    return names


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """Half of what was to be kept is of no use, and the disk may be full of it."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _made(group: list[bytes], base: str, names: set[str]) -> Iterator[_Entry]:
    one = professional(group)
    for shared, made in ((False, entries_of(one, base)), (True, structures_of(one, base))):
        for entry in made:
            names.update(name.lower() for name in entry.attributes)
            wanted = wanted_entry(entry.dn, entry.attributes)
            yield _Entry(wanted.key, shared, encode(wanted))


def _kept(folder: Path, number: int) -> Iterator[tuple[str, _Kept]]:
    """As much of a bucket as can be read."""
    with suppress(OSError, ValueError, msgspec.DecodeError):
        for record in read_bucket(folder, number):
            one = _decode(record)
            yield one.key, one


def _about(folder: Path) -> _About | None:
    try:
        return msgspec.json.decode((folder / _ABOUT).read_bytes(), type=_About)
    except (OSError, msgspec.DecodeError):
        return None


def _code(base: str) -> str:
    digest = hashlib.sha256(base.encode())
    for module in _MADE_BY:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


_decode = msgspec.msgpack.Decoder(_Kept).decode
