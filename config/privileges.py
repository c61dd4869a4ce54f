"""Nothing runs as root: started as root, Relais becomes user `relais` before it opens a socket.

The state belongs to user `relais`, so root handles it as a stranger's: whatever that user may have put there (links,
second names of files, directories exchanged while we walk) must not make root give anything outside it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import stat
import subprocess
import sys
from pathlib import Path

SERVICE_USER = "relais"
MARK = ".relais-state"
"""Stands in every state directory, so that a mistyped --state never changes the owner of somebody else's files."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
"""Loaded here, not between fork and exec: there another thread's lock on the loader would never be released."""


class PrivilegeError(Exception):
    """The service user cannot do its work; the message says what to change."""


def drop(state: Path) -> None:
    """As root: create user `relais` when missing, give it `state`, become it. As anybody else: nothing.

    Raises `PrivilegeError` when user `relais` could not reach the program, its interpreter or `state` (absolute).
    """
    if os.geteuid() != 0:
        state.mkdir(parents=True, exist_ok=True, mode=0o711)
        return
    user = _service_user()
    state = state.resolve()
    state.mkdir(parents=True, exist_ok=True, mode=0o711)
    _take(state, user.pw_uid, user.pw_gid)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=str(state), USER=SERVICE_USER, LOGNAME=SERVICE_USER)
    needed = (
        (Path(__file__), os.R_OK),
        (Path(os.__file__), os.R_OK),
        (Path(sys.executable), os.X_OK),
        (state, os.R_OK | os.W_OK | os.X_OK),
    )
    for path, mode in needed:
        if not os.access(path, mode):
            raise PrivilegeError(
                f"user {SERVICE_USER} cannot reach {path}: put the project, its interpreter and the state where "
                f"others may go (chmod o+x on the directories above), or start Relais as an ordinary user"
            )


def service_folder(folder: Path) -> None:
    """A private directory of the service user's, as root; of our own, as anybody else. One that exists is left as it
    is. Raises OSError, also when what is above it is missing, and `PrivilegeError`."""
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        user = _service_user()
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(opened).st_uid == 0:  # ours, and not what somebody has put in its place
                os.fchown(opened, user.pw_uid, user.pw_gid)
        finally:
            os.close(opened)


def may_write(folder: Path) -> bool:
    """Whether this program, once started, can work in that directory: judged for the service user when we are root."""
    if os.geteuid() != 0:
        return os.access(folder, os.R_OK | os.W_OK | os.X_OK)
    try:
        user, found = pwd.getpwnam(SERVICE_USER), folder.stat()
    except (KeyError, OSError):
        return False
    shift = 6 if found.st_uid == user.pw_uid else 3 if found.st_gid == user.pw_gid else 0
    return stat.S_ISDIR(found.st_mode) and found.st_mode >> shift & 0o7 == 0o7


def _service_user() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return _ordinary(pwd.getpwnam(SERVICE_USER))
    created = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVICE_USER]
    with contextlib.suppress(OSError):
        subprocess.run(created, check=False, capture_output=True)  # another start may have been first
    try:
        return _ordinary(pwd.getpwnam(SERVICE_USER))
    except KeyError:
        raise PrivilegeError(f"user {SERVICE_USER} does not exist and cannot be created: run useradd") from None


def _ordinary(user: pwd.struct_passwd) -> pwd.struct_passwd:
    if user.pw_uid == 0 or user.pw_gid == 0:
        raise PrivilegeError(f"user {SERVICE_USER} is root by another name: give it a number of its own")
    return user


def _take(state: Path, uid: int, gid: int) -> None:
    """Mark the state as Relais's and own it as the service user."""
    try:
        top = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise PrivilegeError(f"{state} must be a directory: {error.strerror}") from error
    try:
        if os.listdir(top) and not _is_marked(top):  # noqa: PTH208 - what is open, not what has the name now
            raise PrivilegeError(f"{state} holds files that are not Relais's: choose an empty directory for the state")
        os.close(os.open(MARK, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=top))
        os.fchown(top, uid, gid)
        os.fchmod(
            top, stat.S_IMODE(os.fstat(top).st_mode) & ~0o022
        )  # keys lie below: nobody else exchanges directories
        for _, directories, files, here in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            for name in (*directories, *files):
                _give(name, here, uid, gid)
    finally:
        os.close(top)


def _is_marked(top: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(MARK, dir_fd=top, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _give(name: str, directory: int, uid: int, gid: int) -> None:
    """Own one entry of an open directory. The entry is held open, so what is looked at is what is given away."""
    try:
        entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:  # gone meanwhile
        return
    try:
        status = os.fstat(entry)
        if (status.st_uid, status.st_gid) == (uid, gid) or stat.S_ISLNK(status.st_mode):
            return
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            raise PrivilegeError(f"{name} in the state has a second name elsewhere: it could be anybody's; remove it")
        os.chown(f"/proc/self/fd/{entry}", uid, gid)
    finally:
        os.close(entry)


def die_with_parent(parent: int) -> None:
    """Runs in a child between fork and exec: the kernel terminates it when `parent` (its pid) dies, even by SIGKILL."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before it was asked for
        os._exit(1)
