"""Load and sink of the road's benchmarks: `smtp-source` and `smtp-sink`, which Postfix brings along.

The same programs with the same arguments load every contestant; they share the machine's cores with it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from config.bench.child import BenchError, Cost, cost_of_tree

SOURCES = 4
"""Programs at the same time: one alone writes content blocking."""
SESSIONS = 5
"""Of each, kept open from message to message."""
SENDER = "labo@tilleuls.bench.invalid"
RECIPIENT = "medecin@ville.bench.invalid"
DESCRIPTION = f"{SOURCES} smtp-source of {SESSIONS} sessions each, kept open; smtp-sink -L"
_COUNT = re.compile(rb"mesg=([0-9]+)")


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_listening(port: int, seconds: float) -> bool:
    """Whether somebody listens there before the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return True
        time.sleep(0.02)
    return False


class Sink:
    """Takes everything over LMTP and counts it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port = port
        self._process = process
        self._count = 0
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        rest = b""
        while block := os.read(self._process.stdout.fileno(), 65536):
            # the last number may be cut
            *lines, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
            for line in reversed(lines):
                if found := _COUNT.search(line):
                    with self._moved:
                        self._count = int(found[1])
                        self._moved.notify_all()
                    break

    @property
    def count(self) -> int:
        """Messages taken so far."""
        with self._moved:
            return self._count

    def wait(self, count: int, seconds: float) -> float:
        """Until so many were taken in all; the monotonic time then. Raises `BenchError` when they do not come."""
        with self._moved:
            if not self._moved.wait_for(lambda: self._count >= count, seconds):
                raise BenchError(f"{self._count} of {count} messages arrived within {seconds:.0f} s")
            return time.monotonic()

    def cost(self) -> Cost:
        return cost_of_tree(self._process.pid)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        self._process.stdout.close()


@contextmanager
def sink() -> Iterator[Sink]:
    """One smtp-sink. Raises `BenchError` when it is missing."""
    if shutil.which("smtp-sink") is None:
        raise BenchError("load and sink need smtp-source and smtp-sink: apt-get install postfix")
    port = free_port()
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        ["smtp-sink", *user, "-c", "-L", "-m", "1000", f"inet:127.0.0.1:{port}", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    taking = Sink(process, port)
    try:
        if not wait_listening(port, 10.0):
            raise BenchError("smtp-sink did not start")
        yield taking
    finally:
        taking.close()


def send(port: int, count: int, size: int, *, sources: int = SOURCES, sessions: int = SESSIONS) -> Cost:
    """Send `count` messages of `size` octets to a door; returns when each was answered. The cost is the load's own.

    Raises `BenchError` when one was not taken.
    """
    started: list[subprocess.Popen[bytes]] = []
    before = os.times()
    for number in range(sources):
        share = count // sources + (number < count % sources)
        if share:
            started.append(_source(port, share, size, min(sessions, share)))
    _finish(started)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(used, 0.0)


def _source(port: int, count: int, size: int, sessions: int) -> subprocess.Popen[bytes]:
    options = ["-d", "-s", str(sessions), "-m", str(count), "-l", str(size), "-f", SENDER, "-t", RECIPIENT]
    return subprocess.Popen(
        ["smtp-source", *options, f"inet:127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(started: Sequence[subprocess.Popen[bytes]]) -> None:
    failures = []
    for process in started:
        _, said = process.communicate()
        if process.returncode:
            failures.append(said)
    if failures:
        raise BenchError(f"smtp-source: {failures[0].decode(errors='replace')[-300:].strip()}")


def mail(size: int, number: int) -> bytes:
    """A message of `size` octets as smtp-source makes them."""
    header = (
        f"From: <{SENDER}>\r\nTo: <{RECIPIENT}>\r\nDate: Mon, 05 Jan 2026 08:00:00 +0000\r\n"
        f"Message-Id: <{os.getpid():x}.{number:x}.{time.monotonic_ns():x}@bench.invalid>\r\n\r\n"
    )
    lines, rest = divmod(size - len(header), 80)
    return header.encode() + (b"X" * 78 + b"\r\n") * lines + b"X" * max(0, rest - 2) + b"\r\n"
