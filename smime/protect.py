"""Signing and encrypting mail: MIME entities in, protected MIME entities out (RFC 8551 §3)."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime

import pybase64
from cryptography import x509

from smime import canonical
from smime.encrypting import encrypt_content
from smime.signing import sign_content
from smime.suites import DEFAULT_SUITE, Suite
from trust.keys import Signer

MAX_LAYERS = 8

_CMS_TYPES = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_SIGNATURE_TYPES = ("application/pkcs7-signature", "application/x-pkcs7-signature")


def sign(entity: bytes, signer: Signer, at: datetime | None = None) -> bytes:
    """A `multipart/signed` entity around `entity` (RFC 8551 §3.5.3), signed as of `at` or now.

    `entity` is a MIME entity: Content-* fields, empty line, body. It is signed byte for byte when it is 7-bit text in
    CRLF lines, else re-encoded before (`smime.canonical`). Raises ValueError when it cannot be, or when the key is not
    fit to sign with. RSASSA-PKCS1-v1_5 or ECDSA by the kind of key, SHA-256.
    """
    entity = canonical.seven_bit(entity)
    while (boundary := secrets.token_hex(20).encode("ascii")) in entity:
        continue
    return b"".join(
        (
            b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; micalg=sha-256;\r\n',
            b' boundary="',
            boundary,
            b'"\r\n\r\n--',
            boundary,
            b"\r\n",
            entity,
            b"\r\n--",
            boundary,
            b'\r\nContent-Type: application/pkcs7-signature; name="smime.p7s"\r\n'
            b"Content-Transfer-Encoding: base64\r\n"
            b'Content-Disposition: attachment; filename="smime.p7s"\r\n\r\n',
            _base64(sign_content(entity, signer, at)),
            b"\r\n--",
            boundary,
            b"--\r\n",
        )
    )


def encrypt(entity: bytes, certificates: Sequence[x509.Certificate], suite: Suite = DEFAULT_SUITE) -> bytes:
    """An `application/pkcs7-mime` entity that the holders of `certificates` can open (RFC 8551 §3.3, §3.4).

    AuthEnvelopedData with AES-GCM, 12-octet nonce and 16-octet tag (RFC 5084), unless `suite` says CBC. Raises
    ValueError without certificates or for a key that is neither RSA of at least 2048 bits nor on a NIST curve. Whether
    the certificates are valid is for the caller to know.
    """
    kind = b"authEnveloped-data" if suite.content.authenticated else b"enveloped-data"
    return b"".join(
        (
            b"Content-Type: application/pkcs7-mime; smime-type=",
            kind,
            b'; name="smime.p7m"\r\n'
            b"Content-Transfer-Encoding: base64\r\n"
            b'Content-Disposition: attachment; filename="smime.p7m"\r\n\r\n',
            _base64(encrypt_content(entity, certificates, suite)),
        )
    )


def _base64(data: bytes | bytearray) -> bytes:
    return pybase64.encodebytes(data).replace(b"\n", b"\r\n")
