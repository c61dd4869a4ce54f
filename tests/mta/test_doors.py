"""Both doors over real sockets: who may come in, what is refused in the session, what a 250 promises."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import smtplib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from argon2 import PasswordHasher
from structlog.testing import capture_logs

from mta import refusals
from mta.delivery import Lease
from mta.message import Delivered, Failed, Origin, TargetKind
from mta.smtp.door import DoorOptions, OperatorDoor, SubmissionDoor
from mta.smtp.session import Limits
from mta.spool import Spool
from trust.accounts import Accounts
from trust.catalogue import ACCOUNT_LOCKED, AUTHENTICATION_FAILED
from trust.refusals import Refusal, Refused
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import Raw, raw, secured, with_smtplib
from .trust_space import Listed, TrustSpace

LOCAL = {"dr.gris@op1.example", "postmaster@gate.op1.example"}
QUICK = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
OPTIONS = DoorOptions(
    "gate.op1.example", Limits(message_bytes=200_000, connections=8, hops=5, recipients=3, tarpit_seconds=0.01)
)
MAIL = (
    b"From: Labo <labo@op2.example>\r\nTo: dr.gris@op1.example\r\nMessage-ID: <1@op2.example>\r\n"
    b"Subject: x\r\n\r\nhello\r\n"
)


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
async def operators(spool: Spool, space: TrustSpace, listed: Listed) -> AsyncIterator[int]:
    door = OperatorDoor(spool, lambda: listed, LOCAL.__contains__, space.server("one"), OPTIONS)
    yield await door.start("127.0.0.1", 0)
    await door.stop()


@pytest.fixture
async def submission_port(
    spool: Spool, space: TrustSpace, listed: Listed, database: Database, vault: KeyVault
) -> AsyncIterator[int]:
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example", "cabinet@op1.example"], "mot de passe")
    accounts.create("noir", ["dr.noir@op1.example"], "autre")
    door = SubmissionDoor(
        spool,
        accounts,
        LOCAL.__contains__,
        "op1.example".__eq__,
        lambda domain: bool(listed.operators_of(domain)),
        space.service(),
        OPTIONS,
    )
    yield await door.start("127.0.0.1", 0)
    await door.stop()


def claimed(spool: Spool) -> list[Lease]:
    return spool.claim(100, 60)


# Operators


async def test_an_operator_hands_over_a_message(operators: int, spool: Spool, space: TrustSpace) -> None:
    content = MAIL + b".dot\r\n..dots\r\n\xe9\r\n"
    refused = await with_smtplib(
        operators,
        space.client("two"),
        lambda client: client.sendmail("labo@op2.example", ["dr.gris@op1.example"], content, ["BODY=8BITMIME"]),
    )
    assert refused == {}
    (lease,) = claimed(spool)
    assert spool.content(lease) == content
    assert (lease.origin, lease.target) == (Origin.OPERATOR, TargetKind.MAILBOX)
    assert (lease.sender, lease.recipient) == ("labo@op2.example", "dr.gris@op1.example")
    assert lease.peer == str(space.names["two"])
    assert lease.message_id == "<1@op2.example>"


async def test_ehlo_announces_what_is_kept(operators: int, space: TrustSpace) -> None:
    async with secured(operators, space.client("two")) as client:
        words = {line[4:] for line in (await client.say("EHLO x.example")).splitlines()}
        assert words == {
            "gate.op1.example",
            "SIZE 200000",
            "PIPELINING",
            "8BITMIME",
            "ENHANCEDSTATUSCODES",
            "DSN",
            "SMTPUTF8",
            "CHUNKING",
            "REQUIRETLS",
            "LIMITS RCPTMAX=3",
        }


async def test_dsn_parameters_keep_their_case(operators: int, spool: Spool, space: TrustSpace) -> None:
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example> RET=hdrs ENVID=Ab+2Bc SIZE=10 BODY=8BITMIME")
        assert (
            await client.say("RCPT TO:<dr.gris@OP1.example> NOTIFY=success,failure ORCPT=rfc822;Dr.Gris@x")
        ).startswith("250")
        await client.say("DATA")
        assert (await client.say(MAIL + b".\r\n")).startswith("250 2.6.0")
    (lease,) = claimed(spool)
    assert (lease.envelope_id, lease.notify, lease.original_recipient, lease.flags[0]) == (
        "Ab+2Bc",
        "SUCCESS,FAILURE",
        "rfc822;Dr.Gris@x",
        "RET=HDRS",
    )


async def test_a_repeat_after_a_lost_reply_is_one_message(operators: int, spool: Spool, space: TrustSpace) -> None:
    replies = []
    for _ in range(2):
        async with secured(operators, space.client("two")) as client:
            await client.say("MAIL FROM:<labo@op2.example>")
            await client.say("RCPT TO:<dr.gris@op1.example>")
            await client.say("DATA")
            replies.append(await client.say(MAIL + b".\r\n"))
    assert replies[0] == replies[1]
    assert replies[0].startswith("250 2.6.0")
    assert len(claimed(spool)) == 1


async def test_nothing_is_said_before_tls(operators: int) -> None:
    async with raw(operators) as client:
        assert "STARTTLS" in await client.say("EHLO test.example")
        assert (await client.say("MAIL FROM:<labo@op2.example>")).startswith("530 5.7.0")
        assert (await client.say("AUTH PLAIN AAAA")).startswith("530")


async def test_no_certificate_no_entry(operators: int, space: TrustSpace, caplog: pytest.LogCaptureFixture) -> None:
    stranger = space.anonymous()
    stranger.check_hostname = False  # else it is the client who leaves: an operator's certificate names its host
    with caplog.at_level(logging.INFO), capture_logs() as logs:
        with pytest.raises((ssl.SSLError, OSError, asyncio.IncompleteReadError)):
            async with secured(operators, stranger):
                pass
        async with asyncio.timeout(5):
            while not logs:  # noqa: ASYNC110 - under TLS 1.3 the client is done before the server says no
                await asyncio.sleep(0.01)
    assert "Traceback" not in caplog.text
    (line,) = logs
    assert (line["event"], line["client"]) == ("smtp.tls-failed", "127.0.0.1")
    assert line["reason"] == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


async def test_a_listed_operator_speaks_for_its_domains_only(operators: int, spool: Spool, space: TrustSpace) -> None:
    async with secured(operators, space.client("two")) as client:
        assert (await client.say("MAIL FROM:<labo@op1.example>")).startswith("550 5.7.1")
        assert (await client.say("MAIL FROM:<labo@sub.op2.example>")).startswith("550 5.7.1")
        assert (await client.say("MAIL FROM:<>")).startswith("250")
    async with secured(operators, space.client("rogue")) as client:
        assert (await client.say("MAIL FROM:<labo@op2.example>")).startswith("550 5.7.1")
        assert (await client.say("MAIL FROM:<>")).startswith("550 5.7.1")
        assert (await client.say("RCPT TO:<dr.gris@op1.example>")).startswith("503")


async def test_only_local_mailboxes(operators: int, space: TrustSpace) -> None:
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        assert (await client.say("RCPT TO:<nobody@op1.example>")).startswith("550 5.1.1")
        assert (await client.say("RCPT TO:<dr.gris@elsewhere.example>")).startswith("550 5.1.1")
        assert (await client.say("RCPT TO:<DR.GRIS@op1.example>")).startswith("250")
        assert (await client.say("RCPT TO:<Postmaster>")).startswith("250")
        assert (await client.say("DATA")).startswith("354")


@pytest.mark.parametrize(
    "command",
    [
        "MAIL FROM:labo@op2.example",
        "MAIL FROM:<labo@op2.example",
        "MAIL FROM:<@a.example:labo@op2.example>",
        'MAIL FROM:<"a b"@op2.example>',
        "MAIL FROM:<labo@[127.0.0.1]>",
        "MAIL FROM:<labo@op2.example>SIZE=1",
        "MAIL FROM:<labo@op2.example> SIZE=x",
        "MAIL FROM:<labo@op2.example> SIZE=1 SIZE=1",
        "MAIL FROM:<labo@op2.example> BODY=BINARYMIME",
        "MAIL FROM:<labo@op2.example> SMTPUTF8=1",
        "MAIL FROM:<labo@op2.example> REQUIRETLS=yes",
        "MAIL FROM:<labo@op2.example> ENVID=a=b",
        "MAIL FROM:<labo@op2.example> RET=SOME",
        "MAIL FROM:<labo@op2.example> SIZE=200001",
        "MAIL TO:<labo@op2.example>",
        "MAIL",
    ],
)
async def test_a_malformed_mail_is_refused(operators: int, space: TrustSpace, command: str) -> None:
    async with secured(operators, space.client("two")) as client:
        assert (await client.say(command))[0] == "5"
        assert (await client.say("RCPT TO:<dr.gris@op1.example>")).startswith("503")
        assert (await client.say("NOOP")).startswith("250")


async def test_who_is_slow_is_not_waited_for(spool: Spool, space: TrustSpace, listed: Listed) -> None:
    options = replace(OPTIONS, limits=replace(OPTIONS.limits, idle_seconds=0.4, data_seconds=0.6))
    door = OperatorDoor(spool, lambda: listed, LOCAL.__contains__, space.server("one"), options)
    port = await door.start("127.0.0.1", 0)
    try:
        async with secured(port, space.client("two")) as client:
            assert (await client.reply()).startswith("421 4.4.2")
            assert await client.closed()
        async with secured(port, space.client("two")) as client:
            await client.say("MAIL FROM:<labo@op2.example>")
            await client.say("RCPT TO:<dr.gris@op1.example>")
            await client.say("DATA")
            for octet in range(8):
                client.send(MAIL[octet : octet + 1])
                await asyncio.sleep(0.1)
            assert (await client.reply()).startswith("421 4.4.2")
            assert await client.closed()
    finally:
        await door.stop()
    assert claimed(spool) == []


async def test_thousands_of_recipients_cost_a_reply_each(operators: int, space: TrustSpace, spool: Spool) -> None:
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        LOCAL.update(f"u{n}@op1.example" for n in range(5000))
        client.send(b"".join(b"RCPT TO:<u%d@op1.example>\r\n" % n for n in range(5000)) + b"DATA\r\n" + MAIL + b".\r\n")
        replies = [(await client.reply())[:9] for _ in range(5002)]
        assert replies[:4] == ["250 2.1.5"] * 3 + ["452 4.5.3"]
        assert set(replies[3:5000]) == {"452 4.5.3"}
        assert [reply[:3] for reply in replies[5000:]] == ["354", "250"]
    assert len(claimed(spool)) == 3


async def test_too_many_recipients_come_back_later(operators: int, space: TrustSpace, spool: Spool) -> None:
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        LOCAL.update(f"u{n}@op1.example" for n in range(4))
        replies = [await client.say(f"RCPT TO:<u{n}@op1.example>") for n in range(4)]
        assert [reply[:9] for reply in replies] == ["250 2.1.5"] * 3 + ["452 4.5.3"]


SMUGGLED = b"MAIL FROM:<evil@op2.example>\r\nRCPT TO:<dr.gris@op1.example>\r\nDATA\r\nFrom: evil@op2.example\r\n\r\nx"


@pytest.mark.parametrize(
    "fake_end",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r\n\x00.\r\n",
        b"\n\n.\r\n",
        b"\r\r\n.\r\n\n",
    ],
)
async def test_smuggling_ends_no_message(operators: int, space: TrustSpace, spool: Spool, fake_end: bytes) -> None:
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        await client.say("RCPT TO:<dr.gris@op1.example>")
        await client.say("DATA")
        first = await client.say(MAIL + b"a" + fake_end + SMUGGLED + b"\r\n.\r\n")
    assert first.startswith("554 5.6.0")
    assert claimed(spool) == []


@pytest.mark.parametrize("pause_at", range(1, 6))
async def test_the_end_is_found_wherever_packets_are_cut(
    operators: int, space: TrustSpace, spool: Spool, pause_at: int
) -> None:
    end = b"\r\n.\r\n"
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        await client.say("RCPT TO:<dr.gris@op1.example>")
        await client.say("DATA")
        client.send(MAIL[:-2] + end[:pause_at])
        await asyncio.sleep(0.01)
        client.send(end[pause_at:] + b"NOOP\r\nQUIT\r\n")
        assert (await client.reply()).startswith("250 2.6.0")
        assert (await client.reply()).startswith("250 2.0.0")
        assert (await client.reply()).startswith("221 2.0.0")
    assert spool.content(claimed(spool)[0]) == MAIL


async def test_a_whole_envelope_in_one_packet(operators: int, space: TrustSpace, spool: Spool) -> None:
    async with secured(operators, space.client("two")) as client:
        one = b"MAIL FROM:<labo@op2.example>\r\nRCPT TO:<no@op1.example>\r\nRCPT TO:<dr.gris@op1.example>\r\nDATA\r\n"
        client.send(one)
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "550", "250", "354"]
        client.send(MAIL + b".\r\n" + one)
        assert [(await client.reply())[:3] for _ in range(5)] == ["250", "250", "550", "250", "354"]
        client.send(MAIL.replace(b"<1@", b"<2@") + b".\r\n")
        assert (await client.reply()).startswith("250")
    assert len(claimed(spool)) == 2


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        (b"x" * 999 + b"\r\n", "554 5.6.0"),
        (b"x" * 998 + b"\r\n", "250"),
        ((b"x" * 70 + b"\r\n") * 3000, "552 5.3.4"),
        ((b"x" * 70 + b"\r\n") * 30000, "552 5.3.4"),
        (b"y\r\n" * 40000, "250"),
    ],
)
async def test_sizes_are_limited(operators: int, space: TrustSpace, content: bytes, reply: str) -> None:
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        await client.say("RCPT TO:<dr.gris@op1.example>")
        await client.say("DATA")
        client.send(MAIL + content + b".\r\n")
        assert (await client.reply()).startswith(reply)
        assert (await client.say("NOOP")).startswith("250")


@pytest.mark.parametrize(
    ("header", "reply"),
    [
        (b"Subject: no author\r\n", "554 5.6.0"),
        (b"From: a@op2.example\r\nFrom: b@op2.example\r\n", "554 5.6.0"),
        (b"From: a@op2.example, b@op2.example\r\n", "554 5.6.0"),
        (b"From: a@op2.example <b@op2.example>\r\n", "554 5.6.0"),
        (b" X-Relais-Verdict: a folded first line\r\nFrom: a@op2.example\r\n", "554 5.6.0"),
        (b"From: a@op2.example\r\nno field at all\r\n", "554 5.6.0"),
        (b"From: a@op2.example\r\n" + b"Received: by x; now\r\n" * 5, "554 5.4.6"),
        (b"From: a@op2.example\r\n" + b"Received: by x; now\r\n" * 4, "250"),
    ],
)
async def test_headers_are_read_strictly(operators: int, space: TrustSpace, header: bytes, reply: str) -> None:
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        await client.say("RCPT TO:<dr.gris@op1.example>")
        await client.say("DATA")
        assert (await client.say(header + b"\r\nbody\r\n.\r\n")).startswith(reply)


async def test_plaintext_after_starttls_is_forgotten(operators: int, space: TrustSpace) -> None:
    async with raw(operators) as client:
        await client.say("EHLO test.example")
        client.send(b"STARTTLS\r\nEHLO injected.example\r\nMAIL FROM:<labo@op2.example>\r\n")
        assert (await client.reply()).startswith("220")
        try:
            await client.writer.start_tls(space.client("two"), server_hostname="localhost")
            assert (await client.say("MAIL FROM:<labo@op2.example>")).startswith("503")
        except (OSError, asyncio.IncompleteReadError):
            pass  # the injected text broke the handshake: just as well


async def test_one_connection_too_many_is_turned_away(operators: int) -> None:
    with capture_logs() as logs:
        connections = [await asyncio.open_connection("127.0.0.1", operators) for _ in range(9)]
        greetings = [await reader.readline() for reader, _ in connections]
    assert [line["event"] for line in logs] == ["smtp.too-many-connections"]
    assert sorted(greeting[:3] for greeting in greetings) == [b"220"] * 8 + [b"421"]
    for _, writer in connections:
        writer.close()


async def test_garbage_and_silence_end_quietly(operators: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with raw(operators) as client:
            client.send(b"\x16\x03\x01garbage\xff\r\n" + b"x" * 10000 + b"\r\n")
            assert (await client.reply())[0] == "5"
        async with raw(operators) as client:
            await client.say("EHLO x")
            assert (await client.say("STARTTLS")).startswith("220")
            client.send(b"not a handshake\r\n")
            await client.closed()
    assert "Traceback" not in caplog.text


async def test_a_spool_that_cannot_keep_says_later(
    operators: int, space: TrustSpace, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "begin_accept", full)
    async with secured(operators, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        await client.say("RCPT TO:<dr.gris@op1.example>")
        await client.say("DATA")
        assert (await client.say(MAIL + b".\r\n")).startswith("452 4.3.1")


# Submission


def plain(login: str, password: str) -> str:
    return "AUTH PLAIN " + base64.b64encode(f"\0{login}\0{password}".encode()).decode()


OWN = MAIL.replace(b"labo@op2.example", b"dr.gris@op1.example")


async def test_a_doctor_sends(submission_port: int, space: TrustSpace, spool: Spool) -> None:
    def send(client: smtplib.SMTP) -> dict[str, tuple[int, bytes]]:
        client.login("dr.gris@op1.example", "mot de passe")
        return client.sendmail(
            "dr.gris@op1.example", ["labo@op2.example", "dr.gris@op1.example", "x@gmail.example"], OWN
        )

    refused = await with_smtplib(submission_port, space.anonymous(), send)
    assert {address: code for address, (code, _) in refused.items()} == {"x@gmail.example": 550}
    assert sorted((lease.recipient, lease.target) for lease in claimed(spool)) == [
        ("dr.gris@op1.example", TargetKind.MAILBOX),
        ("labo@op2.example", TargetKind.SMTP),
    ]


async def test_both_mechanisms_and_their_failures(submission_port: int, space: TrustSpace) -> None:
    async with secured(submission_port, space.anonymous()) as client:
        assert (await client.say("MAIL FROM:<dr.gris@op1.example>")).startswith("530 5.7.0")
        assert (await client.say("AUTH CRAM-MD5")).startswith("504")
        assert (await client.say("AUTH PLAIN !!!")).startswith("501")
        assert (await client.say(plain("dr.gris@op1.example", "wrong"))).startswith("535 5.7.8")
        assert (await client.say("AUTH LOGIN")).startswith("334")
        assert (await client.say(base64.b64encode(b"gris").decode())).startswith("334")
        assert (await client.say(base64.b64encode(b"mot de passe").decode())).startswith("235")
        assert (await client.say(plain("gris", "mot de passe"))).startswith("503")
        assert (await client.say("NOOP")).startswith("250")


async def test_five_wrong_passwords_lock_the_account_and_its_owner_is_told(
    submission_port: int, space: TrustSpace
) -> None:
    async with secured(submission_port, space.anonymous()) as client:
        for _ in range(5):
            assert await client.say(plain("gris", "wrong")) == Refused(AUTHENTICATION_FAILED).reply_fr
        assert await client.say(plain("gris", "mot de passe")) == Refused(ACCOUNT_LOCKED).reply_fr
        assert (await client.say(plain("noir", "autre"))).startswith("235"), "nobody else is locked"
    async with secured(submission_port, space.anonymous()) as client:
        assert await client.say(plain("gris", "mot de passe")) == Refused(ACCOUNT_LOCKED).reply_fr


async def test_who_only_guesses_is_shown_out(submission_port: int, space: TrustSpace) -> None:
    async with secured(submission_port, space.anonymous()) as client:
        for _ in range(10):
            assert await client.say(plain("nobody", "x")) == Refused(AUTHENTICATION_FAILED).reply_fr
        assert (await client.reply()).startswith("421 4.7.0")
        assert await client.closed()


async def test_no_password_is_heard_before_tls(submission_port: int, space: TrustSpace) -> None:
    async with raw(submission_port) as client:
        assert "AUTH" not in await client.say("EHLO test.example")
        assert (await client.say(plain("gris", "mot de passe"))).startswith("530 5.7.0")
        client.send(b"STARTTLS\r\n" + plain("gris", "mot de passe").encode() + b"\r\n")
        assert (await client.reply()).startswith("220")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # the injected text may break the handshake
            await client.writer.start_tls(space.anonymous(), server_hostname="localhost")
            await client.say("EHLO test.example")
            assert (await client.say("MAIL FROM:<dr.gris@op1.example>")).startswith("530 5.7.0")


async def test_nobody_acts_for_somebody_else(submission_port: int, space: TrustSpace) -> None:
    def words(actor: str) -> str:
        return "AUTH PLAIN " + base64.b64encode(f"{actor}\0gris\0mot de passe".encode()).decode()

    async with secured(submission_port, space.anonymous()) as client:
        assert (await client.say(words("noir"))).startswith("501 5.5.2")
        assert (await client.say("MAIL FROM:<dr.gris@op1.example>")).startswith("530")
        assert (await client.say(words("gris"))).startswith("235")


async def test_strangers_do_not_hold_a_place(
    spool: Spool, space: TrustSpace, listed: Listed, database: Database, vault: KeyVault
) -> None:
    options = replace(OPTIONS, limits=replace(OPTIONS.limits, stranger_seconds=0.3))
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example"], "mot de passe")
    submission = SubmissionDoor(
        spool, accounts, LOCAL.__contains__, "op1.example".__eq__, lambda domain: False, space.service(), options
    )
    operators = OperatorDoor(spool, lambda: listed, LOCAL.__contains__, space.server("one"), options)
    try:
        port = await submission.start("127.0.0.1", 0)
        async with secured(port, space.anonymous()) as stranger, secured(port, space.anonymous()) as doctor:
            await doctor.say(plain("gris", "mot de passe"))
            assert (await stranger.reply()).startswith("421 4.4.2")
            assert await stranger.closed()
            assert (await doctor.say("NOOP")).startswith("250")
        port = await operators.start("127.0.0.1", 0)
        async with raw(port) as stranger, secured(port, space.client("two")) as operator:
            assert (await stranger.reply()).startswith("421 4.4.2")
            assert await stranger.closed()
            assert (await operator.say("NOOP")).startswith("250")
    finally:
        await submission.stop()
        await operators.stop()


async def test_nobody_sends_as_another(submission_port: int, space: TrustSpace, spool: Spool) -> None:
    async with secured(submission_port, space.anonymous()) as client:
        await client.say(plain("gris", "mot de passe"))
        assert (await client.say("MAIL FROM:<dr.noir@op1.example>")).startswith("550 5.7.1")
        for sender, author, reply in (
            ("dr.gris@op1.example", b"dr.noir@op1.example", "550 5.7.1"),
            ("dr.gris@op1.example", b"cabinet@op1.example", "250"),
        ):
            assert (await client.say(f"MAIL FROM:<{sender}>")).startswith("250")
            assert (await client.say("RCPT TO:<labo@op2.example>")).startswith("250")
            await client.say("DATA")
            assert (await client.say(b"From: " + author + b"\r\n\r\nx\r\n.\r\n")).startswith(reply)
    assert len(claimed(spool)) == 1


@pytest.mark.parametrize(
    ("header", "reply"),
    [
        (b"From: Dr Gris <DR.Gris@OP1.example>", "250"),
        (b"From:\r\n dr.gris@op1.example", "250"),
        (b"From: =?utf-8?q?dr.noir=40op1.example?= <dr.gris@op1.example>", "250"),
        (b"From: dr.gris@op1.example\r\nSender: cabinet@op1.example", "250"),
        (b"From: dr.gris@op1.example\r\nSender: dr.noir@op1.example", "550 5.7.1"),
        (b"From: dr.gris@op1.example\r\nsender:\r\n <dr.noir@op1.example>", "550 5.7.1"),
        (b"From: dr.gris@op1.example\r\nResent-From: dr.noir@op1.example", "550 5.7.1"),
        (b"From: dr.gris@op1.example\r\nResent-Sender: dr.gris@op1.example, dr.noir@op1.example", "550 5.7.1"),
        (b"From: dr.gris@op1.example\r\nSender: Groupe: dr.gris@op1.example;", "554 5.6.0"),
        (b"From: Dr Gris <dr.noir@op1.example>", "550 5.7.1"),
        (b'From: "dr.gris@op1.example" <dr.noir@op1.example>', "550 5.7.1"),
        (b"From: dr.gris@op1.example <dr.noir@op1.example>", "554 5.6.0"),
        (b"From: dr.gris@op1.example, dr.noir@op1.example", "554 5.6.0"),
        (b"From: dr.gris@op1.example\r\nFrom: dr.noir@op1.example", "554 5.6.0"),
        (b"From : dr.noir@op1.example\r\nFrom: dr.gris@op1.example", "554 5.6.0"),
        (b"From: Groupe: dr.gris@op1.example;", "554 5.6.0"),
        (b"From: undisclosed:;", "554 5.6.0"),
        (b"From: =?utf-8?q?dr.gris=40op1.example?=", "554 5.6.0"),
        (b"From: <@op2.example:dr.gris@op1.example>", "554 5.6.0"),
        (b"From: dr.gris@op1.example (<dr.noir@op1.example>)", "250"),
        (b"From: (dr.gris@op1.example) dr.noir@op1.example", "550 5.7.1"),
        (b'From: "Dr <dr.gris@op1.example" dr.noir@op1.example', "554 5.6.0"),
        (b"From: dr.gris@op1.example\0", "554 5.6.0"),
        (b"From: dr.gris@op1.example.", "554 5.6.0"),
        ("From: dr.grıs@op1.example".encode(), "554 5.6.0"),
        (b"From:", "554 5.6.0"),
    ],
)
async def test_whoever_the_header_names_is_the_one_who_logged_in(
    submission_port: int, space: TrustSpace, header: bytes, reply: str
) -> None:
    async with secured(submission_port, space.anonymous()) as client:
        await client.say(plain("gris", "mot de passe"))
        await client.say("MAIL FROM:<dr.gris@op1.example>")
        await client.say("RCPT TO:<labo@op2.example>")
        await client.say("DATA")
        assert (await client.say(header + b"\r\n\r\nx\r\n.\r\n")).startswith(reply)


READ = (
    b"From: dr.gris@op1.example\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: multipart/report; report-type=disposition-notification; boundary=b\r\n\r\n"
    b"--b\r\n\r\nlu\r\n--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
    b"Final-Recipient: rfc822; dr.gris@op1.example\r\nOriginal-Message-ID: <1@op2.example>\r\n"
    b"Disposition: manual-action/MDN-sent-manually; displayed\r\n\r\n--b--\r\n"
)
FORGED = (
    b"From: dr.gris@op1.example\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: multipart/report; report-type=disposition-notification; boundary=b\r\n\r\n"
    b"--b\r\n\r\nremis\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    b"Reporting-MTA: dns; gate.op1.example\r\nOriginal-Envelope-Id: " + b"0" * 32 + b"\r\n\r\n"
    b"Final-Recipient: rfc822; dr.noir@op1.example\r\nAction: delivered\r\nStatus: 2.0.0\r\n\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("content", "reply"), [(READ, "250"), (FORGED, "550 5.7.1"), (OWN, "550 5.7.1"), (FORGED + READ, "550 5.7.1")]
)
async def test_only_read_receipts_have_a_null_sender(
    submission_port: int, space: TrustSpace, content: bytes, reply: str
) -> None:
    """Receivers believe a delivery notification because no mailbox's owner can send with a null reverse-path."""
    async with secured(submission_port, space.anonymous()) as client:
        await client.say(plain("gris", "mot de passe"))
        assert (await client.say("MAIL FROM:<>")).startswith("250")
        await client.say("RCPT TO:<labo@op2.example>")
        await client.say("DATA")
        assert (await client.say(content + b".\r\n")).startswith(reply)


