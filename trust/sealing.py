"""The vault's master keys and what is done under them: wrap data keys, seal values, make pseudonyms.

A master key is 32 bytes; how one comes from the key-encryption key says `trust.key_ring`. From each HKDF (RFC 5869)
derives one key per purpose, so that wrapping, sealing and pseudonyms never share one. The newest wraps and seals, all
unwrap and unseal, and pseudonyms, which other tables are found by, come from the first for ever.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from trust.draw import draw

T = TypeVar("T")

KEK_BYTES = 32
"""Of a key-encryption key, and of a master key."""
_SEAL_VERSION = b"\x01"
_SALT_BYTES = 12
_NONCE_BYTES = 12
_SEAL_OVERHEAD = len(_SEAL_VERSION) + _SALT_BYTES + _NONCE_BYTES + 16


class VaultError(ValueError):
    """The vault cannot be opened, or something was altered or is not under its key. The text says what to do."""


@dataclass(frozen=True, slots=True, repr=False)
class _Derived:
    """What one master key wraps and seals with."""

    wrap_key: bytes
    seal_key: bytes


class Sealing:
    """What can be done under some master keys, the oldest first. Thread-safe."""

    def __init__(self, masters: Sequence[bytes]) -> None:
        self._pseudonym_key = _derive(masters[0], b"pseudonyms")
        self._newest_first: tuple[_Derived, ...] = ()
        self._use(masters)

    def wrap(self, dek: bytes) -> bytes:
        """A data key (16, 24 or 32 bytes) under AES key wrap (RFC 3394)."""
        return aes_key_wrap(self._newest_first[0].wrap_key, dek)

    def unwrap(self, blob: bytes) -> bytes:
        """The data key again. Raises `VaultError` when it was altered or wrapped by another vault."""
        dek = self._under_any(lambda each: _unwrapped(each, blob))
        if dek is None:
            raise VaultError("a wrapped key was altered or belongs to another vault")
        return dek

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt a small value (a column, a file name) under AES-256-GCM, 41 bytes longer.

        `context` says what and whose it is (`b"dossier.title:" + id`): a sealed value moved elsewhere does not open.
        Each value has its own key, HKDF-Expand of a random salt: one key and random nonces would wear out after 2**32
        values (NIST SP 800-38D §8.3).
        """
        drawn = draw(_SALT_BYTES + _NONCE_BYTES)
        salt, nonce = drawn[:_SALT_BYTES], drawn[_SALT_BYTES:]
        return _SEAL_VERSION + drawn + _cipher(self._newest_first[0], salt).encrypt(nonce, plaintext, context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """The value again. Raises `VaultError` when altered, or sealed for another context or by another vault."""
        if len(sealed) < _SEAL_OVERHEAD or sealed[:1] != _SEAL_VERSION:
            raise VaultError("a sealed value was altered")
        plaintext = self._under_any(lambda each: _unsealed(each, sealed, context))
        if plaintext is None:
            raise VaultError("a sealed value was altered")
        return plaintext

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

    def _use(self, masters: Sequence[bytes]) -> None:
        """From now on these master keys, of which the first is the one it was."""
        self._newest_first = tuple(
            _Derived(_derive(each, b"wrap data keys"), _derive(each, b"seal values")) for each in reversed(masters)
        )

    def _renewed(self) -> bool:
        """Whether there are other master keys than before, which what did not open may be under."""
        return False

    def _under_any(self, work: Callable[[_Derived], T | None]) -> T | None:
        """What the first key that fits makes of it; None when none does."""
        for _ in range(2):
            for each in self._newest_first:
                done = work(each)
                if done is not None:
                    return done
            if not self._renewed():
                break
        return None


def _unwrapped(key: _Derived, blob: bytes) -> bytes | None:
    try:
        return aes_key_unwrap(key.wrap_key, blob)
    except (InvalidUnwrap, ValueError):
        return None


def _unsealed(key: _Derived, sealed: bytes, context: bytes) -> bytes | None:
    salt = sealed[1 : 1 + _SALT_BYTES]
    nonce = sealed[1 + _SALT_BYTES : 1 + _SALT_BYTES + _NONCE_BYTES]
    try:
        return _cipher(key, salt).decrypt(nonce, sealed[1 + _SALT_BYTES + _NONCE_BYTES :], context)
    except InvalidTag:
        return None


def _cipher(key: _Derived, salt: bytes) -> AESGCM:
    return AESGCM(hmac.digest(key.seal_key, salt + b"\x01", "sha256"))  # HKDF-Expand, one block (RFC 5869 §2.3)


def _derive(kek: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"relais vault 1: " + purpose).derive(kek)
