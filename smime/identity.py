"""The bytes by which CMS names a certificate: read once from its own DER, never re-encoded from parsed names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from smime.cms_read import PartyId
from trust import der
from trust.der import DerError, Element, context


@dataclass(frozen=True, slots=True)
class Identity:
    """What `issuerAndSerialNumber` and the like say of one certificate."""

    encoded: bytes
    """The certificate's DER."""
    issuer: bytes
    serial: int
    key_id: bytes
    """SubjectKeyIdentifier, empty when the certificate has none."""
    explicit_curve: bool = False
    """The public key brings a curve of its own instead of naming one (RFC 5480 §2.1.1 forbids it)."""

    @property
    def issuer_and_serial(self) -> bytes:
        """DER of IssuerAndSerialNumber (RFC 5652 §10.2.4)."""
        return der.sequence(self.issuer, der.integer(self.serial))

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.encoded).digest()

    def is_named_by(self, party: PartyId) -> bool:
        """Names are the same as RFC 5280 §7.1 has it: some senders encode an issuer again in their own way."""
        if party.key_id:
            return party.key_id == self.key_id
        if party.serial != self.serial:
            return False
        return party.issuer == self.issuer or same_name(party.issuer, self.issuer)


@lru_cache(maxsize=256)
def identity(certificate: x509.Certificate) -> Identity:
    """Raises ValueError when the certificate is unreadable."""
    encoded = certificate.public_bytes(Encoding.DER)
    fields = der.read(encoded).sequence()[0].sequence()
    if fields[0].tag == context(0):  # version, absent from v1 certificates
        fields = fields[1:]
    if len(fields) < 6:
        raise DerError("certificate")
    try:
        key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        key_id = b""
    except Exception as problem:  # the parser reads lazily and has no common error class
        raise DerError("certificate extensions") from problem
    key_algorithm = fields[5].sequence()[0].sequence()
    return Identity(
        encoded,
        bytes(fields[2].expect(der.SEQUENCE).encoded),
        fields[0].integer(),
        key_id,
        key_algorithm[0].oid() == _EC_PUBLIC_KEY and (len(key_algorithm) != 2 or key_algorithm[1].tag != der.OID),
    )


_EC_PUBLIC_KEY = "1.2.840.10045.2.1"
_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
_MAX_NAME_OCTETS = 8192
_MAX_RDNS = 64


def same_name(one: bytes, other: bytes) -> bool:
    """Whether two Names, as DER, differ in nothing but kinds of strings, case and white space. False for no Names."""
    try:
        return _comparable(one) == _comparable(other)
    except ValueError:
        return False


def _comparable(name: bytes) -> list[list[tuple[str, str | bytes]]]:
    if len(name) > _MAX_NAME_OCTETS:
        raise DerError("name")
    return [sorted(map(_attribute, rdn.set(_MAX_RDNS)), key=repr) for rdn in der.read(name).sequence(_MAX_RDNS)]


def _attribute(element: Element) -> tuple[str, str | bytes]:
    kind, value = element.sequence(2)
    encoding = _ENCODINGS.get(value.tag)
    if encoding is None:
        return kind.oid(), bytes(value.encoded)
    return kind.oid(), " ".join(bytes(value.content).decode(encoding).split()).casefold()
