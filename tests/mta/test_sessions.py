"""What aiosmtpd's session would do and a door must not: each test is one of its traps."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP
from structlog.testing import capture_logs

from mta.smtp.door import OperatorDoor
from mta.smtp.session import DoorSession
from mta.spool import Spool

from .conftest import MakeSpool
from .smtp_client import Raw, raw, secured
from .test_doors import LOCAL, MAIL, OPTIONS
from .trust_space import Listed, TrustSpace

ENVELOPE = b"MAIL FROM:<labo@op2.example>\r\nRCPT TO:<dr.gris@op1.example>\r\nDATA\r\n"


@pytest.fixture
def spool(make_spool: MakeSpool) -> Spool:
    return make_spool()


@pytest.fixture
def limits() -> dict[str, Any]:
    return {}


@pytest.fixture
async def door(spool: Spool, space: TrustSpace, listed: Listed, limits: dict[str, Any]) -> AsyncIterator[OperatorDoor]:
    options = replace(OPTIONS, limits=replace(OPTIONS.limits, **limits))
    made = OperatorDoor(spool, lambda: listed, LOCAL.__contains__, space.server("one"), options)
    yield made
    await made.stop()


@pytest.fixture
async def port(door: OperatorDoor) -> int:
    return await door.start("127.0.0.1", 0)


async def until_empty(door: OperatorDoor) -> None:
    async with asyncio.timeout(5):
        while door.connections:  # noqa: ASYNC110 - until the server has noticed
            await asyncio.sleep(0.01)


class Slow:
    """A disk that takes its time."""

    def __init__(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        self._begin = spool.begin_accept
        self.asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        monkeypatch.setattr(spool, "begin_accept", self._later)

    def _later(self, submission: Any) -> Future[Any]:
        self.submission, self.result = submission, Future[Any]()
        self.asked.set_result(None)
        return self.result

    async def begins(self, client: Raw) -> None:
        """The client has sent a whole mail, and it is being kept."""
        client.send(ENVELOPE)
        assert [(await client.reply())[:3] for _ in range(3)] == ["250", "250", "354"]
        client.send(MAIL + b".\r\n")
        await self.asked

    async def keep(self) -> None:
        self.result.set_result(await asyncio.to_thread(self._begin(self.submission).result))


def test_a_session_is_aiosmtpd_s() -> None:
    assert issubclass(DoorSession, SMTP)


async def test_nothing_is_heard_after_quit(port: int, space: TrustSpace, spool: Spool) -> None:
    async with secured(port, space.client("two")) as client:
        client.send(b"QUIT\r\n" + ENVELOPE + MAIL + b".\r\n")
        assert await client.reply() == "221 2.0.0 Bye"
        assert await client.closed()
    assert spool.claim(10, 60) == []


@pytest.mark.parametrize("limits", [{"commands": 3}])
async def test_nothing_is_heard_after_too_many_commands(port: int, space: TrustSpace) -> None:
    async with secured(port, space.client("two")) as client:
        client.send(b"NOOP\r\n" * 5 + b"MAIL FROM:<labo@op2.example>\r\n")
        assert [(await client.reply())[:9] for _ in range(4)] == ["250 2.0.0"] * 3 + ["421 4.7.0"]
        assert await client.closed()


async def test_what_is_being_kept_is_kept_though_the_client_has_gone(
    door: OperatorDoor, port: int, space: TrustSpace, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(spool, monkeypatch)
    async with secured(port, space.client("two")) as client:
        await slow.begins(client)
    await asyncio.sleep(0.05)
    assert door.connections == 1
    await slow.keep()
    await until_empty(door)
    assert door.told["accepted"] == 1
    assert len(spool.claim(10, 60)) == 1


@pytest.mark.parametrize("limits", [{"idle_seconds": 0.2, "data_seconds": 0.2}])
async def test_no_client_pays_for_a_slow_disk(
    port: int, space: TrustSpace, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(spool, monkeypatch)
    async with secured(port, space.client("two")) as client:
        await slow.begins(client)
        await asyncio.sleep(0.5)
        await slow.keep()
        assert (await client.reply()).startswith("250 2.6.0")
        assert (await client.reply()).startswith("421 4.4.2"), "now it is its turn"


@pytest.mark.parametrize("limits", [{"idle_seconds": 0.3, "commands": 1_000_000}])
async def test_who_does_not_fetch_replies_is_not_waited_for(
    door: OperatorDoor, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta.smtp.connection._GOODBYE_SECONDS", 0.2)
    connected = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", port))
    with connected:
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(connected, b"EHLO x\r\n" * 1_000_000))
        async with asyncio.timeout(20):
            with pytest.raises(OSError):
                await sending
    await until_empty(door)


async def test_a_line_s_limit_does_not_grow(port: int, space: TrustSpace) -> None:
    async with secured(port, space.client("two")) as client, secured(port, space.client("two")) as other:
        for _ in range(50):
            await client.say("EHLO x")
        for each in (client, other):
            assert (await each.say(f"MAIL FROM:<labo@op2.example> ENVID={'x' * 2040}")).startswith("500 5.5.2")
            assert (await each.say(f"NOOP {'x' * 505}")).startswith("250"), "512 octets with its end"
            assert (await each.say(f"NOOP {'x' * 506}")).startswith("500 5.5.2")


async def test_a_line_without_an_end_ends_the_session(door: OperatorDoor, port: int, space: TrustSpace) -> None:
    async with secured(port, space.client("two")) as client:
        client.send(b"NOOP " + b"x" * 200_000)
        assert await client.closed()


@pytest.mark.parametrize("limits", [{"stranger_seconds": 0.3}])
async def test_a_handshake_that_is_broken_off_is_no_handshake(door: OperatorDoor, port: int) -> None:
    async with raw(port) as gone, raw(port) as silent:
        for client in (gone, silent):
            await client.say("EHLO x")
            assert (await client.say("STARTTLS")).startswith("220")
        gone.writer.transport.abort()
        assert await silent.closed()
        await until_empty(door)


async def test_a_bug_ends_one_session_and_quotes_nothing(
    door: OperatorDoor, port: int, space: TrustSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("dr.gris@op1.example")

    monkeypatch.setattr(door, "check_recipient", broken)
    with capture_logs() as logs:
        async with secured(port, space.client("two")) as client:
            client.send(ENVELOPE + MAIL)
            assert [(await client.reply())[:9] for _ in range(2)] == ["250 2.1.0", "421 4.3.0"]
            assert await client.closed()
    assert [(line["event"], line["error"]) for line in logs] == [("smtp.session-failed", "RuntimeError")]
    assert "gris" not in str(logs)
