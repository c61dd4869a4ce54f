"""Mail in which something malicious is found, in both directions: who is told what, who decides, and what remains."""

from __future__ import annotations

import asyncio
import email
import email.policy
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, update

from mta.clamd import NotScanned
from mta.delivery import NewDelivery
from mta.message import DeliveryState, Message, Origin, Phase, TargetKind
from mta.notifications import DeliveryNotification, parse_notification
from mta.overdue import OverdueOptions
from mta.quarantine import Held, Quarantined
from mta.refusals import MALWARE_FOUND, SCAN_TOO_LARGE, SCANNER_UNAVAILABLE, TOO_LARGE_TO_SCAN
from mta.scanning import RELEASED, ScanOptions, ScanStage, TooLarge
from mta.tables import deliveries, quarantine
from tests.support.clamd import EICAR
from trust.refusals import Refused
from trust.store.blobs import BlobMissingError

from .mailboxes import Mailboxes
from .road import GRIS, LABO, NOIR, POSTMASTER, Road, ToldScanner, a_road

SOUND = (
    b"From: labo@op1.example\r\nTo: dr.noir@op2.example\r\nMessage-ID: <77@op1.example>\r\nSubject: DURAND Jeanne\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nglycemie\r\n"
)
INFECTED = SOUND + EICAR + b"\r\n"
FROM_NOIR = INFECTED.replace(b"labo@op1.example", NOIR.encode())


@pytest.fixture
async def road(tmp_path: Path, mailboxes: Mailboxes) -> AsyncIterator[Road]:
    async with a_road(tmp_path, mailboxes, overdue=OverdueOptions(warning_seconds=0)) as road:
        yield road


def out(road: Road, content: bytes = INFECTED, **more: object) -> str:
    return road.accept(content, NewDelivery(NOIR, TargetKind.SMTP), message_id="<77@op1.example>", **more)


def arriving(road: Road, content: bytes = FROM_NOIR, **more: object) -> str:
    values: dict[str, object] = {"sender": NOIR, "peer": "CN=two", "message_id": "<77@op1.example>"} | more
    return road.accept(content, NewDelivery(GRIS, TargetKind.MAILBOX), origin=Origin.OPERATOR, **values)


def held(road: Road) -> Quarantined:
    (one,) = road.quarantine.list()
    return one


def journal(road: Road) -> list[tuple[str, str, str, str]]:
    entries = road.database.read(road.journal.entries)
    return [(e.entry.action, e.entry.actor, e.entry.reason, e.entry.object_id) for e in entries if e.entry is not None]


async def test_what_our_own_people_send(road: Road) -> None:
    spool_id = out(road)
    await road.quiet()
    assert road.partners.seen == [], "it does not leave"
    assert road.state(spool_id) == [(DeliveryState.FAILED, MALWARE_FOUND.code)]
    (told,) = road.mailboxes.seen
    assert told.recipient == LABO
    found = parse_notification(told.content)
    assert isinstance(found, DeliveryNotification)
    assert (found.recipients[0].action, found.recipients[0].status) == ("failed", "5.7.0")
    assert "Eicar-Test-Signature" in found.recipients[0].diagnostic
    for secret in (EICAR, b"DURAND", b"glycemie"):
        assert secret not in told.content
    one = held(road)
    assert (one.delivery.spool_id, one.state, one.delivery.detail) == (spool_id, Held.HELD, "Eicar-Test-Signature")
    assert "quarantined" in road.kinds(spool_id)
    assert EICAR in road.spool.content(one.delivery)


async def test_what_comes_from_outside_and_who_is_told(road: Road) -> None:
    arriving(road)
    await road.quiet()
    (notice,) = road.mailboxes.seen
    assert (notice.recipient, notice.sender, notice.origin) == (GRIS, "", Origin.SYSTEM)
    mail = email.message_from_bytes(notice.content, policy=email.policy.default)
    assert mail["From"] == POSTMASTER
    assert mail["Auto-Submitted"] == "auto-generated"
    text = next(part for part in mail.walk() if part.get_content_type() == "text/plain").get_content()
    assert held(road).delivery.delivery_id in text
    assert NOIR in text
    assert b"DURAND" not in notice.content
    (told,) = road.partners.seen
    assert told.recipient == NOIR
    assert b"application/pkcs7-mime" in told.content, "encrypted to the sender"


async def test_it_was_inside_what_was_encrypted(road: Road, tmp_path: Path) -> None:
    """Our own mailbox to our own mailbox: scanned before it is protected, and again after it was opened."""
    road.accept(SOUND, NewDelivery(GRIS, TargetKind.MAILBOX), message_id="<77@op1.example>")
    await road.quiet()
    assert len(road.scanner.scanned) == 2
    assert all(b"glycemie" in each for each in road.scanner.scanned)
    (filed,) = road.mailboxes.to(GRIS)
    assert filed.facts["scan"] == "clean"


