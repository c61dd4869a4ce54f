"""Encrypted content written: AuthEnvelopedData (RFC 5083, RFC 5084), EnvelopedData for who needs it (RFC 5652 §6).

The content key reaches RSA recipients by key transport, recipients on an elliptic curve by ephemeral-static ECDH
(RFC 5753 §3.1, RFC 8418 for X25519); any mix of them shares one message and one content key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smime import oids
from smime.agreement import bound_content_key, wrapping_key
from smime.capabilities import OAEP_SHA256_PARAMETERS
from smime.identity import REMEMBERED_CERTIFICATE_OCTETS, identity
from smime.strength import acceptable
from smime.suites import KeyTransportScheme, RecipientNaming, Suite
from trust import der
from trust.der import context

_BLOCK = 16
_NONCE = 12
_TAG = 16
_CERTIFICATES_REMEMBERED = 4096

_OAEP_SHA256 = der.sequence(der.oid(oids.RSAES_OAEP), OAEP_SHA256_PARAMETERS)
_PKCS1V15 = der.sequence(der.oid(oids.RSA_ENCRYPTION), der.null())
_OAEP_PADDING = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_PKCS1V15_PADDING = padding.PKCS1v15()
_WRAPS = {16: der.sequence(der.oid(oids.AES128_WRAP)), 32: der.sequence(der.oid(oids.AES256_WRAP))}
_ZERO = der.integer(0)
_TWO = der.integer(2)
_THREE = der.integer(3)

AgreementKey = ec.EllipticCurvePublicKey | x25519.X25519PublicKey


class UnfitCertificateError(ValueError):
    """A certificate cannot be encrypted to: its key is of a kind or size that Relais does not write to."""


@dataclass(frozen=True, slots=True)
class _Scheme:
    """How one kind of curve agrees on a key (RFC 5753 §8: the hash as strong as the curve)."""

    oid: str
    digest: hashes.HashAlgorithm
    least_wrap_octets: int
    """Of the key-encryption key, which is never shorter than the content key either."""
    hkdf: bool = False


_CURVES: dict[type[ec.EllipticCurve], _Scheme] = {
    ec.SECP256R1: _Scheme(oids.ECDH_SHA256_KDF, hashes.SHA256(), 16),
    ec.BrainpoolP256R1: _Scheme(oids.ECDH_SHA256_KDF, hashes.SHA256(), 16),
    ec.SECP384R1: _Scheme(oids.ECDH_SHA384_KDF, hashes.SHA384(), 32),
    ec.BrainpoolP384R1: _Scheme(oids.ECDH_SHA384_KDF, hashes.SHA384(), 32),
    ec.SECP521R1: _Scheme(oids.ECDH_SHA512_KDF, hashes.SHA512(), 32),
    ec.BrainpoolP512R1: _Scheme(oids.ECDH_SHA512_KDF, hashes.SHA512(), 32),
}
_X25519 = _Scheme(oids.ECDH_HKDF_SHA256, hashes.SHA256(), 16, hkdf=True)


def encrypt_content(content: bytes, certificates: Sequence[x509.Certificate], suite: Suite) -> bytearray:
    """DER of a ContentInfo that the holders of `certificates` can open; a fresh key and nonce each time.

    Raises ValueError without a certificate, and `UnfitCertificateError` for one that `can_encrypt_to` refuses.
    """
    if not certificates:
        raise ValueError("no certificate to encrypt to")
    drawn = os.urandom(suite.content.key_octets + _BLOCK)  # at once: each call lets other threads go first
    key, fresh = drawn[:-_BLOCK], drawn[-_BLOCK:]
    different = dict.fromkeys(certificates) if len(certificates) > 1 else certificates
    recipients = [_recipient(certificate)(key, suite) for certificate in different]
    infos = der.set_of(encoded for _, encoded in recipients)
    if suite.content.authenticated:
        return _auth_enveloped(content, key, fresh[:_NONCE], infos, suite)
    version = 2 if any(version for version, _ in recipients) else 0  # RFC 5652 §6.1
    return _enveloped(content, key, fresh, version, infos, suite)


def can_encrypt_to(certificate: x509.Certificate) -> bool:
    """Whether the certificate's key is of a kind written to here.

    RSA from 2048 to 8192 bits that is not for PSS signatures alone (RFC 4055 §1.2), P-256, P-384, P-521,
    brainpoolP256r1, P384r1, P512r1, or X25519 of large order.
    """
    try:
        _recipient(certificate)
    except ValueError:
        return False
    return True


Recipient = Callable[[bytes, Suite], tuple[int, bytes]]
"""Makes the RecipientInfo for a content key: its version and its DER."""


def _recipient(certificate: x509.Certificate) -> Recipient:
    """Raises UnfitCertificateError."""
    if len(certificate.public_bytes(Encoding.DER)) > REMEMBERED_CERTIFICATE_OCTETS:
        return _known_recipient.__wrapped__(certificate)
    return _known_recipient(certificate)


@lru_cache(maxsize=_CERTIFICATES_REMEMBERED)
def _known_recipient(certificate: x509.Certificate) -> Recipient:
    """What need not be done anew for each message. Raises UnfitCertificateError."""
    try:
        public_key = certificate.public_key()
        own = identity(certificate)
        numbered, key_id = own.issuer_and_serial, own.key_id
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise UnfitCertificateError("the certificate cannot be read") from problem
    if isinstance(public_key, rsa.RSAPublicKey) and acceptable(public_key) and own.key_algorithm.oid != oids.RSASSA_PSS:
        return _transport(public_key, numbered, key_id)
    if isinstance(public_key, x25519.X25519PublicKey):
        try:
            _shared(public_key)
        except ValueError:  # of small order: everybody knows the secret, zero (RFC 7748 §6.1)
            raise UnfitCertificateError("no secret can be agreed on with the certificate's key") from None
        return _agreement(public_key, _X25519, numbered, key_id)
    if isinstance(public_key, ec.EllipticCurvePublicKey) and type(public_key.curve) in _CURVES:
        return _agreement(public_key, _CURVES[type(public_key.curve)], numbered, key_id)
    raise UnfitCertificateError("encryption needs an RSA key of 2048 to 8192 bits or an accepted curve")


def _transport(public_key: rsa.RSAPublicKey, numbered: bytes, key_id: bytes) -> Recipient:
    """KeyTransRecipientInfo (RFC 5652 §6.2.1)."""
    by_number = 0, _ZERO + numbered
    by_key_id = (2, _TWO + der.tlv(context(0, constructed=False), key_id)) if key_id else by_number

    def recipient(key: bytes, suite: Suite) -> tuple[int, bytes]:
        if suite.key_transport is KeyTransportScheme.RSA_OAEP_SHA256:
            algorithm, encrypted = _OAEP_SHA256, public_key.encrypt(key, _OAEP_PADDING)
        else:
            algorithm, encrypted = _PKCS1V15, public_key.encrypt(key, _PKCS1V15_PADDING)
        version, name = by_number if suite.naming is RecipientNaming.ISSUER_AND_SERIAL else by_key_id
        return version, der.sequence(name, algorithm, der.octet_string(encrypted))

    return recipient


def _agreement(public_key: AgreementKey, scheme: _Scheme, numbered: bytes, key_id: bytes) -> Recipient:
    """KeyAgreeRecipientInfo for one recipient, with an ephemeral key of its own (RFC 5753 §3.1.1, RFC 8418 §2.1)."""
    by_key_id = der.tlv(context(0), der.octet_string(key_id)) if key_id else numbered
    oid = der.oid(scheme.oid)
    curve = der.sequence(der.oid(oids.X25519 if scheme.hkdf else oids.EC_PUBLIC_KEY))

    def recipient(key: bytes, suite: Suite) -> tuple[int, bytes]:
        octets = max(len(key), scheme.least_wrap_octets)
        wrap = _WRAPS[octets]
        try:
            secret, point = _shared(public_key)
        except ValueError as problem:
            raise UnfitCertificateError("no secret can be agreed on with the certificate's key") from problem
        wrapping = wrapping_key(secret, scheme.digest, octets, wrap, None, hkdf=scheme.hkdf)
        name = numbered if suite.naming is RecipientNaming.ISSUER_AND_SERIAL else by_key_id
        encrypted = der.sequence(name, der.octet_string(aes_key_wrap(wrapping, key)))
        originator = der.tlv(context(1), curve, der.tlv(der.BIT_STRING, b"\0", point))
        return 3, der.tlv(
            context(1),
            _THREE,
            der.tlv(context(0), originator),
            der.sequence(oid, wrap),
            der.sequence(encrypted),
        )

    return recipient


def _shared(public_key: AgreementKey) -> tuple[bytes, bytes]:
    """The secret shared with a fresh ephemeral key, and that key's public half. Raises ValueError."""
    if isinstance(public_key, x25519.X25519PublicKey):
        own = x25519.X25519PrivateKey.generate()
        return own.exchange(public_key), own.public_key().public_bytes_raw()
    ephemeral = ec.generate_private_key(public_key.curve)
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return ephemeral.exchange(ec.ECDH(), public_key), point


