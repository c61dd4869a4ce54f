"""Random octets are handed out once, to whoever asks, in every thread and process."""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from trust.draw import FRESH_SECONDS, draw


@pytest.mark.parametrize("count", [0, 1, 12, 1023, 1024, 1025, 4096, 100_000])
def test_as_many_as_asked_for(count: int) -> None:
    assert len(draw(count)) == count


def test_none_is_handed_out_twice() -> None:
    with ThreadPoolExecutor(8) as threads:
        drawn = list(threads.map(lambda _: draw(12), range(20_000)))
    assert len(set(drawn)) == len(drawn)


def test_all_values_come() -> None:
    octets = b"".join(draw(16) for _ in range(4096))
    counts = [octets.count(bytes([value])) for value in range(256)]
    assert 150 < min(counts) <= max(counts) < 380


def test_a_forked_child_draws_its_own() -> None:
    draw(1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, draw(32))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 32) != draw(32)


def test_what_lies_in_stock_does_not_grow_old(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 1000.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "urandom", lambda count: asked.append(count) or bytes(count))
    draw(12)
    asked.clear()
    now += FRESH_SECONDS * 0.9
    draw(12)
    assert asked == []
    now += FRESH_SECONDS * 0.2
    draw(12)
    assert len(asked) == 1, "a machine set back to a snapshot must not draw the same for long"
    now -= 500.0
    draw(12)
    assert len(asked) == 2, "the clock of another boot"


def test_drawing_in_the_midst_of_drawing_gives_other_octets() -> None:
    """A signal handler runs between any two steps of what it interrupts."""
    drawn: list[bytes] = []

    def trace(frame: FrameType, event: str, _: object) -> object:
        if frame.f_code is not draw.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            sys.settrace(None)
            drawn.append(draw(12))
            sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in range(100):
            drawn.append(draw(12))
    finally:
        sys.settrace(before)
    assert len(drawn) > 100 * 20
    assert len(set(drawn)) == len(drawn)
