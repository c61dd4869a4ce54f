"""Whether a mailbox already holds a delivery, asked of Dovecot before the delivery is repeated.

Between the moment LMTP files a mail and the moment we have read its 250, either side can be killed. Sieve's `duplicate`
remembers what was filed, but writes it down after the mail itself; the mailbox is the only witness of that gap. The
question goes to doveadm's Unix socket (doveadm protocol version 1), which searches all mailboxes of one user.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

from mta.mailboxes.dovecot import DELIVERY_HEADER

_LINE_LIMIT = 64 * 1024
_NO_USER = "-NOUSER"
_PLAIN = re.compile(r"[!-~]+")


class HeldMail:
    """The search. One connection for each question: deliveries are rarely repeated."""

    def __init__(self, socket: Path, timeout_seconds: float = 30.0) -> None:
        self._socket = socket
        self._timeout = timeout_seconds

    async def holds(self, address: str, delivery_id: str, since: float) -> bool | None:
        """True when a mail saved after `since` (UNIX time) carries `delivery_id`; None when Dovecot does not say.

        `address` is the user; one that Dovecot does not know holds nothing.
        """
        if not _PLAIN.fullmatch(address) or not _PLAIN.fullmatch(delivery_id):
            return None  # the protocol separates with tabs and line feeds
        where = ("mailbox", "*", "savedsince", f"{max(since, 0):.0f}", "header", DELIVERY_HEADER, delivery_id)
        try:
            async with asyncio.timeout(self._timeout):
                return await self._ask("\t".join(("", address, "search", *where)))
        except (OSError, EOFError, ValueError):  # TimeoutError is an OSError; ValueError: a line past the limit
            return None

    async def _ask(self, command: str) -> bool | None:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=_LINE_LIMIT)
        try:
            writer.write(f"VERSION\tdoveadm-server\t1\t0\n{command}\n".encode("ascii"))
            await writer.drain()
            if await _line(reader) != "+":  # of a Unix socket the peer is known: no authentication
                return None
            found = False
            while True:
                line = await _line(reader)
                if line == "+":
                    return found
                if line.startswith("-"):
                    return False if line.startswith(_NO_USER) else None
                found = found or bool(line)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _line(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\n")).decode("ascii", "replace").rstrip("\n")
