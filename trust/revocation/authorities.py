"""Who may speak for an issuer about its certificates (RFC 5280 §6.3.3 (f)): itself, or who has the same anchor."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from trust.facts import Facts, read
from trust.revocation.naming import NameKey, name_key
from trust.revocation.signatures import issued_by

MAX_AUTHORITIES = 1024
MAX_CHAIN = 5
MAX_ALIKE = 16
"""Certificates of one name that are looked at."""
_MAX_CLIMBED = 64
"""Certificates looked at on the way up."""
_TOLERANCE = timedelta(seconds=1)
_LOOK_AGAIN = timedelta(minutes=1)
"""After which somebody who had no chain may have one: a certificate becomes valid, an authority is met."""

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, eq=False)
class Authority:
    """An issuer as it is compared, read once."""

    certificate: x509.Certificate
    facts: Facts
    fingerprint: bytes
    name: NameKey
    key: bytes
    """SubjectPublicKeyInfo in DER."""

    @property
    def encoded(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)


class Authorities:
    """The authorities of one network, and who among them speaks for whom. Thread-safe."""

    def __init__(self, anchors: Iterable[x509.Certificate], intermediates: Iterable[x509.Certificate]) -> None:
        self._anchors = tuple(anchors)
        self._configured = (*self._anchors, *intermediates)
        self._read: OrderedDict[bytes, Authority] = OrderedDict()
        """By the digest of the certificate."""
        self._chains: OrderedDict[tuple[bytes, bytes], tuple[tuple[x509.Certificate, ...], datetime]] = OrderedDict()
        self._lock = Lock()

    def of(self, certificate: x509.Certificate) -> Authority:
        """A certificate as an authority; raises ValueError when it cannot be read or its key is not accepted."""
        facts = read(certificate)
        if not isinstance(facts, Facts) or facts.key is None:
            raise ValueError("no authority's certificate")
        known = self._read.get(facts.digest)
        if known is None:
            key = facts.key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
            known = Authority(certificate, facts, facts.digest, name_key(facts.subject_der), key)
            with self._lock:
                remember(self._read, facts.digest, known, MAX_AUTHORITIES)
        return known

    def named(
        self, name: NameKey, first: Iterable[x509.Certificate] = (), last: Iterable[x509.Certificate] = ()
    ) -> list[x509.Certificate]:
        """Authorities of that name: among those given first, those configured, and those given last."""
        found: dict[x509.Certificate, None] = {}
        for each in (*first, *self._configured, *last):
            try:
                if self.of(each).name == name:
                    found[each] = None
            except ValueError:
                continue
        return list(found)[:MAX_ALIKE]

    def chain(self, signer: Authority, authority: Authority, now: datetime) -> tuple[x509.Certificate, ...]:
        """From a signer upwards, by authorities with the right to issue, all of them valid now, to `authority` or to an
        anchor that is above `authority` too; empty when there is no such chain. Signatures are verified once.

        The anchor must be the same one: an authority of the same name below another anchor is somebody else.
        """
        key = (signer.fingerprint, authority.fingerprint)
        known = self._chains.get(key)
        if known is None or known[1] < now:
            goals = {authority.certificate, *self._anchors_above(authority)}
            found = self._climb(signer.certificate, goals, authority, now)
            ends = min((self.of(each).facts.not_after for each in found), default=now + _LOOK_AGAIN)
            known = found, ends
            with self._lock:
                remember(self._chains, key, known, MAX_AUTHORITIES)
        return known[0]

    def _anchors_above(self, authority: Authority) -> set[x509.Certificate]:
        """Which anchors an authority that was found on a path to one may have."""
        if len(self._anchors) == 1:
            return set(self._anchors)
        return {each for each in self._anchors if self._climb(authority.certificate, {each}, authority, None)}

    def _climb(
        self, certificate: x509.Certificate, goals: set[x509.Certificate], first: Authority, now: datetime | None
    ) -> tuple[x509.Certificate, ...]:
        """The shortest chain from a certificate to one of `goals`; `now` None: whatever their dates."""
        waiting: deque[tuple[x509.Certificate, ...]] = deque([(certificate,)])
        seen = {certificate}
        while waiting:
            path = waiting.popleft()
            last = path[-1]
            if now is not None and last != first.certificate and not _in_time(self.of(last).facts, now):
                continue
            if last in goals:
                return path
            if len(path) > MAX_CHAIN:
                continue
            for above in self._above(last, first):
                if above not in seen and len(seen) < _MAX_CLIMBED and issued_by(last, above):
                    seen.add(above)
                    waiting.append((*path, above))
        return ()

    def _above(self, certificate: x509.Certificate, first: Authority) -> list[x509.Certificate]:
        """Authorities that may issue, and by name may have issued, one: `first`, those configured, those met before."""
        with self._lock:
            met = [each.certificate for each in self._read.values()]
        wanted = name_key(self.of(certificate).facts.issuer_der)
        return [
            each
            for each in self.named(wanted, (first.certificate,), met)
            if each in self._anchors or _may_issue(self.of(each).facts)
        ]


def remember(memory: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    """Put into a bounded memory; the caller holds the lock."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)


def _may_issue(facts: Facts) -> bool:
    return facts.basic_constraints is not None and facts.basic_constraints[0] and facts.may_sign_certificates


def _in_time(facts: Facts, now: datetime) -> bool:
    return facts.not_before <= now + _TOLERANCE and now - _TOLERANCE <= facts.not_after
