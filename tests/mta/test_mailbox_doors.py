"""What kinds and states of mailboxes mean at the doors, over real sockets."""

from __future__ import annotations

import base64
import smtplib
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

import pytest
from cryptography import x509

from config.door_service import certificate_sign_in
from directory.records import MailboxKind
from mta.mailboxes import refusals
from mta.mailboxes.answered import AnsweredMarks
from mta.mailboxes.rules import MailboxRules
from mta.message import TargetKind
from mta.refusals import MAILBOX_UNKNOWN, RATE_EXCEEDED, SENDER_NOT_ALLOWED
from mta.smtp.door import OperatorDoor, SubmissionDoor
from mta.smtp.limits import Quota
from mta.smtp.lmtp_door import LmtpDoor
from mta.spool import Spool
from trust.accounts_administration import Administration
from trust.certificates import CertificateValidator, Purpose
from trust.client_certificates import Binding
from trust.identities import Right
from trust.refusals import Refused
from trust.store.database import Database
from trust.tls import service_server_context
from trust.vault import KeyVault

from .conftest import Clock, MakeSpool
from .mailbox_house import (
    DOCTOR,
    DOMAIN,
    MACHINE,
    OTHER,
    PASSWORD,
    PATIENT,
    PATIENTS,
    READ,
    SECRETARY,
    SEND,
    TEAM,
    WRITE,
    House,
)
from .smtp_client import Raw, secured, with_smtplib
from .test_doors import OPTIONS, plain
from .test_lmtp_door import client as lmtp_client
from .test_patient_exchanges import AWAY, mail
from .trust_space import Listed, TrustSpace


@pytest.fixture
def house(database: Database, vault: KeyVault, clock: Clock) -> House:
    made = House(database, vault, clock)
    made.furnish()
    return made


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
def quota() -> Quota:
    return Quota(connections=250, messages_per_hour=0)


@pytest.fixture
async def port(house: House, spool: Spool, space: TrustSpace, listed: Listed, quota: Quota) -> AsyncIterator[int]:
    """`two` shows the certificate of the machine."""
    space.service()
    validator = CertificateValidator([space.authority.root])
    chain = x509.load_pem_x509_certificates((space.directory / "two.pem").read_bytes())
    path = validator.validate(chain[0], chain[1:], Purpose.OPERATOR_TLS_CLIENT, datetime.now(UTC)).path
    Administration(house.accounts, house.journal).bind_certificate(MACHINE, Binding.KEY, path, "root")
    context = service_server_context(space.directory / "service.pem", space.directory / "service.key", space.anchors)
    door = SubmissionDoor(
        spool,
        house.accounts,
        lambda address: False,
        (DOMAIN, PATIENTS).__contains__,
        lambda domain: bool(listed.operators_of(domain)),
        context,
        replace(OPTIONS, limits=replace(OPTIONS.limits, holder=quota, recipients=10, tarpit_seconds=0.0)),
        certificates=certificate_sign_in(house.accounts, validator),
        mailboxes=house.rules,
    )
    yield await door.start("127.0.0.1", 0)
    await door.stop()


def text(refusal: object, detail: str = "") -> str:
    """As submission tells it."""
    return Refused(refusal, detail).reply_fr  # type: ignore[arg-type]


def told_a_server(refusal: object, detail: str = "") -> str:
    return Refused(refusal, detail).reply  # type: ignore[arg-type]


async def say(port: int, space: TrustSpace, login: str, *lines: str) -> list[str]:
    async with secured(port, space.anonymous()) as client:
        assert (await client.say(plain(login, PASSWORD))).startswith("235")
        return [await client.say(line) for line in lines]


async def send(port: int, space: TrustSpace, login: str, content: bytes, sender: str, *to: str) -> str:
    """The reply that refused it, empty when it was taken."""

    def work(client: smtplib.SMTP) -> str:
        client.login(login, PASSWORD)
        try:
            client.sendmail(sender, to, content)
        except smtplib.SMTPRecipientsRefused as error:
            (code, words), *_ = error.recipients.values()
        except smtplib.SMTPResponseException as error:
            code, words = error.smtp_code, error.smtp_error
        else:
            return ""
        return f"{code} {words.decode()}"

    return await with_smtplib(port, space.anonymous(), work)


