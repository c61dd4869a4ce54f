"""The spool's front: submissions become rows, many commits' worth at a time, and work for whoever has a place for it.

`Accepting` is the first half of `mta.spool.Spool`, whose guarantees are written there.
"""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mta import spool_rows as rows
from mta.delivery import Accepted, Duplicate, Lease, NewDelivery, Submission, destination_of
from mta.message import DeliveryState, Origin
from mta.priority import Priority, priority_in
from mta.schedule import RetrySchedule
from mta.spool_reading import CONTENT, READY, SpoolReader
from mta.unsure import Freed, Unsure
from trust.draw import draw
from trust.store.blobs import ROW_BYTES, BlobStore
from trust.store.database import Database, StoreUnavailableError
from trust.vault import KeyVault

Listener = Callable[[], None]


class Taker(Protocol):
    """Who works on what was accepted here (`mta.worker.Worker`). Called from any thread; quick."""

    def reserve(self, destination: str) -> float | None:
        """A place for one more delivery, and for how many seconds to lease it; None when it has to wait its turn."""
        ...

    def take(self, lease: Lease, content: bytes) -> None:
        """It is kept, and under lease: work on it, in the place that was reserved."""
        ...

    def cancel(self, destination: str) -> None:
        """It was not kept: the place is free."""
        ...

    def missed(self, destination: str) -> None:
        """Something was kept for which there was no place: it waits in the spool."""
        ...


