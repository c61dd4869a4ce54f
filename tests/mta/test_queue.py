"""What an operator does to deliveries, and what a worker does meanwhile."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from mta import breakdowns as brake
from mta import queue_refusals as why
from mta import refusals
from mta.breakdowns import BREAKDOWNS
from mta.delivery import Accepted, Lease, NewDelivery, Submission
from mta.message import Deferred, Delivered, DeliveryState, Failed, Message, Origin, Outcome, Phase, TargetKind
from mta.queue import Acted, Actor, Queue
from mta.queue_listing import CursorError, Wanted
from mta.spool import Spool
from mta.tables import deliveries, held_destinations, messages
from mta.worker import Worker
from tests.support.private import until
from trust.journal import Journal, JournalEntry
from trust.refusals import Refused
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import Clock, MakeSpool, submission

ACTOR = Actor("alice (uid 1001)", "maintenance of the partner")
UNREACHABLE = Refused(refusals.UNREACHABLE, "connect: refused")


@dataclass
class House:
    spool: Spool
    queue: Queue
    journal: Journal
    database: Database
    blobs: BlobStore
    clock: Clock

    def accepted(self, *recipients: str, key: str = "k", **more: Any) -> list[str]:
        kept = self.spool.accept(submission(*recipients, key=key, **more))
        assert isinstance(kept, Accepted)
        return [each.delivery_id for each in self.spool.deliveries(kept.spool_id)]

    def row(self, delivery_id: str) -> Any:
        query = select(deliveries).where(deliveries.c.id == delivery_id)
        return self.database.read(lambda connection: connection.execute(query).one())

    def kinds(self, delivery_id: str) -> list[str]:
        steps = self.spool.steps(self.row(delivery_id).spool_id)
        return [step.kind for step in steps if step.delivery_id == delivery_id]

    def sworn(self) -> list[JournalEntry]:
        stored = self.database.read(self.journal.entries)
        return [each.entry for each in reversed(stored) if each.entry is not None]

    def fail(self, delivery_id: str) -> None:
        """At its first attempt, at the destination's word."""
        (lease,) = [each for each in self.spool.claim(50, 60) if each.delivery_id == delivery_id]
        assert self.spool.settle(lease, Failed(Refused(refusals.REMOTE_REFUSED, "RCPT: 550 no")))

    def due_in(self, delivery_id: str, seconds: float) -> None:
        later = update(deliveries).where(deliveries.c.id == delivery_id).values(due=self.clock.now + seconds)
        self.database.transact(lambda connection: connection.execute(later).rowcount)

    def report(self) -> None:
        for ended in self.spool.ended(100):
            self.spool.reported(ended)

    def tell(self, delivery_id: str, key: str = "dsn:{}:failed") -> None:
        self.spool.accept(submission("a@labo.example", key=key.format(delivery_id), origin=Origin.SYSTEM))


@pytest.fixture
def database(each_database: Database) -> Database:
    """What an operator does is the same on both."""
    return each_database


@pytest.fixture
def house(database: Database, blobs: BlobStore, vault: KeyVault, make_spool: MakeSpool, clock: Clock) -> House:
    spool = make_spool(clock=clock)
    journal = Journal(vault, "n1")
    queue = Queue(spool, database, blobs, vault, journal, node="n1", clock=clock)
    return House(spool, queue, journal, database, blobs, clock)


def refusal_of(acted: list[Acted] | Acted) -> object:
    (one,) = acted if isinstance(acted, list) else [acted]
    return None if one.refused is None else one.refused.refusal


def test_nobody_acts_without_a_name_and_a_reason() -> None:
    for by, reason in (("", "x"), ("x", ""), (" ", "x"), ("x", "\n")):
        with pytest.raises(ValueError):
            Actor(by, reason)


def test_what_is_held_is_not_attempted_and_goes_on_when_released(house: House) -> None:
    one, other = house.accepted("b@op2.example", "c@op2.example")
    assert refusal_of(house.queue.hold([one], ACTOR)) is None
    assert [lease.delivery_id for lease in house.spool.claim(10, 60)] == [other]
    assert house.queue.counts() == {"waiting": 1, "held": 1, "failed": 0, "parked": 0}
    assert house.spool.gauges().states[DeliveryState.READY] == 2, "what is held has not ended"
    assert house.spool.next_due(holding=[other]) is None
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.HELD
    assert refusal_of(house.queue.release([one], ACTOR)) is None
    assert [lease.delivery_id for lease in house.spool.claim(10, 60)] == [one]
    assert house.kinds(one) == ["held", "freed", "attempt"]
    assert refusal_of(house.queue.release([one], ACTOR)) is why.NOT_HELD


