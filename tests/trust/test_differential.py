"""Chains with a few things wrong or unusual, judged by two other validators as well.

pyhanko-certvalidator follows RFC 5280 in full, `cryptography`'s own verifier follows the web's profile of it. Where one
of them disagrees, the reason is one of those argued here, or the test fails.
"""

from __future__ import annotations

import asyncio
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from asn1crypto import x509 as asn1
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID, ObjectIdentifier
from pyhanko_certvalidator import CertificateValidator as Peer
from pyhanko_certvalidator import ValidationContext
from pyhanko_certvalidator.errors import PathBuildingError, ValidationError

from tests.trust.chains import DAY, NOW, Node, encoded, make, usage
from trust import der
from trust.certificates import CertificateValidator, PathVerdict, Purpose

Extensions = dict[str, tuple[x509.ExtensionType, bool]]

CASES = 400
KEYS = [ec.generate_private_key(ec.SECP256R1()) for _ in range(6)]
POLICIES = ["1.2.3.1", "1.2.3.2", "2.5.29.32.0"]
HOSTS = ["chu.example", "a.chu.example", "ghu.example", "xchu.example"]
MAILS = ["a@chu.example", "b@a.chu.example", "c@ghu.example"]
LIMITS = ["chu.example", ".chu.example", "a@chu.example", "ghu.example"]


@dataclass
class Part:
    """One certificate of a chain before it is made."""

    extensions: Extensions
    subject: x509.Name
    key: ec.EllipticCurvePrivateKey
    since: timedelta = -DAY
    until: timedelta = DAY
    signer: ec.EllipticCurvePrivateKey | None = None
    """Somebody else's key, when the signature is to be wrong."""
    issuer_name: x509.Name | None = None
    marks: set[str] = field(default_factory=set)


def dn(organisation: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def chain() -> list[Part]:
    """A good chain: root, two CAs, end entity."""
    parts = []
    for level, name in enumerate(("Root", "First", "Second")):
        extensions: Extensions = {
            "bc": (x509.BasicConstraints(True, None), True),
            "ku": (usage("key_cert_sign", "crl_sign"), True),
        }
        parts.append(Part(extensions, dn("CHU", name), KEYS[level]))
    leaf: Extensions = {
        "ku": (usage("digital_signature", "content_commitment"), True),
        "san": (x509.SubjectAlternativeName([x509.DNSName("a.chu.example"), x509.RFC822Name("a@chu.example")]), False),
    }
    parts.append(Part(leaf, dn("CHU", "Leaf"), KEYS[3]))
    return parts


def policy_extension(oids: list[str]) -> tuple[x509.ExtensionType, bool]:
    return x509.CertificatePolicies([x509.PolicyInformation(ObjectIdentifier(oid), None) for oid in oids]), False


# --- What is done to chains ------------------------------------------------------------------------------------------

Change = Callable[[random.Random, list[Part]], None]


def a_ca(dice: random.Random, parts: list[Part]) -> Part:
    return parts[dice.choice((1, 2))]


def outdated(dice: random.Random, parts: list[Part]) -> None:
    part = dice.choice(parts[1:])
    part.since, part.until = dice.choice([(-9 * DAY, -DAY), (DAY, 9 * DAY)])


def no_ca(dice: random.Random, parts: list[Part]) -> None:
    part = a_ca(dice, parts)
    if dice.random() < 0.5:
        part.extensions["bc"] = (x509.BasicConstraints(False, None), True)
    else:
        part.extensions.pop("bc", None)


def path_length(dice: random.Random, parts: list[Part]) -> None:
    a_ca(dice, parts).extensions["bc"] = (x509.BasicConstraints(True, dice.choice((0, 1, 2))), True)


def no_signing(dice: random.Random, parts: list[Part]) -> None:
    a_ca(dice, parts).extensions["ku"] = (usage("crl_sign"), True)


def strange_extension(dice: random.Random, parts: list[Part]) -> None:
    extension = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.99"), b"\x05\x00")
    dice.choice(parts[1:]).extensions["strange"] = (extension, dice.random() < 0.5)


def wrong_signature(dice: random.Random, parts: list[Part]) -> None:
    dice.choice(parts[1:]).signer = KEYS[5]


def wrong_name(dice: random.Random, parts: list[Part]) -> None:
    dice.choice(parts[1:]).issuer_name = dn("CHU", "Nobody")


def other_subject(dice: random.Random, parts: list[Part]) -> None:
    parts[3].subject = dn(dice.choice(("CHU", "GHU", "chu")), "Leaf")


def other_names(dice: random.Random, parts: list[Part]) -> None:
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in dice.sample(HOSTS, dice.randint(1, 2))]
    names += [x509.RFC822Name(mail) for mail in dice.sample(MAILS, dice.randint(0, 2))]
    parts[3].extensions["san"] = (x509.SubjectAlternativeName(names), False)


