"""RSA's paddings and signature schemes: what algorithm identifiers mean, and whether a signature holds under one key.

A key certified for RSASSA-PSS alone (RFC 4055 §1.2) makes no other signatures, and none with less than its parameters
demand. Whether the key is strong enough is for `smime.strength`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from smime import oids
from smime.cms_read import REMEMBERED_OCTETS, Algorithm, read_algorithm
from trust import der
from trust.der import DerError, context

HASHES: dict[str, hashes.HashAlgorithm] = {
    oids.SHA1: hashes.SHA1(),  # only where the policy admits it  # noqa: S303
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}
_RSA_DIGESTS = {
    oids.SHA1_WITH_RSA: oids.SHA1,
    oids.SHA256_WITH_RSA: oids.SHA256,
    oids.SHA384_WITH_RSA: oids.SHA384,
    oids.SHA512_WITH_RSA: oids.SHA512,
}
_ECDSA_DIGESTS = {
    oids.ECDSA_WITH_SHA1: oids.SHA1,
    oids.ECDSA_WITH_SHA256: oids.SHA256,
    oids.ECDSA_WITH_SHA384: oids.SHA384,
    oids.ECDSA_WITH_SHA512: oids.SHA512,
}
_CURVE_NAMES = {"secp256r1": "p256", "secp384r1": "p384", "secp521r1": "p521"}
_PKCS1V15 = padding.PKCS1v15()
SHAKE256_OCTETS = 64
"""What Ed448 signatures take of it (RFC 8419 §3.1, RFC 8702 §3.1)."""
_SHAKE256_BITS = der.integer(8 * SHAKE256_OCTETS)
MAX_PSS_SALT = 512


class UnsoundError(Exception):
    """A rule that makes a signature invalid: code and detail of a finding."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.detail = detail


def label(algorithm: Algorithm, digest_oid: str, key: CertificatePublicKeyTypes | None = None) -> str:
    """Name of the scheme in verdicts, with the curve once the key is known; empty for unknown algorithms."""
    oid, digest = algorithm.oid, HASHES.get(digest_oid)
    if oid in (oids.ED25519, oids.ED448):
        return "ed25519" if oid == oids.ED25519 else "ed448"
    if digest is None:
        return ""
    if oid == oids.RSASSA_PSS:
        return f"rsa-pss-{digest.name}"
    if oid == oids.RSA_ENCRYPTION or oid in _RSA_DIGESTS:
        return f"rsa-pkcs1v15-{digest.name}"
    if oid not in _ECDSA_DIGESTS:
        return ""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ecdsa-{_CURVE_NAMES.get(key.curve.name, key.curve.name.lower())}-{digest.name}"
    return f"ecdsa-{digest.name}"


def has_its_parameters(algorithm: Algorithm) -> bool:
    """None or NULL, but for SHAKE256 with its length (RFC 8702 §3.1) and PSS, whose own are looked at elsewhere."""
    if algorithm.oid == oids.SHAKE256_LEN:
        return algorithm.parameters is not None and algorithm.parameters.copy() == _SHAKE256_BITS
    return algorithm.parameters is None or algorithm.oid == oids.RSASSA_PSS


def verify(
    key: CertificatePublicKeyTypes,
    certified_as: Algorithm,
    algorithm: Algorithm,
    digest: str,
    signature: bytes,
    data: bytes,
) -> None:
    """Whether `signature` over `data` holds; `certified_as` is the algorithm in the key's certificate.

    Raises InvalidSignature, UnsoundError, or ValueError for what cannot be read.
    """
    oid = algorithm.oid
    if not has_its_parameters(algorithm):
        raise UnsoundError("algorithm-parameters", oid)
    if isinstance(key, rsa.RSAPublicKey) and digest in HASHES:
        if oid == oids.RSASSA_PSS:
            given = _signatures_pss(algorithm, digest)
            if certified_as.oid == oids.RSASSA_PSS and not demanded_pss(certified_as).admits(given):
                raise UnsoundError("pss-parameters")
            key.verify(signature, data, padding.PSS(padding.MGF1(HASHES[digest]), given.salt), HASHES[digest])
            return
        if certified_as.oid != oids.RSASSA_PSS and (oid == oids.RSA_ENCRYPTION or _RSA_DIGESTS.get(oid) == digest):
            key.verify(signature, data, _PKCS1V15, HASHES[digest])
            return
    elif isinstance(key, ec.EllipticCurvePublicKey) and _ECDSA_DIGESTS.get(oid) == digest:
        key.verify(signature, data, ec.ECDSA(HASHES[digest]))
        return
    elif (isinstance(key, ed25519.Ed25519PublicKey) and oid == oids.ED25519 and digest in HASHES) or (
        isinstance(key, ed448.Ed448PublicKey) and oid == oids.ED448
    ):
        key.verify(signature, data)
        return
    raise UnsoundError("signature-algorithm", oid)


