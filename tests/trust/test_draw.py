"""Random octets are handed out once, to whoever asks, in every thread and process."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from trust.draw import draw


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
