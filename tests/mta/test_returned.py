"""Failures that bring the message back, in the three forms there are: whole and encrypted, bare, in clear."""

from __future__ import annotations

import email
import email.policy
from collections.abc import AsyncIterator
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

import pytest
from sqlalchemy import update

from mta.any_delivery import AnyDelivery
from mta.delivery import NewDelivery
from mta.dsn import DsnOptions
from mta.dsn_conditions import wants_warning
from mta.message import Deferred, Delivered, DeliveryState, Failed, Message, Origin, TargetKind
from mta.notifications import DeliveryNotification, Returned, compose_dsn, parse_notification
from mta.overdue import Overdue, OverdueOptions
from mta.refusals import MAILBOX_UNKNOWN, REMOTE_DEFERRED, REMOTE_REFUSED
from mta.schedule import RetrySchedule
from mta.tables import messages
from smime.mime import parse_entity, split_multipart
from trust.refusals import Refused
from trust.store.database import Database

from .conftest import Clock, MakeSpool, submission
from .mailboxes import Mailboxes
from .road import GRIS, LABO, NOIR, Road, a_road
from .test_dsn import ENDED, consumer
from .test_notifications import NOTIFICATION

MAIL = (
    b"From: labo@op1.example\r\nTo: dr.noir@op2.example\r\nBcc: cache@op1.example\r\nMessage-ID: <77@op1.example>\r\n"
    b"Subject: XDM/1.0/DDM+Bilan DURAND Jeanne\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"\r\nglycemie 4,2\r\n"
)
NO = Failed(Refused(REMOTE_REFUSED, "RCPT: 550 5.1.1 <address> nobody here"))


@pytest.fixture
async def road(tmp_path: Path, mailboxes: Mailboxes) -> AsyncIterator[Road]:
    async with a_road(tmp_path, mailboxes, dsn=DsnOptions(return_max_bytes=5000)) as road:
        yield road


def parts(message: Message) -> list[EmailMessage]:
    """The leaves' containers of a report, as an independent reader sees them."""
    mail = email.message_from_bytes(message.content, policy=email.policy.default)
    report = next(part for part in mail.walk() if part.get_content_type() == "multipart/report")
    return list(report.iter_parts())  # type: ignore[attr-defined]


async def told(road: Road) -> Message:
    await road.quiet()
    (message,) = road.mailboxes.to(LABO)
    return message


async def test_all_of_it_comes_back_and_never_in_clear(road: Road) -> None:
    road.partners.outcomes[NOIR] = NO
    spool_id = road.accept(MAIL, NewDelivery(NOIR, TargetKind.SMTP), message_id="<77@op1.example>")
    message = await told(road)
    text, status, original = parts(message)
    assert "Le message d'origine est joint." in text.get_content()
    assert "nobody here" in text.get_content()
    assert original.get_content_type() == "message/rfc822"
    assert original.get_content()["Subject"] == "XDM/1.0/DDM+Bilan DURAND Jeanne"
    assert original.get_content().get_content().strip() == "glycemie 4,2"
    assert status.get_payload()[1]["Diagnostic-Code"] == "smtp; 550 5.1.1 <address> nobody here"
    notice = road.spool.find(message.message_id)[0]
    (kept,) = road.spool.ended_of(notice)
    assert b"decrypted=yes; signature=valid" in (road.spool.prepared(kept) or b"")
    assert road.state(spool_id) == [(DeliveryState.FAILED, REMOTE_REFUSED.code)]


@pytest.mark.parametrize(
    ("flags", "content"),
    [(("RET=HDRS",), MAIL), ((), MAIL + b"x" * 70 + b"\r\n" + b"y" * 900 + b"\r\n" + b"z\r\n" * 2000)],
)
async def test_headers_alone_when_asked_or_when_it_is_large(road: Road, flags: tuple[str, ...], content: bytes) -> None:
    road.partners.outcomes[NOIR] = NO
    road.accept(content, NewDelivery(NOIR, TargetKind.SMTP), flags=flags, message_id="<77@op1.example>")
    message = await told(road)
    returned = parts(message)[2]
    assert returned.get_content_type() == "text/rfc822-headers"
    assert "DURAND" in returned.get_content()
    assert "cache@" not in returned.get_content()
    assert b"glycemie" not in message.content


