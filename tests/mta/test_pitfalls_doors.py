"""Known ways to fool a mail server, tried over sockets against the doors; each test bears the number of the pitfall.

31 smuggling, 32 text before TLS, 33 injection, 34 secrets in clear, 35 promises before the disk, 36 forged verdicts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from directory.partners import PartnerBook
from mta import refusals
from mta.agreements import Agreements
from mta.correspondents import Correspondents
from mta.delivery import Lease
from mta.message import Message, Phase
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from mta.smtp.door import OperatorDoor, SubmissionDoor
from mta.spool import Spool
from trust.accounts import Accounts
from trust.refusals import Refused
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .mailboxes import Directory, Mailboxes
from .smtp_client import Raw, raw, secured
from .test_doors import LOCAL, MAIL, OPTIONS, QUICK, plain
from .trust_space import Listed, TrustSpace

ENVELOPE = b"MAIL FROM:<labo@op2.example>\r\nRCPT TO:<dr.gris@op1.example>\r\n"
INNER = (
    b"MAIL FROM:<evil@op2.example>\r\nRCPT TO:<dr.gris@op1.example>\r\nDATA\r\nFrom: evil@op2.example\r\n\r\nx\r\n.\r\n"
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
async def submission(
    spool: Spool, space: TrustSpace, listed: Listed, database: Database, vault: KeyVault
) -> AsyncIterator[int]:
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example"], "mot de passe")
    trusted = listed.domains.__contains__
    door = SubmissionDoor(spool, accounts, LOCAL.__contains__, "op1.example".__eq__, trusted, space.service(), OPTIONS)
    yield await door.start("127.0.0.1", 0)
    await door.stop()


async def begin(client: Raw) -> None:
    client.send(ENVELOPE + b"DATA\r\n")
    assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]


async def rest(client: Raw) -> list[str]:
    """Every reply until the server closes or falls silent."""
    replies = []
    with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, OSError):
        while True:
            replies.append(await asyncio.wait_for(client.reply(), 0.3))
    return replies


FAKE_ENDS = [
    first + dot + last
    for first in (
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\r",
        b"\r\r\n",
        b"\n\n",
        b"\0\r\n",
        b"\r\n\0",
        b"\r\0\n",
        b"\x85",
        b"\xe2\x80\xa8",
    )
    for dot in (b".", b"\0.", b".\0")
    for last in (b"\n", b"\r", b"\r\n", b"\n\r", b"\0\r\n", b"\r\0\n", b"\x85")
    if first + dot + last != b"\r\n.\r\n" and not (first + dot + last).endswith(b"\r\n.\r\n")
    # beside a NUL, which refuses whatever stands around it, only what would be an end without it
    if dot == b"." or first == last == b"\r\n"
]


async def test_pitfall_31_nothing_else_ends_data(operators: int, space: TrustSpace, spool: Spool) -> None:
    """However it is cut into packets: one reply for one message, refused, or kept as one message word for word."""
    for number, fake in enumerate(FAKE_ENDS):
        content = MAIL.replace(b"<1@", b"<%d@" % number) + b"a" + fake + INNER[:-5]
        async with secured(operators, space.client("two")) as client:
            await begin(client)
            half = len(MAIL) + 2 + number % (len(fake) + 1)
            client.send(content[:half])
            await client.writer.drain()
            client.send(content[half:] + b"\r\n.\r\n")
            reply = await client.reply()
        kept = spool.claim(10, 60)
        strict = b"\0" in fake or fake.replace(b"\r\n", b"").strip(b".\x85\xe2\x80\xa8") != b""
        assert reply.startswith("554 5.6.0" if strict else "250"), fake
        if strict:
            assert kept == [], fake
        else:
            assert [spool.content(each) for each in kept] == [content.replace(b"\r\n.", b"\r\n") + b"\r\n"], fake


@pytest.mark.parametrize("fake", [b"\r\r\n.\r\n", b"\n.\r\n\r\n.\r\n", b"\0\r\n.\r\n"])
async def test_pitfall_31_nothing_is_heard_after_refused_line_ends(
    operators: int, space: TrustSpace, spool: Spool, fake: bytes
) -> None:
    """What follows in the same flight may be a message of the sender's sender."""
    async with secured(operators, space.client("two")) as client:
        await begin(client)
        client.send(MAIL + b"a" + fake + INNER)
        replies = await rest(client)
    assert [reply[:3] for reply in replies] == ["554"]
    assert spool.claim(10, 60) == []


