"""The connection breaks between COMMIT and its answer: what was kept is worked on soon, not when its lease is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import insert, select, update

from mta.delivery import Duplicate
from mta.handover import HandOver
from mta.message import Delivered
from mta.priority import Priority
from mta.tables import deliveries, held_destinations
from trust.store.database import Database, StoreUnavailableError

from .conftest import Clock, MakeSpool, submission


@pytest.fixture
def database(each_database: Database) -> Database:
    return each_database


@contextmanager
def unanswered_commits(database: Database) -> Iterator[None]:
    """They reach the database, and nobody hears of it."""
    dialect = database.engine.dialect
    commit = dialect.do_commit

    def lost(connection: object) -> None:
        commit(connection)  # type: ignore[arg-type]
        raise ConnectionResetError

    dialect.do_commit = lost  # type: ignore[method-assign]
    try:
        yield
    finally:
        del dialect.do_commit


def test_what_a_claim_leased_without_hearing_of_it_is_claimed_again(
    database: Database, make_spool: MakeSpool, clock: Clock
) -> None:
    spool = make_spool(clock=clock)
    spool.accept(submission("b@op2.example", "c@op2.example"))
    with unanswered_commits(database), pytest.raises(StoreUnavailableError):
        spool.claim(10, 1500)
    clock.now += 1
    leases = spool.claim(10, 1500)
    assert len(leases) == 2
    assert [spool.settle(lease, Delivered()) for lease in leases] == [True, True]
    assert [step.kind for step in spool.steps(leases[0].spool_id) if step.delivery_id == leases[0].delivery_id] == [
        *("attempt", "delivered")
    ]


def test_what_was_accepted_under_lease_without_hearing_of_it_is_claimed(
    database: Database, make_spool: MakeSpool, clock: Clock
) -> None:
    spool = make_spool(clock=clock)
    handover = HandOver(1500, lambda *_: True, lambda _: True, lambda: None, lambda: None)
    handover.open()
    handover.looked(True, ())
    spool.hand_over_to(handover)
    with unanswered_commits(database), pytest.raises(StoreUnavailableError):
        spool.accept(submission())
    assert handover.taken() == []
    assert isinstance(spool.accept(submission()), Duplicate), "the sender comes again"
    clock.now += 1
    (lease,) = spool.claim(10, 1500)
    assert spool.settle(lease, Delivered())
    assert spool.claim(10, 1500) == []


def test_a_commit_that_is_made_after_we_lost_the_connection(
    database: Database, make_spool: MakeSpool, clock: Clock
) -> None:
    """The server was still busy with it (a standby that answers late) when we looked for the first time."""
    spool = make_spool(clock=clock)
    kept = spool.accept(submission())
    (record,) = spool.deliveries(kept.spool_id)
    due = {"lease": None, "due": clock.now}
    with unanswered_commits(database), pytest.raises(StoreUnavailableError):
        spool.claim(10, 1500)
    late = database.read(lambda c: c.execute(select(deliveries.c.lease, deliveries.c.due)).one())
    database.transact(lambda c: c.execute(update(deliveries).values(lease="other:x", due=late.due)).rowcount)
    clock.now += 1
    assert spool.claim(10, 1500) == []
    database.transact(lambda c: c.execute(update(deliveries).values(lease=late.lease, due=late.due)).rowcount)
    clock.now += 10
    (lease,) = spool.claim(10, 1500)
    assert lease.delivery_id == record.delivery_id
    clock.now += 1
    assert spool.claim(10, 1500) == [], "the new lease is not taken for the old one"
    database.transact(lambda c: c.execute(update(deliveries).values(**due)).rowcount)


def test_what_could_not_be_given_back_is_given_back_later(
    database: Database, make_spool: MakeSpool, clock: Clock
) -> None:
    """Else it would wait until its lease is over, 25 minutes, because the database was away for a second."""
    spool = make_spool(clock=clock)
    spool.accept(submission("b@op2.example", "c@op2.example"))
    first, second = spool.claim(10, 1500)
    dialect = database.engine.dialect

    def refused(_: object) -> None:
        raise ConnectionResetError

    dialect.do_commit = refused  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailableError):
        spool.release([first])
    del dialect.do_commit
    clock.now += 1
    (again,) = spool.claim(10, 1500)
    assert again.delivery_id == first.delivery_id
    assert spool.settle(second, Delivered()), "what was claimed with it is worked on all the while"


def test_many_at_once_are_freed_at_once(database: Database, make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    handover = HandOver(1500, lambda *_: True, lambda _: True, lambda: None, lambda: None)
    handover.open()
    handover.looked(True, ())
    spool.hand_over_to(handover)
    with unanswered_commits(database):
        futures = [spool.begin_accept(submission(key=str(n))) for n in range(600)]
        assert all(isinstance(each.exception(), StoreUnavailableError) for each in futures)
    clock.now += 1
    assert len(spool.claim(1000, 1500)) == 500
    assert len(spool.claim(1000, 1500)) == 100


def test_one_probe_and_what_is_held_on_both_databases(database: Database, make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    for n in range(5):
        spool.accept(submission("b@down.example", key=f"down{n}"))
    urgent = spool.accept(submission("b@down.example", key="urgent", priority=Priority.URGENT))
    spool.accept(submission("b@lost.example", key="lost"))
    spool.accept(submission("b@held.example", key="held"))
    for n in range(3):
        spool.accept(submission("b@op2.example", key=f"op2{n}"))
    held = {"destination": "smtp:held.example", "held_at": 0.0, "sealed": b""}
    database.transact(lambda c: c.execute(insert(held_destinations).values(**held)).rowcount)
    once = ["smtp:down.example", "smtp:lost.example", "smtp:held.example", "smtp:nothing.example"]
    leases = spool.claim(50, 60, once=once)
    assert Counter(each.destination for each in leases) == {
        "smtp:down.example": 1, "smtp:lost.example": 1, "smtp:op2.example": 3,
    }  # fmt: skip
    assert urgent.spool_id in {each.spool_id for each in leases}, "the first in line"
    ids = [each.delivery_id for each in leases]
    assert spool.holds(ids) == ({"smtp:held.example"}, set())
    waits = deliveries.c.id == ids[0]
    database.transact(lambda c: c.execute(update(deliveries).where(waits).values(held_at=1.0)).rowcount)
    assert spool.holds(ids) == ({"smtp:held.example"}, {ids[0]})
    spool.release(leases)
    assert {step.kind for each in leases[1:] for step in spool.steps(each.spool_id)} == {"accept"}
    assert len(spool.claim(50, 60)) == 9
    assert spool.claim(50, 60, once=once) == []


def test_where_many_are_probed_what_works_is_claimed_as_well(
    database: Database, make_spool: MakeSpool, clock: Clock
) -> None:
    spool = make_spool(clock=clock)
    names = [f"d{n}.example" for n in range(40)]
    for name in names:
        spool.accept(submission(f"b@{name}", key=name))
    for n in range(20):
        spool.accept(submission("b@op2.example", key=str(n)))
    leases = spool.claim(20, 60, once=[f"smtp:{name}" for name in names])
    assert Counter(each.destination == "smtp:op2.example" for each in leases) == {True: 10, False: 10}


def test_a_suspect_of_a_destination_that_is_probed_is_its_probe(
    database: Database, make_spool: MakeSpool, clock: Clock
) -> None:
    """Left out, the only one that waits for it would wait for ever: nothing would find out that it is back."""
    spool = make_spool(clock=clock)
    spool.accept(submission(key="a"))
    for _ in range(2):
        assert len(spool.claim(10, 60)) == 1
        assert spool.recover() == 1
        clock.now += 60
    spool.accept(submission(key="b"))
    (lease,) = spool.claim(10, 60, once=["smtp:op2.example"])
    assert lease.breakdowns == 2
