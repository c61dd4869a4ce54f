"""The key-encryption key both sides of a key agreement derive (RFC 5753 §7, RFC 8418 §2)."""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF

from trust import der
from trust.der import context


def wrapping_key(
    secret: bytes, algorithm: hashes.HashAlgorithm, octets: int, wrap: bytes, user_material: bytes | None
) -> bytes:
    """The key-encryption key: ANSI X9.63 KDF over ECC-CMS-SharedInfo (RFC 5753 §7.2); `wrap` as it was encoded."""
    shared_info = der.sequence(
        wrap,
        der.tlv(context(0), der.octet_string(user_material)) if user_material is not None else b"",
        der.tlv(context(2), der.octet_string((octets * 8).to_bytes(4, "big"))),
    )
    return X963KDF(algorithm, octets, shared_info).derive(secret)
