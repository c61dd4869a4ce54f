"""Room on the disk for the day it is full: a file of nothing, given up so that a gateway can work off what it has.

Doors refuse long before (`mta.spool.Spool`, 452), but others fill disks too. On a disk without one free block SQLite
does not even open: a gateway that starts there could neither deliver nor show what it holds. With the ballast's room it
opens, tells senders to come again later, delivers, and writes down what was delivered. Once there is plenty of room it
is laid down anew.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

from mta.bell import Repeating

log = structlog.get_logger(__name__)

OCTETS = 32 << 20
LOW_OCTETS = 8 << 20
"""Free, below which the ballast goes."""
PLENTY_OCTETS = 256 << 20
"""Free, above which it is laid down: far above what doors leave, so that it never is what makes them refuse."""
_LOOK_SECONDS = 5.0


class Ballast(Repeating):
    """Of one state directory."""

    def __init__(self, state: Path, free: Callable[[], int] | None = None) -> None:
        """`free`: octets the disk still takes, by default asked of it."""
        super().__init__()
        self._file = state / "ballast"
        self._free = free or (lambda: shutil.disk_usage(state).free)

    def look(self) -> None:
        """Give it up or lay it down, as the disk stands; whatever the disk says, there is one to look at next time."""
        try:
            free = self._free()
            if free < LOW_OCTETS and self._file.exists():
                self._file.unlink(missing_ok=True)
                log.error("disk.full", free=free, given_up=OCTETS)
            elif free > PLENTY_OCTETS and not self._file.exists():
                self._lay()
        except OSError as error:
            log.warning("disk.ballast", error=type(error).__name__)

    def _lay(self) -> None:
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, OCTETS)
        except OSError:
            self._file.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    async def _turn(self) -> float:
        await asyncio.to_thread(self.look)
        return _LOOK_SECONDS
