"""What nobody has read: lists, deadlines, fallback readers, over a real spool, real protection and real receipts."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mta.delivery import NewDelivery
from mta.follow_up import Followed, FollowUp, Reading
from mta.mailboxes.seen import Looked
from mta.message import Deferred, Message, Origin, TargetKind
from mta.refusals import UNREACHABLE
from mta.system_mail import SystemMail
from smime import encrypt, join_message, sign
from smime.mime import split_message
from tests.support import reports
from trust.refusals import Refused

from .conftest import Clock
from .mailboxes import Mailboxes
from .road import GRIS, LABO, NOIR, OPERATOR_TWO, POSTMASTER, Road, a_road

FALLBACK = "dr.garde@op1.example"
MINUTE, DAY = 60.0, 86_400.0
SERVICE = Followed(LABO, unread_days=3, critical_seconds=30 * MINUTE, fallback=FALLBACK, fallback_seconds=45 * MINUTE)
PATIENT = "279035121518989@patient.op2.example"


@dataclass
class Boxes:
    """Our mailboxes as Dovecot would tell of them."""

    seen: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    silent: bool = False
    asked: list[str] = field(default_factory=list)

    def look(self, address: str, ids: Collection[str]) -> Looked | None:
        self.asked.append(address)
        if self.silent:
            return None
        return Looked(frozenset(set(ids) - self.gone), frozenset(self.seen & set(ids)))


@pytest.fixture
def boxes() -> Boxes:
    return Boxes()


@pytest.fixture(scope="module")
def people(mailboxes: Mailboxes) -> Mailboxes:
    mailboxes.keys.get(FALLBACK) or mailboxes.issue(FALLBACK)
    return mailboxes


def road_of(
    tmp_path: Path, people: Mailboxes, boxes: Boxes, clock: Clock | None = None, *services: Followed, url: str = ""
):
    held = (POSTMASTER, LABO, GRIS, FALLBACK)
    return a_road(
        tmp_path, people, held=held, followed=services or (SERVICE,), seen=boxes.look, clock=clock,
        wants_readings=lambda address: False, url=url,
    )  # fmt: skip


def a_mail(critical: bool = True, number: int = 1) -> bytes:
    written = email.message.EmailMessage(policy=email.policy.SMTP)
    written["From"], written["To"], written["Subject"] = LABO, GRIS, "CR de biologie"
    written["Message-ID"] = f"<{number}@op1.example>"
    written.set_content("Voir le document joint.")
    observation = reports.Observation(
        "Potassium", "2823-3", "Potassium", "6.4", "mmol/L", "3.5", "5.1", "HH" if critical else "N"
    )
    document = reports.cda(sections=(reports.Section("BIOCHIMIE", "18719-5", (observation,)),))
    written.add_attachment(document, maintype="text", subtype="xml", filename="cr.xml")
    return bytes(written)


async def send(
    road: Road, to: str = GRIS, *, critical: bool = True, number: int = 1, target: TargetKind = TargetKind.MAILBOX
) -> str:
    """The delivery id."""
    spool_id = road.accept(a_mail(critical, number), NewDelivery(to, target), message_id=f"<{number}@op1.example>")
    await road.quiet()
    return road.spool.deliveries(spool_id)[0].delivery_id


async def later(road: Road, seconds: float) -> None:
    road.clock.now += seconds
    while road.follow.look():
        pass
    await road.quiet()


def kinds(road: Road, delivery_id: str) -> list[str]:
    delivery = road.deliveries.one(delivery_id)
    assert delivery is not None
    return [step.kind for step in road.spool.steps(delivery.spool_id) if step.delivery_id == delivery_id]


def text(message: Message) -> str:
    mail = email.message_from_bytes(message.content, policy=email.policy.default)
    return str(next(part for part in mail.walk() if part.get_content_type() == "text/plain").get_content())


async def test_a_critical_result_that_nobody_reads(
    tmp_path: Path, people: Mailboxes, boxes: Boxes, database_url: str
) -> None:
    """The laboratory is told at its deadline, then the fallback reader gets it; each once, and without a value."""
    async with road_of(tmp_path, people, boxes, url=database_url) as road:
        delivery_id = await send(road)
        await later(road, 29 * MINUTE)
        assert road.mailboxes.to(LABO) == []
        await later(road, 2 * MINUTE)
        (told,) = road.mailboxes.to(LABO)
        assert (told.sender, told.origin) == ("", Origin.SYSTEM)
        words = text(told)
        assert "n'a pas été lu dans le délai de 30 minutes" in words
        assert "il est arrivé, et rien n'indique" in words
        assert delivery_id in words
        assert GRIS in words
        assert "6.4" not in words
        assert "ESSAI" not in words
        await later(road, MINUTE)
        assert len(road.mailboxes.to(LABO)) == 1
        assert road.mailboxes.to(FALLBACK) == []
        await later(road, 15 * MINUTE)
        notice, handed_on = sorted(road.mailboxes.to(FALLBACK), key=lambda each: each.origin.value, reverse=True)
        assert notice.origin is Origin.SYSTEM
        assert "désigné pour le lire à sa place" in text(notice)
        assert b"Voir le document joint" in handed_on.content
        await later(road, DAY)
        assert len(road.mailboxes.to(FALLBACK)) == 2, "a fallback reader is nobody's fallback"
        assert len(road.mailboxes.to(LABO)) == 2, "told of him as well"
        assert road.follow.overdue() == 2
        assert [kind for kind in kinds(road, delivery_id) if kind in ("unread", "handed-on")] == ["unread", "handed-on"]


async def test_what_was_read_in_time_alarms_nobody(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        opened, normal = await send(road), await send(road, critical=False, number=2)
        boxes.seen.add(opened)
        await later(road, 31 * MINUTE)
        await later(road, 60 * MINUTE)
        assert road.mailboxes.to(LABO) == []
        assert "seen" in kinds(road, opened), "labelled as what it is, and not as a receipt"
        assert "displayed" not in kinds(road, opened)
        assert [each.delivery.delivery_id for each in road.follow.unread(days=0)] == [normal]


async def test_the_fallback_reader_reads_and_the_clock_stops_for_both(
    tmp_path: Path, people: Mailboxes, boxes: Boxes
) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road)
        await later(road, 31 * MINUTE)
        await later(road, 16 * MINUTE)
        handed_on = next(each for each in road.mailboxes.to(FALLBACK) if each.origin is not Origin.SYSTEM)
        boxes.seen.add(handed_on.delivery_id)
        await later(road, 16 * MINUTE)
        assert road.follow.unread(days=0) == []
        assert "seen" in kinds(road, delivery_id)
        await later(road, DAY)
        assert len(road.mailboxes.to(LABO)) == 1


async def test_the_clock_goes_on_after_a_restart(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    """Killed after the mail and before its row says so: the next turn tells nobody twice."""
    clock = Clock()
    async with road_of(tmp_path, people, boxes, clock) as road:
        await send(road)
        clock.now += 31 * MINUTE
        again = FollowUp(
            road.spool, road.database, road.vault, road.journal,
            SystemMail(road.spool, POSTMASTER, "gate.op1.example", {"op1.example"}, {"op1.example"}.__contains__),
            (SERVICE,), node="n1", seen=boxes.look, clock=clock,
        )  # fmt: skip
        advance, again._advance = again._advance, lambda *_: (_ for _ in ()).throw(OSError("killed"))  # type: ignore[method-assign]
        again.look()
        await road.quiet()
        assert len(road.mailboxes.to(LABO)) == 1
        again._advance = advance  # type: ignore[method-assign]
        again.look()
        road.follow.look()
        await road.quiet()
        assert len(road.mailboxes.to(LABO)) == 1
        await later(road, 15 * MINUTE)
        assert len(road.mailboxes.to(FALLBACK)) == 2


async def test_what_never_arrives_is_unread_too(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        road.partners.outcomes[NOIR] = Deferred(Refused(UNREACHABLE))
        await send(road, NOIR, target=TargetKind.SMTP)
        await later(road, 31 * MINUTE)
        assert any("il n'a pas encore pu être remis" in text(each) for each in road.mailboxes.to(LABO))
        await later(road, 15 * MINUTE)
        assert any(b"Voir le document joint" in each.content for each in road.mailboxes.to(FALLBACK))
        assert boxes.asked == [FALLBACK] * len(boxes.asked), "another operator's mailbox is not ours to ask"


def receipt(people: Mailboxes, road: Road, number: int) -> bytes:
    """An MDN as NOIR's mail program writes it: signed, encrypted to the laboratory."""
    mdn = (
        f"From: {NOIR}\r\nTo: {LABO}\r\nSubject: Lu\r\nMIME-Version: 1.0\r\nMessage-ID: <r{number}@op2.example>\r\n"
        'Content-Type: multipart/report; report-type=disposition-notification; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain\r\n\r\nlu\r\n--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
        f"Final-Recipient: rfc822;{NOIR}\r\nOriginal-Message-ID: <{number}@op1.example>\r\n"
        "Disposition: manual-action/MDN-sent-manually; displayed\r\n\r\n--b--\r\n"
    ).encode()
    people.install(road.vault, NOIR)
    signer, (decryptor, *_) = road.vault.signer(NOIR), road.vault.decryptors(LABO)
    assert signer is not None
    outer, entity = split_message(mdn)
    return join_message(outer, encrypt(sign(entity, signer), [decryptor.certificate]))


