"""What is kept how long, what the purge takes and leaves, and that it may die anywhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, insert, select

from mta import refusals, tables
from mta.breakdowns import note
from mta.delivery import Accepted, Duplicate
from mta.message import Deferred, Delivered, DeliveryState, Failed
from mta.queue import Actor, Queue
from mta.retention import DAY, Batch, Periods, Retention, What
from mta.spool import Spool
from mta.tables import awaited_receipts, deliveries, messages, purged_names, steps
from tests.support.postgresql import PostgresServer
from tests.support.private import until
from trust.journal import Journal
from trust.refusals import Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.store.orphans import GRACE_SECONDS, OrphanCollector
from trust.vault import KeyVault

from .conftest import Clock, MakeSpool, submission

NO = Failed(Refused(refusals.REMOTE_REFUSED, "RCPT: 550 no"))
PERIODS = Periods()


@dataclass
class House:
    spool: Spool
    retention: Retention
    queue: Queue
    database: Database
    blobs: BlobStore
    vault: KeyVault
    clock: Clock

    def accepted(self, *recipients: str, key: str = "k", **more: Any) -> str:
        kept = self.spool.accept(submission(*recipients, key=key, **more))
        assert isinstance(kept, Accepted)
        return kept.spool_id

    def carried(self, *recipients: str, key: str = "k", outcome: Any = None, **more: Any) -> str:
        """Accepted, prepared, ended and reported."""
        spool_id = self.accepted(*recipients, key=key, **more)
        for lease in self.spool.claim(50, 60):
            self.spool.keep_prepared(lease, b"prepared " + key.encode(), {})
            self.spool.settle(lease, outcome or Delivered())
        for ended in self.spool.ended(100):
            self.spool.reported(ended)
        return spool_id

    def purge(self) -> dict[What, int]:
        """A whole round."""
        while self.retention.turn().more:
            pass
        return self.retention.counts()

    def later(self, seconds: float) -> dict[What, int]:
        self.clock.now += seconds
        return self.purge()

    def number(self, table: Any) -> int:
        found = self.database.read(lambda connection: connection.scalar(select(func.count()).select_from(table)))
        return int(found or 0)

    def blob_ids(self) -> set[str]:
        return {blob for blob, _ in self.blobs.ids()}

    def named(self) -> set[str]:
        """Blobs that rows name."""
        columns = (messages.c.content_blob, deliveries.c.prepared_blob)

        def read(connection: Connection) -> set[str]:
            return {blob for column in columns for blob in connection.scalars(select(column)) if blob}

        return self.database.read(read)

    def again(self, **options: Any) -> Retention:
        """As a new process makes it."""
        return Retention(self.database, self.blobs, self.vault, PERIODS, node="n1", clock=self.clock, **options)


@pytest.fixture
def database(each_database: Database) -> Database:
    """The purge is the same on both."""
    return each_database


@pytest.fixture
def house(database: Database, blobs: BlobStore, vault: KeyVault, make_spool: MakeSpool, clock: Clock) -> House:
    spool = make_spool(clock=clock)
    retention = Retention(database, blobs, vault, PERIODS, node="n1", clock=clock)
    queue = Queue(spool, database, blobs, vault, Journal(vault, "n1"), node="n1", clock=clock)
    return House(spool, retention, queue, database, blobs, vault, clock)


def kinds(house: House, spool_id: str) -> list[tuple[str, str]]:
    return [(step.kind, step.detail) for step in house.spool.steps(spool_id) if step.kind == "purged"]


# What goes when


def test_content_goes_first_then_the_trace_then_the_key(house: House) -> None:
    spool_id = house.carried("b@op2.example", "c@op2.example", external_id="MSG1", reply=b"MSA|AA|1")
    names = [each.message_id for each in house.spool.deliveries(spool_id)]
    assert len(house.blob_ids()) == 3
    assert house.later(PERIODS.content - 1)[What.CONTENT] == 0
    assert house.later(2)[What.CONTENT] == 1
    assert house.blob_ids() == set()
    assert kinds(house, spool_id) == [("purged", "content")]
    assert [each.recipient for each in house.spool.deliveries(spool_id)] == ["b@op2.example", "c@op2.example"]

    states = house.spool.gauges().states
    assert house.later(PERIODS.trace - PERIODS.content)[What.TRACE] == 1
    assert house.number(deliveries) == house.number(steps) == 0
    for name in ("MSG1", *names):
        assert house.spool.find(name) == []
        assert house.spool.find_purged(name) == [spool_id]
    assert house.spool.find_purged("another") == []
    record = house.spool.message(spool_id)
    assert record is not None and record.purged_at == house.clock.now and record.external_id == ""
    assert house.spool.accept(submission()) == Duplicate(spool_id, b"MSA|AA|1"), "a repeat is still a repeat"
    assert house.spool.gauges().states == states, "what has ended has ended"

    assert house.later(PERIODS.key - PERIODS.trace)[What.KEY] == 1
    assert house.number(messages) == house.number(purged_names) == 0
    assert isinstance(house.spool.accept(submission()), Accepted)
    assert house.retention.counts() == {What.CONTENT: 1, What.TRACE: 1, What.KEY: 1, What.AWAITED: 0}


def test_a_new_process_counts_what_was_purged_before_it(house: House, make_spool: MakeSpool) -> None:
    house.carried(key="1")
    house.carried(key="2", outcome=NO)
    house.later(PERIODS.trace + 1)
    house.carried(key="3")
    states = make_spool(clock=house.clock).gauges().states
    assert (states[DeliveryState.DELIVERED], states[DeliveryState.FAILED]) == (2, 1)


def test_nothing_of_a_person_is_left_when_the_trace_is_gone(house: House) -> None:
    spool_id = house.carried("279035121518989@patient.example", external_id="MSG1")
    house.later(PERIODS.trace + 1)

    def dump(connection: Connection) -> str:
        return str([connection.execute(select(table)).all() for table in (messages, purged_names)])

    left = house.database.read(dump)
    assert spool_id in left
    assert "MSG1" not in left and "example" not in left


def test_the_content_of_what_failed_is_kept_longer(house: House) -> None:
    failed = house.carried(key="1", outcome=NO)
    house.carried(key="2")
    assert house.later(PERIODS.content + 1)[What.CONTENT] == 1
    assert kinds(house, failed) == []
    assert house.later(PERIODS.failed_content - PERIODS.content)[What.CONTENT] == 2


def test_what_has_not_ended_or_was_not_reported_stays_whole(house: House) -> None:
    held = house.carried(key="3")
    house.accepted("b@op2.example", key="1")
    (lease,) = house.spool.claim(1, 60)
    house.spool.settle(lease, Deferred(Refused(refusals.UNREACHABLE)))
    house.accepted(key="unreported")
    for each in house.spool.claim(5, 60):
        house.spool.settle(each, Delivered())
    (delivery,) = house.spool.deliveries(held)
    house.queue.hold([delivery.delivery_id], Actor("a", "an inquiry"))
    before = house.named()
    assert not any(house.later(10 * PERIODS.key).values())
    assert house.named() == before == house.blob_ids()
    assert house.number(messages) == 3
    house.queue.release([delivery.delivery_id], Actor("a", "the inquiry is over"))
    assert house.purge()[What.KEY] == 1


def test_one_recipient_who_waits_keeps_the_message(house: House) -> None:
    spool_id = house.accepted("b@op2.example", "c@op2.example")
    (lease, other) = house.spool.claim(2, 60)
    house.spool.settle(lease, Delivered())
    for ended in house.spool.ended(5):
        house.spool.reported(ended)
    assert not any(house.later(PERIODS.content + 1).values())
    house.spool.settle(other, Delivered())
    for ended in house.spool.ended(5):
        house.spool.reported(ended)
    assert house.purge()[What.CONTENT] == 1
    assert kinds(house, spool_id)


def test_a_receipt_that_is_awaited_keeps_the_content_until_it_is_awaited_no_longer(house: House) -> None:
    spool_id = house.carried(outcome=Delivered(reports=True))
    assert house.number(awaited_receipts) == 1
    assert not any(house.later(PERIODS.content + 1).values())
    counted = house.later(PERIODS.awaited - PERIODS.content)
    assert (counted[What.AWAITED], counted[What.CONTENT]) == (1, 1)
    assert [detail for _, detail in kinds(house, spool_id)] == ["awaited", "content"]


def test_whatever_hangs_on_a_delivery_goes_with_it(house: House) -> None:
    """Also in tables that others add: found by their foreign keys."""
    spool_id = house.carried(outcome=Delivered(reports=True))
    (delivery,) = house.spool.deliveries(spool_id)

    def hang(connection: Connection) -> None:
        note(connection, delivery.delivery_id, 1, 0)
        notice = {"delivery_id": delivery.delivery_id, "notice": "x", "said": "delivered", "at": 0.0}
        connection.execute(insert(tables.notices), notice)
        decided = {"delivery_id": delivery.delivery_id, "held_at": 0.0, "state": "released"}
        connection.execute(insert(tables.quarantine), decided)

    house.database.transact(hang)
    assert house.later(PERIODS.trace + 1)[What.TRACE] == 1
    for table in (tables.notices, tables.quarantine, tables.breakdowns, awaited_receipts, deliveries):
        assert house.number(table) == 0


def test_what_was_parked_and_is_opened_again_is_not_purged_under_it(house: House) -> None:
    """The condition is asked again in the transaction."""
    spool_id = house.carried(outcome=NO)
    (delivery,) = house.spool.deliveries(spool_id)
    house.clock.now += PERIODS.failed_content + 1
    opened = []

    def reopen(*_: object) -> None:
        if not opened:
            opened.append(house.queue.retry([delivery.delivery_id], Actor("a", "now")))

    with at_the_transaction(house.database, reopen):
        assert not any(house.purge().values())
    assert opened[0][0].refused is None
    (lease,) = house.spool.claim(1, 60)
    assert house.spool.prepared(lease)


def test_a_transaction_that_had_to_be_begun_again_takes_only_what_is_over_then(house: House) -> None:
    """Another node stood in the way of the first; meanwhile somebody opened the delivery again."""
    spool_id = house.carried(outcome=NO)
    (delivery,) = house.spool.deliveries(spool_id)
    house.clock.now += PERIODS.failed_content + 1
    whole, opened = house.database.transact, []

    def transact(function: Any) -> Any:
        if "purge" in function.__qualname__ and not opened:
            with house.database.engine.connect() as connection, connection.begin() as lost:
                function(connection)
                lost.rollback()
            opened.append(house.queue.retry([delivery.delivery_id], Actor("a", "now")))
        return whole(function)

    house.database.transact = transact  # type: ignore[method-assign]
    try:
        assert not any(house.purge().values())
    finally:
        del house.database.transact  # type: ignore[method-assign]
    (lease,) = house.spool.claim(1, 60)
    assert house.spool.prepared(lease)


@pytest.mark.parametrize("act", ["retry", "hold"])
def test_who_opens_or_holds_it_on_another_node_is_waited_for(
    house: House, postgresql: PostgresServer, act: str, vault: KeyVault
) -> None:
    """And the other way round. On SQLite one transaction comes after the other."""
    if house.database.engine.dialect.name != "postgresql":
        return
    spool_id = house.carried(outcome=NO)
    (delivery,) = house.spool.deliveries(spool_id)
    house.clock.now += PERIODS.failed_content + 1
    with closing(Database(house.database.engine.url.render_as_string(hide_password=False))) as other:
        queue = Queue(house.spool, other, house.blobs, vault, Journal(vault, "n2"), node="n2", clock=house.clock)
        decided, go_on = threading.Event(), threading.Event()
        swear = queue._swear

        def slowly(*arguments: Any) -> str:
            decided.set()
            assert go_on.wait(10)
            return swear(*arguments)

        queue._swear = slowly  # type: ignore[method-assign]
        with ThreadPoolExecutor(2) as threads:
            acting = threads.submit(getattr(queue, act), [delivery.delivery_id], Actor("a", "now"))
            assert decided.wait(10)
            purging = threads.submit(house.purge)
            until(lambda: waiting_for_a_lock(postgresql, other), 10, "the purge waits")
            go_on.set()
            (acted,) = acting.result()
            assert acted.refused is None and not acted.note
            assert not any(purging.result().values())
    assert house.spool.content(house.spool.ended_of(spool_id)[0] if act == "hold" else house.spool.claim(1, 60)[0])


def waiting_for_a_lock(postgresql: PostgresServer, database: Database) -> bool:
    found = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return postgresql.execute(found, database.engine.url.database or "") != "0"


@contextmanager
def at_the_transaction(database: Database, call: Callable[..., None]) -> Iterator[None]:
    """Between the purge's look and its transaction."""
    whole = database.transact

    def transact(function: Any) -> Any:
        if "purge" in function.__qualname__:
            call()
        return whole(function)

    database.transact = transact  # type: ignore[method-assign]
    try:
        yield
    finally:
        del database.transact  # type: ignore[method-assign]