def letter(author: str, to: str, **fields: str) -> bytes:
    made = EmailMessage()
    made["From"], made["To"], made["Message-ID"] = author, to, "<letter@op1.example>"
    for name, value in fields.items():
        made[name.replace("_", "-")] = value
    made.set_content("Bonjour")
    return made.as_bytes(policy=SMTP)


# Suspended and closed


async def test_a_suspended_mailbox_receives_and_does_not_send(port: int, house: House, space: TrustSpace) -> None:
    async with secured(port, space.anonymous()) as before:
        assert (await before.say(plain(DOCTOR, PASSWORD))).startswith("235")
        house.administration.suspend(DOCTOR, "en congé", "root")
        assert await before.say(f"MAIL FROM:<{DOCTOR}>") == text(refusals.MAILBOX_SUSPENDED), "whoever was in already"
    async with secured(port, space.anonymous()) as client:
        assert await client.say(plain(DOCTOR, PASSWORD)) == text(refusals.MAILBOX_SHUT)
        assert (await client.say(plain(DOCTOR, "faux"))).startswith("535 5.7.8"), "told to nobody who guesses"
    replies = await say(port, space, OTHER, f"MAIL FROM:<{OTHER}>", f"RCPT TO:<{DOCTOR}>")
    assert replies[1].startswith("250"), "mail comes in"
    house.administration.open(DOCTOR, "root")
    assert (await say(port, space, DOCTOR, f"MAIL FROM:<{DOCTOR}>"))[0].startswith("250")


async def test_a_closed_mailbox_says_why_at_every_door(
    port: int, house: House, spool: Spool, space: TrustSpace, listed: Listed, tmp_path: Path
) -> None:
    house.administration.close(DOCTOR, "départ à la retraite", "root")
    expected = text(refusals.MAILBOX_CLOSED, "départ à la retraite")
    assert expected.startswith("550 5.2.1")
    assert expected.endswith("(depart a la retraite)")
    replies = await say(port, space, OTHER, f"MAIL FROM:<{OTHER}>", f"RCPT TO:<{DOCTOR}>", "RCPT TO:<x@op1.example>")
    assert replies[1:] == [expected, text(MAILBOX_UNKNOWN)]
    expected = told_a_server(refusals.MAILBOX_CLOSED, "départ à la retraite")
    operators = OperatorDoor(
        spool, lambda: listed, lambda address: False, space.server("one"), OPTIONS, mailboxes=house.rules
    )
    try:
        async with secured(await operators.start("127.0.0.1", 0), space.client("two")) as client:
            await client.say("MAIL FROM:<labo@op2.example>")
            assert await client.say(f"RCPT TO:<{DOCTOR.upper()}>") == expected
            assert (await client.say(f"RCPT TO:<{OTHER}>")).startswith("250")
            assert await client.say("RCPT TO:<personne@op1.example>") == told_a_server(MAILBOX_UNKNOWN)
    finally:
        await operators.stop()
    house_server = lmtp_door(spool, house, TEAM)
    await house_server.start_unix(tmp_path / "lmtp.sock")
    try:
        async with lmtp_client(tmp_path / "lmtp.sock") as client:
            assert (await client.say(f"MAIL FROM:<{TEAM}>")).startswith("250")
            assert await client.say(f"RCPT TO:<{DOCTOR}>") == expected
            assert (await client.say("RSET")).startswith("250")
            house.administration.suspend(TEAM, "", "root")
            assert await client.say(f"MAIL FROM:<{TEAM}>") == told_a_server(refusals.MAILBOX_SUSPENDED)
    finally:
        await house_server.stop()


def lmtp_door(spool: Spool, house: House, *senders: str) -> LmtpDoor:
    return LmtpDoor(
        "hopital",
        spool,
        house.accounts,
        senders.__contains__,
        lambda address: False,
        (DOMAIN, PATIENTS).__contains__,
        "op2.example".__eq__,
        replace(OPTIONS, hostname="gate.op1.example"),
        mailboxes=house.rules,
    )


