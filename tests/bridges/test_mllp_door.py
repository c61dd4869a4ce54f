"""The MLLP door over real sockets: however the network cuts it, every frame is answered once, in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
import structlog

from bridges.hl7 import door as door_module
from bridges.hl7.door import MllpDoor, MllpOptions
from bridges.hl7.mllp import FrameError, encode

Receive = Callable[[bytes], bytes]


def acknowledge(frame: bytes) -> bytes:
    return b"AA " + frame


def refuse(error: FrameError) -> bytes:
    return f"AE {error.kind}".encode()


@asynccontextmanager
async def listening(receive: Receive = acknowledge, **options: float) -> AsyncIterator[tuple[MllpDoor, int]]:
    threads = ThreadPoolExecutor(8)
    door = MllpDoor(MllpOptions(**options), receive, refuse, threads)  # type: ignore[arg-type]
    port = await door.start("127.0.0.1", 0)
    try:
        yield door, port
    finally:
        await door.stop()
        threads.shutdown()


class Peer:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        async with asyncio.timeout(10):
            return (await self.reader.readuntil(b"\x1c\r"))[1:-2]

    async def rest(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.read()


@asynccontextmanager
async def peer(port: int) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


async def test_a_frame_cut_into_bytes() -> None:
    async with listening() as (_, port), peer(port) as client:
        client.writer.get_extra_info("socket").setsockopt(6, 1, 1)
        for octet in encode(b"MSH|one"):
            await client.send(bytes([octet]))
            await asyncio.sleep(0)
        assert await client.answer() == b"AA MSH|one"


async def test_several_frames_in_one_packet_are_answered_in_order() -> None:
    async with listening() as (_, port), peer(port) as client:
        await client.send(b"".join(encode(b"%d" % n) for n in range(50)))
        assert [await client.answer() for _ in range(50)] == [b"AA %d" % n for n in range(50)]


async def test_too_large_is_refused_and_the_next_one_taken() -> None:
    async with listening(max_frame_bytes=1000) as (_, port), peer(port) as client:
        await client.send(encode(b"x" * 1_000_000) + encode(b"good"))
        assert await client.answer() == b"AE oversized"
        assert await client.answer() == b"AA good"


async def test_stray_bytes_get_no_answer() -> None:
    async with listening() as (_, port), peer(port) as client:
        await client.send(b"GET / HTTP/1.1\r\n\r\n" + encode(b"good") + b"\r\n\r\n" + encode(b"again"))
        assert await client.answer() == b"AA good"
        assert await client.answer() == b"AA again"


async def test_a_new_frame_inside_another_is_told() -> None:
    async with listening() as (_, port), peer(port) as client:
        await client.send(b"\x0bhalf" + encode(b"whole"))
        assert await client.answer() == b"AE interrupted"
        assert await client.answer() == b"AA whole"


async def test_a_peer_that_only_sends_and_closes_its_side_is_answered() -> None:
    async with listening() as (_, port), peer(port) as client:
        await client.send(encode(b"last"))
        client.writer.write_eof()
        assert await client.rest() == encode(b"AA last")


async def test_a_frame_cut_by_the_end_of_the_connection_is_not_received() -> None:
    seen: list[bytes] = []
    with structlog.testing.capture_logs() as captured:
        async with listening(lambda frame: seen.append(frame) or b"AA") as (_, port), peer(port) as client:
            await client.send(b"\x0bMSH|half")
            client.writer.write_eof()
            assert await client.rest() == b""
    assert seen == []
    assert [entry["kind"] for entry in captured if entry["event"] == "mllp.frame-refused"] == ["truncated"]
    assert "MSH" not in str(captured)


async def test_a_store_that_fails_closes_without_an_answer() -> None:
    def full(frame: bytes) -> bytes:
        if frame == b"second":
            raise OSError(28, "No space left on device")
        return acknowledge(frame)

    with structlog.testing.capture_logs() as captured:
        async with listening(full) as (_, port), peer(port) as client:
            await client.send(encode(b"first") + encode(b"second") + encode(b"third"))
            assert await client.rest() == encode(b"AA first"), "what follows an unkept frame is not taken either"
    assert "mllp.not-kept" in [entry["event"] for entry in captured]


async def test_stopping_lets_the_frame_in_work_be_acknowledged_and_takes_no_more() -> None:
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def slow(frame: bytes) -> bytes:
        seen.append(frame)
        begun.set()
        go_on.wait(10)
        return acknowledge(frame)

    async with listening(slow) as (door, port), peer(port) as client:
        await client.send(encode(b"kept") + encode(b"not begun"))
        await asyncio.to_thread(begun.wait, 10)
        stopping = asyncio.create_task(door.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        go_on.set()
        assert await client.rest() == encode(b"AA kept")
        await stopping
    assert seen == [b"kept"]


async def test_a_peer_that_leaves_while_its_frame_is_kept_harms_nobody() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(frame: bytes) -> bytes:
        begun.set()
        go_on.wait(10)
        return acknowledge(frame)

    async with listening(slow) as (_, port):
        async with peer(port) as client:
            await client.send(encode(b"gone"))
            await asyncio.to_thread(begun.wait, 10)
        go_on.set()
        async with peer(port) as client:
            await client.send(encode(b"next"))
            assert await client.answer() == b"AA next"


async def test_a_peer_that_never_reads_is_let_go_and_does_not_hold_up_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "_CLOSE_SECONDS", 0.1)
    async with listening(lambda frame: b"A" * 30_000_000, idle_seconds=0.3) as (door, port), peer(port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(encode(b"x"))
        async with asyncio.timeout(10):
            while not door._connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while door._connections:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            await door.stop()


async def test_a_frame_that_trickles_for_ever_ends() -> None:
    async with listening(frame_seconds=0.3) as (_, port), peer(port) as client:
        await client.send(encode(b"whole"))
        assert await client.answer() == b"AA whole"
        await client.send(b"\x0bMSH")
        gone = asyncio.create_task(client.rest())
        while not gone.done():
            client.writer.write(b"x")
            await asyncio.sleep(0.02)
        assert isinstance(gone.exception(), ConnectionError) or gone.result() == b""


async def test_idle_connections_end_and_too_many_are_turned_away() -> None:
    async with listening(idle_seconds=0.2, max_connections=1) as (_, port), peer(port) as client:
        await client.send(encode(b"x"))
        assert await client.answer() == b"AA x"
        async with peer(port) as second:
            assert await second.rest() == b""
        assert await client.rest() == b""
