"""The bytes by which CMS names a certificate: read from its own DER, never re-encoded from parsed names.

Nothing here parses a whole certificate: those that come along with strangers' mail are only looked at as far as is
needed to see that nobody means them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from smime import oids
from smime.cms_read import Algorithm, PartyId, read_algorithm
from trust import der
from trust.der import DerError, Element, context

REMEMBERED_CERTIFICATE_OCTETS = 4096
"""Of longer ones nothing is kept in memory beyond the message they came with; real ones have 2,000."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What `issuerAndSerialNumber` and the like say of one certificate."""

    encoded: bytes
    """The certificate's DER."""
    issuer: bytes
    serial: int
    subject: bytes
    key_id: bytes
    """SubjectKeyIdentifier, empty when the certificate has none."""
    key_algorithm: Algorithm
    """Of the public key."""

    @property
    def explicit_curve(self) -> bool:
        """The public key brings a curve of its own instead of naming one (RFC 5480 §2.1.1 forbids it)."""
        named = self.key_algorithm.parameters
        return self.key_algorithm.oid == oids.EC_PUBLIC_KEY and (named is None or named.tag != der.OID)

    @property
    def issuer_and_serial(self) -> bytes:
        """DER of IssuerAndSerialNumber (RFC 5652 §10.2.4)."""
        return der.sequence(self.issuer, der.integer(self.serial))

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.encoded).digest()

    def is_named_by(self, party: PartyId) -> bool:
        """A name encoded again in another kind of string, as some senders do, is the same; one in other letters is not,
        though RFC 5280 §7.1 would have it so: nobody copies a name so, and nothing else protects these octets."""
        if party.key_id:
            return party.key_id == self.key_id
        if party.serial != self.serial:
            return False
        return same_name(party.issuer, self.issuer)


def identity(certificate: x509.Certificate) -> Identity:
    """Raises ValueError when the certificate is unreadable."""
    return read_identity(certificate.public_bytes(Encoding.DER))


def read_identity(encoded: bytes) -> Identity:
    """The same, of the DER of a certificate, of which no more is read. Raises DerError."""
    return (_known if len(encoded) <= REMEMBERED_CERTIFICATE_OCTETS else _known.__wrapped__)(encoded)


@lru_cache(maxsize=512)
def _known(encoded: bytes) -> Identity:
    fields = der.read(encoded).exactly(3)[0].sequence()
    if fields and fields[0].tag == context(0):  # version, absent from v1 certificates
        fields = fields[1:]
    if len(fields) < 6:
        raise DerError("certificate")
    return Identity(
        encoded,
        fields[2].expect(der.SEQUENCE).copy(),
        fields[0].integer(),
        fields[4].expect(der.SEQUENCE).copy(),
        _key_id(fields[6:]),
        read_algorithm(fields[5].exactly(2)[0]),
    )


_SUBJECT_KEY_ID = der.oid("2.5.29.14")


def _key_id(fields: Sequence[Element]) -> bytes:
    """SubjectKeyIdentifier among what follows the public key (RFC 5280 §4.2.1.2); empty when there is none."""
    for field in fields:
        for extension in field.explicit().sequence() if field.tag == context(3) else ():
            parts = extension.sequence(3)
            if len(parts) >= 2 and parts[0].copy() == _SUBJECT_KEY_ID:
                return der.read(parts[-1].octets()).octets()
    return b""


# --- Names -----------------------------------------------------------------------------------------------------------

_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
"""Kinds of strings that names are encoded again in; the others mean something of their own."""
MAX_NAME_OCTETS = 2048
"""Longer ones are the same only octet for octet; so are those of more attributes."""
MAX_NAME_ATTRIBUTES = 32

_Rdn = tuple[tuple[str, str | bytes], ...]


def same_name(one: bytes, other: bytes) -> bool:
    """Whether two Names, as DER, differ in nothing but kinds of strings. False when they differ and one is none."""
    if one == other:
        return True
    if max(len(one), len(other)) > MAX_NAME_OCTETS:
        return False
    try:
        return _comparable(one) == _comparable(other)
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _comparable(name: bytes) -> tuple[_Rdn, ...]:
    """Remembered, for one name may be compared with hundreds in one message. Raises ValueError."""
    left = MAX_NAME_ATTRIBUTES
    rdns: list[_Rdn] = []
    for rdn in der.read(name).sequence(MAX_NAME_ATTRIBUTES):
        attributes = rdn.set(left)
        left -= len(attributes)
        rdns.append(tuple(sorted(map(_attribute, attributes), key=repr)))
    return tuple(rdns)


def _attribute(element: Element) -> tuple[str, str | bytes]:
    kind, value = element.exactly(2)
    encoding = _ENCODINGS.get(value.tag)
    if encoding is None:
        return kind.oid(), value.copy()
    return kind.oid(), bytes(value.content).decode(encoding)