# Members


async def test_members_send_in_the_team_s_name_as_far_as_their_rights_go(
    port: int, house: House, space: TrustSpace
) -> None:
    as_team, as_self = letter(TEAM, DOCTOR), letter(SECRETARY, DOCTOR)
    assert await send(port, space, SECRETARY, as_team, TEAM, DOCTOR) == ""
    assert await send(port, space, SECRETARY, as_self, TEAM, DOCTOR) == ""
    house.administration.set_member(TEAM, SECRETARY, READ | WRITE, "root")
    assert await send(port, space, SECRETARY, as_team, TEAM, DOCTOR) == text(SENDER_NOT_ALLOWED)
    assert await send(port, space, SECRETARY, as_team, SECRETARY, DOCTOR) == text(SENDER_NOT_ALLOWED)
    assert await send(port, space, SECRETARY, letter(SECRETARY, DOCTOR, Sender=TEAM), SECRETARY, DOCTOR) == text(
        SENDER_NOT_ALLOWED
    )
    house.administration.set_member(TEAM, SECRETARY, SEND, "root")
    house.administration.suspend(TEAM, "", "root")
    assert await send(port, space, SECRETARY, as_team, TEAM, DOCTOR) == text(refusals.MAILBOX_SUSPENDED)
    assert await send(port, space, SECRETARY, as_team, SECRETARY, DOCTOR) == text(refusals.MAILBOX_SUSPENDED)
    assert await send(port, space, SECRETARY, as_self, SECRETARY, DOCTOR) == ""


def test_the_end_waits_for_no_dovecot_that_hangs(house: House, tmp_path: Path) -> None:
    """A mark is a courtesy: the gateway stops while doveadm has not answered yet."""
    secretary = house.accounts.by_address(SECRETARY)
    assert secretary is not None
    with socket.socket(socket.AF_UNIX) as doveadm:
        doveadm.settimeout(30)
        doveadm.bind(str(tmp_path / "doveadm"))
        doveadm.listen()
        marks = AnsweredMarks(house.registry, tmp_path / "doveadm", timeout_seconds=60)
        marks.sent(secretary, letter(TEAM, DOCTOR, In_Reply_To="<1@x.example>"))
        asked, _ = doveadm.accept()
        with asked:
            asked.settimeout(30)
            assert asked.recv(100).startswith(b"VERSION")
            began = time.monotonic()
            marks.close()
            assert time.monotonic() - began < 30


async def test_a_member_s_telephone_opens_the_team_only_with_all_it_takes(house: House) -> None:
    """Whoever signs in as the mailbox itself can move and delete everything in it."""
    administration = Administration(house.accounts, house.journal)
    _, telephone = administration.add_application_password(SECRETARY, "Téléphone", [], "root")
    assert isinstance(house.accounts.open_mailbox(TEAM, telephone), Refused)
    house.administration.set_member(TEAM, SECRETARY, READ | WRITE, "root")
    assert not isinstance(house.accounts.open_mailbox(TEAM, telephone), Refused)
    assert house.rules.opens(TEAM) is None
    house.administration.suspend(TEAM, "", "root")
    refused = house.rules.opens(TEAM)
    assert refused is not None
    assert refused.refusal is refusals.MAILBOX_SHUT


# Machines


def external(name: str = "") -> str:
    return f"AUTH EXTERNAL {base64.b64encode(name.encode()).decode() or '='}"


async def test_a_machine_comes_in_with_its_certificate_only(port: int, house: House, space: TrustSpace) -> None:
    house.accounts.create(f"vieille@{DOMAIN}", [f"vieille@{DOMAIN}"], PASSWORD)  # as one was made before
    with_kind(house, f"vieille@{DOMAIN}", MailboxKind.APP)
    async with secured(port, space.anonymous()) as client:
        assert await client.say(plain(f"vieille@{DOMAIN}", PASSWORD)) == text(refusals.CERTIFICATE_ONLY)
        assert (await client.say(plain(f"vieille@{DOMAIN}", "faux"))).startswith("535 5.7.8")
    async with secured(port, space.client("two")) as client:
        assert (await client.say(external())).startswith("235")
        assert (await client.say(f"MAIL FROM:<{MACHINE}>")).startswith("250")
    for certified in (False, True):
        refused = house.rules.opens(MACHINE, certified=certified)
        assert (refused is None) is certified


