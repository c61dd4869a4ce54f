"""Signing and encrypting mail: MIME entities in, protected MIME entities out (RFC 8551 §3)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509

from smime import canonical
from smime.encrypting import encrypt_content
from smime.signing import micalg, sign_content
from smime.suites import DEFAULT_SUITE, Suite
from trust.draw import draw
from trust.keys import Signer


def sign(entity: bytes, signer: Signer, at: datetime | None = None, suite: Suite = DEFAULT_SUITE) -> bytes:
    """A signed entity around `entity`, signed as of `at` or now: `multipart/signed` (RFC 8551 §3.5.3).

    With `suite.opaque`, `application/pkcs7-mime` with the content inside instead (§3.5.2), which no relay can harm and
    no reader without S/MIME can read. `entity` is a MIME entity: Content-* fields, empty line, body. It is signed byte
    for byte when it will survive the road as it is, else re-encoded before (`smime.canonical`). The digest is as strong
    as the key, RSA signs as `suite.rsa_signature` says. Raises ValueError when the entity cannot be made fit,
    `UnfitSignerError` (a ValueError) when the key is not, and `SignerFailedError` when the key's owner fails.
    """
    if suite.opaque:
        signed = sign_content(canonical.crlf_lines(entity), signer, at, suite, attached=True)
        return _pkcs7_mime(b"signed-data", signed)
    entity = canonical.robust(entity)
    boundary = draw(20).hex().encode("ascii")  # made after the content, too long for it to be in there by chance
    return b"".join(
        (
            b'Content-Type: multipart/signed; protocol="application/pkcs7-signature"; micalg=',
            micalg(signer, suite).encode("ascii"),
            b';\r\n boundary="',
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
            *canonical.base64_pieces(sign_content(entity, signer, at, suite)),
            b"\r\n--",
            boundary,
            b"--\r\n",
        )
    )


def encrypt(entity: bytes, certificates: Sequence[x509.Certificate], suite: Suite = DEFAULT_SUITE) -> bytes:
    """An `application/pkcs7-mime` entity that the holders of `certificates` can open (RFC 8551 §3.3, §3.4).

    AuthEnvelopedData with AES-GCM, 12-octet nonce and 16-octet tag (RFC 5084), unless `suite` says CBC; one fresh
    content key for all. All recipients see each other's issuer and serial number: see `encrypt_copies` for Bcc. Raises
    ValueError without certificates, `UnfitCertificateError` (a ValueError) for a key that cannot be written to. Whether
    the certificates are valid is for the caller to know.
    """
    kind = b"authEnveloped-data" if suite.content.authenticated else b"enveloped-data"
    cms = encrypt_content(entity, certificates, suite)
    del entity  # whoever gave it away has it freed before there is a third form of it
    return _pkcs7_mime(kind, cms)


def encrypt_copies(
    entity: bytes,
    visible: Sequence[x509.Certificate],
    hidden: Sequence[Sequence[x509.Certificate]],
    suite: Suite = DEFAULT_SUITE,
) -> list[bytes]:
    """One copy for all `visible` recipients, then one for each of the `hidden` ones, in order.

    A copy names its recipients' certificates, so a blind carbon copy has one of its own for each Bcc recipient (all his
    certificates are one group), with a content key of its own: nobody who opens one copy can open, or learns of,
    another (RFC 8551 §3.3). Without visible recipients there are only the hidden copies. Raises as `encrypt` does.
    """
    groups = [visible, *hidden] if visible else list(hidden)
    if not groups:
        raise ValueError("no certificate to encrypt to")
    return [encrypt(entity, group, suite) for group in groups]


def _pkcs7_mime(kind: bytes, cms: bytes | bytearray) -> bytes:
    head = (
        b"Content-Type: application/pkcs7-mime; smime-type=" + kind + b'; name="smime.p7m"\r\n'
        b"Content-Transfer-Encoding: base64\r\n"
        b'Content-Disposition: attachment; filename="smime.p7m"\r\n\r\n'
    )
    return canonical.with_base64(head, cms)
