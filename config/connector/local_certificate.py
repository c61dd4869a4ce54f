"""Our own certificate for 127.0.0.1: what the mail program of the machine sees of a connector.

It is made at the first start, with an authority of its own whose key is thrown away at once: nobody can ever issue
another certificate in its name, and its constraints let it vouch for this machine alone. A mail program that is given
`local-ca.pem` once asks no question.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from config.connector.expanding import CHAIN, KEY
from trust.store.durable import write_durably

AUTHORITY = "local-ca.pem"
"""Below the state: for the mail program."""
_LIFETIME = timedelta(days=3650)
_RENEWED = timedelta(days=30)
_LOOPBACK = ipaddress.ip_address("127.0.0.1")


def keep_local_certificate(state: Path, now: datetime | None = None) -> bool:
    """Make the certificate where there is none, or where it ends within a month; whether it was made. Raises
    OSError."""
    now = now or datetime.now(UTC)
    if _still_good(state, now):
        return False
    authority_key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Relais, ce poste")])
    # the name says when: after a renewal the mail program must not take the old authority for the new one
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Relais, autorité de ce poste {now:%Y-%m-%d %H:%M}")])

    def begun(subject: x509.Name, public: rsa.RSAPublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + _LIFETIME)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    host = ipaddress.ip_network("127.0.0.1/32")
    authority = (
        begun(issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.NameConstraints([x509.DNSName("localhost"), x509.IPAddress(host)], None),
            critical=True,
        )
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        begun(name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(_LOOPBACK)]), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    # the chain last: where it stands, its key does
    write_durably(
        state / KEY,
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    write_durably(state / AUTHORITY, authority.public_bytes(pem))
    (state / AUTHORITY).chmod(0o644)
    write_durably(state / CHAIN, certificate.public_bytes(pem) + authority.public_bytes(pem))
    return True


def _still_good(state: Path, now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificates((state / CHAIN).read_bytes())[0]
        key = serialization.load_pem_private_key((state / KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return False
    return certificate.public_key() == key.public_key() and certificate.not_valid_after_utc > now + _RENEWED


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