async def test_a_receipt_is_a_state_and_no_mail(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road, NOIR, target=TargetKind.SMTP)
        road.accept(
            receipt(people, road, 1), NewDelivery(LABO, TargetKind.MAILBOX), origin=Origin.OPERATOR, sender="",
            peer=OPERATOR_TWO, message_id="<r1@op2.example>",
        )  # fmt: skip
        await road.quiet()
        assert road.mailboxes.to(LABO) == [], "it is not wanted as mail"
        await later(road, 31 * MINUTE)
        assert road.mailboxes.to(LABO) == []
        assert kinds(road, delivery_id)[-2:] == ["heard", "displayed"]
        assert road.follow.unread(days=0) == []


async def test_unread_after_days_by_sender(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        old, looked, taken = [await send(road, critical=False, number=number) for number in (1, 2, 3)]
        await later(road, 2 * DAY)
        await send(road, critical=False, number=4)
        assert road.follow.unread() == []
        await later(road, 1 * DAY + 1)
        boxes.seen.add(looked)
        boxes.gone.add(taken)
        (only,) = road.follow.unread(LABO.upper())
        assert (only.delivery.delivery_id, only.critical, only.reading) == (old, False, Reading.WAITING)
        assert road.follow.unread("autre@op1.example") == []
        assert len(road.follow.unread(days=0)) == 2
        assert "removed" in kinds(road, taken)
        assert road.mailboxes.to(LABO) == [], "nobody is alarmed for them"


async def test_a_dovecot_that_says_nothing_proves_nothing(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road)
        boxes.seen.add(delivery_id)
        boxes.silent = True
        await later(road, 31 * MINUTE)
        assert len(road.mailboxes.to(LABO)) == 1, "better told for nothing than not at all"
        boxes.silent = False
        await later(road, 15 * MINUTE)
        assert road.mailboxes.to(FALLBACK) == []


async def test_a_critical_result_that_is_gone_was_not_read(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        boxes.gone.add(await send(road))
        await later(road, 31 * MINUTE)
        assert len(road.mailboxes.to(LABO)) == 1


async def test_acknowledged_by_name(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road)
        await later(road, 31 * MINUTE)
        for by, reason in (("", "x"), ("Dr Gris", " "), ("x" * 1001, "y")):
            refused = road.follow.acknowledge(delivery_id, by, reason)
            assert isinstance(refused, Refused)
            assert refused.refusal.code == "mta.follow-up-nameless"
        unknown = road.follow.acknowledge("0" * 32, "a", "b")
        assert isinstance(unknown, Refused)
        assert unknown.refusal.code == "mta.follow-up-unknown"
        assert road.follow.acknowledge("1@op1.example", "Dr Gris", "par téléphone") == delivery_id
        assert road.follow.acknowledge(delivery_id, "Autre", "plus tard") == delivery_id
        assert road.follow.acknowledged_by(delivery_id) == "Dr Gris", "the first stands"
        await later(road, DAY)
        assert road.mailboxes.to(FALLBACK) == []
        assert "acknowledged" in kinds(road, delivery_id)
        assert not any("Gris" in step.detail for step in road.spool.steps(road.deliveries.one(delivery_id).spool_id))  # type: ignore[union-attr]
        entries = [each.entry for each in road.database.read(road.journal.entries) if each.entry is not None]
        assert [(each.actor, each.action, each.reason, each.object_id) for each in entries] == [
            ("Dr Gris", "reading.acknowledge", "par téléphone", delivery_id)
        ]


async def test_who_has_no_deadline_and_who_is_not_followed(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    plain = Followed(LABO, unread_days=1)
    async with road_of(tmp_path, people, boxes, None, plain) as road:
        await send(road)
        road.accept(a_mail(number=9), NewDelivery(GRIS, TargetKind.MAILBOX), sender=GRIS, message_id="<9@op1.example>")
        await road.quiet()
        await later(road, DAY + 1)
        assert len(road.follow.unread()) == 1
        assert road.mailboxes.to(LABO) == []


async def test_a_fallback_reader_nobody_can_write_to(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    lost = Followed(LABO, critical_seconds=MINUTE, fallback="garde@ailleurs.example")
    async with road_of(tmp_path, people, boxes, None, lost) as road:
        delivery_id = await send(road)
        await later(road, 2 * MINUTE)
        await later(road, 2 * MINUTE)
        assert "untold" in kinds(road, delivery_id)
        assert "handed-on" not in kinds(road, delivery_id)
        (still,) = road.follow.unread(days=0)
        assert (still.reading, still.due) == (Reading.TOLD, None)


async def test_what_cannot_be_encrypted_to_the_laboratory_is_said_in_fewer_words(
    tmp_path: Path, people: Mailboxes, boxes: Boxes
) -> None:
    """Its certificate is gone: it is told all the same, in clear, and no patient's address travels so."""
    async with road_of(tmp_path, people, boxes) as road:
        await send(road)
        road.directory.recipients[LABO] = replace(road.directory.recipients[LABO], encryption_certificates=())
        await later(road, 31 * MINUTE)
        (told,) = road.mailboxes.to(LABO)
        assert "decrypted=no" in told.facts["verdict"]
        assert "n'a pas été lu dans le délai" in text(told)
        assert "6.4" not in text(told)
