"""Encrypted content: AuthEnvelopedData written (RFC 5083, RFC 5084), it and EnvelopedData opened (RFC 5652 §6).

The content key reaches RSA recipients by key transport, recipients on an elliptic curve by ephemeral-static ECDH
(RFC 5753 §3.1).

Everything that can go wrong while opening ends in one exception without a reason, and only after the content has been
run through a cipher, with a random key if need be: whoever sends variations of a message learns nothing from ours
(RFC 3218). A recipient's key is chosen by the name in the message, never by trying keys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from cryptography import x509
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from smime import oids
from smime.cms_read import Algorithm, Enveloped, KeyAgreement, Recipient, read_algorithm
from smime.identity import identity
from trust import der
from trust.der import DerError, context
from trust.keys import Decryptor

MIN_RSA_BITS = 2048
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_BLOCK = 16
_NONCE = 12
_TAG = 16


class ContentCipher(Enum):
    """How the content is encrypted: name, OID, octets of the key."""

    AES256_GCM = ("aes256-gcm", oids.AES256_GCM, 32)
    AES128_GCM = ("aes128-gcm", oids.AES128_GCM, 16)
    AES256_CBC = ("aes256-cbc", oids.AES256_CBC, 32)
    """EnvelopedData for partners that cannot read RFC 5084; not authenticated."""

    @property
    def oid(self) -> str:
        return self.value[1]

    @property
    def key_octets(self) -> int:
        return self.value[2]

    @property
    def authenticated(self) -> bool:
        return self is not ContentCipher.AES256_CBC


class KeyTransportScheme(Enum):
    """How the content key reaches an RSA recipient."""

    RSA_OAEP_SHA256 = "rsa-oaep-sha256"
    RSA_PKCS1V15 = "rsa-pkcs1v15"


@dataclass(frozen=True, slots=True)
class Suite:
    """What one partner is written to with."""

    content: ContentCipher = ContentCipher.AES256_GCM
    key_transport: KeyTransportScheme = KeyTransportScheme.RSA_OAEP_SHA256


DEFAULT_SUITE = Suite()


class CannotOpenError(Exception):
    """The content could not be decrypted. Never says why."""


# --- Writing ---------------------------------------------------------------------------------------------------------

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
    wrapping = _wrapping_key(secret, hashes.SHA256(), 32, _AES256_WRAP, None)
    encrypted = der.sequence(identity(certificate).issuer_and_serial, der.octet_string(aes_key_wrap(wrapping, key)))
    originator = der.tlv(context(1), der.sequence(der.oid(oids.EC_PUBLIC_KEY)), der.tlv(der.BIT_STRING, b"\0", point))
    return der.tlv(
        context(1),
        der.integer(3),
        der.tlv(context(0), originator),
        der.sequence(der.oid(oids.ECDH_SHA256_KDF), _AES256_WRAP),
        der.sequence(encrypted),
    )


def _wrapping_key(
    secret: bytes, algorithm: hashes.HashAlgorithm, octets: int, wrap: bytes, user_material: bytes | None
) -> bytes:
    """The key-encryption key: ANSI X9.63 KDF over ECC-CMS-SharedInfo (RFC 5753 §7.2); `wrap` as it was encoded."""
    shared_info = der.sequence(
        wrap,
        der.tlv(context(0), der.octet_string(user_material)) if user_material is not None else b"",
        der.tlv(context(2), der.octet_string((octets * 8).to_bytes(4, "big"))),
    )
    return X963KDF(algorithm, octets, shared_info).derive(secret)


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


# --- Opening ---------------------------------------------------------------------------------------------------------

_READABLE = {
    oids.AES128_GCM: ("aes128-gcm", 16, True),
    oids.AES192_GCM: ("aes192-gcm", 24, True),
    oids.AES256_GCM: ("aes256-gcm", 32, True),
    oids.AES128_CBC: ("aes128-cbc", 16, False),
    oids.AES192_CBC: ("aes192-cbc", 24, False),
    oids.AES256_CBC: ("aes256-cbc", 32, False),
}
_OAEP_HASHES: dict[str, hashes.HashAlgorithm] = {
    oids.SHA1: hashes.SHA1(),  # the default of RFC 8017 A.2.1, and not a weakness inside OAEP  # noqa: S303
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}


_AGREEMENT_HASHES: dict[str, hashes.HashAlgorithm] = {
    oids.ECDH_SHA1_KDF: hashes.SHA1(),  # what OpenSSL writes unasked, and not a weakness inside a KDF  # noqa: S303
    oids.ECDH_SHA256_KDF: hashes.SHA256(),
    oids.ECDH_SHA384_KDF: hashes.SHA384(),
    oids.ECDH_SHA512_KDF: hashes.SHA512(),
}
_WRAP_OCTETS = {oids.AES128_WRAP: 16, oids.AES192_WRAP: 24, oids.AES256_WRAP: 32}


@dataclass(frozen=True, slots=True)
class Decrypted:
    content: bytearray
    algorithm: str
    authenticated: bool


def decrypt_content(enveloped: Enveloped, decryptors: Sequence[Decryptor]) -> Decrypted:
    """The content in the clear; nothing of it leaves before its tag has been verified. Raises CannotOpenError.

    An AEAD algorithm inside EnvelopedData, or CBC inside AuthEnvelopedData, is refused: the structure decides whether
    a tag is verified (RFC 5083 §2, RFC 9709 §1.1).
    """
    name, key_octets, authenticated = _READABLE.get(enveloped.algorithm.oid, ("", 0, False))
    if not name or authenticated is not enveloped.authenticated:
        raise CannotOpenError
    key = _content_key(enveloped.recipients, decryptors, key_octets)
    try:
        decrypt = _decrypt_gcm if authenticated else _decrypt_cbc
        content = decrypt(enveloped, key or os.urandom(key_octets))
    except (ValueError, InvalidTag):
        raise CannotOpenError from None
    if key is None:
        raise CannotOpenError
    return Decrypted(content, name, authenticated)


def _content_key(recipients: Sequence[Recipient], decryptors: Sequence[Decryptor], octets: int) -> bytes | None:
    """The content key of the first recipient that names one of our certificates, None when that fails."""
    for recipient in recipients:
        for decryptor in decryptors:
            if identity(decryptor.certificate).is_named_by(recipient.recipient):
                try:
                    key = _recipients_key(recipient, decryptor)
                except (ValueError, InvalidUnwrap):
                    return None
                return key if len(key) == octets else None
    return None


def _recipients_key(recipient: Recipient, decryptor: Decryptor) -> bytes:
    if isinstance(recipient, KeyAgreement):
        return _unwrapped(recipient, decryptor)
    if recipient.algorithm.oid == oids.RSA_ENCRYPTION:
        return decryptor.decrypt_pkcs1v15(recipient.encrypted_key)
    if recipient.algorithm.oid == oids.RSAES_OAEP:
        return decryptor.decrypt_oaep(recipient.encrypted_key, *_oaep_parameters(recipient.algorithm))
    raise ValueError("key transport")


def _unwrapped(recipient: KeyAgreement, decryptor: Decryptor) -> bytes:
    """RFC 5753 §3.1.3. Raises ValueError, InvalidUnwrap."""
    wrap = recipient.algorithm.parameters
    if wrap is None or recipient.algorithm.oid not in _AGREEMENT_HASHES:
        raise ValueError("key agreement")
    octets = _WRAP_OCTETS.get(read_algorithm(wrap).oid)
    if octets is None:
        raise ValueError("key wrap")
    secret = decryptor.agree(recipient.originator)
    digest = _AGREEMENT_HASHES[recipient.algorithm.oid]
    wrapping = _wrapping_key(secret, digest, octets, bytes(wrap.encoded), recipient.user_material)
    return aes_key_unwrap(wrapping, recipient.encrypted_key)


def _oaep_parameters(algorithm: Algorithm) -> tuple[hashes.HashAlgorithm, hashes.HashAlgorithm, bytes]:
    """Hash, MGF1 hash and label of RSAES-OAEP-params (RFC 8017 A.2.1). Raises ValueError."""
    digest = mask = oids.SHA1
    label = b""
    for field in algorithm.parameters.sequence() if algorithm.parameters is not None else ():
        value = read_algorithm(field.explicit())
        if field.tag == context(0):
            digest = value.oid
        elif field.tag == context(1) and value.oid == oids.MGF1 and value.parameters is not None:
            mask = read_algorithm(value.parameters).oid
        elif field.tag == context(2) and value.oid == oids.P_SPECIFIED and value.parameters is not None:
            label = value.parameters.octets()
        else:
            raise DerError("RSAES-OAEP-params")
    if digest not in _OAEP_HASHES or mask not in _OAEP_HASHES:
        raise ValueError("hash")
    return _OAEP_HASHES[digest], _OAEP_HASHES[mask], label


def _decrypt_gcm(enveloped: Enveloped, key: bytes) -> bytearray:
    fields = enveloped.algorithm.parameters.sequence() if enveloped.algorithm.parameters is not None else []
    if not 1 <= len(fields) <= 2:
        raise DerError("GCMParameters")
    nonce = fields[0].octets()
    # The default is 12 (RFC 5084 §3.2); senders that forget the field and write longer tags are no weaker for it
    expected = range(12, 17) if len(fields) == 1 else (fields[1].integer(),)
    if len(nonce) != _NONCE or len(enveloped.mac) not in expected or not 12 <= len(enveloped.mac) <= 16:
        raise ValueError("nonce or tag")
    decryptor = Cipher(algorithms.AES(key), modes.GCM(nonce, None, min_tag_length=12)).decryptor()
    decryptor.authenticate_additional_data(enveloped.auth_attributes)
    content, written = _empty(enveloped)
    for chunk in enveloped.content:
        written += decryptor.update_into(chunk, memoryview(content)[written:])
    decryptor.finalize_with_tag(enveloped.mac)
    del content[written:]
    return content


def _decrypt_cbc(enveloped: Enveloped, key: bytes) -> bytearray:
    if enveloped.algorithm.parameters is None:
        raise DerError("IV")
    iv = enveloped.algorithm.parameters.octets()
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    content, written = _empty(enveloped)
    for chunk in enveloped.content:
        written += decryptor.update_into(chunk, memoryview(content)[written:])
    decryptor.finalize()
    padding_octets = content[written - 1] if written else 0
    if (
        not 1 <= padding_octets <= _BLOCK
        or content[written - padding_octets : written].count(padding_octets) != padding_octets
    ):
        raise ValueError("padding")
    del content[written - padding_octets :]
    return content


def _empty(enveloped: Enveloped) -> tuple[bytearray, int]:
    """Room for the content and one block more, which `update_into` insists on; and that nothing is in it yet."""
    return bytearray(sum(map(len, enveloped.content)) + _BLOCK), 0
