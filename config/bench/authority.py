"""A synthetic authority with the shape of IGC-Santé: root, one issuing CA, mail certificates, CRLs of any length.

Its certificates say all that real ones say (policies, distribution point, AIA, addresses), since reading that is part
of the work. Nobody fetches from the addresses in them: the CRLs are handed over.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from trust import der

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Extension = tuple[x509.ExtensionType, bool]
SITE = "http://crl.bench.example"
ROOT_LIST, LIST = f"{SITE}/root.crl", f"{SITE}/ca.crl"
"""Where the certificates of the root and of the CA say that their revocation is published."""
_DAYS = timedelta(days=30)
_POLICY = ObjectIdentifier("1.2.250.1.999.1.1")
_LEAF_KEYS = 4
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
_SERIAL_OCTETS = 16
_ALGORITHM = der.sequence(der.oid("1.2.840.113549.1.1.11"), der.null())
_REASON = der.sequence(der.sequence(der.oid("2.5.29.21"), der.octet_string(b"\x0a\x01\x04")))
"""crlEntryExtensions: reasonCode superseded."""


@dataclass(frozen=True, slots=True)
class Issuer:
    certificate: x509.Certificate
    key: PrivateKey

    @property
    def encoded(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)


class Authority:
    """Keys of CAs and people are of one kind."""

    def __init__(self, kind: Literal["rsa2048", "p256"] = "rsa2048") -> None:
        self._kind = kind
        self.now = datetime.now(UTC).replace(microsecond=0)
        root_key, key = self._key(), self._key()
        self.root = Issuer(certificate("Bench root", root_key, None, authority_extensions(None)), root_key)
        self.ca = Issuer(certificate("Bench CA", key, self.root, [*authority_extensions(0), *_published("root")]), key)
        self._leaf_keys = [self._key() for _ in range(_LEAF_KEYS)]
        self._leaves = 0

    def leaves(self, count: int) -> list[bytes]:
        """New certificates of mailboxes that nobody has seen, in DER."""
        return [self._leaf() for _ in range(count)]

    def _leaf(self) -> bytes:
        self._leaves += 1
        address = f"person{self._leaves}@cabinet.bench.example"
        key = self._leaf_keys[self._leaves % _LEAF_KEYS]
        extensions: list[Extension] = [
            (usage("digital_signature", "content_commitment"), True),
            # the second is for `cryptography`, whose verifier knows TLS only
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            (x509.SubjectAlternativeName([x509.RFC822Name(address)]), False),
            *_published("ca"),
        ]
        made = certificate(f"PERSON {self._leaves}", key, self.ca, extensions)
        return made.public_bytes(serialization.Encoding.DER)

    def crl(self, entries: int, serials: Iterable[int] = ()) -> bytes:
        """A CRL of the CA, see `crl`."""
        return crl(self.ca, entries, self.now, serials)

    def _key(self) -> PrivateKey:
        if self._kind == "rsa2048":
            return rsa.generate_private_key(65537, 2048)
        return ec.generate_private_key(ec.SECP256R1())


def authority_extensions(path_length: int | None) -> list[Extension]:
    return [(x509.BasicConstraints(True, path_length), True), (usage("key_cert_sign", "crl_sign"), True)]


def usage(*wanted: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in wanted for name in _USAGES})


def _published(who: str) -> list[Extension]:
    """Policies, and where the issuer publishes."""
    point = x509.DistributionPoint([x509.UniformResourceIdentifier(f"{SITE}/{who}.crl")], None, None, None)
    access = [
        (AuthorityInformationAccessOID.OCSP, "http://ocsp.bench.example"),
        (AuthorityInformationAccessOID.CA_ISSUERS, f"{SITE}/{who}.cer"),
    ]
    return [
        (x509.CertificatePolicies([x509.PolicyInformation(_POLICY, [f"{SITE}/cps"])]), False),
        (x509.CRLDistributionPoints([point]), False),
        (
            x509.AuthorityInformationAccess(
                [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in access]
            ),
            False,
        ),
    ]


def certificate(
    name: str, key: PrivateKey, issuer: Issuer | None, extensions: Sequence[Extension], *, identifiers: bool = True
) -> x509.Certificate:
    """A certificate for `key`, self-signed when `issuer` is None; `identifiers`: those of both keys."""
    now = datetime.now(UTC)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Bench"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    signer = key if issuer is None else issuer.key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAYS)
        .not_valid_after(now + _DAYS)
    )
    if identifiers:
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(own, critical=False).add_extension(above, critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def crl(issuer: Issuer, entries: int, now: datetime, serials: Iterable[int] = ()) -> bytes:
    """A CRL in DER of an RSA issuer: entries with random serials of 16 octets, every second with a reason; `serials`
    beside them. Entries are 38 and 52 octets long."""
    if not isinstance(issuer.key, rsa.RSAPrivateKey):
        raise TypeError("CRLs are signed with RSA here")
    date = der.time(now - timedelta(days=1))
    plain, reasoned = date, date + _REASON
    noise = random.Random(entries).randbytes(entries * _SERIAL_OCTETS)  # noqa: S311 - the same list every time
    head = [der.header(der.SEQUENCE, 2 + _SERIAL_OCTETS + len(end)) for end in (plain, reasoned)]
    head = [start + der.header(der.INTEGER, _SERIAL_OCTETS) for start in head]
    parts: list[bytes] = []
    for number in range(entries):
        serial = noise[number * _SERIAL_OCTETS : (number + 1) * _SERIAL_OCTETS]
        odd = number % 2
        # the first octet: positive, and no shorter without it
        parts += (head[odd], bytes((0x40 | serial[0] & 0x3F,)), serial[1:], reasoned if odd else plain)
    parts += (der.sequence(der.integer(serial), plain) for serial in serials)
    key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()).public_bytes()
    extensions = der.sequence(
        der.sequence(der.oid("2.5.29.35"), der.octet_string(key_id)),
        der.sequence(der.oid("2.5.29.20"), der.octet_string(der.integer(entries + 1))),
    )
    revoked = b"".join(parts)
    signed = der.sequence(
        der.integer(1),
        _ALGORITHM,
        issuer.certificate.subject.public_bytes(),
        der.time(now - timedelta(hours=1)),
        der.time(now + timedelta(days=7)),
        *([der.sequence(revoked)] if revoked else []),
        der.tlv(der.context(0), extensions),
    )
    signature = issuer.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
    return der.sequence(signed, _ALGORITHM, der.tlv(der.BIT_STRING, b"\x00", signature))


def serials_of(data: bytes, count: int) -> list[int]:
    """At most `count` of the serial numbers a CRL lists, from all over it."""
    listed = [each.serial_number for each in x509.load_der_x509_crl(data)]
    return random.Random(count).sample(listed, min(count, len(listed)))  # noqa: S311 - the same choice every time


def random_serials(count: int) -> list[int]:
    """Serial numbers that no list has."""
    return [int.from_bytes(b"\x7f" + os.urandom(_SERIAL_OCTETS - 1), "big") for _ in range(count)]
