"""What opening a message found out: how it was encrypted, who signed it, and whether the two fit its From field."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from cryptography import x509

from trust.certificates import PathVerdict


class DecryptionResult(Enum):
    NOT_ENCRYPTED = "not-encrypted"
    DECRYPTED = "decrypted"
    FAILED = "failed"
    """For whatever reason: the reasons are deliberately not told apart."""


class SignatureResult(Enum):
    NOT_SIGNED = "not-signed"
    VALID = "valid"
    INVALID = "invalid"
    """Cryptographically wrong, or not a signature as the standards want it."""
    UNTRUSTED = "untrusted"
    """Sound, but the certificate's path is refused."""
    MISMATCH = "mismatch"
    """Sound and trusted, but From is not an address of the certificate."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing about how a message was protected."""

    code: str
    """Stable short name: `unauthenticated-encryption`, `digest-algorithm`."""
    detail: str = ""
    """Names of algorithms and rules only: never content, never an identity."""


@dataclass(frozen=True, slots=True)
class SignerVerdict:
    """One SignerInfo judged (RFC 5652 §5.3)."""

    certificate: x509.Certificate | None
    """None when the message does not carry it."""
    result: SignatureResult
    path: PathVerdict | None
    """None when the signature itself is wrong: the path is then not even asked for."""
    addresses: tuple[str, ...]
    """Addresses the certificate vouches for."""
    signing_time: datetime | None
    """What the signer claims; the path is validated at the time of receipt."""
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class MessageVerdict:
    """All layers together."""

    decryption: DecryptionResult
    content_algorithm: str
    """`aes256-gcm`, `aes256-cbc`, ... of the innermost layer decrypted; empty when there was none."""
    authenticated_encryption: bool
    """Whether every layer decrypted was AEAD: false means that the ciphertext could have been altered (EFAIL)."""
    signature: SignatureResult
    """Of the innermost layer that is signed: outer ones are relays'. The worst of its signers."""
    signers: tuple[SignerVerdict, ...]
    """Of that same layer."""
    from_addresses: tuple[str, ...]
    """The From the signers were compared with."""
    findings: tuple[Finding, ...]


_WORST_FIRST = (
    SignatureResult.INVALID,
    SignatureResult.UNTRUSTED,
    SignatureResult.MISMATCH,
    SignatureResult.VALID,
)


def worst(signers: tuple[SignerVerdict, ...]) -> SignatureResult:
    """All signers count: one that fails is not made good by another. Without signers nothing is signed."""
    results = {signer.result for signer in signers}
    return next((result for result in _WORST_FIRST if result in results), SignatureResult.NOT_SIGNED)
