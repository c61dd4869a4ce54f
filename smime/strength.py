"""Which keys are strong enough to mean something, and cannot be made expensive to use."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

CURVES = (
    ec.SECP256R1,
    ec.SECP384R1,
    ec.SECP521R1,
    ec.BrainpoolP256R1,
    ec.BrainpoolP384R1,
    ec.BrainpoolP512R1,
)
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16384
MAX_RSA_EXPONENT = 1 << 64


def acceptable(key: object) -> bool:
    """Kinds and sizes of keys whose signatures mean something, and cannot be made expensive to verify."""
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        return (
            MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
            and numbers.n % 2 == 1
            and 3 <= numbers.e < MAX_RSA_EXPONENT
            and numbers.e % 2 == 1
        )
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, CURVES)
    return isinstance(key, ed25519.Ed25519PublicKey)
