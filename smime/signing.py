"""SignedData written (RFC 5652 §5, RFC 8551 §2.5): signed attributes, CAdES-BES, capabilities."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from smime import oids
from smime.identity import identity
from smime.strength import acceptable
from trust import der
from trust.der import context
from trust.keys import Signer

_SHA256 = der.sequence(der.oid(oids.SHA256))
_RSA_SIGNATURE = der.sequence(der.oid(oids.SHA256_WITH_RSA), der.null())
_ECDSA_SIGNATURE = der.sequence(der.oid(oids.ECDSA_WITH_SHA256))


def _attribute_bytes(attribute: str, value: bytes) -> bytes:
    return der.sequence(der.oid(attribute), der.tlv(der.SET, value))


_CONTENT_TYPE = _attribute_bytes(oids.CONTENT_TYPE, der.oid(oids.DATA))
_CAPABILITIES = _attribute_bytes(
    oids.SMIME_CAPABILITIES,
    der.sequence(*(der.sequence(der.oid(name)) for name in (oids.AES256_GCM, oids.AES128_GCM, oids.AES256_CBC))),
)


@lru_cache(maxsize=1024)
def _signing_certificate(certificate: x509.Certificate) -> bytes:
    """signingCertificateV2 (RFC 5035 §3): SHA-256 is the default and therefore not written."""
    reference = der.sequence(der.octet_string(identity(certificate).sha256))
    return _attribute_bytes(oids.SIGNING_CERTIFICATE_V2, der.sequence(der.sequence(reference)))


def sign_content(content: bytes, signer: Signer, at: datetime | None = None) -> bytes:
    """DER of a ContentInfo with a detached signature over `content`, signing time `at` or now.

    Raises ValueError when the key is neither RSA of at least 2048 bits nor on an accepted curve.
    """
    certificate = signer.certificate
    public_key = certificate.public_key()
    if not acceptable(public_key) or isinstance(public_key, ed25519.Ed25519PublicKey):
        raise ValueError("signing needs an RSA key of at least 2048 bits or an EC key on an accepted curve")
    algorithm = _RSA_SIGNATURE if isinstance(public_key, rsa.RSAPublicKey) else _ECDSA_SIGNATURE
    attributes = der.set_of(
        (
            _CONTENT_TYPE,
            _attribute_bytes(oids.SIGNING_TIME, der.time(at or datetime.now(UTC))),
            _attribute_bytes(oids.MESSAGE_DIGEST, der.octet_string(hashlib.sha256(content).digest())),
            _signing_certificate(certificate),
            _CAPABILITIES,
        )
    )
    signature = signer.sign(attributes, hashes.SHA256())
    own = identity(certificate)
    info = der.sequence(
        der.integer(1),
        own.issuer_and_serial,
        _SHA256,
        bytes((context(0),)) + attributes[1:],  # signed as SET OF, sent as [0] (RFC 5652 §5.4)
        algorithm,
        der.octet_string(signature),
    )
    certificates = dict.fromkeys((own.encoded, *(identity(link).encoded for link in signer.chain)))
    signed_data = der.sequence(
        der.integer(1),
        der.tlv(der.SET, _SHA256),
        der.sequence(der.oid(oids.DATA)),
        der.tlv(context(0), *sorted(certificates)),
        der.tlv(der.SET, info),
    )
    return der.sequence(der.oid(oids.SIGNED_DATA), der.tlv(context(0), signed_data))
