"""The administrator's connection to the directory: all it holds read in pages, and a plan written entry by entry.

Reading is for comparing: it takes what the directory really says, never what somebody remembers of it. Writing is one
LDAP operation per entry, so that a reader sees an entry as it was or as it will be; several operations are under way at
once, because a directory far away is slow and not busy. What was written is not written again after a lost connection:
an addition that exists and a removal that is gone are done.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import ldap as python_ldap
from ldap.controls import AssertionControl, SimplePagedResultsControl

from directory import schema
from directory.buckets import BucketWriter
from directory.canonical import REFRESHED, encode, held_entry
from directory.differences import Operation, Plan
from directory.handshake import handshake_deadline

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

_PAGE = 2000
"""Entries per page: what is in memory of a directory of any size."""
_WINDOW = 32
"""Writes under way at once."""
_REFUSED_EXAMPLES = 100

_STILL_NATIONAL: Any = AssertionControl(  # type: ignore[no-untyped-call]
    True,
    f"(&({schema.SOURCE}={schema.NATIONAL.decode()})(|(!({schema.LOCAL_ATTRIBUTES}=*))({schema.LOCAL_ATTRIBUTES}={REFRESHED}*)))",
)
_AGAIN = (
    ldap.SERVER_DOWN,
    ldap.CONNECT_ERROR,
    ldap.UNAVAILABLE,
    ldap.BUSY,
    ldap.TIMEOUT,
    ldap.TIMELIMIT_EXCEEDED,
    ldap.ADMINLIMIT_EXCEEDED,
    ldap.LOCAL_ERROR,
)
"""The directory, not the entry: try again."""
_HOPELESS = (
    ldap.UNWILLING_TO_PERFORM,
    ldap.INVALID_CREDENTIALS,
    ldap.INSUFFICIENT_ACCESS,
    ldap.STRONG_AUTH_REQUIRED,
    ldap.CONFIDENTIALITY_REQUIRED,
    ldap.REFERRAL,
)
"""The directory takes no writes from us: it is read-only, a replica, or has another administrator."""


class AdministrationError(Exception):
    """The directory could not be read or written to the end. What was written stays; the text names no mailbox."""


class StoppedError(Exception):
    """The process is to end; what was written stays."""


@dataclass(frozen=True, slots=True)
class AdministratorOptions:
    """Which directory, as whom, how patiently."""

    uri: str
    """`ldaps://host:port` of the server that takes writes, or `ldapi://` with the percent-encoded path of a socket."""
    base: str
    bind_dn: str
    password: str = field(repr=False)
    ca_file: Path | None = None
    """PEM file of the roots that verify the server; None: those of the system."""
    timeout_seconds: float = 60.0
    """For one answer: a page, or a write."""
    patience_seconds: float = 300.0
    """How long a directory that went away is waited for in the middle of the work."""


@dataclass(slots=True)
class Written:
    """What became of a plan; grows while it is written."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Entries the directory refused, by what it said (`OBJECT_CLASS_VIOLATION`); the rest of the plan goes on."""
    refused_examples: list[tuple[str, str]] = field(default_factory=list)
    """(DN, what was said) of the first of them."""

    @property
    def total(self) -> int:
        return self.added + self.changed + self.removed + sum(self.refused.values())


