"""The spool's guarantees, on a real database and real files."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, select, update

from mta import refusals
from mta.breakdowns import BREAKDOWNS
from mta.delivery import Accepted, Duplicate, Lease, NewDelivery
from mta.message import Deferred, Delivered, DeliveryState, Failed, Outcome, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import REPEATED_EXTERNAL_ID, Spool
from mta.tables import deliveries, messages
from trust.refusals import Refused
from trust.store.blobs import BlobStore, Draft
from trust.store.database import Database
from trust.vault import VaultError

from .conftest import Clock, MakeSpool, submission


@pytest.fixture
def database(each_database: Database) -> Database:
    """The spool's guarantees hold on both."""
    return each_database


UNREACHABLE = Refused(refusals.UNREACHABLE, "connect: refused")


def accepted(spool: Spool, *recipients: str, key: str = "k", **more: object) -> Accepted:
    kept = spool.accept(submission(*recipients, key=key, **more))
    assert isinstance(kept, Accepted)
    return kept


def kinds(spool: Spool, spool_id: str) -> list[str]:
    return [step.kind for step in spool.steps(spool_id)]


def test_what_was_accepted_comes_back_whole(make_spool: MakeSpool) -> None:
    spool = make_spool()
    kept = accepted(
        spool,
        "b@op2.example",
        "c@op3.example",
        content=b"From: a@labo.example\r\n\r\n" + bytes(range(256)) * 100,
        envelope_id="E+201",
        flags=("RET=HDRS",),
    )
    leases = spool.claim(10, 60)
    assert {lease.recipient for lease in leases} == {"b@op2.example", "c@op3.example"}
    assert {lease.message_id for lease in leases} == set(kept.message_ids)
    assert len(set(kept.message_ids)) == 2
    first = leases[0]
    assert (first.sender, first.peer, first.envelope_id, first.flags) == (
        "a@labo.example",
        "account-a",
        "E+201",
        ("RET=HDRS",),
    )
    assert spool.content(first).endswith(bytes(range(256)))
    assert spool.prepared(first) is None
    assert first.attempts == 0


def test_one_key_is_one_submission_for_ever(make_spool: MakeSpool) -> None:
    spool = make_spool()
    kept = accepted(spool, reply=b"MSA|AA|1")
    again = spool.accept(submission("z@other.example", reply=b"another reply"))
    assert again == Duplicate(kept.spool_id, b"MSA|AA|1")
    assert spool.duplicate_of("k") == again
    assert spool.duplicate_of("unknown") is None
    assert len(spool.claim(10, 60)) == 1


def test_concurrent_accepts_of_one_key_give_one_accepted(make_spool: MakeSpool, blobs: BlobStore) -> None:
    spool = make_spool()
    with ThreadPoolExecutor(16) as threads:
        results = list(threads.map(lambda n: spool.accept(submission(key=f"k{n % 4}")), range(64)))
    assert sum(isinstance(result, Accepted) for result in results) == 4
    assert {result.spool_id for result in results} == {r.spool_id for r in results if isinstance(r, Accepted)}
    assert len(list(blobs.ids())) == 4, "the losers' blobs are gone"


def test_a_failing_companion_write_keeps_nothing(make_spool: MakeSpool, blobs: BlobStore) -> None:
    spool = make_spool()

    def fail(connection: Connection) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        spool.accept(submission(), also=fail)
    assert spool.duplicate_of("k") is None
    assert spool.claim(10, 60) == []
    assert list(blobs.ids()) == []


def test_a_nearly_full_disk_takes_no_more_and_what_was_taken_is_delivered(
    make_spool: MakeSpool, blobs: BlobStore
) -> None:
    free = 2000
    spool = make_spool(free_bytes=lambda: free, reserve_bytes=1000)
    kept = accepted(spool, content=b"x" * 900)
    free = 1500
    with pytest.raises(OSError, match="rest of the disk") as refused:
        spool.accept(submission(key="2", content=b"x" * 900))
    assert refused.value.errno == errno.ENOSPC
    assert len(list(blobs.ids())) == 1
    assert spool.accept(submission(content=b"x" * 900)).spool_id == kept.spool_id, "a repeat is still answered"
    (lease,) = spool.claim(1, 60)
    assert spool.keep_prepared(lease, b"protected", {})
    assert spool.settle(lease, Delivered())