async def test_a_message_that_failed_is_sent_again_when_it_comes_again(
    submission_port: int, space: TrustSpace, spool: Spool
) -> None:
    """To whom it failed, and to nobody else; nothing is answered with 250 and dropped."""

    async def submit(client: Raw) -> str:
        await client.say("MAIL FROM:<dr.gris@op1.example>")
        await client.say("RCPT TO:<labo@op2.example>")
        await client.say("RCPT TO:<Centre@op2.example>")
        await client.say("DATA")
        return await client.say(OWN + b".\r\n")

    async with secured(submission_port, space.anonymous()) as client:
        await client.say(plain("gris", "mot de passe"))
        first = await submit(client)
        for lease in claimed(spool):
            reached = lease.recipient == "labo@op2.example"
            assert spool.settle(lease, Delivered() if reached else Failed(Refused(refusals.REMOTE_REFUSED)))
        for _ in range(2):
            replies = {await submit(client), await submit(client)}
            assert len(replies) == 1 and first not in replies
            (lease,) = claimed(spool)
            assert lease.recipient == "Centre@op2.example"
            assert spool.content(lease).endswith(OWN)
            assert spool.settle(lease, Failed(Refused(refusals.REMOTE_REFUSED)))
            first = replies.pop()


@pytest.mark.parametrize("message_id", [b"<a b@x>", b"<\x1b[2J@x>", b"<\xe9@x>", b"a@x", b"<" + b"a" * 249 + b">"])
async def test_a_strange_message_id_does_not_reach_a_terminal(
    operators: int, space: TrustSpace, spool: Spool, message_id: bytes
) -> None:
    content = MAIL.replace(b"<1@op2.example>", message_id)
    async with secured(operators, space.client("two")) as client:
        for _ in range(2):
            await client.say("MAIL FROM:<labo@op2.example>")
            await client.say("RCPT TO:<dr.gris@op1.example>")
            await client.say("DATA")
            assert (await client.say(content + b".\r\n")).startswith("250")
    (lease,) = claimed(spool)
    assert lease.message_id.endswith("@gate.op1.example>")
    assert spool.content(lease) == content


