"""Receipts that repeat, come late or contradict each other: told once, filed once, and said when they disagree."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mta.delivery import NewDelivery
from mta.message import Deferred, Delivered, DeliveryState, Failed, Message, Origin, TargetKind
from mta.notices import Said, Weight, weigh
from mta.notifications import DeliveryNotification, RecipientStatus, compose_dsn, parse_notification
from mta.refusals import CONNECTION_LOST, REMOTE_REFUSED
from trust.refusals import Refused

from .mailboxes import Mailboxes
from .road import GRIS, LABO, NOIR, Road, a_road
from .test_returned import MAIL

D, F, R, W = Said.DELIVERED, Said.FAILED, Said.RELAYED, Said.DELAYED


@pytest.mark.parametrize(
    ("before", "said", "weight"),
    [
        ([], D, Weight.NEWS),
        ([D], D, Weight.REPEATED),
        ([D], F, Weight.CONTRADICTS),
        ([F], D, Weight.CONTRADICTS),
        ([D, F], F, Weight.REPEATED),
        ([D, F], D, Weight.CONTRADICTS),
        ([F], F, Weight.REPEATED),
        ([R], D, Weight.NEWS),
        ([R], F, Weight.NEWS),
        ([D], R, Weight.REPEATED),
        ([F], R, Weight.CONTRADICTS),
        ([], W, Weight.NEWS),
        ([W], W, Weight.REPEATED),
        ([D], W, Weight.REPEATED),
        ([W], D, Weight.NEWS),
        ([D], Said.DISPLAYED, Weight.NEWS),
        ([Said.DISPLAYED], Said.PROCESSED, Weight.NEWS),
        ([Said.PROCESSED, Said.DISPLAYED], Said.PROCESSED, Weight.REPEATED),
        ([Said.PROCESSED], Said.NOT_PROCESSED, Weight.CONTRADICTS),
    ],
)
def test_what_a_receipt_adds(before: list[Said], said: Said, weight: Weight) -> None:
    assert weigh(before, said).weight is weight


@pytest.fixture
async def road(tmp_path: Path, mailboxes: Mailboxes) -> AsyncIterator[Road]:
    async with a_road(tmp_path, mailboxes) as road:
        yield road


def sent(road: Road, notify: str = "SUCCESS,FAILURE") -> str:
    return road.accept(MAIL, NewDelivery(NOIR, TargetKind.SMTP, notify=notify), message_id="<77@op1.example>")


def notice(action: str, spool_id: str, number: int = 0, to: str = NOIR) -> bytes:
    return compose_dsn(
        DeliveryNotification((RecipientStatus(to, action, "5.1.1" if action == "failed" else "2.0.0"),), spool_id),
        author="postmaster@op2.example",
        to=LABO,
        subject=action,
        text=action,
        message_id=f"<{action}.{number}@op2.example>",
        date=1.0,
        arrival=1.0,
    )


async def comes(road: Road, content: bytes, **more: object) -> list[Message]:
    """What is filed of a mail that another operator brings."""
    road.clock.now += 60
    before = len(road.mailboxes.seen)
    values: dict[str, object] = {"sender": "", "peer": "CN=two"} | more
    road.accept(content, NewDelivery(LABO, TargetKind.MAILBOX), origin=Origin.OPERATOR, **values)
    await road.quiet()
    return road.mailboxes.seen[before:]


async def test_the_same_again_is_not_filed_again(road: Road) -> None:
    road.partners.outcomes[NOIR] = Delivered("250", reports=True)
    spool_id = sent(road)
    await road.quiet()
    assert len(await comes(road, notice("delayed", spool_id))) == 1
    assert len(await comes(road, notice("delayed", spool_id, 1))) == 0
    assert len(await comes(road, notice("delivered", spool_id))) == 1
    for number in range(1, 4):
        assert await comes(road, notice("delivered", spool_id, number)) == []
    assert await comes(road, notice("relayed", spool_id)) == []
    assert await comes(road, notice("delayed", spool_id, 2)) == []
    assert road.kinds(spool_id).count("answered") == 1
    assert road.kinds(spool_id).count("repeated") == 6


async def test_the_contrary_is_filed_and_says_so(road: Road) -> None:
    road.partners.outcomes[NOIR] = Delivered("250", reports=True)
    spool_id = sent(road)
    await road.quiet()
    (first,) = await comes(road, notice("delivered", spool_id))
    assert b"X-Relais-Notice" not in first.content
    (second,) = await comes(road, notice("failed", spool_id))
    assert second.content.startswith(b"X-Relais-Notice: contradicts; earlier=delivered\r\n")
    assert parse_notification(second.content) is not None
    assert await comes(road, notice("failed", spool_id, 1)) == []
    (step,) = [each for each in road.spool.steps(spool_id) if each.kind == "contradicted"]
    assert step.detail == "failed after delivered 5.1.1"
    assert road.kinds(spool_id).count("answered") == 1


async def test_failed_here_and_delivered_there(road: Road) -> None:
    road.partners.outcomes[NOIR] = Failed(Refused(REMOTE_REFUSED, "RCPT: 550 5.1.1 no"))
    spool_id = sent(road)
    await road.quiet()
    (ours,) = road.mailboxes.to(LABO)
    assert b"failed" in ours.content
    (theirs,) = await comes(road, notice("delivered", spool_id))
    assert theirs.content.startswith(b"X-Relais-Notice: contradicts; earlier=failed\r\n")


async def test_failed_here_and_failed_there_is_told_once(road: Road) -> None:
    road.partners.outcomes[NOIR] = Failed(Refused(REMOTE_REFUSED, "end of data: 554 no"))
    spool_id = sent(road)
    await road.quiet()
    assert len(road.mailboxes.to(LABO)) == 1
    assert await comes(road, notice("failed", spool_id)) == []


async def test_who_received_it_is_never_announced_as_failed(road: Road) -> None:
    """Their 250 was lost each time: we give up, and they have said that it arrived."""
    road.partners.outcomes[NOIR] = Deferred(Refused(CONNECTION_LOST, "end of data"))
    spool_id = sent(road)
    await road.quiet()
    road.accept(
        notice("delivered", spool_id), NewDelivery(LABO, TargetKind.MAILBOX),
        origin=Origin.OPERATOR, sender="", peer="CN=two",
    )  # fmt: skip
    async with asyncio.timeout(30):
        while not road.mailboxes.seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    road.clock.now += 6 * 86400
    await road.quiet()
    assert [state for state, _ in road.state(spool_id)] == [DeliveryState.FAILED]
    assert len(road.mailboxes.to(LABO)) == 1, "the operator's receipt, and no failure of ours"


@pytest.mark.parametrize(
    "more",
    [
        {"peer": "CN=three"},
        {"sender": "mallory@op2.example"},
    ],
)
async def test_who_is_not_believed_is_filed_each_time_and_changes_nothing(road: Road, more: dict[str, str]) -> None:
    road.partners.outcomes[NOIR] = Delivered("250", reports=True)
    spool_id = sent(road)
    await road.quiet()
    for number in range(2):
        assert len(await comes(road, notice("delivered", spool_id, number), **more)) == 1
    assert "answered" not in road.kinds(spool_id)
    assert road.notices.latest(road.spool.deliveries(spool_id)[0].delivery_id) is None


async def test_the_one_it_was_for_when_they_name_whom_they_forwarded_it_to(road: Road) -> None:
    road.partners.outcomes[NOIR] = Delivered("250", reports=True)
    spool_id = sent(road)
    await road.quiet()
    assert len(await comes(road, notice("failed", spool_id, to="boite17@inside.example"))) == 1
    assert "answered" in road.kinds(spool_id)


async def test_asked_again_after_a_crash_the_answer_is_the_same(road: Road) -> None:
    road.partners.outcomes[NOIR] = Delivered("250", reports=True)
    spool_id = sent(road)
    await road.quiet()
    about = road.deliveries.one(road.spool.deliveries(spool_id)[0].delivery_id)
    assert about is not None
    for _ in range(3):
        assert road.notices.hear(about, "1" * 32, D).weight is Weight.NEWS
    for _ in range(3):
        heard = road.notices.hear(about, "2" * 32, F)
        assert (heard.weight, heard.before) == (Weight.CONTRADICTS, D)
    assert road.notices.hear(about, "1" * 32, D).weight is Weight.NEWS
    assert road.kinds(spool_id).count("contradicted") == 1


async def test_a_reading_receipt_about_a_receipt_goes_nowhere(road: Road) -> None:
    road.mailboxes.outcomes[GRIS] = Failed(Refused(REMOTE_REFUSED, "RCPT: 550 no"))
    road.accept(MAIL, NewDelivery(GRIS, TargetKind.MAILBOX), message_id="<77@op1.example>")
    await road.quiet()
    (ours,) = road.mailboxes.to(LABO)
    mdn = (
        "From: labo@op1.example\r\nTo: postmaster@op1.example\r\nMessage-ID: <mdn@op1.example>\r\n"
        "Content-Type: multipart/report; report-type=disposition-notification; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: text/plain\r\n\r\nlu\r\n--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
        f"Final-Recipient: rfc822;labo@op1.example\r\nOriginal-Message-ID: {ours.message_id}\r\n"
        "Disposition: manual-action/MDN-sent-manually; displayed\r\n--b--\r\n"
    ).encode()
    assert await comes(road, mdn) == []


def read_by_gris(message_id: str, sender: str) -> bytes:
    """What a mail client writes when GRIS has read that mail."""
    return (
        f"From: {GRIS}\r\nTo: {LABO}\r\nMessage-ID: <mdn.{sender.partition('@')[0]}@op1.example>\r\n"
        "Content-Type: multipart/report; report-type=disposition-notification; boundary=b\r\n\r\n"
        "--b\r\nContent-Type: text/plain\r\n\r\nlu\r\n--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
        f"Final-Recipient: rfc822;{GRIS}\r\nOriginal-Message-ID: {message_id}\r\n"
        "Disposition: manual-action/MDN-sent-manually; displayed\r\n--b--\r\n"
    ).encode()


@pytest.mark.parametrize("sender", ["", GRIS])
async def test_a_reading_receipt_is_absorbed_and_traced_whoever_its_client_says_sent_it(
    road: Road, sender: str
) -> None:
    """Outlook and others submit reading receipts under the reader's address, not the null reverse-path."""
    spool_id = road.accept(MAIL, NewDelivery(GRIS, TargetKind.MAILBOX), message_id="<77@op1.example>")
    await road.quiet()
    for number in range(3):
        road.clock.now += 60
        road.accept(
            read_by_gris("<77@op1.example>", sender), NewDelivery(LABO, TargetKind.MAILBOX), sender=sender,
            dedup_key=f"mdn{number}", peer="account-gris",
        )  # fmt: skip
        await road.quiet()
    assert len(road.mailboxes.to(LABO)) == 1
    said = [(each.kind, each.detail) for each in road.spool.steps(spool_id)][-3:]
    assert said == [("heard", "displayed"), ("repeated", "displayed"), ("repeated", "displayed")]


