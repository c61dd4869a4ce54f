"""A mail server that takes messages and misbehaves when told to: SMTP with STARTTLS, or LMTP.

`answers` replaces what it says by verb (`greeting`, `EHLO`, `STARTTLS`, `MAIL`, `RCPT`, `DATA`, `final`): a str is one
line, bytes are sent as they are, None hangs up, an `asyncio.Event` is waited for and then nothing is changed. A
callable is asked with the command each time.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Answer = str | bytes | asyncio.Event | None
FEATURES = ("PIPELINING", "8BITMIME", "SIZE 50000000", "ENHANCEDSTATUSCODES")
_MOST = 32 * 1024 * 1024
"""Octets of one message: read in one piece, for the server shares its loop with the client under test."""
_NUMBER = re.compile(rb"^X-Number: (\S+)\r\n", re.MULTILINE)


class MailServer:
    def __init__(self, context: ssl.SSLContext | None, features: tuple[str, ...] = FEATURES) -> None:
        self.context, self.features = context, features
        self.answers: dict[str, Answer | Callable[[str], Answer]] = {}
        self.taken: Counter[str] = Counter()
        """Messages it took responsibility for, by X-Number: it decided on 250, whether anybody heard it or not."""
        self.commands: list[str] = []
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.whole = asyncio.Event()
        """A message was received to its end."""
        self.on_whole: Callable[[], None] = lambda: None
        """Called when a message was received to its end, before it is answered."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def _say(self, writer: asyncio.StreamWriter, verb: str, line: str, default: str) -> str:
        """What was said, empty when it hung up."""
        answer = self.answers.get(verb, default)
        if callable(answer):
            answer = answer(line)
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = default
        if answer is None:
            return ""
        if verb == "final" and not isinstance(answer, bytes) and answer.startswith("2"):
            self.taken[line] += 1
        writer.write(answer if isinstance(answer, bytes) else answer.encode() + b"\r\n")
        await writer.drain()
        return answer.decode("latin-1") if isinstance(answer, bytes) else answer

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._say(writer, "greeting", "", "220 ready"):
            return
        secured = False
        while True:
            line = (await reader.readuntil(b"\r\n")).decode().strip()
            self.commands.append(line)
            verb = line.split()[0].upper()
            if verb in ("EHLO", "LHLO"):
                offers = ["name", *self.features]
                if self.context is not None and not secured:
                    offers.append("STARTTLS")
                text = "\r\n".join(f"250{'-' if n < len(offers) - 1 else ' '}{word}" for n, word in enumerate(offers))
                if not await self._say(writer, verb, line, text):
                    return
            elif verb == "STARTTLS":
                if not (await self._say(writer, verb, line, "220 go")).startswith("220"):
                    continue
                await writer.start_tls(self.context)
                secured = True
            elif verb == "DATA":
                said = await self._say(writer, verb, line, "354 go")
                if not said:
                    return
                if said.startswith("354"):
                    content = await self._content(reader)
                    found = _NUMBER.search(content)
                    self.whole.set()
                    self.on_whole()
                    if not await self._say(writer, "final", found[1].decode() if found else "", "250 2.0.0 queued"):
                        return
            elif verb == "QUIT":
                await self._say(writer, verb, line, "221 bye")
                return
            elif not await self._say(writer, verb, line, "250 2.0.0 fine"):
                return

    async def _content(self, reader: asyncio.StreamReader) -> bytes:
        """As it came, without its end."""
        start = await reader.readexactly(3)
        return b"" if start == b".\r\n" else (start + await reader.readuntil(b"\r\n.\r\n"))[:-3]

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def mail_server(server: MailServer) -> AsyncIterator[int]:
    """Its port on loopback."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=_MOST)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        await server.end()
