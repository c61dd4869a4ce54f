"""Synthetic certificate holders with keys of the kinds a benchmark asks for, in a real vault, under one authority.

Root, intermediate, mailbox: paths as long as those of IGC-Santé. Everything is made anew and lives as long as the run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from config.bench.authority import Extension, Issuer, PrivateKey, authority_extensions, certificate, usage
from trust.certificates import CertificateValidator
from trust.keys import Decryptor, Signer
from trust.vault import KeyUse, KeyVault


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
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = certificate("Bench root", root_key, None, authority_extensions(None))
        root = Issuer(self.root, root_key)
        self.intermediate = certificate("Bench CA", key, root, authority_extensions(None))
        self._ca = Issuer(self.intermediate, key)
        self.validator = CertificateValidator([self.root])

    def holder(self, address: str, key: PrivateKey) -> Holder:
        """A mailbox of that address (ASCII) with that key."""
        certificate = self.certificate(address, key)
        for use in KeyUse:
            self.vault.install(address, use, key, certificate, (self._ca.certificate,))
        signer = self.vault.signer(address)
        if signer is None:
            raise RuntimeError("the vault does not give back what it was given")
        return Holder(address, key, certificate, signer, self.vault.decryptors(address))

    def certificate(self, address: str, key: PrivateKey) -> x509.Certificate:
        """One more certificate for a key: as many recipients as wanted, without the time to make their keys."""
        extensions: list[Extension] = [
            (usage("digital_signature", "key_encipherment"), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
            (x509.SubjectAlternativeName([x509.RFC822Name(address)]), False),
        ]
        return certificate(address, key, self._ca, extensions)


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
