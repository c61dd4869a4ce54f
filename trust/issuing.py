"""A small certificate authority for demonstrations and tests. Never for production: its keys are plain files.

It issues certificates in the shapes of IGC-Santé (a root, one intermediate, separate signing and encryption
certificates for mailboxes, client-and-server certificates for operators, one signer of the trust list), so that a
gateway started for the first time has something to talk with. There is no revocation: certificates are short-lived.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

KeyKind = Literal["rsa3072", "p256"]
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

CA_LIFETIME = timedelta(days=3650)
LIFETIME = timedelta(days=365)
BACKDATED = timedelta(hours=1)
"""Certificates are valid from a little earlier, so that a peer whose clock is slow accepts them at once."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its private key."""

    key: PrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """Intermediates to send along, leaf excluded, root excluded."""

    def pem_chain(self) -> bytes:
        """Leaf, then intermediates, as PEM."""
        return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (self.certificate, *self.chain))

    def pem_key(self) -> bytes:
        """The private key as unencrypted PKCS#8 PEM; write it with mode 0600."""
        return _pem_key(self.key)


class DemonstrationAuthority:
    """A root and one intermediate. Make it with `create` or `load`."""

    def __init__(self, root: x509.Certificate, root_key: PrivateKey, intermediate: Issued) -> None:
        self.root = root
        self._root_key = root_key
        self._intermediate = intermediate

    @classmethod
    def create(cls, name: str, key_kind: KeyKind = "p256") -> DemonstrationAuthority:
        """A new authority; `name` becomes the organisation (O) in its names, 1 to 64 characters."""
        root_key = _new_key(key_kind)
        root_name = _name((NameOID.ORGANIZATION_NAME, name), (NameOID.COMMON_NAME, f"AC RACINE {name}"[:64]))
        root = _certificate(root_name, root_key, root_name, root_key, CA_LIFETIME, _ca_extensions(1))
        key = _new_key(key_kind)
        subject = _name((NameOID.ORGANIZATION_NAME, name), (NameOID.COMMON_NAME, f"AC {name}"[:64]))
        certificate = _certificate(subject, key, root_name, root_key, CA_LIFETIME, _ca_extensions(0))
        return cls(root, root_key, Issued(key, certificate, ()))

    @property
    def intermediate(self) -> x509.Certificate:
        return self._intermediate.certificate

    def save(self, directory: Path) -> None:
        """Write `root.pem`, `intermediate.pem` and their `.key` files (plain PKCS#8, mode 0600); raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stem, certificate, key in (
            ("root", self.root, self._root_key),
            ("intermediate", self.intermediate, self._intermediate.key),
        ):
            (directory / f"{stem}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
            _write_private(directory / f"{stem}.key", _pem_key(key))

    @classmethod
    def load(cls, directory: Path) -> DemonstrationAuthority:
        """Read what `save` wrote; raises OSError or ValueError."""
        root, root_key = _load(directory, "root")
        certificate, key = _load(directory, "intermediate")
        return cls(root, root_key, Issued(key, certificate, ()))

    def issue_mailbox(
        self, address: str, common_name: str, use: Literal["signing", "encryption"], key_kind: KeyKind = "rsa3072"
    ) -> Issued:
        """One of the two certificates of a mailbox, bound to `address` (ASCII addr-spec) by rfc822Name.

        Signing: digitalSignature and nonRepudiation. Encryption: keyEncipherment, or keyAgreement on an elliptic curve.
        Raises ValueError when the address is not ASCII.
        """
        if use == "signing":
            usage = _key_usage(digital_signature=True, content_commitment=True)
        else:
            usage = _key_usage(key_encipherment=key_kind == "rsa3072", key_agreement=key_kind == "p256")
        subject = self._under((NameOID.COMMON_NAME, common_name))
        return self._issue(subject, key_kind, usage, [ExtendedKeyUsageOID.EMAIL_PROTECTION], [x509.RFC822Name(address)])

    def issue_operator(
        self,
        common_name: str,
        organisation: str,
        unit: str,
        hosts: Sequence[str],
        key_kind: KeyKind = "p256",
    ) -> Issued:
        """An operator's certificate, TLS server and client; `hosts` are DNS names or IP addresses.

        `unit` is the operator's IdNat_Struct: `1` + FINESS or `3` + SIRET.
        """
        subject = _name(
            (NameOID.ORGANIZATION_NAME, organisation),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            (NameOID.COMMON_NAME, common_name),
        )
        return self._issue(
            subject,
            key_kind,
            _key_usage(digital_signature=True, key_encipherment=key_kind == "rsa3072"),
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            _hosts(hosts),
        )

    def issue_server(self, names: Sequence[str], ips: Sequence[str] = (), key_kind: KeyKind = "p256") -> Issued:
        """A TLS server certificate for DNS `names` and IP addresses `ips`; at least one of them."""
        hosts = [*names, *ips]
        if not hosts:
            raise ValueError("a server certificate needs a name or an address")
        return self._issue(
            self._under((NameOID.COMMON_NAME, hosts[0][:64])),
            key_kind,
            _key_usage(digital_signature=True, key_encipherment=key_kind == "rsa3072"),
            [ExtendedKeyUsageOID.SERVER_AUTH],
            _hosts(hosts),
        )

    def issue_list_signer(self) -> Issued:
        """The signer of the trust list: an organisation's S/MIME signing certificate, RSA for rsa-sha256."""
        return self._issue(
            self._under((NameOID.COMMON_NAME, "liste-blanche")),
            "rsa3072",
            _key_usage(digital_signature=True, content_commitment=True),
            [ExtendedKeyUsageOID.EMAIL_PROTECTION],
            [],
        )

    def _under(self, *attributes: tuple[ObjectIdentifier, str]) -> x509.Name:
        """A name inside the authority's own organisation."""
        organisation = str(self.root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
        return _name((NameOID.ORGANIZATION_NAME, organisation), *attributes)

    def _issue(
        self,
        subject: x509.Name,
        key_kind: KeyKind,
        usage: x509.KeyUsage,
        extended: Sequence[ObjectIdentifier],
        alternative: Sequence[x509.GeneralName],
    ) -> Issued:
        key = _new_key(key_kind)
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (usage, True),
            (x509.ExtendedKeyUsage(extended), False),
        ]
        if alternative:
            extensions.append((x509.SubjectAlternativeName(alternative), False))
        issuer = self._intermediate
        certificate = _certificate(subject, key, issuer.certificate.subject, issuer.key, LIFETIME, extensions)
        return Issued(key, certificate, (issuer.certificate,))