def test_every_act_stands_in_the_journal_and_the_trace_says_where(house: House) -> None:
    one, other = house.accepted("b@op2.example", "c@op2.example")
    house.queue.hold([one], ACTOR)
    house.queue.release([one], ACTOR)
    house.due_in(one, 60)
    house.queue.retry([one], ACTOR)
    house.queue.redirect(one, "d@op3.example", TargetKind.SMTP, ACTOR)
    house.queue.expire([one], ACTOR)
    house.queue.drop([other], ACTOR)
    house.queue.hold_destination("smtp:op2.example", ACTOR)
    house.queue.release_destination("smtp:op2.example", ACTOR)
    sworn = house.sworn()
    assert [entry.action.removeprefix("queue.") for entry in sworn] == [
        *("hold", "release", "retry", "redirect", "expire", "drop", "hold-destination", "release-destination")
    ]
    assert {(entry.actor, entry.reason, entry.outcome) for entry in sworn} == {(ACTOR.by, ACTOR.reason, "done")}
    assert [entry.object_id for entry in sworn] == [one] * 5 + [other] + ["smtp:op2.example"] * 2
    assert "op3" not in str(sworn[3].details), "an address may hold a health identity"
    details = [step.detail for step in house.spool.steps(house.row(one).spool_id) if step.delivery_id == one]
    assert details == [f"journal n1 {n}" for n in range(1, 6)]


def test_an_act_that_is_not_written_to_the_journal_is_not_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = house.accepted()
    house.due_in(one, 60)
    before = house.row(one)

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(house.journal, "append", full)
    for act in (house.queue.hold, house.queue.retry, house.queue.expire, house.queue.drop):
        with pytest.raises(OSError, match="disk full"):
            act([one], ACTOR)
    with pytest.raises(OSError, match="disk full"):
        house.queue.hold_destination("smtp:op2.example", ACTOR)
    assert house.row(one) == before
    assert house.queue.held_destinations() == []
    house.clock.now += 60
    assert len(house.spool.claim(10, 60)) == 1


def test_what_is_refused_is_neither_done_nor_sworn_and_stops_no_other(house: House) -> None:
    one, other = house.accepted("b@op2.example", "c@op2.example")
    acted = house.queue.release([one, "0" * 32, other], ACTOR)
    assert [each.refused.refusal for each in acted if each.refused] == [why.NOT_HELD, why.UNKNOWN, why.NOT_HELD]
    acted = house.queue.hold([one, "0" * 32, one], ACTOR)
    assert [each.refused is None for each in acted] == [True, False]
    assert len(house.sworn()) == 1


# A worker at the same time


def test_an_attempt_under_way_is_not_decided_about_and_a_hold_counts_after_it(house: House) -> None:
    (one,) = house.accepted()
    (lease,) = house.spool.claim(10, 60)
    assert refusal_of(house.queue.expire([one], ACTOR)) is why.UNDER_WAY
    assert refusal_of(house.queue.drop([one], ACTOR)) is why.UNDER_WAY
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.UNDER_WAY
    assert refusal_of(house.queue.redirect(one, "d@op3.example", TargetKind.SMTP, ACTOR)) is why.UNDER_WAY
    (held,) = house.queue.hold([one], ACTOR)
    assert held.refused is None and held.note
    assert house.spool.settle(lease, Deferred(UNREACHABLE)), "the lease is still the worker's"
    house.clock.now += 50
    assert house.spool.claim(10, 60) == []
    assert refusal_of(house.queue.expire([one], ACTOR)) is None


def test_what_is_delivered_while_it_is_held_is_delivered(house: House) -> None:
    (one,) = house.accepted()
    (lease,) = house.spool.claim(10, 60)
    house.queue.hold([one], ACTOR)
    assert house.spool.settle(lease, Delivered())
    assert house.row(one).state == "delivered"
    assert refusal_of(house.queue.expire([one], ACTOR)) is why.ENDED


