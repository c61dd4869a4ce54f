"""A whole Relais as a child process, and the clients that talk to it: MLLP, IMAPS, the control sockets."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import imaplib
import json
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from config.control import ask
from config.demonstration import World, prepare
from config.privileges import MARK
from config.show import acknowledgement_code, send
from tests.support.private import give, service_directory, until

START_SECONDS = 90.0


class Running:
    """One `relais up` and what it announced."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoints: dict[str, Any] = {}

    def start(self) -> None:
        announced = self.state / "endpoints.json"
        announced.unlink(missing_ok=True)  # of one that was killed
        output = (self.state.parent / "up.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "config", "up", "--state", str(self.state)],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )
        output.close()

        def ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                logs = "".join(each.read_text()[-1000:] for each in self.state.glob("log/*.log"))
                raise AssertionError(f"relais up ended: {(self.state.parent / 'up.log').read_text()[-2000:]} {logs}")
            return announced.exists()

        until(ready, START_SECONDS, "relais up")
        self.endpoints = json.loads(announced.read_text())

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(40)

    def account(self, role: str) -> dict[str, Any]:
        return next(account for account in self.endpoints["accounts"] if account["role"] == role)

    def send(self, message: bytes) -> bytes:
        mllp = self.endpoints["mllp"]
        return asyncio.run(send(mllp["host"], mllp["port"], message))

    def accepted(self, message: bytes) -> bytes:
        answer = self.send(message)
        assert acknowledgement_code(answer) == "AA", answer.decode("utf-8", "replace")
        return answer

    def ask(self, operator: str, call: str, **arguments: Any) -> Any:
        return ask(self.state / operator / "control.sock", call, **arguments)

    def pids(self, operator: str) -> int:
        return int(self.ask(operator, "ping")["pid"])

    def settled(self, operator: str) -> bool:
        """Nothing is waiting at this operator."""
        return int(self.ask(operator, "queue.counts")["ready"]) == 0

    def wait_settled(self, seconds: float = 60.0) -> None:
        def settled() -> bool:
            return all(self.settled(name) for name in ("laboratoire", "ville"))

        until(settled, seconds, "an empty queue at both operators")

    @contextmanager
    def imap(self, role: str) -> Iterator[imaplib.IMAP4_SSL]:
        account = self.account(role)
        context = ssl.create_default_context(cafile=self.endpoints["ca_file"])
        client = imaplib.IMAP4_SSL(
            self.endpoints["imaps"]["host"], self.endpoints["imaps"]["port"], ssl_context=context, timeout=20
        )
        try:
            client.login(account["user"], account["password"])
            client.select("INBOX")
            yield client
        finally:
            with contextlib.suppress(imaplib.IMAP4.error, OSError):
                client.logout()

    def raw_mails(self, role: str) -> list[bytes]:
        with self.imap(role) as client:
            _, found = client.search(None, "ALL")
            mails = []
            for number in found[0].split():
                _, parts = client.fetch(number.decode(), "(BODY.PEEK[])")
                assert isinstance(parts[0], tuple)
                mails.append(parts[0][1])
            return mails

    def mails(self, role: str) -> list[EmailMessage]:
        parser = BytesParser(_class=EmailMessage, policy=policy.default)
        return [parser.parsebytes(raw) for raw in self.raw_mails(role)]


@functools.cache
def _prepared() -> Path:
    """A demonstration's keys and certificates, made once for each test process: they cost seconds of its processor."""
    folder = Path(tempfile.mkdtemp(prefix="relais-prepared-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    prepare(World(folder))
    (folder / MARK).touch()
    return folder


@contextmanager
def running() -> Iterator[Running]:
    """A state directory that never ran, started; stopped and removed afterwards."""
    with service_directory() as place:
        shutil.copytree(_prepared(), place / "state")
        give(place)
        up = Running(place / "state")
        up.start()
        try:
            yield up
        finally:
            if up.process is not None:
                up.stop()


def with_control_id(message: bytes, control_id: str) -> bytes:
    """The same message under another MSH-10, every other byte as it was."""
    end = min(position for position in (message.find(b"\r"), message.find(b"\n")) if position >= 0)
    fields = message[:end].split(b"|")
    fields[9] = control_id.encode()
    return b"|".join(fields) + message[end:]
