"""What a doctor's mail program is told while it sends: over real sockets, by smtplib and by an LMTP client."""

from __future__ import annotations

import asyncio
import smtplib
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from structlog.testing import capture_logs

from directory.partners import PartnerBook
from directory.records import Partner
from mta.sizes import SizeLimits
from mta.smtp.door import DoorOptions, SubmissionDoor
from mta.smtp.lmtp_door import LmtpDoor
from mta.smtp.policy import Against, SubmissionRules
from mta.spool import Spool
from trust.accounts import Accounts
from trust.refusals import HL7Code, Refusal, Refused
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import Raw, with_smtplib
from .test_lmtp_door import HOST, client
from .test_lmtp_door import sent as handed_over
from .trust_space import Listed, TrustSpace

GRIS, NOIR, BLANC = "dr.gris@op1.example", "dr.noir@op2.example", "dr.blanc@op1.example"
LOCAL = {GRIS, BLANC}
OWN = f"From: {GRIS}\r\nTo: {NOIR}\r\nMessage-ID: <1@op1.example>\r\n\r\nBonjour\r\n"
WRONG = Refusal(
    "test.wrong", 554, "5.6.0", HL7Code.AE, "207", "906", "Wrong.", "Pièce jointe « œdème » refusée : vérifiez-la."
)
SIZES = SizeLimits(PartnerBook([Partner("op2.example", max_message_bytes=10_000)]), [], "op1.example".__eq__)


def judge(content: bytes) -> Against:
    def against(recipients: Sequence[str]) -> Refused | None:
        apart = b"apart" in content and {NOIR, BLANC} <= set(recipients)
        return Refused(WRONG) if apart or (b"wrong" in content and NOIR in recipients) else None

    return against


