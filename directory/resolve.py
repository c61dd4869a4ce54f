"""Who is behind an address or an identifier: the gateway's view of the LDAP directory, and the overlay it may write.

Blocking and thread-safe: a small pool of connections, each used by one thread at a time, each call bounded by one
deadline (`directory.pool`). A directory that does not answer is never taken for a recipient that does not exist: the
first delays a message, the second returns it for ever.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

import ldap as python_ldap
from cryptography import x509
from ldap.filter import escape_filter_chars

from directory.cache import ResolveCache
from directory.choosing import by_preference, is_usable, newest_valid, of_department
from directory.entries import is_address, sort_certificates
from directory.identifiers import MAX_LENGTH, id_nats
from directory.offered import Evidence, OfferOutcome, judge, keep
from directory.pool import (
    Connection,
    DirectoryOptions,
    DirectoryRefusedError,
    DirectoryUnavailableError,
    NothingLoadedError,
    Pool,
    ServerState,
    Work,
    left,
)
from directory.publishing import domain_key, is_domain, publish, publish_domain, set_rank, withdraw
from directory.reading import EXPLAINED_ATTRIBUTES, READ_ATTRIBUTES, Mailbox, certificates_in, read_mailbox
from directory.records import MailboxKind, Recipient, with_domain_certificates
from directory.search import PAGE, SearchPage, search
from directory.why import Explanation, Trace, tell_certificates, tell_mailbox

__all__ = [
    "Directory",
    "DirectoryOptions",
    "DirectoryRefusedError",
    "DirectoryUnavailableError",
    "Upstream",
]

ldap: Any = python_ldap
"""python-ldap has no type annotations."""

_T = TypeVar("_T")
_PROOF_SECONDS = 5.0
"""So long a server that was seen to hold mailboxes is believed when it finds none."""
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_Found = tuple[str, Mapping[str, list[bytes]]]
_ORDER = {kind: position for position, kind in enumerate(MailboxKind)}


class Upstream(Protocol):
    """Where certificates are asked for that the directory does not hold (`directory.upstream`)."""

    def certificates(self, name: str) -> Sequence[x509.Certificate]:
        """Encryption certificates bound to this address, or to this mail domain. Raises `DirectoryUnavailableError`."""
        ...


class Directory:
    """Reads mailboxes, publishes the overlay. Thread-safe; make one per identity and close it at the end."""

    def __init__(
        self,
        options: DirectoryOptions,
        upstream: Upstream | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Does not connect yet. Raises ValueError for a URI that is neither ldaps nor ldapi."""
        self._options = options
        self._pool = Pool(options)
        self._cache = ResolveCache(options.cache_entries, options.cache_seconds, options.negative_seconds)
        self._upstream = upstream
        self._clock = clock

    def resolve(self, address: str) -> Recipient | None:
        """The mailbox with exactly this address, upper and lower case alike; None when there is none.

        Two entries may have it (a professional and a service): the first kind in the order of `MailboxKind` wins (PER,
        ORG, APP, CAB, PATIENT), then the smallest DN. A mailbox without a valid encryption certificate of its own gets
        those of its domain, or what `Upstream` knows. Raises `DirectoryUnavailableError`.
        """
        if not is_address(address):
            return None
        name = address.lower()
        known = self._cache.get(name)
        if known is not None:
            return known[0]
        generation, asked_at = self._cache.generation, self._cache.now()
        found = self._resolve(name)
        self._cache.put(name, found, generation, asked_at)
        return found

    def by_identifier(self, id_nat: str, system: str = "") -> list[Recipient]:
        """The mailboxes of a professional (RPPS, ADELI, any IdNat_PP) or of a structure (FINESS, SIRET, IdNat_Struct).

        With or without type digit, see `directory.identifiers`; compared without case; in the order of `resolve`.
        Raises `DirectoryUnavailableError`.
        """
        return [mailbox.recipient for mailbox in self._identified(id_nat, system, READ_ATTRIBUTES)]

    def preferred(self, id_nat: str, structure: str = "", system: str = "") -> Recipient | None:
        """The mailbox a professional or a structure is to be written to; None when there is none.

        That of the `structure` concerned first (FINESS, SIRET), then by rank; with certificates as `resolve` finds
        them. None too when the number stands for several holders (nine digits may be a FINESS, an ADELI or a SIREN):
        `system` tells which. Raises `DirectoryUnavailableError`.
        """
        mailboxes = {each.recipient: each for each in self._identified(id_nat, system, READ_ATTRIBUTES)}
        if len({each.id_nat.upper() for each in mailboxes}) > 1:
            return None
        ordered = by_preference(mailboxes, structure)
        return self._chosen(mailboxes[ordered[0][0]], None) if ordered else None

    def by_department(self, organisation: str, department: str = "") -> list[Recipient]:
        """The mailboxes of an organisation's department, the best match first.

        `organisation` is a FINESS, a SIRET (with or without type digit) or the name the register has; names are
        compared without case, departments also without accents and punctuation. Persons' mailboxes are not among them.
        Raises `DirectoryUnavailableError`.
        """
        organisation = organisation.strip()
        if not organisation or len(organisation) > 256 or not organisation.isprintable():
            return []
        named = [_equals("IdNatStruct", each) for each in id_nats(organisation)] + [_equals("o", organisation)]
        kinds = [_equals("TypeBAL", kind.value) for kind in (MailboxKind.ORG, MailboxKind.CAB, MailboxKind.APP)]
        found = self._ask(f"(&{_any(named)}{_any(kinds)})", READ_ATTRIBUTES)
        return of_department((mailbox.recipient for mailbox in found.mailboxes), department)

    def search(self, text: str, page: int = 1, size: int = PAGE) -> SearchPage:
        """The mailboxes that answer a few words typed by hand, the best first; see `directory.search.search`.

        Raises `DirectoryUnavailableError`.
        """
        return search(self._pool, self._options.base, text, page, size)

    def explain(self, question: str, structure: str = "", system: str = "") -> Explanation:
        """What `resolve` (an address) or `preferred` (an identifier) answers, and every step that led there.

        Asks the directory anew, whatever is remembered. Raises `DirectoryUnavailableError`.
        """
        trace = Trace()
        if "@" in question:
            if not is_address(question):
                trace.say("address", "this can be no mail address: one @, printable ASCII, at most 254 octets")
                return trace.answer(question, None)
            return trace.answer(question, self._resolve(question.lower(), trace))
        candidates = id_nats(question, system)
        trace.say("identifier", f"looked for as {', '.join(candidates)}" if candidates else "this is no identifier")
        mailboxes = {each.recipient: each for each in self._identified(question, system, EXPLAINED_ATTRIBUTES, trace)}
        holders = sorted({each.id_nat.upper() for each in mailboxes})
        if len(holders) > 1:
            trace.say("ambiguous", f"it stands for {' and '.join(holders)}: say which numbering is meant (--system)")
            return trace.answer(question, None)
        ordered = by_preference(mailboxes, structure)
        for position, (recipient, reason) in enumerate(ordered):
            trace.say("preferred" if not position else "passed over", f"{recipient.address}: {reason}")
        if not ordered:
            return trace.answer(question, None)
        chosen = mailboxes[ordered[0][0]]
        tell_mailbox(trace, chosen)
        return trace.answer(question, self._chosen(chosen, None, trace))

    def check(self) -> bool:
        """Whether the directory answers and holds mailboxes; nothing remembered counts."""

        def work(connection: Connection, deadline: float) -> None:
            _holds_mailboxes(connection, self._options.base, deadline)

        try:
            self._pool.read(work)
        except DirectoryUnavailableError:
            return False
        return True

    def servers(self) -> tuple[ServerState, ...]:
        """How each server fares."""
        return self._pool.states()

    def publish(self, recipient: Recipient, red_list: bool | None = None, *, certificates: bool = True) -> None:
        """Write one mailbox of the local overlay: create it, or make it say exactly this. Idempotent.

        A mailbox of the national register keeps the register's identity: only its certificates are replaced, and marked
        as local so that renewing the national data leaves them. `red_list` hides the mailbox from the public's address
        books (True), shows it (False) or leaves it as it is (None). Without `certificates` those of the entry stay as
        they are, whoever they are from. Needs the administrator's identity. Raises `DirectoryUnavailableError`,
        `DirectoryRefusedError`, ValueError for an address that cannot be one.
        """
        if not is_address(recipient.address):
            raise ValueError("a mailbox cannot be published without a valid address")
        base = self._options.base
        self.write(lambda connection, deadline: publish(connection, deadline, base, recipient, red_list, certificates))

    def withdraw(self, address: str) -> bool:
        """A mailbox is no more: its entry of the local overlay goes; of one of the national register, which says itself
        when it ends, the certificates that we put there. False when there was none. Idempotent.

        Needs the administrator's identity. Raises as `publish`.
        """
        if not is_address(address):
            return False
        base = self._options.base
        return self.write(lambda connection, deadline: withdraw(connection, deadline, base, address.lower()))

    def publish_domain(self, domain: str, certificates: Sequence[x509.Certificate]) -> None:
        """From now on these stand for every mailbox of the mail domain that has none of its own; none: remove them.

        Needs the administrator's identity. Raises as `publish`.
        """
        if not _DOMAIN.fullmatch(domain) or not is_address(f"x@{domain}"):
            raise ValueError("this is no mail domain")
        base = self._options.base
        self.write(lambda connection, deadline: publish_domain(connection, deadline, base, domain, certificates))

    def set_rank(self, address: str, rank: int | None) -> bool:
        """Say where a mailbox stands among its holder's: 1 is written to first, None: nowhere in particular.

        False when there is no such mailbox. The national register never changes it. Raises as `publish`.
        """
        if not is_address(address):
            return False
        return self.write(
            lambda connection, deadline: set_rank(connection, deadline, self._options.base, address.lower(), rank)
        )

    def offer_certificate(self, address: str, certificate: x509.Certificate, evidence: Evidence) -> OfferOutcome:
        """Keep a certificate learned from signed mail or upstream for this mailbox, when the evidence bears it.

        Only when path, revocation and author agree, and never beside or over one that somebody, or the register, put
        there (`directory.offered`). Needs an identity that may write. Raises as `publish`.
        """
        refused = judge(address, certificate, evidence)
        if refused is not None:
            return refused
        base = self._options.base
        return self.write(lambda connection, deadline: keep(connection, deadline, base, address, certificate, evidence))

    def write(self, work: Work[_T]) -> _T:
        """Run `work` on the first server; what it returns. For the parts of this package that write."""
        try:
            return self._pool.write(work)
        finally:
            self._cache.clear()

    def close(self) -> None:
        """Close the connections; those in use close when their call ends. Later calls raise."""
        self._pool.close()

    def _resolve(self, address: str, trace: Trace | None = None) -> Recipient | None:
        wanted = READ_ATTRIBUTES if trace is None else EXPLAINED_ATTRIBUTES
        domain = address.rpartition("@")[2]
        filter_text = _any([_equals("mail", address), _equals("IdNat", domain_key(domain))])
        found = self._ask(filter_text, wanted, trace, address)
        mailboxes = [mailbox for mailbox in found.mailboxes if mailbox.recipient.address == address]
        if trace is not None:
            trace.say("found", f"{len(mailboxes)} entries have this address")
            for position, mailbox in enumerate(mailboxes):
                if position:
                    trace.say("passed over", f"{mailbox.dn}: {mailboxes[0].recipient.kind.value} comes first")
                else:
                    tell_mailbox(trace, mailbox)
        return self._chosen(mailboxes[0], found.of_domain, trace) if mailboxes else None

    def _chosen(
        self, mailbox: Mailbox, of_domain: tuple[x509.Certificate, ...] | None, trace: Trace | None = None
    ) -> Recipient:
        """The mailbox with the certificates it is to be encrypted to, its own before the domain's before others'.

        `of_domain`: the directory's certificates of its domain; None: not asked for yet.
        """
        now = self._clock()
        if trace is not None:
            tell_certificates(trace, mailbox, now)
        recipient = mailbox.recipient
        own = recipient.encryption_certificates
        if own and is_usable(own[0], now):
            return recipient
        if of_domain is None:
            of_domain = self._ask(_equals("IdNat", domain_key(recipient.domain)), READ_ATTRIBUTES, trace).of_domain
        local = newest_valid(of_domain, now)
        if local and is_usable(local[0], now):
            if trace is not None:
                trace.say("domain", f"the directory's certificate of {recipient.domain} stands for the mailbox's")
            return with_domain_certificates(recipient, local)
        if trace is not None:
            trace.say("domain", f"the directory holds no valid certificate of {recipient.domain}")
        if self._upstream is None or recipient.kind is MailboxKind.PATIENT:  # whose address is a health identity
            return recipient
        for name in (recipient.address, recipient.domain):
            others = newest_valid(tuple(self._upstream.certificates(name)), now)
            usable = bool(others) and is_usable(others[0], now)
            if trace is not None:
                trace.say("upstream", f"{name}: {len(others)} certificates" + ("" if usable else ", none valid"))
            if usable:
                return with_domain_certificates(recipient, others, whole_domain=name == recipient.domain)
        return recipient

    def _identified(
        self, identifier: str, system: str, attributes: tuple[str, ...], trace: Trace | None = None
    ) -> tuple[Mailbox, ...]:
        if not identifier or len(identifier) > MAX_LENGTH or not identifier.isprintable():
            return ()
        candidates = id_nats(identifier, system)
        if not candidates:
            return ()
        return self._ask(_any([_equals("IdNat", each) for each in candidates]), attributes, trace).mailboxes

    def _ask(
        self, filter_text: str, attributes: tuple[str, ...], trace: Trace | None = None, address: str = ""
    ) -> _Answer:
        """What a filter finds. `address`: the one asked for, for entries that have several."""
        base = self._options.base
        now = self._clock()

        def work(connection: Connection, deadline: float) -> _Answer:
            answer = _answer(_search(connection, deadline, base, filter_text, attributes), now, address)
            moment = time.monotonic()
            if answer.mailboxes:
                connection.relais_loaded = moment
            elif moment - getattr(connection, "relais_loaded", -math.inf) > _PROOF_SECONDS:
                # "None" proves nothing of a server that was restarted empty, or is being emptied this very moment.
                _holds_mailboxes(connection, base, deadline)
                connection.relais_loaded = moment
            return answer

        answer, server = self._pool.read(work)
        if trace is not None:
            trace.say("asked", f"{server}, {filter_text}")
        return answer


