"""SIGKILL between any two steps: what was acknowledged is delivered, once, and always with the same bytes."""

from __future__ import annotations

import os
import random
import re
import shutil
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


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_is_acknowledged_before_the_disk_has_it(tmp_path: Path) -> None:
    """As the kernel sees it: what was written is synced, then the sender is told. Rows share the database's sync; a
    large content is a file, synced and named before."""
    KeyVault.create(tmp_path / "vault")
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    database.close()
    calls = tmp_path / "calls"
    watched = "trace=fdatasync,fsync,write,pwrite64,?rename,?renameat,?renameat2"
    child = [sys.executable, "-m", "tests.mta.crash_child", str(tmp_path), "accept"]
    subprocess.run(
        ["strace", "-f", "-e", watched, "-e", "signal=none", "-s", "32", "-o", str(calls), *child],
        cwd=ROOT,
        input="row1\nfile0\nrow2\n",
        text=True,
        timeout=60,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    acknowledged, done = [], list[str]()
    for line in calls.read_text().splitlines():
        call = re.search(r"(fdatasync|fsync|pwrite64|rename|write)(?:at2?)?(?:\(| resumed)", line)
        if call is None or "<unfinished ...>" in line:
            continue
        if call[1] == "write":
            if key := re.search(r'write\(1, "(\w+)\\n"', line):
                acknowledged.append((key[1], done))
                done = []
            continue
        assert "= -1" not in line, line
        done.append(call[1])
    assert [key for key, _ in acknowledged] == ["row1", "file0", "row2"]
    for key, before in acknowledged:
        assert before[-2:] == ["pwrite64", "fdatasync"], f"{key} was told before its commit was synced: {before}"
        assert ("rename" in before) == (key == "file0")
    laid = [call for call in dict(acknowledged)["file0"] if call != "pwrite64"]
    assert laid == ["fsync", "rename", "fsync", "fdatasync"], "content, its name, then the row that names it"


@pytest.mark.e2e
def test_killed_at_every_commit_on_either_side_of_it(tmp_path: Path) -> None:
    vault = KeyVault.create(tmp_path / "vault")
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    database.close()
    run = subprocess.run(
        [sys.executable, "-m", "tests.mta.crash_child", str(tmp_path), "boundaries"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    commits = int(run.stdout)
    assert commits >= 4, "two are accepted, prepared and settled"
    acknowledged = set((tmp_path / "acknowledged").read_text().split())
    expected = sorted(f"{key}{who}" for key in acknowledged for who in ("a@op2.example", "b@op3.example"))
    assert len(acknowledged) == 4 * (commits + 1)
    assert sorted(str(file.readlink()) for file in (tmp_path / "box").iterdir()) == expected
    bytes_sent = defaultdict(list)
    for line in (tmp_path / "calls").read_text().splitlines():
        delivery, digest = line.split()
        bytes_sent[delivery].append(digest)
    assert {len(set(digests)) for digests in bytes_sent.values()} == {1}, "every attempt sends the same bytes"
    reader = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    spool = Spool(reader, BlobStore(tmp_path / "blobs", vault), vault, node="reader", schedule=RetrySchedule())
    assert spool.counts()[DeliveryState.DELIVERED] == len(expected)
    # twice only where the process died between the destination's answer and the commit of our note of it
    assert sum(len(digests) - 1 for digests in bytes_sent.values()) <= 4 * commits
    reader.close()
