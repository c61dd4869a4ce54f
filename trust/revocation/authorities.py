"""Who may speak for an issuer about its certificates (RFC 5280 §6.3.3 (f)): itself, or who has the same anchors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from trust.revocation.naming import NameKey, name_key
from trust.revocation.published import is_authority
from trust.revocation.signatures import issued_by

MAX_AUTHORITIES = 1024
MAX_CHAIN = 5
MAX_ALIKE = 16
"""Certificates of one name that are looked at."""
_TOLERANCE = timedelta(seconds=1)
_NEVER = datetime.min.replace(tzinfo=UTC)
_ALWAYS = datetime.max.replace(tzinfo=UTC)

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True, eq=False)
class Authority:
    """An issuer as it is compared, read once."""

    certificate: x509.Certificate
    encoded: bytes
    fingerprint: bytes
    name: NameKey
    key: bytes
    """SubjectPublicKeyInfo in DER."""


class Authorities:
    """The authorities of one network, and who among them speaks for whom. Thread-safe."""

    def __init__(self, anchors: Iterable[x509.Certificate], intermediates: Iterable[x509.Certificate]) -> None:
        self._anchors = tuple(anchors)
        self.all = (*self._anchors, *intermediates)
        self._read: OrderedDict[x509.Certificate, Authority] = OrderedDict()
        self._chains: OrderedDict[tuple[bytes, bytes], datetime] = OrderedDict()
        self._lock = Lock()

    def of(self, certificate: x509.Certificate) -> Authority:
        """A certificate as an authority; raises ValueError and others when it cannot be read."""
        known = self._read.get(certificate)
        if known is None:
            known = Authority(
                certificate,
                certificate.public_bytes(serialization.Encoding.DER),
                certificate.fingerprint(hashes.SHA256()),
                name_key(certificate.subject.public_bytes()),
                certificate.public_key().public_bytes(
                    serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
                ),
            )
            with self._lock:
                remember(self._read, certificate, known, MAX_AUTHORITIES)
        return known

    def is_anchor(self, certificate: x509.Certificate) -> bool:
        return certificate in self._anchors

    def named(self, name: NameKey) -> list[x509.Certificate]:
        """Authorities of that name."""
        return [each for each in self.all if self.of(each).name == name][:MAX_ALIKE]

    def above(self, certificate: x509.Certificate, first: Authority) -> list[x509.Certificate]:
        """Authorities that may issue, and by name may have issued, one; `first` is looked at first."""
        wanted = name_key(certificate.issuer.public_bytes())
        found = [first.certificate] if first.name == wanted else []
        return [each for each in (*found, *self.named(wanted)) if each != certificate and _may_issue(each)]

    def chains_up(self, signer: Authority, authority: Authority, now: datetime) -> bool:
        """Whether a signer chains, by authorities with the right to issue, to an anchor or to `authority`; all of them
        valid now. Signatures are verified once."""
        key = (signer.fingerprint, authority.fingerprint)
        ends = self._chains.get(key)
        if ends is None or _NEVER < ends < now:
            ends = self._climb(signer.certificate, authority, MAX_CHAIN, now)
            with self._lock:
                remember(self._chains, key, ends, MAX_AUTHORITIES)
        return now <= ends

    def _climb(self, certificate: x509.Certificate, authority: Authority, left: int, now: datetime) -> datetime:
        """Until when the best chain upwards is valid; the beginning of time when there is none."""
        if not _in_time(certificate, now) or not left:
            return _NEVER
        own = certificate.not_valid_after_utc
        if self.is_anchor(certificate):
            return own
        best = _NEVER
        for above in self.above(certificate, authority):
            if best < own and issued_by(certificate, above):
                until = _ALWAYS if above == authority.certificate else self._climb(above, authority, left - 1, now)
                best = max(best, min(own, until))
        return best


def remember(memory: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> None:
    """Put into a bounded memory; the caller holds the lock."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)


def _may_issue(certificate: x509.Certificate) -> bool:
    extensions = certificate.extensions
    if not is_authority(extensions):
        return False
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def _in_time(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now + _TOLERANCE and now - _TOLERANCE <= certificate.not_valid_after_utc