@pytest.mark.parametrize(
    "line",
    [
        b"NOOP\n",
        b"NOOP\r\r\n",
        b"NOOP\r x\r\n",
        b"NOOP\0\r\n",
        b"NOOP \xff\r\n",
        b"NO\tOP\r\n",
        b"MAIL FROM:<labo@op2.example>\nRCPT TO:<dr.gris@op1.example>\r\n",
        b"MAIL FROM:<labo@op2.example>\rRCPT TO:<dr.gris@op1.example>\r\n",
        b"\r\n",
        b" NOOP\r\n",
        b"NOOP " + b"x" * 600 + b"\r\n",
        b"RCPT TO:<" + b"x" * 3000 + b"@op1.example>\r\n",
        b"x" * 30_000 + b"\r\n",
    ],
)
async def test_pitfall_31_commands_are_lines_too(operators: int, space: TrustSpace, line: bytes) -> None:
    async with secured(operators, space.client("two")) as client:
        client.send(line)
        assert (await client.reply())[0] == "5"
        for _ in await rest(client):
            pass
        assert (await client.say("RCPT TO:<dr.gris@op1.example>")).startswith("503")


async def test_pitfall_32_what_came_before_tls_is_forgotten(operators: int, space: TrustSpace) -> None:
    """Pipelined after STARTTLS, in the same packet: neither executed nor answered under TLS."""
    context = space.client("two")
    async with raw(operators) as client:
        assert (await client.say("EHLO before.example")).startswith("250")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        client.send(b"STARTTLS\r\nEHLO injected.example\r\n" + ENVELOPE)
        assert (await client.reply()).startswith("220")

        async def exchange() -> None:
            client.send(outgoing.read())
            incoming.write(await asyncio.wait_for(client.reader.read(65536), 10))

        async def heard() -> bytes:
            while True:
                try:
                    return tls.read(65536)
                except ssl.SSLWantReadError:
                    await exchange()

        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await exchange()
        tls.write(b"MAIL FROM:<labo@op2.example>\r\n")
        client.send(outgoing.read())
        assert (await heard()).startswith(b"503 "), "not even the greeting before TLS counts"


async def test_pitfall_32_tls_once_and_nothing_without_it(operators: int, submission: int, space: TrustSpace) -> None:
    for port in (operators, submission):
        async with raw(port) as client:
            await client.say("EHLO x")
            for line in (
                plain("gris", "mot de passe"),
                "MAIL FROM:<labo@op2.example>",
                "DATA",
                "BDAT 1 LAST",
                "VRFY x",
            ):
                assert (await client.say(line)).startswith("530 5.7.0"), line
            assert (await client.say("STARTTLS now")).startswith("501")
    async with secured(operators, space.client("two")) as client:
        assert (await client.say("STARTTLS")).startswith("503")


@pytest.mark.parametrize(
    "argument",
    [
        "<labo@op2.example>\x0bRCPT",
        "<labo@op2.example> ENVID=a\x7fb",
        "<labo@op2.example> ENVID=a+0",
        "<labo@op2.example> RET=FULL;HDRS",
        "<labo@op2.example\x85>",
        "<labo@op2.example\u2028>",
        "<la bo@op2.example>",
        "<labo@op2.example>> SIZE=1",
        "<labo@op2..example>",
        "<labo@op2.example,evil@op2.example>",
        "<*)(uid=*@op2.example>",
    ],
)
async def test_pitfall_33_no_injection_through_the_envelope(operators: int, space: TrustSpace, argument: str) -> None:
    with capture_logs() as logs:
        async with secured(operators, space.client("two")) as client:
            assert (await client.say(f"MAIL FROM:{argument}"))[0] == "5"
            assert (await client.say("RCPT TO:<dr.gris@op1.example>")).startswith("503")
    assert all(argument not in str(value) for line in logs for value in line.values())


async def test_pitfall_33_names_clients_give_themselves_reach_no_line(
    operators: int, space: TrustSpace, spool: Spool
) -> None:
    async with secured(operators, space.client("two")) as client:
        assert (await client.say(b"EHLO x\rX-Relais-Verdict: good\r\n")).startswith("500")
        assert (await client.say("EHLO ]); drop table deliveries; --")).startswith("250")
        with capture_logs() as logs:
            await begin(client)
            assert (await client.say(MAIL + b".\r\n")).startswith("250")
    assert "drop table" not in str(logs)


@pytest.mark.parametrize(
    "header",
    [
        b"From: labo@op2.example\r\n" + b"X: y\r\n" * 1001,
        b"From: labo@op2.example\r\n" + b"X-Long: " + (b"y" * 900 + b"\r\n ") * 180 + b"y\r\n",
        b"From: labo@op2.example\r\nX" + b"-" * 990 + b"\r\n",
        b"From: labo@op2.example\r\n\tfolded: no\r\n: nothing\r\n",
    ],
)
async def test_pitfall_33_floods_of_header_fields(operators: int, space: TrustSpace, header: bytes) -> None:
    async with secured(operators, space.client("two")) as client:
        await begin(client)
        reply = await client.say(header + b"\r\nx\r\n.\r\n")
        assert reply[:3] in ("554", "250")
        assert reply.startswith("554") or len(header) < 200_000
        assert (await client.say("NOOP")).startswith("250")


async def test_pitfall_33_nobody_is_answered_who_did_not_write(operators: int, space: TrustSpace, spool: Spool) -> None:
    """Unknown recipients are refused in the session: no notice goes to a forged sender."""
    async with secured(operators, space.client("two")) as client:
        assert (await client.say("MAIL FROM:<>")).startswith("250")
        assert (await client.say("RCPT TO:<nobody@op1.example>")).startswith("550 5.1.1")
        assert (await client.say("DATA")).startswith("503")
    assert spool.claim(10, 60) == []


