"""Nothing runs as root: started as root, Relais becomes user `relais` before it opens a socket."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
from pathlib import Path

SERVICE_USER = "relais"
MARK = ".relais-state"
"""Stands in every state directory, so that a mistyped --state never changes the owner of somebody else's files."""
_PR_SET_PDEATHSIG = 1


class PrivilegeError(Exception):
    """The service user cannot do its work; the message says what to change."""


def drop(state: Path) -> None:
    """As root: create user `relais` when missing, give it `state`, become it. As anybody else: nothing.

    Raises `PrivilegeError` when user `relais` could not reach the program, its interpreter or `state` (absolute).
    """
    if os.geteuid() != 0:
        state.mkdir(parents=True, exist_ok=True, mode=0o711)
        return
    try:
        user = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVICE_USER],
            check=True,
        )
        user = pwd.getpwnam(SERVICE_USER)
    state.mkdir(parents=True, exist_ok=True, mode=0o711)
    if any(state.iterdir()) and not (state / MARK).exists():
        raise PrivilegeError(f"{state} holds files that are not Relais's: choose an empty directory for the state")
    (state / MARK).touch()
    _give(state, user.pw_uid, user.pw_gid)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=str(state), USER=SERVICE_USER, LOGNAME=SERVICE_USER)
    needed = ((Path(__file__), os.R_OK), (Path(os.__file__), os.R_OK), (state, os.R_OK | os.W_OK | os.X_OK))
    for path, mode in needed:
        if not os.access(path, mode):
            raise PrivilegeError(
                f"user {SERVICE_USER} cannot reach {path}: put the project, its interpreter and the state where "
                f"others may go (chmod o+x on the directories above), or start Relais as an ordinary user"
            )


def _give(tree: Path, uid: int, gid: int) -> None:
    """Own `tree` as the service user; links are never followed, so the tree cannot point ownership elsewhere."""
    for root, directories, files in os.walk(tree.resolve()):
        for name in (".", *directories, *files):
            path = Path(root) / name
            status = path.lstat()
            if (status.st_uid, status.st_gid) != (uid, gid):
                os.chown(path, uid, gid, follow_symlinks=False)


def die_with_parent() -> None:
    """Runs in a child between fork and exec: the kernel terminates it when the supervisor dies, even by SIGKILL."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