def test_what_is_being_laid_down_counts_as_laid(
    make_spool: MakeSpool, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many large messages at once must not share the same free room."""
    spool, draft = make_spool(free_bytes=lambda: 4500, reserve_bytes=1000), blobs.draft
    begun: list[Accepted | Duplicate | OSError] = []

    def slow(kind: str, content: bytes) -> Draft:
        key = str(len(content))
        if len(content) > 900:  # the next one comes while this one is being written
            with suppress(OSError):
                begun.append(spool.begin_accept(submission(key=f"{key}-", content=content[:-10])).result(10))
        return draft(kind, content)

    monkeypatch.setattr(blobs, "draft", slow)
    spool.begin_accept(submission(key="first", content=b"x" * 1000)).result(10)
    assert len(begun) == 2, "3500 for those who come: 1000, 990 and 980, and no more"
    begun.clear()
    spool.begin_accept(submission(key="second", content=b"x" * 1001)).result(10)
    assert len(begun) == 2, "what is laid down is seen by who measures the disk"


def test_a_repeated_external_id_is_told(make_spool: MakeSpool) -> None:
    spool = make_spool()
    assert not accepted(spool, key="1", external_id="MSG1").repeated_external_id
    again = accepted(spool, key="2", external_id="MSG1")
    assert again.repeated_external_id
    assert spool.steps(again.spool_id)[0].detail == REPEATED_EXTERNAL_ID, "and the trace shows it"
    assert not accepted(spool, key="3", external_id="MSG2").repeated_external_id


def test_an_impossible_recipient_is_failed_at_once(make_spool: MakeSpool) -> None:
    spool = make_spool()
    wanted = submission("b@op2.example")
    refused = NewDelivery("x@gmail.example", TargetKind.SMTP, Refused(refusals.RECIPIENT_NOT_TRUSTED, "gmail.example"))
    kept = spool.accept(
        type(wanted)(
            **{f: getattr(wanted, f) for f in wanted.__slots__} | {"deliveries": (*wanted.deliveries, refused)}
        )
    )
    good, bad = spool.deliveries(kept.spool_id)
    assert (good.state, bad.state) == (DeliveryState.READY, DeliveryState.FAILED)
    assert (bad.code, bad.detail) == ("mta.recipient-not-trusted", "gmail.example")
    assert [lease.recipient for lease in spool.claim(10, 60)] == ["b@op2.example"]


def test_a_lease_is_exclusive_until_it_expires(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    accepted(spool)
    (first,) = spool.claim(10, 60)
    assert spool.claim(10, 60) == []
    assert spool.next_due() == pytest.approx(clock.now + 60)
    clock.now += 61
    (second,) = spool.claim(10, 60)
    assert second.delivery_id == first.delivery_id
    assert not spool.keep_prepared(first, b"stale", {})
    assert not spool.settle(first, Delivered())
    assert spool.keep_prepared(second, b"fresh", {"verdict": "x"})
    assert spool.settle(second, Delivered("250 ok"))
    assert not spool.settle(second, Failed(UNREACHABLE)), "a settled lease is over"
    (record,) = spool.deliveries(first.spool_id)
    assert (record.state, record.attempts, record.facts) == (DeliveryState.DELIVERED, 1, {"verdict": "x"})


def test_concurrent_claims_share_nothing(make_spool: MakeSpool) -> None:
    spool = make_spool()
    for n in range(40):
        accepted(spool, key=str(n))
    with ThreadPoolExecutor(8) as threads:
        batches = list(threads.map(lambda _: spool.claim(7, 60), range(12)))
    ids = [lease.delivery_id for batch in batches for lease in batch]
    assert len(ids) == len(set(ids)) == 40


def test_deferred_waits_as_the_schedule_says_with_the_same_bytes(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    kept = accepted(spool)
    (lease,) = spool.claim(10, 60)
    assert spool.keep_prepared(lease, b"protected", {})
    assert spool.settle(lease, Deferred(UNREACHABLE))
    assert spool.claim(10, 60) == []
    assert spool.next_due() == pytest.approx(clock.now + 10)
    clock.now += 10
    (again,) = spool.claim(10, 60)
    assert (again.attempts, spool.prepared(again), again.message_id) == (1, b"protected", lease.message_id)
    assert spool.settle(again, Deferred(UNREACHABLE))
    assert spool.next_due() == pytest.approx(clock.now + 10)
    assert kinds(spool, kept.spool_id) == ["accept", "attempt", "prepare", "deferred", "attempt", "deferred"]


def test_a_delivery_expires(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    kept = accepted(spool)
    clock.now += 95
    (lease,) = spool.claim(10, 60)
    assert spool.settle(lease, Deferred(UNREACHABLE))
    (record,) = spool.deliveries(kept.spool_id)
    assert (record.state, record.code) == (DeliveryState.FAILED, "mta.expired")
    assert "mta.unreachable" in record.detail
    (ended,) = spool.ended(10)
    assert (ended.delivered, ended.code, ended.recipient) == (False, "mta.expired", "b@op2.example")
    spool.reported(ended)
    assert spool.ended(10) == []


def test_released_and_recovered_deliveries_are_due_at_once(make_spool: MakeSpool) -> None:
    spool, other = make_spool(), make_spool(node="n2")
    woken: list[int] = []
    spool.listen(lambda: woken.append(1))
    accepted(spool, key="1")
    accepted(spool, key="2")
    (released,) = spool.claim(1, 600)
    spool.release([released])
    assert {lease.attempts for lease in spool.claim(10, 600)} == {0}
    assert other.recover() == 0, "another node's leases are not ours to free"
    assert spool.recover() == 2
    assert len(spool.claim(10, 600)) == 2
    assert len(woken) == 4


def test_a_saturated_destination_is_not_claimed_for(make_spool: MakeSpool) -> None:
    spool = make_spool()
    for n in range(30):
        accepted(spool, "b@slow.example", key=str(n))
    accepted(spool, "b@fast.example", key="last")
    leases = spool.claim(5, 60, skip={"smtp:slow.example"})
    assert [lease.recipient for lease in leases] == ["b@fast.example"]


def test_trace_finds_by_external_id_and_message_id(make_spool: MakeSpool) -> None:
    spool = make_spool()
    one = accepted(spool, key="1", external_id="MSG1")
    two = accepted(spool, key="2", message_id="<given@labo.example>")
    assert two.message_ids == ("<given@labo.example>",)
    assert spool.find("MSG1") == [one.spool_id]
    assert spool.find(one.message_ids[0]) == [one.spool_id]
    assert spool.find("<given@labo.example>") == [two.spool_id]
    assert spool.find("") == spool.find("nothing") == []
    assert spool.counts() == dict.fromkeys(DeliveryState, 0) | {DeliveryState.READY: 2}


def test_gauges_tell_how_the_road_stands(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    assert spool.gauges().states == dict.fromkeys(DeliveryState, 0)
    assert (spool.gauges().oldest_waiting, spool.gauges().oldest_unanswered) == (None, None)
    began = clock.now
    accepted(spool, key="1")
    clock.now += 5
    accepted(spool, "b@op2.example", "c@op2.example", key="2")
    (first,) = spool.claim(1, 60)
    now = spool.gauges()
    assert (now.states[DeliveryState.READY], now.due, now.oldest_waiting) == (3, 2, began), "worked on is not due"
    clock.now += 1
    assert spool.settle(first, Deferred(UNREACHABLE))
    assert (spool.gauges().due, spool.gauges().oldest_waiting) == (2, began), "what waits for its retry still waits"
    leases = spool.claim(2, 60)
    assert spool.settle(leases[0], Delivered())
    clock.now += 1
    assert spool.settle(leases[1], Failed(UNREACHABLE))
    now = spool.gauges()
    one_each = (DeliveryState.READY, DeliveryState.DELIVERED, DeliveryState.FAILED)
    assert now.states == dict.fromkeys(DeliveryState, 0) | dict.fromkeys(one_each, 1)
    assert (now.unreported, now.oldest_unanswered, now.at) == (2, began, clock.now)
    spool.reported(spool.ended(1)[0])
    assert (spool.gauges().unreported, spool.gauges().oldest_unanswered) == (1, began), "one waits for its retry"
    assert make_spool(clock=clock).gauges().states == now.states == spool.counts(), "a new process counts the history"


def test_the_oldest_without_a_final_answer_waits_for_other_operators_too(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    began = clock.now
    accepted(spool, key="1")
    clock.now += 5
    (lease,) = spool.claim(1, 60)
    assert spool.settle(lease, Delivered("250 ok", reports=True))
    (ended,) = spool.ended(10)
    assert spool.gauges().oldest_unanswered == began, "its end is not reported"
    spool.reported(ended)
    now = spool.gauges()
    assert (now.unreported, now.awaited, now.oldest_unanswered, now.oldest_waiting) == (0, 1, began, None)
    assert make_spool(clock=clock).gauges().oldest_unanswered == began, "after a restart too"
    clock.now += 60
    spool.answered(ended, "delivered")
    spool.answered(ended, "delivered")
    now = spool.gauges()
    assert (now.awaited, now.oldest_unanswered) == (0, None)
    assert [(step.kind, step.at, step.detail) for step in spool.steps(ended.spool_id)][-1:] == [
        ("answered", clock.now, "delivered")
    ], "once, for the trace"


@pytest.mark.parametrize("outcome", [Delivered("250 ok"), Failed(UNREACHABLE)])
def test_who_promised_no_receipt_is_not_waited_for(make_spool: MakeSpool, outcome: Outcome) -> None:
    spool = make_spool()
    accepted(spool)
    assert spool.settle(spool.claim(1, 60)[0], outcome)
    spool.reported(spool.ended(1)[0])
    assert (spool.gauges().awaited, spool.gauges().oldest_unanswered) == (0, None)


def test_a_receipt_that_never_comes_does_not_hide_the_others_for_ever(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    accepted(spool)
    assert spool.settle(spool.claim(1, 60)[0], Delivered("250 ok", reports=True))
    spool.reported(spool.ended(1)[0])
    clock.now += 199  # the schedule's lifetime is 100
    assert spool.gauges().oldest_unanswered == clock.now - 199
    clock.now += 2
    assert (spool.gauges().awaited, spool.gauges().oldest_unanswered) == (1, None)


def crash(make_spool: MakeSpool, clock: Clock) -> tuple[Spool, list[Lease]]:
    """Wait until something is due, take it, and die with it in hand."""
    spool = make_spool(clock=clock)
    leases = spool.claim(10, 60)
    if not leases:
        due = spool.next_due()
        assert due is not None
        clock.now = due
        leases = spool.claim(10, 60)
    make_spool(clock=clock).recover()
    return spool, leases


def test_what_kills_the_process_is_parked_and_takes_nobody_with_it(make_spool: MakeSpool, clock: Clock) -> None:
    schedule = RetrySchedule(lifetime=1e6)

    def spool_of(**more: object) -> Spool:
        return make_spool(schedule=schedule, **more)

    spool = spool_of(clock=clock)
    poison = accepted(spool, key="poison")
    innocents = [accepted(spool, key=str(n)) for n in range(3)]
    for _ in range(2):
        _, leases = crash(spool_of, clock)
        assert len(leases) == 4, "once killed says nothing: all at once"
    waits = []
    for _ in range(3 + 8):
        before = clock.now
        leases = spool.claim(10, 60)
        if not leases:
            due = spool.next_due()
            if due is None:
                break
            clock.now = due
            leases = spool.claim(10, 60)
        (lease,) = leases
        waits.append(clock.now - before)
        if lease.spool_id != poison.spool_id:
            assert spool.claim(10, 60) == [], "one suspect at a time"
            assert spool.settle(lease, Delivered())
            continue
        spool_of(clock=clock).recover()
    assert spool.counts() == dict.fromkeys(DeliveryState, 0) | {DeliveryState.DELIVERED: 3, DeliveryState.PARKED: 1}
    assert sorted(waits)[-5:] == [4.0, 16.0, 64.0, 256.0, 1024.0], "longer each time"
    for kept in innocents:
        assert kinds(spool, kept.spool_id)[-1] == "delivered"
    (record,) = spool.deliveries(poison.spool_id)
    assert (record.state, record.code, record.ended_at) == (DeliveryState.PARKED, "mta.parked", clock.now)
    assert kinds(spool, poison.spool_id)[-3:] == ["interrupted", "attempt", "parked"]
    (ended,) = [end for end in spool.ended(10) if end.spool_id == poison.spool_id]
    assert not ended.delivered, "its sender is told"
    assert spool.gauges().states == spool.counts()
    assert spool.claim(10, 60) == []


def test_new_mail_passes_a_suspect(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    for key in ("1", "2"):
        accepted(spool, key=key)
    crash(make_spool, clock)
    crash(make_spool, clock)
    accepted(spool, key="new")
    clock.now += 1
    first = spool.claim(10, 60)
    assert sorted(lease.breakdowns for lease in first) == [0, 2]
    accepted(spool, key="newer")
    assert [lease.breakdowns for lease in spool.claim(10, 60)] == [0]
    assert spool.next_due() == clock.now + 60, "the other suspect is no reason to look again at once"
    for lease in first:
        assert spool.settle(lease, Deferred(UNREACHABLE))
    assert [lease.breakdowns for lease in spool.claim(10, 60)] == [2]
    clock.now += 10
    assert [lease.breakdowns for lease in spool.claim(10, 60)] == [0, 0], "an attempt that ends clears the suspicion"


def test_a_bug_that_stops_every_attempt_parks_the_delivery(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock, schedule=RetrySchedule(pauses=(10.0,), jitter=0.0))
    kept = accepted(spool)
    bug = Deferred(Refused(refusals.INTERNAL_ERROR, "KeyError"))
    for outcome in (bug, Deferred(UNREACHABLE), *[bug] * BREAKDOWNS):
        (lease,) = spool.claim(10, 60)
        assert spool.settle(lease, outcome)
        clock.now += 10
    (record,) = spool.deliveries(kept.spool_id)
    assert (record.state, record.code, record.detail) == (
        DeliveryState.PARKED,
        "mta.parked",
        "mta.internal-error KeyError",
    )
    assert record.attempts == 2 + BREAKDOWNS, "in a row: the one that could not reach its destination begins anew"
    assert kinds(spool, kept.spool_id)[-1] == "parked"


def test_an_envelope_damaged_on_disk_stands_in_nobodys_way(make_spool: MakeSpool, database: Database) -> None:
    spool = make_spool()
    damaged = accepted(spool, key="1")
    sound = accepted(spool, key="2")

    def damage(spool_id: str) -> None:
        query = update(deliveries).where(deliveries.c.spool_id == spool_id).values(recipient=b"rot")
        database.transact(lambda connection: connection.execute(query).rowcount)

    damage(damaged.spool_id)
    (lease,) = spool.claim(10, 60)
    assert lease.spool_id == sound.spool_id
    assert spool.counts()[DeliveryState.PARKED] == 1
    assert spool.ended(10) == [], "nobody can be told"
    assert kinds(spool, damaged.spool_id) == ["accept", "attempt", "parked"]
    later = accepted(spool, "c@op2.example", key="3")
    assert spool.settle(spool.claim(10, 60)[0], Delivered())
    damage(later.spool_id)
    assert spool.settle(lease, Delivered())
    assert [end.spool_id for end in spool.ended(10)] == [sound.spool_id]
    assert spool.gauges().unreported == 2, "the operator sees that one is never told"


def test_facts_damaged_on_disk_stand_in_nobodys_way(make_spool: MakeSpool, database: Database) -> None:
    spool = make_spool()
    damaged = accepted(spool, key="1")
    sound = accepted(spool, key="2")
    query = update(deliveries).where(deliveries.c.spool_id == damaged.spool_id).values(facts='{"verdict": ')
    database.transact(lambda connection: connection.execute(query).rowcount)
    (lease,) = spool.claim(10, 60)
    assert lease.spool_id == sound.spool_id
    assert spool.counts()[DeliveryState.PARKED] == 1


def test_a_clock_set_back_leaves_nothing_waiting_for_years(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    accepted(spool, key="1")
    leased = spool.claim(1, 60)
    accepted(spool, key="2")
    clock.now -= 86_400 * 365
    assert spool.claim(10, 60) == []
    assert len(spool.claim(10, 60)) == 1, "what waits is due; what somebody works on stays his"
    assert spool.settle(leased[0], Delivered())


def test_a_clock_set_forward_does_not_lease_again_what_is_in_hand(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    accepted(spool)
    (lease,) = spool.claim(1, 60)
    clock.now += 86_400
    assert spool.claim(1, 60, holding={lease.delivery_id}) == []
    assert spool.next_due(holding={lease.delivery_id}) is None
    assert spool.settle(lease, Delivered())


def test_no_question_of_the_road_scans_the_history(make_spool: MakeSpool, database: Database) -> None:
    """Accepting, claiming, reporting, tracing and monitoring cost the same after a million messages."""
    if database.engine.dialect.name != "sqlite":
        pytest.skip("PostgreSQL rightly scans a table of two rows; the indexes are the same")
    asked: list[tuple[str, object]] = []

    def remember(_c: object, _cursor: object, statement: str, parameters: object, _x: object, _many: bool) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    spool = make_spool()
    accepted(spool, key="1", external_id="MSG1")
    for engine in (database.engine, database._readers):
        event.listen(engine, "before_cursor_execute", remember)
    kept = accepted(spool, key="2", external_id="MSG1")
    spool.settle(spool.claim(1, 60)[0], Delivered())
    spool.reported(spool.ended(10)[0])
    assert len(spool.find("MSG1")) == 2
    spool.steps(kept.spool_id)
    spool.deliveries(kept.spool_id)
    spool.gauges()
    spool.next_due()
    assert len(asked) > 12

    def plan(connection: Connection) -> list[str]:
        driver = connection.connection.driver_connection
        assert driver is not None
        return [
            f"{row[3]} for {statement}"
            for statement, parameters in asked
            for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]

    small = (
        "ix_mta_deliveries_ready",
        "ix_mta_deliveries_held",
        "ix_mta_deliveries_lanes",
        "ix_mta_deliveries_unreported",
        "mta_awaited_receipts",
        "SCAN mta_breakdowns",
        "SCAN mta_held_destinations",
        "SCAN mta_purged_counts",
    )
    lines = database.read(plan)
    for line in lines:
        if line.startswith("SCAN"):
            assert any(name in line for name in small), line
    oldest = [line for line in lines if "min(mta_deliveries.id)" in line and "held_at IS NULL" in line]
    assert oldest, "how old the oldest is, is asked"
    # it holds their ids: a million that wait are counted without reading them or their messages
    assert all("ix_mta_deliveries_lanes" in line for line in oldest)


def test_nothing_readable_is_kept(
    make_spool: MakeSpool, tmp_path: Path, database: Database, stored_octets: Callable[[Database], bytes]
) -> None:
    spool = make_spool()
    matricule = "279035121518989"
    accepted(
        spool,
        f"{matricule}@patient.example",
        content=b"From: a@labo.example\r\nSubject: Glycemie DURAND\r\n\r\nsecret\r\n",
        reply=b"MSA|AA|reply-secret",
        message_id="<1@op.example>",  # a made one may end in the sender's address
    )
    found = {"the database": stored_octets(database)}
    found |= {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for name, stored in found.items():
        for word in (matricule.encode(), b"DURAND", b"secret", b"a@labo.example", b"account-a"):
            assert word not in stored, name


def test_a_refused_recipient_is_not_kept_in_the_clear(make_spool: MakeSpool, database: Database) -> None:
    """It need not be an address: a sending system may put a bare matricule there."""
    spool, wanted = make_spool(), submission("b@op2.example")
    refused = NewDelivery("279035121518989", TargetKind.SMTP, Refused(refusals.ADDRESS_INVALID))
    spool.accept(replace(wanted, deliveries=(refused, *wanted.deliveries)))
    rows = database.read(lambda connection: connection.execute(select(deliveries)).all())
    assert [row.destination for row in rows] == ["smtp", "smtp:op2.example"]
    assert "279035121518989" not in str(rows)


def test_steps_keep_no_control_characters(make_spool: MakeSpool) -> None:
    spool = make_spool()
    kept = accepted(spool)
    (lease,) = spool.claim(1, 60)
    assert spool.settle(lease, Failed(Refused(refusals.REMOTE_REFUSED, "550 no\r\nforged\x00" + "x" * 1000)))
    detail = spool.steps(kept.spool_id)[-1].detail
    assert detail.isprintable()
    assert len(detail) == 500


def test_who_waits_for_a_repeat_is_answered_whatever_the_disk_and_the_vault_say(
    make_spool: MakeSpool, blobs: BlobStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error on the database's own thread would leave the sender waiting for ever."""
    spool = make_spool()
    first = spool.begin_accept(submission(reply=b"AA")).result(10)

    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the disk")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", unlink)
        assert spool.begin_accept(submission(reply=b"AA")).result(10) == Duplicate(first.spool_id, b"AA")
    assert blobs.expected() == frozenset(), "what the disk did not let go of is an orphan, and swept one day"
    database.transact(lambda connection: connection.execute(update(messages).values(reply=b"\x01damaged")).rowcount)
    with pytest.raises(VaultError):
        spool.begin_accept(submission(reply=b"AA")).result(10)
    assert not spool.begin_accept(submission(key="other")).cancel(), "what is being kept cannot be taken back"