def _bound(key: bytes, algorithm: bytes, suite: Suite) -> tuple[bytes, bytes]:
    """The key that encrypts the content, and the algorithm as it is written (RFC 9709 §2, §3)."""
    if not suite.cek_hkdf:
        return key, algorithm
    return bound_content_key(key, algorithm), der.sequence(der.oid(oids.CEK_HKDF_SHA256), algorithm)


def _frame(content_type: str, version: int, recipients: bytes, algorithm: bytes, size: int, suffix: int) -> bytes:
    """Everything before the encrypted content, given its size and that of what follows it inside the structure."""

    def enclose(tag: int, known: bytes, following: int) -> bytes:
        return der.header(tag, len(known) + following) + known

    content = der.header(context(0, constructed=False), size)
    info = enclose(der.SEQUENCE, der.oid(oids.DATA) + algorithm + content, size)
    data = enclose(der.SEQUENCE, der.integer(version) + recipients + info, size + suffix)
    return enclose(der.SEQUENCE, der.oid(content_type) + enclose(context(0), data, size + suffix), size + suffix)


def _auth_enveloped(content: bytes, key: bytes, nonce: bytes, recipients: bytes, suite: Suite) -> bytearray:
    """The ciphertext is made in its place; OpenSSL mistakes authAttrs, so none are ever written."""
    parameters = der.sequence(der.octet_string(nonce), der.integer(_TAG))
    key, algorithm = _bound(key, der.sequence(der.oid(suite.content.oid), parameters), suite)
    mac_header = der.header(der.OCTET_STRING, _TAG)
    size = len(content)
    frame = _frame(oids.AUTH_ENVELOPED_DATA, 0, recipients, algorithm, size, len(mac_header) + _TAG)
    message = bytearray(len(frame) + size + len(mac_header) + _TAG)
    message[: len(frame)] = frame
    end = len(frame) + size
    AESGCM(key).encrypt_into(nonce, content, None, memoryview(message)[len(frame) : end + _TAG])
    message[end:] = mac_header + message[end : end + _TAG]  # the tag moves behind the header of `mac`
    return message


def _enveloped(content: bytes, key: bytes, iv: bytes, version: int, recipients: bytes, suite: Suite) -> bytearray:
    key, algorithm = _bound(key, der.sequence(der.oid(suite.content.oid), der.octet_string(iv)), suite)
    padded = len(content) + _BLOCK - len(content) % _BLOCK
    frame = _frame(oids.ENVELOPED_DATA, version, recipients, algorithm, padded, 0)
    message = bytearray(len(frame) + padded + _BLOCK)
    message[: len(frame)] = frame
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    written = len(frame)
    for piece in (content, bytes([padded - len(content)]) * (padded - len(content))):
        written += encryptor.update_into(piece, memoryview(message)[written:])
    encryptor.finalize()
    del message[written:]
    return message
