"""The four national files joined by professional: all about one IdNat_PP together, whatever its places in the files.

2.3 million situations, half a million mailboxes and as many skills do not stand in memory, and the files are sorted by
nothing one could rely on. So each line goes into a bucket on disk by its IdNat_PP (`directory.buckets`), and the
professionals of one bucket at a time are put together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from directory import schema
from directory.buckets import BUCKETS, BucketWriter, read_bucket
from directory.canonical import pack, prefer
from directory.extraction import DiplomaRow, MailboxRow, PracticeRow, SkillRow
from directory.ldif import LdifEntry
from directory.records import MailboxKind
from directory.register import holder_of, mailbox_entry, person_entry, structure_entry

Row = MailboxRow | PracticeRow | SkillRow | DiplomaRow


Keep = Callable[[int, str, list[bytes], list[LdifEntry], list[LdifEntry]], None]
"""Of a bucket's number, a group's key and lines, and the entries made of it: its own, and those others make too."""


@dataclass(slots=True)
class Professional:
    """All lines about one IdNat_PP, each kind in an order that does not depend on that of its file."""

    id_nat: str
    mailboxes: list[MailboxRow] = field(default_factory=list)
    situations: list[PracticeRow] = field(default_factory=list)
    skills: list[SkillRow] = field(default_factory=list)
    diplomas: list[DiplomaRow] = field(default_factory=list)


class Joiner(BucketWriter):
    """Takes the lines of all four files; once it is left, `groups` of the same folder gives them back together."""

    def take(self, row: Row) -> None:
        if isinstance(row, MailboxRow):
            holder = holder_of(row) if row.kind is MailboxKind.PER else ""
            self._put(holder or row.address, (0, holder, row.kind.value, *_mailbox_texts(row)))
        elif isinstance(row, PracticeRow):
            self._put(row.pp_id_nat, (1, *_practice_texts(row)))
        elif isinstance(row, SkillRow):
            self._put(row.pp_id_nat, (2, *_skill_texts(row)))
        else:
            self._put(row.pp_id_nat, (3, *_diploma_texts(row)))

    def _put(self, key: str, values: tuple[object, ...]) -> None:
        encoded = key.encode()
        self.add(key, len(encoded).to_bytes(_KEY_LENGTH, "big") + encoded + _encode(values))


def groups(folder: Path, number: int) -> dict[str, list[bytes]]:
    """The lines of one bucket by what they are joined by, each group sorted; `professional` reads them.

    Tomorrow's files have the same lines in another order: nothing may follow from it.
    """
    found: dict[str, list[bytes]] = {}
    for record in read_bucket(folder, number):
        end = _KEY_LENGTH + int.from_bytes(record[:_KEY_LENGTH], "big")
        found.setdefault(record[_KEY_LENGTH:end].decode(), []).append(record[end:])
    for lines in found.values():
        if len(lines) > 1:
            lines.sort()
    return found


def professional(lines: Iterable[bytes]) -> Professional:
    """What one group of lines says. Without identifier: mailboxes that belong to no one person."""
    found = Professional("")
    for line in lines:
        kind, *texts = _decode(line)
        if kind == 0:
            found.mailboxes.append(MailboxRow(MailboxKind(texts[1]), *texts[2:]))
        elif kind == 1:
            found.situations.append(PracticeRow(*texts))
        elif kind == 2:
            found.skills.append(SkillRow(*texts))
        else:
            found.diplomas.append(DiplomaRow(*texts))
        found.id_nat = found.id_nat or texts[0]
    return found


def entries_of(one: Professional, base: str) -> Iterator[LdifEntry]:
    """Mailboxes and person. A mailbox named twice by one holder gives one entry, one of two holders two with one DN."""
    mailboxes: dict[tuple[str, str], MailboxRow] = {}
    for mailbox in one.mailboxes:
        mailboxes.setdefault((schema.BRANCHES[mailbox.kind], mailbox.address), mailbox)
    for mailbox in mailboxes.values():
        yield mailbox_entry(base, mailbox, one.situations)
    if one.situations:
        yield person_entry(base, one.situations, one.skills, one.diplomas)


def structures_of(one: Professional, base: str) -> Iterator[LdifEntry]:
    """The structures he practises in, as each of his situations describes them: others name them too."""
    before: list[LdifEntry] = []
    for row in one.situations:
        entry = structure_entry(base, row)
        if entry is not None and entry not in before[-_COMPARED:]:
            before.append(entry)
            yield entry


def national_entries(
    folder: Path,
    base: str,
    unclear: Collection[str] = (),
    twins: Collection[str] = (),
    keep: Keep = lambda number, key, group, own, shared: None,
) -> Iterator[LdifEntry]:
    """The entries of all that a `Joiner` put into `folder`, each DN once, whatever the order of the lines.

    What is about an address or identifier (lower case) among the `unclear` is left out; `twins` are addresses that two
    groups have. What several describe comes last. `keep` gets what was made of each group (`directory.wanting`).
    Mailboxes and persons of a bucket are ordered by name: their index entries then lie side by side, which slapadd
    thanks with less time (docs/benchmarks.md). Memory: one bucket.
    """
    described = folder / "described"
    with BucketWriter(described) as several:
        for number in range(BUCKETS):
            mailboxes, persons = list[LdifEntry](), list[LdifEntry]()
            for key, group in groups(folder, number).items():
                one = professional(group)
                own, shared = list(entries_of(one, base)), list(structures_of(one, base))
                keep(number, key, group, own, shared)
                for entry in own:
                    address, identifier = (value.decode() for value in _first(entry, "mail", "IdNat"))
                    if address in unclear or identifier.lower() in unclear:
                        continue
                    if address in twins:
                        several.add(entry.dn, _encode((entry.dn, entry.attributes)))
                    else:
                        (mailboxes if address else persons).append(entry)
                for entry in shared:
                    several.add(entry.dn, _encode((entry.dn, entry.attributes)))
            yield from sorted(mailboxes, key=lambda entry: _first(entry, "sn", "givenName", "displayName"))
            yield from sorted(persons, key=lambda entry: _first(entry, "NomExercice", "PrenomExercice"))
    for number in range(BUCKETS):
        chosen: dict[str, LdifEntry] = {}
        for record in read_bucket(described, number):
            entry = LdifEntry(*_decode_entry(record))
            before = chosen.setdefault(entry.dn, entry)
            if before is not entry and prefer(pack(entry.attributes), pack(before.attributes)):
                chosen[entry.dn] = entry
        yield from chosen.values()


def _first(entry: LdifEntry, *names: str) -> tuple[bytes, ...]:
    """Of each of these attributes the first value, empty where there is none."""
    return tuple(entry.attributes.get(name, (b"",))[0] for name in names)


_KEY_LENGTH = 2
_COMPARED = 8
"""Structures of one professional that are told apart here; whoever collects them tells all apart."""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode
_decode_entry = msgspec.msgpack.Decoder(tuple[str, dict[str, tuple[bytes, ...]]]).decode
_mailbox_texts: Callable[[MailboxRow], tuple[str, ...]] = attrgetter(*MailboxRow.__slots__[1:])
_practice_texts: Callable[[PracticeRow], tuple[str, ...]] = attrgetter(*PracticeRow.__slots__)
_skill_texts: Callable[[SkillRow], tuple[str, ...]] = attrgetter(*SkillRow.__slots__)
_diploma_texts: Callable[[DiplomaRow], tuple[str, ...]] = attrgetter(*DiplomaRow.__slots__)
