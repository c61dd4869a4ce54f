"""Certificates and chains for tests, good ones and wrong ones, made as they are needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust import der

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Node:
    certificate: x509.Certificate
    key: object


def usage(*on: str) -> x509.KeyUsage:
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{name: name in on for name in names})


CA = (x509.BasicConstraints(True, None), True)
CERT_SIGN = (usage("key_cert_sign"), True)
SIGNING = (usage("digital_signature", "content_commitment"), True)
MAIL = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
LEAF = (SIGNING, MAIL)


def ca(path_length: int | None) -> tuple[x509.BasicConstraints, bool]:
    return x509.BasicConstraints(True, path_length), True


def make(
    name: str | x509.Name,
    issuer: Node | None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
    *,
    key: object = None,
    since: datetime = NOW - DAY,
    until: datetime = NOW + DAY,
    digest: hashes.HashAlgorithm | None = hashes.SHA256(),  # noqa: B008
    rsa_padding: object = None,
    identifiers: bool = True,
    issuer_name: x509.Name | None = None,
) -> Node:
    """Any certificate, wrong ones too; `issuer` None is self-signed."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = name if isinstance(name, x509.Name) else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name if issuer_name is not None else (issuer.certificate.subject if issuer else subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )
    if identifiers:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(aki, False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Node(builder.sign(signer, digest, rsa_padding=rsa_padding), key)


def encoded(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def resigned(node: Node, issuer: Node, **fields: bytes) -> bytes:
    """The DER of a certificate with some fields of its signed part replaced, signed again by `issuer` (P-256, SHA-256).

    `version`, `serial`, `validity`, `subject` and `extensions` are whole elements; empty leaves one out.
    """
    signed, algorithm, _ = der.read(encoded(node.certificate)).sequence()
    names = ("version", "serial", "algorithm", "issuer", "validity", "subject", "key", "extensions")
    parts = dict(zip(names, (bytes(each.encoded) for each in signed.sequence()), strict=False)) | fields
    body = der.sequence(*parts.values())
    signature = issuer.key.sign(body, ec.ECDSA(hashes.SHA256()))
    return der.sequence(body, algorithm.encoded, der.tlv(der.BIT_STRING, b"\x00", signature))
