"""Encrypted content opened: AuthEnvelopedData (RFC 5083, RFC 5084), EnvelopedData (RFC 5652 §6).

Everything that can go wrong while opening ends in one exception without a reason, after the same work: one operation
with a private key, and the content through its cipher, with a random key if need be. Whoever sends variations of a
message learns nothing from ours (RFC 3218). A recipient's key is chosen by the name in the message, never by trying.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x448, x25519
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smime import oids
from smime.agreement import bound_content_key, wrapping_key
from smime.cms_read import Algorithm, Enveloped, KeyAgreement, Recipient, read_algorithm
from smime.content_ciphers import KINDS, prepare_gcm
from smime.identity import Identity, identity
from smime.policy import DEFAULT_POLICY, GcmVariant, ReadPolicy
from smime.schemes import read_oaep
from smime.verdict import Finding
from trust.der import DerError
from trust.keys import Decryptor, KeyUnavailableError


class CannotOpenError(Exception):
    """The content could not be decrypted. Never says why."""


class CannotOpenYetError(CannotOpenError):
    """The one key that might have opened it cannot be used now (`trust.keys.KeyUnavailableError`): try again later.

    Depends on nothing in the encrypted octets, so it may be told from the failure above.
    """


@dataclass(frozen=True, slots=True)
class Decrypted:
    """Content in the clear."""

    content: bytearray
    algorithm: str
    authenticated: bool
    """Whether a tag was verified: otherwise the ciphertext may have been altered (EFAIL)."""
    findings: tuple[Finding, ...] = ()
    """`gcm-variant` with the variant's name, `weak-algorithm` with that of the cipher."""


def decrypt_content(
    enveloped: Enveloped, decryptors: Sequence[Decryptor], policy: ReadPolicy = DEFAULT_POLICY
) -> Decrypted:
    """The content in the clear; nothing of it leaves before its tag has been verified.

    Raises CannotOpenError, of which CannotOpenYetError is the one kind that another try may mend.

    An AEAD algorithm inside EnvelopedData, or CBC inside AuthEnvelopedData, is refused: the structure decides whether
    a tag is verified (RFC 5083 §2, RFC 9709 §1.1). `decryptors` are those of one mailbox, the newest first.
    """
    try:
        algorithm, bound = _content_algorithm(enveloped.algorithm)
        kind = KINDS[algorithm.oid]
        if kind.authenticated is not enveloped.authenticated and kind.prepare is not prepare_gcm:
            raise ValueError("structure")
        sealed = kind.prepare(enveloped, algorithm, policy)
    except (ValueError, KeyError):
        raise CannotOpenError from None
    unavailable = False
    key: bytes | None = None
    try:
        key = _content_key(enveloped.recipients, decryptors, kind.octets)
    except KeyUnavailableError:
        unavailable = True
    working = key or os.urandom(kind.octets)
    if bound is not None:
        working = bound_content_key(working, bound)
    failure = CannotOpenYetError if unavailable else CannotOpenError
    try:
        content, unattributed = kind.open(sealed, working)
    except (ValueError, InvalidTag):
        raise failure from None
    if key is None:
        raise failure
    findings = [Finding("gcm-variant", variant.value) for variant in sealed.variants]
    if unattributed:
        findings.append(Finding("gcm-variant", GcmVariant.ATTRIBUTES_NOT_AUTHENTICATED.value))
    if algorithm.oid == oids.DES_EDE3_CBC:
        findings.append(Finding("weak-algorithm", kind.label))
    return Decrypted(content, kind.label, kind.authenticated, tuple(findings))


def _content_algorithm(algorithm: Algorithm) -> tuple[Algorithm, bytes | None]:
    """The cipher's own algorithm, and its DER when the content key is bound to it (RFC 9709). Raises DerError."""
    if algorithm.oid != oids.CEK_HKDF_SHA256:
        return algorithm, None
    if algorithm.parameters is None:
        raise DerError("no algorithm to bind the key to")
    inner = read_algorithm(algorithm.parameters)
    return inner, inner.encoded


