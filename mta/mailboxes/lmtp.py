"""Where local deliveries end: LMTP to the mailbox server, which answers for each recipient (RFC 2033).

The server is our own or the operator's, on a Unix socket or a private network: no TLS, no authentication. The content
carries the delivery id in a header, so that the second copy a crash may cause is recognised: before a delivery is
repeated the mailbox is searched for it, and the server's Sieve drops what the search could not see yet.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from mta import refusals
from mta.mailboxes.held import HeldMail
from mta.message import Deferred, Delivered, Failed, Message, Outcome
from mta.smtp.client import ConnectionBrokenError, DsnRequest, SmtpConnection, Timeouts
from mta.smtp.target import check_message, transact
from trust.refusals import Refused

_CLOCK_SLACK_SECONDS = 86400.0
"""The mailbox server's clock may be another machine's, and was perhaps set since."""


@dataclass(frozen=True, slots=True)
class LmtpOptions:
    """Either a Unix socket or a host and port."""

    helo_name: str
    socket: Path | None = None
    host: str = "127.0.0.1"
    port: int = 24
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - frozen
    idle_connections: int = 4
    """Connections kept between deliveries; Dovecot keeps a process for each."""
    search_socket: Path | None = None
    """doveadm's Unix socket, asked before a delivery is repeated; None: only the server's Sieve drops second copies."""


class LmtpTarget:
    """A `Target`. One per event loop; `close` at the end."""

    def __init__(self, options: LmtpOptions) -> None:
        self._options = options
        self._held = HeldMail(options.search_socket) if options.search_socket is not None else None
        self._idle: list[SmtpConnection] = []

    async def deliver(self, message: Message) -> Outcome:
        """See `mta.message.Target`. One recipient, hence one reply."""
        refused = check_message(message)
        if refused is not None:
            return Failed(refused)
        if message.repeated and self._held is not None:
            since = message.accepted_at - _CLOCK_SLACK_SECONDS
            held = await self._held.holds(message.recipient, message.delivery_id, since)
            if held is None:
                return Deferred(Refused(refusals.UNREACHABLE, "mailbox search"))
            if held:
                return Delivered("already filed")
        while self._idle:
            connection = self._idle.pop()
            if not connection.usable:
                connection.abort()
                continue
            try:
                return await self._converse(connection, message)
            except ConnectionBrokenError as error:
                if error.step != "MAIL":
                    return Deferred(Refused(refusals.CONNECTION_LOST, str(error)))
        try:
            connection = await self._open()
        except ConnectionBrokenError as error:
            return Deferred(Refused(refusals.UNREACHABLE, str(error)))
        try:
            return await self._converse(connection, message)
        except ConnectionBrokenError as error:
            return Deferred(Refused(refusals.CONNECTION_LOST, str(error)))

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        await asyncio.gather(*(connection.quit() for connection in idle))

    async def _open(self) -> SmtpConnection:
        options = self._options
        path = "" if options.socket is None else str(options.socket)
        connection = await SmtpConnection.open(options.host, options.port, options.timeouts, unix_path=path)
        try:
            hello = await connection.hello(options.helo_name, lmtp=True)
            if hello.code != 250:
                raise ConnectionBrokenError("LHLO", hello.words)
        except BaseException:
            connection.abort()
            raise
        return connection

    async def _converse(self, connection: SmtpConnection, message: Message) -> Outcome:
        finished = False
        try:
            outcome = await transact(connection, message, DsnRequest())
            finished = True
            return outcome
        finally:
            if finished and connection.usable and len(self._idle) < self._options.idle_connections:
                self._idle.append(connection)
            else:
                connection.abort()
