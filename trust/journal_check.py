"""Whether the journal is what was written: every chain, every tree, every signed head, every payload.

This is the view from inside: it finds what somebody changed who holds the database but not the vault. Somebody who
holds both can rewrite everything consistently; that, and an older database put back, is found by `against_published`,
which compares with heads that were kept where neither reaches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from sqlalchemy import Connection, String, Table, and_, bindparam, cast, exists, func, inspect, select, union

from trust.journal_chain import ChainWalk, parse_place, place
from trust.journal_entry import SALT_BYTES, JournalVerdict, head_is_sealed, unseal_payload
from trust.kept_heads import CHECKPOINT_ACTION, Checkpoint, all_checkpoints, checkpoints_numbered, is_record_of
from trust.merkle import Frontier
from trust.signed_heads import FIRST_PREVIOUS, WriterHead, head_digest, parse_head, parse_line
from trust.store.direct import DirectStatement
from trust.tables import journal_checkpoints, journal_entries, journal_heads, journal_payloads
from trust.vault import KeyVault, VaultError

UNCHECKED_PAYLOADS = (
    "payloads were not opened: one that was altered, or filed under another patient, would not have been noticed, nor "
    "that the newest signed heads were removed"
)
_SAME_PLACE = and_(
    journal_payloads.c.writer == journal_entries.c.writer, journal_payloads.c.sequence == journal_entries.c.sequence
)
_PAYLOADS = DirectStatement(
    select(
        journal_entries.c.sequence,
        journal_entries.c.payload_hash,
        journal_payloads.c.subject,
        journal_payloads.c.sealed,
    )
    .join_from(journal_entries, journal_payloads, _SAME_PLACE)
    .where(journal_entries.c.writer == bindparam("of"))
    .order_by(journal_entries.c.sequence)
)
_HAS_PAYLOAD = DirectStatement(
    select(journal_payloads.c.sequence).where(
        journal_payloads.c.writer == bindparam("of"), journal_payloads.c.sequence == bindparam("number")
    )
)


class _BrokenError(Exception):
    """The first thing that does not hold; ends a check."""


class _Filed(msgspec.Struct, frozen=True):
    """What of a payload must agree with what stands in the clear."""

    action: str
    subject: str = ""


def check(
    connection: Connection, vault: KeyVault, *, payloads: bool = True, keys: Collection[bytes] = ()
) -> JournalVerdict:
    """Examine everything on one snapshot; stops at the first problem. Memory does not grow with the journal.

    Finds entries edited, removed, inserted or reordered, a cut end, payloads edited, moved, removed without an entry
    that erased them or put back after one, checkpoints edited or removed. With `payloads` false they are not opened,
    which is several times faster; `unchecked` says what is then not seen. `keys` (SubjectPublicKeyInfo) are those heads
    may be signed with; without any the key that stands beside a head is taken, and `unchecked` says so.
    """
    checking = _Check(connection, vault, keys)
    unchecked = [] if payloads else [UNCHECKED_PAYLOADS]
    try:
        checking.checkpoints()
        for writer in checking.writers():
            checking.chain(writer)
        checking.nothing_beside()
        checking.filing()
        if payloads:
            checking.payloads()
    except _BrokenError as broken:
        return JournalVerdict(False, checking.entries, str(broken), checking.checked_heads)
    if checking.checked_heads and not keys:
        unchecked.append("no key was given that must have signed the heads")
    notes = []
    if checking.backwards:
        notes.append(f"{checking.backwards} entries bear an earlier time than one before them: the clock was set back")
    return JournalVerdict(True, checking.entries, "", checking.checked_heads, tuple(unchecked), tuple(notes))


class _Check:
    """One examination. Each method raises `_BrokenError`."""

    def __init__(self, connection: Connection, vault: KeyVault, keys: Collection[bytes]) -> None:
        self._connection = connection
        self._vault = vault
        self._keys = keys
        self._recorded: int = 0
        self.entries = 0
        self.checked_heads = 0
        self.backwards = 0

    def writers(self) -> Sequence[str]:
        known = [select(table.c.writer) for table in (journal_entries, journal_heads)]
        return self._connection.scalars(union(*known).order_by("writer")).all()

    def checkpoints(self) -> None:
        """Numbered without gaps, each naming the one before, signed, and none forgetting a writer."""
        previous = FIRST_PREVIOUS
        sizes: dict[str, int] = {}
        for number, each in enumerate(all_checkpoints(self._connection), 1):
            self.checked_heads = number
            head = parse_head(each.signed.text) if isinstance(each.signed.text, str) else None
            if each.number != number:
                raise _BrokenError(f"checkpoint {number} is missing")
            if head is None or (head.number, head.previous) != (number, previous):
                raise _BrokenError(f"checkpoint {number} or the one before it was altered")
            if problem := each.signed.problem(self._keys or (each.signed.key,)):
                raise _BrokenError(f"checkpoint {number} {problem}")
            covered = {writer.writer: writer.size for writer in head.heads}
            if any(covered.get(writer, 0) < size for writer, size in sizes.items()):
                raise _BrokenError(f"checkpoint {number} covers less than the one before it")
            sizes, previous = covered, head_digest(each.signed.text)

    def chain(self, writer: str) -> None:
        """One chain, its trees at every checkpoint, its head; and no payload there that it erased."""
        walk = ChainWalk(self._connection, writer)
        frontier = Frontier()
        heads = self._heads_of(writer)
        number, head = next(heads, (0, None))
        for hashes in walk.steps():
            for sequence, erased in walk.erasures:
                self._is_gone(erased, place(writer, sequence))
            rest = hashes
            while head is not None and head.size <= frontier.size + len(rest):
                taken = head.size - frontier.size
                frontier.extend(rest[:taken])
                end = rest[taken - 1] if taken else hashes[len(hashes) - len(rest) - 1]
                if (frontier.root().hex(), end.hex()) != (head.root, head.hash):
                    raise _BrokenError(f"the chain of {writer} is not the one checkpoint {number} signed")
                rest = rest[taken:]
                number, head = next(heads, (0, None))
            frontier.extend(rest)
        self.entries += walk.sequence + (1 if "altered" in walk.problem else 0)
        self.backwards += walk.backwards
        if walk.problem:
            raise _BrokenError(walk.problem)
        if head is not None:
            raise _BrokenError(f"the chain of {writer} ends before what checkpoint {number} signed")
        self._ends(writer, walk)

    def nothing_beside(self) -> None:
        """No row that none of the walks met: they begin at number 1, and SQLite takes 0, -1 or 0.5 as well."""
        for table, met in ((journal_entries, self.entries), (journal_checkpoints, self.checked_heads)):
            if inspect(self._connection).has_table(table.name) and (more := self._rows(table) - met):
                raise _BrokenError(f"{more} rows were inserted into {table.name} beside the chain")

    def filing(self) -> None:
        """No payload without its entry, none missing but those an entry erased."""
        nobody = (
            select(journal_payloads.c.writer, journal_payloads.c.sequence)
            .where(~exists(select(journal_entries.c.sequence).where(_SAME_PLACE)))
            .limit(1)
        )
        if found := self._connection.execute(nobody).first():
            raise _BrokenError(f"the payload of {place(*found)} belongs to no entry")
        erasing = journal_entries.alias("erasing")
        named = journal_entries.c.writer + "#" + cast(journal_entries.c.sequence, String)
        removed = (
            select(journal_entries.c.writer, journal_entries.c.sequence)
            .where(
                ~exists(select(journal_payloads.c.sequence).where(_SAME_PLACE)),
                ~exists(select(erasing.c.sequence).where(erasing.c.erases == named, erasing.c.erases != "")),
            )
            .order_by(journal_entries.c.writer, journal_entries.c.sequence)
            .limit(1)
        )
        if found := self._connection.execute(removed).first():
            raise _BrokenError(f"the payload of {place(*found)} was removed without an entry that erased it")

    def payloads(self) -> None:
        """Each payload is the one that was written, and as many of them record checkpoints as there are."""
        for writer in self.writers():
            for rows in _PAYLOADS.batches(self._connection, {"of": writer}):
                for sequence, payload_hash, subject, sealed in rows:
                    if problem := self._payload_problem(writer, sequence, payload_hash, subject, sealed):
                        raise _BrokenError(f"the payload of {place(writer, sequence)} {problem}")
        for each in all_checkpoints(self._connection):
            if not self._is_recorded(each):
                recorded = place(each.writer, each.sequence)
                raise _BrokenError(f"checkpoint {each.number} is not the one {recorded} records")
        if self._recorded:
            raise _BrokenError("a checkpoint that the journal records is missing")

    def _rows(self, table: Table) -> int:
        return self._connection.scalar(select(func.count()).select_from(table)) or 0

    def _heads_of(self, writer: str) -> Iterator[tuple[int, WriterHead | None]]:
        for each in all_checkpoints(self._connection):
            head = parse_head(each.signed.text)
            for found in head.heads if head else ():
                if found.writer == writer:
                    yield each.number, found

    def _is_gone(self, erased: str, by: str) -> None:
        where = parse_place(erased)
        if where and _HAS_PAYLOAD.first(self._connection, {"of": where[0], "number": where[1]}):
            raise _BrokenError(f"the payload of {erased} is there although {by} erased it")

    def _ends(self, writer: str, walk: ChainWalk) -> None:
        head = self._connection.execute(select(journal_heads).where(journal_heads.c.writer == writer)).one_or_none()
        if head is None or not head_is_sealed(self._vault, writer, head.sequence, head.hash, head.seal):
            raise _BrokenError(f"the head of {writer} is missing or altered")
        if (head.sequence, head.hash) != (walk.sequence, walk.hash):
            raise _BrokenError(f"the chain of {writer} does not end where its head says")

    def _payload_problem(self, writer: str, sequence: int, payload_hash: bytes, subject: str, sealed: bytes) -> str:
        try:
            payload = unseal_payload(self._vault, writer, sequence, sealed)
        except (VaultError, TypeError):
            return "was altered"
        if hashlib.sha256(payload).digest() != payload_hash:
            return "is not the one that was written"
        try:
            filed = msgspec.json.decode(payload[SALT_BYTES:], type=_Filed)
        except msgspec.DecodeError:
            return "is no entry"
        if filed.subject != subject:
            return "is filed under another subject"
        if filed.action == CHECKPOINT_ACTION:
            self._recorded += 1
        return ""

    def _is_recorded(self, each: Checkpoint) -> bool:
        at = and_(journal_payloads.c.writer == each.writer, journal_payloads.c.sequence == each.sequence)
        sealed = self._connection.scalar(select(journal_payloads.c.sealed).where(at))
        if sealed is None:  # erased, as the filing has shown
            return True
        self._recorded -= 1
        return is_record_of(unseal_payload(self._vault, each.writer, each.sequence, sealed), each)


@dataclass(frozen=True, slots=True)
class PublishedVerdict:
    """What some published lines say about this database."""

    problem: str = ""
    ours: int = 0
    """Heads of this journal among them."""
    others: int = 0
    """Heads of other journals, left aside."""
    unreadable: int = 0
    """Lines that hold no head: another program's, or half of one."""
    number: int = 0
    """The greatest number among ours."""
    at: str = ""
    """When that was made, by its maker's clock."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """How many entries of each writer it covers."""


def against_published(
    connection: Connection, name: str, lines: Iterable[str], keys: Collection[bytes] = ()
) -> PublishedVerdict:
    """Compare published lines with the checkpoints kept here, character by character; stops at the first problem.

    Together with `check`, which holds the kept checkpoints against the chains, this finds whatever was changed in what
    the lines cover, whoever changed it. `name` is this journal's; lines of others are counted and left aside.
    """
    ours: dict[int, tuple[str, str, Mapping[str, int]]] = {}
    problem = ""
    others = unreadable = count = 0
    for line in lines:
        signed = parse_line(line)
        head = parse_head(signed.text) if signed else None
        if signed is None or head is None:
            unreadable += bool(line.strip())
            continue
        if head.journal != name:
            others += 1
            continue
        count += 1
        known = ours.setdefault(head.number, (signed.text, head.at, {each.writer: each.size for each in head.heads}))
        if fault := signed.problem(keys or (signed.key,)):
            problem = problem or f"published head {head.number} {fault}"
        elif known[0] != signed.text:
            problem = problem or f"two heads {head.number} were published: the journal was put back and written again"
    kept = checkpoints_numbered(connection, sorted(ours))
    for number, (text, at, _) in sorted(ours.items()):
        if problem:
            break
        if number not in kept:
            problem = f"published head {number} of {at} is not in this database: it was put back or cut"
        elif kept[number].signed.text != text:
            problem = f"published head {number} of {at} is not the one this database has: the journal was rewritten"
    last = max(ours, default=0)
    _, at, sizes = ours.get(last, ("", "", {}))
    return PublishedVerdict(problem, count, others, unreadable, last, at, dict(sizes))


def uncovered(connection: Connection, sizes: Mapping[str, int]) -> int:
    """How many entries came after a published head that covers `sizes`: what happened to those cannot be proved yet."""
    ends = {row.writer: row.sequence for row in connection.execute(select(journal_heads))}
    return sum(max(end - sizes.get(writer, 0), 0) for writer, end in ends.items())
