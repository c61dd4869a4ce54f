"""SIGKILL between any two steps: what was acknowledged is delivered, once, and always with the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

from mta.breakdowns import BREAKDOWNS
from mta.message import DeliveryState
from mta.schedule import RetrySchedule
from mta.spool import Spool
from tests.support.private import until
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

ROOT = Path(__file__).parents[2]
MESSAGES = 120
KILLS = 6


class Child:
    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mta.crash_child", str(root)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def say(self, *keys: str) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.write("".join(f"{key}\n" for key in keys))
            self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                stream.close()


@pytest.mark.e2e
def test_one_message_that_kills_the_process_does_not_stop_the_others(tmp_path: Path) -> None:
    vault = KeyVault.create(tmp_path / "vault")
    reader = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(reader.engine)
    spool = Spool(reader, BlobStore(tmp_path / "blobs", vault), vault, node="reader", schedule=RetrySchedule())
    innocent = [f"m{n}" for n in range(10)]
    child, crashes = Child(tmp_path), 0
    try:
        child.say("poison", *innocent)

        def restarted_until_the_rest_is_delivered() -> bool:
            nonlocal child, crashes
            if child.process.poll() is not None:
                child.kill()
                child, crashes = Child(tmp_path), crashes + 1
                child.say(*innocent)  # whoever saw no acknowledgement repeats
            return crashes > 0 and spool.counts()[DeliveryState.DELIVERED] >= 2 * len(innocent)

        until(restarted_until_the_rest_is_delivered, 40.0, what="the others being delivered")
        assert 0 < crashes < BREAKDOWNS
        assert spool.counts()[DeliveryState.READY] == 2, "the poison waits for its next chance"
    finally:
        child.kill()
        reader.close()


@pytest.mark.e2e
def test_killed_at_any_moment_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path) -> None:
    vault = KeyVault.create(tmp_path / "vault")
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    database.close()
    rng = random.Random(20)
    unacknowledged = {f"m{n}" for n in range(MESSAGES)}
    kills = 0
    while unacknowledged or kills < KILLS:
        child = Child(tmp_path)
        quota = rng.randrange(1, 2 * MESSAGES // KILLS) if kills < KILLS else MESSAGES
        # a client that lost its reply repeats: acknowledged messages are sent again now and then too
        batch = sorted(unacknowledged)[:quota] + [f"m{n}" for n in rng.sample(range(MESSAGES), 3)]

        feeder = threading.Thread(target=child.say, args=batch)
        feeder.start()
        for _ in range(rng.randrange(1, len(batch) + 1) if kills < KILLS else len(batch)):
            unacknowledged.discard(child.process.stdout.readline().strip())
        kills += 1
        child.kill()
        feeder.join()

    last = Child(tmp_path)
    reader = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    spool = Spool(reader, BlobStore(tmp_path / "blobs", vault), vault, node="reader", schedule=RetrySchedule())
    try:
        until(lambda: spool.counts()[DeliveryState.DELIVERED] >= 2 * MESSAGES, what="the queue being empty")
        assert spool.counts()[DeliveryState.READY] == 0
    finally:
        last.kill()
        reader.close()

    expected = sorted(f"m{n}{who}" for n in range(MESSAGES) for who in ("a@op2.example", "b@op3.example"))
    assert sorted(str(file.readlink()) for file in (tmp_path / "box").iterdir()) == expected
    bytes_sent = defaultdict(set)
    for line in (tmp_path / "calls").read_text().splitlines():
        delivery, digest = line.split()
        bytes_sent[delivery].add(digest)
    assert {len(digests) for digests in bytes_sent.values()} == {1}