def _new_key(kind: KeyKind) -> PrivateKey:
    return rsa.generate_private_key(65537, 3072) if kind == "rsa3072" else ec.generate_private_key(ec.SECP256R1())


def _name(*attributes: tuple[ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in ((NameOID.COUNTRY_NAME, "FR"), *attributes)])


def _hosts(hosts: Sequence[str]) -> list[x509.GeneralName]:
    out: list[x509.GeneralName] = []
    for host in hosts:
        try:
            out.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            out.append(x509.DNSName(host))
    return out


def _key_usage(
    digital_signature: bool = False,
    content_commitment: bool = False,
    key_encipherment: bool = False,
    key_agreement: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _ca_extensions(path_length: int) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(ca=True, path_length=path_length), True),
        (_key_usage(key_cert_sign=True, crl_sign=True), True),
    ]


def _certificate(
    subject: x509.Name,
    key: PrivateKey,
    issuer: x509.Name,
    issuer_key: PrivateKey,
    lifetime: timedelta,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def _pem_key(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write_private(path: Path, content: bytes) -> None:
    """Write with mode 0600 from the first byte on; an older file of that name is replaced, never rewritten."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    fresh.replace(path)


def _load(directory: Path, stem: str) -> tuple[x509.Certificate, PrivateKey]:
    certificate = x509.load_pem_x509_certificate((directory / f"{stem}.pem").read_bytes())
    key = serialization.load_pem_private_key((directory / f"{stem}.key").read_bytes(), password=None)
    if not isinstance(key, PrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError(f"{stem}.key is not the key of {stem}.pem")
    return certificate, key
