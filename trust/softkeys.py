"""Private keys in this process's memory, and the key pairs that are made for mailboxes.

What such a key does is what `trust.keys.Signer` and `Decryptor` ask for; keys inside a token do the same in
`trust.pkcs11`. `KeyOperations` is what both have in common.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.hashes import HashAlgorithm

PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | x25519.X25519PrivateKey
)
"""RSA, NIST and brainpool curves for both uses; Ed25519 signs, X25519 is encrypted to."""
PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | x25519.X25519PublicKey
KINDS = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey, x25519.X25519PrivateKey)
PUBLIC_KINDS = (rsa.RSAPublicKey, ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey, x25519.X25519PublicKey)
LEAST_RSA_BITS = 2048
"""RFC 8551 §4, SOG-IS."""
_MOST_RSA_BITS = 8192
_CURVE_NAMES = frozenset(
    ("secp256r1", "secp384r1", "secp521r1", "brainpoolP256r1", "brainpoolP384r1", "brainpoolP512r1")
)
REJECTED_OCTETS = 32
"""Of the random key that takes the place of one whose padding was wrong."""


class KeyKind(Enum):
    """The key pairs that are made here: those every S/MIME reader knows."""

    RSA_2048 = "rsa2048"
    RSA_3072 = "rsa3072"
    RSA_4096 = "rsa4096"
    P256 = "p256"
    P384 = "p384"
    P521 = "p521"

    @property
    def rsa_bits(self) -> int:
        """0 for keys on a curve."""
        return int(self.value.removeprefix("rsa")) if self.value.startswith("rsa") else 0

    @property
    def curve(self) -> ec.EllipticCurve:
        """Raises KeyError for RSA."""
        return _CURVES[self]()


_CURVES: dict[KeyKind, Callable[[], ec.EllipticCurve]] = {
    KeyKind.P256: ec.SECP256R1,
    KeyKind.P384: ec.SECP384R1,
    KeyKind.P521: ec.SECP521R1,
}


class KeyOperations(Protocol):
    """What one private key can do, wherever it is; see `trust.keys` for what each promises and raises."""

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes: ...

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes: ...

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes: ...

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes: ...

    def agree(self, peer_public_key: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True, repr=False)
class CertifiedKey:
    """A key with its certificate: a `trust.keys.Signer` and a `trust.keys.Decryptor`."""

    operations: KeyOperations
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """Intermediates, leaf and root excluded."""

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        return self.operations.sign(data, algorithm)

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        return self.operations.sign_pss(data, algorithm)

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
        return self.operations.decrypt_oaep(encrypted, algorithm, mgf, label)

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        return self.operations.decrypt_pkcs1v15(encrypted)

    def agree(self, peer_public_key: bytes) -> bytes:
        return self.operations.agree(peer_public_key)


def weakness(public_key: object) -> str:
    """Why a key of a kind kept here is not believed by anybody careful; empty when it is."""
    if isinstance(public_key, rsa.RSAPublicKey):
        if public_key.key_size < LEAST_RSA_BITS:
            return f"its RSA key has only {public_key.key_size} bits"
        if public_key.key_size > _MOST_RSA_BITS:
            return f"its RSA key has {public_key.key_size} bits, more than mail is signed with"
        if not 3 <= public_key.public_numbers().e < 1 << 32:
            return "its RSA key has an unusual exponent"
    elif isinstance(public_key, ec.EllipticCurvePublicKey) and public_key.curve.name not in _CURVE_NAMES:
        return f"its key is on the curve {public_key.curve.name}, which mail does not use"
    return ""


def make_key(kind: KeyKind) -> PrivateKey:
    """A new key pair."""
    if kind.rsa_bits:
        return rsa.generate_private_key(65537, kind.rsa_bits)
    return ec.generate_private_key(kind.curve)


@dataclass(frozen=True, slots=True, repr=False)
class SoftwareKey:
    """`KeyOperations` of a key in memory. Thread-safe."""

    key: PrivateKey

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), algorithm)
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(algorithm))
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        raise ValueError("a key on X25519 cannot sign")

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        return self._rsa().sign(data, padding.PSS(padding.MGF1(algorithm), algorithm.digest_size), algorithm)

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
        oaep = padding.OAEP(mgf=padding.MGF1(mgf), algorithm=algorithm, label=label or None)
        try:
            return self._rsa().decrypt(encrypted, oaep)
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("decryption failed") from None

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        try:
            return self._rsa().decrypt(encrypted, padding.PKCS1v15())
        except ValueError:
            # Wrong padding already yields random bytes (OpenSSL's implicit rejection); what cannot even be a
            # ciphertext of this key is answered in the same way, so that senders learn nothing from the difference.
            return secrets.token_bytes(REJECTED_OCTETS)

    def agree(self, peer_public_key: bytes) -> bytes:
        try:
            if isinstance(self.key, x25519.X25519PrivateKey):
                return self.key.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public_key))
            if not isinstance(self.key, ec.EllipticCurvePrivateKey):
                raise ValueError
            # checks that the point is on the curve, else it would give the key away bit by bit
            peer = ec.EllipticCurvePublicKey.from_encoded_point(self.key.curve, peer_public_key)
            return self.key.exchange(ec.ECDH(), peer)
        except (ValueError, UnsupportedAlgorithm):
            raise ValueError("key agreement failed") from None

    def _rsa(self) -> rsa.RSAPrivateKey:
        if not isinstance(self.key, rsa.RSAPrivateKey):
            raise ValueError("not an RSA key")
        return self.key