async def test_a_reading_receipt_about_a_reading_receipt_goes_nowhere(road: Road) -> None:
    road.accept(MAIL, NewDelivery(GRIS, TargetKind.MAILBOX), message_id="<77@op1.example>")
    await road.quiet()
    mdn = read_by_gris("<77@op1.example>", "")
    road.accept(mdn, NewDelivery(LABO, TargetKind.MAILBOX), sender="", message_id="<mdn@op1.example>")
    await road.quiet()
    assert len(road.mailboxes.to(LABO)) == 1
    before = len(road.mailboxes.seen)
    again = read_by_gris("<mdn@op1.example>", LABO)
    road.accept(again, NewDelivery(GRIS, TargetKind.MAILBOX), sender=LABO, dedup_key="again")
    await road.quiet()
    assert len(road.mailboxes.seen) == before


async def test_what_a_partner_says_later_stands_in_the_trace_even_when_nobody_waited_for_it(road: Road) -> None:
    """It took the message and promised nothing; it comes back as a failure all the same."""
    spool_id = sent(road, notify="FAILURE")
    await road.quiet()
    assert len(await comes(road, notice("delayed", spool_id))) == 1
    assert len(await comes(road, notice("failed", spool_id))) == 1
    said = [(each.kind, each.detail) for each in road.spool.steps(spool_id)][-2:]
    assert said == [("heard", "delayed 2.0.0"), ("heard", "failed 5.1.1")]
