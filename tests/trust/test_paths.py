"""Policies, anchors, revocation, missing issuers and odd encodings: what a path must withstand."""

from __future__ import annotations

import base64
import contextlib
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ed448, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from tests.trust.chains import CA, CERT_SIGN, DAY, LEAF, MAIL, NOW, SIGNING, Node, ca, encoded, make, resigned, usage
from trust import der, paths
from trust.certificates import CertificateValidator, PathVerdict, Purpose, mail_addresses
from trust.constraints import Names
from trust.facts import Facts, read
from trust.profiles import ANY_POLICY, PROFILES, Profile
from trust.revocation import RevocationMode, RevocationPolicy, RevocationState, RevocationStatus
from trust.rules import RULES, Failure

ROOT = make("Root", None, [CA, CERT_SIGN])
FIRST = make("First", ROOT, [CA, CERT_SIGN])
MAIL_SIGNATURE = Purpose.MAIL_SIGNATURE
LEAF_OF_FIRST = make("Leaf", FIRST, LEAF)


def judge(validator: CertificateValidator, leaf: Node, *offered: Node, at: datetime = NOW) -> PathVerdict:
    verdict = validator.validate(leaf.certificate, [node.certificate for node in offered], MAIL_SIGNATURE, at)
    assert verdict.rule in RULES
    assert verdict.section.startswith("R") or verdict.rule.startswith("relais-path-")
    return verdict


def trusting(*anchors: Node, **settings: object) -> CertificateValidator:
    return CertificateValidator([node.certificate for node in anchors or (ROOT,)], **settings)


# --- Policies --------------------------------------------------------------------------------------------------------


def policies(*oids: str) -> tuple[x509.ExtensionType, bool]:
    return x509.CertificatePolicies([x509.PolicyInformation(ObjectIdentifier(oid), None) for oid in oids]), False


def mappings(*pairs: tuple[str, str]) -> tuple[x509.ExtensionType, bool]:
    value = der.sequence(*(der.sequence(der.oid(theirs), der.oid(ours)) for theirs, ours in pairs))
    return x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.33"), value), True


def require(certificates: int) -> tuple[x509.ExtensionType, bool]:
    return x509.PolicyConstraints(certificates, None), True


A, B, C = "1.2.3.1", "1.2.3.2", "1.2.3.3"
EXPLICIT = {MAIL_SIGNATURE: Profile(PROFILES[MAIL_SIGNATURE].extended, explicit_policy=True)}


def under(
    *extensions: Sequence[tuple[x509.ExtensionType, bool]], profile: Profile | None = None, root: Node = ROOT
) -> PathVerdict:
    """The verdict on a chain whose certificates below the root have these extensions, leaf last."""
    chain = [root]
    for level, each in enumerate(extensions[:-1]):
        chain.append(make(f"CA {level}", chain[-1], [CA, CERT_SIGN, *each]))
    leaf = make("Leaf", chain[-1], [*LEAF, *extensions[-1]])
    profiles = {MAIL_SIGNATURE: profile} if profile is not None else {}
    return judge(trusting(root, profiles=profiles), leaf, *chain[1:])


def test_policies_decide_nothing_until_somebody_requires_one() -> None:
    assert under([], []).ok
    assert under([policies(A)], [policies(B)]).ok
    assert under([require(0)], [policies(A)]).rule == "rfc5280-6.1.3-explicit-policy", "the CA itself has none"
    assert under([require(0), policies(A)], [policies(A)]).ok
    assert under([require(0), policies(ANY_POLICY)], [policies(A)]).ok
    assert under([require(0), policies(A)], [policies(B)]).rule == "rfc5280-6.1.3-explicit-policy"
    assert under([require(1), policies(A)], [policies(B)]).rule == "rfc5280-6.1.5-explicit-policy"
    assert under([require(5), policies(A)], [policies(B)]).ok, "required further below only"
    assert under([policies(A)], [policies(B), require(0)]).rule == "rfc5280-6.1.5-explicit-policy"


def test_initial_policies() -> None:
    extended = PROFILES[MAIL_SIGNATURE].extended
    wanted = Profile(extended, frozenset({A}), explicit_policy=True)
    assert under([policies(A, B)], [policies(A)], profile=wanted).ok
    assert under([policies(A, B)], [policies(B)], profile=wanted).rule == "rfc5280-6.1.5-explicit-policy"
    assert under([policies(ANY_POLICY)], [policies(A)], profile=wanted).ok
    assert under([policies(ANY_POLICY)], [policies(ANY_POLICY)], profile=wanted).ok
    no_any = Profile(extended, frozenset({A}), explicit_policy=True, inhibit_any=True)
    assert not under([policies(ANY_POLICY)], [policies(A)], profile=no_any).ok


