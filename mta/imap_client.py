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
from base64 import b64encode
from collections.abc import Awaitable, Callable

from aioimaplib import aioimaplib

_log = logging.getLogger(__name__)
# the library writes commands, answers and mail into its debug log
logging.getLogger(aioimaplib.__name__).setLevel(logging.CRITICAL)

ANSWER_BYTES = 4 * 1024 * 1024
"""What a server may send for one command, a message's own octets aside: 100,000 UIDs take 800 KB."""
_LINES_AT_ONCE = 50
_MOST_LINES = 10_000
"""Of the answer to one FETCH. Whoever has to hear about more messages of others connects anew, and need not."""


class AnswerTooLongError(Exception):
    """More octets than the allowance."""


class _Fetch(aioimaplib.FetchCommand):
    """The library reads all lines again for each line that comes, to know whether the last parenthesis is closed."""

    _unclosed = 0

    def append_to_resp(self, line: bytes, result: str = "Pending") -> None:
        super().append_to_resp(line, result)
        if result != "Pending":
            return  # it ends, maybe by the library's timer, which must not be kept from saying so
        if len(self.response.lines) > _MOST_LINES:
            raise AnswerTooLongError
        if isinstance(line, bytes):  # a literal is a bytearray
            if self.FETCH_MESSAGE_DATA_RE.match(line):
                self._unclosed = 0
            self._unclosed += line.count(b"(") - line.count(b")")

    def wait_data(self) -> bool:
        return self._unclosed != 0


class BoundedProtocol(aioimaplib.IMAP4ClientProtocol):
    """The library's protocol with limits."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.incomplete_line: bytes
        self.current_command: aioimaplib.Command | None  # type: ignore[assignment]
        self.lost = asyncio.Event()
        self.arrived = asyncio.Event()
        """Set by any EXISTS, during whatever command it comes: a server says it once (RFC 9051 §7.4.1)."""
        self.exists = 0
        """Messages in the folder, as the server counts them."""
        self._allowance = ANSWER_BYTES
        self._held = bytearray()
        """Of a line that has not ended yet: the library would put it together anew with each octet."""
        self._sasl: list[str] = []
        """What is still to be said in the AUTHENTICATE under way."""

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
            for piece in _slices(self._lines_of(d)):
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

    def _lines_of(self, d: bytes) -> bytes:
        """What may be read of it now, with what was held."""
        command = self.current_command
        if command is None or not command.wait_literal_data():
            ended = b"\r\n" in d or (d[:1] == b"\n" and (self._held or self.incomplete_line)[-1:] == b"\r")
            if not ended:
                self._held += d
                return b""
        held, self._held = bytes(self._held), bytearray()
        return held + d

    async def fetch(
        self,
        message_set: str,
        message_parts: str,
        by_uid: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's
    ) -> aioimaplib.Response:
        prefix = "UID" if by_uid else ""
        command = _Fetch(self.new_tag(), message_set, message_parts, prefix=prefix, timeout=timeout)  # type: ignore[arg-type]
        return await self.execute(command)

    def abort(self) -> None:
        """Close without a word."""
        transport: asyncio.Transport | None = self.transport
        if transport is not None:
            transport.abort()

    def _untagged_response(self, line: bytes) -> aioimaplib.Command:
        counted = re.fullmatch(rb"\* (\d{1,10}) (EXISTS|EXPUNGE)", line)
        if counted is not None and counted[2] == b"EXISTS":
            self.exists = int(counted[1])
            self.arrived.set()
        elif counted is not None:
            self.exists = max(self.exists - 1, 0)
        return super()._untagged_response(line)

    def _continuation(self, line: bytes) -> None:
        pending = self.pending_sync_command
        if pending is None or pending.name != "AUTHENTICATE":
            super()._continuation(line)
        elif self._sasl:
            self.send(self._sasl.pop(0))
        else:  # it has everything, and was told that we have seen why that is not enough
            raise aioimaplib.Abort("more is asked for than there is to say")

    async def authenticate(self, mechanism: str, response: bytes) -> aioimaplib.Response:
        """SASL where the client says one thing (RFC 9051 §6.2.2): at once where the server allows that (SASL-IR)."""
        encoded = b64encode(response).decode("ascii")
        at_once = "SASL-IR" in self.capabilities
        # a server that refuses a token says why first, and wants an empty line before its NO
        self._sasl = [""] if at_once else [encoded, ""]
        arguments = (mechanism, encoded or "=") if at_once else (mechanism,)
        command = aioimaplib.Command("AUTHENTICATE", self.new_tag(), *arguments)
        async with self.state_condition:
            answer = await self.execute(command)
            if answer.result == "OK":
                self.state = aioimaplib.AUTH
                self.state_condition.notify_all()
        return answer

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

    async def authenticate(self, mechanism: str, response: bytes) -> aioimaplib.Response:
        """See `BoundedProtocol.authenticate`. Raises TimeoutError."""
        return await asyncio.wait_for(self.protocol.authenticate(mechanism, response), self.timeout)

    async def abort(self) -> None:
        """Close without a word, and end what the library left running."""
        if self._idle_waiter is not None:
            self._idle_waiter.cancel()
        for task in (self._client_task, *self.tasks, *self.protocol.tasks):
            task.cancel()
        await asyncio.gather(self._client_task, *self.tasks, *self.protocol.tasks, return_exceptions=True)
        self.protocol.abort()


def _slices(data: bytes) -> list[bytes]:
    """`data` in pieces of few lines; none of nothing."""
    if not data:
        return []
    if data.count(b"\n") <= _LINES_AT_ONCE:
        return [data]
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [b"".join(lines[start : start + _LINES_AT_ONCE]) for start in range(0, len(lines), _LINES_AT_ONCE)]
