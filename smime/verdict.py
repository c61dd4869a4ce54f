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
    """Sound and trusted, but not From's word for what is read: From is not an address of the certificate, or what is
    signed is a ciphertext or a file and no mail."""


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
    algorithm: str = ""
    """`rsa-pss-sha256`, `ecdsa-p384-sha384`, `ed25519`; empty when it could not be read."""
    capabilities: tuple[str, ...] = ()
    """Dotted OIDs of the signed SMIMECapabilities, the preferred first (RFC 8551 §2.5.2)."""
    encryption_certificates: tuple[x509.Certificate, ...] = ()
    """VALID: what came along that the signer may want to be encrypted to (RFC 8551 §2.5.3), with what may stand above.
    The signature vouches for the choice, not for them."""


class LayerKind(Enum):
    """What one layer of a message is."""

    CLEAR_SIGNED = "multipart/signed"
    OPAQUE_SIGNED = "signed-data"
    ENCRYPTED = "enveloped-data"
    AUTH_ENCRYPTED = "authEnveloped-data"
    COMPRESSED = "compressed-data"
    CERTIFICATES = "certs-only"
    TNEF = "tnef"
    """Exchange's wrapping around an smime.p7m."""
    MESSAGE = "message/rfc822"
    """A whole message inside a protected layer, with its own From (RFC 8551 §3.1)."""


@dataclass(frozen=True, slots=True)
class LayerVerdict:
    """One layer judged by itself; `MessageVerdict` says what they amount to."""

    kind: LayerKind
    decryption: DecryptionResult = DecryptionResult.NOT_ENCRYPTED
    content_algorithm: str = ""
    authenticated: bool = False
    signature: SignatureResult = SignatureResult.NOT_SIGNED
    signers: tuple[SignerVerdict, ...] = ()
    findings: tuple[Finding, ...] = ()


class HeaderProtectionScheme(Enum):
    NONE = "none"
    CLEAR = "clear"
    """RFC 9788 with hp="clear": the fields are signed."""
    CIPHER = "cipher"
    """RFC 9788 with hp="cipher": the fields are signed and encrypted."""
    WRAPPED = "wrapped"
    """RFC 8551 §3.1: the protected payload is a whole message/rfc822."""


@dataclass(frozen=True, slots=True)
class HeaderProtection:
    """Which header fields the protection of the body covers too (RFC 9788 §4)."""

    scheme: HeaderProtectionScheme = HeaderProtectionScheme.NONE
    protected: tuple[str, ...] = ()
    """Names, lower case, of the fields that stand inside a layer that is validly signed or authenticated."""
    confidential: tuple[str, ...] = ()
    """Of these, the ones that the outer header does not tell, or tells differently, by the sender's will."""
    altered: tuple[str, ...] = ()
    """Names of fields whose outer value is not what the sender wrote outside: changed on the road."""


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """A signed part with unsigned siblings, as mailing lists and attackers make them: never the message's verdict."""

    part: str
    """Section number as in IMAP (RFC 3501 §6.4.5): `1`, `2.1`."""
    kind: LayerKind
    signature: SignatureResult
    signers: tuple[SignerVerdict, ...]


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
    layers: tuple[LayerVerdict, ...] = ()
    """From outside in."""
    header_protection: HeaderProtection = HeaderProtection()
    covered: tuple[PartVerdict, ...] = ()
    """Signed parts of a message that is not signed as a whole."""
    uncovered: tuple[str, ...] = ()
    """Section numbers of the leaf parts beside them that nobody signed."""
    sender_addresses: tuple[str, ...] = ()
    """Of the Sender field: signers are not compared with them (RFC 8550 §3 lets readers do so), people may be told."""


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
