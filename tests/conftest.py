"""What the whole suite shares: both databases, and names of parametrised tests that every process gives alike."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.postgresql import PostgresServer, postgres_server, programs
from trust.store.database import Database


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set up the logs of a whole process; a test that runs one in its own leaves none of that behind."""
    root, configured, structured = logging.getLogger(), structlog.is_configured(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if configured:
        structlog.configure(**structured)
    else:
        structlog.reset_defaults()


@pytest.fixture(autouse=True, scope="session")
def own_name_without_dns() -> Iterator[None]:
    """smtplib asks the DNS who we are at each connection; on a machine without one that takes seconds."""
    patched = pytest.MonkeyPatch()
    patched.setattr(socket, "getfqdn", lambda name="": name or "localhost")
    yield
    patched.undo()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Octets are often made anew in each process (keys, noise): named by their argument, numbered by pytest.

    Workers of pytest-xdist refuse to run unless all of them collected tests of the same names.
    """
    if isinstance(val, bytes) and (len(val) > 60 or not val.isascii() or b"\0" in val or b"\x02" in val):
        return argname
    return None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """A real server, once per test process."""
    if programs() is None:
        pytest.skip("PostgreSQL is not installed (package postgresql)")
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind: a test that uses this runs on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/private/relais.db"
    return request.getfixturevalue("postgresql").fresh()  # type: ignore[no-any-return]


@pytest.fixture
def stored_octets(database_url: str, request: pytest.FixtureRequest) -> Callable[[Database], bytes]:
    """What the database keeps, as whoever steals the disk sees it; closes it."""

    def octets(database: Database) -> bytes:
        database.close()
        if database_url.startswith("sqlite:///"):
            return Path(database_url.removeprefix("sqlite:///")).read_bytes()
        return request.getfixturevalue("postgresql").dump(database_url)  # type: ignore[no-any-return]

    return octets