def test_periods_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"content": 100 * DAY},
        {"key": DAY},
        {"content": 0},
        {"awaited": 400 * DAY},
        {"failed_content": DAY},
    ):
        with pytest.raises(ValueError, match="periods"):
            Periods(**wrong)


# Dying anywhere


class KilledError(BaseException):
    pass


def test_killed_before_any_statement_and_any_blob_it_goes_on(house: House) -> None:
    """The n-th statement or deletion is never carried out; a new process ends what was begun."""
    for n in range(4):
        house.carried("b@op2.example", "c@op2.example", key=str(n), external_id=f"MSG{n}")
    house.carried(key="relayed", outcome=Delivered(reports=True))
    house.clock.now += PERIODS.content + 1

    deaths = 0
    for round_ in ("content", "trace"):
        if round_ == "trace":
            house.clock.now += PERIODS.trace
            house.accepted(key="young")
        for nth in range(1, 200):
            retention = house.again(batch=2)
            with dying(house, nth) as died:
                try:
                    while retention.turn().more:
                        pass
                except KilledError:
                    deaths += 1
                except Exception as error:  # the database fails the batch that was under way
                    assert died, error
                    deaths += 1
            assert house.named() <= house.blob_ids(), f"death {nth}: a row names a blob that is gone"
            if not died:
                break
        else:
            pytest.fail("it never ends")
    assert deaths > 15
    assert house.retention.counts() == {What.CONTENT: 5, What.TRACE: 5, What.KEY: 0, What.AWAITED: 1}
    assert house.number(purged_names) == 4 * 3 + 1
    assert house.number(deliveries) == house.number(messages) - 5 == 1
    orphans = house.blob_ids() - house.named()
    assert len(orphans) <= deaths * 6, "what a death leaves is a batch at most, and is swept"
    columns = (messages.c.content_blob, deliveries.c.prepared_blob)
    sweeper = OrphanCollector(house.database, house.blobs, columns, clock=lambda: time.time() + 2 * GRACE_SECONDS)
    assert sweeper.sweep(threading.Event(), however_many=True).deleted == len(orphans)
    assert house.blob_ids() == house.named()