async def test_nor_does_anybody_send_as_a_machine_with_a_password(port: int, house: House, space: TrustSpace) -> None:
    """Whoever was granted its address logs in as a person does."""
    Administration(house.accounts, house.journal).grant(OTHER, MACHINE, Right.SIGN, "root")
    expected = text(refusals.CERTIFICATE_ONLY)
    assert await send(port, space, OTHER, letter(MACHINE, DOCTOR), MACHINE, DOCTOR) == expected
    assert await send(port, space, OTHER, letter(MACHINE, DOCTOR), OTHER, DOCTOR) == expected
    lenient = MailboxRules(house.registry, house.exchanges, machine_passwords=True)
    assert lenient.sends(MACHINE) is None
    assert lenient.opens(MACHINE) is None


@pytest.mark.parametrize("quota", [Quota(connections=250, messages_per_hour=1)])
async def test_a_machine_is_counted_by_itself(port: int, house: House, space: TrustSpace) -> None:
    async def mails(client: Raw, sender: str) -> list[str]:
        replies = []
        for _ in range(3):
            await client.say("RSET")
            replies.append(await client.say(f"MAIL FROM:<{sender}>"))
            if replies[-1].startswith("250"):
                await client.say(f"RCPT TO:<{DOCTOR}>")
                await client.say("DATA")
                assert (await client.say(letter(sender, DOCTOR) + b".\r\n")).startswith("250")
        return replies

    async with secured(port, space.anonymous()) as client:
        assert (await client.say(plain(OTHER, PASSWORD))).startswith("235")
        replies = await mails(client, OTHER)
        assert replies[0].startswith("250")
        assert replies[1] == text(RATE_EXCEEDED, "holder")
    async with secured(port, space.client("two")) as client:
        assert (await client.say(external())).startswith("235")
        assert [each[:3] for each in await mails(client, MACHINE)] == ["250"] * 3


def with_kind(house: House, address: str, kind: MailboxKind) -> None:
    def work(connection) -> None:
        entry = house.registry.entry(connection, address)
        assert entry is not None
        house.registry.put(connection, replace(entry, record=replace(entry.record, kind=kind), guessed=False))

    house.database.transact(work)


# Patients


async def test_a_patient_answers_and_never_begins(port: int, house: House, spool: Spool, space: TrustSpace) -> None:
    new = letter(PATIENT, AWAY)
    assert await send(port, space, PATIENT, new, PATIENT, AWAY) == text(refusals.PATIENT_INITIATES)
    house.rules.arrives(PATIENT, mail("1", AWAY))
    assert await send(port, space, PATIENT, new, PATIENT, AWAY) == text(refusals.PATIENT_EXCHANGE_OVER), "no answer"
    reply = letter(PATIENT, AWAY, In_Reply_To="<1@x.example>")
    assert await send(port, space, PATIENT, reply, PATIENT, AWAY) == ""
    (lease,) = spool.claim(10, 60)
    assert (lease.recipient, lease.target) == (AWAY, TargetKind.SMTP)
    assert await send(port, space, PATIENT, reply, PATIENT, DOCTOR) == text(refusals.PATIENT_INITIATES), "of another"
    house.rules.arrives(PATIENT, mail("2", AWAY, "References: <1@x.example>", "X-MSS-MES: FIN"))
    over = await send(port, space, PATIENT, reply, PATIENT, AWAY)
    assert over == text(refusals.PATIENT_EXCHANGE_OVER)


