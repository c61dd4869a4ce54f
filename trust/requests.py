"""Certificate signing requests (PKCS#10, RFC 2986), written by hand so that a key inside a token can sign them too.

What is asked for are the shapes of MSSanté: one certificate for signing, another to be encrypted to, each bound to the
mailbox by an rfc822Name.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from trust import der
from trust.der import context
from trust.softkeys import KeyOperations, PublicKey

_EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
_BOOLEAN = 0x01


def write_request(
    subject: x509.Name, names: Sequence[x509.GeneralName], signing: bool, public_key: PublicKey, key: KeyOperations
) -> bytes:
    """DER of a request for `public_key`, signed with its private half.

    It asks for KeyUsage (`signing`: digitalSignature and nonRepudiation, else keyEncipherment or keyAgreement),
    emailProtection and the SubjectAltNames. Raises ValueError for a key that cannot sign, what the key raises.
    """
    usage = x509.KeyUsage(
        digital_signature=signing,
        content_commitment=signing,
        key_encipherment=not signing and isinstance(public_key, rsa.RSAPublicKey),
        key_agreement=not signing and not isinstance(public_key, rsa.RSAPublicKey),
        data_encipherment=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    extensions = [
        _extension(usage, critical=True),
        _extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])),
    ]
    if names:
        extensions.append(_extension(x509.SubjectAlternativeName(names), critical=not list(subject)))
    asked = der.sequence(der.oid(_EXTENSION_REQUEST), der.tlv(der.SET, der.sequence(*extensions)))
    information = der.sequence(
        der.integer(0),
        subject.public_bytes(),
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der.tlv(context(0), asked),
    )
    algorithm, digest = _algorithm(public_key)
    signature = key.sign(information, digest)
    return der.sequence(information, algorithm, der.tlv(der.BIT_STRING, b"\0", signature))


def _extension(extension: x509.ExtensionType, critical: bool = False) -> bytes:
    flag = der.tlv(_BOOLEAN, b"\xff") if critical else b""
    return der.sequence(der.oid(extension.oid.dotted_string), flag, der.octet_string(extension.public_bytes()))


def _algorithm(public_key: PublicKey) -> tuple[bytes, hashes.HashAlgorithm]:
    """AlgorithmIdentifier of the signature and its hash, as strong as the key (RFC 4055 §5, RFC 5758 §3.2)."""
    if isinstance(public_key, rsa.RSAPublicKey):
        return der.sequence(der.oid("1.2.840.113549.1.1.11"), der.null()), hashes.SHA256()
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        bits = public_key.key_size
        if bits <= 256:
            return der.sequence(der.oid("1.2.840.10045.4.3.2")), hashes.SHA256()
        if bits <= 384:
            return der.sequence(der.oid("1.2.840.10045.4.3.3")), hashes.SHA384()
        return der.sequence(der.oid("1.2.840.10045.4.3.4")), hashes.SHA512()
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return der.sequence(der.oid("1.3.101.112")), hashes.SHA512()
    raise ValueError("a key on X25519 cannot sign its own request")