def test_our_own_lease_is_respected_even_when_a_clock_says_that_it_is_over(house: House) -> None:
    (one,) = house.accepted()
    (lease,) = house.spool.claim(10, 60)
    house.clock.now += 10_000
    assert refusal_of(house.queue.expire([one], ACTOR)) is why.UNDER_WAY
    assert house.spool.settle(lease, Delivered())


def test_the_lease_of_a_node_that_died_is_lost_with_it(house: House, make_spool: MakeSpool) -> None:
    (one,) = house.accepted()
    other = make_spool(node="n2", clock=house.clock)
    (lease,) = other.claim(10, 60)
    assert refusal_of(house.queue.expire([one], ACTOR)) is why.UNDER_WAY
    house.clock.now += 61
    assert refusal_of(house.queue.expire([one], ACTOR)) is None
    assert not other.settle(lease, Delivered()), "a stale lease settles nothing"
    assert house.row(one).state == "failed"


@pytest.mark.parametrize("act", ["expire", "drop", "redirect", "retry", "hold"])
def test_acts_race_workers_and_exactly_one_of_them_counts(house: House, act: str) -> None:
    """Sixteen threads claim and settle while sixteen act on the same deliveries."""
    ids = [house.accepted(key=f"k{n}")[0] for n in range(64)]
    settled: list[tuple[Lease, bool]] = []

    def work(_: int) -> None:
        for lease in house.spool.claim(8, 60):
            settled.append((lease, house.spool.settle(lease, Delivered())))

    def decide(delivery_id: str) -> Acted:
        if act == "redirect":
            return house.queue.redirect(delivery_id, "d@op3.example", TargetKind.SMTP, ACTOR)
        return getattr(house.queue, act)([delivery_id], ACTOR)[0]

    with ThreadPoolExecutor(16) as threads:
        working = threads.map(work, range(24))
        acted = list(threads.map(decide, ids))
        list(working)
    assert all(stood for _, stood in settled), "no act takes a lease from a worker"
    delivered = {lease.delivery_id for lease, _ in settled}
    done = {each.name for each in acted if each.refused is None}
    for delivery_id in ids:
        state = house.row(delivery_id).state
        if act in ("expire", "drop"):
            assert (delivery_id in done) != (state == "delivered")
        assert (state == "delivered") == (delivery_id in delivered)
    assert len(house.sworn()) == len(done)


def test_a_process_that_dies_with_a_held_delivery_under_lease_leaves_it_held(
    house: House, make_spool: MakeSpool
) -> None:
    (one,) = house.accepted()
    house.spool.claim(10, 60)
    house.queue.hold([one], ACTOR)
    again = make_spool(clock=house.clock)
    assert again.recover() == 1
    assert again.claim(10, 60) == []
    assert refusal_of(house.queue.release([one], ACTOR)) is None
    assert len(again.claim(10, 60)) == 1


# Retry now


def test_retry_does_not_wait_for_the_schedule(house: House) -> None:
    (one,) = house.accepted()
    (lease,) = house.spool.claim(10, 60)
    house.spool.settle(lease, Deferred(UNREACHABLE))
    assert house.spool.claim(10, 60) == []
    told: list[None] = []
    house.spool.listen(lambda: told.append(None))
    assert refusal_of(house.queue.retry([one], ACTOR)) is None
    assert told, "the worker is woken"
    house.clock.now += 0.001
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.ALREADY_DUE
    assert [each.attempts for each in house.spool.claim(10, 60)] == [1]


def parked(house: House) -> str:
    (one,) = house.accepted()
    for _ in range(BREAKDOWNS):
        (lease,) = house.spool.claim(10, 60)
        house.spool.settle(lease, Deferred(Refused(refusals.INTERNAL_ERROR, "Bug")))
        house.clock.now += 12
    assert house.row(one).state == "parked"
    return one


def test_what_was_parked_is_tried_again_when_nobody_was_told(house: House) -> None:
    one = parked(house)
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.BEING_TOLD
    house.report()
    assert refusal_of(house.queue.retry([one], ACTOR)) is None
    (lease,) = house.spool.claim(10, 60)
    assert lease.breakdowns == 0, "it starts afresh"
    house.spool.settle(lease, Delivered())
    assert house.row(one).state == "delivered"
    assert [each.delivery_id for each in house.spool.ended(10)] == [one], "its new end is reported"