async def test_good_news_names_no_patient(road: Road) -> None:
    road.accept(MAIL, NewDelivery(NOIR, TargetKind.SMTP, notify="SUCCESS"), message_id="<77@op1.example>")
    message = await told(road)
    assert parts(message)[2].get_content_type() == "text/rfc822-headers"
    assert parts(message)[2].get_content().split() == ["Message-ID:", "<77@op1.example>"]
    assert b"DURAND" not in message.content


@pytest.mark.parametrize("patient", [False, True])
async def test_whom_nothing_can_be_encrypted_to_is_told_the_bare_fact(road: Road, patient: bool) -> None:
    """Another operator's mailbox without a certificate; the mail it sent was in clear inside TLS."""
    sender = "medecin@op2.example"
    recipient = "279035121518989@op1.example" if patient else GRIS
    road.mailboxes.outcomes[recipient] = Failed(Refused(MAILBOX_UNKNOWN))
    content = MAIL.replace(b"labo@op1.example", sender.encode())
    road.accept(
        content, NewDelivery(recipient, TargetKind.MAILBOX), origin=Origin.OPERATOR, sender=sender, peer="CN=two",
        message_id="<77@op1.example>",
    )  # fmt: skip
    await road.quiet()
    (message,) = road.partners.to(sender)
    for secret in (b"DURAND", b"glycemie", b"279035121518989"):
        assert secret not in message.content
    mail = email.message_from_bytes(message.content, policy=email.policy.default)
    assert mail.get_content_type() == "multipart/signed"
    found = parse_notification(message.content)
    assert isinstance(found, DeliveryNotification)
    assert found.original_message_id == "<77@op1.example>"
    (status,) = found.recipients
    assert (status.action, status.status, status.diagnostic) == ("failed", "5.1.1", "")
    assert status.final_recipient == ("hidden" if patient else GRIS)
    assert b".failed.clear@" in message.content


async def test_nothing_is_ever_said_in_clear_while_encrypting_is_possible(road: Road) -> None:
    """The notice with the original is refused for its size: the next one says less, encrypted all the same."""
    sender = NOIR
    road.mailboxes.outcomes[GRIS] = Failed(Refused(MAILBOX_UNKNOWN))
    road.partners.outcomes[sender] = Failed(Refused(REMOTE_REFUSED, "MAIL: 552 5.3.4 too big"))
    content = MAIL.replace(b"labo@op1.example", sender.encode())
    road.accept(
        content, NewDelivery(GRIS, TargetKind.MAILBOX), origin=Origin.OPERATOR, sender=sender, peer="CN=two",
        message_id="<77@op1.example>",
    )  # fmt: skip
    await road.quiet()
    first, second = road.partners.to(sender)
    for message in (first, second):
        assert b"application/pkcs7-mime" in message.content
        assert b"multipart/report" not in message.content
    assert len(second.content) < len(first.content)
    assert len(road.partners.to(sender)) == 2, "and nothing more after that"


async def test_a_directory_that_is_silent_is_no_reason_to_say_it_in_clear(road: Road) -> None:
    road.partners.outcomes[NOIR] = NO
    road.directory.down = True
    road.accept(MAIL, NewDelivery(LABO, TargetKind.MAILBOX), message_id="<77@op1.example>")
    await road.quiet()
    assert road.mailboxes.seen == []


async def test_a_postmaster_without_a_key_still_says_the_bare_fact(tmp_path: Path, mailboxes: Mailboxes) -> None:
    async with a_road(tmp_path, mailboxes, held=(LABO,)) as road:
        road.partners.outcomes[NOIR] = NO
        road.accept(MAIL, NewDelivery(NOIR, TargetKind.SMTP), message_id="<77@op1.example>")
        message = await told(road)
        assert isinstance(parse_notification(message.content), DeliveryNotification)
        assert b"glycemie" not in message.content
        assert b".failed.clear@" in message.content


@pytest.mark.parametrize(
    "original",
    [
        MAIL.replace(b"glycemie 4,2", "glycémie : 4,2   ".encode()),
        MAIL.replace(b"DURAND Jeanne", "DURAND Hélène".encode()),
        MAIL.replace(b"glycemie 4,2", b".\r\n..\r\nFrom here\r\n--=_x"),
    ],
)
async def test_what_is_hard_to_carry_comes_back_too(road: Road, original: bytes) -> None:
    road.partners.outcomes[NOIR] = NO
    road.accept(original, NewDelivery(NOIR, TargetKind.SMTP), message_id="<77@op1.example>")
    message = await told(road)
    assert b".failed@" in message.content
    assert parts(message)[2].get_content_type() in ("message/rfc822", "message/global")


