"""Which keys are strong enough to mean something, and cannot be made expensive to use."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

CURVES = (
    ec.SECP256R1,
    ec.SECP384R1,
    ec.SECP521R1,
    ec.BrainpoolP256R1,
    ec.BrainpoolP384R1,
    ec.BrainpoolP512R1,
)
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
MAX_RSA_EXPONENT = 1 << 32
"""As for the keys of authorities (`trust.paths`): a key that no path holds for is not worth a signature's time."""

_P25519 = (1 << 255) - 19
_P448 = (1 << 448) - (1 << 224) - 1
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
"""A root of d*y**4 + 2*y**2 = 1 on edwards25519; its negative is another, and then no more (RFC 8032 §5.1)."""
_SMALL_25519 = frozenset((0, 1, _P25519 - 1, _ORDER_8, _P25519 - _ORDER_8))
_SMALL_448 = frozenset((0, 1, _P448 - 1))


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
    return isinstance(key, ed25519.Ed25519PublicKey) and _y(key.public_bytes_raw()) % _P25519 not in _SMALL_25519


def verifiable(key: object) -> bool:
    """The same, and Ed448, which Relais reads only."""
    if isinstance(key, ed448.Ed448PublicKey):
        return int.from_bytes(key.public_bytes_raw()[:56], "little") % _P448 not in _SMALL_448
    return acceptable(key)


def _y(point: bytes) -> int:
    """A point of edwards25519 without the sign of x: a few y mean one of small order, whose signatures hold for any
    message (RFC 8032 §5.1.2)."""
    return int.from_bytes(point, "little") & ((1 << 255) - 1)
