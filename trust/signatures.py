"""Which signature algorithms are accepted, on certificates (RFC 5280 §6.1.3 (a)(1)) and on what says that they were
revoked, and what verifying costs."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa

from trust import der
from trust.extensions import remembered
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
_DIGESTS: dict[str, _Hash] = {
    "2.16.840.1.101.3.4.2.1": _SHA256,
    "2.16.840.1.101.3.4.2.2": _SHA384,
    "2.16.840.1.101.3.4.2.3": _SHA512,
}
_NULL = der.null()
_MGF1 = "1.2.840.113549.1.1.8"
_MAX_SALT = 512
_DEFAULT_SALT = 20
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


@dataclass(frozen=True, slots=True)
class _Pss:
    """Parameters of RSASSA-PSS; the mask generation function uses the same hash."""

    hash: _Hash
    salt: int
    """Octets; of a key, the fewest (RFC 4055 §3.3)."""


def signature_failure(child: Facts, issuer: Facts) -> Failure | None:
    """Why the signature of `child` does not hold under the key of `issuer`; None when it does. Never raises."""
    if child.inner_algorithm != child.outer_algorithm:
        return Failure("rfc5280-4.1.1.2-signature-algorithm", "its signature algorithm is another inside than outside")
    return failure_of(child.outer_algorithm, child.signed, child.signature, issuer)


def failure_of(algorithm: bytes, signed: bytes, signature: bytes, issuer: Facts) -> Failure | None:
    """Why `signature` over `signed` does not hold under the key of `issuer`; None when it does. Never raises.

    `algorithm` is an AlgorithmIdentifier in DER. `signed` may be any buffer.
    """
    wrong = Failure("rfc5280-6.1.3-signature", "the signature does not verify")
    try:
        return _verify(algorithm, signed, signature, issuer, wrong)
    except Exception:  # not only InvalidSignature: malformed values raise many classes, none of them good
        return wrong


def _verify(algorithm: bytes, signed: bytes, signature: bytes, issuer: Facts, wrong: Failure) -> Failure | None:
    oid, parameters = _algorithm(algorithm)
    if parameters and parameters != _NULL and oid != _PSS:
        return _weak(f"{oid} with parameters")
    key = issuer.key
    if oid in _RSA_PKCS1 or oid == _PSS:
        if not isinstance(key, rsa.RSAPublicKey) or len(signature) != (key.key_size + 7) // 8:
            return wrong
        if oid != _PSS:
            if issuer.pss_only:
                return _weak("PKCS #1 v1.5 under a key for RSASSA-PSS only")
            key.verify(signature, signed, _PKCS1V15, _RSA_PKCS1[oid])
            return None
        scheme = _pss(algorithm)
        if scheme is None or not _permits(issuer, scheme):
            return _weak("RSASSA-PSS with these parameters")
        key.verify(signature, signed, padding.PSS(padding.MGF1(scheme.hash), scheme.salt), scheme.hash)
    elif oid in _ECDSA:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return wrong
        key.verify(signature, signed, _ECDSA[oid])
    elif oid == _ED25519:
        if not isinstance(key, ed25519.Ed25519PublicKey):
            return wrong
        key.verify(signature, signed)
    elif oid == _ED448:
        if not isinstance(key, ed448.Ed448PublicKey):
            return wrong
        key.verify(signature, signed)
    else:
        return _weak(_WEAK.get(oid, oid))
    return None


def _permits(issuer: Facts, scheme: _Pss) -> bool:
    """What a key for RSASSA-PSS only, if it is one, demands (RFC 4055 §3.3): its own hash, no shorter salt."""
    if not issuer.pss_only or not _algorithm(issuer.key_algorithm)[1]:
        return True
    own = _pss(issuer.key_algorithm)
    return own is not None and own.hash is scheme.hash and own.salt <= scheme.salt


def _weak(what: str) -> Failure:
    return Failure("relais-algorithm-too-weak", f"{what} is not accepted")


@remembered(256)
def _algorithm(encoded: bytes) -> tuple[str, bytes]:
    """Dotted OID and parameters in DER of an AlgorithmIdentifier; raises DerError."""
    kind, *parameters = der.read(encoded).sequence(2)
    return kind.oid(), b"".join(bytes(each.encoded) for each in parameters)


@remembered(64)
def _pss(encoded: bytes) -> _Pss | None:
    """RSASSA-PSS-params (RFC 4055 §3.1) of an AlgorithmIdentifier: SHA-2, the same hash for the mask, trailer 1.

    The defaults are SHA-1, so that what is absent is refused; None when anything is not accepted.
    """
    try:
        _, parameters = der.read(encoded).exactly(2)
        fields = {field.tag: field.explicit() for field in parameters.sequence(4)}
        digest = _DIGESTS[fields[der.context(0)].sequence(2)[0].oid()]
        mask, of = fields[der.context(1)].exactly(2)
        salt, trailer = (
            fields[tag].integer() if tag in fields else default
            for tag, default in ((der.context(2), _DEFAULT_SALT), (der.context(3), 1))
        )
        good = mask.oid() == _MGF1 and _DIGESTS[of.sequence(2)[0].oid()] is digest
    except (der.DerError, KeyError):
        return None
    return _Pss(digest, salt) if good and 0 <= salt <= _MAX_SALT and trailer == 1 else None
