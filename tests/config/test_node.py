"""What one process hears of the others, and by whose clock it goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection

import config.node
from config.node import SharedClock, clock_of
from mta.delivery import Accepted, NewDelivery, Submission
from mta.message import Delivered, Origin, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from tests.support.postgresql import PostgresServer
from trust.store import metadata
from trust.store.blobs import ALL_ROWS, BlobStore
from trust.store.database import Database
from trust.store.nodes import Nodes
from trust.vault import KeyVault


@pytest.fixture
def database(postgresql: PostgresServer) -> Iterator[Database]:
    with closing(Database(postgresql.fresh())) as opened:
        metadata.create_all(opened.engine)
        yield opened


class Wrong:
    """`time` on a machine whose clock is off."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def time(self) -> float:
        return time.time() + self.seconds


@pytest.mark.parametrize("seconds", [-86_400.0, 3600.0])
def test_what_is_queued_goes_by_the_databases_clock(
    database: Database, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    wrong = Wrong(seconds)
    monkeypatch.setattr(config.node, "time", wrong)
    clock = clock_of(database)
    assert clock is not None
    assert clock() == pytest.approx(time.time(), abs=2)
    assert clock.difference == pytest.approx(seconds, abs=2)
    wrong.seconds *= 3
    assert clock() == pytest.approx(time.time(), abs=2), "nor does a jump move it"
    clock.look()
    assert clock.difference == pytest.approx(3 * seconds, abs=2)


def test_one_process_with_sqlite_has_its_own_clock(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'relais.db'}")) as own:
        assert clock_of(own) is None


def test_a_node_whose_clock_is_ahead_takes_nothing_another_has_in_hand(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = KeyVault.create(tmp_path / "vault")
    blobs = BlobStore(tmp_path / "blobs", vault, database, ALL_ROWS)

    def spool(name: str) -> Spool:
        return Spool(database, blobs, vault, node=name, schedule=RetrySchedule(), clock=SharedClock(database))

    one = spool("one")
    monkeypatch.setattr(config.node, "time", Wrong(30 * 86_400.0))
    ahead = spool("ahead")
    kept = one.accept(
        Submission(
            origin=Origin.SUBMISSION,
            sender="a@labo.example",
            peer="a@labo.example",
            content=b"Subject: x\r\n\r\nx\r\n",
            content_type="message/rfc822",
            deliveries=(NewDelivery("b@op2.example", TargetKind.SMTP),),
            dedup_key="k",
            message_id_domain="labo.example",
        )
    )
    assert isinstance(kept, Accepted)
    (lease,) = one.claim(10, 1500)
    assert ahead.claim(10, 1500) == []
    assert one.settle(lease, Delivered())


def test_a_process_whose_writer_waits_lives_all_the_same(database: Database) -> None:
    """Otherwise others would deliver again what it has in hand."""
    nodes = Nodes(database, "n1")
    nodes.join()
    begun, go_on = threading.Event(), threading.Event()

    def wait(_: Connection) -> None:
        begun.set()
        assert go_on.wait(10)

    held_up = database.submit(wait)
    assert begun.wait(10)
    beaten = threading.Thread(target=nodes.beat)
    beaten.start()
    beaten.join(5)
    alive = beaten.is_alive()
    go_on.set()
    held_up.result(10)
    assert not alive
