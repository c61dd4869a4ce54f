"""What `make demo` shows: a real report sent over MLLP, read by an IMAP client, filed in the record.

Everything goes through the same doors a partner uses; nothing here reaches into the gateways.
"""

from __future__ import annotations

import asyncio
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
    endpoints = json.loads(running.endpoints.read_text())
    accounts = {account["role"]: account for account in endpoints["accounts"]}
    control_id = f"DEMO{time.time_ns()}"
    started = time.monotonic()
    answer = await send(endpoints["mllp"]["host"], endpoints["mllp"]["port"], report(control_id))
    acknowledged = time.monotonic() - started
    status = acknowledgement_code(answer)
    if status != "AA":
        say(f"The laboratory's report was refused ({status}); see the logs in {running.world.state / 'log'}")
        return False
    say(f"Laboratory  report {control_id} sent over MLLP, acknowledged {status} in {acknowledged * 1000:.0f} ms")
    well = True
    for role, title in (("gp", "Doctor"), ("patient", "Patient")):
        mail = await wait_for_mail(endpoints, accounts[role])
        if mail is None:
            say(f"{title:<12}nothing arrived within {_DEADLINE:.0f} s; see the logs in {running.world.state / 'log'}")
            well = False
            continue
        taken = time.monotonic() - started
        names = ", ".join(part.get_filename() or "" for part in mail.walk() if part.get_filename())
        say(f"{title:<12}mail in the inbox after {taken:.1f} s: {names}")
        say(f"{'':<12}verdict: {mail.get('X-Relais-Verdict', 'none')}")
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
    """One message over MLLP; the acknowledgement. Raises `ConnectionError` when none comes, `TimeoutError` when late."""
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


async def wait_for_mail(
    endpoints: dict[str, Any], account: dict[str, Any], seconds: float = _DEADLINE
) -> EmailMessage | None:
    """The newest mail of an inbox once there is an unread one, over IMAPS with IDLE; None when none comes in time."""
    context = ssl.create_default_context(cafile=endpoints["ca_file"])
    client = aioimaplib.IMAP4_SSL(
        endpoints["imaps"]["host"], endpoints["imaps"]["port"], timeout=seconds, ssl_context=context
    )
    try:
        async with asyncio.timeout(seconds):
            await client.wait_hello_from_server()
            await client.login(account["user"], account["password"])
            await client.select("INBOX")
            while True:
                found = await client.search("UNSEEN")
                numbers = found.lines[0].split() if found.result == "OK" else []
                if numbers:
                    fetched = await client.fetch(numbers[-1].decode(), "(BODY[])")
                    return BytesParser(_class=EmailMessage, policy=policy.default).parsebytes(bytes(fetched.lines[1]))
                idle = await client.idle_start(timeout=seconds)
                await client.wait_server_push()
                client.idle_done()
                await asyncio.wait_for(idle, 5)
    except TimeoutError:
        return None
    finally:
        await client.logout()
