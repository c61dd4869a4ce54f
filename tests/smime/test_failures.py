"""Senders of what cannot be opened are made to wait, each by itself."""

from __future__ import annotations

import pytest

from smime import failures
from smime.failures import DecryptionFailures


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_pitfall_05_failures_are_rate_limited() -> None:
    clock = Clock()
    limiter = DecryptionFailures(3, 60, clock)
    for second in range(3):
        assert limiter.wait("a") == 0
        clock.now = 1000.0 + second
        limiter.failed("a")
    assert limiter.wait("a") == 58
    assert limiter.wait("b") == 0
    clock.now = 1060.0
    assert limiter.wait("a") == 0
    limiter.failed("a")
    assert limiter.wait("a") == 1


def test_more_failures_than_the_limit_do_not_grow_memory_nor_the_wait() -> None:
    clock = Clock()
    limiter = DecryptionFailures(2, 60, clock)
    for _ in range(1000):
        limiter.failed("a")
    assert limiter.wait("a") == 60


def test_senders_are_forgotten_the_quietest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_SENDERS", 2)
    limiter = DecryptionFailures(1, 60, Clock())
    for sender in ("a", "b", "a", "c"):
        limiter.failed(sender)
    assert [limiter.wait(sender) > 0 for sender in "abc"] == [True, False, True]


def test_senders_of_one_peer_together_have_a_limit_too_and_peers_are_apart() -> None:
    clock = Clock()
    limiter = DecryptionFailures(2, 60, clock)
    for number in range(20):
        assert limiter.wait(f"x{number}@lab.example", "op1") == 0
        limiter.failed(f"x{number}@lab.example", "op1")
    assert limiter.wait("new@lab.example", "op1") == 60
    assert limiter.wait("x1@lab.example", "op2") == 0
    limiter.failed("", "op2")
    limiter.failed("", "op2")
    assert limiter.wait("", "op2") == 60
    assert limiter.wait("", "op3") == limiter.wait("x@lab.example", "op2") == 0
    clock.now += 60
    assert limiter.wait("new@lab.example", "op1") == 0


def test_a_flood_of_senders_does_not_push_a_peer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_SENDERS", 3)
    limiter = DecryptionFailures(1, 60, Clock())
    for number in range(10):
        limiter.failed(f"x{number}", "op1")
    assert limiter.wait("x0", "op1") == 60


def test_a_window_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="limit"):
        DecryptionFailures(0)
