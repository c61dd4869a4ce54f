"""What a private key can do for the rest of the house, without the key ever leaving its owner.

`smime` signs and opens mail through these two protocols only; whether the key is a file, a card or an HSM is the
vault's business (`trust.vault`).
"""

from __future__ import annotations

from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.hashes import HashAlgorithm


class KeyUnavailableError(Exception):
    """A key cannot be used now: its card was removed, its token does not answer, its session has ended.

    Has nothing to do with the octets that were given, and another try may mend it. The text says what the operator has
    to look at; never a PIN, a key or a person.
    """


class Signer(Protocol):
    """The newest valid signing key of one address."""

    @property
    def certificate(self) -> x509.Certificate: ...

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """Intermediates to send along, leaf excluded, root excluded."""
        ...

    def sign(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        """Signature over `data` (hashed here): RSASSA-PKCS1-v1_5, or ECDSA as DER, by the kind of key.

        A key on Edwards25519 signs `data` itself, whatever the algorithm (RFC 8419 §3.1). Raises
        `KeyUnavailableError`.
        """
        ...

    def sign_pss(self, data: bytes, algorithm: HashAlgorithm) -> bytes:
        """RSASSA-PSS over `data` (hashed here), MGF1 with the same hash, salt as long as the hash (RFC 4056 §3).

        Raises ValueError when the key is not RSA, `KeyUnavailableError`.
        """
        ...


class Decryptor(Protocol):
    """One decryption key of one address; expired and retired keys included, for they still open old mail.

    Whatever the octets given can cause is a ValueError, and one like the other: senders of variations must not tell
    them apart. `KeyUnavailableError`, or an OSError, says that the key itself cannot be used, and becomes a temporary
    refusal. Anything else that a method raises counts as if it were a ValueError.
    """

    @property
    def certificate(self) -> x509.Certificate: ...

    def decrypt_oaep(self, encrypted: bytes, algorithm: HashAlgorithm, mgf: HashAlgorithm, label: bytes) -> bytes:
        """RSAES-OAEP (RFC 8017 §7.1). Raises ValueError on any failure, never saying which."""
        ...

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        """RSAES-PKCS1-v1_5 with implicit rejection: a wrong padding yields random bytes, not an error."""
        ...

    def agree(self, peer_public_key: bytes) -> bytes:
        """Raw ECDH shared secret with a point of this key's curve: X9.62 octets, or those of X25519 (RFC 7748).

        Raises ValueError when this key is not on a curve, the point not on the same one, or the secret is all zero.
        """
        ...
