"""What the doors offer beyond the plain dialogue: implicit TLS, certificates, BDAT, SMTPUTF8, REQUIRETLS, quotas,
back-pressure, and a decent end."""

from __future__ import annotations

import asyncio
import base64
import smtplib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from config.door_service import certificate_sign_in
from mta import refusals
from mta.smtp.door import DoorOptions, OperatorDoor, Shared, SubmissionDoor
from mta.smtp.limits import Limits, MemoryBudget, Meter, Quota
from mta.spool import Spool
from trust.accounts import Accounts
from trust.accounts_administration import Administration
from trust.catalogue import CERTIFICATE_REFUSED
from trust.certificates import CertificateValidator, Purpose
from trust.client_certificates import Binding
from trust.journal import Journal
from trust.refusals import Refused
from trust.store.database import Database
from trust.tls import service_server_context
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import Raw, raw, secured
from .test_doors import LOCAL, MAIL, OPTIONS, OWN, QUICK, plain
from .trust_space import Listed, TrustSpace

ENVELOPE = b"MAIL FROM:<labo@op2.example>\r\nRCPT TO:<dr.gris@op1.example>\r\n"


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
def accounts(database: Database, vault: KeyVault) -> Accounts:
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example", "cabinet@op1.example"], "mot de passe")
    return accounts


class Doors:
    """Makes doors, and closes them."""

    def __init__(self, spool: Spool, space: TrustSpace, listed: Listed, accounts: Accounts) -> None:
        self.spool, self.space, self.listed, self.accounts = spool, space, listed, accounts
        self.open: list[OperatorDoor | SubmissionDoor] = []

    def operators(self, **limits: object) -> OperatorDoor:
        options = DoorOptions("gate.op1.example", replace(OPTIONS.limits, **limits))  # type: ignore[arg-type]
        return self.of_operators(options)

    def of_operators(self, options: DoorOptions) -> OperatorDoor:
        door = OperatorDoor(self.spool, lambda: self.listed, LOCAL.__contains__, self.space.server("one"), options)
        self.open.append(door)
        return door

    def submission(
        self, context: ssl.SSLContext | None = None, certificates: object = None, **limits: object
    ) -> SubmissionDoor:
        door = SubmissionDoor(
            self.spool,
            self.accounts,
            LOCAL.__contains__,
            "op1.example".__eq__,
            lambda domain: bool(self.listed.operators_of(domain)),
            context or self.space.service(),
            DoorOptions("gate.op1.example", replace(OPTIONS.limits, **limits)),  # type: ignore[arg-type]
            None,
            certificates,  # type: ignore[arg-type]
        )
        self.open.append(door)
        return door


@pytest.fixture
async def doors(spool: Spool, space: TrustSpace, listed: Listed, accounts: Accounts) -> AsyncIterator[Doors]:
    made = Doors(spool, space, listed, accounts)
    yield made
    for door in made.open:
        await door.stop()


async def send(client: Raw, content: bytes = MAIL, envelope: bytes = ENVELOPE) -> str:
    client.send(envelope + b"DATA\r\n")
    replies = [await client.reply() for _ in range(envelope.count(b"\r\n") + 1)]
    return await client.say(content + b".\r\n") if replies[-1].startswith("354") else replies[-1]


def other(number: int) -> bytes:
    return MAIL.replace(b"<1@", b"<%d@" % number)


# Port 465


async def test_implicit_tls_beside_starttls(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    door = doors.submission()
    ports = await door.start("127.0.0.1", 0), await door.start("127.0.0.1", 0, implicit_tls=True)

    def submit(client: smtplib.SMTP) -> None:
        client.ehlo("x")
        assert not client.has_extn("starttls")
        client.login("gris", "mot de passe")
        client.sendmail("dr.gris@op1.example", ["labo@op2.example"], OWN)
        client.quit()

    def both() -> None:
        with smtplib.SMTP("127.0.0.1", ports[0], timeout=20) as client:
            client.starttls(context=space.anonymous())
            submit(client)
        with smtplib.SMTP_SSL("127.0.0.1", ports[1], timeout=20, context=space.anonymous()) as client:
            submit(client)

    with capture_logs() as logs:
        await asyncio.to_thread(both)
    assert [line["event"] for line in logs] == ["smtp.accepted", "smtp.duplicate"]


async def test_who_does_not_shake_hands_is_not_waited_for(doors: Doors) -> None:
    port = await doors.submission(handshake_seconds=0.3).start("127.0.0.1", 0, implicit_tls=True)
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"EHLO in.clear\r\n")
        assert b"250" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert [line["event"] for line in logs] == ["smtp.tls-failed"] * 2


# Client certificates


@pytest.fixture
async def machine_port(doors: Doors, space: TrustSpace, accounts: Accounts, vault: KeyVault) -> int:
    """`two` is the machine of the account gris."""
    space.service()
    validator = CertificateValidator([space.authority.root])
    chain = x509.load_pem_x509_certificates((space.directory / "two.pem").read_bytes())
    path = validator.validate(chain[0], chain[1:], Purpose.OPERATOR_TLS_CLIENT, datetime.now(UTC)).path
    Administration(accounts, Journal(vault, "here")).bind_certificate("gris", Binding.KEY, path, "root")
    context = service_server_context(space.directory / "service.pem", space.directory / "service.key", space.anchors)
    return await doors.submission(context, certificate_sign_in(accounts, validator)).start("127.0.0.1", 0)


def external(name: str) -> str:
    return f"AUTH EXTERNAL {base64.b64encode(name.encode()).decode() or '='}"


@pytest.mark.parametrize("name", ["", "gris", "dr.gris@op1.example", "CABINET@op1.example"])
async def test_a_machine_logs_in_with_its_certificate(machine_port: int, space: TrustSpace, name: str) -> None:
    async with secured(machine_port, space.client("two")) as client:
        assert "AUTH PLAIN LOGIN EXTERNAL" in await client.say("EHLO x")
        assert (await client.say(external(name))).startswith("235")
        assert (await client.say("MAIL FROM:<dr.gris@op1.example>")).startswith("250")


async def test_a_machine_may_answer_the_challenge(machine_port: int, space: TrustSpace) -> None:
    async with secured(machine_port, space.client("two")) as client:
        assert await client.say("AUTH EXTERNAL") == "334 "
        assert (await client.say("?")).startswith("501"), "no base64"
        assert await client.say("AUTH EXTERNAL") == "334 "
        assert (await client.say(base64.b64encode(b"gris").decode())).startswith("235")


async def test_a_certificate_is_no_more_than_its_account(machine_port: int, space: TrustSpace) -> None:
    async with secured(machine_port, space.client("two")) as client:
        assert await client.say(external("dr.noir@op1.example")) == Refused(CERTIFICATE_REFUSED, "login").reply_fr
        assert (await client.say("MAIL FROM:<dr.gris@op1.example>")).startswith("530")
    async with secured(machine_port, space.client("rogue")) as client:
        assert (await client.say(external(""))).startswith("535 5.7.8"), "nobody's"
        assert (await client.say(plain("gris", "mot de passe"))).startswith("235"), "a password still does"
    async with secured(machine_port, space.anonymous()) as client:
        assert "EXTERNAL" not in await client.say("EHLO x")
        assert (await client.say(external(""))).startswith("504")


# Extensions


async def test_content_in_chunks(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    port = await doors.operators().start("127.0.0.1", 0)
    content = MAIL + b".dots stay\r\n..two\r\n"
    async with secured(port, space.client("two")) as client:
        client.send(ENVELOPE + b"BDAT 10\r\n" + content[:10] + b"BDAT %d LAST\r\n" % (len(content) - 10) + content[10:])
        client.send(b"NOOP\r\n")
        assert [(await client.reply())[:9] for _ in range(5)] == [
            "250 2.1.0",
            "250 2.1.5",
            "250 2.0.0",
            "250 2.6.0",
            "250 2.0.0",
        ]
        client.send(ENVELOPE + b"BDAT 5\r\n" + MAIL[:5] + b"BDAT 0 LAST\r\n")
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "250", "554"], "no header"
    (lease,) = spool.claim(10, 60)
    assert spool.content(lease) == content


async def test_octets_of_a_refused_chunk_are_no_commands(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    port = await doors.operators().start("127.0.0.1", 0)
    smuggled = ENVELOPE + b"DATA\r\n" + MAIL + b".\r\n"
    async with secured(port, space.client("two")) as client:
        client.send(b"BDAT %d LAST\r\n" % len(smuggled) + smuggled + b"NOOP\r\n")
        assert (await client.reply()).startswith("503")
        assert (await client.reply()).startswith("250 2.0.0")
        client.send(ENVELOPE + b"BDAT 300000\r\n" + b"x" * 300000 + ENVELOPE[:0] + b"BDAT 5 LAST\r\nab\r\n\n")
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "552", "503"], "refused at once"
        client.send(ENVELOPE + b"BDAT 5\r\nabcdeDATA\r\nRCPT TO:<dr.gris@op1.example>\r\nRSET\r\n")
        assert [(await client.reply())[:3] for _ in range(6)] == ["250", "250", "250", "503", "503", "250"]
        client.send(ENVELOPE + b"BDAT 6 LAST\r\na\nb\r\n" + b"x")
        assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "554"], "bare LF"
        assert await client.closed()
    async with secured(port, space.client("two")) as client:
        client.send(b"BDAT x\r\n" + smuggled)
        assert (await client.reply()).startswith("501")
        assert await client.closed()
    assert spool.claim(10, 60) == []


async def test_addresses_outside_ascii(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    doors.listed = Listed({"xn--hpital-ixa.example": frozenset({space.names["two"]})})
    port = await doors.operators().start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        for line, reply in (
            ("MAIL FROM:<labo@hôpital.example>", "553 5.6.7"),
            ("MAIL FROM:<läbo@hôpital.example> SMTPUTF8", "553 5.6.7"),
            ("MAIL FROM:<labo@hôpital.example> SMTPUTF8=x", "501 5.5.4"),
            ("MAIL FROM:<labo@hôpital.example> SMTPUTF8", "250 2.1.0"),
            ("RCPT TO:<dr.grïs@op1.example>", "553 5.6.7"),
            ("RCPT TO:<dr.gris\u202e@op1.example>", "500 5.5.2"),
            ("RCPT TO:<dr.gris@op1.example>", "250 2.1.5"),
        ):
            assert (await client.say(line)).startswith(reply), line
        assert (await client.say(b"MAIL FROM:<labo\xe9@op2.example>\r\n")).startswith("500 5.5.2"), "Latin-1"
        await client.say("DATA")
        assert (
            await client.say("From: labo@xn--hpital-ixa.example\r\nSubject: Résultats\r\n\r\nx\r\n.\r\n".encode())
        ).startswith("250")
    (lease,) = spool.claim(10, 60)
    assert lease.sender == "labo@xn--hpital-ixa.example"
    assert "SMTPUTF8" in lease.flags
    assert "Résultats".encode() in spool.content(lease)


async def test_requiretls_is_kept(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    port = await doors.operators().start("127.0.0.1", 0)
    async with raw(port) as client:
        assert "REQUIRETLS" not in await client.say("EHLO x")
    async with secured(port, space.client("two")) as client:
        assert (await send(client, envelope=ENVELOPE.replace(b">\r\nRCPT", b"> REQUIRETLS\r\nRCPT"))).startswith("250")
    (lease,) = spool.claim(10, 60)
    assert "REQUIRETLS" in lease.flags


# Quotas and manners


async def test_so_much_an_hour(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    port = await doors.operators(holder=Quota(messages_per_hour=2)).start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        for number in range(2):
            assert (await send(client, other(number))).startswith("250")
        assert await client.say("MAIL FROM:<labo@op2.example>") == Refused(refusals.RATE_EXCEEDED, "holder").reply
        assert (await client.say("NOOP")).startswith("250")
    port = await doors.operators(client=Quota(recipients_per_hour=2)).start("127.0.0.1", 0)
    LOCAL.update({"u1@op1.example", "u2@op1.example"})
    async with secured(port, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        replies = [await client.say(f"RCPT TO:<{name}@op1.example>") for name in ("dr.gris", "u1", "u2")]
        assert [reply[:9] for reply in replies] == ["250 2.1.5", "250 2.1.5", "450 4.7.1"]
    port = await doors.operators(client=Quota(bytes_per_hour=1000)).start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        assert (await client.say("MAIL FROM:<labo@op2.example> SIZE=1001")).startswith("450 4.7.1")
        assert (await send(client, other(9) + (b"x" * 70 + b"\r\n") * 15)).startswith("250"), "its size was not said"
        assert (await client.say("MAIL FROM:<labo@op2.example>")).startswith("450 4.7.1")
    assert len(spool.claim(10, 60)) == 3


async def test_so_many_connections_at_once(doors: Doors, space: TrustSpace) -> None:
    port = await doors.operators(client=Quota(connections=2)).start("127.0.0.1", 0)
    async with raw(port), raw(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.read()).startswith(b"421 4.7.0")
        writer.close()
    port = await doors.operators(holder=Quota(connections=1)).start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as first, secured(port, space.client("two")) as second:
        assert (await first.say("MAIL FROM:<labo@op2.example>")).startswith("250")
        assert (await second.say("MAIL FROM:<labo@op2.example>")).startswith("421 4.7.0")
        assert await second.closed()
    async with asyncio.timeout(5):
        while doors.open[-1].connections:  # noqa: ASYNC110 - until the server has noticed
            await asyncio.sleep(0.01)
    async with secured(port, space.client("two")) as third:
        assert (await third.say("MAIL FROM:<labo@op2.example>")).startswith("250")


async def test_who_tries_things_out_waits_and_is_shown_out(doors: Doors, space: TrustSpace) -> None:
    port = await doors.operators(errors=8, free_failures=2, tarpit_seconds=0.05, refused_recipients=4).start(
        "127.0.0.1", 0
    )
    loop = asyncio.get_running_loop()
    async with secured(port, space.client("two")) as client:
        begun = loop.time()
        client.send(b"XYZZY\r\n" * 20)
        replies = [(await client.reply())[:3] for _ in range(9)]
        assert replies == ["500"] * 8 + ["421"]
        assert loop.time() - begun > 0.2
        assert await client.closed()
    async with secured(port, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")
        replies = [(await client.say(f"RCPT TO:<nobody{n}@op1.example>"))[:3] for n in range(4)]
        assert replies == ["550"] * 4
        assert (await client.reply()).startswith("421")
    for line in ("GET / HTTP/1.1", "Host: gate.op1.example", "POST /"):
        async with raw(port) as client:
            assert (await client.say(line)).startswith("421")
            assert await client.closed()


# Memory


async def test_many_large_messages_on_a_small_budget(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    """Each is answered, 250 or 452; never more is held than the budget and one message; who comes again
    gets through."""
    memory = MemoryBudget(300_000)
    limits = Limits(message_bytes=200_000, memory_seconds=0.3, tarpit_seconds=0)
    door = doors.of_operators(DoorOptions("gate.op1.example", limits, shared=Shared(memory, Meter())))
    port = await door.start("127.0.0.1", 0)
    body = (b"x" * 70 + b"\r\n") * 1500

    async def one(number: int) -> tuple[int, str]:
        async with secured(port, space.client("two")) as client:
            declared = b"> SIZE=%d\r\nRCPT" % len(body) if number % 2 else b">\r\nRCPT"
            return number, await send(client, other(number) + body, ENVELOPE.replace(b">\r\nRCPT", declared))

    waiting, rounds, busy = list(range(40)), 0, 0
    while waiting and rounds < 30:
        replies = await asyncio.gather(*(one(number) for number in waiting))
        assert {reply[:9] for _, reply in replies} <= {"250 2.6.0", "452 4.3.1"}
        waiting = [number for number, reply in replies if reply[:3] == "452"]
        busy += len(waiting)
        rounds += 1
    assert waiting == []
    assert memory.most <= memory.octets + limits.message_bytes
    assert memory.taken == 0
    assert memory.refused >= busy
    assert len(spool.claim(100, 60)) == 40


async def test_who_vanishes_gives_its_memory_back(doors: Doors, space: TrustSpace) -> None:
    memory = MemoryBudget(300_000)
    door = doors.of_operators(DoorOptions("gate.op1.example", OPTIONS.limits, shared=Shared(memory, Meter())))
    port = await door.start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        client.send(ENVELOPE.replace(b">\r\nRCPT", b"> SIZE=190000\r\nRCPT") + b"DATA\r\n" + MAIL)
        assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
        assert memory.taken >= 190_000
    async with asyncio.timeout(5):
        while memory.taken or door.connections:  # noqa: ASYNC110 - until the server has noticed
            await asyncio.sleep(0.01)


# The end


async def test_nobody_is_cut_off_in_the_middle_of_data_without_a_word(
    doors: Doors, space: TrustSpace, spool: Spool
) -> None:
    door = doors.operators()
    port = await door.start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as busy, secured(port, space.client("two")) as slow:  # noqa: SIM117
        async with secured(port, space.client("two")) as idle, raw(port) as stranger:
            for client in (busy, slow):
                client.send(ENVELOPE + b"DATA\r\n")
                assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
                client.send(MAIL)
            stopping = asyncio.create_task(door.stop(0.5))
            for client in (idle, stranger):
                assert (await client.reply()).startswith("421 4.3.2")
                assert await client.closed()
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            assert (await busy.say(b".\r\n")).startswith("250 2.6.0")
            assert (await busy.reply()).startswith("421 4.3.2")
            assert (await slow.reply()).startswith("421 4.3.2"), "its time is over"
            assert await slow.closed()
            await stopping
    assert len(spool.claim(10, 60)) == 1


async def test_limits_change_without_dropping_a_session(doors: Doors, space: TrustSpace) -> None:
    door = doors.operators()
    port = await door.start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as before:
        door.reload(replace(OPTIONS.limits, message_bytes=1000))
        assert "SIZE 200000" in await before.say("EHLO x")
        assert (await before.say("MAIL FROM:<labo@op2.example> SIZE=150000")).startswith("250")
        async with secured(port, space.client("two")) as after:
            assert "SIZE 1000" in await after.say("EHLO x")
            assert (await after.say("MAIL FROM:<labo@op2.example> SIZE=1001")).startswith("552")
