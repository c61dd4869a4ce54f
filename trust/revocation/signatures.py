"""Signatures over CRLs, OCSP responses and the certificates of those who sign them, checked from their DER.

One list of algorithms, the same as for certification paths: RSA PKCS#1 v1.5 and PSS, ECDSA, Ed25519, with SHA-2 only.
"""

from __future__ import annotations

from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from trust import der
from trust.revocation.naming import name_key

_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_RSA: dict[str, type[_Hash]] = {
    "1.2.840.113549.1.1.11": hashes.SHA256,
    "1.2.840.113549.1.1.12": hashes.SHA384,
    "1.2.840.113549.1.1.13": hashes.SHA512,
}
_ECDSA: dict[str, type[_Hash]] = {
    "1.2.840.10045.4.3.2": hashes.SHA256,
    "1.2.840.10045.4.3.3": hashes.SHA384,
    "1.2.840.10045.4.3.4": hashes.SHA512,
}
_DIGESTS: dict[str, type[_Hash]] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256,
    "2.16.840.1.101.3.4.2.2": hashes.SHA384,
    "2.16.840.1.101.3.4.2.3": hashes.SHA512,
}
_PSS = "1.2.840.113549.1.1.10"
_MGF1 = "1.2.840.113549.1.1.8"
_ED25519 = "1.3.101.112"
_MAX_SALT = 512


def verifies(
    algorithm: der.Element, signed: bytes | memoryview, signature: bytes, key: CertificatePublicKeyTypes | None
) -> bool:
    """Whether `signature` over `signed` is by `key`, with an AlgorithmIdentifier that is accepted. Never raises."""
    try:
        return _verify(algorithm, signed, signature, key)
    except Exception:  # not only InvalidSignature: malformed values raise many classes, none of them good
        return False


def _verify(
    algorithm: der.Element, signed: bytes | memoryview, signature: bytes, key: CertificatePublicKeyTypes | None
) -> bool:
    kind, *parameters = algorithm.sequence(2)
    oid = kind.oid()
    # `cryptography` takes any buffer; its annotations say bytes, and a copy of a large list is not worth it
    signed = cast(bytes, signed)
    if oid in _RSA or oid == _PSS:
        if not isinstance(key, rsa.RSAPublicKey) or not 2048 <= key.key_size <= 8192:
            return False
        if oid == _PSS:
            scheme, digest = _pss(der.only(parameters))
            key.verify(signature, signed, scheme, digest)
        else:
            key.verify(signature, signed, padding.PKCS1v15(), _RSA[oid]())
    elif oid in _ECDSA:
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
            return False
        key.verify(signature, signed, ec.ECDSA(_ECDSA[oid]()))
    elif oid == _ED25519 and isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, signed)
    else:
        return False
    return True


def _pss(parameters: der.Element) -> tuple[padding.PSS, _Hash]:
    """RSASSA-PSS-params (RFC 4055 §3.1): SHA-2, the same hash for the mask, trailer 1. The defaults are SHA-1."""
    fields = {field.tag: field.explicit() for field in parameters.sequence(4)}
    digest = _DIGESTS[fields[der.context(0)].sequence(2)[0].oid()]()
    mask, of = fields[der.context(1)].sequence(2)
    salt = fields[der.context(2)].integer() if der.context(2) in fields else 20
    trailer = fields[der.context(3)].integer() if der.context(3) in fields else 1
    if mask.oid() != _MGF1 or _DIGESTS[of.sequence(2)[0].oid()] is not type(digest):
        raise der.DerError("mask generation function")
    if not 0 <= salt <= _MAX_SALT or trailer != 1:
        raise der.DerError("salt length or trailer")
    return padding.PSS(padding.MGF1(digest), salt), digest


def bit_string(element: der.Element) -> bytes:
    """A BIT STRING without unused bits."""
    content = bytes(element.expect(der.BIT_STRING).content)
    if content[:1] != b"\x00":
        raise der.DerError("bit string")
    return content[1:]


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` is the issuer of `certificate` by name and by signature (RFC 5280 §6.1.3 (a)). Never raises."""
    try:
        if name_key(certificate.issuer.public_bytes()) != name_key(issuer.subject.public_bytes()):
            return False
        signed, algorithm, signature = der.read(certificate.public_bytes(serialization.Encoding.DER)).sequence(3)
        return _verify(algorithm, signed.encoded, bit_string(signature), issuer.public_key())
    except Exception:  # whatever is wrong with either, the one did not issue the other
        return False
