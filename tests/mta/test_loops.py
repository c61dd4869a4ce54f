"""What goes round is found; what is passed on, answered or redirected to somebody else is not."""

from __future__ import annotations

import pytest

from mta.header import is_automatic, received
from mta.loops import MAX_OWN, going_round, own_traces
from mta.message import Message, Origin
from smime.mime import parse_entity

HOST = "gate.op1.example"
IDS = {f"{number:032x}": [f"r{number}@op1.example"] for number in range(20)}


def trace(number: int, host: str = HOST) -> bytes:
    message = Message("<1@x>", f"{number:032x}", "d", Origin.OPERATOR, "", "", b"", "message/rfc822", 1_800_000_000.0)
    return received(host, message)


def header(*fields: bytes) -> bytes:
    return b"".join(fields) + b"From: a@op2.example\r\n\r\n"


def test_our_own_trace_is_known_again() -> None:
    entity = parse_entity(header(trace(3), trace(7), trace(3), trace(9, "gate.op2.example")))
    assert own_traces(entity, HOST.upper()) == [f"{3:032x}", f"{7:032x}"]
    assert going_round(entity, HOST, {"r7@op1.example", "new@op1.example"}, IDS.__getitem__) == {"r7@op1.example"}
    assert going_round(entity, HOST, {"r9@op1.example"}, IDS.__getitem__) == frozenset()


@pytest.mark.parametrize(
    "field",
    [
        b"Received: from x by gate.op1.example (Relais)\r\n\twith ESMTPS id "
        + b"0" * 31
        + b"3;\r\n Sat, 1 Jan 2028\r\n",
        b"received: by gate.op1.example id " + b"0" * 31 + b"3\r\n",
    ],
)
def test_however_it_is_folded(field: bytes) -> None:
    assert own_traces(parse_entity(header(field)), HOST) == [f"{3:032x}"]


@pytest.mark.parametrize(
    "field",
    [
        b"Received: by gate.op1.example id short; x\r\n",
        b"Received: from gate.op1.example by op2.example id " + b"0" * 32 + b"; x\r\n",
        b"X-Received: by gate.op1.example id " + b"0" * 32 + b"; x\r\n",
        b"Received: by gate.op1.example.evil.example id " + b"0" * 32 + b"; x\r\n",
        b"Received: " + b"by gate.op1.example " * 40 + b"\r\n",
        b"Received:\r\n",
    ],
)
def test_what_is_not_ours(field: bytes) -> None:
    assert own_traces(parse_entity(header(field)), HOST) == []


def test_so_many_are_looked_up() -> None:
    asked: list[str] = []
    entity = parse_entity(header(*map(trace, range(20))))
    going_round(entity, HOST, {"x@op1.example"}, lambda spool_id: asked.append(spool_id) or [])  # type: ignore[func-returns-value]
    assert len(asked) == MAX_OWN


@pytest.mark.parametrize(
    ("fields", "automatic"),
    [
        (b"", False),
        (b"Auto-Submitted: no\r\n", False),
        (b"Auto-Submitted: NO (by hand)\r\n", False),
        (b"Auto-Submitted: auto-replied\r\n", True),
        (b"Auto-Submitted: auto-generated; owner=x\r\n", True),
        (b"Auto-Submitted: something-new\r\n", True),
        (b"Auto-Submitted: no\r\nAuto-Submitted: auto-replied\r\n", True),
        (b"Auto-Submitted:\r\n", False),
        (b"Auto-Submitted: (a program) auto-replied\r\n", True),
        (b"Auto-Submitted: (by (a human)) no (really); x=y\r\n", False),
        (b"AUTO-SUBMITTED :\r\n (x)\r\n\tauto-generated\r\n", True),
        (b"Auto-Submitted: (never closed no\r\n", True),
        (b"Auto-Submitted: " + b"(" * 100_000 + b"\r\n", True),
    ],
)
def test_what_nobody_wrote_by_hand(fields: bytes, automatic: bool) -> None:
    assert is_automatic(parse_entity(header(fields))) is automatic
