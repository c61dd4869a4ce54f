"""`relais bench trust` at a tiny scale: it runs, with every row the design names, and says what met its bar."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner
from cryptography import x509

from config.bench import hostile, journal, lists, trust, validating
from config.bench.authority import Authority, crl, random_serials, serials_of
from config.bench.child import BenchError
from config.cli import relais

IDS = {
    "validate_revoked_checked_vs_cryptography",
    "validate_vs_pyhanko",
    "pathological_same_subject_50_ms",
    "crl_load_eps",
    "crl_lookup_growth",
    "journal_append_eps",
    "journal_verify_eps",
}
TINY = trust.Scale(
    validating.Scale(runs=1, turns=1, leaves=4, few=1, entries=50),
    hostile.Scale(runs=1, counts=(2, hostile.SAME)),
    lists.Scale(runs=1, sizes=(10, 1000), lookups=100, checks=4),
    journal.Scale(runs=1, entries=200),
)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.mark.e2e
def test_every_row_of_the_design_is_measured() -> None:
    made = trust.measure("quick", TINY)
    assert json.loads(json.dumps(made)) == made
    assert (made["bench"], made["scale"]) == ("trust", "quick")
    rows = {row["id"]: row for row in made["rows"]}
    assert rows.keys() >= IDS == trust.BARS.keys()
    assert len(rows) == len(made["rows"]), "no id twice"
    for name, row in rows.items():
        assert row["value"] > 0, name
        if "_vs_" in name:
            assert row["ratio"] is not None, name
        assert ("bar" in row) == (name in IDS), name
    for name in IDS:
        assert isinstance(rows[name]["met"], bool)
    assert rows["crl_load_eps"]["n"] == 1000


def test_without_the_peer_its_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == validating.PEER else found(name))
    rows = {row["id"]: row for row in validating.validating(TINY.validating)}
    row = trust.BARS["validate_vs_pyhanko"].judge(rows["validate_vs_pyhanko"])
    assert "not installed" in row["skipped"]
    assert (row["value"], row["ratio"], row["met"], row["goal_met"]) == (None, None, None, None)
    assert rows["validate_revoked_checked_vs_cryptography"]["ratio"] > 0


def test_bars_have_a_direction() -> None:
    fast = {"value": 4.0, "ratio": 0.5}
    assert (
        trust.Bar(20, 5, at_most=True).judge(fast).items()
        >= {"met": True, "goal_met": True, "compared": "value <="}.items()
    )
    assert trust.Bar(3, 1, at_most=True).judge(fast)["met"] is False
    assert trust.Bar(0.4, 0.8, "ratio").judge(fast).items() >= {"met": True, "goal_met": False}.items()
    assert trust.Bar(4, None).judge(fast).items() >= {"met": True, "goal_met": None}.items()


def test_the_lists_are_what_they_claim(authority: Authority) -> None:
    encoded = authority.crl(1000, [5])
    read = x509.load_der_x509_crl(encoded)
    assert len(read) == 1001
    assert read.is_signature_valid(authority.ca.certificate.public_key())
    assert read.get_revoked_certificate_by_serial_number(5) is not None
    listed = serials_of(encoded, 10)
    assert len(set(listed)) == 10
    assert all(read.get_revoked_certificate_by_serial_number(serial) is not None for serial in listed)
    assert all(read.get_revoked_certificate_by_serial_number(serial) is None for serial in random_serials(10))
    assert len(x509.load_der_x509_crl(crl(authority.root, 0, datetime.now(UTC)))) == 0


def test_a_checker_that_does_not_check_is_no_contestant(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validating, "_HARD", {})
    with pytest.raises(BenchError, match="instead of relais-revocation-unknown"):
        validating.Ours(authority, 10)


def test_every_leaf_is_new(authority: Authority) -> None:
    leaves = authority.leaves(5)
    assert len(set(leaves)) == 5
    names = {x509.load_der_x509_certificate(leaf).subject.rfc4514_string() for leaf in leaves}
    assert len(names) == 5


def test_the_command_line_starts_without_it() -> None:
    program = "import sys, config.cli; print([name for name in sys.modules if name.startswith('config.bench')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_printed_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        trust.BARS["crl_load_eps"].judge(validating.skipped("crl_load_eps", "entries/s", "no list")),
        trust.BARS["journal_append_eps"].judge(
            {"id": "journal_append_eps", "value": 9.0, "unit": "entries/s", "n": 1, "runs": 1, "ratio": None}
        ),
    ]
    monkeypatch.setattr(trust, "trust", lambda scale: {"rows": rows})
    printed = CliRunner().invoke(relais, ["bench", "trust", "--quick"])
    assert printed.exit_code == 0
    assert "skipped no list" in printed.output
    assert "BAR MISSED: value >= 10000" in printed.output
