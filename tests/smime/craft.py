"""CMS structures as attackers and careless senders write them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from smime import oids
from smime.canonical import base64_lines
from smime.identity import identity
from tests.smime.people import Person
from trust import der
from trust.der import context

SHA256 = der.sequence(der.oid(oids.SHA256))
RSA_SHA256 = der.sequence(der.oid(oids.SHA256_WITH_RSA), der.null())


def attribute(oid: str, *values: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.set_of(values))


def content_type(oid: str = oids.DATA) -> bytes:
    return attribute(oids.CONTENT_TYPE, der.oid(oid))


def message_digest(content: bytes) -> bytes:
    return attribute(oids.MESSAGE_DIGEST, der.octet_string(hashlib.sha256(content).digest()))


def signed_data(
    content: bytes,
    signer: Person,
    *,
    attributes: Sequence[bytes] | None = None,
    extra: Sequence[bytes] = (),
    attached: bytes | None = None,
    digests: Sequence[bytes] = (SHA256,),
    digest: bytes = SHA256,
    algorithm: bytes = RSA_SHA256,
    signature: bytes | None = None,
    certificate: Person | None = None,
    certificates: Sequence[Person] | None = None,
    signers: int = 1,
    content_oid: str = oids.DATA,
) -> bytes:
    """A SignedData that is right unless told otherwise. `attributes=()` signs the content itself."""
    if attributes is None:
        attributes = (content_type(content_oid), message_digest(content), *extra)
    signed_bytes = der.set_of(attributes)
    signature = signature or signer.sign(signed_bytes if attributes else content, hashes.SHA256())
    info = der.sequence(
        der.integer(1),
        identity((certificate or signer).certificate).issuer_and_serial,
        digest,
        b"\xa0" + signed_bytes[1:] if attributes else b"",
        algorithm,
        der.octet_string(signature),
    )
    sent = certificates if certificates is not None else (signer,)
    data = der.sequence(
        der.integer(1),
        der.set_of(digests),
        der.sequence(
            der.oid(content_oid),
            der.tlv(context(0), der.octet_string(attached)) if attached is not None else b"",
        ),
        der.tlv(context(0), *(identity(one.certificate).encoded for one in sent)),
        der.tlv(der.SET, *[info] * signers),
    )
    return content_info(oids.SIGNED_DATA, data)


def content_info(oid: str, content: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.tlv(context(0), content))


def pkcs7_mime(cms: bytes, kind: str = "", media_type: str = "application/pkcs7-mime") -> bytes:
    smime_type = f"; smime-type={kind}" if kind else ""
    head = f"Content-Type: {media_type}{smime_type}\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    return head.encode() + base64_lines(cms)


def multipart_signed(first: bytes, cms: bytes, *more: bytes, prefix: bytes = b"", suffix: bytes = b"") -> bytes:
    signature = pkcs7_mime(cms, media_type="application/pkcs7-signature")
    parts = b"".join(b"--b1\r\n" + part + b"\r\n" for part in (first, signature, *more))
    head = (
        b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; micalg=sha-256; boundary=b1\r\n\r\n'
    )
    return head + prefix + parts + b"--b1--\r\n" + suffix


def enveloped(
    content: bytes,
    recipient: Person,
    *,
    cipher: str = oids.AES256_GCM,
    outer: str = oids.AUTH_ENVELOPED_DATA,
    icv: int | None = 16,
    tag_octets: int = 16,
    nonce_octets: int = 12,
    key: bytes | None = None,
    encrypted_key: bytes | None = None,
    auth_attributes: bytes = b"",
    flip: int | None = None,
    recipients: int = 1,
) -> bytes:
    """An (Auth)EnvelopedData that is right unless told otherwise; key transport PKCS #1 v1.5."""
    key = key or os.urandom(32)
    nonce = os.urandom(nonce_octets)
    if cipher == oids.AES256_CBC:
        nonce = os.urandom(16)
        padded = content + bytes([16 - len(content) % 16]) * (16 - len(content) % 16)
        encryptor = Cipher(algorithms.AES(key), modes.CBC(nonce)).encryptor()
        ciphertext, tag = encryptor.update(padded) + encryptor.finalize(), b""
        parameters = der.octet_string(nonce)
    else:
        encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(b"\x31" + auth_attributes[1:] if auth_attributes else b"")
        ciphertext = encryptor.update(content) + encryptor.finalize()
        tag = encryptor.tag[:tag_octets]
        parameters = der.sequence(der.octet_string(nonce), der.integer(icv) if icv is not None else b"")
    if flip is not None:
        ciphertext = ciphertext[:flip] + bytes([ciphertext[flip] ^ 1]) + ciphertext[flip + 1 :]
    public_key = recipient.certificate.public_key()
    info = der.sequence(
        der.integer(0),
        identity(recipient.certificate).issuer_and_serial,
        der.sequence(der.oid(oids.RSA_ENCRYPTION), der.null()),
        der.octet_string(encrypted_key or public_key.encrypt(key, padding.PKCS1v15())),
    )
    data = der.sequence(
        der.integer(0),
        der.tlv(der.SET, *[info] * recipients),
        der.sequence(
            der.oid(oids.DATA),
            der.sequence(der.oid(cipher), parameters),
            der.tlv(context(0, constructed=False), ciphertext),
        ),
        auth_attributes,
        der.octet_string(tag) if outer == oids.AUTH_ENVELOPED_DATA else b"",
    )
    return content_info(outer, data)


def indefinite(cms: bytes, chunk: int) -> bytes:
    """The same ContentInfo in BER: indefinite lengths down to the encrypted content, which comes in chunks."""
    oid, wrapper = der.read(cms).sequence()
    fields = wrapper.explicit().sequence()
    kind, algorithm, content = fields[2].sequence()
    octets = bytes(content.content)
    chunks = b"".join(der.octet_string(octets[start : start + chunk]) for start in range(0, len(octets), chunk))
    info = b"\x30\x80" + bytes(kind.encoded) + bytes(algorithm.encoded) + b"\xa0\x80" + chunks + b"\0\0" + b"\0\0"
    before = b"".join(bytes(field.encoded) for field in fields[:2])
    after = b"".join(bytes(field.encoded) for field in fields[3:])
    inner = b"\x30\x80" + before + info + after + b"\0\0"
    return b"\x30\x80" + bytes(oid.encoded) + b"\xa0\x80" + inner + b"\0\0" + b"\0\0"
