"""How long a delivery is tried, also where nobody tries it and where an operator gives it another chance."""

from __future__ import annotations

import pytest

from mta import refusals
from mta.delivery import Accepted, Lease
from mta.message import Deferred, DeliveryState, Origin, TargetKind
from mta.queue import Actor, Queue
from mta.schedule import RetrySchedule
from mta.spool import Spool
from smime.refusals import KEY_UNAVAILABLE
from trust.journal import Journal
from trust.refusals import Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import Clock, MakeSpool, submission

THERE = "smtp:op2.example"
ACTOR = Actor("A. Operator", "the partner is back")
UNREACHABLE = Deferred(Refused(refusals.UNREACHABLE, "connect: refused"))


@pytest.fixture
def spool(make_spool: MakeSpool, clock: Clock) -> Spool:
    return make_spool(clock=clock)


@pytest.fixture
def queue(spool: Spool, database: Database, blobs: BlobStore, vault: KeyVault, clock: Clock) -> Queue:
    return Queue(spool, database, blobs, vault, Journal(vault, "n1"), node="n1", clock=clock)


def accepted(spool: Spool, key: str = "k") -> str:
    kept = spool.accept(submission(key=key))
    assert isinstance(kept, Accepted)
    return spool.deliveries(kept.spool_id)[0].delivery_id


def only(spool: Spool) -> Lease:
    (lease,) = spool.claim(10, 60)
    return lease


def states(spool: Spool) -> dict[DeliveryState, int]:
    return {state: number for state, number in spool.counts().items() if number}


def test_what_nobody_tries_ends_when_its_time_is_over(spool: Spool, clock: Clock) -> None:
    accepted(spool, "old")
    tried = only(spool)
    assert spool.settle(tried, UNREACHABLE)
    clock.now += 60
    accepted(spool, "young")
    assert spool.expire([THERE]) == 0
    clock.now += 41
    assert spool.expire(["smtp:other.example"]) == 0
    assert spool.expire([THERE]) == 1
    (ended,) = spool.ended(10)
    assert (ended.delivery_id, ended.code) == (tried.delivery_id, "mta.expired")
    assert ended.detail == "mta.unreachable connect: refused"
    assert states(spool) == {DeliveryState.READY: 1, DeliveryState.FAILED: 1}


def test_what_was_collected_beside_its_reader_is_never_given_up(make_spool: MakeSpool, clock: Clock) -> None:
    schedule = RetrySchedule(pauses=(10.0,), jitter=0.0, lifetime=100.0, unending=frozenset((Origin.COLLECTED,)))
    spool = make_spool(clock=clock, schedule=schedule)
    for key, origin in (("collected", Origin.COLLECTED), ("sent", Origin.SUBMISSION)):
        assert isinstance(spool.accept(submission(key=key, origin=origin)), Accepted)
    clock.now += 1_000_000
    away = Deferred(Refused(KEY_UNAVAILABLE))
    for lease in spool.claim(10, 60):
        assert spool.settle(lease, away)
    assert states(spool) == {DeliveryState.READY: 1, DeliveryState.FAILED: 1}
    assert spool.expire([THERE]) == 0
    clock.now += 100
    assert only(spool).origin is Origin.COLLECTED


def test_what_is_under_lease_is_not_ended_beside_its_attempt(spool: Spool, clock: Clock) -> None:
    accepted(spool)
    clock.now += 200
    lease = only(spool)
    assert spool.expire([THERE]) == 0
    spool.release([lease])
    assert spool.expire([THERE]) == 1


@pytest.mark.parametrize("act", ["retry", "redirect"])
def test_an_operators_chance_has_all_its_time_again(spool: Spool, queue: Queue, clock: Clock, act: str) -> None:
    one = accepted(spool)
    clock.now += 99
    if act == "retry":
        assert spool.settle(only(spool), UNREACHABLE)
        spool.reported(spool.ended(10)[0])
        assert states(spool) == {DeliveryState.FAILED: 1}
        clock.now += 500
        (acted,) = queue.retry([one], ACTOR)
    else:
        acted = queue.redirect(one, "c@op2.example", TargetKind.SMTP, ACTOR)
    assert acted.refused is None
    clock.now += 5
    assert spool.expire([THERE]) == 0, "its destination rests, and it waits for it"
    assert spool.settle(only(spool), UNREACHABLE)
    assert states(spool) == {DeliveryState.READY: 1}, "one refusal does not end it"
    clock.now += 96
    assert spool.expire([THERE]) == 1
    assert states(spool) == {DeliveryState.FAILED: 1}


def test_what_was_held_for_longer_than_its_time_has_one_try(spool: Spool, queue: Queue, clock: Clock) -> None:
    one = accepted(spool)
    queue.hold([one], ACTOR)
    clock.now += 500
    queue.release([one], ACTOR)
    assert spool.expire([THERE]) == 0
    assert spool.settle(only(spool), UNREACHABLE)
    assert states(spool) == {DeliveryState.FAILED: 1}
