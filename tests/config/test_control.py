"""The control socket: private, patient with nonsense, and never the way to a traceback."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from bridges.cda import MAX_DOCUMENT_BYTES
from config.control import ControlError, ControlSocket, ask
from tests.support.private import service_directory
from trust.refusals import HL7Code, Refusal, Refused

NO = Refusal("test.no", 550, "5.0.0", HL7Code.AE, "207", "906", "No.", "Non.")


async def echo(request: Mapping[str, Any]) -> Any:
    return request["value"]


async def refuse(request: Mapping[str, Any]) -> Any:
    return Refused(NO, "because")


async def fail(request: Mapping[str, Any]) -> Any:
    raise RuntimeError("patient ESSAI-UN")


async def unspeakable(request: Mapping[str, Any]) -> Any:
    return {"bytes": b"\xff"}


async def sleep(request: Mapping[str, Any]) -> Any:
    await asyncio.sleep(1.0)


CALLS = {"sleep": sleep, "echo": echo, "refuse": refuse, "fail": fail, "unspeakable": unspeakable}


@asynccontextmanager
async def answering() -> AsyncIterator[Path]:
    with service_directory() as place:
        path = place / "control.sock"
        control = ControlSocket(path, CALLS, request_limit=2**20)
        await control.start()
        try:
            yield path
        finally:
            await control.stop()
            assert not path.exists()


async def asked(path: Path, call: str, **arguments: Any) -> Any:
    return await asyncio.to_thread(ask, path, call, 10.0, **arguments)


async def test_question_and_answer() -> None:
    async with answering() as path:
        for value in ("é", ["a", 1], None, "x" * 900_000):
            assert await asked(path, "echo", value=value) == value


async def test_only_the_owner_may_ask_and_other_files_keep_their_rights() -> None:
    async with answering() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (path.parent / "other").touch()
        assert stat.S_IMODE((path.parent / "other").stat().st_mode) & 0o400


async def test_a_stale_socket_is_replaced() -> None:
    with service_directory() as place:
        path = place / "control.sock"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        with pytest.raises(ControlError, match="is it running"):
            ask(path, "echo")
        control = ControlSocket(path, CALLS)
        await control.start()
        assert await asked(path, "echo", value=1) == 1
        await control.stop()


@pytest.mark.parametrize(
    ("call", "arguments", "said"),
    [
        ("refuse", {}, r"test\.no: No\. \(because\)"),
        ("fail", {}, "failed on this request"),
        ("unspeakable", {}, "failed on this request"),
        ("echo", {}, "lacks an argument"),
        ("nothing", {}, "does not know"),
    ],
)
async def test_every_no_is_a_sentence_and_the_door_stays_open(call: str, arguments: dict[str, Any], said: str) -> None:
    with structlog.testing.capture_logs():
        async with answering() as path:
            with pytest.raises(ControlError, match=said):
                await asked(path, call, **arguments)
            assert await asked(path, "echo", value=1) == 1


async def test_a_document_of_the_largest_size_passes_both_ways() -> None:
    document = "x" * (MAX_DOCUMENT_BYTES * 4 // 3)
    with service_directory() as place:
        control = ControlSocket(place / "control.sock", CALLS)
        await control.start()
        assert await asked(place / "control.sock", "echo", value=document) == document
        await control.stop()


async def test_a_gateway_that_is_slow_is_not_said_to_be_absent() -> None:
    async with answering() as path:
        with pytest.raises(ControlError, match="did not answer within"):
            await asyncio.to_thread(ask, path, "sleep", 0.2)


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{}\n", b'{"call": []}\n', b"\xff\n", b"[" * 100_000 + b"\n"])
async def test_nonsense_is_answered(line: bytes) -> None:
    async with answering() as path:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(line)
        assert b"does not know" in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
        await writer.wait_closed()


async def test_a_request_without_end_closes_the_connection() -> None:
    async with answering() as path:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"x" * 3_000_000)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.transport.abort()
        assert await asked(path, "echo", value=1) == 1
