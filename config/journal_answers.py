"""What a running gateway answers about its journal: the calls behind `relais journal`, synchronous, off the loop."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from trust import atna, balp
from trust.audit import records
from trust.checkpoints import Checkpoints
from trust.journal import ErasureError, Journal, JournalEntry
from trust.journal_chain import place
from trust.journal_check import against_published, check, uncovered
from trust.kept_heads import Checkpoint, last_checkpoint
from trust.proofs import ProofError, prove_consistency, prove_inclusion
from trust.publishing import Publisher
from trust.store.database import Database
from trust.tables import journal_heads
from trust.vault import KeyVault, VaultError

Request = Mapping[str, Any]
_LONGEST_PAGE = 1000


@dataclass(frozen=True, slots=True)
class JournalAnswers:
    """`key` is the public key (SubjectPublicKeyInfo) that signs heads, `name` the journal's in its heads."""

    database: Database
    vault: KeyVault
    journal: Journal
    checkpoints: Checkpoints
    publisher: Publisher
    name: str
    key: bytes

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        return {
            "journal.verify": self.verify,
            "journal.heads": self.heads,
            "journal.prove": self.prove,
            "journal.erase": self.erase,
            "journal.list": self.list,
            "journal.export": self.export,
            "journal.status": self.status,
        }

    def verify(self, request: Request) -> Any:
        payloads = not request.get("hashes_only", False)
        keys = self._keys(request)
        verdict = self.database.read(lambda connection: check(connection, self.vault, payloads=payloads, keys=keys))
        answer = asdict(verdict)
        answer["notes"] = [*verdict.notes, *self.publisher.problems]
        return answer

    def heads(self, request: Request) -> Any:
        """Compare some published lines; the asker brings them in batches."""
        keys, lines = self._keys(request), [str(line) for line in request["lines"]]

        def work(connection: Connection) -> dict[str, Any]:
            verdict = against_published(connection, self.name, lines, keys)
            return asdict(verdict) | {"uncovered": uncovered(connection, verdict.sizes)}

        return self.database.read(work)

    def prove(self, request: Request) -> Any:
        writer = str(request.get("writer") or self.journal.writer)
        number, old = request.get("number"), request.get("old")

        def work(connection: Connection) -> dict[str, Any]:
            if old is not None:
                return prove_consistency(connection, writer, int(old), number)
            sequence = int(request["sequence"])
            payload = self.journal.payload(connection, writer, sequence) if request.get("payload") else None
            return prove_inclusion(connection, writer, sequence, number, payload)

        try:
            return {"document": self.database.read(work)}
        except (ProofError, VaultError) as error:
            return {"problem": str(error)}

    def erase(self, request: Request) -> Any:
        """Destroy one payload: `writer`, `sequence`, `by` and `reason`."""
        writer, sequence = str(request.get("writer") or self.journal.writer), int(request["sequence"])
        entry = JournalEntry(
            str(request["by"]), "journal.erase", "done", "", place(writer, sequence), str(request["reason"])
        )
        try:
            receipt = self.database.transact(lambda connection: self.journal.erase(connection, writer, sequence, entry))
        except ErasureError as error:
            return {"problem": str(error)}
        return {"erased": place(writer, sequence), "recorded": place(receipt.writer, receipt.sequence)}

    def list(self, request: Request) -> Any:
        """The newest entries, identities and all: for whoever may open the socket."""
        limit = min(int(request.get("limit", 20)), _LONGEST_PAGE)
        subject = request.get("subject")
        found = self.database.read(lambda connection: self.journal.entries(connection, subject=subject, limit=limit))
        return [
            {"writer": each.writer, "sequence": each.sequence, "at": each.at.isoformat()}
            | (asdict(each.entry) if each.entry else {"erased": True})
            for each in found
        ]

    def export(self, request: Request) -> Any:
        """One page of one writer's entries after `after`, as lines of the wanted form; pseudonyms only."""
        writer, after, form = str(request["writer"]), int(request["after"]), str(request["form"])

        def work(connection: Connection) -> Any:
            page = list(records(connection, self.vault, writer, after, _LONGEST_PAGE))
            if form == "balp":
                made = [balp.line(each, self.name) for each in page]
            else:
                made = [
                    base64.b64encode(atna.syslog_message(each, self.name, each.writer)).decode("ascii") for each in page
                ]
            return {"lines": made, "last": page[-1].sequence if page else after}

        try:
            return self.database.read(work)
        except VaultError:
            return {"problem": "a payload was altered: `relais journal verify` says which"}

    def status(self, _: Request) -> Any:
        def work(connection: Connection) -> tuple[list[Any], Checkpoint | None, int]:
            ends = connection.execute(select(journal_heads.c.writer, journal_heads.c.sequence)).all()
            total = connection.scalar(select(func.sum(journal_heads.c.sequence))) or 0
            return [list(row) for row in ends], last_checkpoint(connection), int(total)

        ends, last, total = self.database.read(work)
        return {
            "name": self.name,
            "key": base64.b64encode(self.key).decode("ascii"),
            "writers": dict(ends),
            "entries": total,
            "checkpoint": last.number if last else 0,
            "head": last.signed.line() if last else "",
            "problems": list(self.publisher.problems),
        }

    def _keys(self, request: Request) -> frozenset[bytes]:
        given = request.get("keys") or ()
        return frozenset({self.key, *(base64.b64decode(each) for each in given)})