async def test_what_a_poor_client_forgot_is_added(submission_port: int, space: TrustSpace, spool: Spool) -> None:
    async with secured(submission_port, space.anonymous()) as client:
        await client.say(plain("gris", "mot de passe"))
        for _ in range(2):
            await client.say("MAIL FROM:<dr.gris@op1.example>")
            await client.say("RCPT TO:<labo@op2.example>")
            await client.say("DATA")
            assert (await client.say(b"From: dr.gris@op1.example\r\n\r\nx\r\n.\r\n")).startswith("250")
    leases = claimed(spool)
    assert len({lease.message_id for lease in leases}) == 2, "the same words twice are two messages"
    content = spool.content(leases[0])
    assert f"Message-ID: {leases[0].message_id}\r\n".encode() in content
    assert b"\r\nDate: " in content


ERRORS = [
    ("MAIL FROM:<dr.gris@op1.example> SIZE=200001", None, refusals.MESSAGE_TOO_LARGE),
    ("MAIL FROM:<dr.noir@op1.example>", None, refusals.SENDER_NOT_ALLOWED),
    ("RCPT TO:<labo@gmail.example>", None, refusals.RECIPIENT_NOT_TRUSTED),
    ("RCPT TO:<nobody@op1.example>", None, refusals.MAILBOX_UNKNOWN),
    ("DATA", OWN.replace(b"dr.gris@", b"dr.noir@"), refusals.SENDER_NOT_ALLOWED),
    ("DATA", OWN + b"x\r\n" * 100_000, refusals.MESSAGE_TOO_LARGE),
    ("DATA", OWN + b"a\nb\r\n", refusals.LINE_ENDINGS),
    ("DATA", OWN + b"x" * 999 + b"\r\n", refusals.LINE_TOO_LONG),
    ("DATA", b"Subject: x\r\n\r\n", refusals.HEADER_INVALID),
    ("DATA", b"Received: by x; now\r\n" * 5 + OWN, refusals.TOO_MANY_HOPS),
]