@pytest.mark.parametrize(
    "original",
    [
        MAIL,
        MAIL.replace(b"glycemie 4,2", "glycémie : 4,2".encode()),
        MAIL.replace(b"DURAND Jeanne", "DURAND Hélène".encode()),
        MAIL.replace(b"glycemie 4,2", b".\r\n..\r\nFrom here\r\n--=_x"),
        MAIL.removesuffix(b"\r\n"),
        b"Subject: only a header\r\n",
        b"\r\n",
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_comes_back_is_what_was_sent(original: bytes, whole: bool) -> None:
    given = original if whole else original.partition(b"\r\n\r\n")[0].removesuffix(b"\r\n") + b"\r\n"
    content = compose_dsn(
        NOTIFICATION, author="p@op1.example", to="l@op1.example", subject="x", text="é\n", message_id="<d@op1.example>",
        date=1.0, arrival=1.0, returned=Returned(given, whole=whole),
    )  # fmt: skip
    assert content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")
    report = parse_entity(content)
    start, stop = split_multipart(report, report.content_type().parameters["boundary"])[2]
    returned = parse_entity(content, start, stop)
    assert bytes(returned.decoded()).removesuffix(b"\r\n") == given.removesuffix(b"\r\n")
    ascii_header = given.partition(b"\r\n\r\n")[0].isascii()
    kinds = ("message/rfc822", "text/rfc822-headers") if ascii_header else ("message/global", "message/global-headers")
    assert returned.content_type().media_type == kinds[0 if whole else 1]
    assert isinstance(parse_notification(content), DeliveryNotification)


# What takes long


@pytest.fixture
async def slow(tmp_path: Path, mailboxes: Mailboxes) -> AsyncIterator[Road]:
    async with a_road(tmp_path, mailboxes, overdue=OverdueOptions(quarantine_seconds=0)) as road:
        road.partners.outcomes[NOIR] = Deferred(Refused(REMOTE_DEFERRED, "RCPT: 450 4.2.2 mailbox full"))
        yield road


async def test_warned_once_after_four_hours_then_failed(slow: Road) -> None:
    spool_id = slow.accept(MAIL, NewDelivery(NOIR, TargetKind.SMTP), message_id="<77@op1.example>")
    await slow.quiet()
    slow.clock.now += 4 * 3600 - 10
    assert slow.overdue.look() is False
    await slow.quiet()
    assert slow.mailboxes.seen == []
    slow.clock.now += 20
    for _ in range(3):
        slow.overdue.look()
    await slow.quiet()
    (warning,) = slow.mailboxes.to(LABO)
    found = parse_notification(warning.content)
    assert isinstance(found, DeliveryNotification)
    (status,) = found.recipients
    assert (status.action, status.status, status.diagnostic) == ("delayed", "4.2.2", "smtp; 450 4.2.2 mailbox full")
    assert b"Will-Retry-Until: " in warning.content
    assert "warned" in slow.kinds(spool_id)
    slow.clock.now += 5 * 86400
    slow.spool.announce()
    await slow.quiet()
    last = parse_notification(slow.mailboxes.to(LABO)[1].content)
    assert isinstance(last, DeliveryNotification)
    assert [each.action for each in last.recipients] == ["failed"]
    assert "mailbox full" in last.recipients[0].diagnostic
    slow.overdue.look()
    await slow.quiet()
    assert len(slow.mailboxes.to(LABO)) == 2


WAITING = AnyDelivery(
    **{name: getattr(AnyDelivery.of(ENDED), name) for name in AnyDelivery.__dataclass_fields__ if name != "state"},
    state=DeliveryState.READY,
)


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ({"notify": ""}, True),
        ({"notify": "DELAY"}, True),
        ({"notify": "failure,delay"}, True),
        ({"notify": "FAILURE"}, False),
        ({"notify": "SUCCESS,FAILURE"}, False),
        ({"notify": "NEVER"}, False),
        ({"notify": "nonsense"}, True),
        ({"origin": Origin.MLLP}, True),
        ({"sender": ""}, False),
        ({"origin": Origin.SYSTEM}, False),
        ({"target": TargetKind.DOSSIER}, False),
        ({"target": TargetKind.MLLP}, False),
    ],
)
def test_who_is_warned(more: dict[str, object], warned: bool) -> None:
    assert wants_warning(replace(WAITING, **more)) is warned