class Administrator:
    """One connection, made again when it is lost. For one thread; close it at the end."""

    def __init__(self, options: AdministratorOptions, stop: Event | None = None) -> None:
        """Does not connect yet. Raises ValueError for a URI that is neither ldaps nor ldapi.

        Once `stop` is set, work ends with `StoppedError` at the next entry.
        """
        if not options.uri.startswith(("ldaps://", "ldapi://")):
            raise ValueError("the directory must be reached over ldaps:// or ldapi://")
        self._options = options
        self._stop = stop or Event()
        self._connection: Any = None

    def close(self) -> None:
        if self._connection is not None:
            with suppress(ldap.LDAPError):  # it may be broken already
                self._connection.unbind_ext_s()
            self._connection = None

    def read(self, folder: Path, seen: Callable[[int], None] = lambda _: None) -> int:
        """Put every entry below the base into buckets (`HeldEntry`); how many. 0 when the base does not exist.

        `seen` is called with the number of entries after each page. Raises `AdministrationError` when the directory
        goes away meanwhile: half a directory compares with nothing.
        """
        count = 0
        with BucketWriter(folder) as buckets:
            try:
                for dn, attributes in self._entries():
                    entry = held_entry(dn, attributes)
                    buckets.add(entry.key, encode(entry))
                    count += 1
                    if count % _PAGE == 0:
                        seen(count)
            except ldap.NO_SUCH_OBJECT:
                return 0
            except ldap.LDAPError as error:
                raise AdministrationError(f"the directory could not be read ({_name(error)})") from None
        return count

    def make_base(self) -> None:
        """Create the base and those of its branches that are not there yet. Raises `AdministrationError`."""
        entries = schema.skeleton(self._options.base)
        operations = [Operation(entry.dn, {name: list(v) for name, v in entry.attributes.items()}) for entry in entries]
        for operation in operations:
            if not self._is_there(operation.dn):
                self._write([operation], self._add, (ldap.ALREADY_EXISTS,), lambda _: None, Written())

    def apply(self, plan: Plan, written: Written, seen: Callable[[int], None] = lambda _: None) -> None:
        """Write a plan: additions, changes, removals. Fills `written` as it goes, so that it is true after an error.

        `seen` is called with the number of entries done, every now and then. Raises `AdministrationError` when the
        directory takes no writes, or stays away for `patience_seconds`.
        """

        def counted(name: str) -> Callable[[Operation], None]:
            def count(_: Operation) -> None:
                setattr(written, name, getattr(written, name) + 1)

            return count

        steps: tuple[tuple[Iterable[list[Operation]], Any, tuple[Any, ...], str], ...] = (
            (plan.additions(), self._add, (ldap.ALREADY_EXISTS,), "added"),
            (plan.changes(), self._modify, (), "changed"),
            (plan.removals(), self._delete, (ldap.NO_SUCH_OBJECT,), "removed"),
        )
        for batches, send, done, name in steps:
            for batch in batches:
                self._write(batch, send, done, counted(name), written)
                seen(written.total)

    def _write(
        self,
        operations: Iterable[Operation],
        send: Callable[[Operation], int],
        done: tuple[Any, ...],
        count: Callable[[Operation], None],
        written: Written,
    ) -> None:
        """All of these, several at once; returns when each has its answer. `done`: answers that mean it was already."""
        left = deque(operations)
        while left:
            under_way: deque[tuple[int, Operation]] = deque()
            try:
                self._ensure()
                while left or under_way:
                    if self._stop.is_set() and not under_way:
                        raise StoppedError
                    while left and len(under_way) < _WINDOW and not self._stop.is_set():
                        under_way.append((send(left[0]), left[0]))
                        left.popleft()
                    message, operation = under_way[0]
                    try:
                        self._connection.result(message, 1, self._options.timeout_seconds)
                    except done:
                        pass
                    except (*_AGAIN, *_HOPELESS):
                        raise
                    except ldap.LDAPError as error:
                        _refused(written, operation, error)
                        under_way.popleft()
                        continue
                    under_way.popleft()
                    count(operation)
            except _HOPELESS as error:
                raise AdministrationError(
                    f"the directory takes no writes ({_name(error)}): it is read-only, a replica, does not "
                    "know this base, or our identity may not write"
                ) from None
            except _AGAIN:
                # Whether these arrived is unknown; each may be sent again.
                left.extendleft(operation for _, operation in reversed(under_way))
                self._reconnect()

    def _is_there(self, dn: str) -> bool:
        """Whether this entry can be read; False also when nobody answers: writing finds out why."""
        try:
            self._ensure()
            message = self._connection.search_ext(dn, ldap.SCOPE_BASE, "(objectClass=*)", ["1.1"])
            return bool(self._connection.result(message, 1, self._options.timeout_seconds)[1])
        except ldap.LDAPError:
            return False

    def _ensure(self) -> None:
        if self._connection is None:
            self._connection = self._connect()

    def _reconnect(self) -> None:
        """Raises `AdministrationError` when the directory stays away."""
        self.close()
        deadline = time.monotonic() + self._options.patience_seconds
        pause = 0.1
        while True:
            if self._stop.wait(pause):
                raise StoppedError
            try:
                self._ensure()
                return
            except _HOPELESS as error:
                raise AdministrationError(f"the directory refuses our identity ({_name(error)})") from None
            except ldap.LDAPError as error:
                if time.monotonic() > deadline:
                    raise AdministrationError(f"the directory went away ({_name(error)})") from None
                pause = min(pause * 2, 5.0)

    def _connect(self) -> Any:
        options = self._options
        connection = ldap.initialize(options.uri)
        connection.protocol_version = ldap.VERSION3
        connection.set_option(ldap.OPT_REFERRALS, 0)
        connection.set_option(ldap.OPT_NETWORK_TIMEOUT, options.timeout_seconds)
        if options.uri.startswith("ldapi://"):
            message = connection.simple_bind(options.bind_dn, options.password)
        else:
            connection.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
            if options.ca_file is not None:
                connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(options.ca_file))
            connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)  # last: it makes the options above count
            try:
                with handshake_deadline(options.uri, options.timeout_seconds):
                    message = connection.simple_bind(options.bind_dn, options.password)
            except OSError:
                raise ldap.SERVER_DOWN({"desc": "the host name has no address"}) from None
        connection.result(message, 1, options.timeout_seconds)
        return connection

    def _entries(self) -> Iterator[tuple[str, Mapping[str, list[bytes]]]]:
        """Page by page (RFC 2696). A page is asked for while the one before is looked at."""
        options = self._options
        self._ensure()
        control: Any = SimplePagedResultsControl(criticality=True, size=_PAGE, cookie=b"")  # type: ignore[no-untyped-call]

        def ask() -> int:
            found: int = self._connection.search_ext(
                options.base, ldap.SCOPE_SUBTREE, "(objectClass=*)", ["*"], serverctrls=[control]
            )
            return found

        message = ask()
        while True:
            if self._stop.is_set():
                raise StoppedError
            _, results, _, controls = self._connection.result3(message, 1, options.timeout_seconds)
            control.cookie = next((c.cookie for c in controls if c.controlType == control.controlType), b"")
            if control.cookie:
                message = ask()
            yield from ((dn, values) for dn, values in results if dn is not None)  # a referral has no DN
            if not control.cookie:
                return

    def _add(self, operation: Operation) -> int:
        message: int = self._connection.add_ext(operation.dn, list(operation.attributes.items()))
        return message

    def _modify(self, operation: Operation) -> int:
        changes = [(ldap.MOD_REPLACE, name, values or None) for name, values in operation.attributes.items()]
        message: int = self._connection.modify_ext(operation.dn, changes)
        return message

    def _delete(self, operation: Operation) -> int:
        # The overlay may have written into it since it was read (RFC 4528): then it stays
        message: int = self._connection.delete_ext(operation.dn, serverctrls=[_STILL_NATIONAL])
        return message


def _refused(written: Written, operation: Operation, error: Exception) -> None:
    written.refused[_name(error)] += 1
    if len(written.refused_examples) < _REFUSED_EXAMPLES:
        written.refused_examples.append((operation.dn, _name(error)))


def _name(error: Exception) -> str:
    return type(error).__name__