class Accepting(SpoolReader):
    """See `mta.spool`."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        vault: KeyVault,
        *,
        node: str,
        schedule: RetrySchedule,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[], int] | None = None,
        reserve_bytes: int = 64 * 1024 * 1024,
        bulk_recipients: int = 50,
        holder: str = "",
    ) -> None:
        """`holder`: under whose name deliveries are leased, by default `node`; where processes share the database,
        one that no other process has or had (`trust.store.nodes`).

        A message to more than `bulk_recipients` is bulk (`mta.priority`). `free_bytes` says how much the disk still
        takes; below `reserve_bytes` nothing more is accepted, because what was accepted needs room to be delivered and
        settled."""
        if ":" in node + holder or not 0 < len(node) <= 64 or len(holder) > 64:
            raise ValueError("a node name has 1 to 64 characters and no colon")
        # Another operator may try as long as we do; then its receipt has as long again to come back.
        super().__init__(database, blobs, vault, clock=clock, receipt_patience=2 * schedule.lifetime)
        self._node = node
        self._holder = holder or node
        self._schedule = schedule
        self._free_bytes = free_bytes
        self._reserve_bytes = reserve_bytes
        self._room = threading.Lock()
        self._laying = 0
        """Octets of contents that are being written: the disk may not count them yet."""
        self._bulk_recipients = bulk_recipients
        self._turns = itertools.count()
        self._listeners: list[Listener] = []
        self._workers: list[Listener] = []
        self._attentive: list[Listener] = []
        self._taker: Taker | None = None
        self._found = False
        """Whether the last claim found all it wanted, so that there may be more."""
        self._unsure = Unsure()
        self._lay = partial(rows.lay, blobs)
        self._change = partial(rows.change, blobs)

    def listen(self, listener: Listener) -> None:
        """Call `listener` (from any thread) whenever a delivery was committed that waits, or that has ended."""
        self._listeners.append(listener)

    def listen_for_work(self, listener: Listener) -> None:
        """Call `listener` (from any thread) whenever a delivery was committed that waits for somebody to take it."""
        self._workers.append(listener)

    def listen_for_acts(self, listener: Listener) -> None:
        """Call `listener` (from any thread) whenever a person has acted on what waits, before anybody is told of it."""
        self._attentive.append(listener)

    def announce(self) -> None:
        """Somebody else's transaction (`mta.queue`) has changed what waits: whoever listens should look."""
        for listener in self._attentive:
            listener()
        self._tell()

    def _tell(self) -> None:
        for listener in (*self._workers, *self._listeners):
            listener()

    def _tell_ended(self) -> None:
        for listener in self._listeners:
            listener()

    # Accepting

    def accept(self, submission: Submission, also: Callable[[Connection], None] | None = None) -> Accepted | Duplicate:
        """Keep a submission for good. `also` writes more rows in the same transaction.

        Raises OSError (ENOSPC) already when the disk is nearly full.
        """
        repeat = self.duplicate_of(submission.dedup_key) if len(submission.content) > ROW_BYTES else None
        return repeat or self.begin_accept(submission, also).result()

    def begin_accept(
        self, submission: Submission, also: Callable[[Connection], None] | None = None
    ) -> Future[Accepted | Duplicate]:
        """As `accept`, for who does not wait in this thread: it blocks only to lay down a large content as a file.

        The future has what `accept` returns or raises; its callbacks run on the database's thread and must be quick.
        Raises OSError as `accept` does.
        """
        answer: Future[Accepted | Duplicate] = Future()
        answer.set_running_or_notify_cancel()  # who gives up waiting does not undo what is kept
        if not self._reserve(len(submission.content)):
            repeat = self.duplicate_of(submission.dedup_key)
            if repeat is None:
                raise OSError(errno.ENOSPC, "the rest of the disk is for what was accepted before")
            answer.set_result(repeat)
            return answer
        try:
            entry, begun = self._entry(submission, also)
            try:
                laid = self._database.submit_together(self._lay, entry)
            except BaseException:
                self._not_kept(entry, begun)
                raise
        except BaseException:
            self._unreserve(len(submission.content))
            raise
        laid.add_done_callback(lambda done: self._laid(submission, entry, begun, done, answer))
        return answer

    def _reserve(self, octets: int) -> bool:
        """Whether the disk takes one more content of this size, besides those that are being written."""
        if self._free_bytes is None:
            return True
        with self._room:
            if self._free_bytes() < self._laying + octets + self._reserve_bytes:
                return False
            self._laying += octets
        return True

    def _unreserve(self, octets: int) -> None:
        if self._free_bytes is not None:
            with self._room:
                self._laying -= octets

    def _laid(
        self,
        submission: Submission,
        entry: rows.Entry,
        begun: Sequence[Lease],
        done: Future[rows.Kept | rows.Known],
        answer: Future[Accepted | Duplicate],
    ) -> None:
        """On the database's thread: the transaction has ended."""
        self._unreserve(len(submission.content))
        try:
            found = self._found_out(submission, entry, begun, done)
        except BaseException as error:  # whoever waits is told, whatever it is
            answer.set_exception(error)
            return
        answer.set_result(found)
        if isinstance(found, Duplicate):
            return
        kept = done.result()
        assert isinstance(kept, rows.Kept)  # noqa: S101 - else it had been a duplicate
        self._hand_over(begun, kept.refused_leases, submission.content)
        handed = {lease.delivery_id for lease in begun} - kept.refused_leases
        waiting = {row["destination"] for row in entry.deliveries if row["state"] == READY and row["id"] not in handed}
        if self._taker is None or any(row["state"] != READY for row in entry.deliveries):
            self._tell()
        else:
            for destination in waiting:
                self._taker.missed(destination)

    def _found_out(
        self, submission: Submission, entry: rows.Entry, begun: Sequence[Lease], done: Future[rows.Kept | rows.Known]
    ) -> Accepted | Duplicate:
        """What the submission came to. Raises why it was not kept."""
        try:
            kept = done.result()
        except StoreUnavailableError:
            # Whether the commit reached the disk is not known: a blob too many is collected one day, a row without its
            # blob would answer the sender's repeat with a message that is lost.
            self._blobs.release(entry.draft.id)
            self._unsure.add((Freed(lease.delivery_id, lease.spool_id, lease.token) for lease in begun), self._clock())
            self._turn_down(begun)
            raise
        except IntegrityError:
            # another process committed the same key between our look and our insert
            self._not_kept(entry, begun)
            repeat = self.duplicate_of(submission.dedup_key)
            if repeat is None:
                raise
            return repeat
        except BaseException:
            self._not_kept(entry, begun)
            raise
        if isinstance(kept, rows.Known):
            self._not_kept(entry, begun)
            return Duplicate(kept.spool_id, self._reply(kept.spool_id, kept.reply))
        self._blobs.release(entry.draft.id)
        message_ids = tuple(row["message_id"] for row in entry.deliveries)
        return Accepted(entry.message["id"], message_ids, kept.repeated_external_id)

    def _not_kept(self, entry: rows.Entry, begun: Sequence[Lease]) -> None:
        self._turn_down(begun)
        self._blobs.discard(entry.draft)

    def _entry(
        self, submission: Submission, also: Callable[[Connection], None] | None
    ) -> tuple[rows.Entry, list[Lease]]:
        """The rows of a submission, and the leases of those of its deliveries that begin at once."""
        now = self._clock()
        spool_id = _new_id(now)
        priority = self._priority(submission)
        delivery_rows = [
            self._delivery_row(submission, spool_id, n, now, priority) for n in range(len(submission.deliveries))
        ]
        message_row = {
            "id": spool_id,
            "node": self._node,
            "origin": submission.origin.value,
            "envelope": self._seal(
                spool_id,
                {
                    "sender": submission.sender,
                    "peer": submission.peer,
                    "envelope_id": submission.envelope_id,
                    "flags": list(submission.flags),
                },
            ),
            "content_type": submission.content_type,
            "size": len(submission.content),
            "accepted_at": now,
            "dedup_key": submission.dedup_key,
            "reply": self._vault.seal(submission.reply, b"mta-reply:" + spool_id.encode()) if submission.reply else b"",
            "external_id": submission.external_id,
            "peer_pseudonym": self._vault.pseudonym("peer", submission.peer) if submission.external_id else "",
        }
        step_rows = [self._step(spool_id, "", now, "accept")]
        step_rows += [
            self._step(spool_id, row["id"], now, "failed", row["code"], row["detail"])
            for row in delivery_rows
            if row["state"] != READY
        ]
        draft = self._blobs.draft(CONTENT, submission.content)
        message_row["content_blob"] = draft.id
        begun = self._begin_at_once(submission, message_row, delivery_rows)
        attempts = [self._step(spool_id, lease.delivery_id, now, "attempt") for lease in begun]
        return rows.Entry(message_row, delivery_rows, step_rows, draft, attempts, also), begun

    # Handing over

    def hand_over_to(self, taker: Taker) -> None:
        """From now on `taker` is offered what was accepted here, without its having to look for it."""
        self._taker = taker

    def _begin_at_once(
        self, submission: Submission, message: Mapping[str, Any], delivery_rows: Sequence[dict[str, Any]]
    ) -> list[Lease]:
        """Lease to the taker what it has a place for; the rows say so."""
        if self._taker is None:
            return []
        leases: list[Lease] = []
        now: float = message["accepted_at"]
        for row, delivery in zip(delivery_rows, submission.deliveries, strict=True):
            seconds = self._taker.reserve(row["destination"]) if row["state"] == READY else None
            if seconds is None:
                continue
            token = f"{self._holder}:{draw(12).hex()}"
            row.update(lease=token, due=now + seconds)
            lease = Lease(
                delivery_id=row["id"],
                spool_id=row["spool_id"],
                message_id=row["message_id"],
                origin=submission.origin,
                target=delivery.target,
                sender=submission.sender,
                recipient=delivery.recipient,
                peer=submission.peer,
                content_type=submission.content_type,
                accepted_at=now,
                content_blob=message["content_blob"],
                prepared_blob=None,
                envelope_id=submission.envelope_id,
                notify=delivery.notify,
                original_recipient=delivery.original_recipient,
                flags=submission.flags,
                facts={},
                token=token,
                destination=row["destination"],
                attempts=0,
                counts_from=now,
                breakdowns=0,
                expires=now + seconds,
            )
            leases.append(lease)
        return leases

    def _hand_over(self, leases: Sequence[Lease], refused: Collection[str], content: bytes) -> None:
        if self._taker is not None:
            for lease in leases:
                if lease.delivery_id in refused:
                    self._taker.cancel(lease.destination)
                else:
                    self._taker.take(lease, content)

    def _turn_down(self, leases: Sequence[Lease]) -> None:
        if self._taker is not None:
            for lease in leases:
                self._taker.cancel(lease.destination)

    # Rows

    def _priority(self, submission: Submission) -> Priority:
        if submission.priority is not None:
            return submission.priority
        if submission.origin is Origin.SYSTEM:
            return Priority.URGENT
        if len(submission.deliveries) > self._bulk_recipients:
            return Priority.BULK
        return priority_in(submission.content) if submission.content_type == "message/rfc822" else Priority.NORMAL

    def _delivery_row(
        self, submission: Submission, spool_id: str, ordinal: int, now: float, priority: Priority
    ) -> dict[str, Any]:
        delivery = submission.deliveries[ordinal]
        delivery_id = _new_id(now)
        refused = delivery.refused
        return {
            "id": delivery_id,
            "spool_id": spool_id,
            "ordinal": ordinal,
            "target": delivery.target.value,
            "destination": _destination(delivery),
            "recipient": self._seal(
                delivery_id,
                {
                    "recipient": delivery.recipient,
                    "notify": delivery.notify,
                    "original_recipient": delivery.original_recipient,
                },
            ),
            "message_id": submission.message_id or f"<{draw(16).hex()}@{submission.message_id_domain}>",
            "state": READY if refused is None else DeliveryState.FAILED.value,
            "attempts": 0,
            "due": now,
            "lease": None,
            "prepared_blob": None,
            "facts": "{}",
            "code": "" if refused is None else refused.refusal.code,
            "detail": "" if refused is None else printable(refused.detail),
            "ended_at": None if refused is None else now,
            "reported": False,
            "priority": priority.value,
            "held_at": None,
        }

    def _step(
        self, spool_id: str, delivery_id: str, at: float, kind: str, code: str = "", detail: str = ""
    ) -> dict[str, Any]:
        return {
            "spool_id": spool_id,
            "delivery_id": delivery_id,
            "at": at,
            "node": self._node,
            "kind": kind,
            "code": code,
            "detail": printable(detail),
        }

    def _seal(self, row_id: str, values: Mapping[str, object]) -> bytes:
        return self._vault.seal(msgspec.json.encode(values), b"mta:" + row_id.encode())


def _new_id(now: float) -> str:
    """32 hexadecimal digits that grow with time, so that new rows are neighbours in the index."""
    return f"{int(now * 1000):012x}{draw(10).hex()}"


def _destination(delivery: NewDelivery) -> str:
    """What was refused goes nowhere, and its recipient need not be an address: it may be a bare matricule."""
    return delivery.target.value if delivery.refused else destination_of(delivery.target, delivery.recipient)


def printable(text: str) -> str:
    """What a column for people may hold: at most 500 characters, none that moves a cursor."""
    return (text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text))[:500]