def test_whose_sender_was_told_is_not_delivered_after_all_unless_the_sender_is_told_that_too(house: House) -> None:
    one = parked(house)
    house.tell(one, "dsn:{}:delayed")
    house.report()
    house.tell(one)
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.TOLD
    assert refusal_of(house.queue.retry([one], ACTOR, although_told=True)) is None
    (lease,) = [each for each in house.spool.claim(10, 60) if each.delivery_id == one]
    assert set(lease.notify.split(",")) == {"SUCCESS", "FAILURE"}


def test_a_warning_of_delay_is_no_end(house: House) -> None:
    one = parked(house)
    house.tell(one, "dsn:{}:delayed")
    house.tell(one, "dsn:{}:delayed:bare")
    house.report()
    assert refusal_of(house.queue.retry([one], ACTOR)) is None


@pytest.mark.parametrize(("told", "again"), [(("Z02",), True), (("Z02", "Z02:corrected"), False), (("Z01",), False)])
def test_a_system_is_told_otherwise_once_and_of_mail_only(house: House, told: tuple[str, ...], again: bool) -> None:
    (one,) = house.accepted(origin=Origin.MLLP)
    house.fail(one)
    house.report()
    for event in told:
        house.tell(one, f"zam:{{}}:{event}")
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.TOLD
    assert refusal_of(house.queue.retry([one], ACTOR, although_told=True)) is (None if again else why.TOLD)


def test_what_was_refused_at_acceptance_was_told_then(house: House) -> None:
    impossible = NewDelivery("b@op2.example", TargetKind.SMTP, Refused(refusals.MAILBOX_UNKNOWN))
    kept = house.spool.accept(
        Submission(
            origin=Origin.MLLP,
            sender="a@labo.example",
            peer="lis",
            content=b"MSH|",
            content_type="application/hl7-v2",
            deliveries=(impossible, NewDelivery("c@op2.example", TargetKind.SMTP)),
            dedup_key="x",
            message_id_domain="labo.example",
        )
    )
    house.report()
    assert isinstance(kept, Accepted)
    first = house.spool.deliveries(kept.spool_id)[0].delivery_id
    assert refusal_of(house.queue.retry([first], ACTOR)) is why.TOLD


def test_what_its_sender_sent_again_is_not_sent_twice(house: House) -> None:
    """As the door keeps a repeat for whom the first failed to reach."""
    (one,) = house.accepted()
    house.fail(one)
    house.report()
    key = sha256(f"k:again:{house.row(one).spool_id}".encode()).hexdigest()
    house.accepted(key=key)
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.SENT_AGAIN


def test_what_was_purged_is_not_tried_again(house: House) -> None:
    (one,) = house.accepted()
    house.fail(one)
    house.report()
    house.database.transact(lambda connection: connection.execute(update(messages).values(content_blob="")).rowcount)
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.CONTENT_PURGED


def test_what_was_delivered_is_not_tried_again(house: House) -> None:
    (one,) = house.accepted()
    house.spool.settle(house.spool.claim(1, 60)[0], Delivered())
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.ENDED


# Redirect


def test_a_redirected_delivery_is_prepared_anew_for_the_other(house: House) -> None:
    one, other = house.accepted("b@op2.example", "c@op2.example")
    leases = house.spool.claim(10, 60)
    for lease in leases:
        assert house.spool.keep_prepared(lease, b"for the keys of " + lease.recipient.encode(), {"suite": "x"})
        assert house.spool.settle(lease, Deferred(UNREACHABLE))
    old = house.row(one).prepared_blob
    acted = house.queue.redirect(one, "D+1@op3.example", TargetKind.SMTP, ACTOR)
    assert acted.refused is None and acted.note
    assert old not in {blob for blob, _ in house.blobs.ids()}, "the bytes for the other's keys are gone"
    (lease,) = house.spool.claim(10, 60)
    assert (lease.delivery_id, lease.recipient, lease.destination) == (one, "D+1@op3.example", "smtp:op3.example")
    assert lease.prepared_blob is None and dict(lease.facts) == {}
    assert lease.original_recipient == "rfc822;b@op2.example", "receipts name whom the sender wrote to"
    assert house.spool.content(lease)
    assert house.row(other).prepared_blob is not None
    house.spool.settle(lease, Deferred(UNREACHABLE))
    house.queue.redirect(one, "e@op2.example", TargetKind.MAILBOX, ACTOR)
    row = house.row(one)
    assert (row.target, row.destination) == ("mailbox", "mailbox")
    shown = house.queue.show(one)
    assert shown is not None and shown.original_recipient == "rfc822;b@op2.example", "the first one stays"


