"""Talking to ClamAV's daemon: one INSTREAM conversation (clamd(8)), its words apart from its sockets.

`instream` and `VerdictReader` are the protocol, without I/O; `Clamd` carries it over a Unix socket or TCP, under
deadlines. Whatever is not exactly a verdict is trouble, never "clean": a daemon that is down, slow, cut off or
unintelligible has not looked.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import socket
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHUNK_OCTETS = 256 * 1024
MAX_REPLY = 4096
"""Octets; a verdict is one short line."""

_DEEPER_THAN_ANY_LIMIT = 120

_FOUND = re.compile(r"stream: (.{1,300}) FOUND")
_LIMITS = "Heuristics.Limits.Exceeded"
"""What clamd finds, with AlertExceedsMax, in what it has not looked into to the end."""


class ScannerTroubleError(Exception):
    """The daemon gave no verdict; the text says why, without a word of the content."""


@dataclass(frozen=True, slots=True)
class Clean:
    pass


@dataclass(frozen=True, slots=True)
class Infected:
    name: str
    """Of the signature, printable."""


@dataclass(frozen=True, slots=True)
class NotScanned:
    """Larger than the daemon's limits: it did not look, or not to the end."""

    limit: str


Verdict = Clean | Infected | NotScanned


def instream(content: bytes) -> Iterator[bytes | memoryview]:
    """What to send, in pieces; no piece copies more than a chunk."""
    yield b"zINSTREAM\0"
    view = memoryview(content)
    for start in range(0, len(view), CHUNK_OCTETS):
        chunk = view[start : start + CHUNK_OCTETS]
        yield struct.pack(">L", len(chunk))
        yield chunk
    yield struct.pack(">L", 0)


class VerdictReader:
    """Takes what the daemon says until it is a verdict."""

    def __init__(self) -> None:
        self._said = bytearray()

    def feed(self, data: bytes) -> Verdict | None:
        """The verdict once it is complete; octets of no length mean that the daemon hung up. Raises
        `ScannerTroubleError` for anything else it says."""
        self._said += data
        line, end, rest = self._said.partition(b"\0")
        if not end:
            if not data:
                raise ScannerTroubleError("hung up without a verdict")
            if len(self._said) > MAX_REPLY:
                raise ScannerTroubleError("an answer without an end")
            return None
        if rest or len(line) > MAX_REPLY:
            raise ScannerTroubleError("more than one answer")
        return read_verdict(line.decode("ascii", "replace"))


def read_verdict(line: str) -> Verdict:
    """Raises `ScannerTroubleError`."""
    line = line.strip()
    if line == "stream: OK":
        return Clean()
    found = _FOUND.fullmatch(line)
    if found is not None:
        name = "".join(c if c.isprintable() else "?" for c in found[1])
        return NotScanned(name) if name.startswith(_LIMITS) else Infected(name)
    if line == "INSTREAM size limit exceeded. ERROR":
        return NotScanned("StreamMaxLength")
    raise ScannerTroubleError("an error" if line.endswith("ERROR") else "not an answer of clamd")


@dataclass(frozen=True, slots=True)
class ClamdOptions:
    socket: Path | None = None
    """Unix socket; None: TCP."""
    host: str = "127.0.0.1"
    port: int = 3310
    connect_seconds: float = 5.0
    scan_seconds: float = 120.0
    """Waiting for a place included; shorter than an attempt may take."""
    concurrency: int = 8
    """Conversations at a time: no more than clamd's MaxThreads."""
    max_octets: int = 25 * 1024 * 1024
    """What is larger is not sent: clamd's StreamMaxLength."""


class Clamd:
    """One per event loop."""

    def __init__(self, options: ClamdOptions) -> None:
        self._options = options
        self._places = asyncio.Semaphore(options.concurrency)

    async def scan(self, content: bytes) -> Verdict:
        """Raises `ScannerTroubleError`."""
        if len(content) > self._options.max_octets:
            return NotScanned(f"{self._options.max_octets} octets")
        try:
            async with asyncio.timeout(self._options.scan_seconds), self._places:
                return await self._converse(content)
        except TimeoutError:
            raise ScannerTroubleError("no verdict in time") from None

    async def skips(self) -> bool:
        """Whether it says OK of what it did not look into to the end, as clamd does by default (`AlertExceedsMax no`):
        asked about something harmless, nested deeper than clamd ever looks. Raises `ScannerTroubleError`."""
        return isinstance(await self.scan(_nested()), Clean)

    async def version(self) -> str:
        """What the daemon says it is, `ClamAV 1.0.7/27100/date of the signatures`. Raises `ScannerTroubleError`."""
        said = b""
        try:
            async with asyncio.timeout(self._options.connect_seconds):
                with await self._open() as connection:
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(connection, b"zVERSION\0")
                    while b"\0" not in said:
                        more = await loop.sock_recv(connection, MAX_REPLY)
                        said += more
                        if not more or len(said) > MAX_REPLY:
                            raise ScannerTroubleError("not an answer of clamd")
        except (OSError, TimeoutError) as error:
            raise ScannerTroubleError(_words(error)) from None
        line = said.partition(b"\0")[0].decode("ascii", "replace")
        return "".join(c if " " <= c <= "~" else "?" for c in line)[:200]

    async def _converse(self, content: bytes) -> Verdict:
        try:
            async with asyncio.timeout(self._options.connect_seconds):
                connection = await self._open()
        except (OSError, TimeoutError) as error:
            raise ScannerTroubleError(f"cannot be reached: {_words(error)}") from None
        with connection:
            sending = asyncio.create_task(_send(connection, content))
            try:
                verdict = await _heard(connection)
            except OSError as error:
                raise ScannerTroubleError(f"hung up: {_words(error)}") from None
            finally:
                whole = sending.done() and not sending.cancelled() and sending.exception() is None
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await sending
        if isinstance(verdict, Clean) and not whole:
            raise ScannerTroubleError("a verdict before the end of the message")
        return verdict

    async def _open(self) -> socket.socket:
        """Plain sockets, not streams: what breaks while sending closes a stream with what the daemon had said, that the
        message is too large for it, still unread."""
        options, loop = self._options, asyncio.get_running_loop()
        if options.socket is not None:
            return await _connected(socket.AF_UNIX, str(options.socket))
        places = await loop.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
        for family, _, _, _, address in places[:-1]:
            with contextlib.suppress(OSError):
                return await _connected(family, address)
        return await _connected(places[-1][0], places[-1][4])


def _nested() -> bytes:
    """Archives in one another, more of them than the largest MaxRecursion (100); some 10,000 octets."""
    content = b"relais"
    for _ in range(_DEEPER_THAN_ANY_LIMIT):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo("a.zip"), content, zipfile.ZIP_DEFLATED)
        content = out.getvalue()
    return content


async def _connected(family: int, address: Any) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


async def _send(connection: socket.socket, content: bytes) -> None:
    for piece in instream(content):
        await asyncio.get_running_loop().sock_sendall(connection, piece)


async def _heard(connection: socket.socket) -> Verdict:
    """Read from the beginning: a daemon that will take no more says so and hangs up in the middle."""
    verdicts = VerdictReader()
    while True:
        verdict = verdicts.feed(await asyncio.get_running_loop().sock_recv(connection, MAX_REPLY))
        if verdict is not None:
            return verdict


def _words(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (getattr(error, "strerror", None) or type(error).__name__)[:80]
