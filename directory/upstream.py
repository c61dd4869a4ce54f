"""Certificates from other people's LDAP directories, for mailboxes ours has none for.

Where a domain's directory is, the configuration says or its SRV records do (priority, weight, each server in turn).
What it holds is other people's input: sizes and numbers are bounded, and only a certificate that names the very
address, or the very domain, that was asked for is taken; whether it is believed is decided where it is used, by its
path. A directory that does not answer delays the mail; one that answers "none" does not.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ldap as python_ldap
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from ldap.filter import escape_filter_chars

from directory.entries import sort_certificates
from directory.handshake import handshake_deadline
from directory.pool import Connection, DirectoryUnavailableError, left, secure, unbind, wait
from directory.srv import SrvRecord, in_order
from trust.addresses import mail_addresses

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

_ATTRIBUTES = ("userCertificate", "userCertificate;binary", "userSMIMECertificate")
MOST_ENTRIES = 8
MOST_VALUES = 16
"""Certificates looked at in one answer."""
MOST_OCTETS = 64 * 1024
"""Of one value."""
MOST_SILENT = 1_000
MOST_BASES = 4
"""Naming contexts of a server that are searched, when no base is configured."""


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """One foreign directory, or all those that SRV records name."""

    domains: frozenset[str] = frozenset()
    """Mail domains it is asked about, lower case, exact; empty: every one."""
    servers: tuple[str, ...] = ()
    """URIs (`ldaps://`, `ldap://`), asked in this order; none: the domain's SRV records `_ldap._tcp` say."""
    base: str = ""
    """Where to search; empty: the server's naming contexts (RFC 4512 §5.1)."""
    ca_file: Path | None = None
    """PEM file of the roots that verify `ldaps` servers; None: those of the system."""
    timeout_seconds: float = 3.0
    """For one question, all servers tried."""
    found_seconds: float = 600.0
    """So long an answer is remembered; the path of a certificate is judged anew each time all the same."""
    missing_seconds: float = 60.0
    """So long "none" is."""
    rest_seconds: float = 10.0
    """So long a server that failed is not asked again; what is asked of it alone has no answer meanwhile."""
    entries: int = 10_000
    """Answers remembered at most."""


