"""Where local deliveries end: LMTP to the mailbox server, which answers for each recipient (RFC 2033).

The server is our own or the operator's, on a Unix socket or a private network: no TLS, no authentication. The content
carries the delivery id in a header, so that the second copy a crash may cause is recognised: before a delivery is
repeated the mailbox is searched for it, and the server's Sieve drops what the search could not see yet.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from mta import refusals
from mta.mailboxes import serving_refusals
from mta.mailboxes.held import HeldMail
from mta.message import Deferred, Delivered, Failed, Message, Outcome, TargetKind
from mta.smtp.client import Answered, ConnectionBrokenError, SmtpConnection, Timeouts, Transaction
from mta.smtp.gate import GateOptions
from mta.smtp.pool import Job, NotOpenedError, Pool, PoolOptions, delivered
from mta.smtp.target import admissible, check_message
from trust.refusals import Refused

_CLOCK_SLACK_SECONDS = 86400.0
"""The mailbox server's clock may be another machine's, and was perhaps set since."""
_FULL = frozenset({"4.2.2", "5.2.2"})
_DESTINATION = TargetKind.MAILBOX.value


@dataclass(frozen=True, slots=True)
class LmtpOptions:
    """Either a Unix socket or a host and port."""

    helo_name: str
    socket: Path | None = None
    host: str = "127.0.0.1"
    port: int = 24
    timeouts: Timeouts = Timeouts()  # noqa: RUF009 - frozen
    connections: int = 8
    """At the same time."""
    idle_connections: int = 4
    """Connections kept between deliveries; Dovecot keeps a process for each."""
    search_socket: Path | None = None
    """doveadm's Unix socket, asked before a delivery is repeated; None: only the server's Sieve drops second copies."""
    full_seconds: float = 24 * 3600.0
    """So long a mail waits for room in a mailbox that is full; then the sender is told."""
    is_held: Callable[[str], bool] = lambda _: False
    """Whether the mailbox of this address is being moved: its mail waits here, and the server is not asked, whose log
    would name it each time."""


class LmtpTarget:
    """A `Target`. One per event loop; `close` at the end."""

    def __init__(self, options: LmtpOptions) -> None:
        self._options = options
        self._held = HeldMail(options.search_socket) if options.search_socket is not None else None
        gate = GateOptions(
            options.connections, min(2, options.connections), first_rest_seconds=1.0, longest_rest_seconds=30.0
        )
        self._pool = Pool(PoolOptions(gate, idle_per_destination=options.idle_connections))

    async def deliver(self, message: Message, now: Callable[[], float] = time.time) -> Outcome:
        """See `mta.message.Target`. One recipient, hence one reply. `now`: UNIX seconds."""
        if await asyncio.to_thread(self._options.is_held, message.recipient):
            return Deferred(Refused(refusals.UNREACHABLE, "the mailbox is being moved"))
        refused = check_message(message)
        if refused is not None:
            return Failed(refused)
        before = await self.filed(message)
        if before is not None:
            return before
        transaction = Transaction(message.sender, message.recipient, message.content)
        job = Job(
            transaction,
            lambda connection: admissible(connection, transaction),
            lambda _, each: self._concluded(each, now() - message.accepted_at),
        )
        return await self._pool.to("mailboxes", self._open).deliver(job)

    async def filed(self, message: Message) -> Outcome | None:
        """What became of this delivery if it was begun before: it lies in the mailbox, or nobody can tell now."""
        if not message.repeated or self._held is None:
            return None
        since = message.accepted_at - _CLOCK_SLACK_SECONDS
        held = await self._held.holds(message.recipient, message.delivery_id, since)
        if held is None:
            return Deferred(Refused(refusals.UNREACHABLE, "mailbox search"))
        return Delivered("already filed") if held else None

    def _concluded(self, answered: Answered, age: float) -> Outcome:
        outcome = delivered(answered)
        if isinstance(outcome, Delivered) or answered.reply.enhanced not in _FULL:
            return outcome
        if age < self._options.full_seconds:
            return Deferred(Refused(serving_refusals.MAILBOX_FULL_NOW, outcome.reason.detail))
        return Failed(Refused(serving_refusals.MAILBOX_FULL, outcome.reason.detail))

    def resting(self) -> Collection[str]:
        """See `mta.message.PacedTarget`: the server is one destination."""
        return {_DESTINATION} if self.places(_DESTINATION) == 0 else ()

    def probing(self) -> Collection[str]:
        return {_DESTINATION} if self.places(_DESTINATION) == 1 else ()

    def places(self, destination: str) -> int | None:
        known = self._pool.known("mailboxes")
        if known is None:
            return None
        now = asyncio.get_running_loop().time()
        if known.gate.rests(now):
            return 0
        return 1 if known.gate.probing(now) else None

    async def close(self) -> None:
        await self._pool.close()

    async def _open(self) -> SmtpConnection:
        options = self._options
        path = "" if options.socket is None else str(options.socket)
        try:
            connection = await SmtpConnection.open(options.host, options.port, options.timeouts, unix_path=path)
        except ConnectionBrokenError as error:
            raise NotOpenedError(Refused(refusals.UNREACHABLE, str(error))) from None
        try:
            hello = await connection.hello(options.helo_name, lmtp=True)
            if hello.code != 250:
                raise NotOpenedError(Refused(refusals.UNREACHABLE, f"LHLO: {hello.words}"))
        except ConnectionBrokenError as error:
            connection.abort()
            raise NotOpenedError(Refused(refusals.UNREACHABLE, str(error))) from None
        except BaseException:
            connection.abort()
            raise
        return connection