def test_what_came_protected_for_one_mailbox_goes_to_no_other(house: House) -> None:
    for origin in (Origin.OPERATOR, Origin.COLLECTED, Origin.SYSTEM):
        (one,) = house.accepted(key=origin.value, origin=origin, target=TargetKind.MAILBOX)
        for target in TargetKind:
            acted = house.queue.redirect(one, "d@op3.example", target, ACTOR)
            assert refusal_of(acted) is why.NOT_REDIRECTABLE
    (record,) = house.accepted(key="record", target=TargetKind.DOSSIER)
    assert refusal_of(house.queue.redirect(record, "d@op3.example", TargetKind.SMTP, ACTOR)) is why.NOT_REDIRECTABLE


def test_redirecting_what_is_sent_as_it_was_accepted_keeps_the_content(house: House) -> None:
    (one,) = house.accepted()

    def same(connection: Connection) -> int:
        blob = select(messages.c.content_blob).scalar_subquery()
        return connection.execute(update(deliveries).values(prepared_blob=blob)).rowcount

    house.database.transact(same)
    assert house.queue.redirect(one, "d@op3.example", TargetKind.SMTP, ACTOR).refused is None
    (lease,) = house.spool.claim(10, 60)
    assert house.spool.content(lease)


# Ends


def test_expire_tells_the_sender_and_drop_tells_nobody(house: House) -> None:
    one, other = house.accepted("b@op2.example", "c@op2.example")
    for lease in house.spool.claim(10, 60):
        house.spool.settle(lease, Deferred(UNREACHABLE))
    assert refusal_of(house.queue.expire([one], ACTOR)) is None
    assert refusal_of(house.queue.drop([other], ACTOR)) is None
    (ended,) = house.spool.ended(10)
    assert (ended.delivery_id, ended.delivered, ended.code) == (one, False, why.EXPIRED.code)
    assert ended.detail == "mta.unreachable connect: refused", "its last refusal stays to be told"
    assert house.row(other).code == why.DROPPED.code
    assert house.queue.counts()["failed"] == 2
    assert house.spool.gauges().states[DeliveryState.FAILED] == 2
    assert ACTOR.reason not in ended.detail


def test_what_a_system_was_promised_an_answer_about_is_not_dropped(house: House) -> None:
    (one,) = house.accepted(origin=Origin.MLLP)
    assert refusal_of(house.queue.drop([one], ACTOR)) is why.NOT_DROPPABLE
    assert refusal_of(house.queue.expire([one], ACTOR)) is None


def test_what_is_held_can_be_ended(house: House) -> None:
    (one,) = house.accepted()
    house.queue.hold([one], ACTOR)
    assert refusal_of(house.queue.expire([one], ACTOR)) is None
    assert house.row(one).held_at is None


# Destinations


def test_a_held_destination_waits_whatever_is_accepted_for_it(house: House) -> None:
    house.accepted("b@op2.example", key="1")
    acted = house.queue.hold_destination("smtp:op2.example", ACTOR)
    assert acted.refused is None
    (elsewhere,) = house.accepted("c@op3.example", key="2")
    (later,) = house.accepted("d@op2.example", key="3")
    assert [lease.delivery_id for lease in house.spool.claim(10, 60)] == [elsewhere]
    assert house.spool.next_due(holding=[elsewhere]) is None
    assert refusal_of(house.queue.retry([later], ACTOR)) is why.HELD
    (held,) = house.queue.held_destinations()
    assert (held.destination, held.by, held.reason) == ("smtp:op2.example", ACTOR.by, ACTOR.reason)
    assert [(lane.destination, lane.waiting, lane.held) for lane in house.queue.lanes()] == [
        ("smtp:op2.example", 2, True),
        ("smtp:op3.example", 1, False),
    ]
    assert house.queue.release_destination("smtp:op2.example", ACTOR).refused is None
    assert len(house.spool.claim(10, 60)) == 2
    assert refusal_of(house.queue.release_destination("smtp:op2.example", ACTOR)) is why.NOT_HELD


# Looking


def test_pages_show_everything_once(house: House) -> None:
    for n in range(23):
        house.accepted(f"x@op{n % 3}.example", key=str(n))
    found: list[str] = []
    after = ""
    while True:
        page = house.queue.page(Wanted(), 5, after)
        found += [each.delivery_id for each in page.deliveries]
        after = page.following
        if not after:
            break
    assert len(found) == len(set(found)) == 23
    assert len(house.queue.page(Wanted(destination="smtp:op1.example"), 50).deliveries) == 8