@contextmanager
def dying(house: House, nth: int) -> Iterator[list[int]]:
    """The process ends before its `nth` writing statement or deletion of a blob."""
    count, died = [0], []
    whole = house.blobs.delete

    def step() -> None:
        count[0] += 1
        if count[0] == nth:
            died.append(nth)
            raise KilledError

    def statement(_c: object, _cursor: object, text: str, _p: object, _x: object, _many: bool) -> None:
        if text.startswith(("UPDATE", "INSERT", "DELETE")):
            step()

    def delete(blob: str) -> None:
        step()
        whole(blob)

    event.listen(house.database.engine, "before_cursor_execute", statement)
    house.blobs.delete = delete  # type: ignore[method-assign]
    try:
        yield died
    finally:
        event.remove(house.database.engine, "before_cursor_execute", statement)
        del house.blobs.delete  # type: ignore[method-assign]


def test_a_database_that_fails_is_asked_again_from_the_oldest(house: House) -> None:
    house.carried()
    house.clock.now += PERIODS.content + 1

    def broken(_: object) -> None:
        raise OSError("disk full")

    house.database.read, whole = broken, house.database.read  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="disk full"):
        house.retention.turn()
    house.database.read = whole  # type: ignore[method-assign]
    assert house.purge()[What.CONTENT] == 1


