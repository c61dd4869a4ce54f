"""A whole `relais up` as a child process in a directory of its own, and what its processes cost.

CPU seconds and memory are read from /proc (proc(5)), as the kernel counts them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_SECONDS = 120.0
_STOP_SECONDS = 40.0


class BenchError(Exception):
    """The benchmark cannot go on; the message is a sentence for the person at the terminal."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the processes of one name have used since they started."""

    cpu_seconds: float
    peak_mb: float
    """Largest resident set of any one of them, in units of 2**20 bytes."""


@dataclass(frozen=True, slots=True)
class Child:
    state: Path
    pid: int
    endpoints: dict[str, Any]

    def costs(self) -> dict[str, Cost]:
        """By name: `up`, `slapd`, `dovecot` (all its processes together) each gateway by its state's name,
        any other by its command."""
        parents = _parents()
        found: dict[str, Cost] = {}
        for pid in parents:
            ancestors = _ancestry(pid, parents)
            if self.pid not in ancestors:
                continue
            top = pid if pid == self.pid else ancestors[ancestors.index(self.pid) - 1]
            try:
                name, cost = _name(top), _cost(pid)
            except OSError:  # it ended meanwhile; its parent has its time
                continue
            name = "up" if top == self.pid else name
            before = found.get(name, Cost(0.0, 0.0))
            found[name] = Cost(before.cpu_seconds + cost.cpu_seconds, max(before.peak_mb, cost.peak_mb))
        return found


@contextmanager
def relais_up() -> Iterator[Child]:
    """Fresh state, started and ready; stopped and removed afterwards. Raises `BenchError` when it does not start."""
    place = Path(tempfile.mkdtemp(prefix="relais-bench-"))
    place.chmod(0o711)  # started as root, it is user `relais` who goes through
    state, output = place / "state", place / "up.log"
    announced = state / "endpoints.json"
    try:
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
            while not announced.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise BenchError(f"relais up did not start: {output.read_text(errors='replace')[-500:].strip()}")
                time.sleep(0.05)
            yield Child(state, process.pid, json.loads(announced.read_text()))
        finally:
            end(process, _STOP_SECONDS)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def cost_of_tree(pid: int) -> Cost:
    """Of one process and all below it; peak memory is the largest of any one."""
    parents = _parents()
    seconds, peak = 0.0, 0.0
    for each in parents:
        if each == pid or pid in _ancestry(each, parents):
            try:
                cost = _cost(each)
            except OSError:  # it ended meanwhile; its parent has its time
                continue
            seconds, peak = seconds + cost.cpu_seconds, max(peak, cost.peak_mb)
    return Cost(seconds, peak)


def resident(name: str) -> int:
    """A size of this process, in octets, as /proc/self/status names it: `VmRSS:`, `VmHWM:` for its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def memory_of_tree(pid: int) -> int:
    """Octets that a process and all below it have in memory now; a page that two of them map counts twice."""
    parents = _parents()
    pages = 0
    for each in parents:
        if each == pid or pid in _ancestry(each, parents):
            try:
                pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
            except OSError:  # it ended meanwhile
                continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def _parents() -> dict[int, int]:
    """Parent of every process, by id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = int(_stat(int(entry.name))[1])
            except OSError:
                continue
    return found


def _ancestry(pid: int, parents: dict[int, int]) -> list[int]:
    """The process, its parent, and so on."""
    line = [pid]
    while (parent := parents.get(line[-1])) is not None and parent not in line:
        line.append(parent)
    return line


def _stat(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) from the third, state, on: the second may hold spaces and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if "serve" in words:
        return Path(words[words.index("--config") + 1]).parent.name
    if "-m" in words:
        return words[words.index("-m") + 2]  # python -m config COMMAND
    return Path(words[0].split(" ", 1)[0]).name


def _cost(pid: int) -> Cost:
    """Its own time and that of its children which ended and were waited for."""
    ticks = sum(int(field) for field in _stat(pid)[11:15])  # utime, stime, cutime, cstime
    peak = 0.0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            peak = int(line.split()[1]) / 1024
    return Cost(ticks / os.sysconf("SC_CLK_TCK"), peak)


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Orderly; killed when it does not end in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