# --- The content key -------------------------------------------------------------------------------------------------


class _UntriedError(ValueError):
    """Refused before the private key was used."""


_Work = Callable[[], bytes]
"""One operation with a private key, and what follows from it. Raises what it likes."""


def _content_key(recipients: Sequence[Recipient], decryptors: Sequence[Decryptor], octets: int) -> bytes | None:
    """The content key from the first recipient that names one of our certificates in a scheme read here.

    None when that fails. A private key is used once in any case, so that strangers' mail takes as long as that with
    a wrong key. Raises KeyUnavailableError when a key that is named cannot be used.
    """
    if not decryptors:
        return None
    work, decryptor = _addressed(recipients, decryptors)
    if work is None:
        _use_in_vain(decryptor)
        return None
    try:
        key = work()
    except KeyUnavailableError:
        raise
    except OSError as problem:  # a card or a connection is gone: no ciphertext does that
        raise KeyUnavailableError("the key's owner cannot be reached") from problem
    except Exception:  # a card's library raises what it likes, maybe by what is in the ciphertext
        return None
    return key if len(key) == octets else None


@dataclass(frozen=True, slots=True)
class _Own:
    """What is the same for each message to one of our certificates."""

    identity: Identity
    modulus: int
    """Of an RSA key; 0, which no ciphertext is below, of another."""


@lru_cache(maxsize=512)
def _own(certificate: x509.Certificate) -> _Own:
    """Raises ValueError when the certificate is unreadable."""
    modulus = 0
    with suppress(ValueError, UnsupportedAlgorithm):
        key = certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            modulus = key.public_numbers().n
    return _Own(identity(certificate), modulus)


def _addressed(recipients: Sequence[Recipient], decryptors: Sequence[Decryptor]) -> tuple[_Work | None, Decryptor]:
    """What to do, and with whose key; with nothing to do, whose key to use in vain.

    Recipients in schemes that are not read here are passed over: which those are everybody can see.
    """
    own: list[tuple[_Own, Decryptor]] = []
    for decryptor in decryptors:
        with suppress(ValueError):  # an unreadable certificate is named by nobody
            own.append((_own(decryptor.certificate), decryptor))
    named: Decryptor | None = None
    for recipient in recipients:
        for ours, decryptor in own:
            if ours.identity.is_named_by(recipient.recipient):
                named = named or decryptor
                with suppress(_UntriedError):
                    return _recipients_key(recipient, decryptor, ours), decryptor
    return None, named or decryptors[0]


