"""What the vault knows of one key pair: a generation of a mailbox's key with its certificate, or a request for one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa, x25519
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from trust.addresses import mail_addresses
from trust.keys import KeyUnavailableError
from trust.sealing import VaultError
from trust.softkeys import PUBLIC_KINDS, CertifiedKey, PrivateKey, PublicKey, SoftwareKey, weakness

_ID_DIGITS = 16


class KeyUse(Enum):
    """What a mailbox's key is for; MSSanté gives each mailbox one certificate of each."""

    SIGNING = "signing"
    ENCRYPTION = "encryption"


class KeyState(Enum):
    """What a generation does now."""

    CURRENT = "current"
    """The newest valid one: it signs, or mail is to be encrypted to it. It decrypts."""
    OLDER = "older"
    """Still valid behind a newer one: it decrypts, and signs again should the newer one be retired."""
    FUTURE = "future"
    """Not valid yet: it decrypts, and takes over by itself."""
    EXPIRED = "expired"
    """It decrypts, and signs nothing."""
    RETIRED = "retired"
    """Taken out of use before its end: it decrypts, and never signs."""


class KeyFile(msgspec.Struct, frozen=True):
    """What a key file seals."""

    address: str
    use: KeyUse
    private_key: bytes
    """PKCS#8 PrivateKeyInfo (RFC 5958), DER; empty for a key in a token."""
    certificates: tuple[bytes, ...]
    """DER: the key's own certificate, then its chain."""
    token_key: bytes = b""
    """CKA_ID of a key in a token."""
    retired_at: datetime | None = None

    def __repr__(self) -> str:
        """Whose and which key it is stays out of tracebacks."""
        return f"{type(self).__name__}(use={self.use})"


class RequestFile(msgspec.Struct, frozen=True):
    """What the file of a key without a certificate seals."""

    address: str
    use: KeyUse
    private_key: bytes
    token_key: bytes
    request: bytes
    """PKCS#10, DER."""
    made_at: datetime

    def __repr__(self) -> str:
        return f"{type(self).__name__}(use={self.use})"


@dataclass(frozen=True, slots=True, repr=False)
class HeldKey(CertifiedKey):
    """One generation of a mailbox's key."""

    address: str
    use: KeyUse
    retired_at: datetime | None
    in_token: bool
    token_key: bytes

    @property
    def key(self) -> PrivateKey:
        """The private key itself. Raises `KeyUnavailableError` for one in a token, which never comes out."""
        if not isinstance(self.operations, SoftwareKey):
            raise KeyUnavailableError("the key is in a token, and never comes out")
        return self.operations.key

    def valid(self, at: datetime) -> bool:
        return self.certificate.not_valid_before_utc <= at <= self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True, repr=False)
class Generation:
    """What can be said of a generation without its private key."""

    id: str
    """16 hexadecimal digits of the certificate's SHA-256: the same for both uses of one certificate."""
    address: str
    use: KeyUse
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    retired_at: datetime | None
    in_token: bool
    token_key: bytes


@dataclass(frozen=True, slots=True, repr=False)
class KeyRequest:
    """A key that waits for its certificate."""

    id: str
    """16 hexadecimal digits of the SHA-256 of its SubjectPublicKeyInfo."""
    address: str
    use: KeyUse
    request: x509.CertificateSigningRequest
    made_at: datetime
    in_token: bool
    token_key: bytes


def states(generations: Iterable[Generation], at: datetime) -> dict[Generation, KeyState]:
    """What each of these generations does at a moment (aware)."""
    found: dict[Generation, KeyState] = {}
    taken: set[tuple[str, KeyUse]] = set()
    for each in sorted(generations, key=lambda one: newest_first(one.certificate), reverse=True):
        certificate = each.certificate
        if each.retired_at is not None:
            found[each] = KeyState.RETIRED
        elif at > certificate.not_valid_after_utc:
            found[each] = KeyState.EXPIRED
        elif at < certificate.not_valid_before_utc:
            found[each] = KeyState.FUTURE
        elif (each.address, each.use) in taken:
            found[each] = KeyState.OLDER
        else:
            found[each] = KeyState.CURRENT
            taken.add((each.address, each.use))
    return found


def mailbox_name(address: str) -> str:
    """One spelling of a mailbox's address. Only ASCII has two cases here: to Unicode the Kelvin sign is a capital k,
    and nobody may be given the key of another whose name it is in."""
    return address.lower() if address.isascii() else address


def newest_first(certificate: x509.Certificate) -> tuple[datetime, datetime, bytes]:
    """What certificates of one mailbox are sorted by, the greatest being the newest; never two alike, so that what is
    told of the current one is what signs."""
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate.fingerprint(SHA256())


def generation_id(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(SHA256()).hex()[:_ID_DIGITS]


def request_id(public_key: PublicKey) -> str:
    hashed = Hash(SHA256())
    hashed.update(encoded(public_key))
    return hashed.finalize().hex()[:_ID_DIGITS]


def encoded(public_key: PublicKey) -> bytes:
    """DER of the SubjectPublicKeyInfo."""
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def encoded_key(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """DER of its SubjectPublicKeyInfo; empty for a key of another kind, or one that cannot be read."""
    key = public_key_of(certificate)
    return encoded(key) if key is not None else b""


def public_key_of(certificate: x509.Certificate | x509.CertificateSigningRequest) -> PublicKey | None:
    """None for a key that is of no kind kept here, or cannot be read."""
    try:
        key = certificate.public_key()
    except Exception:  # the parser reads lazily and has no common error class
        return None
    return key if isinstance(key, PUBLIC_KINDS) else None


def check_fitness(use: KeyUse, certificate: x509.Certificate) -> None:
    """Raises `VaultError` when a key with this certificate cannot serve that use."""
    key = public_key_of(certificate)
    if key is None:
        raise VaultError("only RSA, elliptic curve, Ed25519 and X25519 keys can be kept")
    if isinstance(key, x25519.X25519PublicKey if use is KeyUse.SIGNING else ed25519.Ed25519PublicKey):
        raise VaultError(f"a key of this kind is not for {use.value}")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    except Exception:
        raise VaultError("the certificate's extensions cannot be read: have it issued again") from None
    if use is KeyUse.SIGNING:
        fit = usage.digital_signature or usage.content_commitment
    else:
        fit = usage.key_encipherment if isinstance(key, rsa.RSAPublicKey) else usage.key_agreement
    if not fit:
        raise VaultError(f"the certificate's KeyUsage does not allow {use.value}")


def check_strength(certificate: x509.Certificate) -> None:
    """Raises `VaultError` for a key that is too weak, or of a size or on a curve that mail does not use."""
    weak = weakness(public_key_of(certificate))
    if weak:
        raise VaultError(f"the certificate is refused, for {weak}: make another key with relais keys request")


def check_address(address: str, certificate: x509.Certificate) -> None:
    """Raises `VaultError` for a certificate that names other mailboxes only.

    One that names none is bound to its mailbox by the directory.
    """
    named = mail_addresses(certificate)
    if named and mailbox_name(address) not in {mailbox_name(each) for each in named}:
        raise VaultError("the certificate is for another address than the mailbox: have it issued again")
