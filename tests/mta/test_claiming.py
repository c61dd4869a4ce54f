"""Whose turn it is, in what order, and what finding out costs with a million waiting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, event

from mta import claiming
from mta.delivery import Accepted
from mta.message import Origin, TargetKind
from mta.priority import Priority, priority_in
from mta.queue_listing import STATES, Wanted, counts, lanes, page
from mta.spool import Spool
from mta.tables import deliveries, held_destinations, messages
from trust.store import metadata
from trust.store.database import Database

from .conftest import Clock, MakeSpool, submission, with_tables

NOW = 1_800_000_000.0
ALWAYS = 50_000
"""As many waiting as the suite has time for; the marked test does it with a million."""


@pytest.mark.parametrize(
    ("header", "priority"),
    [
        (b"Priority: urgent\r\n", Priority.URGENT),
        (b"PRIORITY:urgent\r\n", Priority.URGENT),
        (b"Importance: High\r\n", Priority.URGENT),
        (b"X-Priority: 1 (Highest)\r\n", Priority.URGENT),
        (b"X-Priority: 2\r\n", Priority.URGENT),
        (b"X-Priority: 3\r\n", Priority.NORMAL),
        (b"X-Priority: 11\r\n", Priority.NORMAL),
        (b"Priority: normal\r\n", Priority.NORMAL),
        (b"Content-Type: multipart/report; report-type=delivery-status\r\n", Priority.URGENT),
        (b"Content-Type: multipart/mixed\r\n", Priority.NORMAL),
        (b"Priority: non-urgent\r\n", Priority.BULK),
        (b"Precedence: bulk\r\n", Priority.BULK),
        (b"List-Id: <all.labo.example>\r\n", Priority.BULK),
        (b"Precedence: bulk\r\nPriority: urgent\r\n", Priority.BULK),
        (b"Subject: Priority: urgent\r\n", Priority.NORMAL),
        (b"Subject: x\r\n Priority: urgent\r\n", Priority.NORMAL),
        (b"", Priority.NORMAL),
    ],
)
def test_a_mail_says_how_urgent_it_is(header: bytes, priority: Priority) -> None:
    for end in (b"\r\n", b"\n"):
        assert (
            priority_in((b"From: a@b\r\n" + header + b"\r\nPriority: urgent\r\nList-Id: x\r\n").replace(b"\r\n", end))
            is priority
        )


def test_no_header_takes_long_to_read() -> None:
    for worst in (b"x-priority:" * 6000, b"priority:" + b" " * 65000, b"\r" * 70000, b"\n " * 33000, b"a" * 5_000_000):
        begun = time.process_time()
        priority_in(worst)
        assert time.process_time() - begun < 0.05


def kept(spool: Spool, *recipients: str, key: str, **more: object) -> None:
    assert isinstance(spool.accept(submission(*recipients, key=key, **more)), Accepted)


def test_acknowledgements_and_urgent_mail_go_before_the_rest(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock, bulk_recipients=2)
    kept(spool, "a@op2.example", "b@op2.example", "c@op2.example", key="bulk")
    kept(spool, key="plain")
    kept(spool, key="urgent", content=b"From: a@labo.example\r\nPriority: urgent\r\n\r\n")
    kept(spool, key="dsn", origin=Origin.SYSTEM)
    kept(spool, "lis", key="zam", origin=Origin.SYSTEM, target=TargetKind.MLLP)
    kept(spool, key="said", priority=Priority.BULK, origin=Origin.SYSTEM)
    clock.now += 1
    first = spool.claim(3, 60)
    assert {lease.origin for lease in first} == {Origin.SYSTEM, Origin.SUBMISSION}
    assert {lease.destination for lease in first} == {"smtp:op2.example", "mllp:lis"}
    assert len(spool.claim(10, 60)) == 5


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_nobody_starves_behind_urgent_mail(
    make_spool: MakeSpool, clock: Clock, database: Database, at_once: int
) -> None:
    """Two thousand urgent and as many of each other class: all classes advance, the urgent most."""
    spool = make_spool(clock=clock)
    fill(database, 6000, lambda n: {"priority": n % 3, "destination": "smtp:a.example", "due": NOW - 6000 + n})
    claimed: Counter[int] = Counter()
    for _ in range(16):
        ids = [lease.delivery_id for lease in spool.claim(at_once, 1000)]
        claimed.update(int(each[-6:]) % 3 for each in ids)
    assert claimed.total() == 16 * at_once
    assert claimed[0] > claimed[1] > claimed[2] >= claimed.total() / 10


def test_a_full_or_held_destination_hides_no_other(make_spool: MakeSpool, clock: Clock, database: Database) -> None:
    spool = make_spool(clock=clock)
    # everything at the head of the line is for one destination
    fill(database, 3000, lambda n: {"due": NOW - 9000 + n, "destination": f"smtp:{'a' if n < 2900 else n % 7}.example"})
    leases = spool.claim(50, 60, skip=["smtp:a.example"])
    assert len(leases) == 50
    assert set(Counter(lease.destination for lease in leases).values()) <= {7, 8}, "an equal share for each"
    values = {"destination": "smtp:a.example", "held_at": NOW, "sealed": b""}
    database.transact(lambda connection: connection.execute(held_destinations.insert(), values).rowcount)
    assert len(spool.claim(100, 60)) == 50, "all that is left elsewhere"
    assert spool.claim(1, 60) == []
    assert spool.next_due() == pytest.approx(clock.now + 60)
    assert spool.next_due(skip=[f"smtp:{n}.example" for n in range(7)]) is None


def test_priorities_reach_destinations_behind_a_full_one(
    make_spool: MakeSpool, clock: Clock, database: Database
) -> None:
    spool = make_spool(clock=clock)
    fill(
        database,
        2000,
        lambda n: {"due": NOW - 9000 + n, "priority": n % 3, "destination": f"smtp:{'a' if n < 1990 else 'b'}.example"},
    )
    found = [lease.destination for _ in range(10) for lease in spool.claim(1, 600, skip=["smtp:a.example"])]
    assert found == ["smtp:b.example"] * 10


# What it costs


def fill(database: Database, number: int, of: object, size: int = 50_000) -> None:
    """Deliveries straight into the tables; their ids end in their number."""

    def rows(first: int) -> Iterator[tuple[dict[str, object], dict[str, object]]]:
        for n in range(first, min(first + size, number)):
            name = f"{int((NOW - 100_000) * 1000) + n:012x}{n:020d}"
            message = {"id": name, "node": "n1", "origin": "submission", "envelope": b"", "content_blob": f"{n:032x}"}
            message |= {"content_type": "", "size": 1, "accepted_at": NOW - 100_000, "dedup_key": name, "reply": b""}
            message |= {"external_id": "", "peer_pseudonym": "", "purged_at": None}
            delivery = {"id": name, "spool_id": name, "ordinal": 0, "target": "smtp", "destination": "smtp:a.example"}
            delivery |= {"recipient": b"", "message_id": f"<{n}@x>", "state": "ready", "attempts": 0, "due": NOW - 1}
            delivery |= {
                "lease": None,
                "prepared_blob": None,
                "facts": "{}",
                "code": "",
                "detail": "",
                "ended_at": None,
            }
            delivery |= {"reported": False, "priority": 1, "held_at": None}
            yield message, delivery | of(n)  # type: ignore[operator]

    def write(connection: Connection, first: int) -> None:
        both = list(rows(first))
        connection.execute(messages.insert(), [message for message, _ in both])
        connection.execute(deliveries.insert(), [delivery for _, delivery in both])

    for first in range(0, number, size):
        database.transact(lambda connection, first=first: write(connection, first))


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def database(each_database: Database) -> Database:
    """Whose turn it is is the same on both."""
    return each_database


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    with with_tables(f"sqlite:///{tmp_path / 'long.db'}") as opened:
        yield opened


@pytest.fixture
def make_spool(make_spool: MakeSpool) -> MakeSpool:
    """What `fill` writes has no envelope; only ids and places are looked at."""

    def made(**options: object) -> Spool:
        spool = make_spool(**options)
        whole = spool._unseal
        nothing = {"sender": "", "peer": "", "envelope_id": "", "flags": [], "recipient": "", "notify": ""}
        nothing["original_recipient"] = ""
        spool._unseal = lambda row_id, sealed: whole(row_id, sealed) if sealed else nothing  # type: ignore[method-assign]
        return spool

    return made


def queue_of(database: Database, number: int) -> None:
    """Nine in ten for one destination that comes first, the others for three hundred; half were deferred before."""
    fill(
        database,
        number,
        lambda n: {
            "due": NOW - 50_000 + n * 0.01,
            "priority": 0 if n % 100 == 0 else 1 + n % 2,
            "destination": f"smtp:p{n // 10 % 300}.example" if n % 10 == 0 else "smtp:a.example",
            "attempts": n % 2,
            "code": "mta.unreachable" if n % 2 else "",
        },
    )


def asked(database: Database) -> list[tuple[str, object]]:
    statements: list[tuple[str, object]] = []

    def remember(_c: object, _cursor: object, statement: str, parameters: object, _x: object, _many: bool) -> None:
        if statement.startswith(("SELECT", "WITH")):
            statements.append((statement, parameters))

    event.listen(database._readers, "before_cursor_execute", remember)
    return statements


def test_every_claim_is_found_by_an_index_in_its_order(sqlite: Database) -> None:
    """Nothing is scanned or sorted but what is asked for: the cost of a claim does not grow with the queue."""
    queue_of(sqlite, 2_000)
    statements = asked(sqlite)
    for skip in ((), ("smtp:a.example",)):
        for turn in range(8):
            sqlite.read(lambda connection, s=skip, t=turn: claiming.claimable(connection, NOW, 50, s, ("x",), t))
        sqlite.read(lambda connection, s=skip: claiming.next_due(connection, NOW, s, ("x",)))

    def plans(connection: Connection) -> list[tuple[str, str]]:
        driver = connection.connection.driver_connection
        assert driver is not None
        return [
            (str(row[3]), statement)
            for statement, parameters in statements
            for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]

    found = sqlite.read(plans)
    assert any("ix_mta_deliveries_lanes (destination" in plan for plan, _ in found)
    small = ("mta_held_destinations", "mta_breakdowns", "places", "anon_", "CONSTANT ROW")
    for plan, statement in found:
        if plan.startswith("SCAN"):
            assert any(name in plan for name in small), (plan, statement)
        if "TEMP B-TREE" in plan:
            # of what was found near the head of the line, or of one row a destination
            assert " IN (" in statement or "WITH RECURSIVE" in statement or "anon_1" in statement, (plan, statement)


def measured(database: Database, number: int) -> tuple[float, float]:
    """Processor seconds of a claim when the head of the line is free, and when it is full."""

    def seconds(skip: tuple[str, ...]) -> float:
        best = float("inf")
        for turn in range(16):
            begun = time.process_time()
            got = database.read(lambda connection: claiming.claimable(connection, NOW, 50, skip, (), turn))  # noqa: B023
            best = min(best, time.process_time() - begun)
            assert len(got) == min(50, number)
        return best

    return seconds(()), seconds(("smtp:a.example",))


def test_a_long_queue_costs_a_claim_no_more_than_a_short_one(sqlite: Database, tmp_path: Path) -> None:
    queue_of(sqlite, ALWAYS)
    short = Database(f"sqlite:///{tmp_path / 'short.db'}")
    metadata.create_all(short.engine)
    try:
        queue_of(short, 10_000)
        free, full = measured(short, 10_000)
        long_free, long_full = measured(sqlite, ALWAYS)
    finally:
        short.close()
    assert long_free < 2 * free + 0.002
    assert long_full < 2 * full + 0.005


def every_page(database: Database) -> float:
    """The slowest of all questions `relais queue list` can ask, in processor seconds."""
    slowest = 0.0
    for wanted in [
        *(Wanted(state=state) for state in STATES),
        *(Wanted(state=state, code="mta.unreachable") for state in STATES),
        Wanted(code="mta.none"),
        Wanted(destination="smtp:a.example"),
        Wanted(destination="smtp:none.example", code="mta.unreachable"),
        Wanted(accepted_before=NOW - 200_000),
        Wanted(accepted_before=NOW - 200_000, code="mta.unreachable"),
        Wanted(state="delivered", accepted_before=NOW - 200_000, destination="smtp:a.example"),
    ]:
        after = ""
        for _ in range(3):
            begun = time.process_time()
            found = database.read(lambda connection: page(connection, wanted, 50, after))  # noqa: B023
            slowest = max(slowest, time.process_time() - begun)
            after = found.following
            if not after:
                break
    begun = time.process_time()
    assert sum(database.read(counts).values())
    assert database.read(lanes)
    return max(slowest, time.process_time() - begun)


def test_a_page_comes_at_once_however_long_the_queue(sqlite: Database) -> None:
    queue_of(sqlite, ALWAYS)
    assert min(every_page(sqlite) for _ in range(3)) < 0.25, "the best of three: a busy machine makes any of them slow"


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_a_million_waiting(sqlite: Database) -> None:
    queue_of(sqlite, 1_000_000)
    free, full = measured(sqlite, 1_000_000)
    slowest = every_page(sqlite)
    print(f"claim {free * 1000:.1f} ms, past a full destination {full * 1000:.1f} ms, slowest page {slowest:.2f} s")
    assert free < 0.005 and full < 0.02 and slowest < 1.0
