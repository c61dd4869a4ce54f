"""Logs: one JSON object a line, and never what an exception quotes."""

from __future__ import annotations

import json
import logging
import time

import pytest
import structlog

from config import logs


@pytest.fixture(autouse=True)
def restored() -> object:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], _ = before
    root.setLevel(before[1])
    structlog.reset_defaults()


def test_foreign_lines_lose_their_addresses() -> None:
    line = b"lmtp(9): Error: rcpt 279035121518989@patient.mssante.fr: lookup(a.b@x.fr): user=<c+d@y.fr>, 10.0.0.1 @\n"
    assert logs.without_addresses(line) == (
        b"lmtp(9): Error: rcpt <address>: lookup(<address>): user=<<address>>, 10.0.0.1 @\n"
    )


def test_an_endless_word_costs_no_more_than_its_length() -> None:
    began = time.process_time()
    assert logs.without_addresses(b"x" * 2_000_000) == b"x" * 2_000_000
    assert time.process_time() - began < 1


def test_exceptions_lose_their_text_in_both_loggers(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    try:
        raise ValueError("PAT-TROIS DOMINIQUE 279035121518989")
    except ValueError as error:
        structlog.get_logger("a").error("failed", exc_info=error)
        logging.getLogger("b").exception("failed too")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == ["failed", "failed too"]
    assert all(line["exception"] == "ValueError" for line in lines)
    assert "PAT-TROIS" not in json.dumps(lines)
