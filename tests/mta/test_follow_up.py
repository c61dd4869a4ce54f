"""What nobody has read: lists, deadlines, fallback readers, over a real spool, real protection and real receipts."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from bridges.arriving.following import FollowedStage
from bridges.hl7 import reader
from bridges.report import Action
from config.catalogue import CATALOGUE
from config.trace import life, render
from mta.delivery import NewDelivery
from mta.follow_up import Followed, FollowUp, Reading
from mta.mailboxes.seen import Looked
from mta.message import Deferred, Message, Origin, Phase, TargetKind
from mta.refusals import SCANNER_UNAVAILABLE, UNREACHABLE
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
            raise TimeoutError
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
        assert [each.delivery.delivery_id for each in road.follow.unread(days=0).found] == [normal]


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
        assert road.follow.unread(days=0).found == ()
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


def receipt(
    people: Mailboxes, road: Road, number: int, disposition: str = "manual-action/MDN-sent-manually; displayed"
) -> bytes:
    """An MDN as NOIR's mail program writes it: signed, encrypted to the laboratory."""
    mdn = (
        f"From: {NOIR}\r\nTo: {LABO}\r\nSubject: Lu\r\nMIME-Version: 1.0\r\nMessage-ID: <r{number}@op2.example>\r\n"
        'Content-Type: multipart/report; report-type=disposition-notification; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain\r\n\r\nlu\r\n--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
        f"Final-Recipient: rfc822;{NOIR}\r\nOriginal-Message-ID: <{number}@op1.example>\r\n"
        f"Disposition: {disposition}\r\n\r\n--b--\r\n"
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
        assert road.follow.unread(days=0).found == ()


@pytest.mark.parametrize(
    ("disposition", "person"),
    [
        ("automatic-action/MDN-sent-automatically; processed", False),
        ("automatic-action/MDN-sent-automatically; displayed", False),
        ("manual-action/MDN-sent-automatically; displayed", True),
    ],
)
async def test_software_that_takes_a_critical_result_up_has_not_read_it(
    tmp_path: Path, people: Mailboxes, boxes: Boxes, disposition: str, person: bool
) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        critical = await send(road, NOIR, target=TargetKind.SMTP)
        normal = await send(road, NOIR, critical=False, number=2, target=TargetKind.SMTP)
        for number in (1, 2):
            road.accept(
                receipt(people, road, number, disposition), NewDelivery(LABO, TargetKind.MAILBOX),
                origin=Origin.OPERATOR, sender="", peer=OPERATOR_TWO, message_id=f"<r{number}@op2.example>",
            )  # fmt: skip
        await road.quiet()
        await later(road, 31 * MINUTE)
        assert len(road.mailboxes.to(LABO)) == (0 if person else 1)
        left = [each.delivery.delivery_id for each in road.follow.unread(days=0).found]
        assert left == ([] if person else [critical])
        closed = "displayed" if person else "processed"
        assert closed in kinds(road, normal)
        trace = "\n".join(render({"op1": life(road.spool, "<2@op1.example>", CATALOGUE)}))
        assert ("nobody is known to have looked at it" in trace) is not person


async def test_the_clock_runs_while_nothing_can_be_prepared(
    tmp_path: Path, people: Mailboxes, boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scanner that is down, a destination that rests: no worker comes to the stage that follows up."""

    async def not_now(stage: FollowedStage, message: Message, phase: Phase) -> Message | Refused:
        return Refused(SCANNER_UNAVAILABLE) if message.sender and phase is Phase.ENRICH else message

    async with road_of(tmp_path, people, boxes) as road:
        monkeypatch.setattr(FollowedStage, "apply", not_now)
        critical, normal = await send(road), await send(road, critical=False, number=2)
        await send_receipt_of_ours(road)
        await later(road, 59)
        assert road.follow.unread(days=0).found == ()
        await later(road, 2)
        waiting = {each.delivery.delivery_id: each.critical for each in road.follow.unread(days=0).found}
        assert waiting == {critical: True, normal: False}, "and nobody reads a receipt"
        await later(road, 29 * MINUTE)
        (told,) = [each for each in road.mailboxes.to(LABO) if each.origin is Origin.SYSTEM]
        assert "il n'a pas encore pu être remis" in text(told)
        await later(road, 15 * MINUTE)
        assert "handed-on" in kinds(road, critical)


async def send_receipt_of_ours(road: Road) -> None:
    mdn = (
        f"From: {LABO}\r\nTo: {GRIS}\r\nMIME-Version: 1.0\r\nMessage-ID: <3@op1.example>\r\n"
        'Content-Type: multipart/report; report-type=disposition-notification; boundary="b"\r\n\r\n'
        "--b\r\nContent-Type: text/plain\r\n\r\nlu\r\n--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
        "Disposition: manual-action/MDN-sent-manually; displayed\r\n\r\n--b--\r\n"
    ).encode()
    road.accept(mdn, NewDelivery(GRIS, TargetKind.MAILBOX), message_id="<3@op1.example>")
    await road.quiet()


def test_a_frame_that_nobody_has_composed_is_judged_as_its_mail_would_be() -> None:
    stage = FollowedStage({LABO: SERVICE}, lambda *_: None, partial(reader.parse, environment="test"))
    normal = reports.Observation("Sodium", "2951-2", "Sodium", "139", "mmol/L", "136", "145", "N")
    quiet = reports.cda(sections=(reports.Section("BIOCHIMIE", "18719-5", (normal,)),))

    def judged(frame: bytes) -> bool | None:
        message = Message(
            message_id="<1@op1.example>", spool_id="s", delivery_id="d", origin=Origin.MLLP, sender=LABO,
            recipient=GRIS, content=frame, content_type="application/hl7-v2", accepted_at=0.0,
        )  # fmt: skip
        return stage.critical_of(message, frame)

    assert judged(reports.message()) is True
    assert judged(reports.message(documents=[quiet])) is False
    assert judged(reports.message(action=Action.DELETE)) is False
    assert judged(b"no frame") is False


async def test_a_dovecot_that_hangs_is_asked_once_a_turn(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    quick = Followed(LABO, critical_seconds=MINUTE)
    async with road_of(tmp_path, people, boxes, None, quick) as road:
        for number in range(3):
            await send(road, GRIS if number else FALLBACK, number=number)
            await send(road, GRIS if number else FALLBACK, number=10 + number, critical=False)
        boxes.silent = True
        road.clock.now += DAY
        while road.follow._begin_unprepared(road.clock.now):
            pass
        boxes.asked.clear()
        assert road.follow.look() is False
        assert len(boxes.asked) == 1
        await road.quiet()
        assert len(road.mailboxes.to(LABO)) == 3, "better told for nothing than not at all"
        boxes.silent = False
        boxes.asked.clear()
        road.clock.now += 901
        road.follow.look()
        assert boxes.asked, "asked again as soon as if it were young"


async def test_a_slow_dovecot_delays_no_deadline_for_long(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    """Each turn asks for a while, and what it had no time for comes next."""
    async with road_of(tmp_path, people, boxes) as road:
        ids = [await send(road, number=number, critical=False) for number in range(2)]
        ids.append(await send(road, FALLBACK, number=5, critical=False))
        boxes.seen.update(ids)
        road.follow._options = replace(road.follow._options, ask_seconds=0.0)
        road.clock.now += DAY
        assert road.follow.look() is True
        assert len(boxes.asked) == 1
        assert road.follow.look() is True
        assert len(boxes.asked) == 2
        road.follow.look()
        assert road.follow.unread(days=0).found == ()


async def test_critical_results_come_first_and_what_is_left_out_is_counted(
    tmp_path: Path, people: Mailboxes, boxes: Boxes
) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        for number in range(3):
            await send(road, critical=False, number=number)
        road.clock.now += MINUTE
        critical = await send(road, number=9)
        listed = road.follow.unread(days=0, limit=2)
        assert [each.critical for each in listed.found] == [True, False]
        assert listed.found[0].delivery.delivery_id == critical
        assert listed.more == 2


async def test_what_could_not_be_told_is_not_said_to_have_been(
    tmp_path: Path, people: Mailboxes, boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its mailbox nor its system can be told: the fallback reader gets the result all the same."""
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road)
        road.follow.tell_systems_by(lambda *_: (_ for _ in ()).throw(ValueError("no frame")))
        with monkeypatch.context() as patched:
            patched.setattr(road.follow._mail, "send", lambda *_: False)
            await later(road, 31 * MINUTE)
        trace = "\n".join(render({"op1": life(road.spool, delivery_id, CATALOGUE)}))
        assert "its sender could not be told" in trace
        assert "its sender was told" not in trace
        await later(road, 15 * MINUTE)
        assert any(b"Voir le document joint" in each.content for each in road.mailboxes.to(FALLBACK))


async def test_nothing_is_handed_on_to_who_has_it(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road, FALLBACK)
        await later(road, 31 * MINUTE)
        await later(road, DAY)
        assert "handed-on" not in kinds(road, delivery_id)
        assert len(road.mailboxes.to(FALLBACK)) == 1


async def test_the_better_evidence_takes_the_place_of_the_weaker(
    tmp_path: Path, people: Mailboxes, boxes: Boxes
) -> None:
    """A laboratory that has telephoned writes it down, also of what some program has opened."""
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road)
        boxes.seen.add(delivery_id)
        await later(road, 31 * MINUTE)
        assert "seen" in kinds(road, delivery_id)
        assert road.follow.acknowledge(delivery_id, "Dr Gris", "par téléphone") == delivery_id
        assert road.follow.acknowledged_by(delivery_id) == "Dr Gris"
        trace = "\n".join(render({"op1": life(road.spool, delivery_id, CATALOGUE)}))
        assert "a named person has taken note of it" in trace
        assert "opened (IMAP)" not in trace, "the best evidence is told"


