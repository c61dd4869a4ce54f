"""What has to be written so that the directory says what the national files say, and nothing else.

Both sides lie in buckets on disk (`directory.buckets`). The overlay wins: an entry it created, an attribute it took
over, an entry it wrote something into is never changed or removed there. What is decided lies in three files, in the
order it is written to the directory: additions (parents first), changes, removals (children first).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec

from directory.buckets import BUCKETS, private_file, read_bucket, read_records, write_record
from directory.canonical import (
    ALWAYS_LOCAL,
    Attributes,
    HeldEntry,
    WantedEntry,
    decode_held,
    decode_wanted,
    depth,
    encode,
    prefer,
    unpack,
    without_options,
)
from directory.schema import CERTIFICATE, LOCAL_ATTRIBUTES, NATIONAL, SMIME_CERTIFICATE

_NATIONAL = NATIONAL.decode()
_KEPT_EXAMPLES = 50
_OF_THE_HOLDER = (CERTIFICATE, SMIME_CERTIFICATE, "listeRouge", "RangBAL", LOCAL_ATTRIBUTES)


class Operation(msgspec.Struct, frozen=True, array_like=True):
    """One LDAP write: the whole change of one entry."""

    dn: str
    attributes: dict[str, list[bytes]]
    """Of an addition: all of it. Of a change: what to replace, an empty list for what to remove. Else empty."""


@dataclass(slots=True)
class Plan:
    """The writes to make, and how they compare with what is there."""

    folder: Path
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    repeated: int = 0
    """Wanted entries whose DN another one already had: `canonical.prefer` decides."""
    local: int = 0
    """Entries of the overlay where the national files have one too: left as they are."""
    kept: int = 0
    """Entries no longer in the national files that stay because the overlay wrote into them, or for their domain."""
    kept_examples: list[str] = field(default_factory=list)
    """DNs of the first of them."""
    frozen: int = 0
    """Entries left as they are because the files are not clear about them."""
    refreshed: int = 0
    """Entries left as they are because the FHIR API was asked about them later than the files were published."""
    handed_over: int = 0
    """Mailboxes that changed their holder and hold something of the overlay's: left as they are, for a person."""
    handed_over_examples: list[str] = field(default_factory=list)
    """DNs of the first of them."""
    held: Counter[str] = field(default_factory=Counter)
    """National entries in the directory, by kind: `PER`, `ORG`, `APP`, `CAB`, `personnes`, `etablissements`."""
    leaving: Counter[str] = field(default_factory=Counter)
    """Those of them to be removed."""
    domains_held: set[str] = field(default_factory=set)
    """Domains of the national mailboxes in the directory."""
    domains_staying: set[str] = field(default_factory=set)
    """Domains of mailboxes that will be there afterwards."""
    depths: set[int] = field(default_factory=set)

    @property
    def writes(self) -> int:
        return self.added + self.changed + self.removed

    def additions(self) -> Iterator[list[Operation]]:
        """Batch by batch, each to be finished before the next begins: parents before their children."""
        for level in sorted(self.depths):
            yield from _batches(self.folder / f"add-{level:02d}")

    def changes(self) -> Iterator[list[Operation]]:
        yield from _batches(self.folder / "change")

    def removals(self) -> Iterator[list[Operation]]:
        """Children before their parents."""
        for level in sorted(self.depths, reverse=True):
            yield from _batches(self.folder / f"remove-{level:02d}")


@dataclass(frozen=True, slots=True)
class Protection:
    """What the national files must not touch today."""

    addresses: Collection[str] = frozenset()
    """Mailboxes the files are not clear about, lower case."""
    identifiers: Collection[str] = frozenset()
    """Professionals the files are not clear about, IdNat_PP in lower case."""
    domains: Collection[str] = frozenset()
    """Domains of the house: their mailboxes are not removed because the register forgot them. Lower case."""
    published: str = ""
    """When the MSSanté file was published (`YYYYMMDDhhmm`), less what clocks and time zones may differ by: an entry the
    FHIR API was asked about later is left to the next file. Empty when the file does not say."""


