"""Which certificate a signer says is theirs: signingCertificate and signingCertificateV2 (RFC 2634 §5.4, RFC 5035)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from smime import oids
from smime.cms_read import REMEMBERED_OCTETS, read_algorithm
from smime.identity import Identity, same_name
from trust import der
from trust.der import DerError, Element, context

_HASHES = {oids.SHA1: "sha1", oids.SHA256: "sha256", oids.SHA384: "sha384", oids.SHA512: "sha512"}


@dataclass(frozen=True, slots=True)
class CertificateReference:
    """ESSCertID or ESSCertIDv2 (RFC 2634 §5.4, RFC 5035 §4)."""

    algorithm: str
    digest: bytes
    issuer: bytes
    """DER of the Name, empty when none is given."""
    serial: int | None

    def means(self, own: Identity, sha256: bytes) -> bool:
        """Whether it is that certificate; `sha256` of its DER, which who asks knows already."""
        if self.serial not in (None, own.serial):
            return False
        hashed = sha256 if self.algorithm == "sha256" else hashlib.new(self.algorithm, own.encoded).digest()
        return hashed == self.digest and (not self.issuer or same_name(self.issuer, own.issuer))


def references(attributes: Mapping[str, Element]) -> list[CertificateReference]:
    """The first reference of each of the two attributes that is there, from the values of the attributes by type.

    Raises DerError.
    """
    found = []
    for oid, version in ((oids.SIGNING_CERTIFICATE_V2, 2), (oids.SIGNING_CERTIFICATE, 1)):
        value = attributes.get(oid)
        if value is not None:
            encoded = value.copy()
            remember = len(encoded) <= REMEMBERED_OCTETS
            found.append((_reference if remember else _reference.__wrapped__)(encoded, version))
    return found


@lru_cache(maxsize=256)
def _reference(attribute: bytes, version: int) -> CertificateReference:
    """The first one of a SigningCertificate or, with `version` 2, SigningCertificateV2; SHA-1 only where version 1 has
    no choice (RFC 2634 §5.4). Raises DerError."""
    fields = _first(_first(der.read(attribute))).sequence(3)
    default = oid = oids.SHA256 if version == 2 else oids.SHA1
    if fields and fields[0].tag == der.SEQUENCE:
        oid, fields = read_algorithm(fields[0]).oid, fields[1:]
    if not 1 <= len(fields) <= 2 or oid not in _HASHES or (oid == oids.SHA1 and default != oids.SHA1):
        raise DerError("ESSCertID")
    issuer, serial = b"", None
    if len(fields) == 2:
        names, number = fields[1].sequence(2)
        serial = number.integer()
        directory = [name for name in names.sequence() if name.tag == context(4)]
        if directory:
            issuer = bytes(directory[0].explicit().encoded)
    return CertificateReference(_HASHES[oid], fields[0].octets(), issuer, serial)


def _first(element: Element) -> Element:
    """The first element of a SEQUENCE OF that must not be empty."""
    elements = element.sequence()
    if not elements:
        raise DerError("empty sequence")
    return elements[0]
