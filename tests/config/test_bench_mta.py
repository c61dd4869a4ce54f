"""`relais bench mta` at a tiny scale: it runs, beside a real Postfix, and says what the design wants said."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from config.bench import mta, mta_spool
from config.bench.smtp_load import mail, send, sink

IDS = {
    "relay_10k_vs_postfix",
    "relay_1m_vs_postfix",
    "protect_relay_100k_vs_postfix_openssl",
    "protect_relay_100k_vs_postfix_clear",
    "accept_100k_mbps",
    "mem_5m_x",
    "queue_slowdown",
    "enqueue_durable_ps",
    "deliver_10k_ps",
    "latency_p99_ms",
}
TINY = mta.Scale(1, 20, 2, 6, 4, 6, 300, 100, 100, 3, 4)

needs_postfix = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("postfix") is None, reason="Postfix, or root to start it, is missing"
)


@pytest.mark.parametrize("size", [1000, 10_000, 100_000])
def test_a_mail_has_the_size_asked_for(size: int) -> None:
    assert abs(len(mail(size, 1)) - size) < 80


def test_the_parts_run_alone() -> None:
    enqueued, _ = mta_spool.enqueue(200, 1)
    assert enqueued["id"] == "enqueue_durable_ps"
    assert enqueued["value"] > 0


@pytest.mark.skipif(shutil.which("smtp-sink") is None, reason="smtp-sink is missing")
def test_the_sink_counts_and_the_client_delivers() -> None:
    (delivered,) = mta_spool.deliver(50, 10_000, 1)
    assert delivered["value"] > 0


@pytest.mark.e2e
@pytest.mark.proof
@pytest.mark.timeout(110)
@needs_postfix
def test_the_road_is_measured_beside_postfix() -> None:
    made = mta.measure("quick", TINY)
    assert json.loads(json.dumps(made)) == made
    assert (made["bench"], made["version"], made["scale"]) == ("mta", 1, "quick")
    assert "synchronous=FULL" in made["configuration"]["relais"]
    rows = {row["id"]: row for row in made["rows"]}
    assert rows.keys() >= IDS
    for row in rows.values():
        assert row["value"] >= 0
        if "_cpu_" not in row["id"]:  # so few messages may cost less than the kernel's clock ticks
            assert ("_vs_" in row["id"]) == (row["ratio"] is not None)


@needs_postfix
def test_what_comes_through_the_filter_is_encrypted() -> None:
    from config.bench.holders import key_files
    from config.bench.postfix import postfix

    with tempfile.TemporaryDirectory(prefix="relais-bench-") as place, sink() as into:
        Path(place).chmod(0o711)
        with postfix(Path(place) / "postfix", into.port, key_files(Path(place) / "keys")) as peer:
            send(peer.port, 2, 1000)
            into.wait(2, 60)
            assert peer.cost().cpu_seconds > 0