async def test_a_receipt_is_no_way_round(port: int, house: House, spool: Spool, space: TrustSpace) -> None:
    assert await send(port, space, PATIENT, receipt(), "", AWAY) == text(refusals.PATIENT_INITIATES)
    house.rules.arrives(PATIENT, mail("1", AWAY, "X-MSS-MES: FIN"))
    house.rules.arrives(PATIENT, mail("2", AWAY, "References: <1@x.example>", "X-MSS-MES: FIN"))
    over = text(refusals.PATIENT_EXCHANGE_OVER)
    assert await send(port, space, PATIENT, receipt("9"), "", AWAY) == over, "of nothing he wrote"
    assert await send(port, space, PATIENT, receipt(), "", AWAY) == ""
    assert await send(port, space, PATIENT, receipt(), "", AWAY) == "", "it did not hear that it was taken"
    assert await send(port, space, PATIENT, receipt(words="j'ai encore mal"), "", AWAY) == over, "one for each mail"
    assert await send(port, space, PATIENT, receipt(words="j'ai encore mal"), PATIENT, AWAY) == over
    assert (await send(port, space, PATIENT, letter(PATIENT, AWAY), "", AWAY)).startswith("550"), "only a receipt"
    assert await send(port, space, PATIENT, letter(PATIENT, AWAY), PATIENT, AWAY) == over


async def test_a_receipt_that_has_a_sender_is_one_all_the_same(port: int, house: House, space: TrustSpace) -> None:
    """As mail programs submit it: the laboratory that asked for it with its last word hears that it was read."""
    house.rules.arrives(PATIENT, mail("1", AWAY, "X-MSS-MES: FIN"))
    assert await send(port, space, PATIENT, receipt(), PATIENT, AWAY) == ""
    assert await send(port, space, PATIENT, receipt(), PATIENT, DOCTOR) == text(refusals.PATIENT_INITIATES)


async def test_a_patient_may_send_himself_a_copy(port: int, house: House, spool: Spool, space: TrustSpace) -> None:
    house.rules.arrives(PATIENT, mail("1", AWAY))
    reply = letter(PATIENT, AWAY, In_Reply_To="<1@x.example>", Cc=PATIENT)
    assert await send(port, space, PATIENT, reply, PATIENT, AWAY, PATIENT) == ""
    assert sorted(each.recipient for each in spool.claim(10, 60)) == sorted([AWAY, PATIENT])


def receipt(about: str = "1", words: str = "lu") -> bytes:
    return (
        f"From: {PATIENT}\r\nTo: {AWAY}\r\nMessage-ID: <lu@op1.example>\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=disposition-notification; boundary="b"\r\n\r\n'
        f"--b\r\nContent-Type: text/plain\r\n\r\n{words}\r\n"
        "--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
        f"Final-Recipient: rfc822;{PATIENT}\r\nOriginal-Message-ID: <{about}@x.example>\r\n"
        "Disposition: manual-action/MDN-sent-manually; displayed\r\n\r\n--b--\r\n"
    ).encode()


async def test_nor_is_somebody_else_s_envelope(port: int, house: House, space: TrustSpace) -> None:
    """A doctor who may write in the patient's name (a representative, say) begins nothing in it either."""
    Administration(house.accounts, house.journal).grant(OTHER, PATIENT, Right.SIGN, "root")
    refused = await send(port, space, OTHER, letter(PATIENT, AWAY), OTHER, AWAY)
    assert refused == text(refusals.PATIENT_EXCHANGE_OVER)


async def test_nor_the_house_s_own_server(house: House, spool: Spool, tmp_path: Path) -> None:
    door = lmtp_door(spool, house, PATIENT)
    await door.start_unix(tmp_path / "lmtp.sock")
    try:
        async with lmtp_client(tmp_path / "lmtp.sock") as client:
            assert (await client.say(f"MAIL FROM:<{PATIENT}>")).startswith("250")
            assert await client.say(f"RCPT TO:<{AWAY}>") == told_a_server(refusals.PATIENT_INITIATES)
    finally:
        await door.stop()


async def test_replies_tell_no_matricule(port: int, house: House, space: TrustSpace) -> None:
    refused = await send(port, space, PATIENT, letter(PATIENT, AWAY), PATIENT, AWAY)
    assert "2990199" not in refused
