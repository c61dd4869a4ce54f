"""Whether a backup is whole and ours: every object's SHA-256, and with the key-encryption key also the MAC over all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from config.backup.manifest import LISTING, OBJECTS, Manifest
from config.backup.store import BackupError, BackupStore, file_digest, hashes, parts, read_listing, read_manifest
from trust.escrow import fingerprint
from trust.sealing import Sealing

_THREADS = 2


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found out about one gateway's part."""

    manifest: Manifest
    problems: tuple[str, ...]
    """A sentence each; the first twenty."""
    authentic: bool
    """Whether its MAC was checked: only who has the key-encryption key can."""


def keys_by_fingerprint(keks: list[bytes]) -> dict[str, Sealing]:
    """What each key-encryption key seals backups with: itself, whatever master keys it opens besides."""
    return {fingerprint(kek): Sealing((kek,)) for kek in keks}


def verify(store: BackupStore, cut: Path, keys: Mapping[str, Sealing]) -> list[Verified]:
    """Each gateway's part of one cut. Raises `BackupError` when there is nothing to read."""
    manifests = {part: read_manifest(part) for part in parts(cut)}
    if not manifests:
        raise BackupError(f"{cut} holds no manifest")
    places = {each.place for each in manifests.values()}
    found = []
    for part, manifest in manifests.items():
        vault = keys.get(manifest.key)
        problems = [*_misplaced(cut, part, manifest, places), *islice(_problems(store, part, manifest, vault), 20)]
        found.append(Verified(manifest, tuple(problems), vault is not None))
    return found


def _misplaced(cut: Path, part: Path, manifest: Manifest, places: set[str]) -> Iterator[str]:
    """What each part says of the whole."""
    if manifest.cut != cut.name:
        yield f"{part} was made as {manifest.cut}: somebody gave an old cut another name, or mixed two"
    if part != (cut / manifest.place if manifest.place else cut):
        yield f"{part} is the part {manifest.place or 'of a gateway of its own'} under another name"
    if missing := sorted(set(manifest.places) - places):
        yield f"{cut} lacks {', '.join(missing)}"


def _problems(store: BackupStore, part: Path, manifest: Manifest, vault: Sealing | None) -> Iterator[str]:
    if vault is not None and not manifest.genuine(vault):
        yield f"the manifest in {part} was altered, or was not written by this gateway"
        return
    for name, wanted in ((OBJECTS, manifest.objects_file), (LISTING, manifest.listing_file)):
        if file_digest(part / name) != wanted:
            yield f"{part / name} is not the file the manifest names"
            return
    known = hashes(part)
    if vault is not None:
        rows = 0
        for row in read_listing(part, vault):
            rows += 1
            if bytes.fromhex(row.object) not in known:
                yield f"the listing in {part} names an object that has no line in {OBJECTS}"
                return
        if rows < manifest.objects:
            yield f"the listing in {part} ends early"
    if len(known) != manifest.objects:
        yield f"{part / OBJECTS} has {len(known)} lines instead of {manifest.objects}"

    def check(item: tuple[bytes, bytes]) -> str:
        name, sha256 = item[0].hex(), item[1].hex()
        try:
            return "" if store.digest(name).sha256 == sha256 else f"object {name} was altered"
        except FileNotFoundError:
            return f"object {name} is missing"
        except OSError as error:
            return f"object {name} cannot be read: {error.strerror}"

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as threads:
        items = iter(known.items())
        while batch := list(islice(items, 256)):
            yield from filter(None, threads.map(check, batch))
