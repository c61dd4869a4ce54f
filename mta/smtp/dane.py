"""DANE for SMTP (RFC 7672): a domain whose DNS is signed says which certificate its mail hosts have.

Only answers that DNSSEC proves count, the MX records and the host's addresses included: a TLSA record anybody could
have put there says nothing. What it says is demanded besides what the trust list demands, never instead.
"""

from __future__ import annotations

import hashlib
import ssl

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mta import refusals
from mta.dns import Answer, MxRecord, State, TlsaRecord
from mta.smtp.mta_sts import certified_for
from mta.smtp.routes import Doubt, Lookup
from trust.refusals import Refused
from trust.tls import verified_path

_ANCHOR, _END_ENTITY = 2, 3
_DIGESTS = {1: hashlib.sha256, 2: hashlib.sha512}


class Dane:
    """`require` is a requirement of `mta.smtp.routes`."""

    def __init__(self, resolver: Lookup, port: int = 25) -> None:
        self._resolver = resolver
        self._port = port

    async def require(
        self, domain: str, answer: Answer, exchanges: tuple[MxRecord, ...]
    ) -> dict[str, tuple[Doubt, ...]] | Refused:
        """See `mta.smtp.routes.Requirements`. A host whose TLSA records cannot be asked for is left out: somebody may
        be keeping them from us (RFC 7672 §2.1.3)."""
        found: dict[str, tuple[Doubt, ...]] = {}
        for each in exchanges:
            doubts = await self._of_host(each.exchange, domain) if answer.authenticated else ()
            if doubts is not None:
                found[each.exchange] = doubts
        if not found:
            return Refused(refusals.DNS_UNAVAILABLE, f"TLSA of {domain}")
        return found

    async def _of_host(self, host: str, domain: str) -> tuple[Doubt, ...] | None:
        """None when nobody could say."""
        addresses = [await self._resolver.lookup(host, kind) for kind in ("A", "AAAA")]
        secure = [each for each in addresses if each.state is State.FOUND and each.authenticated]
        if not secure:
            return ()  # RFC 7672 §2.2.2: without a secure address there is no secure TLSA
        # a host that is an alias: the records of what it stands for first, else its own
        for base in dict.fromkeys((secure[0].name or host, host)):
            answer = await self._resolver.lookup(f"_{self._port}._tcp.{base}", "TLSA")
            if answer.state is State.TEMPORARY:
                return None
            if answer.associations and answer.authenticated:
                usable = tuple(each for each in answer.associations if _usable(each))
                return (_doubt(host, (base, host, domain), usable),) if usable else ()
        return ()


def _usable(record: TlsaRecord) -> bool:
    """RFC 7672 §3.1.3: usages 0 and 1 mean nothing for SMTP."""
    size = {0: 0, 1: 32, 2: 64}.get(record.matching)
    right_size = size is not None and (len(record.data) == size if size else bool(record.data))
    return record.usage in (_ANCHOR, _END_ENTITY) and record.selector in (0, 1) and right_size


def _doubt(host: str, names: tuple[str, ...], records: tuple[TlsaRecord, ...]) -> Doubt:
    """`names`: those a certificate below a trust anchor may bear (RFC 7672 §3.2.2)."""

    def doubt(session: ssl.SSLObject) -> Refused | None:
        # the path that was verified: anybody can put somebody's anchor beside a certificate it has not issued
        path = verified_path(session)
        for record in records:
            if record.usage == _END_ENTITY and path and matches(record, path[0]):
                return None
            # a trust anchor says nothing about names: those are looked at (RFC 7672 §3.1.2)
            anchored = record.usage == _ANCHOR and any(matches(record, each) for each in path[1:])
            if anchored and any(certified_for(session, name) for name in names):
                return None
        return Refused(refusals.HOST_UNPROVEN, f"DANE: {host}")

    return doubt


def matches(record: TlsaRecord, certificate: bytes) -> bool:
    """Whether a certificate (DER) is the one a record means (RFC 6698 §2.1)."""
    selected = certificate
    if record.selector == 1:
        try:
            key = x509.load_der_x509_certificate(certificate).public_key()
            selected = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, x509.InvalidVersion, TypeError):
            return False
    digest = _DIGESTS.get(record.matching)
    return (selected if digest is None else digest(selected).digest()) == record.data