def test_filters_find_by_state_code_age_and_destination(house: House) -> None:
    one, other = house.accepted("b@op2.example", "c@op3.example")
    (lease, _) = house.spool.claim(10, 60)
    house.spool.settle(lease, Deferred(UNREACHABLE))
    house.clock.now += 100
    (young,) = house.accepted(key="young")

    def ids(**wanted: Any) -> set[str]:
        return {each.delivery_id for each in house.queue.page(Wanted(**wanted)).deliveries}

    assert ids() == {one, other, young}
    assert ids(code=refusals.UNREACHABLE.code) == {lease.delivery_id}
    assert ids(accepted_before=house.clock.now - 50) == {one, other}
    assert ids(destination="smtp:op3.example", accepted_before=house.clock.now - 50) == {other}
    house.queue.hold([young], ACTOR)
    assert ids(state="held") == {young} and ids() == {one, other}
    house.queue.expire([young], ACTOR)
    assert ids(state="failed") == ids(state="failed", code=why.EXPIRED.code) == {young}
    house.spool.claim(10, 60)
    assert ids(state="delivered") == set()
    with pytest.raises(ValueError):
        Wanted(state="nonsense")


@pytest.mark.parametrize("cursor", ["x", "bm8=", "W10=", "W1tdLCAxLCAyLCAzXQ==", "é"])
def test_a_cursor_that_no_page_gave_is_refused(house: House, cursor: str) -> None:
    with pytest.raises(CursorError):
        house.queue.page(Wanted(), 5, cursor)


def test_a_delivery_is_found_by_any_of_its_names(house: House) -> None:
    (one,) = house.accepted(external_id="MSG1", message_id="<m@labo.example>")
    for name in (one, house.row(one).spool_id, "MSG1", "<m@labo.example>", "m@labo.example"):
        assert house.queue.named(name) == [one]
    assert house.queue.named("nothing") == []
    shown = house.queue.show(one)
    assert shown is not None and (shown.sender, shown.recipient) == ("a@labo.example", "b@op2.example")
    assert house.queue.show("0" * 32) is None


# What the night brings


def test_what_was_dropped_before_any_attempt_can_be_taken_back(house: House) -> None:
    """Nobody was told: the wrong one was dropped, and that is all."""
    (one,) = house.accepted()
    house.clock.now += 5
    house.queue.drop([one], ACTOR)
    assert refusal_of(house.queue.retry([one], ACTOR)) is None
    assert [lease.delivery_id for lease in house.spool.claim(10, 60)] == [one]


def test_what_was_refused_at_acceptance_stays_refused(house: House) -> None:
    refused = NewDelivery("b@op2.example", TargetKind.SMTP, Refused(refusals.REMOTE_REFUSED))
    kept = house.spool.accept(replace(submission(), deliveries=(refused,)))
    assert isinstance(kept, Accepted)
    (one,) = [each.delivery_id for each in house.spool.deliveries(kept.spool_id)]
    house.report()
    house.clock.now += 5
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.TOLD


def test_a_suspect_that_was_ended_is_suspected_no_longer(house: House) -> None:
    for act in (house.queue.expire, house.queue.drop):
        (one,) = house.accepted(key=act.__name__)
        for _ in range(2):
            house.clock.now += 3600
            house.spool.claim(10, 60)
            house.spool.recover()
        house.clock.now += 60
        assert refusal_of(act([one], ACTOR)) is None
        assert house.database.read(brake.suspects) == []


def test_one_damaged_envelope_stops_no_other_act(house: House) -> None:
    one, other = house.accepted("b@op2.example", "c@op2.example")
    for each in (one, other):
        house.due_in(each, 60)
    garbage = update(deliveries).where(deliveries.c.id == one).values(recipient=b"garbage")
    house.database.transact(lambda connection: connection.execute(garbage).rowcount)
    acted = house.queue.expire([one, other], ACTOR)
    assert [each.refused and each.refused.refusal for each in acted] == [why.UNREADABLE, None]
    assert refusal_of(house.queue.redirect(one, "d@op3.example", TargetKind.SMTP, ACTOR)) is why.UNREADABLE
    shown = house.queue.show(one)
    assert shown is not None and shown.recipient == ""
    house.clock.now += 60
    assert house.spool.claim(10, 60) == [], "it is parked"
    assert refusal_of(house.queue.retry([one], ACTOR)) is why.UNREADABLE
    house.queue.hold_destination("smtp:op2.example", ACTOR)
    spoiled = update(held_destinations).values(sealed=b"garbage")
    house.database.transact(lambda connection: connection.execute(spoiled).rowcount)
    assert [(each.destination, each.by) for each in house.queue.held_destinations()] == [("smtp:op2.example", "")]


