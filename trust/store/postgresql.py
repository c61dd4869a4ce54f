"""PostgreSQL under `trust.store.database`: how it is opened, what is demanded of it, and which of its errors pass.

What is promised is what the server keeps: one that does not sync, or does not wait for it, is refused. A vanished
server or network is noticed within half a minute by either side, and a process that stops in the midst of a transaction
does not hold its locks for longer than a minute, so that one node in trouble does not stop the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DBAPIError

OLDEST = 13
"""Major version that is still understood."""

_SERVER_SETTINGS = (
    "application_name=relais",
    "timezone=UTC",
    "lock_timeout=10s",
    # A node whose machine is gone must not keep its locks until the kernel's two hours are over.
    "tcp_keepalives_idle=10",
    "tcp_keepalives_interval=5",
    "tcp_keepalives_count=3",
    "client_min_messages=warning",
)
_WRITER_SETTING = "idle_in_transaction_session_timeout=60s"
"""Readers hold no locks and may take their time over what they have read."""
_CLIENT_SETTINGS = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    # Of several hosts the one that takes writes: after a fail-over it is another than before.
    "target_session_attrs": "read-write",
}
_EXAMINE = (
    "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'), current_setting('fsync'),"
    " current_setting('full_page_writes'), current_setting('synchronous_commit')"
)

_AGAIN = re.compile(
    "40001|40P01|55P03"  # serialization failure, deadlock, lock not had in time
    "|25006"  # it has become a standby meanwhile: the next connection goes to the server that takes writes
    "|08...|57P0[123]"  # the connection broke, the server ends or is not ready yet
)
_CONFLICT = ("40001", "40P01", "55P03")


class UnsuitableServerError(ValueError):
    """This server, or this installation of ours, cannot keep a message; the text says why."""


def open_postgresql(url: URL, read_connections: int) -> tuple[Engine, Engine]:
    """The writer's engine and the readers'. Connects only when it is used; raises `UnsuitableServerError` without the
    driver. Each connection raises it too when the server does not keep what it promises."""
    if find_spec("psycopg") is None:
        raise UnsuitableServerError("the driver is missing: install the extra `postgresql` of the package")
    url = url.set(drivername="postgresql+psycopg")
    given = url.query.get("options", "")
    settings = " ".join(f"-c {setting}" for setting in _SERVER_SETTINGS)
    given = f"{settings} {given if isinstance(given, str) else ' '.join(given)}".strip()
    options = {name: value for name, value in _CLIENT_SETTINGS.items() if name not in url.query} | {"options": given}
    writing = options | {"options": f"-c {_WRITER_SETTING} {given}"}
    # Values never appear in exception texts: they end up in logs.
    writer = create_engine(url, hide_parameters=True, pool_size=2, connect_args=writing)
    readers = create_engine(
        url,
        hide_parameters=True,
        pool_size=read_connections,
        max_overflow=0,
        connect_args=options,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
    )
    for engine in (writer, readers):
        event.listen(engine, "connect", _examine)
        event.listen(engine, "handle_error", _hide_values)
    event.listen(writer, "handle_error", _drop_standby)
    return writer, readers


def _examine(connection: Any, _record: object) -> None:
    """Before a connection is used for the first time. Its commits wait for the disk, whatever the server's default;
    where they wait for a standby as well, they go on doing so."""
    with connection.cursor() as cursor:
        cursor.execute(_EXAMINE)
        version, encoding, fsync, full_pages, commit = cursor.fetchone()
        if version < OLDEST * 10_000:
            raise UnsuitableServerError(f"PostgreSQL {version // 10_000} is too old: {OLDEST} at least")
        if encoding != "UTF8":
            raise UnsuitableServerError(f"the database is encoded in {encoding}: create it with ENCODING 'UTF8'")
        if fsync != "on" or full_pages != "on":
            raise UnsuitableServerError("the server does not sync: fsync and full_page_writes must be on")
        if commit in ("off", "local"):
            cursor.execute("SET synchronous_commit = on")
    connection.commit()


def _hide_values(context: ExceptionContext) -> None:
    """The server quotes the values it refuses."""
    error = context.original_exception
    states = list(_states(error))
    if not states or not states[0]:
        return
    if states[0][:2] in ("22", "23"):
        constraint = getattr(getattr(error, "diag", None), "constraint_name", None)
        error.args = (f"{type(error).__name__} {constraint or ''}".strip(),)
    else:
        error.args = (str(error).partition("\n")[0],)
    if context.sqlalchemy_exception is not None:
        context.sqlalchemy_exception.args = (f"({type(error).__name__}) {error}",)


def _drop_standby(context: ExceptionContext) -> None:
    if "25006" in _states(context.original_exception):
        context.is_disconnect = True


def transaction_is_lost(driver: Any) -> bool:
    """Whether the driver's connection has no transaction any more: broken, or ended by what ran in it."""
    if driver is None or driver.closed:
        return True
    return bool(driver.info.transaction_status.name not in ("ACTIVE", "INTRANS", "INERROR"))


def statement_failed(driver: Any) -> bool:
    """Whether the transaction takes nothing but a rollback to its savepoint."""
    return bool(driver.info.transaction_status.name == "INERROR")


def may_pass(error: BaseException) -> bool:
    """Whether the same work may succeed when it is done again from the beginning, as long as COMMIT was not sent."""
    return any(_AGAIN.fullmatch(state) or not state for state in _states(error))


def conflicts(error: BaseException) -> bool:
    """Whether another node's work stood in the way: this transaction must be begun again without its locks."""
    return any(state in _CONFLICT for state in _states(error))


def _states(error: BaseException) -> Iterator[str]:
    """SQLSTATE, empty when the connection itself failed; nothing for what is no error of the database."""
    original = error.orig if isinstance(error, DBAPIError) else error
    if type(original).__module__.partition(".")[0] != "psycopg":
        return
    state = getattr(original, "sqlstate", None)
    if state:
        yield str(state)
    elif type(original).__name__ in ("OperationalError", "ConnectionTimeout"):
        yield ""
