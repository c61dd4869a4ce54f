"""The benchmarks at a tiny scale: they run, and say what the design wants said."""

from __future__ import annotations

import json
import os

import pytest

from bridges.hl7 import reader
from bridges.report import Report
from config.bench import report, road
from config.bench.history import history
from config.bench.protection import openssl_cms

IDS = {"road_293k_mps", "road_vs_openssl_process", "road_p99_ms", "road_p50_ms", "trace_ms"}


def test_a_row_is_the_median_of_its_runs() -> None:
    made = report.row("x_vs_y", [2.0, 4.0, 3.0], "1/s", 7, reference="y", reference_values=[1.0, 6.0, 2.0])
    assert made == {
        "id": "x_vs_y",
        "value": 3.0,
        "unit": "1/s",
        "n": 7,
        "runs": 3,
        "spread": 0.6667,
        "reference": "y",
        "reference_value": 2.0,
        "ratio": 1.5,
    }
    alone = report.row("x", [0.0], "s", 1)
    assert (alone["spread"], alone["reference"], alone["reference_value"], alone["ratio"]) == (0.0, None, None, None)


@pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (100, 100), (0.1, 1)])
def test_percentiles_are_values_that_were_measured(percent: float, expected: int) -> None:
    assert report.percentile(range(100, 0, -1), percent) == expected


def test_the_report_has_the_official_size_and_is_read() -> None:
    made = road.official_report()
    assert abs(len(made) - road.OFFICIAL_BYTES) < 1000
    read = reader.parse(made, environment="test")
    assert isinstance(read, Report), read
    assert made == road.official_report(), "the same bytes every time"


def test_a_prepared_history_is_what_the_spool_reads() -> None:
    with history(300, 20, 2) as measure:
        runs = measure()
    assert [len(run) for run in runs] == [20, 20]
    assert all(0 < seconds < 1 for run in runs for seconds in run)


def test_the_reference_signs_and_encrypts() -> None:
    with openssl_cms(2) as openssl:
        assert openssl.mails_per_second(2, 10_000) > 0
        protected = openssl._protect(os.urandom(10_000))
    assert len(protected) > 10_000
    assert bytes.fromhex("060b2a864886f70d0109100117") in protected, "AuthEnvelopedData (RFC 5083)"
    assert bytes.fromhex("06092a864886f70d010107") in protected, "RSAES-OAEP (RFC 8017)"


@pytest.mark.proof
@pytest.mark.e2e
@pytest.mark.timeout(110)
def test_the_road_is_measured_end_to_end() -> None:
    made = road.measure("quick", road.Scale(reports=2, runs=1, history=50, lookups=4))
    assert json.loads(json.dumps(made)) == made
    assert (made["bench"], made["version"], made["scale"]) == ("road", 1, "quick")
    assert made["machine"]["cores"] >= 1
    rows = {row["id"]: row for row in made["rows"]}
    assert rows.keys() >= IDS
    for row in rows.values():
        assert row["runs"] == 1
        assert ("_vs_" in row["id"]) == (row["ratio"] is not None)
    assert rows["road_293k_mps"]["value"] > 0
    assert rows["road_p99_ms"]["value"] >= rows["road_p50_ms"]["value"] > 0
    for process in ("laboratoire", "ville"):
        assert rows[f"road_cpu_s_{process}"]["value"] > 0
        assert rows[f"road_peak_mb_{process}"]["value"] > 20
    assert {"road_peak_mb_slapd", "road_peak_mb_dovecot", "road_peak_mb_up"} <= rows.keys()
