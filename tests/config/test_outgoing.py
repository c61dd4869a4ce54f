"""What leaves: how the settings become patience, and how an operator's "now" reaches destinations that rest."""

from __future__ import annotations

from typing import Any

import pytest

from config.control import Peer
from config.gateway.targets import worker_options
from config.queue_answers import QueueAnswers


@pytest.mark.parametrize("final", [10.0, 600.0, 3600.0])
def test_an_attempt_outlasts_the_wait_for_the_final_answer(final: float) -> None:
    """Or what was sent whole would be given up before its answer may come, and be sent again."""
    options = worker_options(8, final)
    assert options.attempt_seconds >= final + 300
    assert options.attempt_seconds >= 600
    assert options.lease_seconds > options.attempt_seconds


class Asked:
    """A queue that has done it."""

    def __init__(self) -> None:
        self.acts: list[str] = []

    def named(self, name: str) -> list[str]:
        return [name]

    def __getattr__(self, act: str) -> Any:
        return lambda *_, **__: self.acts.append(act) or []


@pytest.mark.parametrize("act", ["retry", "hold"])
def test_retry_now_means_now_also_where_a_destination_rests(act: str) -> None:
    queue = Asked()
    answers = QueueAnswers(queue, None, lambda: queue.acts.append("hurry"))  # type: ignore[arg-type]
    said = {"act": act, "references": ["d1"], "although_told": False, "reason": "x", "by": "a", "peer": Peer(1, 0)}
    answers.act(said)
    assert queue.acts == (["retry", "hurry"] if act == "retry" else ["hold"])
