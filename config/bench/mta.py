"""`relais bench mta`: the road beside Postfix, on the same machine, with the same load and into the same sink.

Contestants work in turns, so that whatever else the machine does meets all of them alike. Rates go by the clock, from
the first message sent to the last one in the sink; processor time per message, of all a contestant's processes, stands
beside them. Both keep every message on disk before they say yes.
"""

from __future__ import annotations

import smtplib
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from config import allocator
from config.bench import gateway as our_gateway
from config.bench import mta_spool
from config.bench import postfix as their_postfix
from config.bench.child import Cost
from config.bench.gateway import gateway
from config.bench.holders import key_files
from config.bench.postfix import postfix
from config.bench.report import percentile, result, row
from config.bench.smtp_load import DESCRIPTION, RECIPIENT, SENDER, Sink, mail, send, sink

Row = dict[str, Any]
SMALL, MEDIUM, LARGE, HUGE = 10_000, 100_000, 1_000_000, 5_000_000
_PATIENCE_SECONDS = 120.0
_MANY = 200
"""Large messages at the same time."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Messages in each run, by what is measured."""

    runs: int
    small: int
    large: int
    protected: int
    filtered: int
    accepted: int
    waiting: int
    enqueued: int
    delivered: int
    latencies: int
    many: int


SCALES = {
    "quick": Scale(3, 500, 30, 60, 12, 150, 50_000, 3_000, 3_000, 40, 24),
    "full": Scale(5, 10_000, 400, 1_000, 100, 3_000, 1_000_000, 50_000, 50_000, 500, _MANY),
}


class _Contestant(Protocol):
    port: int

    def cost(self) -> Cost: ...


@dataclass(frozen=True, slots=True)
class _Run:
    """One contestant's messages through to the sink."""

    accepted: float
    """A second, until the last one was answered."""
    through: float
    """A second, until the last one was in the sink."""
    milliseconds: float
    """Processor time for each."""


def mta(scale: str) -> Row:
    """Measure at `quick` or `full` scale. Raises `BenchError` when Postfix is missing or a message does not arrive."""
    allocator.collect_rarely()  # as a gateway does: parts of it are measured in this process
    return measure(scale, SCALES[scale])


