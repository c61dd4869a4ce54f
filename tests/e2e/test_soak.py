"""The soak, short: everything around the gateway goes wrong, and each message has one fate. And its judge, lied to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from config.bench.soak import _FORBIDDEN, Clocks, failed, judge
from config.bench.soak_hop import Copy

pytestmark = [pytest.mark.e2e]


@pytest.mark.timeout(180)
def test_nothing_is_lost_doubled_or_shown() -> None:
    """Each fault once: killed, its database locked, its disk filled, the directory or the mail store killed."""
    program = "import json; from config.bench.soak import soak; print(json.dumps(soak(20, pause=0.3, once=True)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, cwd="/", timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_kept(json.loads(done.stdout), 20, hopeless=1)


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_shown_in_a_longer_run() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "config", "bench", "soak", "--messages", "120", "--pause", "1.0", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=590,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert_kept(json.loads(done.stdout), 120, hopeless=3)


def assert_kept(answer: dict[str, Any], messages: int, hopeless: int) -> None:
    """`hopeless`: so many are refused for good by the hop (7, 47, 87, ...)."""
    found = {row["id"]: row["value"] for row in answer["rows"]}
    assert not failed(answer), json.dumps([found, answer["refusals"], answer["to_explain"]])
    assert found["accepted"] == messages
    assert found["delivered_once"] + found["ambiguous_hops"] + found["dsn"] == messages
    assert found["dsn"] == hopeless
    assert found["kills"] >= 1 and found["database_locks"] >= 1
    assert found["disk_fills"] >= 1 or "root" in answer["notes"][0] or os.geteuid() != 0


def copy(at: float, *, answered: bool = True, clear: bool = False) -> Copy:
    return Copy(at, answered, clear)


def test_the_judge_excuses_a_double_only_when_somebody_died() -> None:
    fates = {
        1: [copy(10.0)],
        2: [copy(10.0), copy(60.0)],
        3: [copy(10.0, answered=False), copy(12.0)],
        4: [copy(100.0), copy(130.0)],
        5: [copy(10.0, answered=False), copy(20.0), copy(60.0)],
    }
    found_dead = {4: [110.0], 5: [21.0], 8: [70.0], 9: [110.0]}
    fates |= {8: [copy(10.0), copy(80.0)], 9: [copy(105.0), copy(130.0)]}
    verdict = judge(set(range(1, 10)), fates, {6}, kills=[101.0], interrupted=lambda number: found_dead.get(number, []))
    assert (verdict.once, verdict.ambiguous) == (1, 2)
    assert verdict.twice == (2, 5, 8, 9), "nobody was killed, or before the first copy, or not with it in hand"
    assert (verdict.dsn, verdict.lost) == (1, (7,))


def test_the_judge_sees_clear_copies_and_unfounded_notices() -> None:
    verdict = judge({1, 2}, {1: [copy(1.0, clear=True)], 2: [copy(1.0)]}, {2}, kills=[], interrupted=lambda _: [])
    assert (verdict.clear, verdict.unfounded) == (1, 1)
    rows = [{"id": name, "value": 0.0} for name in _FORBIDDEN]
    assert not failed({"rows": rows})
    rows[2]["value"] = 1.0
    assert failed({"rows": rows})


def test_a_wall_clock_that_is_set_does_not_move_what_happened_before() -> None:
    clocks = Clocks()
    for wall, monotonic in ((2e9, 100.0), (2e9 + 10, 110.0), (2e9 + 23, 120.0), (2e9 + 33.01, 130.0)):
        clocks.add(wall, monotonic)
    assert clocks.monotonic(2e9 + 5) == pytest.approx(105.0)
    assert clocks.monotonic(2e9 + 23.5) == pytest.approx(120.5)
    assert clocks.monotonic(2e9 + 40) == pytest.approx(137.0)
