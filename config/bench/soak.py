"""`relais bench soak`: whether anything is lost, doubled or shown while everything around the gateway goes wrong.

A fresh `relais up`; the other operator's gateway is replaced by a hop that refuses, hangs, cuts and dies
(`soak_hop`), while the gateway under test is killed, its database locked and its disk filled (`soak_faults`). Numbered
messages come in over real submissions and are repeated, as any client does, until they are answered 250. Then the
faults end, the queue drains, and each message answered 250 must have been taken by the hop exactly once, or its sender
must have been told.

A message may be there twice only where somebody died between the hop's 250 and the moment the gateway had it on disk:
the hop died before the 250 left, or the gateway was killed within seconds of it. These are counted apart.
"""

from __future__ import annotations

import contextlib
import imaplib
import itertools
import json
import os
import pwd
import re
import shutil
import signal
import smtplib
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from config.bench.child import BenchError, end
from config.bench.report import result, row
from config.bench.soak_faults import Faults, own_disk
from config.bench.soak_hop import BadHop, Copy, Mood
from config.control import ControlError, ask
from config.privileges import SERVICE_USER

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0
_DRAIN_SECONDS = 300.0
_CLIENTS = 4
_LEAST_FAULTS, _FEWEST_FAULTS = 10, 5
"""While the messages come, of four kinds."""
_FAULT_SECONDS = 180.0
_SENDER, _RECIPIENT = "laboratory", "adam.hoda@test-ci-sis.mssante.fr"
_DOMAIN = "labo-tilleuls.mssante.fr"
_SHOWN = 20
_FORBIDDEN = ("lost", "delivered_twice", "clear", "strangers", "unfounded_dsn", "refused")
"""Rows that must be 0."""
_CLEAR = "texte-en-clair-du-soak"
_HOPELESS = 40
"""Every so many messages one is refused for good by the hop."""
_CLOCK_SECONDS = 0.05
_LATE_SECONDS = 2.5
"""So long the hop may think before it takes a message; the gateway may have died meanwhile."""
_FAILED = re.compile(rb"^action:\s*failed", re.IGNORECASE | re.MULTILINE)
_TOLD = re.compile(rb"^in-reply-to:\s*<soak-(\d+)@", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the messages."""

    accepted: int
    once: int
    twice: tuple[int, ...]
    """Delivered more than once without anybody having died in between."""
    ambiguous: int
    """Delivered more than once because the hop or the gateway died between a 250 and its being known."""
    dsn: int
    """Not delivered, and the sender was told."""
    lost: tuple[int, ...]
    """Neither."""
    clear: int
    unfounded: int
    """Delivered, and the sender was told that it failed."""


def judge(
    accepted: set[int],
    copies: dict[int, list[Copy]],
    told: set[int],
    kills: list[float],
    interrupted: Callable[[int], list[float]],
) -> Verdict:
    """Each message answered 250 has one fate. `interrupted` says when the gateway found, starting again, that it had
    died with this message in hand; as all times here by the monotonic clock."""
    once = ambiguous = dsn = unfounded = 0
    twice, lost = [], []
    for number in sorted(accepted):
        arrived = copies.get(number, [])
        unfounded += bool(arrived) and number in told
        if len(arrived) == 1:
            once += 1
        elif arrived:
            deaths = interrupted(number) if any(each.answered for each in arrived[:-1]) else []
            # The last copy need not be excused: nothing came after it.
            pairs = pairwise(arrived)
            if all(not one.answered or _died_between(one, following, kills, deaths) for one, following in pairs):
                ambiguous += 1
            else:
                twice.append(number)
        elif number in told:
            dsn += 1
        else:
            lost.append(number)
    clear = sum(each.clear for arrived in copies.values() for each in arrived)
    return Verdict(len(accepted), once, tuple(twice), ambiguous, dsn, tuple(lost), clear, unfounded)


def _died_between(one: Copy, following: Copy, kills: list[float], deaths: list[float]) -> bool:
    """Whether the gateway was killed after it had sent the one copy, and itself says that it died with it in hand."""
    return any(
        one.at - _LATE_SECONDS < kill <= death <= following.at + _LATE_SECONDS for kill in kills for death in deaths
    )


def soak(
    messages: int,
    *,
    seed: int = 1,
    pause: float = 4.0,
    once: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The whole run, with each kind of fault at least twice, or just `once`; the JSON object of every benchmark. Raises
    `BenchError` when it cannot go on."""
    with ExitStack() as stack:
        place = Path(tempfile.mkdtemp(prefix="relais-soak-"))
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        place.chmod(0o711)
        state = place / "state"
        disk = stack.enter_context(own_disk(state, (768 << 20) + messages * (96 << 10), _service()))
        up = stack.enter_context(_up(state, place / "up.log"))
        gateway = state / "laboratoire"
        hop = BadHop(_hop_context(state), seed, lambda number: number % _HOPELESS == 7, _CLEAR.encode())
        hop.start()
        stack.callback(hop.stop)
        _point_at(gateway, state, hop.port)
        faults = Faults(
            *(state, gateway, seed),
            fill=not disk,
            pause=pause,
            forbidden=lambda: up.poll() is not None,
            once=once,
        )
        faults.harm.disk = disk
        _restart(faults)
        endpoints = json.loads((state / "endpoints.json").read_text())
        faults.start()
        began = time.monotonic()
        clocks = Clocks()
        # Not faster than the faults come, or a short run would be over before them.
        pace = (_FEWEST_FAULTS if once else _LEAST_FAULTS) * pause / messages
        clients = _Clients(endpoints, messages, pace, clocks, say)
        clients.run()
        faults.wait_for_each(_FAULT_SECONDS)
        faults.stop()
        hop.kind = True
        accepted_in = time.monotonic() - began
        _drain(gateway, up, clocks, say)
        told = _told(endpoints)
        verdict = judge(
            clients.accepted,
            hop.arrivals.copies,
            told,
            faults.harm.kills,
            lambda number: [at for at, step in _steps(number, gateway, clocks) if step["step"] == "interrupted"],
        )
        harm = faults.harm
        rows = [
            row(name, [float(value)], unit, messages)
            for name, value, unit in (
                ("accepted", verdict.accepted, "messages"),
                ("kills", len(harm.kills), "kills"),
                ("delivered_once", verdict.once, "messages"),
                ("delivered_twice", len(verdict.twice), "messages"),
                ("ambiguous_hops", verdict.ambiguous, "messages"),
                ("dsn", verdict.dsn, "messages"),
                ("lost", len(verdict.lost), "messages"),
                ("clear", verdict.clear + hop.arrivals.shown, "copies"),
                ("strangers", hop.arrivals.unknown, "copies"),
                ("unfounded_dsn", verdict.unfounded, "messages"),
                ("refused", len(clients.refused), "messages"),
                ("repeated_submissions", clients.repeated, "submissions"),
                ("other_kills", harm.others_killed, "kills"),
                ("database_locks", harm.locks, "times"),
                ("disk_fills", harm.fills, "times"),
                *((f"hop_{mood.name.lower()}", hop.arrivals.moods.get(mood, 0), "transactions") for mood in Mood),
                ("accepted_ps", verdict.accepted / accepted_in, "1/s"),
            )
        ]
        answer = result("soak", "full" if messages >= 100_000 else "quick", rows)
        answer["notes"] = [f"the disk was never filled: {disk}"] if disk else []
        answer["refusals"] = clients.refused
        answer["ended"] = _ended(place / "up.log", state / "log" / "laboratoire.log")
        answer["to_explain"] = [
            _life(number, gateway, clocks, hop.arrivals.copies.get(number, []), harm.kills, began)
            for number in (*verdict.lost, *verdict.twice)[:_SHOWN]
        ]
        return answer


def _life(
    number: int, gateway: Path, clocks: Clocks, copies: list[Copy], kills: list[float], began: float
) -> dict[str, Any]:
    """What is known of a message whose fate is wrong: for whoever has to find out why. Times in seconds of the run."""
    return {
        "message": number,
        "copies": [{"at": round(each.at - began, 2), "answered": each.answered} for each in copies],
        "kills": [round(each - began, 2) for each in kills],
        "steps": [
            [round(at - began, 2), step["step"], step["code"], step["detail"]]
            for at, step in _steps(number, gateway, clocks)
        ],
    }


def _steps(number: int, gateway: Path, clocks: Clocks) -> list[tuple[float, dict[str, Any]]]:
    """What the gateway's trace says of a message, with times by the monotonic clock."""
    lives = ask(gateway / "control.sock", "trace", 60.0, reference=f"<soak-{number}@{_DOMAIN}>")
    return [
        (clocks.monotonic(step["at"]), step)
        for life in lives
        for steps in (life["steps"], *(delivery["steps"] for delivery in life["deliveries"]))
        for step in steps
    ]


def _ended(supervisor: Path, gateway: Path) -> list[str]:
    """What was logged of processes that ended, or tasks that died, by no SIGKILL of ours."""
    found = []
    for path, event in ((supervisor, "child.died"), (gateway, "task.died")):
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            found += [line[:500] for line in lines if event in line and f'"status":{-signal.SIGKILL},' not in line]
    return found[-_SHOWN:]


def failed(answer: dict[str, Any]) -> bool:
    """Whether anything was lost, doubled without reason, or shown."""
    values = {each["id"]: each["value"] for each in answer["rows"]}
    return any(values[name] for name in _FORBIDDEN)


class Clocks:
    """What the wall clock said when the monotonic one said what: a machine's wall clock is set now and then, by seconds
    in a run of an hour."""

    def __init__(self) -> None:
        self._read: list[tuple[float, float]] = []
        """Both clocks, whenever the one moved against the other."""
        self.compare()

    def compare(self) -> None:
        self.add(time.time(), time.monotonic())

    def add(self, wall: float, monotonic: float) -> None:
        if not self._read or abs((wall - monotonic) - (self._read[-1][0] - self._read[-1][1])) > _CLOCK_SECONDS:
            self._read.append((wall, monotonic))

    def monotonic(self, wall: float) -> float:
        """The monotonic time of a wall time, by the last comparison before it."""
        known = [pair for pair in self._read if pair[0] <= wall] or self._read[:1]
        return wall - known[-1][0] + known[-1][1]


class _Clients:
    """Mail clients that repeat each message until it is answered 250."""

    def __init__(
        self, endpoints: dict[str, Any], messages: int, pace: float, clocks: Clocks, say: Callable[[str], None]
    ) -> None:
        """`pace`: seconds between two messages at the least."""
        self._account = next(each for each in endpoints["accounts"] if each["role"] == _SENDER)
        self._context = ssl.create_default_context(cafile=endpoints["ca_file"])
        self._numbers = iter(range(messages))
        self._messages = messages
        self._pace = pace
        self._clocks = clocks
        self._lock = threading.Lock()
        self._say = say
        self.accepted: set[int] = set()
        self.refused: dict[int, str] = {}
        """What was answered instead: nothing here gives a reason to refuse for good."""
        self.repeated = 0

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self) -> None:
        client: smtplib.SMTP | None = None
        for number in iter(self._next, None):
            time.sleep(self._pace * _CLIENTS)
            content = self._mail(number)
            for attempt in itertools.count():
                try:
                    client = client or self._connect()
                    client.sendmail(self._account["address"], [_RECIPIENT], content)
                    break
                except smtplib.SMTPRecipientsRefused as error:
                    if all(code >= 500 for code, _ in error.recipients.values()):
                        self.refused[number] = f"RCPT: {next(iter(error.recipients.values()))!r}"
                        break
                except smtplib.SMTPResponseException as error:
                    if isinstance(error, smtplib.SMTPDataError | smtplib.SMTPSenderRefused) and error.smtp_code >= 500:
                        self.refused[number] = f"{type(error).__name__}: {error.smtp_code} {error.smtp_error!r}"
                        break
                    _close(client)
                    client = None
                except (OSError, smtplib.SMTPException):
                    _close(client)
                    client = None
                with self._lock:
                    self.repeated += 1
                time.sleep(min(0.05 * 2**attempt, 2.0))
            if number not in self.refused:
                self._took(number)
        _close(client)

    def _next(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)

    def _took(self, number: int) -> None:
        with self._lock:
            self.accepted.add(number)
            self._clocks.compare()
            if len(self.accepted) % 1000 == 0:
                self._say(f"{len(self.accepted)} of {self._messages} accepted")

    def _connect(self) -> smtplib.SMTP:
        at = self._account["submission"]
        client = smtplib.SMTP(at["host"], at["port"], timeout=40)
        try:
            client.starttls(context=self._context)
            client.login(self._account["user"], self._account["password"])
        except BaseException:
            client.close()
            raise
        return client

    def _mail(self, number: int) -> bytes:
        """The same bytes at every repetition."""
        lines = [
            f"From: {self._account['address']}",
            f"To: {_RECIPIENT}",
            "Subject: Soak",
            "Date: Sat, 21 Nov 2026 12:00:00 +0100",
            f"Message-ID: <soak-{number}@{_DOMAIN}>",
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=utf-8",
            "",
            f"{_CLEAR} {number}",
            *("x" * 70 for _ in range(30)),
            "",
        ]
        return "\r\n".join(lines).encode()


