"""Encrypted content opened: AuthEnvelopedData (RFC 5083, RFC 5084), EnvelopedData (RFC 5652 §6).

Everything that can go wrong while opening ends in one exception without a reason, after the same work: one operation
with a private key, and the content through its cipher, with a random key if need be. Whoever sends variations of a
message learns nothing from ours (RFC 3218). A recipient's key is chosen by the name in the message, never by trying.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x448, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smime import oids
from smime.agreement import bound_content_key, wrapping_key
from smime.cms_read import Algorithm, Enveloped, KeyAgreement, Recipient, read_algorithm
from smime.identity import Identity, identity
from smime.policy import DEFAULT_POLICY, GcmVariant, ReadPolicy
from smime.verdict import Finding
from trust import der
from trust.der import DerError, Octets, context
from trust.keys import Decryptor

_NONCE = 12
_TAG_OCTETS = range(12, 17)
_DEFAULT_TAG = 12
_LONGEST_TAG = 16
_BLOCK = 16


class CannotOpenError(Exception):
    """The content could not be decrypted. Never says why."""


@dataclass(frozen=True, slots=True)
class Decrypted:
    """Content in the clear."""

    content: bytearray
    algorithm: str
    authenticated: bool
    """Whether a tag was verified: otherwise the ciphertext may have been altered (EFAIL)."""
    findings: tuple[Finding, ...] = ()
    """`gcm-variant` with the variant's name, `weak-algorithm` with that of the cipher."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    """Encrypted content with all that is public about how to open it."""

    content: Octets
    size: int
    """Of the ciphertext proper, which may be followed by a copy of the tag."""
    nonce: bytes
    tag: bytes = b""
    additional: tuple[bytes, ...] = (b"",)
    """What was authenticated beside the content, or may have been."""
    variants: tuple[GcmVariant, ...] = ()


def decrypt_content(
    enveloped: Enveloped, decryptors: Sequence[Decryptor], policy: ReadPolicy = DEFAULT_POLICY
) -> Decrypted:
    """The content in the clear; nothing of it leaves before its tag has been verified. Raises CannotOpenError.

    An AEAD algorithm inside EnvelopedData, or CBC inside AuthEnvelopedData, is refused: the structure decides whether
    a tag is verified (RFC 5083 §2, RFC 9709 §1.1). `decryptors` are those of one mailbox, the newest first.
    """
    try:
        algorithm, bound = _content_algorithm(enveloped.algorithm)
        kind = _KINDS[algorithm.oid]
        if kind.authenticated is not enveloped.authenticated and kind.prepare is not _prepare_gcm:
            raise ValueError("structure")
        sealed = kind.prepare(enveloped, algorithm, policy)
    except (ValueError, KeyError):
        raise CannotOpenError from None
    key = _content_key(enveloped.recipients, decryptors, kind.octets)
    working = key or os.urandom(kind.octets)
    if bound is not None:
        working = bound_content_key(working, bound)
    try:
        content, unattributed = kind.open(sealed, working)
    except (ValueError, InvalidTag):
        raise CannotOpenError from None
    if key is None:
        raise CannotOpenError
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
    return read_algorithm(algorithm.parameters), bytes(algorithm.parameters.encoded)


# --- The content key -------------------------------------------------------------------------------------------------


class _UntriedError(ValueError):
    """Refused before the private key was used."""


def _content_key(recipients: Sequence[Recipient], decryptors: Sequence[Decryptor], octets: int) -> bytes | None:
    """The content key of the first recipient that names one of our certificates, None when that fails.

    A private key is used once in any case, so that strangers' mail takes as long as that with a wrong key.
    """
    if not decryptors:
        return None
    found = _addressed(recipients, decryptors)
    try:
        if found is None:
            raise _UntriedError
        key = _recipients_key(*found)
    except _UntriedError:
        _use_in_vain(found[1] if found is not None else decryptors[0])
        return None
    except (ValueError, InvalidUnwrap, UnsupportedAlgorithm):
        return None
    return key if len(key) == octets else None