def measure(name: str, scale: Scale) -> Row:
    """See `mta`."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relais-bench-")))
        place.chmod(0o711)  # Postfix and user `relais` go through
        bench = _Bench(place, scale, stack.enter_context(sink()))
        parts: tuple[Callable[[], list[Row]], ...] = (
            bench.relay,
            bench.protect,
            bench.accept,
            bench.memory,
            bench.latency,
            bench.waiting,
            lambda: mta_spool.enqueue(scale.enqueued, scale.runs),
            lambda: mta_spool.deliver(scale.delivered, SMALL, scale.runs),
        )
        return {
            **result("mta", name, [line for part in parts for line in part()]),
            "configuration": {
                "load": DESCRIPTION,
                "relais": our_gateway.CONFIGURATION,
                "postfix": their_postfix.CONFIGURATION,
                "pinning": "none: load, contestant and sink share the machine's cores; nobody else's work is excluded",
            },
        }


class _Bench:
    def __init__(self, place: Path, scale: Scale, into: Sink) -> None:
        self._place = place
        self._scale = scale
        self._sink = into

    def relay(self) -> list[Row]:
        """Accept, queue and deliver, without cryptography."""
        with (
            gateway(self._place / "relay", self._sink.port) as ours,
            postfix(self._place / "postfix", self._sink.port) as theirs,
        ):
            rows: list[Row] = []
            for identifier, size, count in (
                ("relay_10k_vs_postfix", SMALL, self._scale.small),
                ("relay_1m_vs_postfix", LARGE, self._scale.large),
            ):
                self._once(ours, min(count, 50), size)  # connections, caches and imports
                self._once(theirs, min(count, 50), size)
                pairs = [
                    (self._once(ours, count, size), self._once(theirs, count, size)) for _ in range(self._scale.runs)
                ]
                by = size / 1e6 if size == LARGE else 1.0
                unit = "MB/s" if size == LARGE else "messages/s"
                rows += _beside(identifier, pairs, by, unit, count, their_postfix.CONFIGURATION)
            return rows

    def protect(self) -> list[Row]:
        """Accept, sign, encrypt, sign again for the domain, and deliver; RSA-2048, 100 KB."""
        keys = key_files(self._place / "keys")
        with (
            gateway(self._place / "protect", self._sink.port, protect=True) as ours,
            postfix(self._place / "clear", self._sink.port) as clear,
            postfix(self._place / "filtered", self._sink.port, keys) as filtered,
        ):
            for warmed in (ours, clear, filtered):
                self._once(warmed, 8, MEDIUM)
            with_openssl, in_clear = [], []
            for _ in range(self._scale.runs):
                mine = self._once(ours, self._scale.protected, MEDIUM)
                in_clear.append((mine, self._once(clear, self._scale.protected, MEDIUM)))
                with_openssl.append((mine, self._once(filtered, self._scale.filtered, MEDIUM)))
        what = "content filter: openssl cms -sign | openssl cms -encrypt, a process each, handed back by smtp-source"
        unit, count = "messages/s", self._scale.protected
        return [
            *_beside("protect_relay_100k_vs_postfix_openssl", with_openssl, 1.0, unit, count, what),
            *_beside(
                "protect_relay_100k_vs_postfix_clear", in_clear, 1.0, unit, count, "relayed in clear by Postfix alone"
            ),
        ]

    def accept(self) -> list[Row]:
        """Kept, and nothing else done."""
        with gateway(self._place / "accept", self._sink.port, work=False) as ours:
            send(ours.port, 20, MEDIUM)
            rates = []
            for _ in range(self._scale.runs):
                began = time.monotonic()
                send(ours.port, self._scale.accepted, MEDIUM)
                rates.append(self._scale.accepted * MEDIUM / 1e6 / (time.monotonic() - began))
        return [row("accept_100k_mbps", rates, "MB/s", self._scale.accepted)]

    def memory(self) -> list[Row]:
        """Peak above idle, of a fresh process each."""
        relayed = [self._peak(f"memory-{n}", False, 1) / (HUGE / 2**20) for n in range(self._scale.runs)]
        protected = [self._peak(f"memory-protected-{n}", True, 1) / (HUGE / 2**20) for n in range(self._scale.runs)]
        many = self._peak("memory-many", False, self._scale.many)
        return [
            row("mem_5m_x", relayed, "times its size, relayed", 1),
            row("mem_5m_protected_x", protected, "times its size, protected", 1),
            row("mem_5m_many_mb", [many], "MB above idle, all sent at once", self._scale.many),
        ]

    def _peak(self, name: str, protect: bool, count: int) -> float:
        """MB of the largest resident set above what it was before, once something small has passed."""
        with gateway(self._place / name, self._sink.port, protect=protect) as ours:
            self._once(ours, 20, SMALL)
            before = ours.reset_peak()
            self._once(ours, count, HUGE, sources=min(count, 4), sessions=-(-count // 4))
            return ours.cost().peak_mb - before

    def latency(self) -> list[Row]:
        """One at a time on an idle road: from the first octet sent to the whole message in the sink, protected."""
        with gateway(self._place / "latency", self._sink.port, protect=True) as ours:
            seconds = []
            with smtplib.SMTP("127.0.0.1", ours.port) as client:
                for number in range(self._scale.latencies + 10):
                    content = mail(MEDIUM, number)
                    expected = self._sink.count + 1
                    began = time.monotonic()
                    client.sendmail(SENDER, [RECIPIENT], content)
                    seconds.append(self._sink.wait(expected, _PATIENCE_SECONDS) - began)
        measured = [1000 * each for each in seconds[10:]]
        return [
            row(name, [percentile(measured, percent)], "ms", len(measured))
            for name, percent in (("latency_p99_ms", 99), ("latency_p50_ms", 50))
        ]

    def waiting(self) -> list[Row]:
        """The road with a long queue behind it, beside an empty one."""
        mta_spool.fill(self._place / "waiting", self._scale.waiting)
        with (
            gateway(self._place / "empty", self._sink.port) as empty,
            gateway(self._place / "waiting", self._sink.port) as full,
        ):
            for warmed in (empty, full):
                self._once(warmed, 50, SMALL)
            pairs = [
                (self._once(empty, self._scale.small, SMALL), self._once(full, self._scale.small, SMALL))
                for _ in range(self._scale.runs)
            ]
            started = full.started_seconds
        slowdown = [without.through / within.through for without, within in pairs]
        work = [within.milliseconds / without.milliseconds for without, within in pairs]
        n = self._scale.waiting
        return [
            row("queue_slowdown", slowdown, "times as long as with an empty queue, 10 KB", n),
            row("queue_slowdown_cpu", work, "times the processor time, 10 KB", n),
            row("queue_start_s", [started], "s from the start of the process to its first look", n),
        ]

    def _once(self, contestant: _Contestant, count: int, size: int, **load: int) -> _Run:
        before, arrived = contestant.cost().cpu_seconds, self._sink.count
        began = time.monotonic()
        send(contestant.port, count, size, **load)
        answered = time.monotonic()
        last = self._sink.wait(arrived + count, _PATIENCE_SECONDS)
        used = contestant.cost().cpu_seconds - before
        return _Run(count / (answered - began), count / (last - began), 1000 * used / count)


def _beside(
    identifier: str, pairs: Sequence[tuple[_Run, _Run]], by: float, unit: str, count: int, reference: str
) -> list[Row]:
    """The rate beside the peer's, and both processor times."""
    ours, theirs = [mine for mine, _ in pairs], [other for _, other in pairs]
    return [
        row(
            identifier,
            [by * run.through for run in ours],
            unit,
            count,
            reference=reference,
            reference_values=[by * run.through for run in theirs],
        ),
        row(
            identifier.replace("_vs_", "_cpu_ms_vs_"),
            [run.milliseconds for run in ours],
            "ms of processor time a message",
            count,
            reference=reference,
            reference_values=[run.milliseconds for run in theirs],
        ),
    ]
