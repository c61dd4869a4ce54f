"""`relais bench smime` at a tiny scale: it runs, with every row the design names, and races as it should."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from config.bench import smime
from config.bench.race import growth, in_threads, race

IDS = {
    "sign_rsa2048_100k_vs_primitive",
    "sign_rsa2048_100k_vs_openssl",
    "encrypt_gcm_oaep_100k_vs_openssl",
    "open_rsa3072_100k_vs_primitive",
    "protect_two_threads_speedup_100k",
    "protect_two_threads_speedup_5m",
    "open_ber_40m_s",
    "open_ber_40m_mem_x",
    "dkim_sign_100k_vs_dkimpy",
    "linear_1k_100m",
}
TINY = smime.Scale(
    runs=1, seconds=0.01, large=2, sizes=(1000, 10_000, 100_000, 1_000_000), ber=1_000_000, recipients=(1, 10, 50)
)


@pytest.mark.proof
@pytest.mark.e2e
def test_every_row_of_the_design_is_measured() -> None:
    made = smime.measure("quick", TINY)
    assert json.loads(json.dumps(made)) == made
    rows = {row["id"]: row for row in made["rows"]}
    assert rows.keys() >= IDS
    assert len(rows) == len(made["rows"]), "no id twice"
    for name, row in rows.items():
        assert row["value"] > 0, name
        assert ("_vs_" in name) == (row["ratio"] is not None), name
    assert 0 < rows["open_ber_40m_mem_x"]["value"] < 20


def test_a_race_gives_one_rate_for_each_run() -> None:
    rates = race({"short": lambda: sum(range(1000)), "long": lambda: sum(range(20_000))}, 3, 0.02)
    assert [len(values) for values in rates.values()] == [3, 3]
    assert min(rates["short"]) > max(rates["long"])
    assert in_threads(lambda: None, 2, 10) > 0


def test_the_exponent_of_growth() -> None:
    sizes = [10, 100, 1000]
    assert growth(sizes, [2.0 * size for size in sizes]) == pytest.approx(1.0)
    assert growth(sizes, [0.1 * size**2 for size in sizes]) == pytest.approx(2.0)
    assert growth(sizes, [5.0, 5.0, 5.0]) == pytest.approx(0.0)


def test_a_process_keeps_freed_memory() -> None:
    """The second of two large blocks reuses the pages of the first: hardly any page faults are left."""
    program = (
        "import resource\n"
        "from config import allocator\n"
        "allocator.keep_freed_memory()\n"
        "bytes(8 << 20)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): bytearray(b'x') * (8 << 20)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert int(done.stdout) < 6000, "ten blocks of 2,048 pages each"
