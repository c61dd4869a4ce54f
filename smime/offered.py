"""The certificates that come along in a SignedData, which anybody may have put there (RFC 5652 §5.1).

They are bounded in size, looked at only as far as somebody means them, and read once for a message, however many
signers it has. Nothing of them stays in memory, but of signers whose path held: strangers cannot fill it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from smime.cms_read import PartyId
from smime.identity import MAX_NAME_OCTETS, REMEMBERED_CERTIFICATE_OCTETS, Identity, read_identity
from smime.strength import verifiable
from trust.certificates import mail_addresses
from trust.der import DerError
from trust.names import DistinguishedName

MAX_CERTIFICATE_OCTETS = 16 << 10
"""Of one: those of real people and authorities have 1,000 to 3,000."""
MAX_OCTETS = 256 << 10
"""Of all in one SignedData; those beyond are ignored."""
MAX_REMEMBERED = 1024


@dataclass(frozen=True)
class Offered:
    """A certificate that somebody means, and what is the same each time it comes."""

    certificate: x509.Certificate
    identity: Identity
    key: CertificatePublicKeyTypes | None
    """None when it cannot be read."""
    sound: bool
    """Whether signatures of that key mean something."""
    sha256: bytes

    @cached_property
    def addresses(self) -> tuple[str, ...]:
        """As `mail_addresses`. To be asked for when the signature holds, not before."""
        return mail_addresses(self.certificate)


class _Remembered:
    """Signers whose path held, by the DER of the certificate; the one not seen for longest goes first. Thread-safe."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Offered] = OrderedDict()
        self._lock = Lock()

    def get(self, encoded: bytes) -> Offered | None:
        with self._lock:
            known = self._known.get(encoded)
            if known is not None:
                self._known.move_to_end(encoded)
            return known

    def keep(self, offered: Offered) -> None:
        encoded = offered.identity.encoded
        if len(encoded) > REMEMBERED_CERTIFICATE_OCTETS:
            return
        with self._lock:
            self._known[encoded] = offered
            self._known.move_to_end(encoded)
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)


_remembered = _Remembered()


class Bundle:
    """The certificates of one SignedData."""

    def __init__(self, certificates: Sequence[bytes]) -> None:
        """`certificates` in DER, as received."""
        self._encoded: list[bytes] = []
        room = MAX_OCTETS
        for encoded in certificates:
            if len(encoded) <= min(MAX_CERTIFICATE_OCTETS, room):
                self._encoded.append(encoded)
                room -= len(encoded)
        self.ignored = len(certificates) - len(self._encoded)
        """How many were too large, or too many."""
        self._identities: list[Identity] | None = None
        self._read: dict[bytes, Offered | None] = {}
        self._subjects: dict[bytes, DistinguishedName | None] = {}

    def named_by(self, party: PartyId) -> Iterator[Offered]:
        """Those a signer's name means, in the order they came: several may have one key identifier."""
        for own in self._all():
            if own.is_named_by(party):
                offered = self._offered(own)
                if offered is not None:
                    yield offered

    def of_subject(self, subject: bytes) -> Iterator[Offered]:
        """Those of the very same subject (DER of the Name), in the order they came."""
        for own in self._all():
            if own.subject == subject and (offered := self._offered(own)) is not None:
                yield offered

    def above(self, offered: Offered) -> Iterator[x509.Certificate]:
        """Those that may stand between `offered` and an anchor, by their names; found as they are asked for."""
        candidates = [
            own
            for own in self._all()
            if own is not offered.identity and max(len(own.subject), len(own.issuer)) <= MAX_NAME_OCTETS
        ]
        if not candidates or len(offered.identity.issuer) > MAX_NAME_OCTETS:
            return
        wanted = [offered.certificate]
        while wanted and candidates:
            child = wanted.pop()
            issuer = _name(child.issuer)
            others: list[Identity] = []
            for own in candidates:
                if issuer is None or self._subject(own) != issuer:
                    others.append(own)
                elif (found := self._offered(own)) is not None:
                    wanted.append(found.certificate)
                    yield found.certificate
            candidates = others

    def keep(self, offered: Offered) -> None:
        """Remember a signer whose path held: the next mail is likely to bring the same certificate."""
        _remembered.keep(offered)

    def _all(self) -> list[Identity]:
        """What they say they are; those that cannot be read are as good as absent."""
        if self._identities is None:
            self._identities = []
            for encoded in self._encoded:
                with suppress(DerError):
                    self._identities.append(read_identity(encoded))
        return self._identities

    def _offered(self, own: Identity) -> Offered | None:
        if own.encoded not in self._read:
            self._read[own.encoded] = _remembered.get(own.encoded) or _read(own)
        return self._read[own.encoded]

    def _subject(self, own: Identity) -> DistinguishedName | None:
        if own.encoded not in self._subjects:
            offered = self._offered(own)
            self._subjects[own.encoded] = _name(offered.certificate.subject) if offered is not None else None
        return self._subjects[own.encoded]


def _read(own: Identity) -> Offered | None:
    """None when the certificate cannot be read, which is as good as absent."""
    try:
        certificate = x509.load_der_x509_certificate(own.encoded)
        certificate.extensions  # noqa: B018 - read lazily: what is wrong with them shows here
    except Exception:  # the parser has no common error class, and warnings may be errors
        return None
    key: CertificatePublicKeyTypes | None = None
    with suppress(ValueError, TypeError, OverflowError, UnsupportedAlgorithm):
        key = certificate.public_key()
    return Offered(
        certificate,
        own,
        key,
        verifiable(key) and not own.explicit_curve,
        hashlib.sha256(own.encoded).digest(),
    )


def _name(name: x509.Name) -> DistinguishedName | None:
    try:
        return DistinguishedName.from_x509(name)
    except Exception:  # read lazily too
        return None
