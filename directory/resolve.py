"""Who is behind an address: the gateway's view of the LDAP directory, and the overlay it may write there.

Blocking and thread-safe: a small pool of connections, each used by one thread at a time, each call bounded by one
deadline. A directory that does not answer is never taken for a recipient that does not exist: the first delays a
message, the second returns it for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import ldap as python_ldap
from ldap.filter import escape_filter_chars

from directory import schema
from directory.entries import READ_ATTRIBUTES, certificate_values, from_recipient, is_address, to_recipient
from directory.handshake import handshake_deadline
from directory.ldif import LdifEntry
from directory.records import MailboxKind, Recipient

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

_T = TypeVar("_T")
_Connection = Any
_Found = tuple[str, Mapping[str, list[bytes]]]

_BROKEN = (ldap.SERVER_DOWN, ldap.CONNECT_ERROR, ldap.UNAVAILABLE)
"""What a connection that died since its last use says; a fresh one may do better."""
_ORDER = {kind: position for position, kind in enumerate(MailboxKind)}


class DirectoryUnavailableError(Exception):
    """The directory did not answer in time, or not with an answer: try again later. The text holds no address."""


class DirectoryRefusedError(Exception):
    """The directory refused a write: rights or schema; trying again will not help. The text holds no address."""


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
    """For one whole call: waiting for a connection, connecting, TLS, binding, searching."""
    connections: int = 4


class Directory:
    """Reads mailboxes, publishes the overlay. Thread-safe; make one per identity and close it at the end."""

    def __init__(self, options: DirectoryOptions) -> None:
        """Does not connect yet. Raises ValueError for a URI that is neither ldaps nor ldapi."""
        if not options.uri.startswith(("ldaps://", "ldapi://")):
            raise ValueError("the directory must be reached over ldaps:// or ldapi://")
        self._options = options
        self._slots = threading.Semaphore(options.connections)
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        """One handshake at a time: see `directory.handshake`."""
        self._idle: list[_Connection] = []
        self._closed = False

    def resolve(self, address: str) -> Recipient | None:
        """The mailbox with exactly this address, upper and lower case alike; None when there is none.

        Two entries may have it (a professional and a service): the first kind in the order of `MailboxKind` wins (PER,
        ORG, APP, CAB, PATIENT), then the smallest DN. Raises `DirectoryUnavailableError`.
        """
        if not is_address(address):
            return None
        found = self._read(_equals("mail", address))
        return next((recipient for _, recipient in found if recipient.address == address.lower()), None)

    def by_identifier(self, id_nat: str) -> list[Recipient]:
        """The mailboxes of a professional (IdNat_PP) or of a structure (IdNat_Struct), in the order of `resolve`.

        Compared without case. Raises `DirectoryUnavailableError`.
        """
        if not id_nat or len(id_nat) > 64 or not id_nat.isprintable():
            return []
        return [recipient for _, recipient in self._read(_equals("IdNat", id_nat))]

    def publish(self, recipient: Recipient, red_list: bool | None = None) -> None:
        """Write one mailbox of the local overlay: create it, or make it say exactly this. Idempotent.

        A mailbox of the national register keeps the register's identity: only its certificates are replaced, and marked
        as local so that renewing the national data leaves them. `red_list` hides the mailbox from the public's address
        books (True), shows it (False) or leaves it as it is (None). Needs the administrator's identity.
        Raises `DirectoryUnavailableError`, `DirectoryRefusedError`, ValueError for an address that cannot be one.
        """
        entry = from_recipient(recipient, self._options.base, bool(red_list))

        def work(connection: _Connection, deadline: float) -> None:
            try:
                self._publish(connection, deadline, recipient, entry, red_list)
            except ldap.ALREADY_EXISTS:  # somebody published it between our search and our addition
                self._publish(connection, deadline, recipient, entry, red_list)

        self._call(work)

    def close(self) -> None:
        """Close the connections; those in use close when their call ends. Later calls raise."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            _unbind(connection)

    def _read(self, filter_text: str) -> list[tuple[str, Recipient]]:
        found = self._call(
            lambda connection, deadline: self._search(connection, deadline, filter_text, READ_ATTRIBUTES)
        )
        recipients = [
            (dn, recipient) for dn, attributes in found if (recipient := to_recipient(attributes)) is not None
        ]
        return sorted(recipients, key=lambda pair: (_ORDER[pair[1].kind], pair[0].lower()))

    def _search(
        self, connection: _Connection, deadline: float, filter_text: str, attributes: tuple[str, ...]
    ) -> list[_Found]:
        message = connection.search_ext(self._options.base, ldap.SCOPE_SUBTREE, filter_text, attributes)
        _, results = connection.result(message, 1, _left(deadline))
        return [(dn, values) for dn, values in results if dn is not None]  # a referral has no DN

    def _publish(
        self, connection: _Connection, deadline: float, recipient: Recipient, entry: LdifEntry, red_list: bool | None
    ) -> None:
        found = self._search(connection, deadline, _equals("mail", recipient.address), ("*",))
        mailboxes = [(dn, values, known) for dn, values in found if (known := to_recipient(values)) is not None]
        mailboxes.sort(key=lambda one: (_ORDER[one[2].kind], one[0].lower()))
        national = next((one for one in mailboxes if one[1].get(schema.SOURCE) == [schema.NATIONAL]), None)
        if national is not None:
            _modify(connection, deadline, national[0], national[1], _overlay(recipient, national[1], red_list))
            return
        same = next((values for dn, values, known in mailboxes if known.kind is recipient.kind), None)
        hidden = next((values["listeRouge"] for _, values, _ in mailboxes if "listeRouge" in values), None)
        attributes = dict(entry.attributes)
        if red_list is None and hidden:
            attributes["listeRouge"] = tuple(hidden)
        if same is None:
            self._add(connection, deadline, LdifEntry(entry.dn, attributes))
        else:
            changes = {name: attributes.get(name, ()) for name in {*attributes, *same} - {"objectClass", "mail"}}
            _modify(connection, deadline, entry.dn, same, changes)
        for dn, _, known in mailboxes:
            if known.kind is not recipient.kind:  # the mailbox changed its kind, hence its branch
                _wait(connection, connection.delete_ext(dn), deadline)

    def _add(self, connection: _Connection, deadline: float, entry: LdifEntry) -> None:
        modlist = [(name, list(values)) for name, values in entry.attributes.items()]
        _wait(connection, connection.add_ext(entry.dn, modlist), deadline)

    def _call(self, work: Callable[[_Connection, float], _T]) -> _T:
        """Run `work` on a connection of the pool within one deadline; once more when the connection proves dead."""
        deadline = time.monotonic() + self._options.timeout_seconds
        if not self._slots.acquire(timeout=self._options.timeout_seconds):
            raise DirectoryUnavailableError("every connection to the directory is busy")
        try:
            while True:
                connection = self._take()
                pooled = connection is not None
                try:
                    if connection is None:
                        connection = self._connect(deadline)
                    result = work(connection, deadline)
                except ldap.LDAPError as error:
                    _unbind(connection)
                    if pooled and isinstance(error, _BROKEN):
                        continue
                    raise _translate(error) from None  # its text may hold an address
                except BaseException:
                    _unbind(connection)
                    raise
                self._give_back(connection)
                return result
        finally:
            self._slots.release()

    def _take(self) -> _Connection | None:
        with self._lock:
            if self._closed:
                raise DirectoryUnavailableError("the directory client is closed")
            return self._idle.pop() if self._idle else None

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        _unbind(connection)

    def _connect(self, deadline: float) -> _Connection:
        options = self._options
        connection = ldap.initialize(options.uri)
        connection.protocol_version = ldap.VERSION3
        connection.set_option(ldap.OPT_REFERRALS, 0)
        connection.set_option(ldap.OPT_NETWORK_TIMEOUT, _left(deadline))
        if options.uri.startswith("ldapi://"):
            message = connection.simple_bind(options.bind_dn, options.password)
        else:
            connection.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
            if options.ca_file is not None:
                connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(options.ca_file))
            connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)  # last: it makes the options above count
            if not self._connecting.acquire(timeout=_left(deadline)):
                raise DirectoryUnavailableError("the directory does not answer (connecting)")
            try:
                with handshake_deadline(options.uri, _left(deadline)):
                    message = connection.simple_bind(options.bind_dn, options.password)
            except OSError:
                raise DirectoryUnavailableError("the directory's host name has no address") from None
            finally:
                self._connecting.release()
        _wait(connection, message, deadline)
        return connection


