"""One key-encryption key and what is done with it: wrap data keys, seal values, make pseudonyms.

The key-encryption key is 32 bytes, in a file or a systemd credential. From it HKDF (RFC 5869) derives one key per
purpose, so that wrapping, sealing and pseudonyms never share one.
"""

from __future__ import annotations

import hmac

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from trust.draw import draw

KEK_BYTES = 32
_SEAL_VERSION = b"\x01"
_SALT_BYTES = 12
_NONCE_BYTES = 12
_SEAL_OVERHEAD = len(_SEAL_VERSION) + _SALT_BYTES + _NONCE_BYTES + 16


class VaultError(ValueError):
    """The vault cannot be opened, or something was altered or is not under its key. The text says what to do."""


class Sealing:
    """What can be done under one key-encryption key. Thread-safe."""

    def __init__(self, kek: bytes) -> None:
        self._wrap_key = _derive(kek, b"wrap data keys")
        self._seal_key = _derive(kek, b"seal values")
        self._pseudonym_key = _derive(kek, b"pseudonyms")

    def wrap(self, dek: bytes) -> bytes:
        """A data key (16, 24 or 32 bytes) under AES key wrap (RFC 3394)."""
        return aes_key_wrap(self._wrap_key, dek)

    def unwrap(self, blob: bytes) -> bytes:
        """The data key again. Raises `VaultError` when it was altered or wrapped by another vault."""
        try:
            return aes_key_unwrap(self._wrap_key, blob)
        except (InvalidUnwrap, ValueError):
            raise VaultError("a wrapped key was altered or belongs to another vault") from None

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt a small value (a column, a file name) under AES-256-GCM, 41 bytes longer.

        `context` says what and whose it is (`b"dossier.title:" + id`): a sealed value moved elsewhere does not open.
        Each value has its own key, HKDF-Expand of a random salt: one key and random nonces would wear out after 2**32
        values (NIST SP 800-38D §8.3).
        """
        drawn = draw(_SALT_BYTES + _NONCE_BYTES)
        salt, nonce = drawn[:_SALT_BYTES], drawn[_SALT_BYTES:]
        return _SEAL_VERSION + drawn + self._value_cipher(salt).encrypt(nonce, plaintext, context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """The value again. Raises `VaultError` when altered, or sealed for another context or by another vault."""
        if len(sealed) < _SEAL_OVERHEAD or sealed[:1] != _SEAL_VERSION:
            raise VaultError("a sealed value was altered")
        salt = sealed[1 : 1 + _SALT_BYTES]
        nonce = sealed[1 + _SALT_BYTES : 1 + _SALT_BYTES + _NONCE_BYTES]
        try:
            return self._value_cipher(salt).decrypt(nonce, sealed[1 + _SALT_BYTES + _NONCE_BYTES :], context)
        except InvalidTag:
            raise VaultError("a sealed value was altered") from None

    def pseudonym(self, label: str, *parts: str) -> str:
        """64 hexadecimal digits that stand for `parts` and can be recomputed only with this vault (HMAC-SHA256).

        `label` names the kind (`"patient"`); the same parts under another label give another pseudonym. Parts are
        taken as they are: normalise before.
        """
        message = bytearray()
        for part in (label, *parts):
            encoded = part.encode("utf-8", "surrogatepass")
            message += len(encoded).to_bytes(8, "big") + encoded
        return hmac.digest(self._pseudonym_key, bytes(message), "sha256").hex()

    def _value_cipher(self, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self._seal_key, salt + b"\x01", "sha256"))  # HKDF-Expand, one block (RFC 5869 §2.3)


def _derive(kek: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"relais vault 1: " + purpose).derive(kek)
