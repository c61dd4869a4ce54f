"""The conversation without a socket: what is said when, which reply belongs to what, what is known after a break."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.smtp.pipeline import BLOCK, Answered, Broken, DsnRequest, Fate, Pipeline, Transaction
from mta.smtp.reply import Reply, ReplyError

ONE = Transaction("a@b.example", "c@d.example", b"A: 1\r\n\r\n.dot\r\n")
TWO = Transaction("", "e@d.example", b"A: 2\r\n\r\nno end")
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n"


def said(code: int) -> Reply:
    return Reply(code, ("2.0.0 words",))


def accepted(pipeline: Pipeline[str]) -> None:
    for code in (250, 250, 354):
        assert pipeline.reply(said(code)) is None


def test_one_flight_and_the_next_envelope_behind_the_end() -> None:
    pipeline: Pipeline[str] = Pipeline({"PIPELINING": ""})
    pipeline.begin(ONE, "one")
    assert pipeline.take() == ENVELOPE
    assert not pipeline.ready
    accepted(pipeline)
    assert pipeline.take() == b"A: 1\r\n\r\n..dot\r\n.\r\n"
    assert pipeline.ready
    pipeline.begin(TWO, "two")
    assert pipeline.take() == b"MAIL FROM:<>\r\nRCPT TO:<e@d.example>\r\nDATA\r\n"
    assert not pipeline.ready, "one ahead, no more"
    assert pipeline.reply(said(250)) == ("one", Answered(said(250), "end of data"))
    accepted(pipeline)
    assert pipeline.take() == b"A: 2\r\n\r\nno end\r\n.\r\n"
    assert pipeline.reply(said(550)) == ("two", Answered(said(550), "end of data"))
    assert pipeline.empty
    assert pipeline.ready


def test_step_by_step_without_pipelining() -> None:
    pipeline: Pipeline[str] = Pipeline({})
    pipeline.begin(ONE, "one")
    lines = []
    for code in (250, 250, 354):
        lines.append(pipeline.take())
        pipeline.reply(said(code))
    assert b"".join(lines) == ENVELOPE
    pipeline.take()
    assert not pipeline.ready, "nothing goes ahead"
    assert pipeline.reply(said(250)) is not None
    assert pipeline.ready


def test_parameters_only_where_announced() -> None:
    wish = DsnRequest("e1", "HDRS", "FAILURE", "rfc822;c@d.example")
    transaction = Transaction("a@b.example", "c@d.example", "é\r\n".encode(), wish, require_tls=True)
    pipeline: Pipeline[str] = Pipeline(dict.fromkeys(("PIPELINING", "SIZE", "8BITMIME", "DSN", "REQUIRETLS"), ""))
    pipeline.begin(transaction, "one")
    assert pipeline.take() == (
        b"MAIL FROM:<a@b.example> SIZE=4 BODY=8BITMIME RET=HDRS ENVID=e1 REQUIRETLS\r\n"
        b"RCPT TO:<c@d.example> NOTIFY=FAILURE ORCPT=rfc822;c@d.example\r\nDATA\r\n"
    )


@pytest.mark.parametrize(
    ("codes", "step", "then"),
    [
        ((550, 503, 503), "MAIL", b"RSET\r\n"),
        ((250, 550, 554), "RCPT", b"RSET\r\n"),
        ((250, 550, 354), "RCPT", b".\r\n"),
        ((250, 250, 451), "DATA", b"RSET\r\n"),
    ],
)
def test_a_refusal_is_told_at_once_and_leaves_nothing_behind(codes: tuple[int, ...], step: str, then: bytes) -> None:
    pipeline: Pipeline[str] = Pipeline({"PIPELINING": ""})
    pipeline.begin(ONE, "one")
    pipeline.take()
    results = [pipeline.reply(said(code)) for code in codes]
    (ended,) = [each for each in results if each is not None]
    assert ended[1].step == step
    assert not pipeline.ready
    assert pipeline.take() == then
    assert pipeline.reply(said(250)) is None
    assert pipeline.ready
    assert not pipeline.closing


def fates(lost: list[tuple[str, Broken]]) -> dict[str, tuple[str, Fate, bool]]:
    return {token: (broken.step, broken.fate, broken.innocent) for token, broken in lost}


@pytest.mark.parametrize(
    ("codes", "taken", "fate"),
    [
        ((), 0, ("MAIL", Fate.NOT_TAKEN, False)),
        ((250,), 1, ("RCPT", Fate.NOT_TAKEN, False)),
        ((250, 250), 1, ("DATA", Fate.NOT_TAKEN, False)),
        ((250, 250, 354), 1, ("DATA", Fate.NOT_TAKEN, False)),
        ((250, 250, 354), 2, ("end of data", Fate.UNKNOWN, False)),
    ],
)
def test_what_is_known_when_the_connection_breaks(
    codes: tuple[int, ...], taken: int, fate: tuple[str, Fate, bool]
) -> None:
    pipeline: Pipeline[str] = Pipeline({"PIPELINING": ""})
    pipeline.begin(ONE, "one")
    for _ in range(min(taken, 1)):
        pipeline.take()
    for code in codes:
        pipeline.reply(said(code))
    for _ in range(taken - 1):
        pipeline.take()
    assert fates(pipeline.broken("lost")) == {"one": fate}


def test_of_two_the_second_was_surely_not_taken() -> None:
    pipeline: Pipeline[str] = Pipeline({"PIPELINING": ""})
    pipeline.begin(ONE, "one")
    pipeline.take()
    accepted(pipeline)
    pipeline.take()
    pipeline.begin(TWO, "two")
    pipeline.take()
    assert fates(pipeline.broken("lost")) == {
        "one": ("end of data", Fate.UNKNOWN, False),
        "two": ("MAIL", Fate.NOT_TAKEN, True),
    }


def test_a_long_message_not_sent_to_its_end_is_surely_not_taken() -> None:
    pipeline: Pipeline[str] = Pipeline({"PIPELINING": ""})
    pipeline.begin(Transaction("a@b.example", "c@d.example", b"x" * (3 * BLOCK)), "long")
    pipeline.take()
    accepted(pipeline)
    assert len(pipeline.take()) == BLOCK
    assert len(pipeline.take()) == BLOCK
    assert fates(pipeline.broken("lost"))["long"][1] is Fate.NOT_TAKEN


def test_what_is_taken_back_ends_the_connection_after_the_answer_before_it() -> None:
    pipeline: Pipeline[str] = Pipeline({"PIPELINING": ""})
    pipeline.begin(ONE, "one")
    pipeline.take()
    accepted(pipeline)
    pipeline.take()
    assert pipeline.reclaim() is None
    pipeline.begin(TWO, "two")
    pipeline.take()
    assert pipeline.reclaim() == "two"
    assert not pipeline.finished, "the first still waits"
    assert pipeline.reply(said(250)) is not None
    assert pipeline.finished


@pytest.mark.parametrize(
    "codes", [(354,), (250, 354), (250, 250, 250), (250, 250, 354, 250), (250, 250, 354, None, 354)]
)
def test_replies_that_fit_nothing(codes: tuple[int | None, ...]) -> None:
    pipeline: Pipeline[str] = Pipeline({"PIPELINING": ""})
    pipeline.begin(ONE, "one")
    pipeline.take()
    with pytest.raises(ReplyError):
        for code in codes:
            if code is None:
                pipeline.take()
            else:
                pipeline.reply(said(code))


CODES = st.sampled_from((220, 250, 251, 354, 421, 450, 451, 452, 500, 503, 550, 552, 554))


@settings(max_examples=400, deadline=None)
@given(st.booleans(), st.lists(st.one_of(CODES, st.sampled_from(("begin", "take", "reclaim"))), max_size=60))
def test_whatever_happens_each_message_ends_once_and_rightly(pipelining: bool, events: list[int | str]) -> None:
    """A message counts as delivered only when its whole content with its end was handed over before the reply, and
    every message begun ends exactly once."""
    pipeline: Pipeline[int] = Pipeline({"PIPELINING": ""} if pipelining else {})
    sent = b""
    ended: dict[int, object] = {}
    begun = 0
    for event in events:
        if event == "begin":
            if pipeline.ready:
                pipeline.begin(Transaction("a@b.c", "d@e.f", b"X-%d: y\r\n\r\n" % begun), begun)
                begun += 1
        elif event == "take":
            sent += pipeline.take()
        elif event == "reclaim":
            token = pipeline.reclaim()
            if token is not None:
                assert token not in ended
                assert b"X-%d: y\r\n\r\n.\r\n" % token not in sent
                ended[token] = None
        else:
            assert isinstance(event, int)
            try:
                result = pipeline.reply(said(event))
            except ReplyError:
                break
            if result is not None:
                token, answered = result
                assert token not in ended
                ended[token] = answered
                if answered.delivered:
                    assert b"X-%d: y\r\n\r\n.\r\n" % token in sent
            if pipeline.finished:
                break
    for token, broken in pipeline.broken("lost"):
        assert token not in ended
        ended[token] = broken
        whole = b"X-%d: y\r\n\r\n.\r\n" % token in sent
        assert (broken.fate is Fate.UNKNOWN) == whole
    assert set(ended) == set(range(begun))
