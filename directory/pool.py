"""Connections to the directory: one server and its replicas, each call within one deadline, from any thread.

A call goes to the first server that is not resting; one that fails, or does not answer within its share of the
deadline, rests for a while and the next one is asked within the same call. Only when every server has failed does the
caller hear of it. A write goes to the first server alone: replicas are read-only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ldap as python_ldap

from directory.handshake import handshake_deadline

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

_T = TypeVar("_T")
Connection = Any
Work = Callable[[Connection, float], _T]
"""What is done on a connection before a deadline (monotonic seconds); raises what python-ldap raises."""

IDLE_SECONDS = 60.0
"""A connection not used for so long is made anew: one that a firewall forgot answers nothing and costs a time-out."""
_BROKEN = (ldap.SERVER_DOWN, ldap.CONNECT_ERROR, ldap.UNAVAILABLE)
"""What a connection that died since its last use says; a fresh one may do better."""


class DirectoryUnavailableError(Exception):
    """The directory did not answer in time, or not with an answer: try again later. The text holds no address."""


class DirectoryRefusedError(Exception):
    """The directory refused a write: rights or schema; trying again will not help. The text holds no address."""


class NothingLoadedError(ldap.NO_SUCH_OBJECT):  # type: ignore[misc]
    """The server holds its tree and not one mailbox: restarted empty. What it does not find proves nothing."""


class _ConnectingError(DirectoryUnavailableError):
    """Somebody else is still connecting to the server: says nothing of the server yet."""


@dataclass(frozen=True, slots=True)
class DirectoryOptions:
    """Which directory, as whom, how patiently."""

    uri: str
    """`ldaps://host:port`, or `ldapi://` with the percent-encoded path of a socket. Never in the clear."""
    base: str
    bind_dn: str
    """The gateway's identity to read, the administrator's to publish."""
    password: str = field(repr=False)
    ca_file: Path | None = None
    """PEM file of the roots that verify the server; None: those of the system."""
    timeout_seconds: float = 2.0
    """For one whole call: waiting for a connection, connecting, TLS, binding, searching, all servers tried."""
    connections: int = 4
    """In use at the same time, over all servers."""
    replicas: tuple[str, ...] = ()
    """URIs of servers with the same data, asked in this order when `uri` does not answer. Never written to."""
    rest_seconds: float = 10.0
    """So long a server that failed is left alone while another one answers."""
    cache_entries: int = 0
    """Addresses remembered, found and not found together; 0: every look-up asks the directory."""
    cache_seconds: float = 30.0
    """So long a mailbox that was found is taken for true."""
    negative_seconds: float = 5.0
    """So long an address that was not found is."""

    @property
    def servers(self) -> tuple[str, ...]:
        return (self.uri, *self.replicas)


@dataclass(slots=True)
class _Server:
    """One server, as the pool knows it."""

    uri: str
    idle: list[tuple[float, Connection]] = field(default_factory=list)
    """With the monotonic second each was given back, the latest last."""
    connecting: threading.Lock = field(default_factory=threading.Lock)
    """One handshake at a time: see `directory.handshake`."""
    rests_until: float = 0.0
    """Monotonic seconds."""
    failures: int = 0
    """In a row."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """What `relais doctor` and the metrics say of one server."""

    uri: str
    idle: int
    failures: int
    """Calls that failed in a row; 0: the last one was answered."""
    resting: bool


class Pool:
    """Connections by server. Thread-safe; close it at the end."""

    def __init__(self, options: DirectoryOptions) -> None:
        """Does not connect yet. Raises ValueError for a URI that is neither ldaps nor ldapi, or for no connection."""
        if not all(uri.startswith(("ldaps://", "ldapi://")) for uri in options.servers):
            raise ValueError("the directory must be reached over ldaps:// or ldapi://")
        if options.connections < 1:
            raise ValueError("the directory needs at least one connection")
        self.options = options
        self.slots = threading.Semaphore(options.connections)
        self._servers = [_Server(uri) for uri in dict.fromkeys(options.servers)]
        self._lock = threading.Lock()
        self._closed = False

    def read(self, work: Work[_T]) -> tuple[_T, str]:
        """The result of `work` from the first server that gives one, and that server's URI.

        Raises `DirectoryUnavailableError` when none does; a server that does not let us read is none that answers.
        """
        return self._call(work, everywhere=True)

    def write(self, work: Work[_T]) -> _T:
        """The result of `work` on the first server. Raises `DirectoryUnavailableError`, `DirectoryRefusedError`."""
        return self._call(work, everywhere=False)[0]

    def states(self) -> tuple[ServerState, ...]:
        now = time.monotonic()
        with self._lock:
            return tuple(
                ServerState(each.uri, len(each.idle), each.failures, each.rests_until > now) for each in self._servers
            )

    def close(self) -> None:
        """Close the connections; those in use close when their call ends. Later calls raise."""
        with self._lock:
            self._closed = True
            idle = [connection for server in self._servers for _, connection in server.idle]
            for server in self._servers:
                server.idle = []
        for connection in idle:
            unbind(connection)

    def _call(self, work: Work[_T], everywhere: bool) -> tuple[_T, str]:
        deadline = time.monotonic() + self.options.timeout_seconds
        if not self.slots.acquire(timeout=self.options.timeout_seconds):
            raise DirectoryUnavailableError("every connection to the directory is busy")
        try:
            servers = self._in_order() if everywhere else self._servers[:1]
            failure: DirectoryUnavailableError | None = None
            for position, server in enumerate(servers):
                now = time.monotonic()
                if failure is not None and now >= deadline:
                    break
                try:
                    # a server that says nothing must leave time for the next one
                    share = max(deadline - now, 0.0) / (len(servers) - position)
                    result = self._on(server, work, now + share, reading=everywhere)
                except DirectoryUnavailableError as error:
                    if self._closed:
                        raise
                    failure = failure or error
                    if not isinstance(error, _ConnectingError):
                        self._failed(server)
                    continue
                server.failures = 0
                server.rests_until = 0.0
                return result, server.uri
            raise failure or DirectoryUnavailableError("the directory does not answer")
        finally:
            self.slots.release()

    def _in_order(self) -> list[_Server]:
        """Who is asked, first to last: as configured, those that rest behind, the one rested longest first.

        A server whose rest is over is tried by one call; the others go past it until that call has an answer.
        """
        if len(self._servers) == 1:
            return self._servers
        now = time.monotonic()
        with self._lock:
            awake = [server for server in self._servers if server.rests_until <= now]
            resting = sorted((each for each in self._servers if each.rests_until > now), key=lambda s: s.rests_until)
            for server in awake:
                if server.failures:
                    server.rests_until = now + self.options.rest_seconds
            return awake + resting

    def _failed(self, server: _Server) -> None:
        with self._lock:
            server.failures += 1
            server.rests_until = time.monotonic() + self.options.rest_seconds
            idle, server.idle = server.idle, []
        for _, connection in idle:  # they lead to the same trouble, and would cost a time-out each
            unbind(connection)

    def _on(self, server: _Server, work: Work[_T], deadline: float, reading: bool) -> _T:
        """Run `work` on one server; once more when a pooled connection proves dead."""
        while True:
            connection = self._take(server)
            pooled = connection is not None
            try:
                if connection is None:
                    connection, pooled = self._connect(server, deadline)
                result = work(connection, deadline)
            except ldap.LDAPError as error:
                unbind(connection)
                if pooled and isinstance(error, _BROKEN):
                    continue
                raise translate(error, reading=reading) from None  # its text may hold an address
            except BaseException:
                unbind(connection)
                raise
            self._give_back(server, connection)
            return result

    def _take(self, server: _Server) -> Connection | None:
        """The one that was used last; those nobody used for long are left: a firewall may have forgotten them."""
        with self._lock:
            if self._closed:
                raise DirectoryUnavailableError("the directory client is closed")
            if not server.idle:
                return None
            since, connection = server.idle.pop()
            if time.monotonic() - since <= IDLE_SECONDS:
                return connection
            old = [connection, *(each for _, each in server.idle)]
            server.idle = []
        for each in old:
            unbind(each)
        return None

    def _give_back(self, server: _Server, connection: Connection) -> None:
        with self._lock:
            if not self._closed:
                server.idle.append((time.monotonic(), connection))
                return
        unbind(connection)

    def _connect(self, server: _Server, deadline: float) -> tuple[Connection, bool]:
        """A connection, and whether it is one that somebody gave back while we waited for our turn."""
        if server.uri.startswith("ldapi://"):
            return self._bound(server, deadline), False
        # Where there is another server to ask, nobody waits long behind one who may be talking to a wall.
        patience = left(deadline) if len(self._servers) == 1 else left(deadline) / 4
        if not server.connecting.acquire(timeout=patience):
            raise _ConnectingError("the directory does not answer (connecting)")
        try:
            connection = self._take(server)
            if connection is not None:
                return connection, True
            if time.monotonic() >= deadline:
                raise _ConnectingError("the directory does not answer (connecting)")
            with handshake_deadline(server.uri, left(deadline)):
                return self._bound(server, deadline), False
        except OSError:
            raise DirectoryUnavailableError("the directory's host name has no address") from None
        finally:
            server.connecting.release()

    def _bound(self, server: _Server, deadline: float) -> Connection:
        options = self.options
        connection = ldap.initialize(server.uri)
        try:
            connection.protocol_version = ldap.VERSION3
            connection.set_option(ldap.OPT_REFERRALS, 0)
            connection.set_option(ldap.OPT_NETWORK_TIMEOUT, left(deadline))
            if server.uri.startswith("ldaps://"):
                secure(connection, options.ca_file)
            wait(connection, connection.simple_bind(options.bind_dn, options.password), deadline)
        except BaseException:
            unbind(connection)
            raise
        return connection


def secure(connection: Connection, ca_file: Path | None) -> None:
    """Demand TLS with a certificate that `ca_file`, or the system, verifies."""
    connection.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
    if ca_file is not None:
        connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(ca_file))
    connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)  # last: it makes the options above count


def wait(connection: Connection, message: int, deadline: float) -> None:
    connection.result(message, 1, left(deadline))


def left(deadline: float) -> float:
    """Seconds left, never 0 or less: libldap takes those for `do not wait` or `for ever`."""
    return max(deadline - time.monotonic(), 0.001)


def unbind(connection: Connection | None) -> None:
    if connection is not None:
        with suppress(ldap.LDAPError):  # it may be broken already
            connection.unbind_ext_s()


_REFUSALS = (
    ldap.INSUFFICIENT_ACCESS,
    ldap.OBJECT_CLASS_VIOLATION,
    ldap.CONSTRAINT_VIOLATION,
    ldap.INVALID_SYNTAX,
    ldap.UNDEFINED_TYPE,
    ldap.NAMING_VIOLATION,
    ldap.STRONG_AUTH_REQUIRED,
)


def translate(error: Exception, reading: bool = False) -> DirectoryUnavailableError | DirectoryRefusedError:
    """Our exception for libldap's.

    NO_SUCH_OBJECT is no answer either: it is what a directory says that was never loaded, or that gives us no rights.
    """
    name = type(error).__name__
    if isinstance(error, _REFUSALS) and not reading:
        return DirectoryRefusedError(f"the directory refused to write ({name}); check the identity and its rights")
    if isinstance(error, ldap.INVALID_CREDENTIALS):
        return DirectoryUnavailableError("the directory refuses our identity; check its DN and password")
    if isinstance(error, NothingLoadedError):
        return DirectoryUnavailableError("the directory holds no mailbox at all; load it first")
    return DirectoryUnavailableError(f"the directory does not answer ({name})")