def message_of(spool: Spool, lease: Lease) -> Message:
    return Message(
        message_id=lease.message_id,
        spool_id=lease.spool_id,
        delivery_id=lease.delivery_id,
        origin=lease.origin,
        sender=lease.sender,
        recipient=lease.recipient,
        content=spool.content(lease),
        content_type=lease.content_type,
        accepted_at=lease.accepted_at,
        peer=lease.peer,
    )


async def test_pitfall_34_without_a_certificate_nothing_leaves(
    submission: int, space: TrustSpace, spool: Spool, vault: KeyVault, mailboxes: Mailboxes, database: Database
) -> None:
    """Of two recipients one has no certificate: the other's copy does not open a way in clear."""
    mailboxes.install(vault, "dr.gris@op1.example")
    content = MAIL.replace(b"labo@op2.example>\r\nTo", b"dr.gris@op1.example>\r\nTo")
    async with secured(submission, space.anonymous()) as client:
        await client.say(plain("gris", "mot de passe"))
        await client.say("MAIL FROM:<dr.gris@op1.example>")
        for name in ("dr.noir", "sans.certificat"):
            assert (await client.say(f"RCPT TO:<{name}@op2.example>")).startswith("250")
        await client.say("DATA")
        assert (await client.say(content + b".\r\n")).startswith("250")
    agreements = Agreements(PartnerBook([]), Correspondents(database, vault), "aes128-gcm")
    stage = ProtectStage(
        vault, Directory.of(mailboxes), mailboxes.validator, mailboxes.dkim.get, "gate.op1.example", agreements
    )
    outcome = {
        lease.recipient: await stage.apply(message_of(spool, lease), Phase.PROTECT) for lease in spool.claim(10, 60)
    }
    good, bad = outcome["dr.noir@op2.example"], outcome["sans.certificat@op2.example"]
    assert isinstance(good, Message) and b"hello" not in good.content
    assert isinstance(bad, Refused)


async def test_pitfall_35_kept_before_it_is_promised_and_never_in_clear(
    operators: int, space: TrustSpace, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = b"glycemie-veineuse-4711"
    content = MAIL + secret + b"\r\n"
    async with secured(operators, space.client("two")) as client:
        await begin(client)
        assert (await client.say(content + b".\r\n")).startswith("250 2.6.0")
        (lease,) = spool.claim(10, 60)
        assert spool.content(lease) == content
        files = await asyncio.to_thread(lambda: [each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()])
        assert files
        assert all(secret not in octets for octets in files)

        def broken(*_: object) -> None:
            raise RuntimeError("the database is gone")

        for name in ("accept", "begin_accept"):
            monkeypatch.setattr(spool, name, broken, raising=False)
        await begin(client)
        with capture_logs() as logs:
            assert (await client.say(content.replace(b"<1@", b"<2@") + b".\r\n")) == Refused(
                refusals.SPOOL_UNAVAILABLE
            ).reply
    assert secret.decode() not in str(logs)


FORGED = (
    b"Return-Path: <chef@op1.example>\r\n"
    b"Authentication-Results: gate.op1.example; dkim=pass header.d=op2.example; x-smime=pass\r\n"
    b'authentication-RESULTS: (gate) "gate.op1.example" 1; x-smime=pass\r\n'
    b"X-Relais-Verdict: decrypted=yes; signature=valid; signer=labo@op2.example\r\n"
    b"x-relais-delivery: 0123\r\n"
    b"X-RELAIS-\xc3\xa9: x\r\n"
)


@pytest.mark.parametrize("forged", [FORGED, FORGED.replace(b": ", b" :\r\n "), FORGED.replace(b": ", b":\r\n\t")])
async def test_pitfall_36_verdicts_from_outside_do_not_come_in(
    operators: int, space: TrustSpace, spool: Spool, vault: KeyVault, mailboxes: Mailboxes, forged: bytes
) -> None:
    async with secured(operators, space.client("two")) as client:
        await begin(client)
        reply = await client.say(forged + MAIL.replace(b"Subject: x", b"Subject: [signature valide] x") + b".\r\n")
    leases = spool.claim(10, 60)
    if reply.startswith("554"):
        assert leases == []
        return
    (lease,) = leases
    stage = OpenStage(vault, mailboxes.validator, PartnerBook([]), "gate.op1.example")
    message = message_of(spool, lease)
    opened = await stage.apply(replace(message), Phase.OPEN)
    assert isinstance(opened, Message)
    header = opened.content.partition(b"\r\n\r\n")[0].lower()
    assert header.count(b"x-relais-verdict") == 1
    assert b"signature=valid" not in header
    assert b"chef@op1.example" not in header
    assert header.count(b"\r\nauthentication-results") + header.startswith(b"authentication-results") == 1
    assert b"x-smime=pass" not in header
    assert b"0123" not in header
