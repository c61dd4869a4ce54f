"""A private PostgreSQL: a cluster of its own in a temporary directory, run by an ordinary user, a database per test.

Everything is as Debian installs it (fsync on); only its port, sockets and directory are ours, the last one in memory
where there is enough.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.private import free_port, service_directory, service_ids, start_unprivileged, until

USER = "relais"
_ROOM = 2 << 30


def programs() -> Path | None:
    """The directory of `initdb` and `postgres` (package `postgresql`), None where there is none."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return versions[-1] if versions else None


class PostgresServer:
    """One cluster. `start` and `stop` any number of times."""

    def __init__(self, place: Path, binaries: Path) -> None:
        self.place, self.binaries = place, binaries
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._run("initdb", "--username", USER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync")

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.place),
            "max_connections": "200",
            "shared_buffers": "32MB",
            "logging_collector": "off",
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.place / "log").open("ab") as log:
            self.process = start_unprivileged(
                [str(self.binaries / "postgres"), "-D", str(self.place / "data"), *arguments],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )
        until(self.answers, 30, "PostgreSQL")

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: fast shutdown; SIGQUIT: as after a crash, without a checkpoint."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError((self.place / "log").read_text()[-2000:])
        asked = subprocess.run(
            [self.binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER],
            check=False,
            timeout=10,
        )
        return asked.returncode == 0

    def execute(self, statement: str, database: str = "postgres") -> str:
        """One statement by psql; its rows, unaligned."""
        done = subprocess.run(
            [
                *(self.binaries / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", statement),
                *("-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def dump(self, url: str) -> bytes:
        """All tables of a database as octets."""
        name = url.rpartition("/")[2]
        tables = self.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", name).splitlines()
        rows = "".join(self.execute(f'SELECT * FROM "{table}"', name) for table in tables)
        return rows.encode() + b"".join(bytes.fromhex(each) for each in re.findall(r"\\x((?:[0-9a-f]{2})+)", rows))

    def url(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def fresh(self) -> str:
        """URL of an empty database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        # a collation of people, as Debian makes it: nothing may depend on the order of octets
        self.execute(f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'fr-FR'")
        return self.url(name)

    def _run(self, program: str, *arguments: str) -> None:
        ids = service_ids()
        as_service = {} if ids is None else {"user": ids[0], "group": ids[1], "extra_groups": []}
        subprocess.run(
            [self.binaries / program, "-D", str(self.place / "data"), *arguments],
            check=True,
            capture_output=True,
            cwd="/",
            **as_service,  # type: ignore[call-overload]
        )


def _memory() -> str:
    """Where a sync costs nothing: processes are killed here, never the machine."""
    try:
        return "/dev/shm" if shutil.disk_usage("/dev/shm").free > _ROOM else "/tmp"
    except OSError:
        return "/tmp"


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A fresh cluster, started; stopped and removed afterwards."""
    binaries = programs()
    assert binaries is not None
    with service_directory(_memory()) as place:
        server = PostgresServer(place, binaries)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
