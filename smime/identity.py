"""The bytes by which CMS names a certificate: read once from its own DER, never re-encoded from parsed names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from smime.cms_read import PartyId
from trust import der
from trust.der import context


@dataclass(frozen=True, slots=True)
class Identity:
    """What `issuerAndSerialNumber` and the like say of one certificate."""

    encoded: bytes
    """The certificate's DER."""
    issuer: bytes
    serial: int
    key_id: bytes
    """SubjectKeyIdentifier, empty when the certificate has none."""

    @property
    def issuer_and_serial(self) -> bytes:
        """DER of IssuerAndSerialNumber (RFC 5652 §10.2.4)."""
        return der.sequence(self.issuer, der.integer(self.serial))

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.encoded).digest()

    def is_named_by(self, party: PartyId) -> bool:
        if party.key_id:
            return party.key_id == self.key_id
        return (party.issuer, party.serial) == (self.issuer, self.serial)


@lru_cache(maxsize=256)
def identity(certificate: x509.Certificate) -> Identity:
    """Raises ValueError when the certificate is unreadable."""
    encoded = certificate.public_bytes(Encoding.DER)
    fields = der.read(encoded).sequence()[0].sequence()
    if fields[0].tag == context(0):  # version, absent from v1 certificates
        fields = fields[1:]
    if len(fields) < 6:
        raise der.DerError("certificate")
    try:
        key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        key_id = b""
    except Exception as problem:  # the parser reads lazily and has no common error class
        raise der.DerError("certificate extensions") from problem
    return Identity(encoded, bytes(fields[2].expect(der.SEQUENCE).encoded), fields[0].integer(), key_id)
