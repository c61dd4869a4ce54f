"""Encrypted content written: AuthEnvelopedData (RFC 5083, RFC 5084), EnvelopedData for who needs it (RFC 5652 §6).

The content key reaches RSA recipients by key transport, recipients on an elliptic curve by ephemeral-static ECDH
(RFC 5753 §3.1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smime import oids
from smime.agreement import wrapping_key
from smime.identity import identity
from smime.suites import ContentCipher, KeyTransportScheme, Suite
from trust import der
from trust.der import context

MIN_RSA_BITS = 2048
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_BLOCK = 16
_NONCE = 12
_TAG = 16

_SHA256_ALGORITHM = der.sequence(der.oid(oids.SHA256), der.null())
_OAEP_SHA256 = der.sequence(
    der.oid(oids.RSAES_OAEP),
    der.sequence(
        der.tlv(context(0), _SHA256_ALGORITHM),
        der.tlv(context(1), der.sequence(der.oid(oids.MGF1), _SHA256_ALGORITHM)),
    ),
)
_PKCS1V15 = der.sequence(der.oid(oids.RSA_ENCRYPTION), der.null())
_AES256_WRAP = der.sequence(der.oid(oids.AES256_WRAP))


def encrypt_content(content: bytes, certificates: Sequence[x509.Certificate], suite: Suite) -> bytearray:
    """DER of a ContentInfo that the holders of `certificates` can open; a fresh key and nonce each time.

    Raises ValueError without a certificate, or for one whose key is neither RSA of at least 2048 bits nor on a NIST
    curve.
    """
    if not certificates:
        raise ValueError("no certificate to encrypt to")
    key = os.urandom(suite.content.key_octets)
    different = dict.fromkeys(certificates)
    recipients = der.set_of(_recipient(certificate, key, suite.key_transport) for certificate in different)
    if suite.content.authenticated:
        return _auth_enveloped(content, key, recipients, suite.content)
    agreed = any(isinstance(certificate.public_key(), ec.EllipticCurvePublicKey) for certificate in different)
    version = 2 if agreed else 0  # RFC 5652 §6.1
    return _enveloped(content, key, version, recipients, suite.content)


def can_encrypt_to(certificate: x509.Certificate) -> bool:
    """Whether the certificate's key is of a kind written here: RSA of at least 2048 bits, or on a NIST curve."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, CURVES)


def _recipient(certificate: x509.Certificate, key: bytes, scheme: KeyTransportScheme) -> bytes:
    public_key = certificate.public_key()
    if isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(public_key.curve, CURVES):
        return _agreed(certificate, public_key, key)
    if not isinstance(public_key, rsa.RSAPublicKey) or public_key.key_size < MIN_RSA_BITS:
        raise ValueError("encryption needs an RSA key of at least 2048 bits or a key on a NIST curve")
    if scheme is KeyTransportScheme.RSA_OAEP_SHA256:
        algorithm = _OAEP_SHA256
        encrypted = public_key.encrypt(key, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    else:
        algorithm = _PKCS1V15
        encrypted = public_key.encrypt(key, padding.PKCS1v15())
    name = identity(certificate).issuer_and_serial
    return der.sequence(der.integer(0), name, algorithm, der.octet_string(encrypted))


def _agreed(certificate: x509.Certificate, public_key: ec.EllipticCurvePublicKey, key: bytes) -> bytes:
    """KeyAgreeRecipientInfo for one recipient, with an ephemeral key of its own (RFC 5753 §3.1.1)."""
    ephemeral = ec.generate_private_key(public_key.curve)
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    secret = ephemeral.exchange(ec.ECDH(), public_key)
    wrapping = wrapping_key(secret, hashes.SHA256(), 32, _AES256_WRAP, None)
    encrypted = der.sequence(identity(certificate).issuer_and_serial, der.octet_string(aes_key_wrap(wrapping, key)))
    originator = der.tlv(context(1), der.sequence(der.oid(oids.EC_PUBLIC_KEY)), der.tlv(der.BIT_STRING, b"\0", point))
    return der.tlv(
        context(1),
        der.integer(3),
        der.tlv(context(0), originator),
        der.sequence(der.oid(oids.ECDH_SHA256_KDF), _AES256_WRAP),
        der.sequence(encrypted),
    )


def _frame(content_type: str, version: int, recipients: bytes, algorithm: bytes, size: int, suffix: int) -> bytes:
    """Everything before the encrypted content, given its size and that of what follows it inside the structure."""

    def enclose(tag: int, known: bytes, following: int) -> bytes:
        return der.header(tag, len(known) + following) + known

    content = der.header(context(0, constructed=False), size)
    info = enclose(der.SEQUENCE, der.oid(oids.DATA) + algorithm + content, size)
    data = enclose(der.SEQUENCE, der.integer(version) + recipients + info, size + suffix)
    return enclose(der.SEQUENCE, der.oid(content_type) + enclose(context(0), data, size + suffix), size + suffix)


def _auth_enveloped(content: bytes, key: bytes, recipients: bytes, cipher: ContentCipher) -> bytearray:
    """The ciphertext is made in its place; OpenSSL mistakes authAttrs, so none are ever written."""
    nonce = os.urandom(_NONCE)
    parameters = der.sequence(der.octet_string(nonce), der.integer(_TAG))
    algorithm = der.sequence(der.oid(cipher.oid), parameters)
    mac_header = der.header(der.OCTET_STRING, _TAG)
    size = len(content)
    frame = _frame(oids.AUTH_ENVELOPED_DATA, 0, recipients, algorithm, size, len(mac_header) + _TAG)
    message = bytearray(len(frame) + size + len(mac_header) + _TAG)
    message[: len(frame)] = frame
    end = len(frame) + size
    AESGCM(key).encrypt_into(nonce, content, None, memoryview(message)[len(frame) : end + _TAG])
    message[end:] = mac_header + message[end : end + _TAG]  # the tag moves behind the header of `mac`
    return message


def _enveloped(content: bytes, key: bytes, version: int, recipients: bytes, cipher: ContentCipher) -> bytearray:
    iv = os.urandom(_BLOCK)
    algorithm = der.sequence(der.oid(cipher.oid), der.octet_string(iv))
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
