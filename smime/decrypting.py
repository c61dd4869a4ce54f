"""Encrypted content opened: AuthEnvelopedData (RFC 5083, RFC 5084) and EnvelopedData (RFC 5652 §6).

Everything that can go wrong while opening ends in one exception without a reason, and only after the content has been
run through a cipher, with a random key if need be: whoever sends variations of a message learns nothing from ours
(RFC 3218). A recipient's key is chosen by the name in the message, never by trying keys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from smime import oids
from smime.agreement import wrapping_key
from smime.cms_read import Algorithm, Enveloped, KeyAgreement, Recipient, read_algorithm
from smime.identity import identity
from trust.der import DerError, context
from trust.keys import Decryptor

_BLOCK = 16
_NONCE = 12


class CannotOpenError(Exception):
    """The content could not be decrypted. Never says why."""


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
    wrapping = wrapping_key(secret, digest, octets, bytes(wrap.encoded), recipient.user_material)
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