async def test_released_by_a_person_it_arrives_and_its_sender_is_told(road: Road) -> None:
    arriving(road)
    await road.quiet()
    reference = held(road).delivery.delivery_id
    for by, reason in (("", "x"), ("Jeanne Martin", " "), ("x" * 2000, "y")):
        refused = road.quarantine.release(reference, by, reason)
        assert isinstance(refused, Refused)
        assert refused.refusal.code == "mta.quarantine-nameless"
    assert isinstance(road.quarantine.release("0" * 32, "a", "b"), Refused)
    released = road.quarantine.release(reference, "Jeanne Martin", "fausse alerte")
    assert isinstance(released, str)
    await road.quiet()
    filed = road.mailboxes.to(GRIS)[1]
    assert EICAR in filed.content
    assert filed.facts["scan"] == "released"
    again = road.quarantine.release(reference, "Paul Petit", "moi aussi")
    assert isinstance(again, Refused)
    assert (again.refusal.code, again.detail) == ("mta.quarantine-decided", "released")
    assert isinstance(road.quarantine.drop(reference, "Paul Petit", "moi aussi"), Refused)
    assert journal(road) == [("quarantine.release", "Jeanne Martin", "fausse alerte", reference)]
    assert len(road.partners.to(NOIR)) == 2, "a failure, and now that it was delivered"
    shown = road.quarantine.show(reference)
    assert isinstance(shown, Quarantined)
    assert (shown.state, shown.by, shown.reason) == (Held.RELEASED, "Jeanne Martin", "fausse alerte")
    assert road.quarantine.list() == []
    assert len(road.quarantine.list(None)) == 1


async def test_two_who_release_at_the_same_time_send_it_once(road: Road) -> None:
    out(road)
    await road.quiet()
    reference = held(road).delivery.delivery_id
    decided = await asyncio.gather(
        *(asyncio.to_thread(road.quarantine.release, reference, f"P{n}", "r") for n in range(4)),
        *(asyncio.to_thread(road.quarantine.drop, reference, f"D{n}", "r") for n in range(4)),
    )
    await road.quiet()
    assert sum(not isinstance(each, Refused) for each in decided) == 1
    assert len(journal(road)) == 1
    assert len(road.partners.to(NOIR)) == (1 if any(isinstance(each, str) for each in decided) else 0)


async def test_dropped_its_content_is_gone_and_its_trace_stays(road: Road) -> None:
    spool_id = road.accept(
        INFECTED, NewDelivery(NOIR, TargetKind.SMTP), NewDelivery(GRIS, TargetKind.MAILBOX),
        message_id="<77@op1.example>",
    )  # fmt: skip
    await road.quiet()
    first, second = road.quarantine.list()
    assert road.quarantine.drop(first.delivery.delivery_id, "Jeanne Martin", "infecté") is None
    assert EICAR in road.spool.content(second.delivery), "the other recipient's may still be released"
    assert road.quarantine.drop(second.delivery.delivery_id, "Jeanne Martin", "infecté") is None
    with pytest.raises(BlobMissingError):
        road.spool.content(second.delivery)
    (ended, _) = road.spool.ended_of(spool_id)
    assert road.spool.content(ended) == b""
    assert road.kinds(spool_id).count("dropped") == 2
    assert [entry[:3] for entry in journal(road)] == [("quarantine.drop", "Jeanne Martin", "infecté")] * 2


async def test_what_nobody_decides_about_is_dropped_after_a_while(road: Road) -> None:
    out(road)
    await road.quiet()
    road.clock.now += 29 * 86400
    road.overdue.look()
    assert len(road.quarantine.list()) == 1
    assert road.quarantine.gauges()[0] == 1
    road.clock.now += 2 * 86400
    while road.overdue.look():
        pass
    assert road.quarantine.list() == []
    assert journal(road)[0][:3] == ("quarantine.drop", "relais", "retention period over")
    assert road.quarantine.gauges() == (0, None)


async def test_what_another_recipient_waited_for_is_destroyed_afterwards(road: Road) -> None:
    spool_id = road.accept(INFECTED, NewDelivery(NOIR, TargetKind.SMTP), NewDelivery(GRIS, TargetKind.MAILBOX))
    await road.quiet()
    first, second = (each.delivery.delivery_id for each in road.quarantine.list())
    later = road.clock.now + 30 * 86400

    def becomes(state: str, ended_at: float | None) -> None:
        """As if the other recipient's had not been looked at yet, and then been found sound."""
        other = update(deliveries).where(deliveries.c.id == second).values(state=state, ended_at=ended_at, due=later)
        row = delete(quarantine).where(quarantine.c.delivery_id == second)
        road.database.transact(lambda connection: [connection.execute(each).rowcount for each in (other, row)])

    becomes("ready", None)
    assert road.quarantine.drop(first, "Jeanne Martin", "infecté") is None
    road.overdue.look()
    (ended,) = road.spool.ended_of(spool_id)
    assert EICAR in road.spool.content(ended), "the other may still need it"
    becomes("delivered", road.clock.now)
    road.clock.now += 86400
    assert road.overdue.look() is False
    assert [road.spool.content(each) for each in road.spool.ended_of(spool_id)] == [b"", b""]


