"""Checkpoints: from time to time all chains are joined under one signed head, kept here and published elsewhere.

The trees are followed on a snapshot beside the writer and the key signs there too; the transaction that keeps the new
head is short: it checks that nobody else made one meanwhile, records the head, and appends an entry that names it to
the maker's own chain. What the trees need to grow is kept between checkpoints and remade from the entries whenever it
does not agree with the last head.

A chain that no longer holds is not signed any further: its place in the head stays where it was, and whoever asked for
the checkpoint is told. Neither is a chain whose head is not ours, and nothing at all behind a checkpoint that is not
the one the journal records: our key must not vouch for what somebody wrote who holds the database alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from trust.journal import Journal, JournalEntry, Receipt
from trust.journal_chain import ChainWalk, place
from trust.kept_heads import (
    CHECKPOINT_ACTION,
    Checkpoint,
    checkpoints_after,
    is_record_of,
    last_checkpoint,
    last_number,
)
from trust.merkle import Frontier
from trust.signed_heads import (
    FIRST_PREVIOUS,
    Head,
    HeadSigner,
    SignedHead,
    WriterHead,
    format_time,
    head_digest,
    parse_head,
)
from trust.store.database import Database
from trust.tables import journal_checkpoints, journal_trees
from trust.vault import VaultError


@dataclass(frozen=True, slots=True)
class Made:
    """What an attempt gave."""

    checkpoint: Checkpoint | None
    """None when nothing had happened, or another node was faster."""
    problems: tuple[str, ...] = ()
    """Chains that do not hold, a sentence each."""


@dataclass(frozen=True, slots=True)
class _Prepared:
    head: Head
    trees: dict[str, Frontier]
    problems: tuple[str, ...]


class Checkpoints:
    """Makes and reads the checkpoints of one journal. Thread-safe; one maker at a time wins, on whatever node.

    `name` says which journal the heads are of, the same on every node.
    """

    def __init__(self, database: Database, journal: Journal, signer: HeadSigner, name: str) -> None:
        self._database = database
        self._journal = journal
        self._signer = signer
        self._name = name

    def make(self, *, even_if_idle: bool = False, at: datetime | None = None) -> Made:
        """Sign all chains as they stand; nothing is made when nothing happened since, unless `even_if_idle`."""
        moment = at or datetime.now(UTC)
        prepared = self._database.read(lambda connection: self._prepare(connection, moment, even_if_idle))
        if isinstance(prepared, tuple):
            return Made(None, prepared)
        signed = SignedHead.make(prepared.head, self._signer)
        try:
            kept = self._database.transact(lambda connection: self._keep(connection, prepared, signed, at))
        except IntegrityError:  # another node made the same number at the same moment
            kept = None
        return Made(kept, prepared.problems)

    def after(self, number: int, limit: int = 100) -> list[Checkpoint]:
        """Those with a greater number, in order."""
        return self._database.read(lambda connection: checkpoints_after(connection, number, limit))

    def last_number(self) -> int:
        """0 when there is none."""
        return self._database.read(last_number)

    def _prepare(self, connection: Connection, moment: datetime, even_if_idle: bool) -> _Prepared | tuple[str, ...]:
        last = last_checkpoint(connection)
        before = self._recorded(connection, last) if last else None
        if last is not None and before is None:
            return (f"checkpoint {last.number} is not the one the journal records: no other is made after it",)
        covered = {head.writer: head for head in before.heads} if before else {}
        sealed = self._journal.ends(connection)
        ends = {writer: end for writer, (end, _) in sealed.items()}
        if not even_if_idle and not self._something_new(ends, covered, last):
            return ()
        heads: list[WriterHead] = []
        trees: dict[str, Frontier] = {}
        problems: list[str] = []
        if last is not None and (problem := last.signed.problem((self._signer.public_key,))):
            problems.append(f"checkpoint {last.number} {problem}")  # said once: the next one is signed by our key
        for writer in sorted({*ends, *covered}):
            known = covered.get(writer)
            if not sealed.get(writer, (0, False))[1]:
                problems.append(f"the head of {writer} is missing or altered")
                if known is not None:
                    heads.append(known)
                continue
            frontier = _tree(connection, writer, known)
            walk = ChainWalk(connection, writer)
            if known is not None and frontier.size == known.size:
                walk.sequence, walk.hash = known.size, bytes.fromhex(known.hash)
            _follow(walk, frontier, known, ends.get(writer, 0))
            if walk.problem:
                problems.append(walk.problem)
                if known is not None:
                    heads.append(known)
                continue
            trees[writer] = frontier
            heads.append(WriterHead(writer, frontier.size, frontier.root().hex(), walk.hash.hex()))
        head = Head(
            version=1,
            journal=self._name,
            number=last.number + 1 if last else 1,
            at=format_time(moment),
            previous=head_digest(last.signed.text) if last else FIRST_PREVIOUS,
            heads=tuple(heads),
        )
        return _Prepared(head, trees, tuple(problems))

    def _recorded(self, connection: Connection, last: Checkpoint) -> Head | None:
        """What a checkpoint says, None when the journal does not record it so."""
        try:
            payload = self._journal.payload(connection, last.writer, last.sequence)
            if payload is None or not is_record_of(payload, last):
                return None
        except (VaultError, TypeError, AttributeError):
            return None
        return parse_head(last.signed.text)

    @staticmethod
    def _something_new(ends: dict[str, int], covered: dict[str, WriterHead], last: Checkpoint | None) -> bool:
        for writer, end in ends.items():
            size = covered[writer].size if writer in covered else 0
            if last is not None and writer == last.writer and last.sequence == size + 1:
                size += 1  # the entry that records the last checkpoint itself
            if end != size:
                return True
        return not ends.keys() >= covered.keys()

    def _keep(
        self, connection: Connection, prepared: _Prepared, signed: SignedHead, at: datetime | None
    ) -> Checkpoint | None:
        number = prepared.head.number
        if last_number(connection) != number - 1:
            return None
        receipt = self._record(connection, number, signed, at)
        connection.execute(
            insert(journal_checkpoints).values(
                number=number,
                head=signed.text,
                signature=signed.signature,
                algorithm=signed.algorithm,
                key=signed.key,
                writer=receipt.writer,
                sequence=receipt.sequence,
            )
        )
        if prepared.trees:
            connection.execute(delete(journal_trees).where(journal_trees.c.writer.in_(prepared.trees)))
            connection.execute(
                insert(journal_trees),
                [
                    {"writer": writer, "size": tree.size, "peaks": bytes(tree)}
                    for writer, tree in prepared.trees.items()
                ],
            )
        return Checkpoint(number, signed, receipt.writer, receipt.sequence)

    def _record(self, connection: Connection, number: int, signed: SignedHead, at: datetime | None) -> Receipt:
        entry = JournalEntry(
            self._journal.writer,
            CHECKPOINT_ACTION,
            "done",
            object_id=str(number),
            details={"sha256": head_digest(signed.text)},
        )
        return self._journal.append(connection, entry, at)


def _tree(connection: Connection, writer: str, known: WriterHead | None) -> Frontier:
    """The tree as the last checkpoint left it; empty, so that it is remade, when it is lost or not the one signed."""
    row = connection.execute(select(journal_trees).where(journal_trees.c.writer == writer)).one_or_none()
    if row is None or known is None:
        return Frontier()
    try:
        frontier = Frontier.from_bytes(row.size, row.peaks)
    except (ValueError, TypeError, AttributeError):
        return Frontier()
    return frontier if (frontier.size, frontier.root().hex()) == (known.size, known.root) else Frontier()


def _follow(walk: ChainWalk, frontier: Frontier, known: WriterHead | None, end: int) -> None:
    """Take the frontier along the chain up to its end; `walk.problem` says when that is not what was signed before."""
    size = known.size if known else 0
    for step in walk.steps():
        hashes, missing = step, size - frontier.size
        if 0 < missing <= len(step):
            frontier.extend(step[:missing])
            if known is not None and frontier.root().hex() != known.root:
                walk.problem = f"the chain of {walk.writer} is not the one that was signed"
                return
            hashes = step[missing:]
        frontier.extend(hashes)
    if not walk.problem and frontier.size != end:
        walk.problem = f"the chain of {walk.writer} does not end where its head says"
    if not walk.problem and frontier.size < size:
        walk.problem = f"entry {place(walk.writer, frontier.size + 1)} is missing"
