"""What is different on the road of a gateway beside its one reader."""

from __future__ import annotations

from dataclasses import replace

from mta.message import Message, Origin, Phase
from mta.practice import FileUnopened, NoticesStayHere
from smime.refusals import CANNOT_OPEN, KEY_UNAVAILABLE
from trust.refusals import Refused

MESSAGE = Message(
    message_id="<1@op.example>",
    spool_id="s1",
    delivery_id="d1",
    origin=Origin.COLLECTED,
    sender="labo@op.example",
    recipient="dr@ville.example",
    content=b"From: labo@op.example\r\nX-Relais-Verdict: decrypted=yes; signature=valid\r\n"
    b"Content-Type: application/pkcs7-mime\r\n\r\nMIIB\r\n",
    content_type="message/rfc822",
    accepted_at=0.0,
)


class Answering:
    def __init__(self, answer: Message | Refused) -> None:
        self.answer = answer
        self.asked = 0

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        self.asked += 1
        return self.answer


async def test_what_can_never_be_opened_is_filed_as_it_came() -> None:
    stage = FileUnopened(Answering(Refused(CANNOT_OPEN)), "connecteur.invalid")
    filed = await stage.apply(MESSAGE, Phase.OPEN)
    assert isinstance(filed, Message)
    header, _, body = filed.content.partition(b"\r\n\r\n")
    assert body == b"MIIB\r\n"
    assert b"X-Relais-Delivery: d1\r\n" in header
    assert header.count(b"X-Relais-Verdict") == 1
    assert b"decrypted=no; signature=unknown; signer=-; path=-; refused=smime.cannot-open" in header
    assert b"signature=valid" not in header
    assert filed.facts["warning.unopened"] == "smime.cannot-open"


async def test_what_cannot_be_opened_now_waits_and_other_phases_are_left_alone() -> None:
    waits = Refused(KEY_UNAVAILABLE)
    assert await FileUnopened(Answering(waits), "h").apply(MESSAGE, Phase.OPEN) is waits
    refused = Refused(CANNOT_OPEN)
    assert await FileUnopened(Answering(refused), "h").apply(MESSAGE, Phase.PROTECT) is refused
    assert await FileUnopened(Answering(MESSAGE), "h").apply(MESSAGE, Phase.OPEN) is MESSAGE


async def test_our_notices_need_no_key_and_no_directory() -> None:
    protecting = Answering(Refused(CANNOT_OPEN))
    stage = NoticesStayHere(protecting)
    ours = replace(MESSAGE, origin=Origin.SYSTEM)
    assert await stage.apply(ours, Phase.PROTECT) is ours
    assert protecting.asked == 0
    for origin in (Origin.SUBMISSION, Origin.MLLP, Origin.COLLECTED):
        assert isinstance(await stage.apply(replace(MESSAGE, origin=origin), Phase.PROTECT), Refused)