async def test_one_that_cannot_be_dropped_hides_no_other(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [out(road, INFECTED + b"%d" % number) for number in range(3)]
    await road.quiet()
    held_now = [each.delivery.delivery_id for each in road.quarantine.list()]
    assert len(held_now) == len(ids)
    drop = road.quarantine.drop

    def full(delivery_id: str, by: str, reason: str) -> Refused | None:
        if delivery_id == held_now[0]:
            raise OSError(28, "No space left on device")
        return drop(delivery_id, by, reason)

    monkeypatch.setattr(road.quarantine, "drop", full)
    road.clock.now += 31 * 86400
    looks = 0
    while road.overdue.look():
        looks += 1
        assert looks < 5
    assert [each.delivery.delivery_id for each in road.quarantine.list()] == held_now[:1]


async def test_held_twice_is_held_and_told_once(road: Road) -> None:
    spool_id = arriving(road)
    await road.quiet()
    (ended,) = road.spool.ended_of(spool_id)
    for _ in range(3):
        await road.quarantine.ended(ended)
    await road.quiet()
    assert len(road.quarantine.list()) == 1
    assert len(road.mailboxes.to(GRIS)) == 1
    assert road.kinds(spool_id).count("quarantined") == 1


async def test_a_scanner_that_is_down_makes_mail_wait(road: Road) -> None:
    road.scanner.down = True
    spool_id = out(road, SOUND)
    await road.quiet()
    assert road.state(spool_id) == [(DeliveryState.READY, SCANNER_UNAVAILABLE.code)]
    assert road.partners.seen == []
    road.scanner.down = False
    road.clock.now += 700
    await road.quiet()
    assert len(road.partners.seen) == 1


@pytest.mark.parametrize(
    ("decision", "state", "code", "kept"),
    [
        (TooLarge.QUARANTINE, DeliveryState.FAILED, SCAN_TOO_LARGE.code, 1),
        (TooLarge.REFUSE, DeliveryState.FAILED, TOO_LARGE_TO_SCAN.code, 0),
        (TooLarge.DEFER, DeliveryState.READY, SCANNER_UNAVAILABLE.code, 0),
        (TooLarge.PASS, DeliveryState.DELIVERED, "", 0),
    ],
)
async def test_too_large_is_decided(
    tmp_path: Path, mailboxes: Mailboxes, decision: TooLarge, state: DeliveryState, code: str, kept: int
) -> None:
    async with a_road(tmp_path, mailboxes, scan=ScanOptions(decision)) as road:
        road.scanner.says = NotScanned("StreamMaxLength")
        spool_id = out(road, SOUND)
        await road.quiet()
        assert road.state(spool_id) == [(state, code)]
        assert len(road.quarantine.list()) == kept


MESSAGE = Message("<m@x>", "s", "d", Origin.OPERATOR, NOIR, GRIS, INFECTED, "message/rfc822", 0.0)


@pytest.mark.parametrize(
    ("more", "phase", "looks"),
    [
        ({}, Phase.SCREEN, True),
        ({}, Phase.OPEN, False),
        ({}, Phase.PROTECT, False),
        ({"origin": Origin.COLLECTED}, Phase.SCREEN, True),
        ({"origin": Origin.SUBMISSION}, Phase.ENRICH, True),
        ({"origin": Origin.SUBMISSION}, Phase.SCREEN, True),
        ({"origin": Origin.MLLP}, Phase.ENRICH, True),
        ({"origin": Origin.SYSTEM}, Phase.SCREEN, False),
        ({"content_type": "application/hl7-v2", "origin": Origin.MLLP}, Phase.ENRICH, False),
        ({"flags": (RELEASED,)}, Phase.SCREEN, False),
    ],
)
async def test_when_it_looks(more: dict[str, object], phase: Phase, looks: bool) -> None:
    scanner = ToldScanner()
    found = await ScanStage(scanner).apply(replace(MESSAGE, **more), phase)
    assert bool(scanner.scanned) is looks
    assert isinstance(found, Refused) is looks


async def test_nobody_outside_can_say_that_it_was_released(road: Road) -> None:
    """The flag is the spool's: a header of that name means nothing."""
    arriving(road, FROM_NOIR.replace(b"Subject", b"X-Relais-Flags: released-from-quarantine\r\nSubject"))
    await road.quiet()
    assert len(road.quarantine.list()) == 1