# Beside the traffic


def carried_before(house: House, number: int) -> None:
    """Delivered mail straight into the tables, two steps and one delivery each."""
    at = house.clock.now

    def write(connection: Connection, first: int, end: int) -> None:
        envelope = house.vault.seal(b"{}", b"mta:x")
        names = [f"{int(at * 1000):012x}{n:020d}" for n in range(first, end)]
        message = {"node": "n1", "origin": "submission", "envelope": envelope, "content_type": "message/rfc822"}
        message |= {"size": 1, "accepted_at": at, "reply": b"", "external_id": "", "peer_pseudonym": ""}
        rows = [message | {"id": n, "dedup_key": n, "content_blob": n[:12] + n[-20:]} for n in names]
        connection.execute(insert(messages), rows)
        delivery = {"ordinal": 0, "target": "smtp", "destination": "smtp:a.example", "recipient": envelope}
        delivery |= {"state": "delivered", "attempts": 1, "due": at, "facts": "{}", "code": "", "detail": ""}
        delivery |= {"reported": True, "ended_at": at}
        connection.execute(
            insert(deliveries),
            [delivery | {"id": n, "spool_id": n, "message_id": f"<{n}@x>"} for n in names],
        )
        step = {"delivery_id": "", "at": at, "node": "n1", "code": "", "detail": ""}
        for kind in ("accept", "delivered"):
            connection.execute(insert(steps), [step | {"spool_id": n, "kind": kind} for n in names])

    for first in range(0, number, 10_000):
        house.database.transact(lambda connection, first=first: write(connection, first, min(first + 10_000, number)))


