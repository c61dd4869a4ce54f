"""Real servers for tests, never as root: directories they may write, processes that drop to user `relais`."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SERVICE_USER = "relais"


def service_ids() -> tuple[int, int] | None:
    """(uid, gid) servers run as: None when this process is already an ordinary user."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        subprocess.run(
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVICE_USER],
            check=False,  # another worker may have been first
            capture_output=True,
        )
        entry = pwd.getpwnam(SERVICE_USER)
    return entry.pw_uid, entry.pw_gid


def give(path: Path) -> None:
    """Hand a directory tree to the service user."""
    ids = service_ids()
    if ids is None:
        return
    for root, directories, files in os.walk(path):
        for name in (".", *directories, *files):
            os.chown(Path(root) / name, *ids, follow_symlinks=False)


@contextmanager
def service_directory(below: str = "/tmp") -> Iterator[Path]:
    """A short private directory (Unix socket paths are limited to 108 bytes) that the service user owns."""
    path = Path(tempfile.mkdtemp(prefix="relais-", dir=below))
    path.chmod(0o711)
    give(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def start_unprivileged(argv: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
    """Start a server as the service user; the caller stops it."""
    ids = service_ids()
    if ids is not None:
        options |= {"user": ids[0], "group": ids[1], "extra_groups": []}
    return subprocess.Popen(argv, **options)  # type: ignore[call-overload,no-any-return]


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float = 20.0, what: str = "condition") -> None:
    """Wait until an external process reaches a state it gives no event for; fails after `seconds`."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} not reached in {seconds:g} s")
        pause.wait(0.02)