def _equals(attribute: str, value: str) -> str:
    """An equality filter; the value cannot break out of it (RFC 4515 §3)."""
    return f"({attribute}={escape_filter_chars(value)})"  # type: ignore[no-untyped-call]


def _overlay(
    recipient: Recipient, national: Mapping[str, list[bytes]], red_list: bool | None
) -> dict[str, tuple[bytes, ...]]:
    """What the overlay wants of a national entry, an empty tuple for an attribute to remove."""
    certificates = tuple(certificate_values(recipient))
    hidden = national.get("listeRouge", []) == [b"TRUE"] if red_list is None else red_list
    owned = [b"userCertificate"] if certificates else []
    if hidden:
        owned.append(b"listeRouge")
    return {
        schema.CERTIFICATE: certificates,
        "listeRouge": (b"TRUE",) if hidden else (),
        schema.LOCAL_ATTRIBUTES: tuple(owned),
    }


def _modify(
    connection: _Connection,
    deadline: float,
    dn: str,
    present: Mapping[str, list[bytes]],
    wanted: Mapping[str, tuple[bytes, ...]],
) -> None:
    """Replace the attributes that differ (RFC 4511 §4.6), in one modification; nothing when none does."""
    changes = [
        (ldap.MOD_REPLACE, name, list(values) or None)
        for name, values in wanted.items()
        if set(values) != set(present.get(name, ()))
    ]
    if changes:
        _wait(connection, connection.modify_ext(dn, changes), deadline)


def _wait(connection: _Connection, message: int, deadline: float) -> None:
    connection.result(message, 1, _left(deadline))


def _left(deadline: float) -> float:
    """Seconds left, never 0 or less: libldap takes those for `do not wait` or `for ever`."""
    return max(deadline - time.monotonic(), 0.001)


def _unbind(connection: _Connection | None) -> None:
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


def _translate(error: Exception) -> DirectoryUnavailableError | DirectoryRefusedError:
    """Our exception for libldap's.

    NO_SUCH_OBJECT is no answer either: it is what a directory says that was never loaded, or that gives us no rights.
    """
    name = type(error).__name__
    if isinstance(error, _REFUSALS):
        return DirectoryRefusedError(f"the directory refused to write ({name}); check the identity and its rights")
    if isinstance(error, ldap.INVALID_CREDENTIALS):
        return DirectoryUnavailableError("the directory refuses our identity; check its DN and password")
    return DirectoryUnavailableError(f"the directory does not answer ({name})")
