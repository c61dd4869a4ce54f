"""A certificate authority for tests: answers requests, and issues what a careful one never would."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = datetime.now(UTC).replace(microsecond=0)


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


class Authority:
    """A root and one intermediate."""

    def __init__(self) -> None:
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._sign(name("Root"), self._root_key.public_key(), name("Root"), self._root_key, ca=True)
        self.intermediate = self._sign(name("AC"), self._key.public_key(), name("Root"), self._root_key, ca=True)

    def answer(self, request: x509.CertificateSigningRequest, since=-1, until=365) -> x509.Certificate:
        """What an authority issues that takes all of a request, days from now."""
        assert request.is_signature_valid
        return self._sign(
            request.subject,
            request.public_key(),
            name("AC"),
            self._key,
            list(request.extensions),
            since=since,
            until=until,
        )

    def issue(self, key, address="", *, signing=True, since=-1, until=365, serial=None) -> x509.Certificate:
        """A mailbox's certificate for one use."""
        rsa_key = hasattr(key, "private_numbers") and not isinstance(key, ec.EllipticCurvePrivateKey)
        usage = x509.KeyUsage(
            digital_signature=signing,
            content_commitment=signing,
            key_encipherment=not signing and rsa_key,
            key_agreement=not signing and not rsa_key,
            data_encipherment=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        extensions = [
            x509.Extension(usage.oid, True, usage),
            x509.Extension(
                x509.ExtendedKeyUsage.oid, False, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            ),
        ]
        if address:
            names = x509.SubjectAlternativeName([x509.RFC822Name(address)])
            extensions.append(x509.Extension(names.oid, False, names))
        return self._sign(
            name("Fictif"), key.public_key(), name("AC"), self._key, extensions, since=since, until=until, serial=serial
        )

    @staticmethod
    def _sign(
        subject, public_key, issuer, issuer_key, extensions=(), *, ca=False, since=-1, until=365, serial=None
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(NOW + timedelta(days=since))
            .not_valid_after(NOW + timedelta(days=until))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
        )
        if ca:
            usage = dict.fromkeys(
                (
                    "digital_signature",
                    "content_commitment",
                    "key_encipherment",
                    "key_agreement",
                    "data_encipherment",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            )
            builder = builder.add_extension(x509.BasicConstraints(True, None), True)
            builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)
        for each in extensions:
            builder = builder.add_extension(each.value, each.critical)
        return builder.sign(issuer_key, SHA256())
