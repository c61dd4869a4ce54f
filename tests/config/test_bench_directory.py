"""`relais bench directory` at a tiny scale: every row of the design is measured, beside its peers, and judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from config.bench import directory as bench
from config.bench import directory_asking as asking
from config.bench import directory_nation as nation
from config.bench.report import Bar
from config.cli import relais
from tests.support.private import service_directory

IDS = {
    "first_load_s",
    "first_load_vs_slapadd",
    "first_load_peak_mb",
    "daily_sync_s",
    "sync_peak_mb",
    "resolve_cold_p99_ms",
    "resolve_cold_ps",
    "search_p99_ms",
    "resolve_growth",
}
TINY = """
import json, sys
from pathlib import Path
from config.bench import directory as bench
scale = bench.Scale(600, 100, loads=1, days=1, runs=1, lookups=20, searches=3, certificates=20, changed=5.0)
print(json.dumps(bench.measure("quick", scale, bench.PARTS, Path(sys.argv[1]), lambda _: None)))
"""
needs_slapd = pytest.mark.skipif(shutil.which("slapd") is None, reason="slapd is missing")


@pytest.mark.proof
@pytest.mark.e2e
@needs_slapd
@pytest.mark.timeout(110)
def test_every_row_of_the_design_is_measured() -> None:
    with service_directory() as folder:
        # In a process of its own: started as root it becomes user `relais` for good.
        done = subprocess.run([sys.executable, "-P", "-c", TINY, str(folder)], capture_output=True, check=False)
        assert list(folder.iterdir()) == [], "nothing is left behind"
    assert done.returncode == 0, done.stderr.decode()
    made = json.loads(done.stdout)
    assert (made["bench"], made["version"], made["scale"]) == ("directory", 1, "quick")
    assert made["sizes"]["situations"] > 500 < made["sizes"]["entries"]
    assert made["sizes"]["mailboxes"] > 100 and made["sizes"]["certificates"] >= 10
    rows = {row["id"]: row for row in made["rows"]}
    assert len(rows) == len(made["rows"]), "no id twice"
    assert rows.keys() >= IDS | bench.BARS.keys()
    for name, row in rows.items():
        assert ("bar" in row) == (name in bench.BARS), name
        assert row["runs"] >= 1 and row["n"] > 0, name
        if name not in ("sync_writes_off", "sync_again_writes", "sync_growth"):
            assert row["value"] > 0, name
    for name in ("first_load_vs_slapadd", "resolve_cold_ps", "resolve_cold_p99_ms", "search_p99_ms", "sync_writes"):
        assert rows[name]["ratio"] > 0, f"{name} was measured beside its peer"
    for name in ("first_load_s", "daily_sync_s", "first_load_peak_mb", "sync_peak_mb"):
        assert rows[name]["met"] is None, "a bar for the nation is not met by a village"
    for name in ("first_load_vs_slapadd", "resolve_cold_p99_ms", "search_p99_ms", "resolve_growth"):
        assert isinstance(rows[name]["met"], bool)
    assert rows["sync_writes"]["value"] == rows["sync_writes"]["reference_value"] > 5
    assert rows["sync_writes_off"]["met"] is rows["sync_again_writes"]["met"] is True
    assert rows["first_load_with_children_peak_mb"]["value"] >= rows["first_load_peak_mb"]["value"] > 20


def test_a_bar_for_the_nation_is_judged_at_its_size() -> None:
    bar = bench.BARS["daily_sync_s"]
    assert bar.judge({"value": 200.0, "n": 2_300_000})["met"] is False
    assert bar.judge({"value": 100.0, "n": 2_300_000}).items() >= {"met": True, "goal_met": False}.items()
    small = bar.judge({"value": 1.0, "n": 2_000})
    assert (small["met"], small["goal_met"], small["bar"], small["bar_from_n"]) == (None, None, 180, bar.from_n)
    assert bench.SCALES["full"].situations >= bar.from_n
    assert Bar(0, None, at_most=True).judge({"value": 0.0, "n": 1})["met"] is True


def _edited(folder: Path, kind: str, edit: Callable[[list[str]], list[str]]) -> None:
    file = nation.files_of(folder)[kind]
    file.write_text("".join(edit(file.read_text("utf-8").splitlines(keepends=True))), "utf-8")


def test_changes_are_counted_from_the_lines(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        nation.generate(folder, 300, 0, 1.0)
    assert nation.changes(before, after) == set()
    _edited(after, "practice", lambda lines: [lines[0], *lines[1:][::-1]])
    assert nation.changes(before, after) == set(), "the order plays no part"
    person = next(nation.lines(nation.files_of(after)["practice"])).split("|")
    address = next(nation.lines(nation.files_of(after)["mssante"])).split("|")[1]
    _edited(after, "mssante", lambda lines: [lines[0], *lines[2:]])
    _edited(
        after, "practice", lambda lines: [*lines[:1], lines[1].replace(f"|{person[21]}|", "|999999999|"), *lines[2:]]
    )
    found = nation.changes(before, after)
    assert {("mailbox", address), ("person", person[2]), ("structure", "999999999")} <= found
    assert len(found) <= 4, "and the structure that he left, when nobody else is there"


def test_nobody_is_asked_about_twice() -> None:
    asked = asking.Addresses(tuple(f"c{n}" for n in range(100)), tuple(f"p{n}" for n in range(100)))
    taken = [address for turn in range(5) for both in asked.take(20, turn) for address in both]
    assert len(taken) == len(set(taken)) == 200
    ours, theirs = asked.take(20, 7)
    assert sum(each.startswith("c") for each in ours) == sum(each.startswith("c") for each in theirs) == 10


def test_questions_are_made_of_what_is_there(tmp_path: Path) -> None:
    nation.generate(tmp_path, 3_000, 0, 1.0)
    made = asking.questions(nation.files_of(tmp_path)["mssante"], 10)
    kinds = made.realistic | made.worst
    assert all(kinds.values()), [kind for kind, texts in kinds.items() if not texts]
    assert any(not text.isascii() for text in made.realistic["accents"])
    assert "Médecin" in made.worst["profession"]
    assert made == asking.questions(nation.files_of(tmp_path)["mssante"], 10)


def test_parts_that_do_not_exist_are_told() -> None:
    said = CliRunner().invoke(relais, ["bench", "directory", "--only", "load,dance"])
    assert said.exit_code == 2
    assert "dance: there are load, sync, resolve, search, growth" in said.output


def test_a_missed_bar_says_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        bench.BARS["resolve_cold_p99_ms"].judge(
            {"id": "resolve_cold_p99_ms", "value": 9.0, "unit": "ms", "n": 5, "runs": 1, "ratio": None}
        )
    ]
    monkeypatch.setattr(bench, "directory", lambda *_: {"rows": rows})
    printed = CliRunner().invoke(relais, ["bench", "directory"])
    assert printed.exit_code == 0
    assert "BAR MISSED: value <= 3" in printed.output