def test_purging_thousands_takes_seconds_and_stops_no_acceptance(house: House) -> None:
    """A hundred thousand of both kinds takes a minute of processor time (`test_a_hundred_thousand`)."""
    measure(house, 3_000)


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_a_hundred_thousand(house: House) -> None:
    measure(house, 100_000)


def measure(house: House, number: int) -> None:
    carried_before(house, number)
    house.clock.now += PERIODS.trace + 1
    slowest, stop = [0.0], threading.Event()
    accepted = [0]

    def accept() -> None:
        while not stop.is_set():
            begun = time.monotonic()
            house.spool.accept(submission(key=f"new {accepted[0]}"))
            slowest[0] = max(slowest[0], time.monotonic() - begun)
            accepted[0] += 1
            time.sleep(0.002)

    beside = threading.Thread(target=accept)
    beside.start()
    begun, wall = time.process_time(), time.monotonic()
    try:
        counted = house.purge()
    finally:
        wall = time.monotonic() - wall
        stop.set()
        beside.join()
    spent = time.process_time() - begun
    assert counted[What.TRACE] == counted[What.CONTENT] == number
    print(
        f"{number} purged twice in {spent:.1f} s of processor time beside {accepted[0]} accepted, "
        f"the slowest in {slowest[0]:.3f} s"
    )
    assert spent < number / 500, "processor seconds"
    assert accepted[0] > 20
    # One transaction for all would make somebody wait for nearly the whole of it; a busy machine makes both longer.
    assert slowest[0] < max(2.0, wall / 2)


def test_a_turn_is_small(house: House) -> None:
    for n in range(7):
        house.carried(key=str(n))
    house.clock.now += PERIODS.content + 1
    retention = house.again(batch=3)
    found = []
    while (batch := retention.turn()).more:
        found.append(batch)
    assert [each.purged for each in found if each.purged] == [3, 3, 1]
    assert retention.turn() == Batch(0, more=True), "the next round begins at the oldest"
