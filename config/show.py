"""What `make demo` shows: a real report sent over MLLP, read by an IMAP client, filed in the record.

Everything goes through the same doors a partner uses; nothing here reaches into the gateways.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from importlib import resources
from typing import Any

from aioimaplib import aioimaplib

from bridges.hl7.mllp import FrameDecoder, FrameError, encode
from config.up import Running

_DEADLINE = 60.0


async def show(running: Running, say: Callable[[str], None] = print) -> bool:
    """Send the demonstration report, read it as the doctor, say what happened; False when it did not arrive."""
    try:
        return await _show(running, say)
    except (OSError, aioimaplib.Abort, aioimaplib.Error) as error:
        say(f"The demonstration broke off: {error}; the logs are in {running.world.state / 'log'}")
        return False


async def _show(running: Running, say: Callable[[str], None]) -> bool:
    endpoints = json.loads(running.endpoints.read_text())
    accounts = {account["role"]: account for account in endpoints["accounts"]}
    logs = f"the logs are in {running.world.state / 'log'}"
    inboxes = {role: Inbox(endpoints, accounts[role]) for role in ("gp", "patient")}
    for inbox in inboxes.values():
        await inbox.start()
    control_id = f"DEMO{time.time_ns()}"
    started = time.monotonic()
    try:
        answer = await send(endpoints["mllp"]["host"], endpoints["mllp"]["port"], report(control_id))
    except (ConnectionError, TimeoutError) as error:
        say(f"The laboratory's report got no acknowledgement: {error}; {logs}")
        return False
    acknowledged = time.monotonic() - started
    status = acknowledgement_code(answer)
    if status != "AA":
        say(f"The laboratory's report was refused ({status}); {logs}")
        return False
    say(f"Laboratory  report {control_id} sent over MLLP, acknowledged {status} in {acknowledged * 1000:.0f} ms")
    well = True
    for role, title in (("gp", "Doctor"), ("patient", "Patient")):
        mail = await inboxes[role].next()
        await inboxes[role].stop()
        if mail is None:
            say(f"{title:<12}nothing arrived within {_DEADLINE:.0f} s; {logs}")
            well = False
            continue
        taken = time.monotonic() - started
        names = ", ".join(part.get_filename() or "" for part in mail.walk() if part.get_filename())
        say(f"{title:<12}mail in the inbox after {taken:.1f} s: {names}")
        say(f"{'':<12}{mail.get('X-Relais-Verdict', 'no verdict')}")
        well = well and "signature=valid" in mail.get("X-Relais-Verdict", "")
    say("")
    say("Connect a mail client (TLS, certificate authority in ca_file):")
    say(f"  authority   {endpoints['ca_file']}")
    say(f"  IMAPS       {endpoints['imaps']['host']}:{endpoints['imaps']['port']}")
    for account in endpoints["accounts"]:
        say(f"  {account['role']:<11} {account['user']}  password in {running.endpoints}")
    say(f"Send a report over MLLP to {endpoints['mllp']['host']}:{endpoints['mllp']['port']}")
    say("Read the record:  relais dossier list --as 801234567897 --patient 279035121518989")
    return well


def report(control_id: str) -> bytes:
    """The demonstration report with its own MSH-10, so that each showing is a new message."""
    template = resources.files("config.demo").joinpath("report.hl7").read_bytes()
    header, end, rest = template.partition(b"\r")
    if not end:
        header, end, rest = template.partition(b"\n")
    fields = header.split(b"|")
    fields[9] = control_id.encode()
    return b"|".join(fields) + end + rest


async def send(host: str, port: int, message: bytes, seconds: float = _DEADLINE) -> bytes:
    """One message over MLLP; its acknowledgement. `ConnectionError` when none comes, `TimeoutError` when late."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(encode(message))
            await writer.drain()
            decoder = FrameDecoder(1024 * 1024)
            while data := await reader.read(65536):
                for event in decoder.feed(data):
                    if not isinstance(event, FrameError):
                        return event.payload
            raise ConnectionError("the connection was closed without an acknowledgement")
        finally:
            writer.close()


def acknowledgement_code(answer: bytes) -> str:
    """MSA-1 of an acknowledgement, empty when there is none."""
    for segment in answer.replace(b"\n", b"\r").split(b"\r"):
        if segment.startswith(b"MSA|"):
            return segment.split(b"|")[1].decode("ascii", "replace")
    return ""


class Inbox:
    """One account's INBOX over IMAPS, with IDLE: what arrives after `start`."""

    def __init__(self, endpoints: dict[str, Any], account: dict[str, Any]) -> None:
        context = ssl.create_default_context(cafile=endpoints["ca_file"])
        self._account = account
        self._client = aioimaplib.IMAP4_SSL(
            endpoints["imaps"]["host"], endpoints["imaps"]["port"], timeout=_DEADLINE, ssl_context=context
        )
        self._last = 0

    async def start(self) -> None:
        """Log in and remember what is already there. Raises `ConnectionError` when refused."""
        await self._client.wait_hello_from_server()
        login = await self._client.login(self._account["user"], self._account["password"])
        if login.result != "OK":
            raise ConnectionError(f"the mailbox of {self._account['role']} refused the login")
        await self._client.select("INBOX")
        self._last = max(await self._uids(), default=0)

    async def next(self, seconds: float = _DEADLINE) -> EmailMessage | None:
        """The first mail that arrived since, None when none comes in time."""
        try:
            async with asyncio.timeout(seconds):
                while not (new := [uid for uid in await self._uids() if uid > self._last]):
                    idle = await self._client.idle_start(timeout=seconds)
                    await self._client.wait_server_push()
                    self._client.idle_done()
                    await idle
                self._last = min(new)
                fetched = await self._client.uid("fetch", str(self._last), "(BODY.PEEK[])")
        except TimeoutError:
            return None
        return BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(bytes(fetched.lines[1]))

    async def stop(self) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, aioimaplib.Abort):
            await self._client.logout()

    async def _uids(self) -> list[int]:
        found = await self._client.uid_search("ALL", charset=None)
        return [int(uid) for uid in found.lines[0].split()] if found.result == "OK" else []