def _addressed(recipients: Sequence[Recipient], decryptors: Sequence[Decryptor]) -> tuple[Recipient, Decryptor] | None:
    own: list[tuple[Identity, Decryptor]] = []
    for decryptor in decryptors:
        with suppress(ValueError):  # an unreadable certificate is named by nobody
            own.append((identity(decryptor.certificate), decryptor))
    for recipient in recipients:
        for ours, decryptor in own:
            if ours.is_named_by(recipient.recipient):
                return recipient, decryptor
    return None


def _use_in_vain(decryptor: Decryptor) -> None:
    """An operation with the private key that comes to nothing."""
    with suppress(ValueError, UnsupportedAlgorithm):
        key = decryptor.certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            decryptor.decrypt_pkcs1v15(b"\0" + os.urandom(key.key_size // 8 - 1))
        elif isinstance(key, ec.EllipticCurvePublicKey):
            decryptor.agree(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
        elif isinstance(key, (x25519.X25519PublicKey, x448.X448PublicKey)):
            decryptor.agree(key.public_bytes_raw())


def _recipients_key(recipient: Recipient, decryptor: Decryptor) -> bytes:
    """Raises _UntriedError, ValueError, InvalidUnwrap."""
    if isinstance(recipient, KeyAgreement):
        return _unwrapped(recipient, decryptor)
    if recipient.algorithm.oid == oids.RSA_ENCRYPTION:
        return decryptor.decrypt_pkcs1v15(recipient.encrypted_key)
    if recipient.algorithm.oid == oids.RSAES_OAEP:
        return decryptor.decrypt_oaep(recipient.encrypted_key, *_oaep_parameters(recipient.algorithm))
    raise _UntriedError


_WRAP_OCTETS = {oids.AES128_WRAP: 16, oids.AES192_WRAP: 24, oids.AES256_WRAP: 32}
_SHA1 = hashes.SHA1()  # what OpenSSL writes unasked, and not a weakness inside OAEP or a KDF  # noqa: S303
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


def _unwrapped(recipient: KeyAgreement, decryptor: Decryptor) -> bytes:
    """RFC 5753 §3.1.3, RFC 8418 §2. Raises _UntriedError, ValueError, InvalidUnwrap."""
    wrap = recipient.algorithm.parameters
    if wrap is None or recipient.algorithm.oid not in _AGREEMENTS or not recipient.originator:
        raise _UntriedError  # an originator named by a certificate is nobody's ephemeral key
    try:
        octets = _WRAP_OCTETS[read_algorithm(wrap).oid]
    except (DerError, KeyError):
        raise _UntriedError from None
    digest, hkdf = _AGREEMENTS[recipient.algorithm.oid]
    secret = decryptor.agree(recipient.originator)
    wrapping = wrapping_key(secret, digest, octets, bytes(wrap.encoded), recipient.user_material, hkdf=hkdf)
    return aes_key_unwrap(wrapping, recipient.encrypted_key)


_OAEP_HASHES: dict[str, hashes.HashAlgorithm] = {
    oids.SHA1: _SHA1,
    oids.SHA224: hashes.SHA224(),
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}


def _oaep_parameters(algorithm: Algorithm) -> tuple[hashes.HashAlgorithm, hashes.HashAlgorithm, bytes]:
    """Hash, MGF1 hash and label of RSAES-OAEP-params (RFC 8017 A.2.1). Raises _UntriedError."""
    digest = mask = oids.SHA1
    label = b""
    try:
        for field in algorithm.parameters.sequence(3) if algorithm.parameters is not None else ():
            value = read_algorithm(field.explicit())
            if field.tag == context(0):
                digest = value.oid
            elif field.tag == context(1) and value.oid == oids.MGF1 and value.parameters is not None:
                mask = read_algorithm(value.parameters).oid
            elif field.tag == context(2) and value.oid == oids.P_SPECIFIED and value.parameters is not None:
                label = value.parameters.octets()
            else:
                raise _UntriedError
        return _OAEP_HASHES[digest], _OAEP_HASHES[mask], label
    except (DerError, KeyError):
        raise _UntriedError from None


# --- The content -----------------------------------------------------------------------------------------------------


def _prepare_gcm(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> _Sealed:
    """RFC 5084 §3.2, and what products have made of it where the policy admits that. Raises ValueError."""
    content, tag, parameters = enveloped.content, enveloped.mac, algorithm.parameters
    if parameters is None:
        raise DerError("GCMParameters")
    variants: list[GcmVariant] = []
    icv_octets: int | None = None
    if parameters.tag == der.OCTET_STRING:
        variants.append(GcmVariant.BARE_NONCE)
        nonce = parameters.octets()
    else:
        fields = parameters.sequence(2)
        if not fields:
            raise DerError("GCMParameters")
        nonce = fields[0].octets()
        icv_octets = fields[1].integer() if len(fields) == 2 else _DEFAULT_TAG
        omitted = GcmVariant.ICV_LENGTH_OMITTED
        if len(fields) == 1 and (
            len(tag) != _DEFAULT_TAG if enveloped.authenticated else omitted in policy.gcm_variants
        ):
            variants.append(omitted)
            icv_octets = None
        elif icv_octets not in _TAG_OCTETS:
            raise ValueError("aes-ICVlen")
    size = len(content)
    if not enveloped.authenticated:
        variants.append(GcmVariant.IN_ENVELOPED_DATA)
        tag = _tail(content, icv_octets or _LONGEST_TAG)
        size -= len(tag)
    elif GcmVariant.TAG_IN_CONTENT in policy.gcm_variants and _tail(content, len(tag)) == tag:
        variants.append(GcmVariant.TAG_IN_CONTENT)
        size -= len(tag)
    if len(nonce) != _NONCE or len(tag) not in _TAG_OCTETS or len(tag) != (icv_octets or len(tag)):
        raise ValueError("nonce or tag")
    if not policy.gcm_variants.issuperset(variants):
        raise ValueError("variant of GCM")
    return _Sealed(content, size, nonce, tag, _additional(enveloped, policy), tuple(variants))


def _additional(enveloped: Enveloped, policy: ReadPolicy) -> tuple[bytes, ...]:
    attributes = enveloped.auth_attributes
    if attributes and GcmVariant.ATTRIBUTES_NOT_AUTHENTICATED in policy.gcm_variants:
        return attributes, b""
    return (attributes,)


def _open_gcm(sealed: _Sealed, key: bytes) -> tuple[bytearray, bool]:
    content = bytearray(sealed.size + _BLOCK)  # `update_into` insists on room for a block more
    room = memoryview(content)
    for attempt, additional in enumerate(sealed.additional):
        decryptor = Cipher(algorithms.AES(key), modes.GCM(sealed.nonce, None, min_tag_length=12)).decryptor()
        decryptor.authenticate_additional_data(additional)
        written = 0
        for piece in _pieces(sealed):
            written += decryptor.update_into(piece, room[written:])
        try:
            decryptor.finalize_with_tag(sealed.tag)
        except InvalidTag:
            continue
        room.release()
        del content[written:]
        return content, attempt > 0
    raise InvalidTag


def _prepare_ccm(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> _Sealed:
    """RFC 5084 §3.1. Raises ValueError."""
    fields = algorithm.parameters.sequence(2) if algorithm.parameters is not None else []
    if not fields:
        raise DerError("CCMParameters")
    icv_octets = fields[1].integer() if len(fields) == 2 else _DEFAULT_TAG
    nonce = fields[0].octets()
    if not 7 <= len(nonce) <= 13 or icv_octets not in (12, 14, 16) or len(enveloped.mac) != icv_octets:
        raise ValueError("nonce or tag")
    if len(enveloped.content) >= 1 << 8 * (15 - len(nonce)):
        raise ValueError("nonce too long for this content")
    return _Sealed(enveloped.content, len(enveloped.content), nonce, enveloped.mac, (enveloped.auth_attributes,))


def _open_ccm(sealed: _Sealed, key: bytes) -> tuple[bytearray, bool]:
    return _open_at_once(AESCCM(key, len(sealed.tag)), sealed), False


def _prepare_chacha20(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> _Sealed:
    """RFC 8103 §2. Raises ValueError."""
    nonce = algorithm.parameters.octets() if algorithm.parameters is not None else b""
    if len(nonce) != _NONCE or len(enveloped.mac) != _LONGEST_TAG:
        raise ValueError("nonce or tag")
    return _Sealed(enveloped.content, len(enveloped.content), nonce, enveloped.mac, (enveloped.auth_attributes,))


def _open_chacha20(sealed: _Sealed, key: bytes) -> tuple[bytearray, bool]:
    return _open_at_once(ChaCha20Poly1305(key), sealed), False


def _open_at_once(cipher: AESCCM | ChaCha20Poly1305, sealed: _Sealed) -> bytearray:
    content = bytearray(sealed.size)
    cipher.decrypt_into(sealed.nonce, b"".join((*sealed.content, sealed.tag)), sealed.additional[0], content)
    return content


def _prepare_cbc(enveloped: Enveloped, algorithm: Algorithm, policy: ReadPolicy) -> _Sealed:
    """RFC 3565 §4.1, RFC 3370 §5.1. Raises ValueError."""
    triple_des = algorithm.oid == oids.DES_EDE3_CBC
    block = 8 if triple_des else _BLOCK
    iv = algorithm.parameters.octets() if algorithm.parameters is not None else b""
    size = len(enveloped.content)
    if not (policy.triple_des if triple_des else policy.cbc):
        raise ValueError("algorithm not admitted")
    if len(iv) != block or not size or size % block:
        raise ValueError("IV or length")
    return _Sealed(enveloped.content, size, iv)


def _open_cbc(sealed: _Sealed, key: bytes) -> tuple[bytearray, bool]:
    block = len(sealed.nonce)
    cipher = algorithms.AES(key) if block == _BLOCK else TripleDES(key)
    decryptor = Cipher(cipher, modes.CBC(sealed.nonce)).decryptor()
    content = bytearray(sealed.size + _BLOCK)
    room = memoryview(content)
    written = 0
    for piece in sealed.content:
        written += decryptor.update_into(piece, room[written:])
    decryptor.finalize()
    room.release()
    padding = content[written - 1]
    if not 1 <= padding <= block or content.count(padding, written - padding, written) != padding:
        raise ValueError("padding")
    del content[written - padding :]
    return content, False


def _pieces(sealed: _Sealed) -> Iterator[bytes | memoryview]:
    """The ciphertext proper."""
    left = sealed.size
    for piece in sealed.content:
        yield piece[:left] if left < len(piece) else piece
        left = max(left - len(piece), 0)


def _tail(content: Octets, octets: int) -> bytes:
    """The last octets of an encrypted content, fewer when it is shorter."""
    tail = b""
    for piece in content:
        tail = (tail + piece[-octets:])[-octets:]
    return tail


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one algorithm is read."""

    label: str
    octets: int
    """Of the key."""
    authenticated: bool
    prepare: Callable[[Enveloped, Algorithm, ReadPolicy], _Sealed]
    open: Callable[[_Sealed, bytes], tuple[bytearray, bool]]
    """The content, and whether the attributes turned out not to be authenticated. Raises ValueError, InvalidTag."""


_KINDS = {
    oids.AES128_GCM: _Kind("aes128-gcm", 16, True, _prepare_gcm, _open_gcm),
    oids.AES192_GCM: _Kind("aes192-gcm", 24, True, _prepare_gcm, _open_gcm),
    oids.AES256_GCM: _Kind("aes256-gcm", 32, True, _prepare_gcm, _open_gcm),
    oids.AES128_CCM: _Kind("aes128-ccm", 16, True, _prepare_ccm, _open_ccm),
    oids.AES192_CCM: _Kind("aes192-ccm", 24, True, _prepare_ccm, _open_ccm),
    oids.AES256_CCM: _Kind("aes256-ccm", 32, True, _prepare_ccm, _open_ccm),
    oids.CHACHA20_POLY1305: _Kind("chacha20-poly1305", 32, True, _prepare_chacha20, _open_chacha20),
    oids.AES128_CBC: _Kind("aes128-cbc", 16, False, _prepare_cbc, _open_cbc),
    oids.AES192_CBC: _Kind("aes192-cbc", 24, False, _prepare_cbc, _open_cbc),
    oids.AES256_CBC: _Kind("aes256-cbc", 32, False, _prepare_cbc, _open_cbc),
    oids.DES_EDE3_CBC: _Kind("des-ede3-cbc", 24, False, _prepare_cbc, _open_cbc),
}
