"""Certificates in the shapes of IGC-Santé: each used for what the national profile gives it, and fourteen it forbids.

A chain check that knows no purpose and asks for no revocation accepts eight of the fourteen: what is forbidden there is
the use, not the certificate. `openssl verify` without a purpose is that check.
"""

from __future__ import annotations

import asyncio
import subprocess
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from pyhanko_certvalidator import CertificateValidator as Peer
from pyhanko_certvalidator import ValidationContext
from pyhanko_certvalidator.errors import PathError, ValidationError

from tests.trust.chains import DAY, NOW, Node, encoded, make, usage
from trust.certificates import CertificateValidator, Purpose
from trust.revocation import RevocationMode, RevocationPolicy
from trust.revocation.checker import Revocation

Extension = tuple[x509.ExtensionType, bool]

POLICY = "1.2.250.1.213.1.7.1.1"
SMARTCARD_LOGON = ObjectIdentifier("1.3.6.1.4.1.311.20.2.2")
CARD_TYPE = ObjectIdentifier("1.2.250.1.71.1.2.5")
PROFESSION = ObjectIdentifier("1.2.250.1.71.1.2.7")


def name(*attributes: tuple[ObjectIdentifier, str]) -> x509.Name:
    both = ((NameOID.COUNTRY_NAME, "FR"), (NameOID.ORGANIZATION_NAME, "IGC-ESSAI"), *attributes)
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in both])


def person() -> x509.Name:
    """GN, CN and SN in one RDN, as cards have it."""
    together = [
        x509.NameAttribute(NameOID.GIVEN_NAME, "VALIDE"),
        x509.NameAttribute(NameOID.COMMON_NAME, "899700000001"),
        x509.NameAttribute(NameOID.SURNAME, "ESSAI"),
    ]
    plain = [*name().rdns, x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.TITLE, "Sage-Femme")])]
    return x509.Name([*plain, x509.RelativeDistinguishedName(together)])


def policy(arc: str) -> Extension:
    return x509.CertificatePolicies([x509.PolicyInformation(ObjectIdentifier(f"{POLICY}.{arc}"), None)]), False


def extended(*purposes: ObjectIdentifier) -> Extension:
    return x509.ExtendedKeyUsage(purposes), False


def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


KEYS = [key() for _ in range(4)]
LIMITS = {"since": NOW - 30 * DAY, "until": NOW + 30 * DAY}
CA = [(x509.BasicConstraints(True, None), True), (usage("key_cert_sign", "crl_sign"), True)]
ROOT = make(name((NameOID.COMMON_NAME, "AC RACINE ESSAI ELEMENTAIRE")), None, CA, key=KEYS[0], **LIMITS)
ISSUER = make(name((NameOID.COMMON_NAME, "AC ESSAI ELEMENTAIRE ORGANISATIONS")), ROOT, CA, key=KEYS[1], **LIMITS)

SERVER = [
    (usage("digital_signature", "key_encipherment"), True),
    extended(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    (x509.SubjectAlternativeName([x509.DNSName("smtp.essai.example")]), False),
    policy("1.2.5.1"),
]
ORGANISATION_SIGNS = [
    (usage("digital_signature", "content_commitment"), True),
    extended(ExtendedKeyUsageOID.EMAIL_PROTECTION),
    policy("1.2.3.1"),
]
ORGANISATION_DECRYPTS = [
    (usage("key_encipherment"), True),
    extended(ExtendedKeyUsageOID.EMAIL_PROTECTION),
    (x509.SubjectAlternativeName([x509.RFC822Name("accueil@essai.example")]), False),
    policy("1.2.4.1"),
]
CARD = [
    (x509.UnrecognizedExtension(CARD_TYPE, b"\x04\x01\x03"), False),
    (x509.UnrecognizedExtension(PROFESSION, b"\x02\x01\x32"), False),
]
CARD_SIGNS = [(usage("content_commitment"), True), extended(ExtendedKeyUsageOID.EMAIL_PROTECTION), *CARD]
CARD_LOGS_IN = [
    (usage("digital_signature"), True),
    extended(ExtendedKeyUsageOID.CLIENT_AUTH, SMARTCARD_LOGON),
    *CARD,
]


def issue(extensions: list[Extension], subject: x509.Name | None = None, **options) -> Node:
    subject = subject or name((NameOID.ORGANIZATIONAL_UNIT_NAME, "10B0000001"), (NameOID.COMMON_NAME, "Essai"))
    return make(subject, options.pop("issuer", ISSUER), extensions, key=KEYS[2], **{**LIMITS, **options})


def spoilt(node: Node) -> Node:
    """The last octet of the signature changed."""
    raw = bytearray(encoded(node.certificate))
    raw[-1] ^= 1
    return Node(x509.load_der_x509_certificate(bytes(raw)), node.key)


def crl(issuer: Node, *revoked: Node) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(NOW - timedelta(hours=1))
        .next_update(NOW + DAY)
        .add_extension(x509.CRLNumber(1), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), False)
    )
    for node in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(node.certificate.serial_number)
        entry = entry.revocation_date(NOW - timedelta(hours=2))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


