"""Several ways to do the same work, measured in turns: whatever else the machine does meets all of them alike.

A race counts processor time, of the thread and of the processes it starts; on an idle machine that is the time on the
clock. The figure of a run is its median turn. What several threads gain is measured by the clock.
"""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Barrier, Thread

Work = Callable[[], object]
_SLICE_SECONDS = 0.02


def race(contestants: Mapping[str, Work], runs: int, seconds: float) -> dict[str, list[float]]:
    """Operations per second of processor time, by contestant and run; each works about `seconds` a run, in turns."""
    turns = {}
    for name, work in contestants.items():
        work()
        turns[name] = max(1, int(_SLICE_SECONDS / max(_timed(work, 1), 1e-6)))
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(runs):
        spent: dict[str, list[float]] = {name: [] for name in contestants}
        while min(map(sum, spent.values())) < seconds:
            for name, work in contestants.items():
                if sum(spent[name]) < seconds:
                    spent[name].append(_timed(work, turns[name]))
        for name, taken in spent.items():
            rates[name].append(turns[name] / statistics.median(taken))
    return rates


def in_threads(work: Work, threads: int, count: int) -> float:
    """Operations per second of `threads` threads that each do `count`."""
    start = Barrier(threads + 1)

    def body() -> None:
        start.wait()
        for _ in range(count):
            work()

    started = [Thread(target=body) for _ in range(threads)]
    for thread in started:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in started:
        thread.join()
    return threads * count / (time.perf_counter() - began)


def growth(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The exponent of time over size: the slope of the line through the logarithms (least squares). 1 is linear."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def _timed(work: Work, count: int) -> float:
    began = _processor_seconds()
    for _ in range(count):
        work()
    return _processor_seconds() - began


def _processor_seconds() -> float:
    """Of this thread, and of all processes that were started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime
