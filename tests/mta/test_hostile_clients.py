"""Clients that mean harm, over sockets: what one does costs the others nothing, and is answered like any mistake.

What the plain dialogue forbids is in `test_doors`, known pitfalls in `test_pitfalls_doors`.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from mta.smtp import data
from mta.smtp.data import Chunked, Dotted
from mta.smtp.door import DoorOptions, Shared
from mta.smtp.limits import Limits, MemoryBudget, Meter, Quota, Share
from mta.smtp.session import DoorSession
from mta.spool import Spool
from trust.accounts import Accounts
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool
from .smtp_client import Raw, raw, secured
from .test_door_extensions import ENVELOPE, Doors, send
from .test_doors import MAIL, OPTIONS, QUICK, plain
from .trust_space import Listed, TrustSpace


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
async def doors(
    spool: Spool, space: TrustSpace, listed: Listed, database: Database, vault: KeyVault
) -> AsyncIterator[Doors]:
    accounts = Accounts(database, vault, hasher=QUICK)
    accounts.create("gris", ["dr.gris@op1.example"], "mot de passe")
    made = Doors(spool, space, listed, accounts)
    yield made
    for door in made.open:
        await door.stop()


async def replies(client: Raw, count: int) -> list[str]:
    return [(await client.reply())[:3] for _ in range(count)]


# Time and memory of the process


async def test_thousands_of_commands_at_once_stop_nobody_else(doors: Doors) -> None:
    port = await doors.operators().start("127.0.0.1", 0)
    longest, ended = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not ended.is_set():
            before = time.thread_time()  # of this thread: other programs on the machine do not count
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    async with raw(port) as client:
        watching = asyncio.create_task(watch())
        client.send(b"NOOP\r\n" * 9000 + b"QUIT\r\n")
        last = ""
        while not last.startswith("221"):
            last = await client.reply()
        ended.set()
        await watching
    assert longest < 0.03, "seconds for which nobody else was served"


async def test_logins_keep_no_mail_waiting(
    doors: Doors, space: TrustSpace, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = doors.submission()
    port = await door.start("127.0.0.1", 0)
    door._threads._max_workers = door._login_threads._max_workers = 2  # fewer than guess
    slow, judge = threading.Event(), doors.accounts.authenticate

    def authenticate(login: str, *more: Any) -> Any:
        if login == "nobody":
            assert slow.wait(20)
        return judge(login, *more)

    monkeypatch.setattr(doors.accounts, "authenticate", authenticate)
    async with AsyncExitStack() as stack:
        client, *guessers = [await stack.enter_async_context(secured(port, space.anonymous())) for _ in range(6)]
        try:
            assert (await client.say(plain("gris", "mot de passe"))).startswith("235")
            for each in guessers:
                each.send(plain("nobody", "x").encode() + b"\r\n")
            content = MAIL.replace(b"labo@op2", b"dr.gris@op1")
            envelope = ENVELOPE.replace(b"labo@op2", b"dr.gris@op1")
            assert (await send(client, content, envelope)).startswith("250")
            assert (await send(client, content.replace(b"<1@", b"<2@"), envelope)).startswith("250")
        finally:
            slow.set()


async def test_replies_nobody_fetches_do_not_pile_up(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    door = doors.operators(idle_seconds=0.5)
    port = await door.start("127.0.0.1", 0)
    most = 0
    original = type(door._session())._send

    def watched(session: Any) -> None:
        nonlocal most
        most = max(most, len(session._unsent))
        original(session)

    monkeypatch.setattr(type(door._session()), "_send", watched)
    async with raw(port) as client:
        client.send(b"EHLO x\r\n" * 9000)
        client.send(b"QUIT\r\n")
        while not (await client.reply()).startswith("221"):
            pass
    assert most < 64 * 1024


async def test_sessions_leave_nothing_behind(doors: Doors, space: TrustSpace) -> None:
    """However they end."""
    memory = MemoryBudget(300_000)
    door = doors.of_operators(DoorOptions("gate.op1.example", OPTIONS.limits, shared=Shared(memory, Meter())))
    port = await door.start("127.0.0.1", 0)
    for last in (b"", b"NOOP\r\n", b"STARTTLS\r\n", b"x" * 200_000, b"\n\n\n"):
        async with raw(port) as client:
            client.send(last)
    for last in (b"MAIL", ENVELOPE, ENVELOPE + b"DATA\r\n" + MAIL, ENVELOPE + b"BDAT 9\r\nabc", b"QUIT\r\n"):
        async with secured(port, space.client("two")) as client:
            client.send(last)
            await client.writer.drain()
    async with asyncio.timeout(5):
        while door.connections:  # noqa: ASYNC110 - until the server has noticed
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)  # the last one's goodbye
    assert memory.taken == 0
    assert door._counted == {}
    assert not door._meter._connections
    gc.collect()
    assert [each for each in gc.get_objects() if isinstance(each, DoorSession)] == []


@pytest.mark.parametrize("make", [lambda: Dotted(10_000_000), lambda: Chunked(10_000_000)])
def test_octets_one_by_one_cost_no_more_than_octets(make: Any) -> None:
    content = make()
    if isinstance(content, Chunked):
        content.expect(400_000)
    line = b"x" * 76 + b"\r\n"
    for _ in range(2000):
        for start in range(0, len(line), 2):
            content.feed(line[start : start + 2])
    assert content.held == 2000 * len(line)
    assert len(content._blocks) < 2 * content.held / data._SMALL + 2


async def test_chunks_have_no_more_time_than_one_message(doors: Doors, space: TrustSpace) -> None:
    """Or whoever begins with one octet and says NOOP now and then holds a share of the memory for ever."""
    memory = MemoryBudget(300_000)
    limits = replace(OPTIONS.limits, data_seconds=0.6, idle_seconds=0.5)
    door = doors.of_operators(DoorOptions("gate.op1.example", limits, shared=Shared(memory, Meter())))
    port = await door.start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        client.send(ENVELOPE.replace(b">\r\nRCPT", b"> SIZE=190000\r\nRCPT") + b"BDAT 1\r\nF")
        assert await replies(client, 3) == ["250"] * 3
        said = "250"
        begun = asyncio.get_running_loop().time()
        while said.startswith("250"):
            assert asyncio.get_running_loop().time() - begun < 5
            assert memory.taken
            await asyncio.sleep(0.1)
            said = await client.say("NOOP")
        assert said.startswith("421 4.4.2")
        assert await client.closed()
    assert memory.taken == 0


async def test_the_time_of_one_content_is_not_the_next_one_s(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    door = doors.operators(data_seconds=0.4)
    port = await door.start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        client.send(ENVELOPE + b"BDAT %d LAST\r\n" % len(MAIL) + MAIL)
        assert await replies(client, 3) == ["250"] * 3
        client.send(b"BDAT 3 LAST\r\nabc")
        assert await replies(client, 1) == ["503"]
        client.send(ENVELOPE + b"BDAT 5\r\n" + MAIL[:5] + b"RSET\r\n")
        assert await replies(client, 4) == ["250"] * 4
        await asyncio.sleep(0.5)
        assert (await send(client, MAIL.replace(b"<1@", b"<2@"))).startswith("250")
    assert len(spool.claim(10, 60)) == 2


async def test_one_partner_does_not_take_all_the_memory(doors: Doors, space: TrustSpace) -> None:
    memory = MemoryBudget(400_000)
    limits = replace(OPTIONS.limits, memory_seconds=0.1)
    shared = Shared(memory, Meter())
    port = await doors.of_operators(DoorOptions("g.op1.example", limits, shared=shared)).start("127.0.0.1", 0)
    begin = ENVELOPE.replace(b">\r\nRCPT", b"> SIZE=150000\r\nRCPT") + b"DATA\r\n"
    async with (
        secured(port, space.client("two")) as slow,
        secured(port, space.client("two")) as slower,
        secured(port, space.client("one")) as other,
    ):
        slow.send(begin)
        assert await replies(slow, 3) == ["250", "250", "354"]
        slower.send(begin)
        assert await replies(slower, 3) == ["250", "250", "452"]
        other.send(begin.replace(b"@op2", b"@op1", 1))
        assert await replies(other, 3) == ["250", "250", "354"]


async def test_a_quota_is_one_for_all_connections(doors: Doors, space: TrustSpace, spool: Spool) -> None:
    """Those who wait for memory together are counted together."""
    memory = MemoryBudget(300_000)
    limits = Limits(message_bytes=200_000, holder=Quota(messages_per_hour=2), tarpit_seconds=0)
    door = doors.of_operators(DoorOptions("gate.op1.example", limits, shared=Shared(memory, Meter())))
    port = await door.start("127.0.0.1", 0)

    async def one(number: int) -> str:
        async with secured(port, space.client("two")) as client:
            declared = ENVELOPE.replace(b">\r\nRCPT", b"> SIZE=140000\r\nRCPT")
            return await send(client, MAIL.replace(b"<1@", b"<%d@" % number), declared)

    everything = Share()
    assert await memory.take(everything, memory.octets, 0)
    waiting = [asyncio.create_task(one(number)) for number in range(6)]
    async with asyncio.timeout(20):
        while len(memory._waiting) < 6:  # noqa: ASYNC110 - until the server has heard them all
            await asyncio.sleep(0.01)
    memory.give_back(everything)
    said = sorted(reply[:9] for reply in await asyncio.gather(*waiting))
    assert said == ["250 2.6.0"] * 2 + ["450 4.7.1"] * 4
    assert len(spool.claim(10, 60)) == 2
    assert memory.taken == 0


async def test_octets_that_were_declared_count_from_the_beginning(doors: Doors, space: TrustSpace) -> None:
    door = doors.operators(holder=Quota(bytes_per_hour=200_000))
    port = await door.start("127.0.0.1", 0)
    begin = ENVELOPE.replace(b">\r\nRCPT", b"> SIZE=150000\r\nRCPT") + b"DATA\r\n"
    async with secured(port, space.client("two")) as first, secured(port, space.client("two")) as second:
        first.send(begin)
        assert await replies(first, 3) == ["250", "250", "354"]
        assert (await second.say("MAIL FROM:<labo@op2.example> SIZE=150000")).startswith("450 4.7.1")
        assert (await first.say(MAIL + b".\r\n")).startswith("250")


# What the real world sends


@pytest.mark.parametrize(
    ("parameters", "orcpt"),
    [
        ("ORCPT=rfc822;p+2Bq@op1.example", "rfc822;p+2Bq@op1.example"),
        ("NOTIFY=SUCCESS,FAILURE ORCPT=utf-8;dr\\x{E9}@op1.example", "utf-8;dr\\x{E9}@op1.example"),
        ("ORCPT=UTF-8;dré@hôpital.example NOTIFY=NEVER", "UTF-8;dr\\x{E9}@h\\x{F4}pital.example"),
        ("ORCPT=x-local;1", "x-local;1"),
    ],
)
async def test_original_recipients(doors: Doors, space: TrustSpace, spool: Spool, parameters: str, orcpt: str) -> None:
    port = await doors.operators().start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        assert (await client.say("MAIL FROM:<labo@op2.example> SMTPUTF8")).startswith("250")
        assert (await client.say(f"RCPT TO:<dr.gris@op1.example> {parameters}")).startswith("250")
        assert (await client.say("DATA")).startswith("354")
        assert (await client.say(MAIL + b".\r\n")).startswith("250")
    (lease,) = spool.claim(10, 60)
    assert lease.original_recipient == orcpt


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("MAIL FROM:<labo@op2.example> ENVID=a+0D+0ASubject:x", "501 5.5.4"),
        ("MAIL FROM:<labo@op2.example> ENVID=a+7F", "501 5.5.4"),
        ("MAIL FROM:<labo@op2.example> ENVID=a+20b", "250"),
        ("MAIL FROM:<labo@op2.example> ENVID=a+2b", "501 5.5.4"),
        ("MAIL FROM:<labo@op2.example> ENVID=é", "501 5.1.7"),
        ("MAIL FROM:<labo@op2.example> MT-PRIORITY=3", "555 5.5.4"),
        ("MAIL FROM:<labo@op2.example> -X=3", "501 5.1.7"),
        ("MAIL FROM: <labo@op2.example>  SIZE=10  BODY=8bitmime ", "250"),
    ],
)
async def test_parameters_of_mail(doors: Doors, space: TrustSpace, line: str, reply: str) -> None:
    port = await doors.operators().start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        assert (await client.say(line)).startswith(reply)


@pytest.mark.parametrize(
    "parameter",
    ["ORCPT=utf-8;é@op1.example", "ORCPT=rfc822;+0A", "ORCPT=;x", "ORCPT=rfc822", "ORCPT=rfc822;", "X-Y=1"],
)
async def test_parameters_of_rcpt(doors: Doors, space: TrustSpace, parameter: str) -> None:
    port = await doors.operators().start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as client:
        await client.say("MAIL FROM:<labo@op2.example>")  # without SMTPUTF8
        assert (await client.say(f"RCPT TO:<dr.gris@op1.example> {parameter}"))[:9] in ("501 5.5.4", "555 5.5.4")


async def test_an_empty_answer_is_an_answer(doors: Doors, space: TrustSpace) -> None:
    """RFC 4954 §8: `*(CRLF [base64])`."""
    port = await doors.submission().start("127.0.0.1", 0)
    async with secured(port, space.anonymous()) as client:
        assert await client.say("AUTH LOGIN " + base64.b64encode(b"gris").decode()) == "334 UGFzc3dvcmQ6"
        assert (await client.say("")).startswith("535 5.7.8")
        assert await client.say("AUTH LOGIN") == "334 VXNlcm5hbWU6"
        assert (await client.say("*")).startswith("501")
        assert (await client.say(plain("gris", "mot de passe"))).startswith("235")


# Decent ends


async def test_nothing_is_said_in_clear_into_a_handshake(doors: Doors) -> None:
    door = doors.submission(stranger_seconds=0.2)
    port = await door.start("127.0.0.1", 0)
    async with raw(port) as client:
        assert (await client.say("STARTTLS")).startswith("220")
        assert b"421" not in await asyncio.wait_for(client.reader.read(), 10)
    async with raw(port) as client:
        assert (await client.say("STARTTLS")).startswith("220")
        await door.stop()
        assert b"421" not in await asyncio.wait_for(client.reader.read(), 10)


async def test_one_connection_too_many_counts_once(doors: Doors, space: TrustSpace) -> None:
    door = doors.operators(holder=Quota(connections=1))
    port = await door.start("127.0.0.1", 0)
    async with secured(port, space.client("two")) as first, secured(port, space.client("two")) as second:
        assert (await first.say("MAIL FROM:<labo@op2.example>")).startswith("250")
        assert (await second.say("MAIL FROM:<labo@op2.example>")).startswith("421 4.7.0")
        assert await second.closed()
    assert door.told["mta.too-many-connections"] == 1