def holds(
    key: CertificatePublicKeyTypes,
    certified_as: Algorithm,
    algorithm: Algorithm,
    digest: str,
    signature: bytes,
    data: bytes,
) -> bool:
    """`verify` as an answer. Raises UnsoundError and ValueError as it does."""
    try:
        verify(key, certified_as, algorithm, digest, signature, data)
    except InvalidSignature:
        return False
    return True


# --- RSASSA-PSS ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pss:
    """RSASSA-PSS-params (RFC 4055 §3.1), in a signature or demanded by a key; the defaults are SHA-1's."""

    digest: str = oids.SHA1
    """OID."""
    mask: str = oids.SHA1
    """OID of MGF1's hash."""
    salt: int = 20
    """Octets; in a key, the least."""
    trailer: int = 1

    def admits(self, given: Pss) -> bool:
        """Whether a key with these parameters makes signatures with those `given` (RFC 4055 §3.3)."""
        return (self.digest, self.mask, self.trailer) == (given.digest, given.mask, given.trailer) and (
            self.salt <= given.salt
        )


class _Any(Pss):
    """Of a key without parameters, which makes PSS signatures of any kind (RFC 4055 §1.2)."""

    __slots__ = ()

    def admits(self, given: Pss) -> bool:
        return True


_ANY = _Any()


def demanded_pss(certified_as: Algorithm) -> Pss:
    """What a key certified as id-RSASSA-PSS demands of its signatures. Raises UnsoundError, ValueError."""
    return _ANY if certified_as.parameters is None else read_pss(certified_as)


def _signatures_pss(algorithm: Algorithm, digest: str) -> Pss:
    """One hash throughout, any sensible salt, trailer 1 (RFC 4056 §3). Raises UnsoundError, ValueError."""
    found = read_pss(algorithm)
    if found.digest != digest or found.mask != digest or found.trailer != 1 or not 0 <= found.salt <= MAX_PSS_SALT:
        raise UnsoundError("pss-parameters")
    return found


def read_pss(algorithm: Algorithm) -> Pss:
    """The parameters as they stand. Raises UnsoundError, ValueError."""
    encoded = algorithm.encoded
    return (_known_pss if len(encoded) <= REMEMBERED_OCTETS else _known_pss.__wrapped__)(encoded)


@lru_cache(maxsize=64)
def _known_pss(encoded: bytes) -> Pss:
    digest = mask = oids.SHA1
    salt, trailer = 20, 1
    last = -1
    algorithm = read_algorithm(der.read(encoded))
    for field in algorithm.parameters.sequence(4) if algorithm.parameters is not None else ():
        value = field.explicit()
        if field.tag <= last:
            raise UnsoundError("pss-parameters")
        last = field.tag
        if field.tag == context(0):
            digest = _hash_of(read_algorithm(value))
        elif field.tag == context(1):
            generator = read_algorithm(value)
            if generator.oid != oids.MGF1 or generator.parameters is None:
                raise UnsoundError("pss-parameters")
            mask = _hash_of(read_algorithm(generator.parameters))
        elif field.tag == context(2):
            salt = value.integer()
        elif field.tag == context(3):
            trailer = value.integer()
        else:
            raise UnsoundError("pss-parameters")
    return Pss(digest, mask, salt, trailer)


def _hash_of(algorithm: Algorithm) -> str:
    if not has_its_parameters(algorithm):
        raise UnsoundError("pss-parameters")
    return algorithm.oid


# --- RSAES-OAEP ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Oaep:
    """RSAES-OAEP-params (RFC 8017 A.2.1); the defaults are SHA-1's."""

    digest: str = oids.SHA1
    """OID."""
    mask: str = oids.SHA1
    """OID of MGF1's hash."""
    label: bytes = b""


def read_oaep(algorithm: Algorithm) -> Oaep:
    """The parameters as they stand. Raises ValueError."""
    encoded = algorithm.encoded
    return (_known_oaep if len(encoded) <= REMEMBERED_OCTETS else _known_oaep.__wrapped__)(encoded)


@lru_cache(maxsize=64)
def _known_oaep(encoded: bytes) -> Oaep:
    digest = mask = oids.SHA1
    label = b""
    parameters = read_algorithm(der.read(encoded)).parameters
    for field in parameters.sequence(3) if parameters is not None else ():
        value = read_algorithm(field.explicit())
        if field.tag == context(0) and value.parameters is None:
            digest = value.oid
        elif field.tag == context(1) and value.oid == oids.MGF1 and value.parameters is not None:
            hashed = read_algorithm(value.parameters)
            if hashed.parameters is not None:
                raise DerError("parameters of MGF1's hash")
            mask = hashed.oid
        elif field.tag == context(2) and value.oid == oids.P_SPECIFIED and value.parameters is not None:
            label = value.parameters.octets()
        else:
            raise DerError("RSAES-OAEP-params")
    return Oaep(digest, mask, label)