def _close(client: smtplib.SMTP | None) -> None:
    if client is not None:
        client.close()


@contextmanager
def _up(state: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "config", "up", "--state", str(state)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (state / "endpoints.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"relais up did not start: {output.read_text(errors='replace')[-500:].strip()}")
            time.sleep(0.05)
        yield process
    finally:
        end(process, _STOP_SECONDS)


def _service() -> tuple[int, int] | None:
    """Who runs the gateway when we are root; None before that user was made, which `relais up` does."""
    try:
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None
    return (entry.pw_uid, entry.pw_gid) if os.geteuid() == 0 else None


def _hop_context(state: Path) -> ssl.SSLContext:
    """The other operator's own certificate, client certificates wanted, as its door has it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(state / "ville" / "operator.pem", state / "ville" / "operator.key")
    context.load_verify_locations(state / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _point_at(gateway: Path, state: Path, port: int) -> None:
    """The hop takes the other operator's place; retries come soon, or a long run would mostly wait."""
    path = gateway / "relais.toml"
    ports = json.loads((state / "ports.json").read_text())
    text = path.read_text()
    changed = re.sub(rf"(?m)^port = {ports['operators-ville']}$", f"port = {port}", text)
    changed = re.sub(r"(?m)^longest_retry_seconds = \d+$", "longest_retry_seconds = 4", changed)
    if changed == text:
        raise BenchError("the gateway's configuration does not name its partner")
    path.write_text(changed)


def _restart(faults: Faults) -> None:
    """With the new configuration: the supervisor starts it again."""
    deadline = time.monotonic() + _START_SECONDS
    while not faults.kill_gateway():
        if time.monotonic() > deadline:
            raise BenchError("the gateway does not answer")
        time.sleep(0.05)
    faults.harm.kills.clear()


def _drain(gateway: Path, up: subprocess.Popen[bytes], clocks: Clocks, say: Callable[[str], None]) -> None:
    """Until nothing waits and everybody has been told; ends as well when that takes too long without progress."""
    quiet = 0
    left = None
    deadline = time.monotonic() + _DRAIN_SECONDS
    while quiet < 3:
        clocks.compare()
        if up.poll() is not None:
            raise BenchError("relais up ended")
        with contextlib.suppress(ControlError):
            ready = int(ask(gateway / "control.sock", "queue.counts", 10.0)["ready"])
            quiet = quiet + 1 if ready == 0 else 0
            if ready != left:
                left, deadline = ready, time.monotonic() + _DRAIN_SECONDS
                say(f"{ready} deliveries left")
        if time.monotonic() > deadline:
            raise BenchError(f"{left} deliveries did not end within {_DRAIN_SECONDS:g} s after the last fault")
        time.sleep(0.5)


def _told(endpoints: dict[str, Any]) -> set[int]:
    """Numbers of the messages whose sender was told that they failed."""
    account = next(each for each in endpoints["accounts"] if each["role"] == _SENDER)
    context = ssl.create_default_context(cafile=endpoints["ca_file"])
    told: set[int] = set()
    deadline = time.monotonic() + 60.0
    while True:
        try:
            imaps = endpoints["imaps"]
            client = imaplib.IMAP4_SSL(imaps["host"], imaps["port"], ssl_context=context, timeout=60)
            break
        except OSError as error:  # Dovecot is just being started again
            if time.monotonic() > deadline:
                raise BenchError("the mail store does not answer") from error
            time.sleep(0.2)
    with client:
        client.login(account["user"], account["password"])
        client.select("INBOX", readonly=True)
        _, found = client.search(None, "ALL")
        numbers = found[0].split()
        for at in range(0, len(numbers), 100):
            _, parts = client.fetch(b",".join(numbers[at : at + 100]).decode(), "(BODY.PEEK[])")
            for part in parts:
                if isinstance(part, tuple) and _FAILED.search(part[1]) and (match := _TOLD.search(part[1])):
                    told.add(int(match[1]))
    return told
