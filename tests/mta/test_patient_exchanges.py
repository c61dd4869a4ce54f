"""What a patient may answer, and until when: threads, forged references, and what stands after a restart."""

from __future__ import annotations

import pytest

from mta.mailboxes import refusals
from mta.mailboxes.exchanges import MAX_PEOPLE, MAX_REFERENCES, references_of, says_end
from mta.mailboxes.rules import GuardedMailboxes
from mta.message import Deferred, Delivered, Failed, Message, Origin, Outcome
from mta.refusals import UNREACHABLE
from smime.mime import Entity, parse_entity
from trust.refusals import Refused
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import Clock
from .mailbox_house import DOCTOR, OTHER, PATIENT, PATIENTS, House

AWAY = "cardio@op2.example"


@pytest.fixture
def house(database: Database, vault: KeyVault, clock: Clock) -> House:
    made = House(database, vault, clock)
    made.furnish()
    return made


@pytest.fixture
def either(each_database: Database, vault: KeyVault, clock: Clock) -> House:
    """On each kind of database."""
    made = House(each_database, vault, clock)
    made.furnish()
    return made


def mail(message_id: str, author: str, *more: str) -> bytes:
    lines = [f"From: {author}", f"To: {PATIENT}", f"Message-ID: <{message_id}@x.example>", *more, "", "Bonjour", ""]
    return "\r\n".join(lines).encode()


def header(message_id: str, author: str, *more: str) -> Entity:
    return parse_entity(mail(message_id, author, *more))


def answer(house: House, to: str, *recipients: str, own: str = "r") -> bool:
    """Whether the patient's mail in reply to that one is let through."""
    reply = mail(own, PATIENT, f"In-Reply-To: <{to}@x.example>")
    return house.rules.answers(PATIENT, parse_entity(reply), reply, recipients) is None


def test_who_was_not_written_to_cannot_begin(house: House) -> None:
    refused = house.rules.writes_to(PATIENT, AWAY)
    assert refused is not None
    assert refused.refusal is refusals.PATIENT_INITIATES
    assert not answer(house, "1", AWAY)
    house.exchanges.arrived(PATIENT, header("1", AWAY))
    assert house.rules.writes_to(PATIENT, AWAY.upper()) is None
    assert answer(house, "1", AWAY)
    assert not answer(house, "2", AWAY), "a new message is no answer, whatever it refers to"
    fresh = mail("3", PATIENT)
    assert house.rules.answers(PATIENT, parse_entity(fresh), fresh, [AWAY]) is not None
    assert not answer(house, "1", AWAY, DOCTOR), "nor one to somebody else as well"
    assert house.rules.writes_to(PATIENT, DOCTOR) is not None


@pytest.mark.parametrize(
    "last",
    [
        "X-MSS-MES: FIN",
        "X-MSS-MES:  fin ",
        "Subject: [FIN] Votre suivi",
        "Subject:   [fin]Votre suivi",
        "Subject: =?utf-8?B?W0ZJTl0gw6l0w6k=?=",
        "Subject: =?utf-8?q?=5BF?= =?utf-8?q?IN=5D_x?=",
    ],
)
def test_the_professional_has_the_last_word(house: House, last: str) -> None:
    house.exchanges.arrived(PATIENT, header("1", AWAY))
    assert answer(house, "1", AWAY)
    house.exchanges.arrived(PATIENT, header("2", AWAY, "References: <1@x.example>", last))
    assert not answer(house, "1", AWAY)
    assert not answer(house, "2", AWAY)
    assert house.rules.writes_to(PATIENT, AWAY) is None, "that it was read may still be said"
    house.exchanges.arrived(PATIENT, header("1", AWAY))
    assert not answer(house, "1", AWAY), "an attempt that is repeated opens nothing again"
    house.exchanges.arrived(PATIENT, header("3", AWAY, "In-Reply-To: <2@x.example>"))
    assert answer(house, "2", AWAY), "he has gone on with it"


@pytest.mark.parametrize(
    "line", ["Subject: Re: [FIN] x", "Subject: FIN", "X-MSS-MES: FINI", "X-MSS-MES: EN COURS", "Subject: x [FIN]"]
)
def test_what_ends_nothing(line: str) -> None:
    assert not says_end(header("1", AWAY, line))


def test_exchanges_end_one_by_one(house: House) -> None:
    house.exchanges.arrived(PATIENT, header("1", AWAY))
    house.exchanges.arrived(PATIENT, header("2", AWAY, "X-MSS-MES: FIN"))
    assert answer(house, "1", AWAY), "the other one was about something else"
    assert not answer(house, "2", AWAY)