def _use_in_vain(decryptor: Decryptor) -> None:
    """An operation with the private key that comes to nothing."""
    with suppress(Exception):  # whatever a card's library says to that
        key = decryptor.certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            decryptor.decrypt_pkcs1v15(b"\0" + os.urandom(key.key_size // 8 - 1))
        elif isinstance(key, ec.EllipticCurvePublicKey):
            decryptor.agree(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
        elif isinstance(key, (x25519.X25519PublicKey, x448.X448PublicKey)):
            decryptor.agree(key.public_bytes_raw())


def _recipients_key(recipient: Recipient, decryptor: Decryptor, own: _Own) -> _Work:
    """Raises _UntriedError."""
    if isinstance(recipient, KeyAgreement):
        return _agreed(recipient, decryptor, own.identity)
    encrypted, algorithm = recipient.encrypted_key, recipient.algorithm
    if algorithm.oid == oids.RSA_ENCRYPTION and algorithm.parameters is None:
        work = partial(decryptor.decrypt_pkcs1v15, encrypted)
    elif algorithm.oid == oids.RSAES_OAEP:
        work = partial(decryptor.decrypt_oaep, encrypted, *_oaep_parameters(algorithm))
    else:
        raise _UntriedError
    if len(encrypted) != (own.modulus.bit_length() + 7) // 8 or int.from_bytes(encrypted, "big") >= own.modulus:
        raise _UntriedError  # no ciphertext of that key: refused before it is used, in no time (RFC 8017 §7.1.2)
    return work


_WRAP_OCTETS = {oids.AES128_WRAP: 16, oids.AES192_WRAP: 24, oids.AES256_WRAP: 32}
_SHA1: hashes.HashAlgorithm = hashes.SHA1()  # what OpenSSL writes unasked, and not a weakness inside OAEP or a KDF  # noqa: S303
_AGREEMENTS: dict[str, tuple[hashes.HashAlgorithm, bool]] = {
    oids.ECDH_SHA1_KDF: (_SHA1, False),
    oids.ECDH_SHA224_KDF: (hashes.SHA224(), False),
    oids.ECDH_SHA256_KDF: (hashes.SHA256(), False),
    oids.ECDH_SHA384_KDF: (hashes.SHA384(), False),
    oids.ECDH_SHA512_KDF: (hashes.SHA512(), False),
    # no different on the curves read here, whose cofactor is 1 (RFC 5753 §7.1.4)
    oids.COFACTOR_ECDH_SHA1_KDF: (_SHA1, False),
    oids.COFACTOR_ECDH_SHA224_KDF: (hashes.SHA224(), False),
    oids.COFACTOR_ECDH_SHA256_KDF: (hashes.SHA256(), False),
    oids.COFACTOR_ECDH_SHA384_KDF: (hashes.SHA384(), False),
    oids.COFACTOR_ECDH_SHA512_KDF: (hashes.SHA512(), False),
    oids.ECDH_HKDF_SHA256: (hashes.SHA256(), True),
    oids.ECDH_HKDF_SHA384: (hashes.SHA384(), True),
    oids.ECDH_HKDF_SHA512: (hashes.SHA512(), True),
}
"""Hash of the KDF, and whether that is HKDF."""


def _agreed(recipient: KeyAgreement, decryptor: Decryptor, own: Identity) -> _Work:
    """RFC 5753 §3.1.3, RFC 8418 §2. Raises _UntriedError."""
    wrap = recipient.algorithm.parameters
    if wrap is None or recipient.algorithm.oid not in _AGREEMENTS or not recipient.originator:
        raise _UntriedError  # an originator named by a certificate is nobody's ephemeral key
    if not _is_for(recipient, own.key_algorithm):
        raise _UntriedError
    try:
        octets = _WRAP_OCTETS[read_algorithm(wrap).oid]
    except (DerError, KeyError):
        raise _UntriedError from None
    digest, hkdf = _AGREEMENTS[recipient.algorithm.oid]
    wrap_algorithm = wrap.copy()

    def work() -> bytes:
        secret = decryptor.agree(recipient.originator)
        wrapping = wrapping_key(secret, digest, octets, wrap_algorithm, recipient.user_material, hkdf=hkdf)
        return aes_key_unwrap(wrapping, recipient.encrypted_key)

    return work


def _is_for(recipient: KeyAgreement, own: Algorithm) -> bool:
    """Whether the originator's key is of the kind of ours: the curve is named again, or as RFC 5753 §3.1.1 has it not.

    In a public key on Curve25519 the highest bit means nothing (RFC 7748 §5), so nobody sets it.
    """
    theirs = recipient.originator_algorithm
    if theirs is None or theirs.oid != own.oid or (theirs.parameters is not None and theirs.encoded != own.encoded):
        return False
    return own.oid != oids.X25519 or recipient.originator[-1] < 0x80


_OAEP_HASHES: dict[str, hashes.HashAlgorithm] = {
    oids.SHA1: _SHA1,
    oids.SHA224: hashes.SHA224(),
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}


def _oaep_parameters(algorithm: Algorithm) -> tuple[hashes.HashAlgorithm, hashes.HashAlgorithm, bytes]:
    """Hash, MGF1 hash and label. Raises _UntriedError."""
    try:
        found = read_oaep(algorithm)
        return _OAEP_HASHES[found.digest], _OAEP_HASHES[found.mask], found.label
    except (DerError, KeyError):
        raise _UntriedError from None
