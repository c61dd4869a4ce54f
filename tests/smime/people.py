"""Synthetic people with certificates and keys, and the `openssl` command as the other side of every conversation."""

from __future__ import annotations

import functools
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.certificates import CertificateValidator

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
ENTITY = b"Content-Type: text/plain; charset=utf-8\r\n\r\nNothing to report.\r\nSecond line.\r\n"


@dataclass(frozen=True)
class Person:
    """A `Signer` and a `Decryptor` in one."""

    certificate: x509.Certificate
    key: object
    chain: tuple[x509.Certificate, ...] = field(default=())

    def sign(self, data: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), algorithm)
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        return self.key.sign(data, ec.ECDSA(algorithm))

    def sign_pss(self, data: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
        if not isinstance(self.key, rsa.RSAPrivateKey):
            raise ValueError("not RSA")
        return self.key.sign(data, padding.PSS(padding.MGF1(algorithm), algorithm.digest_size), algorithm)

    def decrypt_oaep(
        self, encrypted: bytes, algorithm: hashes.HashAlgorithm, mgf: hashes.HashAlgorithm, label: bytes
    ) -> bytes:
        if not isinstance(self.key, rsa.RSAPrivateKey):
            raise ValueError("not RSA")
        return self.key.decrypt(encrypted, padding.OAEP(padding.MGF1(mgf), algorithm, label or None))

    def decrypt_pkcs1v15(self, encrypted: bytes) -> bytes:
        if not isinstance(self.key, rsa.RSAPrivateKey):
            raise ValueError("not RSA")
        return self.key.decrypt(encrypted, padding.PKCS1v15())

    def agree(self, peer_public_key: bytes) -> bytes:
        if isinstance(self.key, x25519.X25519PrivateKey):
            return self.key.exchange(x25519.X25519PublicKey.from_public_bytes(peer_public_key))
        if not isinstance(self.key, ec.EllipticCurvePrivateKey):
            raise ValueError("not on a curve")
        peer = ec.EllipticCurvePublicKey.from_encoded_point(self.key.curve, peer_public_key)
        return self.key.exchange(ec.ECDH(), peer)

    def save(self, folder: Path, name: str) -> tuple[str, str]:
        """PEM files of the certificate and of the key."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return str(certificate), str(key)


@functools.cache
def new_key(kind: str, which: str = "") -> object:
    """One key per kind and name for the whole run: RSA keys are slow to make."""
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind[3:]))
    return {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
        "brainpool256": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
        "brainpool384": lambda: ec.generate_private_key(ec.BrainpoolP384R1()),
        "brainpool512": lambda: ec.generate_private_key(ec.BrainpoolP512R1()),
        "x25519": x25519.X25519PrivateKey.generate,
        "p192": lambda: ec.generate_private_key(ec.SECP192R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
    }[kind]()


@functools.cache
def authority(name: str = "Demonstration CA") -> Person:
    key = new_key("p256", name)
    return Person(_certificate(name, key.public_key(), name, key, (), ca=True), key)


@functools.cache
def person(*addresses: str, kind: str = "rsa2048", ca: str = "Demonstration CA", which: str = "") -> Person:
    """A mailbox holder with these rfc822Names."""
    key = new_key(kind, which or addresses[0] if addresses else which)
    return Person(_certificate(f"Synthetic {which}", key.public_key(), ca, authority(ca).key, addresses), key)


@functools.cache
def validator() -> CertificateValidator:
    return CertificateValidator([authority().certificate])


def _certificate(
    subject: str, public_key: object, issuer: str, issuer_key: object, addresses: tuple[str, ...], *, ca: bool = False
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=400))
        .not_valid_after(NOW + timedelta(days=4000))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    usage = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    wanted = ["key_cert_sign", "crl_sign"] if ca else ["digital_signature"]
    if isinstance(public_key, x25519.X25519PublicKey):
        wanted = ["key_agreement"]
    elif isinstance(public_key, rsa.RSAPublicKey):
        wanted.append("key_encipherment")
    elif isinstance(public_key, ec.EllipticCurvePublicKey):
        wanted.append("key_agreement")
    builder = builder.add_extension(x509.KeyUsage(**usage | dict.fromkeys(wanted, True)), critical=True)
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    if addresses:
        names = [x509.RFC822Name(address) for address in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def message(entity: bytes, sender: str = "anne@lab.example", extra: bytes = b"") -> bytes:
    """A whole message around a MIME entity."""
    head = f"From: Synthetic Sender <{sender}>\r\nTo: paul@clinic.example\r\nSubject: Synthetic\r\n"
    return head.encode() + b"Message-ID: <1@lab.example>\r\nMIME-Version: 1.0\r\n" + extra + entity


def openssl(*arguments: str | Path, data: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["openssl", *map(str, arguments)], input=data, capture_output=True, check=check, timeout=60)
