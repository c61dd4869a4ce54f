"""The next hop of the soak: another operator's door that behaves as badly as doors do, and remembers what it took.

It speaks SMTP with STARTTLS and the operator's own certificate, as `mta.smtp.door` would. What it does to each
transaction is drawn at random: take it, take it late, refuse it for now (at RCPT or after DATA), refuse it for good, go
silent, cut the connection in the middle of DATA, or take it and die before its 250 leaves. A message taken is noted
before the 250 is sent, as a real hop would have it on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

_MESSAGE_ID = re.compile(rb"^message-id:\s*<soak-(\d+)@", re.IGNORECASE | re.MULTILINE)
_LINE_LIMIT = 256 * 1024
_SILENT_SECONDS = 6.0
_IDLE_SECONDS = 60.0


class Mood(Enum):
    """What happens to one transaction."""

    TAKES = "takes it"
    LATE = "takes it late"
    RCPT_4XX = "refuses for now at RCPT"
    DATA_4XX = "refuses for now after DATA"
    SILENT = "goes silent after DATA"
    CUT = "cuts in the middle of DATA"
    DIES = "takes it and dies before its 250"
    REFUSES = "refuses for good"


_ODDS = (
    (Mood.TAKES, 70),
    (Mood.LATE, 6),
    (Mood.RCPT_4XX, 6),
    (Mood.DATA_4XX, 6),
    (Mood.SILENT, 1),
    (Mood.CUT, 6),
    (Mood.DIES, 5),
)


@dataclass(frozen=True, slots=True)
class Copy:
    """One arrival of a message."""

    at: float
    """Monotonic time at which it was taken."""
    answered: bool
    """Whether its 250 was sent."""
    clear: bool


@dataclass
class Arrivals:
    """What came, by the message's number."""

    copies: dict[int, list[Copy]] = field(default_factory=dict)
    moods: dict[Mood, int] = field(default_factory=dict)
    unknown: int = 0
    """Messages that nobody sent."""
    shown: int = 0
    """Messages in the clear that were not taken, and conversations without TLS that went on."""


class BadHop:
    """One door in a thread of its own. `stop` ends it."""

    def __init__(self, context: ssl.SSLContext, seed: int, hopeless: Callable[[int], bool], clear_word: bytes) -> None:
        """`hopeless` says which messages are refused for good, `clear_word` stands in every message's text."""
        self._context = context
        self._random = random.Random(seed)  # noqa: S311 - faults, not keys
        self._hopeless = hopeless
        self._clear_word = clear_word
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="bad-hop", daemon=True)
        self._left_alone: set[int | None] = set()
        self.arrivals = Arrivals()
        self.kind = False
        """Once true, every message that is not hopeless is taken."""
        self.port = 0
        self._server: asyncio.Server | None = None

    def start(self) -> None:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _hang_up(self) -> None:
        if self._server is not None:
            self._server.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_LINE_LIMIT)
        return int(self._server.sockets[0].getsockname()[1])

    def _mood(self) -> Mood:
        if self.kind:
            return Mood.TAKES
        moods, weights = zip(*_ODDS, strict=True)
        (mood,) = self._random.choices(moods, weights)
        return Mood(mood)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError, TimeoutError, ValueError):
            await _Conversation(self, reader, writer).hold()
        writer.transport.abort()

    # What the conversation asks

    def mood(self) -> Mood:
        chosen = self._mood()
        self.note(chosen)
        return chosen

    def note(self, mood: Mood) -> None:
        self.arrivals.moods[mood] = self.arrivals.moods.get(mood, 0) + 1

    def hopeless(self, number: int | None) -> bool:
        return number is not None and self._hopeless(number)

    def leaves_alone(self, number: int | None) -> bool:
        """Whether a message may be left without an answer: once, for whoever takes every copy without a word is not
        tried again for an hour (`mta.smtp.target`), and a soak does not wait that long."""
        first = number not in self._left_alone
        self._left_alone.add(number)
        return first

    def took(self, number: int | None, content: bytes, *, answered: bool) -> None:
        if number is None:
            self.arrivals.unknown += 1
            return
        clear = self._readable(content, whole=True)
        self.arrivals.copies.setdefault(number, []).append(Copy(time.monotonic(), answered, clear))

    def heard(self, content: bytes, *, whole: bool) -> None:
        """What was sent here and not taken, or only begun."""
        self.arrivals.shown += self._readable(content, whole=whole)

    def heard_without_tls(self) -> None:
        self.arrivals.shown += 1

    def _readable(self, content: bytes, *, whole: bool) -> bool:
        return self._clear_word in content or (whole and b"pkcs7-mime" not in content.lower())

    @property
    def context(self) -> ssl.SSLContext:
        return self._context

    def late_seconds(self) -> float:
        return self._random.uniform(0.3, 2.0)


