"""Tokens, delegated addresses and retried mechanisms at the submission door."""

from __future__ import annotations

import base64
import smtplib
from collections.abc import AsyncIterator

import pytest

from mta.smtp.door import SubmissionDoor
from mta.smtp.session import bearer_of
from mta.spool import Spool
from tests.mta.conftest import MakeSpool
from tests.mta.test_doors import LOCAL, OPTIONS, OWN, QUICK, plain, secured, with_smtplib
from tests.mta.trust_space import TrustSpace
from trust.accounts import Accounts, Identity
from trust.accounts_administration import Administration
from trust.catalogue import ACCOUNT_LOCKED, AUTHENTICATION_FAILED, TOKEN_REFUSED
from trust.identities import Right
from trust.journal import Journal
from trust.refusals import Refused
from trust.store.database import Database
from trust.vault import KeyVault

PRACTICE = "cabinet@op1.example"


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
def accounts(database: Database, vault: KeyVault) -> Accounts:
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example", PRACTICE], "mot de passe")
    accounts.create("noir", ["dr.noir@op1.example"], "autre")
    return accounts


@pytest.fixture
async def port(spool: Spool, accounts: Accounts, space: TrustSpace) -> AsyncIterator[int]:
    def tokens(login: str, token: str) -> Identity | Refused:
        found = accounts.by_address("dr.gris@op1.example")
        return found if token == "good" * 2000 and found else Refused(TOKEN_REFUSED, "signature")

    door = SubmissionDoor(
        spool,
        accounts,
        LOCAL.__contains__,
        "op1.example".__eq__,
        lambda domain: False,
        space.service(),
        OPTIONS,
        tokens,
    )
    yield await door.start("127.0.0.1", 0)
    await door.stop()


def bearer(token: str, login: str = "dr.gris@op1.example") -> str:
    return base64.b64encode(f"user={login}\x01auth=Bearer {token}\x01\x01".encode()).decode()


async def test_a_token_logs_in(port: int, space: TrustSpace) -> None:
    async with secured(port, space.anonymous()) as client:
        assert (await client.say(f"AUTH XOAUTH2 {bearer('good' * 2000)}")).startswith("235")
        assert (await client.say("MAIL FROM:<dr.gris@op1.example>")).startswith("250")
    async with secured(port, space.anonymous()) as client:
        assert (await client.say("AUTH OAUTHBEARER")).startswith("334")
        words = b"n,a=dr.gris@op1.example,\x01host=x\x01port=587\x01auth=Bearer " + b"good" * 2000 + b"\x01\x01"
        assert (await client.say(base64.b64encode(words).decode())).startswith("235")


async def test_a_bad_token_is_told_as_the_standard_says(port: int, space: TrustSpace) -> None:
    async with secured(port, space.anonymous()) as client:
        challenge = await client.say(f"AUTH XOAUTH2 {bearer('bad')}")
        assert challenge.startswith("334")
        assert b"invalid_token" in base64.b64decode(challenge[4:])
        assert await client.say("AQ==") == Refused(TOKEN_REFUSED, "signature").reply_fr
        assert (await client.say("AUTH XOAUTH2 eA==")).startswith("501")
        assert (await client.say("MAIL FROM:<dr.gris@op1.example>")).startswith("530")
        assert (await client.say(plain("gris", "mot de passe"))).startswith("235")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"user=x",
        b"user=x\x01auth=Bearer t\x01",
        b"user=x\x01auth=Basic t\x01\x01",
        b"user=x\x01auth=Bearer \x01\x01",
        b"user=x\x01auth=Bearer a\x01auth=Bearer b\x01\x01",
        b"n,a=x\x01auth=Bearer t\x01\x01",
        b"p=tls-unique,a=x,\x01auth=Bearer t\x01\x01",
        b"\xff\x01auth=Bearer t\x01\x01",
    ],
)
def test_what_is_no_bearer_message(data: bytes) -> None:
    assert bearer_of(data) is None


def test_bearer_messages() -> None:
    assert bearer_of(b"user=x\x01auth=bearer t\x01\x01") == ("x", "t")
    assert bearer_of(b"n,,\x01auth=Bearer t\x01\x01") == ("", "t")
    assert bearer_of(b"n,a=a=2Cb=3Dc,\x01auth=Bearer t\x01\x01") == ("a,b=c", "t")


async def test_one_wrong_login_of_smtplib_counts_once(port: int, space: TrustSpace) -> None:
    """It tries PLAIN, then LOGIN with the same password."""

    def log_in(password: str) -> int:
        def attempt(client: smtplib.SMTP) -> dict:
            try:
                client.login("gris", password)
            except smtplib.SMTPAuthenticationError as error:
                return {"code": error.smtp_code}
            return {"code": 235}

        return attempt

    codes = []
    for _ in range(4):
        codes.append((await with_smtplib(port, space.anonymous(), log_in("wrong")))["code"])
    assert codes == [AUTHENTICATION_FAILED.smtp] * 4
    assert (await with_smtplib(port, space.anonymous(), log_in("mot de passe")))["code"] == 235


async def test_the_same_mechanism_again_counts_again(port: int, space: TrustSpace) -> None:
    async with secured(port, space.anonymous()) as client:
        for _ in range(5):
            assert await client.say(plain("gris", "wrong")) == Refused(AUTHENTICATION_FAILED).reply_fr
        assert await client.say(plain("gris", "wrong")) == Refused(ACCOUNT_LOCKED).reply_fr


async def test_a_secretary_writes_for_the_practice_only_when_its_key_may_sign_for_her(
    port: int, space: TrustSpace, accounts: Accounts, vault: KeyVault
) -> None:
    administration = Administration(accounts, Journal(vault, "here"))
    own = OWN.replace(b"dr.gris@op1.example", b"dr.noir@op1.example")
    practice = OWN.replace(b"dr.gris@op1.example", PRACTICE.encode())
    assert own != OWN != practice

    async def send(sender: str, content: bytes) -> str:
        def work(client: smtplib.SMTP) -> dict:
            client.login("noir", "autre")
            try:
                client.sendmail(sender, ["dr.gris@op1.example"], content)
            except smtplib.SMTPResponseException as error:
                return {"reply": error.smtp_error.decode()}
            return {"reply": ""}

        return (await with_smtplib(port, space.anonymous(), work))["reply"]

    assert (await send(PRACTICE, own)).startswith("5.7.1")
    administration.grant("noir", PRACTICE, Right.USE, "root")
    assert await send(PRACTICE, own) == "", "the envelope, her own From"
    assert (await send(PRACTICE, practice)).startswith("5.7.1"), "not with the practice's key"
    administration.grant("noir", PRACTICE, Right.SIGN, "root")
    assert await send(PRACTICE, practice) == ""
    administration.revoke("noir", PRACTICE, "root")
    assert (await send(PRACTICE, practice)).startswith("5.7.1")