def test_mappings() -> None:
    extended = PROFILES[MAIL_SIGNATURE].extended
    wanted = Profile(extended, frozenset({A}), explicit_policy=True)
    assert under([policies(A), mappings((A, B))], [policies(B)], profile=wanted).ok
    assert not under([policies(A), mappings((A, B))], [policies(A)], profile=wanted).ok
    fixed = Profile(extended, frozenset({A}), explicit_policy=True, inhibit_mapping=True)
    assert not under([policies(A), mappings((A, B))], [policies(B)], profile=fixed).ok
    for pair in ((A, ANY_POLICY), (ANY_POLICY, A)):
        assert under([policies(A), mappings(pair)], [policies(A)]).rule == "rfc5280-6.1.4-policy-mapping"


def test_inhibit_any_policy_spares_self_issued_certificates() -> None:
    inhibit = (x509.InhibitAnyPolicy(0), True)
    top = make("Top", ROOT, [CA, CERT_SIGN, policies(A), inhibit, require(0)])
    rollover = make("Top", top, [CA, CERT_SIGN, policies(ANY_POLICY)])
    assert judge(trusting(), make("Leaf", rollover, [*LEAF, policies(A)]), top, rollover).ok
    assert not judge(trusting(), make("Leaf", top, [*LEAF, policies(ANY_POLICY)]), top).ok


def test_pitfall_d23_policy_tree_blow_up() -> None:
    """Every CA maps every policy to every other: a tree would have 11^5 leaves, the graph has 11 a level."""
    many = [f"1.2.3.{n}" for n in range(11)]
    everything = [policies(*many), mappings(*((one, other) for one in many for other in many))]
    chain = [ROOT, make("CA 0", ROOT, [CA, CERT_SIGN, *everything, require(0)])]
    for level in range(1, 5):
        chain.append(make(f"CA {level}", chain[-1], [CA, CERT_SIGN, *everything]))
    leaf = make("Leaf", chain[-1], [*LEAF, policies(many[3])])
    offered = [node.certificate for node in chain[1:]]
    started = time.thread_time()
    assert trusting().validate(leaf.certificate, offered, MAIL_SIGNATURE, NOW).ok
    assert time.thread_time() - started < 0.05
    stranger = make("Leaf", chain[-1], [*LEAF, policies("1.2.4")])
    assert not trusting().validate(stranger.certificate, offered, MAIL_SIGNATURE, NOW).ok