def constrained(dice: random.Random, parts: list[Part]) -> None:
    part = a_ca(dice, parts)
    bases: list[x509.GeneralName] = []
    for _ in range(dice.randint(1, 3)):
        kind = dice.random()
        if kind < 0.4:
            bases.append(x509.RFC822Name._init_without_validation(dice.choice(LIMITS)))
        elif kind < 0.8:
            bases.append(x509.DNSName(dice.choice(HOSTS)))
        else:
            name = x509.Name(list(dn(dice.choice(("CHU", "GHU")), "x"))[:2])
            bases.append(x509.DirectoryName(name))
            part.marks.add("directory")
    sides = (bases, None) if dice.random() < 0.6 else (None, bases)
    part.extensions["nc"] = (x509.NameConstraints(*sides), True)


def with_policies(dice: random.Random, parts: list[Part]) -> None:
    for part in parts[1:]:
        if dice.random() < 0.85:
            part.extensions["cp"] = policy_extension(dice.sample(POLICIES, dice.randint(1, 2)))
    part = a_ca(dice, parts)
    if dice.random() < 0.8:
        part.extensions["pc"] = (x509.PolicyConstraints(dice.choice((0, 1, 2)), dice.choice((None, 0, 1))), True)
    if dice.random() < 0.4:
        a_ca(dice, parts).extensions["iap"] = (x509.InhibitAnyPolicy(dice.choice((0, 1))), True)
    if dice.random() < 0.4:
        pairs = [("1.2.3.1", "1.2.3.2")] if dice.random() < 0.8 else [("1.2.3.1", "2.5.29.32.0")]
        value = der.sequence(*(der.sequence(der.oid(one), der.oid(other)) for one, other in pairs))
        part.extensions["pm"] = (x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.33"), value), True)


def purposes(dice: random.Random, parts: list[Part]) -> None:
    used = dice.choice(("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.1", "2.5.29.37.0"))
    part = dice.choice(parts[1:])
    part.extensions["eku"] = (x509.ExtendedKeyUsage([ObjectIdentifier(used)]), False)


CHANGES: list[Change] = [
    *(outdated, no_ca, path_length, no_signing, strange_extension, wrong_signature, wrong_name),
    *(other_subject, other_names, constrained, constrained, constrained, with_policies, with_policies, purposes),
]


def made(parts: list[Part]) -> list[Node]:
    nodes: list[Node] = []
    for part in parts:
        issuer = nodes[-1] if nodes else None
        if issuer is not None and part.signer is not None:
            issuer = Node(issuer.certificate, part.signer)
        node = make(
            part.subject,
            issuer,
            part.extensions.values(),
            key=part.key,
            since=NOW + part.since,
            until=NOW + part.until,
            issuer_name=part.issuer_name,
        )
        nodes.append(node)
    return nodes


def ours(nodes: list[Node]) -> PathVerdict:
    validator = CertificateValidator([nodes[0].certificate])
    offered = [node.certificate for node in nodes[1:-1]]
    return validator.validate(nodes[-1].certificate, offered, Purpose.MAIL_SIGNATURE, NOW)


# --- pyhanko-certvalidator -------------------------------------------------------------------------------------------


def pyhanko(nodes: list[Node]) -> tuple[bool, str]:
    root, *between, leaf = (asn1.Certificate.load(encoded(node.certificate)) for node in nodes)
    context = ValidationContext(trust_roots=[root], moment=NOW, allow_fetching=False, revocation_mode="soft-fail")
    peer = Peer(leaf, between, validation_context=context)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asyncio.run(peer.async_validate_usage(set()))
    except (ValidationError, PathBuildingError) as refusal:
        return False, str(refusal)
    return True, ""


def argued_against_pyhanko(verdict: PathVerdict, said: str) -> str:
    """Why a disagreement with pyhanko-certvalidator is right, "" when it is not known to be."""
    if verdict.rule in ("relais-extended-key-usage", "rfc5280-4.2.1.12-extended-key-usage"):
        return "it was not told the purpose, and asks CAs for none (§4.2.1.12 leaves that to the application)"
    return ""


def seeded(seed: int) -> list[Part]:
    dice = random.Random(seed)
    parts = chain()
    for change in dice.sample(CHANGES, dice.choice((1, 2, 2, 3))):
        change(dice, parts)
    return parts


@pytest.mark.parametrize("batch", range(4))
def test_pyhanko_agrees(batch: int) -> None:
    accepted = disagreed = 0
    for seed in range(batch, CASES, 4):
        nodes = made(seeded(seed))
        verdict = ours(nodes)
        theirs, said = pyhanko(nodes)
        accepted += verdict.ok
        if verdict.ok is not theirs:
            disagreed += 1
            assert argued_against_pyhanko(verdict, said), (seed, verdict.rule, verdict.detail, said)
    assert CASES / 4 * 0.15 < accepted < CASES / 4 * 0.85, "neither all good nor all bad"
    assert disagreed < CASES / 4 * 0.2


# --- cryptography ----------------------------------------------------------------------------------------------------


def cryptography(nodes: list[Node]) -> tuple[bool, str]:
    builder = verification.PolicyBuilder().store(verification.Store([nodes[0].certificate])).time(NOW)
    verifier = builder.extension_policies(
        ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=verification.ExtensionPolicy.permit_all()
    ).build_client_verifier()
    try:
        verifier.verify(nodes[-1].certificate, [node.certificate for node in nodes[1:-1]])
    except verification.VerificationError as refusal:
        return False, str(refusal)
    return True, ""


def argued_against_cryptography(parts: list[Part], verdict: PathVerdict, said: str) -> str:
    """Why a disagreement with `cryptography` is right, "" when it is not known to be."""
    present = {key for part in parts for key in part.extensions}
    if verdict.ok:
        if present & {"pc", "iap", "pm"}:
            return "it processes no policies, and refuses their critical extensions"
        if any("directory" in part.marks for part in parts):
            return "it refuses every directoryName constraint"
        if "eku" in present and "EKU" in said:
            return "it was asked for a TLS client, and CAs for mail only are none"
        return ""
    if "policy" in verdict.rule:
        return "it processes no policies"
    if verdict.rule.endswith("extended-key-usage"):
        return "a verifier with permit_all asks for no purpose"
    return ""


@pytest.mark.parametrize("batch", range(2))
def test_cryptography_agrees(batch: int) -> None:
    agreed = 0
    for seed in range(batch, CASES, 2):
        parts = seeded(seed)
        nodes = made(parts)
        verdict = ours(nodes)
        theirs, said = cryptography(nodes)
        if verdict.ok is theirs:
            agreed += 1
        else:
            assert argued_against_cryptography(parts, verdict, said), (seed, verdict.rule, verdict.detail, said)
    assert agreed > CASES / 2 * 0.6
