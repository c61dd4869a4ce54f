"""PKITS, the conformance suite of NIST for RFC 5280 path validation, as 224 signed mails.

Each mail of the package cryptography-vectors is opened as any mail is, with the suite's trust anchor, its CRLs and
the settings its document prescribes; what the validator says has to be what the mail's name says. Mails whose verdict
the document makes depend on settings are judged under each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509

from smime import SignatureResult, open_message
from smime.canonical import crlf
from smime.verdict import SignerVerdict
from trust.certificates import CertificateValidator, Purpose
from trust.profiles import ANY_POLICY, Profile
from trust.revocation import RevocationMode, RevocationPolicy
from trust.revocation.checker import Revocation
from trust.revocation.crl import CrlError
from trust.rules import RULES

PKITS = Path(cryptography_vectors.__file__).parent / "x509" / "PKITS_data"
MAILS = sorted((PKITS / "smime").glob("*.eml"))
AT = datetime(2026, 6, 1, tzinfo=UTC)
NIST = [f"2.16.840.1.101.3.2.1.48.{number}" for number in range(9)]
"""NIST-test-policy-1 is NIST[1]."""

pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")


def load(path: Path) -> x509.Certificate:
    return x509.load_der_x509_certificate(path.read_bytes())


@cache
def anchor() -> x509.Certificate:
    return load(PKITS / "certs" / "TrustAnchorRootCertificate.crt")


@cache
def revocation() -> Revocation:
    """Every CRL of the suite; those that may not be used are refused when they are added, or when they are asked."""
    paths = [path for path in sorted((PKITS / "certs").glob("*.crt")) if "EE" not in path.stem]
    # `cryptography` does not read DSA keys that inherit their parameters
    certificates = [load(path) for path in paths if path.stem != "DSAParametersInheritedCACert"]
    checker = Revocation([anchor()], certificates, clock=lambda: AT)
    for path in sorted((PKITS / "crls").glob("*.crl")):
        try:
            checker.add_crl(path.read_bytes())
        except CrlError:
            assert path.stem in UNUSABLE, path.stem
    return checker


UNUSABLE = {
    "BadCRLSignatureCACRL",
    "BadCRLIssuerNameCACRL",
    "UnknownCRLEntryExtensionCACRL",
    "UnknownCRLExtensionCACRL",
    "keyUsageCriticalcRLSignFalseCACRL",
    "keyUsageNotCriticalcRLSignFalseCACRL",
    "DSACACRL",
    "DSAParametersInheritedCACRL",
    "TwoCRLsCABadCRL",
}
"""Broken on purpose, signed by one who may not, or signed with DSA and SHA-1."""


@dataclass(frozen=True)
class Settings:
    """The user's part of §6.1.1; the suite's default is any policy and nothing else."""

    policies: tuple[int, ...] = ()
    explicit: bool = False
    inhibit_mapping: bool = False
    inhibit_any: bool = False


DEFAULT = Settings()
EXPLICIT = Settings(explicit=True)


@cache
def validator(settings: Settings) -> CertificateValidator:
    profile = Profile(
        "1.3.6.1.5.5.7.3.4",
        frozenset(NIST[number] for number in settings.policies) or frozenset({ANY_POLICY}),
        settings.explicit,
        settings.inhibit_mapping,
        settings.inhibit_any,
    )
    hard = RevocationPolicy(RevocationMode.HARD)
    return CertificateValidator(
        [anchor()],
        (),
        revocation(),
        {Purpose.MAIL_SIGNATURE: hard},
        profiles={Purpose.MAIL_SIGNATURE: profile},
    )


def judged(path: Path, settings: Settings = DEFAULT) -> SignerVerdict:
    (signer,) = open_message(crlf(path.read_bytes()), (), validator(settings), AT).verdict.signers
    return signer


DSA = {"SignedValidDSAParameterInheritanceTest5", "SignedValidDSASignaturesTest4"}
"""Valid by the suite; refused here already as messages, for DSA and SHA-1 are accepted nowhere (RFC 8551 §2.2)."""

UNNAMED_VALID = {
    "SignedAllCertificatesAnyPolicyTest11",
    "SignedAllCertificatesNoPoliciesTest2",
    "SignedAllCertificatesSamePoliciesTest10",
    "SignedAllCertificatesSamePoliciesTest13",
    "SignedAllCertificatesSamePolicyTest1",
    "SignedAnyPolicyTest14",
    "SignedCPSPointerQualifierTest20",
    "SignedDifferentPoliciesTest3",
    "SignedOverlappingPoliciesTest6",
    "SignedUserNoticeQualifierTest15",
    "SignedUserNoticeQualifierTest16",
    "SignedUserNoticeQualifierTest17",
    "SignedUserNoticeQualifierTest18",
    "SignedUserNoticeQualifierTest19",
    "SignedinhibitAnyPolicyTest3",
}
"""Names that say neither Valid nor Invalid, valid under the default settings (PKITS §4.8, §4.12.3)."""
UNNAMED_INVALID = {
    "SignedDifferentPoliciesTest4",
    "SignedDifferentPoliciesTest5",
    "SignedDifferentPoliciesTest7",
    "SignedDifferentPoliciesTest8",
    "SignedDifferentPoliciesTest9",
    "SignedDifferentPoliciesTest12",
    "SignedMissingCRLTest1",
}


def expected(name: str) -> bool:
    if name in UNNAMED_VALID or name in UNNAMED_INVALID:
        return name in UNNAMED_VALID
    assert name.startswith(("SignedValid", "SignedInvalid")), name
    return name.startswith("SignedValid")


@pytest.mark.parametrize("path", MAILS, ids=lambda path: path.stem)
def test_verdict_is_the_one_in_the_name(path: Path) -> None:
    signer = judged(path)
    if path.stem in DSA or path.stem == "SignedInvalidDSASignatureTest6":
        assert signer.result is SignatureResult.INVALID
        return
    assert signer.path is not None, signer.findings
    assert signer.path.ok is expected(path.stem), signer.path
    assert signer.path.rule in RULES
    if signer.path.ok:
        assert signer.path.revocation == "good"


RULE = {
    "SignedInvalidCASignatureTest2": "rfc5280-6.1.3-signature",
    "SignedInvalidEESignatureTest3": "rfc5280-6.1.3-signature",
    "SignedInvalidEEnotAfterDateTest6": "rfc5280-6.1.3-validity",
    "SignedInvalidCAnotBeforeDateTest1": "rfc5280-6.1.3-validity",
    "SignedInvalidRevokedCATest2": "rfc5280-6.1.3-revoked",
    "SignedInvalidRevokedEETest3": "rfc5280-6.1.3-revoked",
    "SignedInvalidNegativeSerialNumberTest15": "rfc5280-6.1.3-revoked",
    "SignedInvalidLongSerialNumberTest18": "rfc5280-6.1.3-revoked",
    "SignedMissingCRLTest1": "relais-revocation-unknown",
    "SignedInvalidMissingbasicConstraintsTest1": "rfc5280-6.1.4-basic-constraints",
    "SignedInvalidcAFalseTest2": "rfc5280-6.1.4-basic-constraints",
    "SignedInvalidkeyUsageCriticalkeyCertSignFalseTest1": "rfc5280-6.1.4-key-usage",
    "SignedInvalidpathLenConstraintTest5": "rfc5280-6.1.4-path-length",
    "SignedInvalidUnknownCriticalCertificateExtensionTest2": "rfc5280-6.1.5-critical-extension",
    "SignedInvalidDNnameConstraintsTest2": "rfc5280-6.1.3-name-constraints",
    "SignedInvalidRFC822nameConstraintsTest22": "rfc5280-6.1.3-name-constraints",
    "SignedInvalidURInameConstraintsTest35": "rfc5280-6.1.3-name-constraints",
    "SignedInvalidMappingFromanyPolicyTest7": "rfc5280-6.1.4-policy-mapping",
    "SignedInvalidMappingToanyPolicyTest8": "rfc5280-6.1.4-policy-mapping",
    "SignedInvalidNameChainingOrderTest2": "rfc5280-6.1-no-path",
}


@pytest.mark.parametrize("name", RULE)
def test_refused_for_the_right_reason(name: str) -> None:
    path = judged(PKITS / "smime" / f"{name}.eml").path
    assert path is not None
    assert path.rule == RULE[name], path


@pytest.mark.parametrize(
    ("name", "settings", "valid"),
    [
        # PKITS §4.8.1 to §4.8.20
        ("AllCertificatesSamePolicyTest1", EXPLICIT, True),
        ("AllCertificatesSamePolicyTest1", Settings((1,), explicit=True), True),
        ("AllCertificatesSamePolicyTest1", Settings((2,), explicit=True), False),
        ("AllCertificatesSamePolicyTest1", Settings((1, 2), explicit=True), True),
        ("AllCertificatesNoPoliciesTest2", EXPLICIT, False),
        ("DifferentPoliciesTest3", EXPLICIT, False),
        ("DifferentPoliciesTest3", Settings((1, 2), explicit=True), False),
        ("OverlappingPoliciesTest6", Settings((1,)), True),
        ("OverlappingPoliciesTest6", Settings((2,)), False),
        ("AllCertificatesSamePoliciesTest10", Settings((1,)), True),
        ("AllCertificatesSamePoliciesTest10", Settings((2,)), True),
        ("AllCertificatesAnyPolicyTest11", Settings((1,)), True),
        ("AllCertificatesSamePoliciesTest13", Settings((1,)), True),
        ("AllCertificatesSamePoliciesTest13", Settings((2,)), True),
        ("AllCertificatesSamePoliciesTest13", Settings((3,)), True),
        ("AnyPolicyTest14", Settings((1,)), True),
        ("AnyPolicyTest14", Settings((2,)), False),
        ("UserNoticeQualifierTest18", Settings((1,)), True),
        ("UserNoticeQualifierTest18", Settings((2,)), True),
        ("UserNoticeQualifierTest19", EXPLICIT, True),
        ("CPSPointerQualifierTest20", Settings((1,), explicit=True), True),
        # §4.10, mappings
        ("ValidPolicyMappingTest1", Settings((1,)), True),
        ("ValidPolicyMappingTest1", Settings((2,)), False),
        ("ValidPolicyMappingTest1", Settings(inhibit_mapping=True), False),
        ("ValidPolicyMappingTest3", Settings((2,)), True),
        ("ValidPolicyMappingTest3", Settings((1,)), False),
        ("ValidPolicyMappingTest5", Settings((1,)), True),
        ("ValidPolicyMappingTest5", Settings((6,)), False),
        ("ValidPolicyMappingTest6", Settings((1,)), True),
        ("ValidPolicyMappingTest6", Settings((6,)), False),
        # §4.12.3
        ("inhibitAnyPolicyTest3", Settings(inhibit_any=True), False),
    ],
    ids=str,
)
def test_settings_of_the_user(name: str, settings: Settings, valid: bool) -> None:
    path = judged(PKITS / "smime" / f"Signed{name}.eml", settings).path
    assert path is not None
    assert path.ok is valid, path
    assert valid or path.rule in ("rfc5280-6.1.3-explicit-policy", "rfc5280-6.1.5-explicit-policy")