class UpstreamDirectories:
    """Several foreign directories as one `directory.resolve.Upstream`. Thread-safe."""

    def __init__(
        self,
        options: Iterable[UpstreamOptions],
        lookup: Callable[[str], Sequence[SrvRecord]] = lambda domain: (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lookup` finds a domain's LDAP servers (`directory.srv.SrvLookup`). Raises ValueError for other URIs."""
        self._directories = [_Foreign(each, lookup, clock) for each in options]

    def certificates(self, name: str) -> tuple[x509.Certificate, ...]:
        """Encryption certificates bound to this address, or to this mail domain; each once, in the order found.

        The first directory that has any answers. Raises `DirectoryUnavailableError` when none has any and one of them
        could not be asked.
        """
        domain = name.rpartition("@")[2].lower()
        failure: DirectoryUnavailableError | None = None
        for each in self._directories:
            if each.options.domains and domain not in each.options.domains:
                continue
            try:
                if found := each.certificates(name.lower(), domain):
                    return found
            except DirectoryUnavailableError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return ()


class _Foreign:
    """One `UpstreamOptions` at work."""

    def __init__(
        self,
        options: UpstreamOptions,
        lookup: Callable[[str], Sequence[SrvRecord]],
        clock: Callable[[], float],
    ) -> None:
        if not all(uri.startswith(("ldaps://", "ldap://", "ldapi://")) for uri in options.servers):
            raise ValueError("an upstream directory is reached over ldaps:// or ldap://")
        self.options = options
        self._lookup = lookup
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, tuple[x509.Certificate, ...]]] = OrderedDict()
        self._silent: dict[str, float] = {}
        """Until when servers that failed are left alone."""
        self._lock = threading.Lock()

    def certificates(self, name: str, domain: str) -> tuple[x509.Certificate, ...]:
        with self._lock:
            known = self._known.get(name)
            if known is not None and known[0] > self._clock():
                self._known.move_to_end(name)
                return known[1]
        found = self._ask(name, domain)
        seconds = self.options.found_seconds if found else self.options.missing_seconds
        with self._lock:
            self._known[name] = (self._clock() + seconds, found)
            self._known.move_to_end(name)
            while len(self._known) > self.options.entries:
                self._known.popitem(last=False)
        return found

    def _ask(self, name: str, domain: str) -> tuple[x509.Certificate, ...]:
        """What the first server says that has something to say; one that is down or slow leaves time for the next.

        When some answered and none has any, there is none, whoever else was silent.
        """
        deadline = time.monotonic() + self.options.timeout_seconds
        servers = self.options.servers or tuple(_uri(each) for each in in_order(self._lookup(domain)))
        failed = answered = False
        for position, uri in enumerate(servers):
            now = time.monotonic()
            if now >= deadline or self._rests(uri):
                failed = True
                continue
            try:
                values = self._search(uri, name, now + (deadline - now) / (len(servers) - position))
            except (ldap.LDAPError, OSError, ValueError, DirectoryUnavailableError):  # ValueError: a URI of the DNS's
                failed = True
                self._failed(uri)
                continue
            if found := _bound(values, name):
                return found
            answered = True
        if failed and not answered:
            raise DirectoryUnavailableError("no upstream directory answers")
        return ()

    def _rests(self, uri: str) -> bool:
        with self._lock:
            return self._silent.get(uri, -math.inf) > self._clock()

    def _failed(self, uri: str) -> None:
        """Leave it alone for a while: mail for addresses it knows waits, and holds up no other by asking again."""
        with self._lock:
            self._silent[uri] = self._clock() + self.options.rest_seconds
            while len(self._silent) > MOST_SILENT:
                del self._silent[next(iter(self._silent))]

    def _search(self, uri: str, name: str, deadline: float) -> list[bytes]:
        connection = ldap.initialize(uri)
        try:
            connection.protocol_version = ldap.VERSION3
            connection.set_option(ldap.OPT_REFERRALS, 0)
            connection.set_option(ldap.OPT_NETWORK_TIMEOUT, left(deadline))
            connection.set_option(ldap.OPT_SIZELIMIT, MOST_ENTRIES)
            if uri.startswith("ldaps://"):
                secure(connection, self.options.ca_file)
                with handshake_deadline(uri, left(deadline)):
                    message = connection.simple_bind("", "")
            else:
                message = connection.simple_bind("", "")
            wait(connection, message, deadline)
            bases = [self.options.base] if self.options.base else _naming_contexts(connection, deadline)
            values: list[bytes] = []
            shown = False
            for base in bases:
                with suppress(ldap.NO_SUCH_OBJECT):  # not for us to see, or not there
                    values += _certificates_of(connection, deadline, base, name)
                    shown = True
            if not shown:
                raise ldap.NO_SUCH_OBJECT  # who shows us nothing at all proves nothing of the address
            return values
        finally:
            unbind(connection)


def _uri(record: SrvRecord) -> str:
    return f"{'ldaps' if record.port == 636 else 'ldap'}://{record.target}:{record.port}"


def _naming_contexts(connection: Connection, deadline: float) -> list[str]:
    message = connection.search_ext("", ldap.SCOPE_BASE, "(objectClass=*)", ("namingContexts",))
    _, results = connection.result(message, 1, left(deadline))
    found = [value for _, values in results for value in (values or {}).get("namingContexts", ())]
    return [value.decode("utf-8", "replace") for value in found[:MOST_BASES]]


def _certificates_of(connection: Connection, deadline: float, base: str, name: str) -> list[bytes]:
    """The certificate values of the entries with this address, or this domain, in `mail`."""
    text = f"(mail={escape_filter_chars(name)})"  # type: ignore[no-untyped-call]
    message = connection.search_ext(base, ldap.SCOPE_SUBTREE, text, _ATTRIBUTES)
    entries: list[Any] = []
    try:
        while True:  # one by one, so that what came before a limit counts
            kind, results = connection.result(message, 0, left(deadline))
            entries += results
            if kind == ldap.RES_SEARCH_RESULT or len(entries) >= MOST_ENTRIES:
                break
    except ldap.SIZELIMIT_EXCEEDED:
        pass
    values = [value for dn, found in entries if dn is not None for each in found.values() for value in each]
    return [value for value in values if len(value) <= MOST_OCTETS][:MOST_VALUES]


def _bound(values: Iterable[bytes], name: str) -> tuple[x509.Certificate, ...]:
    """The encryption certificates that name exactly this address, or exactly this domain."""
    found: dict[bytes, x509.Certificate] = {}
    for certificate in sort_certificates(values)[0]:
        if names(certificate, name):
            found[certificate.public_bytes(Encoding.DER)] = certificate
    return tuple(found.values())


def names(certificate: x509.Certificate, name: str) -> bool:
    """Whether a certificate is bound to an address (rfc822Name), or to a mail domain (dNSName or rfc822Name of it).

    A certificate that names addresses speaks for those alone, also when it has a host name besides.
    """
    addresses = {each.lower() for each in mail_addresses(certificate)}
    if "@" in name:
        return name.lower() in addresses
    if any("@" in each for each in addresses):
        return False
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = alternatives.get_values_for_type(x509.DNSName) + alternatives.get_values_for_type(x509.RFC822Name)
    except (x509.ExtensionNotFound, ValueError):
        return False
    return name.lower() in {each.lower() for each in hosts}
