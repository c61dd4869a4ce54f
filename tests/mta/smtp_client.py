"""A raw SMTP client for tests: says exactly what it is told, and an ordinary one (smtplib) as independent oracle."""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class Raw:
    """Octets in, replies out."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> str:
        """One reply, its lines joined by newlines."""
        lines = []
        while True:
            line = (await asyncio.wait_for(self.reader.readuntil(b"\n"), 10)).decode().rstrip("\r\n")
            lines.append(line)
            if line[3:4] != "-":
                return "\n".join(lines)

    async def say(self, line: str | bytes) -> str:
        self.send(line.encode() + b"\r\n" if isinstance(line, str) else line)
        return await self.reply()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def start_tls(self, context: ssl.SSLContext) -> None:
        assert (await self.say("STARTTLS")).startswith("220")
        await self.writer.start_tls(context, server_hostname="localhost")

    async def closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 10) == b""


@asynccontextmanager
async def raw(port: int) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    client = Raw(reader, writer)
    try:
        assert (await client.reply()).startswith("220 ")
        yield client
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def secured(port: int, context: ssl.SSLContext) -> AsyncIterator[Raw]:
    """Connected, under TLS, greeted."""
    async with raw(port) as client:
        await client.say("EHLO test.example")
        await client.start_tls(context)
        assert (await client.say("EHLO test.example")).startswith("250")
        yield client


async def with_smtplib(port: int, context: ssl.SSLContext, use: Callable[[smtplib.SMTP], T]) -> T:
    """Run `use` in a thread with smtplib connected and under TLS."""

    def run() -> T:
        client = smtplib.SMTP("127.0.0.1", port, local_hostname="test.example", timeout=20)
        try:
            client.starttls(context=context)
            client.ehlo()
            return use(client)
        finally:
            client.close()

    return await asyncio.to_thread(run)