@pytest.mark.parametrize("line", ["application/pkcs7-mime; smime-type=enveloped-data", "application/x-pkcs7-mime"])
def test_what_its_sender_encrypted_is_not_redirected(house: House, line: str) -> None:
    for folded in (f"Content-Type: {line}\r\n", f"Content-type:\r\n {line}\r\n"):
        content = f"From: a@labo.example\r\n{folded}\r\nMIIB\r\n".encode()
        kept = house.spool.accept(replace(submission(key=folded), content=content))
        assert isinstance(kept, Accepted)
        (one,) = [each.delivery_id for each in house.spool.deliveries(kept.spool_id)]
        refused = house.queue.redirect(one, "d@op3.example", TargetKind.SMTP, ACTOR)
        assert refusal_of(refused) is why.SEALED_BY_SENDER
    signed = b"Content-Type: application/pkcs7-mime; smime-type=signed-data\r\n\r\nMIIB\r\n"
    kept = house.spool.accept(replace(submission(key="signed"), content=signed))
    assert isinstance(kept, Accepted)
    (one,) = [each.delivery_id for each in house.spool.deliveries(kept.spool_id)]
    assert refusal_of(house.queue.redirect(one, "d@op3.example", TargetKind.SMTP, ACTOR)) is None


def test_a_held_destination_says_that_what_is_in_hand_goes_on(house: House) -> None:
    house.accepted("b@op2.example", "c@op2.example")
    (lease,) = house.spool.claim(1, 60)
    assert "in hand" in house.queue.hold_destination("smtp:op2.example", ACTOR).note
    assert house.queue.held_counts() == (0, 1)
    assert house.spool.settle(lease, Delivered())
    assert house.spool.claim(1, 60) == []


def test_a_cursor_of_other_types_is_no_cursor(house: House) -> None:
    house.accepted()
    for bad in (
        ["x", "y", 1.0, "z"],
        ["x", 1, "y", "z"],
        ["x\0", 1, 1.0, "z"],
        ["x", 2**40, 1.0, "z"],
        [[]],
        ["x", True],
    ):
        with pytest.raises(CursorError):
            house.queue.page(Wanted(), 10, urlsafe_b64encode(json.dumps(bad).encode()).decode())
    with pytest.raises(CursorError):
        house.queue.page(Wanted(), 10, urlsafe_b64encode(b'["x", 1, Infinity, "z"]').decode())


async def test_what_was_tried_is_protected_anew_for_whom_it_is_redirected_to(house: House, clock: Clock) -> None:
    """Through a worker, with all it keeps in memory."""
    sent: list[tuple[str, bytes]] = []

    class Protects:
        async def apply(self, message: Message, phase: Phase) -> Message:
            if phase is not Phase.PROTECT:
                return message
            return replace(message, content=b"for " + message.recipient.encode())

    class Refuses:
        async def deliver(self, message: Message) -> Outcome:
            sent.append((message.recipient, message.content))
            return Delivered() if message.recipient.startswith("d@") else Deferred(UNREACHABLE)

    worker = Worker(house.spool, (Protects(),), {TargetKind.SMTP: Refuses()}, clock=clock)
    running = asyncio.create_task(worker.run())
    (one,) = await asyncio.to_thread(house.accepted)
    await asyncio.to_thread(until, lambda: house.row(one).attempts == 1, 20, "a first attempt")
    acted = await asyncio.to_thread(house.queue.redirect, one, "d@op3.example", TargetKind.SMTP, ACTOR)
    assert refusal_of(acted) is None
    await asyncio.to_thread(until, lambda: house.row(one).state == "delivered", 20, "the second")
    await worker.stop(1)
    await running
    assert sent[0][1] == b"for " + sent[0][0].encode()
    assert sent[-1] == ("d@op3.example", b"for d@op3.example")