async def test_a_new_process_and_a_clock_that_jumped_warn_nobody_twice(
    make_spool: MakeSpool, database: Database, clock: Clock
) -> None:
    spool = make_spool(clock=clock, schedule=RetrySchedule())
    for number in range(210):
        notify = "NEVER" if number % 2 else ""
        one = replace(submission(key=str(number)), deliveries=(NewDelivery(NOIR, TargetKind.SMTP, notify=notify),))
        spool.accept(replace(one, sender="labo@op1.example"))
    teller = consumer(spool)

    def looker() -> Overdue:
        return Overdue(spool, database, teller, None, OverdueOptions(), node="n1", clock=clock)

    first = looker()
    clock.now += 3 * 3600
    assert first.look() is False
    clock.now += 2 * 3600
    while first.look():
        pass
    assert sum(spool.counts().values()) == 210 + 105
    clock.now += 86400 * 400
    first.look()
    clock.now -= 86400 * 400
    for each in (first, looker()):
        while each.look():
            pass
    assert sum(spool.counts().values()) == 210 + 105


async def test_a_receipt_that_was_promised_and_does_not_come(slow: Road) -> None:
    slow.partners.outcomes[NOIR] = Delivered("250 taken", reports=True)
    spool_id = slow.accept(
        MAIL, NewDelivery(NOIR, TargetKind.SMTP, notify="SUCCESS,FAILURE"), message_id="<77@op1.example>"
    )
    await slow.quiet()
    slow.clock.now += 23 * 3600
    slow.overdue.look()
    assert slow.overdue.missing() == []
    slow.clock.now += 2 * 3600
    for _ in range(3):
        slow.overdue.look()
    await slow.quiet()
    (message,) = slow.mailboxes.to(LABO)
    found = parse_notification(message.content)
    assert isinstance(found, DeliveryNotification)
    assert [(each.action, each.final_recipient) for each in found.recipients] == [("relayed", NOIR)]
    assert "n'en a pas encore" in parts(message)[0].get_content()
    assert slow.overdue.missing() == [("smtp:op2.example", 1)]
    (step,) = [each for each in slow.spool.steps(spool_id) if each.kind == "missing"]
    assert step.detail == "no delivery receipt from op2.example"


async def test_a_receipt_is_late_since_it_was_relayed_however_long_it_waited_before(slow: Road) -> None:
    """Accepted two days before the partner took it: not late at once, and not forgotten either."""
    spool_id = slow.accept(
        MAIL, NewDelivery(NOIR, TargetKind.SMTP, notify="SUCCESS,FAILURE"), message_id="<77@op1.example>"
    )
    await slow.quiet()
    for _ in range(2):
        slow.clock.now += 86400
        slow.overdue.look()
    slow.partners.outcomes[NOIR] = Delivered("250 taken", reports=True)
    await slow.quiet()
    slow.clock.now += 3600
    slow.overdue.look()
    assert "missing" not in slow.kinds(spool_id)
    assert slow.overdue.missing() == []
    slow.clock.now += 24 * 3600
    for _ in range(2):
        slow.overdue.look()
    assert slow.kinds(spool_id).count("missing") == 1
    assert slow.overdue.missing() == [("smtp:op2.example", 1)]