async def test_the_trace_says_whose_reading_it_was(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        delivery_id = await send(road)
        await later(road, 31 * MINUTE)
        await later(road, 16 * MINUTE)
        handed_on = next(each for each in road.mailboxes.to(FALLBACK) if each.origin is not Origin.SYSTEM)
        boxes.seen.add(handed_on.delivery_id)
        await later(road, 16 * MINUTE)
        trace = "\n".join(render({"op1": life(road.spool, delivery_id, CATALOGUE)}))
        assert "by another reader of the same result" in trace


async def test_unread_after_days_by_sender(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    async with road_of(tmp_path, people, boxes) as road:
        old, looked, taken = [await send(road, critical=False, number=number) for number in (1, 2, 3)]
        await later(road, 2 * DAY)
        await send(road, critical=False, number=4)
        assert road.follow.unread().found == ()
        await later(road, 1 * DAY + 1)
        boxes.seen.add(looked)
        boxes.gone.add(taken)
        (only,) = road.follow.unread(LABO.upper()).found
        assert (only.delivery.delivery_id, only.critical, only.reading) == (old, False, Reading.WAITING)
        assert road.follow.unread("autre@op1.example").found == ()
        assert len(road.follow.unread(days=0).found) == 2
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
        assert len(road.follow.unread().found) == 1
        assert road.mailboxes.to(LABO) == []


async def test_a_fallback_reader_nobody_can_write_to(tmp_path: Path, people: Mailboxes, boxes: Boxes) -> None:
    lost = Followed(LABO, critical_seconds=MINUTE, fallback="garde@ailleurs.example")
    async with road_of(tmp_path, people, boxes, None, lost) as road:
        delivery_id = await send(road)
        await later(road, 2 * MINUTE)
        await later(road, 2 * MINUTE)
        assert "untold" in kinds(road, delivery_id)
        assert "handed-on" not in kinds(road, delivery_id)
        (still,) = road.follow.unread(days=0).found
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
