"""What is different on the road of a gateway beside its one reader."""

from __future__ import annotations

import email
import email.policy
import ssl
from dataclasses import replace

from bridges.arriving.stage import ArrivalStage
from config.connector.standstills import look_for_standstills
from directory.records import MailboxKind
from mta.collecting import Collector, CollectorOptions
from mta.delivery import Accepted
from mta.mailboxes.records import MailboxRecord
from mta.message import Deferred, Delivered, Message, Origin, Phase, TargetKind
from mta.outages import Outage, Outages
from mta.practice import FileUnopened, NoticesStayHere
from mta.refusals import UNREACHABLE
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.system_mail import SystemMail
from smime.mime import parse_entity
from smime.refusals import CANNOT_OPEN, KEY_UNAVAILABLE
from trust.refusals import Refused

from .conftest import Clock, MakeSpool, submission

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


RECORD = MailboxRecord(address="dr@ville.example", kind=MailboxKind.PER, label="Dr Gris")


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
    assert b"decrypted=no; signature=unread; signer=-; path=-; refused=smime.cannot-open" in header
    assert b"signature=valid" not in header
    assert filed.facts["warning.unopened"] == "smime.cannot-open"
    # nor does what makes mail readable put anything around it
    arrived = ArrivalStage("connecteur.invalid", lambda address: RECORD)
    ready = await arrived.apply(filed, Phase.SCREEN)
    assert isinstance(ready, Message)
    assert parse_entity(ready.content).content_type().media_type == "application/pkcs7-mime"


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


# What stands still


def told(spool: Spool) -> list[tuple[str, str, str]]:
    """To whom, subject and text of each notice that waits; taken away."""
    found = []
    for lease in spool.claim(100, 60.0):
        mail = email.message_from_bytes(spool.content(lease), policy=email.policy.default)
        found.append((lease.recipient, mail["Subject"], mail.get_content()))
        assert spool.settle(lease, Delivered())
        assert (lease.origin, lease.target) == (Origin.SYSTEM, TargetKind.MAILBOX)
    return found


async def test_who_reads_a_mailbox_is_told_once_that_it_stands_still(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock)
    mail = SystemMail(spool, "dr@ville.example", "connecteur.invalid", {"ville.example"}, lambda domain: False)
    standing: list[Outage] = []
    outages = Outages(mail, lambda: list(standing), clock=clock)
    standing.append(Outage("b@ville.example", "collect", "La boîte n'est plus relevée.", "It is not collected."))
    outages.look()
    clock.now += 3599
    outages.look()
    assert told(spool) == []
    clock.now += 1
    outages.look()
    clock.now += 50_000
    outages.look()
    ((to, subject, text),) = told(spool)
    assert to == "b@ville.example"
    assert "intervention" in subject
    assert "n'est plus relevée" in text
    standing.clear()
    outages.look()
    ((to, subject, text),) = told(spool)
    assert (to, "retabli" in subject, "est réglé" in text) == ("b@ville.example", True, True)
    # what passed before anybody was told of it is not told at all; the next time counts for itself
    standing.append(Outage("b@ville.example", "collect", "x", "x"))
    outages.look()
    standing.clear()
    clock.now += 5000
    outages.look()
    assert told(spool) == []


async def test_what_stands_still_is_found(make_spool: MakeSpool, clock: Clock) -> None:
    spool = make_spool(clock=clock, schedule=RetrySchedule(pauses=(10.0,), jitter=0.0, lifetime=100_000.0))
    collector = Collector(
        CollectorOptions("m", "localhost", "u", "p", "a@ville.example", ssl.create_default_context()),
        spool,
        lambda address: True,
    )
    both = ("a@ville.example", "b@ville.example")

    def found(unusable: tuple[str, ...] = ()) -> set[tuple[str, str]]:
        seen = look_for_standstills(spool, lambda: [collector], both, unusable, clock)
        return {(each.address, each.name) for each in seen}

    assert found() == set()
    assert found(("b@ville.example",)) == {("b@ville.example", "collect")}
    for trouble, told_of in (("login-refused", True), ("no-key", True), ("ConnectionRefusedError", False)):
        collector._status = replace(collector.status, trouble=trouble)
        assert (found() == {("a@ville.example", "collect")}) is told_of
    collector._status = replace(collector.status, trouble="")
    for number, (target, refusal) in enumerate(
        [(TargetKind.MAILBOX, KEY_UNAVAILABLE), (TargetKind.MAILBOX, UNREACHABLE), (TargetKind.FOLDER, UNREACHABLE)]
    ):
        one = submission(f"{'abb'[number]}@ville.example", key=str(number), origin=Origin.COLLECTED, target=target)
        assert isinstance(spool.accept(one), Accepted)
        (lease,) = spool.claim(10, 60)
        assert spool.settle(lease, Deferred(Refused(refusal)))
    assert found() == set()
    clock.now += 3700
    assert found() == {("a@ville.example", "key"), ("a@ville.example", "folder"), ("b@ville.example", "folder")}
