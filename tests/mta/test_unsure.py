"""The connection breaks between COMMIT and its answer: what was kept is worked on soon, not when its lease is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mta.delivery import Duplicate
from mta.handover import HandOver
from mta.message import Delivered
from trust.store import metadata
from trust.store.database import Database, StoreUnavailableError

from .conftest import Clock, MakeSpool, submission


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


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
        *("attempt", "release", "attempt", "delivered")
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
