"""Keys stay in this process's memory: not in core dumps, not readable by other processes of the user, not in swap.

Linux only. What the machine does not permit is said, never hidden: `Guard.degraded` is a sentence for the operator.
"""

from __future__ import annotations

import ctypes
import os
import resource
from dataclasses import dataclass
from pathlib import Path

_PR_SET_DUMPABLE = 4
_MCL_CURRENT = 1
_MCL_FUTURE = 2
_MCL_ONFAULT = 4
_CAP_IPC_LOCK = 14


@dataclass(frozen=True, slots=True)
class Guard:
    """What was reached."""

    dumps_off: bool
    """No core dump, and no other process of this user may look into our memory (prctl(2), PR_SET_DUMPABLE)."""
    locked: bool
    """No page of ours is ever written to swap (mlockall(2))."""
    swap: bool
    """Whether the machine swaps at all."""

    @property
    def degraded(self) -> str:
        """What keys are exposed to; empty when nothing is."""
        if not self.dumps_off:
            return "core dumps of this process could not be switched off: set LimitCORE=0"
        if self.swap and not self.locked:
            return (
                "keys may be written to swap: set LimitMEMLOCK=infinity for the service, encrypt the swap, or have none"
            )
        return ""


def permit_locking() -> None:
    """As root, before becoming the service user: let the process lock all its memory later. Otherwise nothing."""
    if os.geteuid() == 0:
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (ValueError, OSError):
            return


def guard_memory(*, lock: bool = True) -> Guard:
    """Protect this process, for as long as it lives; after the last change of user, which undoes a part.

    Pages are locked as they come into use. A limited process is not locked at all: past its limit the next allocation
    would fail, and mail with it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limited = True
    except (ValueError, OSError):
        limited = False
    dumps_off = libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 and limited
    locked = lock and _may_lock_all() and libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) == 0
    return Guard(dumps_off, locked, _swaps())


def _may_lock_all() -> bool:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(effective >> _CAP_IPC_LOCK & 1)


def _swaps() -> bool:
    try:
        return len(Path("/proc/swaps").read_text().splitlines()) > 1
    except OSError:
        return True  # not known: the worse is assumed
