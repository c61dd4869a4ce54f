"""aioimaplib with limits, for servers that are believed in nothing.

The library keeps whatever it is sent, recurses once for each line, raises into the event loop and formats every octet
for its debug log. Here a server gets an allowance of octets before each command, and the connection ends where the
library would raise.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Awaitable, Callable

from aioimaplib import aioimaplib

_log = logging.getLogger(__name__)
# the library writes commands, answers and mail into its debug log
logging.getLogger(aioimaplib.__name__).setLevel(logging.CRITICAL)

ANSWER_BYTES = 4 * 1024 * 1024
"""What a server may send for one command, a message's own octets aside: 100,000 UIDs take 800 KB."""
_LINES_AT_ONCE = 50


class AnswerTooLongError(Exception):
    """More octets than the allowance."""


class BoundedProtocol(aioimaplib.IMAP4ClientProtocol):
    """The library's protocol with limits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.incomplete_line: bytes
        self.current_command: aioimaplib.Command | None  # type: ignore[assignment]
        self.lost = asyncio.Event()
        self.arrived = asyncio.Event()
        """Set by any EXISTS, during whatever command it comes: a server says it once (RFC 9051 §7.4.1)."""
        self._allowance = ANSWER_BYTES

    def allow(self, octets: int) -> None:
        """The server may send this much from now on."""
        self._allowance = octets

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def data_received(self, d: bytes) -> None:
        """In slices of few lines; without the library's debug log, which would format every octet."""
        self._allowance -= len(d)
        try:
            if self._allowance < 0:
                raise AnswerTooLongError
            for piece in _slices(d):
                try:
                    self._handle_responses(
                        self.incomplete_line + piece,
                        self._handle_line,
                        self.current_command,  # type: ignore[arg-type]
                    )
                    self.incomplete_line, self.current_command = b"", None
                except aioimaplib.IncompleteRead as incomplete:
                    self.incomplete_line, self.current_command = incomplete.data, incomplete.cmd
        except Exception as error:  # not IMAP, or not what was asked for
            _log.warning("an IMAP server's answer cannot be read: %s", type(error).__name__)
            self.abort()

    def abort(self) -> None:
        """Close without a word."""
        transport: asyncio.Transport | None = self.transport
        if transport is not None:
            transport.abort()

    def _untagged_response(self, line: bytes) -> aioimaplib.Command:
        if re.fullmatch(rb"\* \d+ EXISTS", line):
            self.arrived.set()
        return super()._untagged_response(line)

    async def welcome(self, command: bytes) -> None:
        """The library runs this as a task nobody awaits."""
        try:
            await super().welcome(command)
        except Exception:
            self.abort()


class BoundedClient(aioimaplib.IMAP4_SSL):
    """One connection; `abort` at the end."""

    protocol: BoundedProtocol  # type: ignore[assignment]
    _client_task: asyncio.Task[tuple[asyncio.Transport, BoundedProtocol]]

    def create_client(
        self,
        host: str,
        port: int,
        loop: asyncio.AbstractEventLoop | None,
        conn_lost_cb: Callable[[Exception | None], None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        running = asyncio.get_running_loop()
        self.protocol = BoundedProtocol(running)
        opening: Awaitable[tuple[asyncio.Transport, BoundedProtocol]] = running.create_connection(
            lambda: self.protocol, host, port, ssl=ssl_context
        )
        self._client_task = asyncio.ensure_future(opening)

    async def abort(self) -> None:
        """Close without a word, and end what the library left running."""
        if self._idle_waiter is not None:
            self._idle_waiter.cancel()
        for task in (self._client_task, *self.tasks, *self.protocol.tasks):
            task.cancel()
        await asyncio.gather(self._client_task, *self.tasks, *self.protocol.tasks, return_exceptions=True)
        self.protocol.abort()


def _slices(data: bytes) -> list[bytes]:
    """`data` in pieces of few lines."""
    if data.count(b"\n") <= _LINES_AT_ONCE:
        return [data]
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [b"".join(lines[start : start + _LINES_AT_ONCE]) for start in range(0, len(lines), _LINES_AT_ONCE)]
