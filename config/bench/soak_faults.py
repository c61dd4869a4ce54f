"""What is done to the gateway during a soak: killed, its database locked, its disk filled; each a moment noted.

The disk is a file system of its own (ext4 in a file, mounted; needs root), so that filling it fills nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from config.control import ControlError, ask

_LOCKER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
connection.execute("BEGIN IMMEDIATE")
time.sleep(float(sys.argv[2]))
connection.execute("ROLLBACK")
"""
_MOUNT_SECONDS = 30
_BLOCK = 4096
_PATIENCE = 0.9


@dataclass
class Harm:
    """What was done, by monotonic time."""

    kills: list[float] = field(default_factory=list)
    others_killed: int = 0
    """Directory and mail store."""
    locks: int = 0
    fills: int = 0
    disk: str = ""
    """Empty, or why the disk was never filled."""


@contextmanager
def own_disk(place: Path, size: int, owner: tuple[int, int] | None) -> Iterator[str]:
    """Mount a file system of `size` bytes at `place`; yields why not, empty when it is mounted."""
    place.mkdir(mode=0o711, exist_ok=True)
    image = place.with_name(place.name + ".img")
    problem = "" if os.geteuid() == 0 else "only root can mount a file system of its own"
    if not problem:
        try:
            with image.open("wb") as file:
                file.truncate(size)
            _run("mkfs.ext4", "-q", "-m", "0", "-F", str(image))
            _run("mount", "-o", "loop", str(image), str(place))
            shutil.rmtree(place / "lost+found", ignore_errors=True)
            if owner is not None:
                os.chown(place, *owner)
        except (OSError, subprocess.SubprocessError) as error:
            problem = f"no file system could be mounted: {type(error).__name__}"
            image.unlink(missing_ok=True)
    try:
        yield problem
    finally:
        if not problem:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                _run("umount", "-l", str(place))
            image.unlink(missing_ok=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_MOUNT_SECONDS)


class Faults:
    """One thread that harms, at random moments, until it is told to stop."""

    def __init__(
        self,
        state: Path,
        gateway: Path,
        seed: int,
        *,
        fill: bool,
        pause: float,
        forbidden: Callable[[], bool],
        once: bool = False,
    ) -> None:
        """`gateway` is the state of the one that is harmed, `pause` the mean time between two faults in seconds,
        `forbidden` says when nothing may be done, and with `once` each way is gone once and that is all."""
        self._state, self._gateway = state, gateway
        self._random = random.Random(seed)  # noqa: S311 - faults, not keys
        self._fill = fill
        self._pause = pause
        self._forbidden = forbidden
        self._once = once
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="faults", daemon=True)
        self.harm = Harm()
        self._done = threading.Event()

    def wait_for_each(self, seconds: float) -> None:
        """Until each way was gone as often as it has to be."""
        self._done.wait(seconds)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """And undo what is undone at the end of a fault."""
        self._stopped.set()
        self._thread.join(60)

    def kill_gateway(self) -> bool:
        """SIGKILL; False when there is none to kill now."""
        try:
            pid = int(ask(self._gateway / "control.sock", "ping", 2.0)["pid"])
            os.kill(pid, signal.SIGKILL)
        except (ControlError, ProcessLookupError, KeyError):
            return False
        self.harm.kills.append(time.monotonic())
        return True

    def _work(self) -> None:
        ways: list[tuple[Callable[[], bool], int]] = [
            (self.kill_gateway, 6),
            (self._kill_other, 1),
            (self._lock, 2),
        ]
        if self._fill:
            ways.append((self._fill_disk, 2))
        works, weights = zip(*ways, strict=True)
        first = list(works) if self._once else [*works, *works]  # then at random: also a short run has seen them all
        while not self._stopped.wait(self._random.uniform(0.5, 1.5) * self._pause):
            # Mostly when it is up, or it would hardly get any further; sometimes while it starts.
            if self._forbidden() or (self._random.random() < _PATIENCE and not self._answers()):
                continue
            if not first:
                self._random.choices(works, weights)[0]()
            elif first[0]():  # else there was nothing to harm just then
                del first[0]
            if not first:
                self._done.set()
                if self._once:
                    return

    def _answers(self) -> bool:
        try:
            return bool(ask(self._gateway / "control.sock", "ping", 1.0))
        except ControlError:
            return False

    # Each of these says whether it did any harm.

    def _kill_other(self) -> bool:
        """slapd or Dovecot."""
        files = [self._state / "dovecot" / "run" / "master.pid", *(self._state / "directory").rglob("slapd.pid")]
        try:
            os.kill(int(self._random.choice(files).read_text()), signal.SIGKILL)
        except (OSError, ValueError):
            return False
        self.harm.others_killed += 1
        return True

    def _lock(self) -> bool:
        """Another process holds the database's write lock."""
        database = self._gateway / "relais.db"
        owner = database.stat()
        identity = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
        seconds = str(self._random.uniform(0.5, 3.0))
        held = subprocess.run(
            [sys.executable, "-c", _LOCKER, str(database), seconds],
            check=False,
            capture_output=True,
            cwd="/",
            timeout=60,
            **identity,  # type: ignore[call-overload]
        )
        self.harm.locks += held.returncode == 0
        return bool(held.returncode == 0)

    def _fill_disk(self) -> bool:
        """Until nothing more goes in; then room again."""
        ballast = self._state / ".soak-ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                room = os.statvfs(self._state)
                size = room.f_bavail * room.f_frsize
                while size >= _BLOCK and not self._stopped.is_set():
                    try:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        size //= 2
            self.harm.fills += 1
            self._stopped.wait(self._random.uniform(0.5, 2.5))
        except OSError:
            return False
        else:
            return True
        finally:
            ballast.unlink(missing_ok=True)
