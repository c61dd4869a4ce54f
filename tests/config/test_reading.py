"""A frame is parsed once, however many ask and however they ask."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from config.reading import ReadOnce


def test_all_who_ask_share_one_reading() -> None:
    asked, everybody = [], threading.Barrier(8)
    begun = threading.Event()

    def parse(frame: bytes) -> object:
        asked.append(frame)
        begun.wait(5)
        return object()

    read = ReadOnce(parse)

    def ask(_: int) -> object:
        everybody.wait(5)
        return read(b"frame")

    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(ask, n) for n in range(8)]
        begun.set()
        assert len({id(answer.result(5)) for answer in answers}) == 1
    assert asked == [b"frame"]
    assert read(b"frame2") is not read(b"frame")


def test_few_and_small_ones_are_remembered() -> None:
    asked: list[bytes] = []
    read = ReadOnce(asked.append, frames=2, frame_bytes=3)
    for frame in (b"1", b"2", b"1", b"3", b"1", b"2", b"long", b"long"):
        read(frame)
    assert asked == [b"1", b"2", b"3", b"2", b"long", b"long"]


def test_what_it_raised_is_tried_again() -> None:
    answers: list[object] = [ValueError("once"), "read"]

    def parse(frame: bytes) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    read = ReadOnce(parse)
    with pytest.raises(ValueError, match="once"):
        read(b"frame")
    assert read(b"frame") == "read"