REVOKED = issue(ORGANISATION_SIGNS)


@pytest.fixture(scope="module")
def validator() -> CertificateValidator:
    """As a gateway has it: the root is trusted, CRLs of both authorities are held, no answer is no trust."""
    root, issuer = ROOT.certificate, ISSUER.certificate
    revocation = Revocation([root], [issuer], clock=lambda: NOW)
    revocation.add_crl(crl(ROOT))
    revocation.add_crl(crl(ISSUER, REVOKED))
    hard = RevocationPolicy(RevocationMode.HARD)
    return CertificateValidator([root], [issuer], revocation, dict.fromkeys(Purpose, hard))


GIVEN = {
    "server as server": (issue(SERVER), Purpose.OPERATOR_TLS_SERVER),
    "server as client": (issue(SERVER), Purpose.OPERATOR_TLS_CLIENT),
    "organisation signs mail, no address in it": (issue(ORGANISATION_SIGNS), Purpose.MAIL_SIGNATURE),
    "organisation signs the trust list": (issue(ORGANISATION_SIGNS), Purpose.LIST_SIGNATURE),
    "organisation decrypts": (issue(ORGANISATION_DECRYPTS), Purpose.MAIL_ENCRYPTION),
    "card signs, nonRepudiation only": (issue(CARD_SIGNS, person()), Purpose.MAIL_SIGNATURE),
    "card logs in": (issue(CARD_LOGS_IN, person()), Purpose.OPERATOR_TLS_CLIENT),
}


@pytest.mark.parametrize(("node", "purpose"), GIVEN.values(), ids=GIVEN.keys())
def test_what_the_profile_gives(validator: CertificateValidator, node: Node, purpose: Purpose) -> None:
    verdict = validator.validate(node.certificate, (), purpose, NOW)
    assert verdict.ok, (verdict.rule, verdict.detail)
    assert verdict.revocation == "good"


@dataclass(frozen=True)
class Forbidden:
    what: str
    node: Node
    purpose: Purpose
    rule: str
    plain: bool
    """A chain check without purpose and revocation accepts it."""
    offered: tuple[Node, ...] = ()


EKU, KU = "rfc5280-4.2.1.12-extended-key-usage", "rfc5280-4.2.1.3-key-usage"
ORGANISATION = issue(ORGANISATION_SIGNS)
IMPOSTOR = make(ROOT.certificate.subject, None, CA, key=KEYS[3], **LIMITS)
IMPOSTOR_ISSUER = make(ISSUER.certificate.subject, IMPOSTOR, CA, key=KEYS[3], **LIMITS)
STRANGE: Extension = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.250.1.999.9"), b"\x05\x00"), True)

FORBIDDEN = [
    Forbidden("a server's signs mail", issue(SERVER), Purpose.MAIL_SIGNATURE, EKU, True),
    Forbidden("an organisation's for mail is a TLS server", ORGANISATION, Purpose.OPERATOR_TLS_SERVER, EKU, True),
    Forbidden("an organisation's for mail is a TLS client", ORGANISATION, Purpose.OPERATOR_TLS_CLIENT, EKU, True),
    Forbidden("mail is encrypted to one that only signs", ORGANISATION, Purpose.MAIL_ENCRYPTION, KU, True),
    Forbidden("one that only decrypts signs mail", issue(ORGANISATION_DECRYPTS), Purpose.MAIL_SIGNATURE, KU, True),
    Forbidden("a card's for logging in signs mail", issue(CARD_LOGS_IN, person()), Purpose.MAIL_SIGNATURE, EKU, True),
    Forbidden("a card's for logging in is a server", issue(CARD_LOGS_IN), Purpose.OPERATOR_TLS_SERVER, EKU, True),
    Forbidden("a revoked one", REVOKED, Purpose.MAIL_SIGNATURE, "rfc5280-6.1.3-revoked", True),
    Forbidden(
        "an expired one",
        issue(ORGANISATION_SIGNS, until=NOW - timedelta(seconds=1)),
        Purpose.MAIL_SIGNATURE,
        "rfc5280-6.1.3-validity",
        False,
    ),
    Forbidden(
        "one not yet valid",
        issue(ORGANISATION_SIGNS, since=NOW + timedelta(seconds=1)),
        Purpose.MAIL_SIGNATURE,
        "rfc5280-6.1.3-validity",
        False,
    ),
    Forbidden(
        "one issued by an organisation",
        issue(ORGANISATION_SIGNS, name((NameOID.COMMON_NAME, "Below")), issuer=ORGANISATION),
        Purpose.MAIL_SIGNATURE,
        "rfc5280-6.1.4-basic-constraints",
        False,
        (ORGANISATION,),
    ),
    Forbidden(
        "one under a root that has the name of ours",
        issue(ORGANISATION_SIGNS, issuer=IMPOSTOR_ISSUER),
        Purpose.MAIL_SIGNATURE,
        "rfc5280-6.1-no-path",
        False,
        (IMPOSTOR_ISSUER, IMPOSTOR),
    ),
    Forbidden(
        "one whose signature is spoilt",
        spoilt(issue(ORGANISATION_SIGNS)),
        Purpose.MAIL_SIGNATURE,
        "rfc5280-6.1.3-signature",
        False,
    ),
    Forbidden(
        "one with a critical extension nobody knows",
        issue([*ORGANISATION_SIGNS, STRANGE]),
        Purpose.MAIL_SIGNATURE,
        "rfc5280-6.1.5-critical-extension",
        False,
    ),
]


