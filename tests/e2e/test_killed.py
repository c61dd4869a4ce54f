"""`kill -9` of any process at any moment, then restart: every acknowledged report arrives, and arrives once."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from config.control import ControlError
from config.show import acknowledgement_code
from tests.e2e.test_road import digest_of, mails_about, oru
from tests.support.private import until
from tests.support.reports import DOCTOR as TO_DOCTOR
from tests.support.running import Running, running

pytestmark = [pytest.mark.e2e]


def sent_until_acknowledged(up: Running, message: bytes, seconds: float = 60.0) -> None:
    """As a laboratory's system does: the same bytes again until an acknowledgement comes."""

    def acknowledged() -> bool:
        try:
            answer = up.send(message)
        except (OSError, TimeoutError):
            return False
        assert acknowledgement_code(answer) == "AA", answer
        return True

    until(acknowledged, seconds, "an acknowledgement")


def pid_of(up: Running, process: str) -> int | None:
    """The process to kill: a gateway by its control socket, the servers by their own pid files."""
    try:
        if process in ("laboratoire", "ville"):
            return int(up.ask(process, "ping")["pid"])
        path = {
            "dovecot": up.state / "dovecot" / "run" / "master.pid",
            "slapd": next(iter((up.state / "directory").rglob("slapd.pid"))),
        }[process]
        return int(path.read_text())
    except (ControlError, OSError, ValueError, StopIteration):
        return None


def wait_settled(up: Running) -> None:
    def settled() -> bool:
        try:
            return up.settled("laboratoire") and up.settled("ville")
        except ControlError:
            return False

    until(settled, 90, "empty queues after the kills")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "process",
    [
        "laboratoire",
        pytest.param("ville", marks=pytest.mark.proof),
        pytest.param("dovecot", marks=pytest.mark.proof),
        pytest.param("slapd", marks=pytest.mark.proof),
    ],
)
def test_any_child_is_killed_while_reports_travel(process: str) -> None:
    messages = [oru(f"KILL-{process}-{n}") for n in range(6)]
    chance = random.Random(process)
    with running() as up:
        done = threading.Event()
        killed: list[int] = []

        def kill_again_and_again() -> None:
            while not done.wait(chance.uniform(0.05, 0.9)):
                pid = pid_of(up, process)
                if pid is not None:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    killed.append(pid)

        killer = threading.Thread(target=kill_again_and_again)
        killer.start()
        try:
            for message in messages:
                sent_until_acknowledged(up, message)
            until(lambda: len(killed) >= 3, 60, "three kills")
        finally:
            done.set()
            killer.join()
        wait_settled(up)
        wait_readable(up)
        for number, message in enumerate(messages):
            digest = digest_of(message)
            assert len(mails_about(up, "gp", digest)) == 1, f"report {number} must be there once"


def wait_readable(up: Running) -> None:
    """Dovecot may just be starting again."""

    def readable() -> bool:
        try:
            with up.imap("gp"):
                return True
        except OSError:
            return False

    until(readable, 60, "the mailbox")


@pytest.mark.proof
@pytest.mark.timeout(240)
def test_the_supervisor_is_killed_and_nothing_of_it_stays_behind() -> None:
    """Its children end with it; the next start takes over the same state, and what was acknowledged arrives once."""
    with running() as up:
        message = oru("KILL-SUPERVISOR")
        up.accepted(message)
        children = [pid for pid in (pid_of(up, name) for name in ("laboratoire", "ville", "dovecot", "slapd")) if pid]
        assert len(children) == 4
        up.stop(signal.SIGKILL)
        for pid in children:
            until(gone(pid), 30, f"the end of process {pid}")
        up.start()
        wait_settled(up)
        assert len(mails_about(up, "gp", digest_of(message))) == 1


def gone(pid: int) -> Callable[[], bool]:
    def condition() -> bool:
        return not Path(f"/proc/{pid}").exists()

    return condition


@pytest.mark.timeout(240)
def test_the_next_hop_is_frozen_then_killed_between_its_answer_and_ours() -> None:
    """The other operator stops mid-conversation; ours is killed with the delivery under way; both come back."""
    with running() as up:
        message = oru("FROZEN-1", recipients=(TO_DOCTOR,))
        frozen = pid_of(up, "ville")
        assert frozen is not None
        os.kill(frozen, signal.SIGSTOP)
        up.accepted(message)
        sender = pid_of(up, "laboratoire")
        assert sender is not None
        until(lambda: prepared(up), 30, "protected bytes on disk")
        os.kill(sender, signal.SIGKILL)
        os.kill(frozen, signal.SIGKILL)
        wait_settled(up)
        assert len(mails_about(up, "gp", digest_of(message))) == 1


def prepared(up: Running) -> bool:
    """The delivery to the other operator has left the stages: its protected bytes are committed."""
    with closing(sqlite3.connect(f"file:{up.state}/laboratoire/relais.db?mode=ro", uri=True)) as database:
        (count,) = database.execute(
            "SELECT count(*) FROM mta_deliveries WHERE prepared_blob IS NOT NULL AND target = 'smtp'"
        ).fetchone()
    return int(count) > 0


@pytest.mark.timeout(120)
def test_sigterm_ends_everything_cleanly() -> None:
    with running() as up:
        children = [pid for pid in (pid_of(up, name) for name in ("laboratoire", "ville", "dovecot", "slapd")) if pid]
        assert up.stop() == 0
        for pid in children:
            assert gone(pid)(), f"process {pid} is still there"
        assert not (up.state / "endpoints.json").exists()
