"""One certificate's signature, verified under one key (RFC 5280 §6.1.3 (a)(1)), and what that costs."""

from __future__ import annotations

from functools import lru_cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from trust import der
from trust.facts import Facts, PublicKey
from trust.rules import Failure

_Hash = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
_SHA256, _SHA384, _SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()
_RSA_PKCS1: dict[str, _Hash] = {
    "1.2.840.113549.1.1.11": _SHA256,
    "1.2.840.113549.1.1.12": _SHA384,
    "1.2.840.113549.1.1.13": _SHA512,
}
_ECDSA: dict[str, ec.ECDSA] = {
    "1.2.840.10045.4.3.2": ec.ECDSA(_SHA256),
    "1.2.840.10045.4.3.3": ec.ECDSA(_SHA384),
    "1.2.840.10045.4.3.4": ec.ECDSA(_SHA512),
}
_PSS = "1.2.840.113549.1.1.10"
_ED25519 = "1.3.101.112"
_ED448 = "1.3.101.113"
_PKCS1V15 = padding.PKCS1v15()
_WEAK = {
    "1.2.840.113549.1.1.4": "MD5 with RSA",
    "1.2.840.113549.1.1.5": "SHA-1 with RSA",
    "1.2.840.10040.4.3": "SHA-1 with DSA",
    "2.16.840.1.101.3.4.3.2": "SHA-256 with DSA",
    "1.2.840.10045.4.1": "SHA-1 with ECDSA",
}
_COST = {
    "secp256r1": 50,
    "secp384r1": 400,
    "secp521r1": 400,
    "brainpoolP256r1": 250,
    "brainpoolP384r1": 450,
    "brainpoolP512r1": 800,
}


def cost(key: PublicKey | None) -> int:
    """About how many microseconds a verification under `key` takes on ordinary hardware."""
    if isinstance(key, rsa.RSAPublicKey):
        ratio = key.key_size / 2048
        slow = 1 if key.public_numbers().e.bit_length() <= 17 else 3
        return int(20 * ratio * ratio) * slow
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _COST[key.curve.name]
    return 200


def signature_failure(child: Facts, issuer: Facts) -> Failure | None:
    """Why the signature of `child` does not hold under the key of `issuer`; None when it does."""
    wrong = Failure("rfc5280-6.1.3-signature", "the signature does not verify")
    try:
        return _verify(child, issuer.key, wrong)
    except Exception:  # not only InvalidSignature: malformed values raise many classes, none of them good
        return wrong


def _verify(child: Facts, key: PublicKey | None, wrong: Failure) -> Failure | None:
    if child.inner_algorithm != child.outer_algorithm:
        return Failure("rfc5280-4.1.1.2-signature-algorithm", "its signature algorithm is another inside than outside")
    oid = _algorithm(child.outer_algorithm)
    if oid in _RSA_PKCS1:
        if not isinstance(key, rsa.RSAPublicKey) or len(child.signature) != (key.key_size + 7) // 8:
            return wrong
        key.verify(child.signature, child.signed, _PKCS1V15, _RSA_PKCS1[oid])
    elif oid in _ECDSA:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return wrong
        key.verify(child.signature, child.signed, _ECDSA[oid])
    elif oid == _PSS:
        if not isinstance(key, rsa.RSAPublicKey) or len(child.signature) != (key.key_size + 7) // 8:
            return wrong
        scheme = child.certificate.signature_algorithm_parameters
        digest = child.certificate.signature_hash_algorithm
        # the mask generation function must use the same hash (RFC 4055 §3.1)
        if (
            not isinstance(scheme, padding.PSS)
            or not isinstance(digest, _Hash)
            or not isinstance(scheme.mgf, padding.MGF1)
            or scheme.mgf._algorithm.name != digest.name
        ):
            return _weak("RSASSA-PSS with these parameters")
        key.verify(child.signature, child.signed, scheme, digest)
    elif oid == _ED25519:
        if not isinstance(key, ed25519.Ed25519PublicKey):
            return wrong
        key.verify(child.signature, child.signed)
    elif oid == _ED448:
        if not isinstance(key, ed448.Ed448PublicKey):
            return wrong
        key.verify(child.signature, child.signed)
    else:
        return _weak(_WEAK.get(oid, oid))
    return None


def _weak(what: str) -> Failure:
    return Failure("relais-algorithm-too-weak", f"{what} is not accepted")


@lru_cache(maxsize=256)
def _algorithm(encoded: bytes) -> str:
    return der.read(encoded).sequence(2)[0].oid()