def test_malformed_policies() -> None:
    twice = der.sequence(der.sequence(der.oid(A)), der.sequence(der.oid(A)))
    for value in (twice, der.sequence(), b"\x30\x03\x02\x01\x01"):
        broken = (x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.32"), value), False)
        assert under([], [broken]).rule == "rfc5280-4.1-unreadable"


# --- Anchors ---------------------------------------------------------------------------------------------------------


def test_pitfall_d24_constraints_of_anchors() -> None:
    """RFC 5937 §3: policies and flags of the anchor's own certificate; name constraints are in test_constraints."""
    root = make("Root", None, [CA, CERT_SIGN, policies(A), require(0)])
    assert under([policies(A)], [policies(A)], root=root).ok
    assert under([policies(B)], [policies(B)], root=root).rule == "rfc5280-6.1.5-explicit-policy"
    assert under([], [], root=root).rule == "rfc5280-6.1.3-explicit-policy"
    no_any = make("Root", None, [CA, CERT_SIGN, require(0), (x509.InhibitAnyPolicy(0), True)])
    assert not under([policies(ANY_POLICY)], [policies(A)], root=no_any).ok
    no_mapping = make("Root", None, [CA, CERT_SIGN, (x509.PolicyConstraints(0, 0), True)])
    assert not under([policies(A), mappings((A, B))], [policies(B)], root=no_mapping).ok
    short = make("Root", None, [ca(0), CERT_SIGN])
    assert under([], root=short).ok
    assert under([], [], root=short).rule == "rfc5280-6.1.4-path-length"


def test_pitfall_d24_anchor_expiry_is_a_choice() -> None:
    root = make("Root", None, [CA, CERT_SIGN], until=NOW - timedelta(hours=1))
    leaf = make("Leaf", root, LEAF)
    assert judge(trusting(root), leaf).rule == "rfc5280-6.1.3-validity"
    lasting = Profile(PROFILES[MAIL_SIGNATURE].extended, expired_anchor=True)
    validator = trusting(root, profiles={MAIL_SIGNATURE: lasting})
    for _ in range(2):
        assert judge(validator, leaf).ok
    assert not judge(validator, leaf, at=NOW + 2 * DAY).ok, "the leaf's own end counts"
    old = make("CA", root, [CA, CERT_SIGN], until=NOW - timedelta(hours=1))
    assert judge(validator, make("Leaf", old, LEAF), old).rule == "rfc5280-6.1.3-validity", "that of a CA too"


def test_pitfall_d24_roots_that_come_with_a_mail_are_no_anchors() -> None:
    stranger = make("Stranger", None, [CA, CERT_SIGN])
    leaf = make("Leaf", stranger, LEAF)
    validator = trusting()
    for _ in range(2):
        assert judge(validator, leaf, stranger).rule == "rfc5280-6.1-no-path"


def test_pitfall_d24_anchors_are_of_one_network() -> None:
    other = make("Other", None, [CA, CERT_SIGN])
    assert judge(trusting(other), LEAF_OF_FIRST, FIRST).rule == "rfc5280-6.1-no-path"
    assert judge(trusting(other, ROOT), LEAF_OF_FIRST, FIRST).ok


def test_version_1_anchor() -> None:
    root = make("Old root", None, [])
    old = Node(x509.load_der_x509_certificate(resigned(root, root, version=b"", extensions=b"")), root.key)
    assert judge(trusting(old), make("Leaf", old, LEAF)).ok


# --- Revocation ------------------------------------------------------------------------------------------------------


class Says:
    """A checker that says what it is told, by serial; good of all others."""

    def __init__(self, statuses: Mapping[int, RevocationStatus | RevocationState] | None = None) -> None:
        self.statuses = dict(statuses or {})
        self.asked: list[tuple[int, bytes | None]] = []

    def check(
        self, certificate: x509.Certificate, issuer: x509.Certificate, at: datetime, stapled: bytes | None = None
    ) -> RevocationStatus:
        assert certificate.issuer == issuer.subject
        self.asked.append((certificate.serial_number, stapled))
        status = self.statuses.get(certificate.serial_number, RevocationState.GOOD)
        return status if isinstance(status, RevocationStatus) else RevocationStatus(status)


def serial(node: Node) -> int:
    return node.certificate.serial_number


def policy(mode: RevocationMode, stale_for: timedelta = timedelta(0)) -> dict[Purpose, RevocationPolicy]:
    return {MAIL_SIGNATURE: RevocationPolicy(mode, stale_for)}


HARD, SOFT, OFF = (policy(mode) for mode in RevocationMode)


@pytest.mark.parametrize(
    ("state", "mode", "ok", "told"),
    [
        (RevocationState.GOOD, HARD, True, "good"),
        (RevocationState.UNKNOWN, HARD, False, "unknown"),
        (RevocationState.STALE, HARD, False, "stale"),
        (RevocationState.REVOKED, HARD, False, "revoked"),
        (RevocationState.UNKNOWN, SOFT, True, "unknown"),
        (RevocationState.STALE, SOFT, True, "stale"),
        (RevocationState.REVOKED, SOFT, False, "revoked"),
        (RevocationState.REVOKED, OFF, True, "not-checked"),
    ],
)
@pytest.mark.parametrize("which", ["leaf", "CA"])
def test_pitfall_d21_policy_of_a_purpose(
    state: RevocationState, mode: dict[Purpose, RevocationPolicy], ok: bool, told: str, which: str
) -> None:
    checker = Says({serial(LEAF_OF_FIRST if which == "leaf" else FIRST): state})
    verdict = judge(trusting(revocation=checker, policies=mode), LEAF_OF_FIRST, FIRST)
    assert (verdict.ok, verdict.revocation) == (ok, told)
    if not ok:
        expected = "rfc5280-6.1.3-revoked" if state is RevocationState.REVOKED else "relais-revocation-unknown"
        assert verdict.rule == expected
        assert ("CA CN=First" in verdict.detail) is (which == "CA")


def test_every_certificate_below_the_anchor_is_asked_about_highest_first() -> None:
    checker = Says()
    validator = trusting(revocation=checker)
    verdict = validator.validate(LEAF_OF_FIRST.certificate, [FIRST.certificate], MAIL_SIGNATURE, NOW, b"stapled")
    assert verdict.revocation == "good"
    assert checker.asked == [(serial(FIRST), None), (serial(LEAF_OF_FIRST), b"stapled")]


def test_a_remembered_path_is_asked_about_again() -> None:
    checker = Says()
    validator = trusting(revocation=checker)
    assert judge(validator, LEAF_OF_FIRST, FIRST).ok
    checker.statuses[serial(LEAF_OF_FIRST)] = RevocationState.REVOKED
    assert judge(validator, LEAF_OF_FIRST, FIRST).rule == "rfc5280-6.1.3-revoked"
    checker.statuses[serial(LEAF_OF_FIRST)] = RevocationState.STALE
    assert judge(validator, LEAF_OF_FIRST, FIRST).revocation == "stale"


def test_stale_for_a_while() -> None:
    ended = NOW - timedelta(hours=5)
    checker = Says({serial(FIRST): RevocationStatus(RevocationState.STALE, "crl", next_update=ended)})
    for hours, ok in ((6, True), (4, False)):
        patient = policy(RevocationMode.HARD, timedelta(hours=hours))
        verdict = judge(trusting(revocation=checker, policies=patient), LEAF_OF_FIRST, FIRST)
        assert (verdict.ok, verdict.revocation) == (ok, "stale")


@pytest.mark.parametrize(
    ("reason", "revoked", "invalid", "at", "ok"),
    [
        ("superseded", 0, None, -1, True),
        ("superseded", 0, None, 1, False),
        ("superseded", 0, -3, -2, False),
        ("superseded", 0, -3, -4, True),
        ("keyCompromise", 0, None, -9, False),
        ("keyCompromise", 0, -3, -4, True),
        ("keyCompromise", 0, -3, -2, False),
        ("", 0, None, 0, False),
    ],
)
def test_pitfall_d21_revoked_when(reason: str, revoked: int, invalid: int | None, at: int, ok: bool) -> None:
    """In hours from now: revocationDate, invalidityDate and the time of validation."""
    since = None if invalid is None else NOW + timedelta(hours=invalid)
    status = RevocationStatus(
        RevocationState.REVOKED, "crl", reason, revoked_at=NOW + timedelta(hours=revoked), invalid_since=since
    )
    validator = trusting(revocation=Says({serial(LEAF_OF_FIRST): status}), policies=HARD)
    assert judge(validator, LEAF_OF_FIRST, FIRST, at=NOW + timedelta(hours=at)).ok is ok


def test_another_path_around_a_revoked_ca() -> None:
    cross = make("First", ROOT, [CA, CERT_SIGN], key=FIRST.key)
    checker = Says({serial(FIRST): RevocationState.REVOKED})
    verdict = judge(trusting(revocation=checker, policies=HARD), LEAF_OF_FIRST, FIRST, cross)
    assert verdict.ok
    assert verdict.path[1] == cross.certificate
    assert verdict.revocation == "good"


# --- Missing issuers -------------------------------------------------------------------------------------------------


class Source:
    def __init__(self, *found: Node) -> None:
        self.found = [node.certificate for node in found]
        self.asked: list[x509.Certificate] = []

    def issuers(self, certificate: x509.Certificate) -> Sequence[x509.Certificate]:
        self.asked.append(certificate)
        return [each for each in self.found if each.subject == certificate.issuer]


def _named(organisation: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "FR"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def test_pitfall_d22_issuers_are_fetched_only_near_an_anchor() -> None:
    root = make(_named("ASIP", "Root"), None, [CA, CERT_SIGN])
    first = make(_named("ASIP", "First"), root, [CA, CERT_SIGN])
    second = make(_named("ASIP", "Second"), first, [CA, CERT_SIGN])
    leaf = make("Leaf", second, LEAF)
    source = Source(first, second)
    verdict = judge(trusting(root, source=source), leaf)
    assert verdict.ok
    assert source.asked == [leaf.certificate, second.certificate]
    far = make(_named("Elsewhere", "CA"), root, [CA, CERT_SIGN])
    source = Source(far)
    assert judge(trusting(root, source=source), make("Leaf", far, LEAF)).rule == "rfc5280-6.1-no-path"
    assert source.asked == []
    assert judge(trusting(root, source=source), make("Leaf", far, LEAF), far).ok


def test_what_was_fetched_is_not_trusted() -> None:
    stranger = make("Root", None, [CA, CERT_SIGN])
    source = Source(stranger)
    assert not judge(trusting(source=source), make("Leaf", stranger, LEAF)).ok
    assert len(source.asked) <= paths.MAX_FETCHED * paths.MAX_TOPS


def test_fetching_ends() -> None:
    class Endless:
        asked = 0

        def issuers(self, certificate: x509.Certificate) -> Sequence[x509.Certificate]:
            self.asked += 1
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Root")])
            return [make(name, None, [CA, CERT_SIGN], identifiers=False).certificate]

    endless = Endless()
    stranger = make("Root", None, [CA, CERT_SIGN], identifiers=False)
    assert not judge(trusting(source=endless), make("Leaf", stranger, LEAF, identifiers=False)).ok
    assert endless.asked <= paths.MAX_FETCHED * paths.MAX_TOPS


# --- What the rest of the pitfalls name ------------------------------------------------------------------------------


def test_pitfall_d20_uses_of_keys() -> None:
    """Signer digitalSignature or nonRepudiation, recipient by kind of key, emailProtection; CAs that are CAs."""
    rsa_key = rsa.generate_private_key(65537, 2048)
    tls = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
    unknown = (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
    signature, encryption = Purpose.MAIL_SIGNATURE, Purpose.MAIL_ENCRYPTION
    for extensions, key, purpose, rule in [
        ([(usage("content_commitment"), True), MAIL], None, signature, "rfc5280-6.1"),
        ([(usage("digital_signature"), True), MAIL], None, signature, "rfc5280-6.1"),
        ([(usage("content_commitment"), True)], None, Purpose.OPERATOR_TLS_CLIENT, "rfc5280-4.2.1.3-key-usage"),
        ([(usage("key_encipherment"), True), MAIL], rsa_key, encryption, "rfc5280-6.1"),
        ([(usage("key_encipherment"), True), MAIL], None, encryption, "rfc5280-4.2.1.3-key-usage"),
        ([(usage("key_agreement"), True), MAIL], None, encryption, "rfc5280-6.1"),
        ([SIGNING, tls], None, signature, "rfc5280-4.2.1.12-extended-key-usage"),
        ([SIGNING, MAIL, unknown], None, signature, "rfc5280-6.1.5-critical-extension"),
    ]:
        leaf = make("Leaf", FIRST, extensions, key=key)
        assert trusting().validate(leaf.certificate, [FIRST.certificate], purpose, NOW).rule == rule
    for extensions, rule in [
        ([CERT_SIGN], "rfc5280-6.1.4-basic-constraints"),
        ([CA, (usage("digital_signature"), True)], "rfc5280-6.1.4-key-usage"),
        ([CA, CERT_SIGN, tls], "relais-extended-key-usage"),
        ([CA, CERT_SIGN, unknown], "rfc5280-6.1.4-critical-extension"),
    ]:
        issuer = make("CA", ROOT, extensions)
        assert judge(trusting(), make("Leaf", issuer, LEAF), issuer).rule == rule


def test_pitfall_d23_whole_paths_are_limited() -> None:
    """Each of many CAs of one name leads to an anchor, and each is revoked: not all are asked about."""
    cas = [make("CA", ROOT, [CA, CERT_SIGN], key=FIRST.key) for _ in range(30)]
    checker = Says({serial(node): RevocationState.REVOKED for node in cas})
    leaf = make("Leaf", cas[0], LEAF)
    verdict = judge(trusting(revocation=checker, policies=HARD), leaf, *cas)
    assert not verdict.ok
    assert len(checker.asked) <= paths.MAX_WHOLE * paths.MAX_DEPTH


def validity(not_before: bytes, not_after: bytes) -> bytes:
    return der.sequence(not_before, not_after)


def utc(text: bytes) -> bytes:
    return der.tlv(der.UTC_TIME, text)


def generalized(text: bytes) -> bytes:
    return der.tlv(der.GENERALIZED_TIME, text)


def loaded(octets: bytes) -> x509.Certificate | None:
    """As the doors load certificates: None when the parser refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return x509.load_der_x509_certificate(octets)
        except (ValueError, x509.InvalidVersion):
            return None


@pytest.mark.parametrize(
    ("since", "until", "at", "ok"),
    [
        (utc(b"260601000000Z"), utc(b"270601000000Z"), NOW, True),
        (generalized(b"20260601000000Z"), generalized(b"20270601000000Z"), NOW, True),
        (utc(b"260601000000Z"), generalized(b"99991231235959Z"), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), True),
        (utc(b"500101000000Z"), utc(b"491231235959Z"), NOW, True),
        (utc(b"260601000000Z"), utc(b"500101000000Z"), NOW, False),
        (utc(b"270601000000Z"), utc(b"260601000000Z"), NOW, False),
        (utc(b"2606010000Z"), utc(b"270601000000Z"), NOW, False),
        (utc(b"260601000000+0100"), utc(b"270601000000Z"), NOW, False),
        (utc(b"260601000000"), utc(b"270601000000Z"), NOW, False),
        (generalized(b"20260601000000.5Z"), generalized(b"20270601000000Z"), NOW, False),
        (generalized(b"20260601000000"), generalized(b"20270601000000Z"), NOW, False),
        (generalized(b"00000101000000Z"), generalized(b"20270601000000Z"), NOW, False),
        (utc(b"261301000000Z"), utc(b"270601000000Z"), NOW, False),
        (utc(b"260601000060Z"), utc(b"270601000000Z"), NOW, False),
        (utc(b""), utc(b""), NOW, False),
    ],
)
def test_pitfall_d25_forms_of_time(since: bytes, until: bytes, at: datetime, ok: bool) -> None:
    """Pivot of UTCTime at 50, the year 9999 for no end, and forms the standard forbids: a verdict or no certificate."""
    leaf = make("Leaf", ROOT, LEAF)
    certificate = loaded(resigned(leaf, ROOT, validity=validity(since, until)))
    if certificate is None:
        assert not ok
        return
    lasting = Profile(PROFILES[MAIL_SIGNATURE].extended, expired_anchor=True)
    verdict = trusting(profiles={MAIL_SIGNATURE: lasting}).validate(certificate, [], MAIL_SIGNATURE, at)
    assert verdict.ok is ok, verdict
    # the year 0 is none that a clock can show
    assert ok or verdict.rule in ("rfc5280-6.1.3-validity", "rfc5280-4.1.2.5-validity", "rfc5280-4.1-unreadable")


def test_pitfall_d25_a_fraction_of_a_second_ends_nothing() -> None:
    validator = trusting()
    end = LEAF_OF_FIRST.certificate.not_valid_after_utc
    for _ in range(2):
        assert judge(validator, LEAF_OF_FIRST, FIRST, at=end + timedelta(milliseconds=900)).ok
        assert not judge(validator, LEAF_OF_FIRST, FIRST, at=end + timedelta(seconds=1)).ok


@pytest.mark.parametrize(
    ("number", "rule"),
    [
        (der.integer(-1), "rfc5280-6.1"),
        (der.integer(-(1 << 158)), "rfc5280-6.1"),
        (der.integer(0), "rfc5280-6.1"),
        (der.integer((1 << 159) - 1), "rfc5280-6.1"),
        (der.integer((1 << 160) - 1), "rfc5280-6.1"),
        (der.integer(1 << 160), "rfc5280-4.1.2.2-serial"),
        (der.integer(-(1 << 167)), "rfc5280-4.1.2.2-serial"),
        (der.integer(1 << 8000), "rfc5280-4.1.2.2-serial"),
        (der.tlv(der.INTEGER), ""),
        (der.tlv(der.INTEGER, b"\x00\x01"), ""),
    ],
)
def test_pitfall_d26_serials(number: bytes, rule: str) -> None:
    """Negative and zero are handled gracefully, as §4.1.2.2 asks; more than 20 octets are refused; never a warning."""
    certificate = loaded(resigned(make("Leaf", ROOT, LEAF), ROOT, serial=number))
    if certificate is None:
        assert rule == ""
        return
    verdict = trusting(revocation=None).validate(certificate, [], MAIL_SIGNATURE, NOW)
    assert verdict.rule == rule


def extension(oid: str, value: bytes, critical: bytes = b"") -> bytes:
    return der.sequence(der.oid(oid), critical, der.octet_string(value))


def extensions(*each: bytes) -> bytes:
    return der.tlv(der.context(3), der.sequence(*each))


KEY_USAGE = extension("2.5.29.15", b"\x03\x02\x06\xc0")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"extensions": extensions(KEY_USAGE)}, "rfc5280-6.1"),
        ({"extensions": extensions(KEY_USAGE, KEY_USAGE)}, "rfc5280-4.2-duplicate-extension"),
        (
            {"extensions": extensions(*[extension("1.2.3", b"\x05\x00", b"\x01\x01\xff")] * 2)},
            "rfc5280-4.2-duplicate-extension",
        ),
        ({"version": b"", "extensions": extensions(KEY_USAGE)}, "rfc5280-4.1.2.1-version"),
        ({"version": b"", "extensions": b""}, "rfc5280-6.1"),
        ({"extensions": b""}, "rfc5280-6.1"),
        ({"extensions": extensions(extension("2.5.29.15", b"\x03\x02\x09\xc0"))}, "rfc5280-4.1-unreadable"),
        ({"extensions": extensions(extension("2.5.29.15", b"\x03\x00"))}, "rfc5280-4.1-unreadable"),
        ({"extensions": extensions(extension("2.5.29.37", b"\x30\x00"))}, "rfc5280-4.1-unreadable"),
        ({"extensions": extensions(extension("2.5.29.19", b"\x30\x03\x02\x01\xff"))}, "rfc5280-4.1-unreadable"),
        ({"extensions": extensions(extension("2.5.29.17", b"\x30\x02\x89\x00"))}, "rfc5280-4.1-unreadable"),
        ({"extensions": extensions(extension("2.5.29.17", b"\x30\x00"))}, "rfc5280-4.1-unreadable"),
        ({"extensions": extensions(*(extension(f"1.2.3.{n}", b"") for n in range(65)))}, "rfc5280-4.1-unreadable"),
        ({"subject": der.sequence()}, "rfc5280-6.1"),
    ],
)
def test_pitfall_d26_odd_certificates(fields: dict[str, bytes], rule: str) -> None:
    certificate = loaded(resigned(make("Leaf", ROOT, LEAF), ROOT, **fields))
    assert certificate is not None
    verdict = trusting().validate(certificate, [], MAIL_SIGNATURE, NOW)
    assert verdict.rule == rule, verdict
    mail_addresses(certificate)
    as_candidate = trusting().validate(LEAF_OF_FIRST.certificate, [certificate], MAIL_SIGNATURE, NOW)
    assert as_candidate.rule == "rfc5280-6.1-no-path"


def test_pitfall_d26_lengths_that_are_not_minimal_and_cut_certificates() -> None:
    octets = encoded(LEAF_OF_FIRST.certificate)
    body = der.read(octets).content
    assert loaded(b"\x30\x83" + len(body).to_bytes(3, "big") + bytes(body)) is None
    for end in range(0, len(octets), 7):
        assert loaded(octets[:end]) is None
    key = LEAF_OF_FIRST.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    assert loaded(key) is None


def test_x400_and_edi_party_names_are_read_over() -> None:
    """`cryptography` refuses to read SubjectAltNames with these; here they are names like others."""
    address = der.tlv(0x81, b"a@chu.example")
    value = der.sequence(der.tlv(0xA3, der.sequence()), der.tlv(0xA5, der.tlv(0xA1, der.tlv(0x0C, b"x"))), address)
    certificate = loaded(
        resigned(make("Leaf", ROOT, LEAF), ROOT, extensions=extensions(KEY_USAGE, extension("2.5.29.17", value)))
    )
    assert certificate is not None
    assert trusting().validate(certificate, [], MAIL_SIGNATURE, NOW).ok
    assert mail_addresses(certificate) == ("a@chu.example",)


def test_dsa_key() -> None:
    leaf = make("Leaf", ROOT, LEAF, key=dsa.generate_private_key(1024))
    assert judge(trusting(), leaf).rule == "relais-key-too-weak"


def test_weak_algorithms_are_named() -> None:
    leaf = make("Leaf", ROOT, LEAF)
    signed, algorithm, signature = der.read(encoded(leaf.certificate)).sequence()
    for oid in ("1.2.840.113549.1.1.5", "1.2.840.10040.4.3", "1.2.840.10045.4.1", "2.16.840.1.101.3.4.3.2"):
        weak = der.sequence(der.oid(oid))
        body = bytes(signed.encoded).replace(bytes(algorithm.encoded), weak)
        content = der.sequence(*(bytes(each.encoded) for each in der.read(_relength(body)).sequence()))
        certificate = loaded(der.sequence(content, weak, bytes(signature.encoded)))
        assert certificate is not None
        verdict = trusting().validate(certificate, [], MAIL_SIGNATURE, NOW)
        assert verdict.rule == "relais-algorithm-too-weak"
        assert "SHA" in verdict.detail
        assert f"{serial(leaf):x}" in verdict.detail


def _relength(element: bytes) -> bytes:
    """A SEQUENCE whose contents changed under its old header."""
    header = 2 if element[1] < 0x80 else 2 + (element[1] & 0x7F)
    return der.tlv(der.SEQUENCE, element[header:])


def test_ed448() -> None:
    root = make("Root", None, [CA, CERT_SIGN], key=ed448.Ed448PrivateKey.generate(), digest=None)
    assert judge(trusting(root), make("Leaf", root, LEAF, digest=None)).ok


def test_self_issued_by_another_spelling() -> None:
    """Two spellings of one name are one name: such a certificate does not count against the path length."""
    top = make("Top CA", ROOT, [ca(0), CERT_SIGN])
    rollover = make("TOP  ca", top, [ca(0), CERT_SIGN])
    assert judge(trusting(), make("Leaf", rollover, LEAF), top, rollover).ok


def test_nobody_reads_a_personal_name_in_a_refusal() -> None:
    leaf = make("Prénom NOM", FIRST, LEAF, until=NOW - timedelta(hours=1))
    for node in (leaf, make("Prénom NOM", FIRST, [*LEAF, (x509.InhibitAnyPolicy(0), True)], identifiers=False)):
        assert "NOM" not in judge(trusting(), node, FIRST).detail


def test_every_rule_has_its_section() -> None:
    for rule, text in RULES.items():
        assert rule.startswith(("rfc5280-", "relais-"))
        assert "RFC" in text
    assert isinstance(read(ROOT.certificate), Facts)
    assert not isinstance(read(ROOT.certificate), Failure)


def _vectors() -> list[bytes]:
    """Every certificate among the odd ones that `cryptography` tests itself with."""
    out: list[bytes] = []
    for path in sorted((Path(cryptography_vectors.__file__).parent / "x509").rglob("*")):
        if path.suffix in (".der", ".crt") and "PKITS" not in str(path):
            out.append(path.read_bytes())
        elif path.suffix == ".pem":
            found = re.findall(
                rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", path.read_bytes(), re.DOTALL
            )
            for text in found:
                with contextlib.suppress(ValueError):
                    out.append(base64.b64decode(text))
    return out


def test_pitfall_d26_odd_certificates_of_the_vectors() -> None:
    """Whatever they are, each gets a verdict, as an end entity, as a candidate and as an anchor; no warning escapes."""
    judged = 0
    for octets in _vectors():
        certificate = loaded(octets)
        if certificate is None:
            continue
        judged += 1
        at = certificate.not_valid_before_utc + timedelta(seconds=1)
        for purpose in Purpose:
            verdict = trusting().validate(certificate, [certificate], purpose, at)
            assert verdict.rule in RULES
            assert not verdict.ok
        assert isinstance(mail_addresses(certificate), tuple)
        assert judge(trusting(), LEAF_OF_FIRST, Node(certificate, None), FIRST).ok
        facts = read(certificate)
        if isinstance(facts, Failure):
            with pytest.raises(ValueError, match="unreadable"):
                CertificateValidator([certificate])
        else:
            assert facts.where
            alone = CertificateValidator([certificate]).validate(certificate, [], MAIL_SIGNATURE, at)
            assert alone.rule in RULES
    assert judged > 80


RICH = [
    CA,
    CERT_SIGN,
    policies(A, B),
    mappings((A, B)),
    (x509.PolicyConstraints(0, 1), True),
    (x509.InhibitAnyPolicy(0), True),
    (x509.NameConstraints([x509.RFC822Name("a@chu.example"), x509.DNSName("chu.example")], None), True),
    (x509.SubjectAlternativeName([x509.DNSName("chu.example"), x509.RFC822Name("a@chu.example")]), False),
]


def test_every_octet_of_a_certificate_that_says_much_spoilt_in_turn() -> None:
    issuer = make("CA", ROOT, RICH)
    leaf = make("Leaf", issuer, [*LEAF, policies(B), RICH[-1]])
    assert judge(trusting(), leaf, issuer).ok
    validator = trusting()
    for good, is_leaf in ((issuer, False), (leaf, True)):
        octets = encoded(good.certificate)
        for position in range(len(octets)):
            spoilt = bytearray(octets)
            spoilt[position] ^= 0xFF if position % 3 else 0x01
            certificate = loaded(bytes(spoilt))
            if certificate is None:
                continue
            node = Node(certificate, None)
            verdict = judge(validator, node, issuer) if is_leaf else judge(validator, leaf, node)
            assert not verdict.ok
            mail_addresses(certificate)
            facts = read(certificate)
            if isinstance(facts, Facts) and facts.name_constraints is not None:
                with contextlib.suppress(ValueError):  # what a path says of names that cannot be read
                    facts.name_constraints.violation(
                        Names(lambda facts=facts: facts.subject, lambda: (), facts.alternative_names)
                    )