def test_an_answer_to_the_patient_s_answer_goes_on(house: House) -> None:
    house.exchanges.arrived(PATIENT, header("1", AWAY))
    assert answer(house, "1", AWAY, own="mine")
    end = header("2", AWAY, "In-Reply-To: <mine@x.example>", "X-MSS-MES: FIN")
    house.exchanges.arrived(PATIENT, end)
    assert not answer(house, "1", AWAY), "its References were lost, not its thread"


def test_nobody_ends_or_opens_what_others_have_begun(either: House) -> None:
    either.exchanges.arrived(PATIENT, header("1", AWAY))
    stranger = header("9", "autre@op2.example", "References: <1@x.example>", "X-MSS-MES: FIN")
    either.exchanges.arrived(PATIENT, stranger)
    assert answer(either, "1", AWAY)
    either.exchanges.arrived(PATIENT, header("2", AWAY, "References: <1@x.example>", "X-MSS-MES: FIN"))
    either.exchanges.arrived(PATIENT, header("10", "autre@op2.example", "References: <1@x.example>"))
    assert not answer(either, "1", AWAY)
    assert answer(either, "10", "autre@op2.example")


def test_whoever_the_mail_was_to_as_well_may_be_answered(house: House) -> None:
    other = f"199019900100133@{PATIENTS}"
    first = header("1", AWAY, f"Cc: {DOCTOR}, {other}", "Reply-To: secretariat@op2.example")
    house.exchanges.arrived(PATIENT, first)
    assert answer(house, "1", AWAY, DOCTOR, "secretariat@op2.example")
    assert not answer(house, "1", AWAY, other), "never another patient"
    many = ", ".join(f"a{n}@op2.example" for n in range(MAX_PEOPLE))
    house.exchanges.arrived(PATIENT, header("2", AWAY, f"Cc: {many}"))
    assert answer(house, "2", AWAY, "a1@op2.example")
    assert not answer(house, "2", f"a{MAX_PEOPLE - 1}@op2.example")


def test_one_patient_s_exchange_is_not_another_s(house: House) -> None:
    house.exchanges.arrived(PATIENT, header("1", AWAY))
    assert house.rules.writes_to(f"199019900100133@{PATIENTS}", AWAY) is not None


@pytest.mark.parametrize(
    "content",
    [
        b"From: a@op2.example, b@op2.example\r\nMessage-ID: <1@x.example>\r\n\r\n",
        b"From: a@op2.example\r\n\r\n",
        b"From: a@op2.example\r\nMessage-ID: <1@x.example>\r\nMessage-ID: <2@x.example>\r\n\r\n",
        b"From: \xff\xfe@x\r\nMessage-ID: <1@x.example>\r\n\r\n",
        f"From: 199019900100133@{PATIENTS}\r\nMessage-ID: <1@x.example>\r\n\r\n".encode(),
        b"\x00",
        b"",
    ],
)
def test_what_cannot_be_answered_opens_nothing(house: House, content: bytes) -> None:
    house.rules.arrives(PATIENT, content)
    assert not answer(house, "1", "a@op2.example")
    assert house.rules.writes_to(PATIENT, "a@op2.example") is not None


def test_references_are_read_from_their_end_and_bounded() -> None:
    ids = [f"<{n}@x.example>" for n in range(5000)]
    found = references_of(header("z", AWAY, "References: " + "\r\n ".join(ids), "In-Reply-To: <near@x.example>"))
    assert found[:2] == ["<near@x.example>", ids[-1]]
    assert len(found) == MAX_REFERENCES


def test_it_holds_after_a_restart_and_is_forgotten_after_years(either: House, vault: KeyVault, clock: Clock) -> None:
    either.exchanges.arrived(PATIENT, header("1", AWAY, "X-MSS-MES: FIN"))
    either.exchanges.arrived(PATIENT, header("2", OTHER))
    again = House(either.database, vault, clock)
    assert not answer(again, "1", AWAY)
    assert answer(again, "2", OTHER)
    assert again.exchanges.purge(clock.now, 10) == 0
    clock.now += 100
    again.exchanges.arrived(PATIENT, header("3", OTHER, "References: <2@x.example>"))
    assert again.exchanges.purge(clock.now, 10) == 1
    assert answer(again, "2", OTHER)
    refused = again.rules.writes_to(PATIENT, AWAY)
    assert refused is not None
    assert refused.refusal is refusals.PATIENT_INITIATES