@pytest.mark.parametrize(("command", "content", "refusal"), ERRORS)
async def test_each_error_has_its_sentence_its_code_and_its_line_in_the_log(
    submission_port: int, space: TrustSpace, command: str, content: bytes | None, refusal: Refusal
) -> None:
    step = command.split(" ")[0]
    before = {"MAIL": [], "RCPT": ["MAIL FROM:<dr.gris@op1.example>"]}.get(
        step, ["MAIL FROM:<dr.gris@op1.example>", "RCPT TO:<labo@op2.example>"]
    )
    with capture_logs() as logs:
        async with secured(submission_port, space.anonymous()) as client:
            await client.say(plain("gris", "mot de passe"))
            for each in before:
                assert (await client.say(each)).startswith("250")
            reply = await client.say(command)
            if content is not None:
                reply = await client.say(content + b".\r\n")
    assert reply.startswith(Refused(refusal).reply_fr)
    (line,) = logs
    assert (line["event"], line["door"], line["step"]) == ("smtp.refused", "submission", step)
    assert (line["code"], line["client"], len(line["peer"])) == (refusal.code, "127.0.0.1", 64)


async def test_what_is_kept_is_logged_once_by_its_number(
    submission_port: int, operators: int, space: TrustSpace, spool: Spool
) -> None:
    with capture_logs() as logs:
        async with secured(submission_port, space.anonymous()) as client:
            await client.say(plain("gris", "mot de passe"))
            for _ in range(2):
                await client.say("MAIL FROM:<dr.gris@op1.example>")
                await client.say("RCPT TO:<labo@op2.example>")
                await client.say("DATA")
                await client.say(OWN + b".\r\n")
        async with secured(operators, space.client("two")) as client:
            await client.say("MAIL FROM:<labo@op2.example>")
            await client.say("RCPT TO:<dr.gris@op1.example>")
            await client.say("DATA")
            await client.say(MAIL + b".\r\n")
    assert [(line["event"], line["door"]) for line in logs] == [
        ("smtp.accepted", "submission"),
        ("smtp.duplicate", "submission"),
        ("smtp.accepted", "operator"),
    ]
    assert {line["spool_id"] for line in logs} == {lease.spool_id for lease in claimed(spool)}
    assert logs[2]["peer"] == str(space.names["two"])
    assert "gris" not in str(logs) and "labo@" not in str(logs)


async def test_addresses_and_passwords_are_not_logged(
    submission_port: int, space: TrustSpace, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), capture_logs() as logs:
        async with secured(submission_port, space.anonymous()) as client:
            await client.say(plain("gris", "wrong"))
            await client.say(plain("gris", "mot de passe"))
            await client.say("MAIL FROM:<dr.gris@op1.example>")
            await client.say("RCPT TO:<279035121518989@op2.example>")
            await client.say("RCPT TO:<279035121518989@op1.example>")
            await client.say("RCPT TO:<279035121518989@gmail.example>")
    assert len(logs) == 3
    for text in (caplog.text, str(logs)):
        assert "279035121518989" not in text
        assert "gris" not in text
        assert "passe" not in text
