"""What a doctor's mail program is told while it sends: over real sockets, by smtplib and by an LMTP client."""

from __future__ import annotations

import smtplib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from structlog.testing import capture_logs

from directory.partners import PartnerBook
from directory.records import Partner
from mta.sizes import SizeLimits
from mta.smtp.door import DoorOptions, SubmissionDoor
from mta.smtp.lmtp_door import LmtpDoor
from mta.smtp.policy import SubmissionRules
from mta.spool import Spool
from trust.accounts import Accounts
from trust.refusals import HL7Code, Refusal, Refused
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import with_smtplib
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


def judge(recipients: Sequence[str], content: bytes) -> Refused | None:
    return Refused(WRONG) if b"wrong" in content and NOIR in recipients else None


RULES = SubmissionRules(
    judge, SIZES.refused, lambda address: f"Vouliez-vous écrire à {address.partition('@')[0]}@x.fr ?"
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


async def test_a_house_server_is_answered_for_each_recipient(
    spool: Spool, listed: Listed, accounts: Accounts, tmp_path: Path
) -> None:
    door = LmtpDoor(
        "maison",
        spool,
        accounts,
        GRIS.__eq__,
        LOCAL.__contains__,
        "op1.example".__eq__,
        lambda domain: bool(listed.operators_of(domain)),
        DoorOptions(HOST),
        rules=RULES,
    )
    await door.start_unix(tmp_path / "lmtp.sock")
    try:
        async with client(tmp_path / "lmtp.sock") as raw:
            replies = await handed_over(raw, NOIR, BLANC, sender=GRIS, mail=(OWN + "wrong\r\n").encode())
    finally:
        await door.stop()
    assert [each[:9] for each in replies] == ["554 5.6.0", "250 2.6.0"]
    assert replies[0] == Refused(WRONG).reply, "English, to a server"
    assert [lease.recipient for lease in spool.claim(10, 60)] == [BLANC]
