"""The key-encryption key both sides of a key agreement derive (RFC 5753 §7, RFC 8418 §2)."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF

from trust import der
from trust.der import context

_BOUND_KEY_SALT = b"The Cryptographic Message Syntax"


def wrapping_key(
    secret: bytes,
    algorithm: hashes.HashAlgorithm,
    octets: int,
    wrap: bytes,
    user_material: bytes | None,
    *,
    hkdf: bool = False,
) -> bytes:
    """The key-encryption key, from ECC-CMS-SharedInfo (RFC 5753 §7.2); `wrap` as it was encoded.

    By the KDF of ANSI X9.63, or with `hkdf` by that of the schemes for X25519, where the user keying material is the
    salt too (RFC 8418 §2.2).
    """
    shared_info = der.sequence(
        wrap,
        der.tlv(context(0), der.octet_string(user_material)) if user_material is not None else b"",
        der.tlv(context(2), der.octet_string((octets * 8).to_bytes(4, "big"))),
    )
    if hkdf:
        return HKDF(algorithm, octets, user_material, shared_info).derive(secret)
    return X963KDF(algorithm, octets, shared_info).derive(secret)


def bound_content_key(key: bytes, algorithm: bytes) -> bytes:
    """The content key that id-alg-cek-hkdf-sha256 makes of the one the recipients get (RFC 9709 §2).

    `algorithm`: DER of the AlgorithmIdentifier the content is encrypted with, parameters included. Whoever passes the
    ciphertext off as that of another algorithm has another key.
    """
    return HKDF(hashes.SHA256(), len(key), _BOUND_KEY_SALT, algorithm).derive(key)
