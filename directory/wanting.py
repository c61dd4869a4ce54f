"""What the files want the directory to say, entry by entry, without making again what the day before has made.

Of one day to the next, 99 in 100 professionals have the same lines. Their entries are kept, ready to be compared, under
a digest of the lines: making them costs ten times as much as reading them. What is kept is about the files alone, and
only good for the same code and base; it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec

from directory import canonical, entries, joining, register, schema, situations, words
from directory.buckets import BUCKETS, BucketWriter, private_file, read_bucket, write_record
from directory.canonical import encode, wanted_entry
from directory.joining import Keep, entries_of, groups, professional, structures_of
from directory.ldif import LdifEntry

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
    fresh = _fresh(kept)
    shared: set[int] = set()
    count = 0
    with _removed_on_failure(fresh), BucketWriter(folder) as buckets:
        for number in range(BUCKETS):
            before = dict(_kept(kept, number)) if usable else {}
            with private_file(fresh / f"{number:03d}") as file:
                for key, group in groups(lines, number).items():
                    digest = _digest(group)
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
        _replace(kept, fresh, base, names)
    return names


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    """Half of what was to be kept is of no use, and the disk may be full of it."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def keeping(kept: Path, base: str) -> Iterator[Keep]:
    """What a first load makes (`directory.joining.national_entries`) is kept for the first synchronisation after it.

    Nothing is, when this is left with an exception. Raises OSError.
    """
    names = set[str]()
    fresh = _fresh(kept)
    with _removed_on_failure(fresh):
        with ExitStack() as opened:
            files = [opened.enter_context(private_file(fresh / f"{number:03d}")) for number in range(BUCKETS)]

            def keep(number: int, key: str, group: list[bytes], own: list[LdifEntry], shared: list[LdifEntry]) -> None:
                made = list(_wanted(own, shared, names))
                write_record(files[number], encode(_Kept(key, _digest(group), made)))

            yield keep
        _replace(kept, fresh, base, names)


def _fresh(kept: Path) -> Path:
    fresh = kept.with_name(kept.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700, parents=True)
    return fresh


def _replace(kept: Path, fresh: Path, base: str, names: set[str]) -> None:
    (fresh / _ABOUT).write_bytes(msgspec.json.encode(_About(_code(base), sorted(names))))
    shutil.rmtree(kept, ignore_errors=True)
    fresh.rename(kept)


def _digest(group: list[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(group), digest_size=16).digest()


def _made(group: list[bytes], base: str, names: set[str]) -> Iterator[_Entry]:
    one = professional(group)
    return _wanted(entries_of(one, base), structures_of(one, base), names)


def _wanted(own: Iterable[LdifEntry], several: Iterable[LdifEntry], names: set[str]) -> Iterator[_Entry]:
    for shared, made in ((False, own), (True, several)):
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