async def test_nobody_who_can_be_told_is_asked_about_for_ever(slow: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a batch, to whose sender nobody may write any more: the next look is the last."""
    monkeypatch.setattr("mta.overdue._BATCH", 3)
    slow.partners.outcomes[NOIR] = Delivered("250 taken", reports=True)
    for number in range(7):
        slow.accept(
            MAIL, NewDelivery(NOIR, TargetKind.SMTP, notify="SUCCESS,FAILURE"), sender="gone@elsewhere.example",
            dedup_key=f"n{number}", message_id=f"<{number}@op1.example>",
        )  # fmt: skip
    await slow.quiet()
    slow.clock.now += 25 * 3600
    assert [slow.overdue.look() for _ in range(4)] == [True, True, False, False]


@pytest.mark.parametrize("relayed", [False, True])
async def test_a_damaged_envelope_hides_no_other(slow: Road, monkeypatch: pytest.MonkeyPatch, *, relayed: bool) -> None:
    monkeypatch.setattr("mta.overdue._BATCH", 3)
    if relayed:
        slow.partners.outcomes[NOIR] = Delivered("250 taken", reports=True)
    ids = [
        slow.accept(
            MAIL, NewDelivery(NOIR, TargetKind.SMTP, notify="SUCCESS,DELAY"), dedup_key=f"n{number}",
            message_id=f"<{number}@op1.example>",
        )
        for number in range(8)
    ]  # fmt: skip
    await slow.quiet()
    broken = update(messages).where(messages.c.id == ids[1]).values(envelope=b"broken")
    slow.database.transact(lambda connection: connection.execute(broken).rowcount)
    slow.clock.now += 25 * 3600
    while slow.overdue.look():
        pass
    kind = "missing" if relayed else "warned"
    assert [slow.kinds(each).count(kind) for each in ids] == [1, 0, 1, 1, 1, 1, 1, 1]


# Who was told, and who was not


async def test_the_trace_says_who_was_told(road: Road) -> None:
    road.partners.outcomes[NOIR] = NO
    spool_id = road.accept(MAIL, NewDelivery(NOIR, TargetKind.SMTP), message_id="<77@op1.example>")
    await told(road)
    steps = [(each.kind, each.detail) for each in road.spool.steps(spool_id)]
    assert steps[-1] == ("told", "failed")


async def test_the_trace_says_that_nobody_could_be_told(road: Road) -> None:
    """A partner that left the trust space meanwhile, and a mailbox that takes no notice in any form."""
    road.mailboxes.outcomes[GRIS] = NO
    gone = road.accept(
        MAIL, NewDelivery(GRIS, TargetKind.MAILBOX), origin=Origin.OPERATOR, sender="a@left.example", peer="CN=left"
    )
    road.mailboxes.outcomes[LABO] = NO
    road.partners.outcomes[NOIR] = NO
    deaf = road.accept(MAIL, NewDelivery(NOIR, TargetKind.SMTP), dedup_key="deaf")
    await road.quiet()
    assert [each.detail for each in road.spool.steps(gone) if each.kind == "untold"] == [
        "failed: its sender is nobody we can write to"
    ]
    assert [(each.kind, each.detail) for each in road.spool.steps(deaf)][-3:] == [
        ("told", "failed"), ("told", "failed, bare"), ("untold", "failed: mta.remote-refused"),
    ]  # fmt: skip


async def test_what_was_collected_and_failed_is_no_backscatter(road: Road) -> None:
    """Anybody may have written its Return-Path: our postmaster is told the bare fact, and nobody outside."""
    road.mailboxes.outcomes[GRIS] = NO
    spool_id = road.accept(
        MAIL, NewDelivery(GRIS, TargetKind.MAILBOX), origin=Origin.COLLECTED, sender=NOIR, peer="upstream"
    )
    await road.quiet()
    assert road.partners.seen == []
    (message,) = road.mailboxes.to("postmaster@op1.example")
    assert b"DURAND" not in message.content
    assert b"glycemie" not in message.content
    assert isinstance(parse_notification(message.content), DeliveryNotification)
    assert road.kinds(spool_id)[-1] == "told"


async def test_what_was_collected_and_waits_warns_nobody(slow: Road) -> None:
    slow.mailboxes.outcomes[GRIS] = Deferred(Refused(REMOTE_DEFERRED, "RCPT: 450 4.2.2 mailbox full"))
    slow.accept(MAIL, NewDelivery(GRIS, TargetKind.MAILBOX), origin=Origin.COLLECTED, sender=NOIR, peer="upstream")
    await slow.quiet()
    slow.clock.now += 5 * 3600
    slow.overdue.look()
    await slow.quiet()
    assert slow.partners.seen == []
    assert slow.mailboxes.to("postmaster@op1.example") == []


def test_a_part_of_eight_bits_is_announced_by_the_whole() -> None:
    original = b"Subject: x\r\nContent-Transfer-Encoding: 8bit\r\n\r\n\xc3\xa9\r\n"
    content = compose_dsn(
        NOTIFICATION, author="a@b.example", to="c@d.example", subject="s", text="t", message_id="<1@b.example>",
        date=1.0, arrival=1.0, returned=Returned(original, whole=True),
    )  # fmt: skip
    assert parse_entity(content).transfer_encoding() == "8bit"