def plan(held: Path, wanted: Path, folder: Path, managed: Collection[str], protection: Protection) -> Plan:
    """Compare two folders of buckets. `managed`: attributes (lower case) an entry loses when the files have no more.

    Needs room for one bucket of the directory's side in memory.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Plan(folder)
    files = _Files(folder)
    try:
        for number in range(BUCKETS):
            _compare(made, files, _held(held, number), wanted, number, frozenset(managed) - ALWAYS_LOCAL, protection)
    finally:
        files.close()
    return made


class _Files:
    """The files of the plan, opened when something is written to them."""

    def __init__(self, folder: Path) -> None:
        for old in folder.iterdir():
            old.unlink()
        self._folder = folder
        self._open: dict[str, IO[bytes]] = {}

    def write(self, name: str, operation: Operation) -> None:
        if name not in self._open:
            self._open[name] = private_file(self._folder / name)
        write_record(self._open[name], encode(operation))

    def close(self) -> None:
        for file in self._open.values():
            file.close()


def _held(folder: Path, number: int) -> dict[str, bytes]:
    return {decode_held(record).key: record for record in read_bucket(folder, number)}


def _compare(
    made: Plan,
    files: _Files,
    held: dict[str, bytes],
    wanted: Path,
    number: int,
    managed: frozenset[str],
    protection: Protection,
) -> None:
    chosen: dict[str, WantedEntry] = {}
    for record in read_bucket(wanted, number):
        entry = decode_wanted(record)
        before = chosen.setdefault(entry.key, entry)
        if before is not entry:
            made.repeated += 1
            if prefer(entry.content, before.content):
                chosen[entry.key] = entry
    for entry in chosen.values():
        made.domains_staying.add(_domain(entry.key))
        present = held.pop(entry.key, None)
        if present is None:
            attributes = unpack(entry.content)
            if _is_frozen(attributes, protection):
                made.frozen += 1
                continue
            made.added += 1
            level = depth(entry.key)
            made.depths.add(level)
            files.write(f"add-{level:02d}", Operation(entry.dn, attributes))
        else:
            _change(made, files, decode_held(present), entry, managed, protection)
    for present in held.values():
        _leave(made, files, decode_held(present), protection)


def _change(
    made: Plan, files: _Files, present: HeldEntry, entry: WantedEntry, managed: frozenset[str], protection: Protection
) -> None:
    if present.source != _NATIONAL:
        made.local += 1
        return
    made.held[present.kind] += 1
    made.domains_held.add(_domain(present.key))
    if present.content == entry.content:
        made.unchanged += 1
        return
    before, after = unpack(present.content), unpack(entry.content)
    changes = {name: values for name, values in after.items() if values != before.get(name)}
    changes |= {name: [] for name in before if name not in after and without_options(name) in managed}
    for name in list(changes):
        if without_options(name) in present.owned or without_options(name) in ALWAYS_LOCAL:
            del changes[name]
    if not changes:
        made.unchanged += 1
    elif _is_frozen(after, protection) or _is_frozen(before, protection):
        made.frozen += 1
    elif _is_refreshed(present, protection):
        made.refreshed += 1
    elif (handed_over := _is_handed_over(before, after)) and present.local:
        made.handed_over += 1
        if len(made.handed_over_examples) < _KEPT_EXAMPLES:
            made.handed_over_examples.append(present.dn)
    else:
        if handed_over and present.refreshed:  # what the API said of the holder before
            changes |= {name: [] for name in _OF_THE_HOLDER}
        made.changed += 1
        files.write("change", Operation(present.dn, changes))


def _leave(made: Plan, files: _Files, present: HeldEntry, protection: Protection) -> None:
    """What the directory holds and the files do not mention."""
    if present.source != _NATIONAL:
        return
    made.held[present.kind] += 1
    domain = _domain(present.key)
    made.domains_held.add(domain)
    attributes = unpack(present.content)
    if _is_frozen(attributes, protection):
        made.frozen += 1
    elif _is_refreshed(present, protection):
        made.refreshed += 1
    elif present.local or present.owned or _first(attributes, "mail").rpartition("@")[2] in protection.domains:
        made.kept += 1
        if len(made.kept_examples) < _KEPT_EXAMPLES:
            made.kept_examples.append(present.dn)
    else:
        made.removed += 1
        made.leaving[present.kind] += 1
        level = depth(present.key)
        made.depths.add(level)
        files.write(f"remove-{level:02d}", Operation(present.dn, {}))
        return
    made.domains_staying.add(domain)


def _is_refreshed(present: HeldEntry, protection: Protection) -> bool:
    return bool(present.refreshed) and present.refreshed >= protection.published


def _is_handed_over(before: Attributes, after: Attributes) -> bool:
    """Whether the mailbox has another holder now: certificates of the one before must not be used for him.

    An ADELI number that becomes an RPPS number, or the other way round, under the same name is the same person.
    """
    old, new = _first(before, "idnat"), _first(after, "idnat")
    if not old or old == new:
        return False
    names = ("sn", "givenname")
    renumbered = {old[:1], new[:1]} == {"0", "8"} and all(_first(before, n) == _first(after, n) for n in names)
    return not renumbered


def _domain(key: str) -> str:
    """Of a mailbox's key, else empty."""
    return key.partition(",ou=")[0].rpartition("@")[2] if key.startswith("mail=") else ""


def _is_frozen(attributes: Attributes, protection: Protection) -> bool:
    if not protection.addresses and not protection.identifiers:
        return False
    return _first(attributes, "mail") in protection.addresses or _first(attributes, "idnat") in protection.identifiers


def _first(attributes: Attributes, name: str) -> str:
    values = attributes.get(name)
    return values[0].decode("utf-8", "replace").lower() if values else ""


_BATCH = 1000


def _batches(path: Path) -> Iterator[list[Operation]]:
    if not path.exists():
        return
    batch: list[Operation] = []
    for record in read_records(path):
        batch.append(_decode_operation(record))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


_decode_operation = msgspec.msgpack.Decoder(Operation).decode
