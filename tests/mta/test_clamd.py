"""ClamAV's daemon, asked: what is a verdict, and all that is none. Nothing but `stream: OK` lets a mail pass."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.clamd import (
    CHUNK_OCTETS,
    Clamd,
    ClamdOptions,
    Clean,
    Infected,
    NotScanned,
    ScannerTroubleError,
    Verdict,
    VerdictReader,
    instream,
    read_verdict,
)
from tests.support.clamd import EICAR, FakeClamd, fake_clamd
from tests.support.private import free_port, service_directory

QUICK = ClamdOptions(connect_seconds=0.5, scan_seconds=0.5, max_octets=4 * 1024 * 1024)


@pytest.fixture
async def daemon() -> AsyncIterator[FakeClamd]:
    with service_directory() as folder:
        async with fake_clamd(folder) as fake:
            yield fake


def client(daemon: FakeClamd, options: ClamdOptions = QUICK) -> Clamd:
    return Clamd(replace(options, socket=daemon.socket))


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("stream: OK", Clean()),
        ("stream: Eicar-Test-Signature FOUND", Infected("Eicar-Test-Signature")),
        ("stream: Win.Test FOUND in it FOUND", Infected("Win.Test FOUND in it")),
        ("stream: Heuristics.Encrypted.Zip FOUND", Infected("Heuristics.Encrypted.Zip")),
        ("stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND", NotScanned("Heuristics.Limits.Exceeded.MaxFileSize")),
        ("INSTREAM size limit exceeded. ERROR", NotScanned("StreamMaxLength")),
    ],
)
def test_verdicts(line: str, verdict: Verdict) -> None:
    assert read_verdict(line) == verdict


@pytest.mark.parametrize(
    "line",
    ["", "OK", "stream: ok", "stream: OK OK", "other: OK", "stream:  FOUND", "stream: x ERROR", "UNKNOWN COMMAND",
     "PONG", "stream: OK\nstream: OK", "x stream: OK"],
)  # fmt: skip
def test_what_is_no_verdict(line: str) -> None:
    with pytest.raises(ScannerTroubleError):
        read_verdict(line)


@given(st.binary(max_size=200), st.integers(1, 40))
def test_only_one_line_means_clean(said: bytes, step: int) -> None:
    reader = VerdictReader()
    pieces = [said[start : start + step] for start in range(0, len(said), step)]
    try:
        verdict = None
        for piece in [*pieces, b""]:
            verdict = reader.feed(piece)
            if verdict is not None:
                break
    except ScannerTroubleError:
        return
    assert verdict is not None
    assert not isinstance(verdict, Clean) or said.strip(b" \t\r\n\x0b\x0c\x1c\x1d\x1e\x1f\0").startswith(b"stream: OK")


@given(st.binary(max_size=100))
def test_the_stream_is_the_content_in_chunks(content: bytes) -> None:
    sent = b"".join(bytes(piece) for piece in instream(content))
    length = len(content).to_bytes(4, "big") + content if content else b""
    assert sent == b"zINSTREAM\0" + length + b"\0\0\0\0"


async def test_over_a_socket(daemon: FakeClamd) -> None:
    clamd = client(daemon)
    big = b"x" * (3 * CHUNK_OCTETS + 17)
    assert await clamd.scan(b"") == Clean()
    assert await clamd.scan(big) == Clean()
    assert await clamd.scan(b"a\r\n" + EICAR) == Infected("Eicar-Test-Signature")
    assert daemon.scanned[1] == big
    assert await clamd.version() == "ClamAV 1.4.3/27000/Fri Nov 20 10:00:00 2026"


async def test_over_tcp() -> None:
    fake = FakeClamd(Path("unused"))
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await Clamd(replace(QUICK, port=port)).scan(EICAR) == Infected("Eicar-Test-Signature")
    server.close()


async def test_nobody_there() -> None:
    for clamd in (Clamd(replace(QUICK, socket=Path("/nonexistent/clamd"))), Clamd(replace(QUICK, port=free_port()))):
        for asked in (clamd.scan(b"x"), clamd.version()):
            with pytest.raises(ScannerTroubleError):
                await asked


async def test_more_than_it_takes_is_not_even_sent(daemon: FakeClamd) -> None:
    assert await client(daemon).scan(b"x" * (QUICK.max_octets + 1)) == NotScanned(f"{QUICK.max_octets} octets")
    assert daemon.scanned == []


async def _hangs(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _takes_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not writer.transport.is_closing():
        await asyncio.sleep(0.05)
        writer.write(b"")


async def _hangs_up_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _hangs_up_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(100)
    writer.transport.abort()


async def _half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(20)
    writer.write(b"stream: OK")


async def _endless_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(20)
    writer.write(b"stream: " + b"O" * 100_000)
    await writer.drain()


async def _two_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(20)
    writer.write(b"stream: OK\0stream: Eicar FOUND\0")


async def _ok_before_the_end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"stream: OK\0")
    await writer.drain()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "misdeed",
    [_hangs, _takes_nothing, _hangs_up_at_once, _hangs_up_in_the_middle, _half_an_answer, _endless_answer, _two_answers,
     _ok_before_the_end],
)  # fmt: skip
async def test_a_daemon_that_misbehaves_never_says_clean(daemon: FakeClamd, misdeed: object) -> None:
    daemon.misdeed = misdeed  # type: ignore[assignment]
    began = time.monotonic()
    with pytest.raises(ScannerTroubleError):
        await client(daemon).scan(b"x" * (3 * 1024 * 1024))
    assert time.monotonic() - began < 2


async def test_it_says_too_large_in_the_middle_of_the_stream(daemon: FakeClamd) -> None:
    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1000)
        writer.write(b"INSTREAM size limit exceeded. ERROR\0")
        await writer.drain()

    daemon.misdeed = refuses
    for _ in range(20):
        assert await client(daemon).scan(b"x" * (3 * 1024 * 1024)) == NotScanned("StreamMaxLength")


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
async def test_what_it_said_before_it_hung_up_is_heard(family: socket.AddressFamily) -> None:
    """It has closed, and reset what is still being sent, before its words are read."""
    with service_directory() as folder, socket.socket(family) as listener:
        path = folder / "clamd.sock"
        listener.bind(str(path) if family is socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen()
        gone = threading.Event()

        def refuse() -> None:
            for _ in range(5):
                connection, _ = listener.accept()
                connection.recv(20)
                connection.sendall(b"INSTREAM size limit exceeded. ERROR\0")
                connection.close()
                gone.set()

        def late(content: bytes) -> Iterator[bytes]:
            yield b"zINSTREAM\0" + content[:100]
            gone.wait(5)  # the loop sees nothing of the answer before it goes on writing
            gone.clear()
            while True:
                yield content

        server = threading.Thread(target=refuse, daemon=True)
        server.start()
        place = {"socket": path} if family is socket.AF_UNIX else {"port": listener.getsockname()[1]}
        clamd = Clamd(replace(QUICK, scan_seconds=5, **place))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mta.clamd.instream", late)
            for _ in range(5):
                assert await clamd.scan(b"x" * 100_000) == NotScanned("StreamMaxLength")
        server.join(5)


async def test_no_more_conversations_than_allowed_and_none_forgotten(daemon: FakeClamd) -> None:
    clamd = client(daemon, replace(QUICK, concurrency=3, scan_seconds=5))
    found = await asyncio.gather(*(clamd.scan(b"%d" % n + (EICAR if n % 5 == 0 else b"")) for n in range(60)))
    assert [isinstance(each, Infected) for each in found] == [n % 5 == 0 for n in range(60)]
    assert daemon.most_open <= 4  # the one that is being closed


async def test_waiting_for_a_place_counts(daemon: FakeClamd) -> None:
    daemon.misdeed = _hangs
    clamd = client(daemon, replace(QUICK, concurrency=1))
    began = time.monotonic()
    results = await asyncio.gather(*(clamd.scan(b"x") for _ in range(4)), return_exceptions=True)
    assert all(isinstance(each, ScannerTroubleError) for each in results)
    assert time.monotonic() - began < 2