@pytest.mark.parametrize("case", FORBIDDEN, ids=lambda case: case.what)
def test_what_the_profile_forbids(validator: CertificateValidator, case: Forbidden) -> None:
    offered = [node.certificate for node in case.offered]
    verdict = validator.validate(case.node.certificate, offered, case.purpose, NOW)
    assert not verdict.ok
    assert verdict.rule == case.rule, verdict.detail
    assert verdict.path == ()


@pytest.mark.parametrize("case", FORBIDDEN, ids=lambda case: case.what)
def test_not_even_after_its_proper_use(validator: CertificateValidator, case: Forbidden) -> None:
    """A path that was accepted for one purpose is no path for another."""
    offered = [node.certificate for node in case.offered]
    for purpose in Purpose:
        validator.validate(case.node.certificate, offered, purpose, NOW)
    assert validator.validate(case.node.certificate, offered, case.purpose, NOW).rule == case.rule


def test_a_plain_chain_check_accepts_eight_of_the_fourteen(tmp_path: Path) -> None:
    def save(file: str, *nodes: Node) -> str:
        pem = b"".join(node.certificate.public_bytes(serialization.Encoding.PEM) for node in nodes)
        (tmp_path / file).write_bytes(pem)
        return str(tmp_path / file)

    at = str(int(NOW.timestamp()))

    def accepts(case: Forbidden) -> bool:
        files = ["-untrusted", save("between.pem", ISSUER, *case.offered), save("leaf.pem", case.node)]
        command = ["openssl", "verify", "-attime", at, "-CAfile", save("root.pem", ROOT), *files]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert [case.what for case in FORBIDDEN if accepts(case)] == [case.what for case in FORBIDDEN if case.plain]
    assert (len(FORBIDDEN), sum(case.plain for case in FORBIDDEN)) == (14, 8)


PEER_PURPOSES = {
    Purpose.MAIL_SIGNATURE: ({"non_repudiation"}, {"email_protection"}),
    Purpose.LIST_SIGNATURE: ({"non_repudiation"}, {"email_protection"}),
    Purpose.MAIL_ENCRYPTION: ({"key_encipherment"}, {"email_protection"}),
    Purpose.OPERATOR_TLS_SERVER: ({"digital_signature"}, {"server_auth"}),
    Purpose.OPERATOR_TLS_CLIENT: ({"digital_signature"}, {"client_auth"}),
}


def peer_accepts(node: Node, purpose: Purpose, offered: tuple[Node, ...] = ()) -> bool:
    root, *others = (asn1.Certificate.load(encoded(each.certificate)) for each in (ROOT, ISSUER, *offered))
    context = ValidationContext(
        trust_roots=[root],
        other_certs=others,
        crls=[crl(ROOT), crl(ISSUER, REVOKED)],
        moment=NOW,
        revocation_mode="require",
        time_tolerance=timedelta(0),
    )
    peer = Peer(asn1.Certificate.load(encoded(node.certificate)), validation_context=context)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asyncio.run(peer.async_validate_usage(*PEER_PURPOSES[purpose]))
    except (PathError, ValidationError):
        return False
    return True


def test_pyhanko_agrees_when_it_is_told_the_purpose() -> None:
    assert [what for what, (node, purpose) in GIVEN.items() if not peer_accepts(node, purpose)] == []
    assert [case.what for case in FORBIDDEN if peer_accepts(case.node, case.purpose, case.offered)] == []