RULES = SubmissionRules(
    judge, SIZES.refused_as_it_is, lambda address: f"Vouliez-vous écrire à {address.partition('@')[0]}@x.fr ?"
)


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
def accounts(database: Database, vault: KeyVault) -> Accounts:
    accounts = Accounts(database, vault, hasher=PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    accounts.create("gris", [GRIS], "mot de passe")
    return accounts


@pytest.fixture
async def port(spool: Spool, space: TrustSpace, listed: Listed, accounts: Accounts) -> AsyncIterator[int]:
    door = SubmissionDoor(
        spool,
        accounts,
        LOCAL.__contains__,
        "op1.example".__eq__,
        lambda domain: bool(listed.operators_of(domain)),
        space.service(),
        DoorOptions("gate.op1.example"),
        rules=RULES,
    )
    yield await door.start("127.0.0.1", 0)
    await door.stop()


async def sent(port: int, space: TrustSpace, content: str, *to: str) -> object:
    def send(client: smtplib.SMTP) -> object:
        client.login("gris", "mot de passe")
        try:
            return client.sendmail(GRIS, to, content.encode())
        except smtplib.SMTPResponseException as refused:
            return refused.smtp_code, refused.smtp_error
        except smtplib.SMTPRecipientsRefused as refused:
            return refused.recipients

    return await with_smtplib(port, space.anonymous(), send)


async def test_at_the_end_of_data_in_words_every_program_shows(port: int, space: TrustSpace, spool: Spool) -> None:
    told = await sent(port, space, OWN + "wrong\r\n", NOIR)
    assert told == (554, b'5.6.0 Piece jointe " oedeme " refusee : verifiez-la.')
    assert spool.claim(10, 60) == [], "nothing is kept"
    assert await sent(port, space, OWN, NOIR) == {}
    assert len(spool.claim(10, 60)) == 1


async def test_a_large_mail_that_is_looked_into_keeps_nobody_elses_commands_waiting(
    spool: Spool, space: TrustSpace, listed: Listed, accounts: Accounts
) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(content: bytes) -> Against:
        begun.set()
        assert end.wait(20)
        return judge(content)

    door = SubmissionDoor(
        spool,
        accounts,
        LOCAL.__contains__,
        "op1.example".__eq__,
        lambda domain: bool(listed.operators_of(domain)),
        space.service(),
        DoorOptions("gate.op1.example", threads=1),
        rules=replace(RULES, judge=slow),
    )
    port = await door.start("127.0.0.1", 0)
    try:
        first = asyncio.create_task(sent(port, space, OWN, NOIR))
        assert await asyncio.to_thread(begun.wait, 20)

        def recipient(client: smtplib.SMTP) -> object:
            client.login("gris", "mot de passe")
            client.mail(GRIS)
            return client.rcpt(NOIR)[0], client.rcpt("nobody@op1.example")[0]

        assert await with_smtplib(port, space.anonymous(), recipient) == (250, 550)
        assert not first.done()
        end.set()
        assert await first == {}
    finally:
        end.set()
        await door.stop()


async def test_the_size_at_rcpt_when_the_program_declares_it(port: int, space: TrustSpace, spool: Spool) -> None:
    told = await sent(port, space, OWN + "x\r\n" * 4000, NOIR, GRIS)
    assert told == {
        NOIR: (
            552,
            b"5.3.4 Le message depasse la taille acceptee par le destinataire : envoyez-en moins ou en plusieurs "
            b"messages. (0,1 Mo, maximum 0,0 Mo)",
        )
    }
    assert [lease.recipient for lease in spool.claim(10, 60)] == [GRIS]


async def test_the_nearest_address_is_told_to_the_author_and_to_nobody_else(port: int, space: TrustSpace) -> None:
    with capture_logs() as logs:
        told = await sent(port, space, OWN, "299019900100133@gmail.example")
    assert told == {
        "299019900100133@gmail.example": (
            550,
            b"5.7.1 Ce domaine est hors de l'espace de confiance : utilisez une adresse de messagerie securisee de "
            b"sante. Vouliez-vous ecrire a 299019900100133@x.fr ? (gmail.example)",
        )
    }
    assert "mta.recipient-not-trusted" in str(logs)
    assert "299019900100133" not in str(logs)


@asynccontextmanager
async def house(
    spool: Spool, listed: Listed, accounts: Accounts, path: Path, rules: SubmissionRules
) -> AsyncIterator[Raw]:
    door = LmtpDoor(
        "maison",
        spool,
        accounts,
        GRIS.__eq__,
        LOCAL.__contains__,
        "op1.example".__eq__,
        lambda domain: bool(listed.operators_of(domain)),
        DoorOptions(HOST),
        rules=rules,
    )
    await door.start_unix(path / "lmtp.sock")
    try:
        async with client(path / "lmtp.sock") as raw:
            yield raw
    finally:
        await door.stop()


async def test_a_house_server_is_answered_for_each_recipient(
    spool: Spool, listed: Listed, accounts: Accounts, tmp_path: Path
) -> None:
    async with house(spool, listed, accounts, tmp_path, RULES) as raw:
        replies = await handed_over(raw, NOIR, BLANC, sender=GRIS, mail=(OWN + "wrong\r\n").encode())
    assert [each[:9] for each in replies] == ["554 5.6.0", "250 2.6.0"]
    assert replies[0] == Refused(WRONG).reply, "English, to a server"
    assert [lease.recipient for lease in spool.claim(10, 60)] == [BLANC]


async def test_who_remains_is_judged_together_again(
    spool: Spool, listed: Listed, accounts: Accounts, tmp_path: Path
) -> None:
    """One is too small for it; of the others none may see the other."""
    small, content = "dr.petit@op2.example", (OWN + "apart\r\n").encode()
    looked: list[int] = []

    def counted(content: bytes) -> Against:
        looked.append(len(content))
        against = judge(content)
        return lambda recipients: Refused(WRONG) if recipients == [small] else against(recipients)

    async with house(spool, listed, accounts, tmp_path, replace(RULES, judge=counted)) as raw:
        replies = await handed_over(raw, NOIR, BLANC, small, sender=GRIS, mail=content)
        assert [each[:9] for each in replies] == ["554 5.6.0"] * 3
        assert looked == [len(content)], "once, however many recipients"
        replies = await handed_over(raw, BLANC, small, sender=GRIS, mail=content)
        assert [each[:9] for each in replies] == ["250 2.6.0", "554 5.6.0"]
    assert [lease.recipient for lease in spool.claim(10, 60)] == [BLANC]


async def test_a_judge_that_breaks_makes_the_server_wait(
    spool: Spool, listed: Listed, accounts: Accounts, tmp_path: Path
) -> None:
    def broken(content: bytes) -> Against:
        raise RuntimeError(content.decode())

    async with house(spool, listed, accounts, tmp_path, replace(RULES, judge=broken)) as raw:
        with capture_logs() as logs:
            replies = await handed_over(raw, BLANC, GRIS, sender=GRIS, mail=OWN.encode())
        assert [each[:3] for each in replies] == ["451", "451"]
        assert "Bonjour" not in str(logs)
        assert (await raw.say("NOOP")).startswith("250"), "the session goes on"


async def test_no_search_is_made_for_a_server(spool: Spool, listed: Listed, accounts: Accounts, tmp_path: Path) -> None:
    asked: list[str] = []

    def nearest(address: str) -> str:
        asked.append(address)
        return ""

    async with house(spool, listed, accounts, tmp_path, replace(RULES, nearest=nearest)) as raw:
        await raw.say(f"MAIL FROM:<{GRIS}>")
        assert (await raw.say("RCPT TO:<x@gmail.example>")).startswith("550 5.7.1")
    assert asked == []