class _Conversation:
    """One connection."""

    def __init__(self, hop: BadHop, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._hop, self._reader, self._writer = hop, reader, writer

    async def hold(self) -> None:
        await self._say("220 bad.hop.example ESMTP")
        encrypted = False
        mood = Mood.TAKES
        while True:
            line = (await asyncio.wait_for(self._reader.readline(), _IDLE_SECONDS)).strip()
            if not line:
                return
            match line.split(b" ", 1)[0].upper():
                case b"EHLO" | b"HELO":
                    offers = ["250-bad.hop.example", "250-PIPELINING", "250-8BITMIME", "250-SMTPUTF8"]
                    offers += [] if encrypted else ["250-STARTTLS"]
                    await self._say("\r\n".join([*offers, "250 ENHANCEDSTATUSCODES"]))
                case b"STARTTLS" if not encrypted:
                    await self._say("220 2.0.0 go on")
                    await self._writer.start_tls(self._hop.context)
                    encrypted = True
                case b"MAIL":
                    mood = self._hop.mood()
                    if not encrypted:
                        self._hop.heard_without_tls()
                    await self._say("250 2.1.0 ok" if encrypted else "530 5.7.0 STARTTLS first")
                case b"RCPT":
                    await self._say("450 4.2.0 not now" if mood is Mood.RCPT_4XX else "250 2.1.5 ok")
                case b"DATA" if mood is Mood.RCPT_4XX:
                    await self._say("503 5.5.1 nobody to send it to")
                case b"DATA":
                    await self._say("354 go on")
                    if not await self._data(mood):
                        return
                case b"RSET" | b"NOOP":
                    await self._say("250 2.0.0 ok")
                case b"QUIT":
                    await self._say("221 2.0.0 bye")
                    return
                case _:
                    await self._say("500 5.5.2 what?")

    async def _data(self, mood: Mood) -> bool:
        """Whether the conversation goes on."""
        content, cut_after = bytearray(), 1500 if mood is Mood.CUT else None
        while (line := await asyncio.wait_for(self._reader.readline(), _IDLE_SECONDS)) != b".\r\n":
            if not line:
                self._hop.heard(bytes(content), whole=False)
                return False
            content += line[1:] if line.startswith(b"..") else line
            if cut_after is not None and len(content) > cut_after:
                if self._hop.leaves_alone(_number(bytes(content))):
                    self._hop.heard(bytes(content), whole=False)
                    return False
                mood, cut_after = Mood.TAKES, None
        taken = bytes(content)
        number = _number(taken)
        if self._hop.hopeless(number):
            self._hop.heard(taken, whole=True)
            self._hop.note(Mood.REFUSES)
            await self._say("550 5.7.1 refused for good")
            return True
        if mood in (Mood.SILENT, Mood.DIES, Mood.CUT) and not self._hop.leaves_alone(number):
            mood = Mood.TAKES
        if mood in (Mood.DATA_4XX, Mood.SILENT, Mood.CUT):
            self._hop.heard(taken, whole=True)
        match mood:
            case Mood.DATA_4XX:
                await self._say("451 4.3.0 not now")
            case Mood.SILENT:
                await asyncio.sleep(_SILENT_SECONDS)
                return False
            case Mood.CUT:
                return False
            case Mood.DIES:
                self._hop.took(number, taken, answered=False)
                return False
            case _:
                if mood is Mood.LATE:
                    await asyncio.sleep(self._hop.late_seconds())
                self._hop.took(number, taken, answered=True)
                await self._say("250 2.0.0 taken")
        return True

    async def _say(self, reply: str) -> None:
        self._writer.write(reply.encode("ascii") + b"\r\n")
        await self._writer.drain()


def _number(content: bytes) -> int | None:
    """Of the message, from what of its header is there."""
    match = _MESSAGE_ID.search(content.partition(b"\r\n\r\n")[0] + b"\r\n")
    return int(match[1]) if match else None