@dataclass(frozen=True, slots=True)
class _Answer:
    mailboxes: tuple[Mailbox, ...]
    """In the order of `resolve`."""
    of_domain: tuple[x509.Certificate, ...]
    """Certificates of the mail domain asked about."""


def _answer(found: list[_Found], now: datetime, address: str) -> _Answer:
    mailboxes = []
    of_domain: tuple[x509.Certificate, ...] = ()
    for dn, values in found:
        if (mailbox := read_mailbox(dn, values, now, address)) is not None:
            mailboxes.append(mailbox)
        elif is_domain(values):
            of_domain = sort_certificates(certificates_in(values))[0]
    if len(mailboxes) > 1:
        mailboxes.sort(key=lambda each: (_ORDER[each.recipient.kind], each.dn.lower()))
    return _Answer(tuple(mailboxes), of_domain)


def _search(
    connection: Connection,
    deadline: float,
    base: str,
    filter_text: str,
    attributes: tuple[str, ...],
    scope: int = ldap.SCOPE_SUBTREE,
) -> list[_Found]:
    """The entries; raises `ldap.REFERRAL` when there are none here and the server says that others may have some."""
    message = connection.search_ext(base, scope, filter_text, attributes)
    _, results = connection.result(message, 1, left(deadline))
    found = [(dn, values) for dn, values in results if dn is not None]  # a continuation reference has no DN
    if len(found) != len(results) and not found:
        raise ldap.REFERRAL
    return found


def _holds_mailboxes(connection: Connection, base: str, deadline: float) -> None:
    """Raises `NothingLoadedError` when the directory holds no mailbox at all."""
    message = connection.search_ext(base, ldap.SCOPE_SUBTREE, "(objectClass=mssanteBAL)", ("1.1",), sizelimit=1)
    try:
        _, results = connection.result(message, 1, left(deadline))
    except ldap.SIZELIMIT_EXCEEDED:
        return
    if not any(dn is not None for dn, _ in results):
        raise NothingLoadedError


def _equals(attribute: str, value: str) -> str:
    """An equality filter; the value cannot break out of it (RFC 4515 §3)."""
    return f"({attribute}={escape_filter_chars(value)})"  # type: ignore[no-untyped-call]


def _any(filters: Sequence[str]) -> str:
    return filters[0] if len(filters) == 1 else f"(|{''.join(filters)})"