# At the mailbox server's door


class Filing:
    def __init__(self) -> None:
        self.filed: list[str] = []

    async def deliver(self, message: Message) -> Outcome:
        self.filed.append(message.recipient)
        return Delivered()


def delivery(recipient: str, content: bytes, sender: str = AWAY) -> Message:
    return Message(
        message_id="<1@x.example>",
        spool_id="s",
        delivery_id="d",
        origin=Origin.OPERATOR,
        sender=sender,
        recipient=recipient,
        content=content,
        content_type="message/rfc822",
        accepted_at=0.0,
    )


async def test_a_mail_that_is_filed_may_be_answered(house: House) -> None:
    filing = Filing()
    guarded = GuardedMailboxes(filing, house.rules)
    assert isinstance(await guarded.deliver(delivery(PATIENT, mail("1", AWAY))), Delivered)
    await guarded.deliver(delivery(PATIENT, mail("2", DOCTOR), sender=""))
    assert answer(house, "1", AWAY)
    assert not answer(house, "2", DOCTOR), "a receipt begins nothing"
    await guarded.deliver(delivery(DOCTOR, mail("3", AWAY)))
    assert filing.filed == [PATIENT, PATIENT, DOCTOR]


@pytest.mark.parametrize(
    "by_itself",
    [
        ("Content-Type: multipart/report; report-type=disposition-notification; boundary=b",),
        ("Content-Type: multipart/report; boundary=none",),
        ("Auto-Submitted: auto-replied; owner-email=x@x.example", "X-MSS-MES: FIN"),
        ("Auto-Submitted: (absence) auto-replied",),
    ],
)
async def test_what_a_program_answers_by_itself_neither_begins_nor_goes_on(
    house: House, by_itself: tuple[str, ...]
) -> None:
    """Under the doctor's own reverse-path, as mail programs send both: it refers to the patient's answer."""
    guarded = GuardedMailboxes(Filing(), house.rules)
    await guarded.deliver(delivery(PATIENT, mail("1", AWAY)))
    assert answer(house, "1", AWAY, own="mine")
    await guarded.deliver(delivery(PATIENT, mail("2", AWAY, "References: <1@x.example>", "X-MSS-MES: FIN")))
    await guarded.deliver(delivery(PATIENT, mail("3", AWAY, "In-Reply-To: <mine@x.example>", *by_itself)))
    await guarded.deliver(delivery(PATIENT, mail("4", DOCTOR, *by_itself)))
    for about, author in (("1", AWAY), ("3", AWAY), ("4", DOCTOR)):
        assert not answer(house, about, author)


async def test_what_a_laboratory_s_program_sends_may_be_answered(house: House) -> None:
    result = mail("1", AWAY, "Auto-Submitted: auto-generated")
    await GuardedMailboxes(Filing(), house.rules).deliver(delivery(PATIENT, result))
    assert answer(house, "1", AWAY)


async def test_what_was_closed_since_its_mail_was_accepted_takes_none(house: House) -> None:
    filing = Filing()
    guarded = GuardedMailboxes(filing, house.rules)
    house.administration.suspend(DOCTOR, "en congé", "root")
    assert isinstance(await guarded.deliver(delivery(DOCTOR, mail("1", AWAY))), Delivered)
    house.administration.close(DOCTOR, "départ à la retraite", "root")
    outcome = await guarded.deliver(delivery(DOCTOR, mail("2", AWAY)))
    assert isinstance(outcome, Failed)
    assert outcome.reason.refusal is refusals.MAILBOX_CLOSED
    assert outcome.reason.reply.endswith("(depart a la retraite)")
    assert outcome.reason.reply.startswith("550 5.2.1 ")
    assert filing.filed == [DOCTOR]


@pytest.mark.parametrize(
    ("before", "expected"),
    [(None, Failed), (Delivered("already filed"), Delivered), (Deferred(Refused(UNREACHABLE)), Deferred)],
)
async def test_what_lies_there_since_before_is_not_said_to_be_refused(
    house: House, before: Outcome | None, expected: type
) -> None:
    """Its reply was lost in a crash, then the mailbox was closed."""

    async def filed(message: Message) -> Outcome | None:
        return before

    filing = Filing()
    house.administration.close(DOCTOR, "départ à la retraite", "root")
    outcome = await GuardedMailboxes(filing, house.rules, filed).deliver(delivery(DOCTOR, mail("1", AWAY)))
    assert isinstance(outcome, expected)
    assert filing.filed == []
