"""Synthetic certificate holders with keys of the kinds a benchmark asks for, in a real vault, under one authority.

Root, intermediate, mailbox: paths as long as those of IGC-Santé. Everything is made anew and lives as long as the run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trust.certificates import CertificateValidator
from trust.keys import Decryptor, Signer
from trust.vault import KeyUse, KeyVault

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_DAYS = timedelta(days=30)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True, slots=True)
class Holder:
    """One mailbox: the same key signs and decrypts."""

    address: str
    key: PrivateKey
    certificate: x509.Certificate
    signer: Signer
    decryptors: tuple[Decryptor, ...]

    def save(self, place: Path) -> tuple[str, str]:
        """PEM files of certificate and key, for the programs a benchmark compares with."""
        certificate, key = place / f"{self.address}.crt", place / f"{self.address}.key"
        certificate.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return str(certificate), str(key)


class Holders:
    """An authority, its validator and a vault in `place`, which the caller removes."""

    def __init__(self, place: Path) -> None:
        self.vault = KeyVault.create(place / "vault")
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = _certificate("Bench root", self._root_key, "Bench root", self._root_key)
        self.intermediate = _certificate("Bench CA", self._key, "Bench root", self._root_key)
        self.validator = CertificateValidator([self.root])

    def holder(self, address: str, key: PrivateKey) -> Holder:
        """A mailbox of that address (ASCII) with that key."""
        certificate = self.certificate(address, key)
        for use in KeyUse:
            self.vault.install(address, use, key, certificate, (self.intermediate,))
        signer = self.vault.signer(address)
        if signer is None:
            raise RuntimeError("the vault does not give back what it was given")
        return Holder(address, key, certificate, signer, self.vault.decryptors(address))

    def certificate(self, address: str, key: PrivateKey) -> x509.Certificate:
        """One more certificate for a key: as many recipients as wanted, without the time to make their keys."""
        return _certificate(address, key, "Bench CA", self._key, address=address)


def key_files(place: Path) -> tuple[str, str, str]:
    """PEM files that anybody may read: an RSA-2048 signer's certificate and key, a recipient's certificate."""
    place.mkdir(mode=0o755)
    with tempfile.TemporaryDirectory(prefix="relais-bench-") as vault:
        holders = Holders(Path(vault))
        signer = holders.holder("signer@bench.invalid", rsa.generate_private_key(65537, 2048)).save(place)
        recipient = holders.holder("recipient@bench.invalid", rsa.generate_private_key(65537, 2048)).save(place)
    for file in place.iterdir():
        file.chmod(0o644)
    return (*signer, recipient[0])


def _certificate(
    subject: str, key: PrivateKey, issuer: str, issuer_key: PrivateKey, address: str = ""
) -> x509.Certificate:
    now = datetime.now(UTC)
    wanted = ("digital_signature", "key_encipherment") if address else ("key_cert_sign",)
    usage = x509.KeyUsage(**{name: name in wanted for name in _USAGES})
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAYS)
        .not_valid_after(now + _DAYS)
        .add_extension(x509.BasicConstraints(ca=not address, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if address:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(address)]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
