"""Certificates made to slip through: names that readers read differently, restricted keys, lists dear to read."""

from __future__ import annotations

import random
import time
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID, ObjectIdentifier

from tests.trust.chains import CA, CERT_SIGN, LEAF, MAIL, NOW, Node, encoded, make, resigned, usage
from tests.trust.test_constraints import constraint, mail, raw, raw_constraint
from tests.trust.test_paths import RICH, B, policies
from trust import der, facts
from trust.certificates import CertificateValidator, PathVerdict, Purpose, mail_addresses
from trust.facts import Facts, read, skim
from trust.names import DistinguishedName, comparable, fold
from trust.rules import Failure
from trust.signatures import failure_of

ROOT = make("Root", None, [CA, CERT_SIGN])
VALIDATOR = CertificateValidator([ROOT.certificate])
NAMES = "rfc5280-6.1.3-name-constraints"
EMAIL = der.oid("1.2.840.113549.1.9.1")
MANY_PARTS = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, f"x{n}") for n in range(40)])


def judge(leaf: Node | x509.Certificate, *offered: Node, purpose: Purpose = Purpose.MAIL_SIGNATURE) -> PathVerdict:
    certificate = leaf.certificate if isinstance(leaf, Node) else leaf
    return VALIDATOR.validate(certificate, [node.certificate for node in offered], purpose, NOW)


def loaded(octets: bytes) -> x509.Certificate | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return x509.load_der_x509_certificate(octets)
        except (ValueError, x509.InvalidVersion):
            return None


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [*range(1, 31), 0x30, 0x31, 0x80, 0xA0])
@pytest.mark.parametrize("permitted", [True, False])
def test_no_encoding_of_an_address_in_the_subject_escapes_constraints(tag: int, permitted: bool) -> None:
    """Whatever type of text the emailAddress claims to be, it is constrained or it vouches for nobody."""
    text = "evil@evil.example".encode({0x1C: "utf-32-be", 0x1E: "utf-16-be"}.get(tag, "ascii"))
    limit = constraint([mail("chu.example")]) if permitted else constraint(None, [mail("evil.example")])
    issuer = make("CA", ROOT, [CA, CERT_SIGN, limit])
    subject = der.sequence(der.tlv(der.SET, der.sequence(EMAIL, der.tlv(tag, text))))
    leaf = loaded(resigned(make("Leaf", issuer, LEAF), issuer, subject=subject))
    if leaf is not None:
        assert judge(leaf, issuer).rule == NAMES


def test_constrained_mailboxes_in_the_subject_keep_their_case() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "Anne@CHU.example")])
    mailbox = mail("Anne@chu.example")
    for limit, ok in ((constraint(None, [mailbox]), False), (constraint([mailbox]), True)):
        issuer = make("CA", ROOT, [CA, CERT_SIGN, limit])
        leaf = make(subject, issuer, LEAF)
        assert judge(leaf, issuer).ok is ok
        assert mail_addresses(leaf.certificate) == ("Anne@chu.example",)


def test_a_constraint_on_smtp_utf8_mailboxes_is_not_forgotten_beside_one_on_mail() -> None:
    value = der.tlv(0x0C, "é@chu.example".encode())
    kind = "1.3.6.1.5.5.7.8.9"
    base = der.sequence(der.tlv(0xA0, der.oid(kind), der.tlv(0xA0, value)))
    limit = raw_constraint(permitted=der.sequence(der.tlv(0x81, b"chu.example")), excluded=base)
    issuer = make("CA", ROOT, [CA, CERT_SIGN, limit])
    names = (x509.SubjectAlternativeName([x509.OtherName(ObjectIdentifier(kind), value)]), False)
    assert judge(make("Leaf", issuer, [*LEAF, names]), issuer).rule == NAMES


@pytest.mark.parametrize("octets", [b"", b"\x0a", b"\x0a\x01\x02\x03\x05", b"\x0a\x01\x02\x03\xff\x00\x00\x00"])
def test_an_address_that_is_none_is_not_outside_of_what_is_excluded(octets: bytes) -> None:
    limit = raw_constraint(excluded=der.sequence(der.tlv(0x87, b"\x0a\x00\x00\x00\xff\x00\x00\x00")))
    issuer = make("CA", ROOT, [CA, CERT_SIGN, limit])
    leaf = make("Leaf", issuer, [*LEAF, raw("2.5.29.17", der.sequence(der.tlv(0x87, octets)), False)])
    assert judge(leaf, issuer).rule == NAMES


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CHU", "C\u00adHU"),
        ("CHU", "\u200bchu\ufeff"),
        ("C H", "C\u00a0\u2003 H"),
        ("a b", "a\tb"),
        ("Hôpital", "HO\u0302PITAL"),
        ("\uff23\uff28\uff35", "chu"),
        ("straße", "STRASSE"),
        ("ab", "a\u200db\ufe0f"),
    ],
)
def test_spellings_of_one_name(one: str, other: str) -> None:
    """RFC 4518 §2: what cannot be seen does not make another name."""
    assert fold(one) == fold(other)


def test_names_that_stay_different() -> None:
    assert fold("chu") != fold("ch u")
    assert fold("chu\x00") != fold("chu")
    assert fold("é") != fold("e")


@pytest.mark.parametrize(
    ("tag", "encoding"),
    [(0x0C, "utf-8"), (0x13, "ascii"), (0x14, "latin-1"), (0x16, "ascii"), (0x1A, "ascii"), (0x1C, "utf-32-be")],
)
def test_string_types_of_one_name(tag: int, encoding: str) -> None:
    def name(kind: int, text: bytes) -> bytes:
        return der.sequence(der.tlv(der.SET, der.sequence(der.oid("2.5.4.10"), der.tlv(kind, text))))

    assert comparable(name(tag, " Chu  Demo ".encode(encoding))) == comparable(
        name(0x1E, "CHU DEMO".encode("utf-16-be"))
    )


def test_a_name_cannot_turn_a_line_of_a_log_around() -> None:
    name = DistinguishedName.from_x509(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a\u202eb\u2066\x1b")]))
    assert str(name).isprintable()
    assert DistinguishedName.parse(str(name)).values("2.5.4.3") == ("a\u202eb\u2066\x1b",)


def test_a_candidate_whose_issuer_cannot_be_read_is_nobody() -> None:
    """Its signature is good, so that the search would go on above it."""
    for subject in ("CA", MANY_PARTS):
        issuer = make(subject, None, [CA, CERT_SIGN], issuer_name=MANY_PARTS)
        assert judge(make("Leaf", issuer, LEAF), issuer).rule in ("rfc5280-6.1-no-path", "rfc5280-4.1-unreadable")


def test_an_end_entity_whose_name_cannot_be_read_meets_policies() -> None:
    any_policy = (x509.CertificatePolicies([x509.PolicyInformation(ObjectIdentifier("2.5.29.32.0"), None)]), False)
    limits = [(x509.InhibitAnyPolicy(0), True), (x509.PolicyConstraints(0, None), True)]
    issuer = make("CA", ROOT, [CA, CERT_SIGN, any_policy, *limits])
    assert judge(make(MANY_PARTS, issuer, [*LEAF, any_policy]), issuer).rule == "rfc5280-6.1.3-explicit-policy"


def test_a_person_who_issues_is_not_named() -> None:
    person = make("Prénom NOM", ROOT, LEAF)
    version_1 = loaded(resigned(person, ROOT, version=b"", extensions=b""))
    assert version_1 is not None
    for issuer in (person, Node(version_1, person.key)):
        verdict = judge(make("Leaf", issuer, LEAF), issuer)
        assert verdict.rule == "rfc5280-6.1.4-basic-constraints"
        assert "NOM" not in verdict.detail
        assert f"{person.certificate.serial_number:x}" in verdict.detail


# --- Extensions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        der.sequence(der.tlv(0x80, b"\x00"), der.tlv(0x80, b"\x09")),
        der.sequence(der.tlv(0x81, b"\x00"), der.tlv(0x80, b"\x09")),
        der.sequence(der.tlv(0x80)),
        der.sequence(der.tlv(0x80, b"\xff" * 9)),
        der.sequence(der.tlv(0x82, b"\x00")),
    ],
)
def test_malformed_policy_constraints_are_not_read_as_none(value: bytes) -> None:
    issuer = make("CA", ROOT, [CA, CERT_SIGN, raw("2.5.29.36", value)])
    assert not judge(make("Leaf", issuer, LEAF), issuer).ok


@pytest.mark.parametrize("skip", [b"\x00\xff" * 9, b"\x7f" * 20])
def test_a_huge_number_of_certificates_to_skip(skip: bytes) -> None:
    issuer = make("CA", ROOT, [CA, CERT_SIGN, raw("2.5.29.36", der.sequence(der.tlv(0x80, skip)))])
    assert judge(make("Leaf", issuer, LEAF), issuer).ok


@pytest.mark.parametrize("oid", ["2.5.29.17", "2.5.29.32", "2.5.29.33", "2.5.29.30"])
def test_malformed_lists_make_neither_ca_nor_end_entity(oid: str) -> None:
    broken = raw(oid, b"\x30\x02\x05\x00", False)
    issuer = make("CA", ROOT, [CA, CERT_SIGN, broken])
    assert not judge(make("Leaf", issuer, LEAF), issuer).ok
    assert not judge(make("Leaf", ROOT, [*LEAF, broken])).ok
    with pytest.raises(ValueError, match="unreadable"):
        CertificateValidator([ROOT.certificate], [issuer.certificate])
    assert isinstance(read(issuer.certificate), Failure)


def test_the_next_candidate_is_tried_after_a_malformed_one() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    broken = make("CA", ROOT, [CA, CERT_SIGN, raw("2.5.29.17", b"\x30\x00", False)], key=key)
    good = make("CA", ROOT, [CA, CERT_SIGN], key=key)
    assert judge(make("Leaf", broken, LEAF), broken, good).ok


# --- Keys and algorithms ---------------------------------------------------------------------------------------------


def pss_parameters(digest: str, salt: int) -> bytes:
    algorithm = der.sequence(der.oid(digest), der.null())
    mask = der.sequence(der.oid("1.2.840.113549.1.1.8"), algorithm)
    return der.sequence(der.tlv(0xA0, algorithm), der.tlv(0xA1, mask), der.tlv(0xA2, der.integer(salt)))


def restricted(node: Node, issuer: Node, parameters: bytes) -> x509.Certificate:
    """The same certificate, its RSA key for RSASSA-PSS only (RFC 4055 §1.2)."""
    key = node.key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _, bits = der.read(key).sequence()
    algorithm = der.sequence(der.oid("1.2.840.113549.1.1.10"), parameters)
    certificate = loaded(resigned(node, issuer, key=der.sequence(algorithm, bits.encoded)))
    assert certificate is not None
    return certificate


SHA256, SHA512 = "2.16.840.1.101.3.4.2.1", "2.16.840.1.101.3.4.2.3"


@pytest.mark.parametrize(
    ("parameters", "pss_256"),
    [
        (b"", True),
        (pss_parameters(SHA256, 32), True),
        (pss_parameters(SHA256, 21), True),
        (pss_parameters(SHA256, 33), False),
        (pss_parameters(SHA512, 32), False),
        (der.sequence(), False),
    ],
)
def test_keys_for_pss_only(parameters: bytes, pss_256: bool) -> None:
    """RFC 4055 §1.2, §3.3: such a key verifies nothing else, encrypts nothing, and may fix its parameters."""
    plain = make("CA", ROOT, [CA, CERT_SIGN], key=rsa.generate_private_key(65537, 2048))
    issuer = Node(restricted(plain, ROOT, parameters), plain.key)
    assert judge(make("Leaf", issuer, LEAF), issuer).rule in ("relais-algorithm-too-weak", "relais-key-too-weak")
    padded = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    assert judge(make("Leaf", issuer, LEAF, rsa_padding=padded), issuer).ok is pss_256
    recipient = make("Leaf", ROOT, [(usage("key_encipherment"), True), MAIL], key=plain.key)
    assert judge(recipient, purpose=Purpose.MAIL_ENCRYPTION).ok
    assert not judge(restricted(recipient, ROOT, parameters), purpose=Purpose.MAIL_ENCRYPTION).ok


@pytest.mark.parametrize("salt", [0, 20, 32, 64, 190])
def test_any_salt_length(salt: int) -> None:
    issuer = make("CA", ROOT, [CA, CERT_SIGN], key=rsa.generate_private_key(65537, 2048))
    padded = padding.PSS(padding.MGF1(hashes.SHA256()), salt)
    assert judge(make("Leaf", issuer, LEAF, rsa_padding=padded), issuer).ok


def test_parameters_that_belong_to_no_algorithm() -> None:
    issuer = read(ROOT.certificate)
    assert isinstance(issuer, Facts)
    for parameters, rule in ((b"", None), (der.null(), None), (der.integer(1), "relais-algorithm-too-weak")):
        algorithm = der.sequence(der.oid("1.2.840.10045.4.3.2"), parameters)
        signature = ROOT.key.sign(b"signed", ec.ECDSA(hashes.SHA256()))
        failure = failure_of(algorithm, b"signed", signature, issuer)
        assert (failure.rule if failure else None) == rule
    for strange in (
        b"",
        b"\x30",
        b"\x30\x00",
        b"\x30\x80",
        der.sequence(der.oid("1.2.3"), der.octet_string(bytes(9000))),
    ):
        assert failure_of(strange, b"signed", b"", issuer) is not None


# --- What reading costs ----------------------------------------------------------------------------------------------


def _mappings() -> bytes:
    return der.sequence(*(der.sequence(der.oid(f"1.2.3.{n}"), der.oid(f"1.2.4.{n}")) for n in range(128)))


LONG_LISTS = {
    "alternative names": raw("2.5.29.17", der.sequence(*[der.tlv(0x82, b"a")] * 4000), False),
    "name constraints": raw_constraint(
        permitted=b"".join(der.sequence(der.tlv(0x82, b"h%d.example" % n)) for n in range(4000))
    ),
    "policies": raw("2.5.29.32", der.sequence(*(der.sequence(der.oid(f"1.2.3.{n}")) for n in range(256))), False),
    "mappings": raw("2.5.29.33", _mappings(), True),
}


@pytest.mark.parametrize("which", LONG_LISTS)
def test_long_lists_of_strangers_are_not_read(which: str) -> None:
    """64 candidates of one name and key, each with a list of its own, and none near an anchor."""
    key = ec.generate_private_key(ec.SECP256R1())
    strangers = [
        make("CA", None, [CA, CERT_SIGN, LONG_LISTS[which]], key=key, identifiers=False).certificate for _ in range(64)
    ]
    leaf = make("Leaf", Node(strangers[0], key), LEAF, identifiers=False).certificate
    spent = []
    for _ in range(3):
        facts._known.clear()
        started = time.thread_time()
        assert not VALIDATOR.validate(leaf, strangers, Purpose.MAIL_SIGNATURE, NOW).ok
        spent.append(time.thread_time() - started)
    assert min(spent) < 0.05


def test_what_is_skimmed_is_completed_once_it_matters() -> None:
    certificate = make("CA", ROOT, [CA, CERT_SIGN, LONG_LISTS["policies"]]).certificate
    facts._known.clear()
    known = skim(certificate)
    assert isinstance(known, Facts)
    assert known.complete() is None
    assert known.policies is not None
    assert len(known.policies) == 256
    assert read(certificate) is known


def test_the_memory_of_facts_is_bounded() -> None:
    long = make("CA", ROOT, [CA, CERT_SIGN, LONG_LISTS["alternative names"]])
    assert len(encoded(long.certificate)) > facts._REMEMBERED_OCTETS
    for certificate in (long.certificate, *(make(f"CA {n}", ROOT, [CA]).certificate for n in range(70))):
        read(certificate)
    assert id(long.certificate) not in facts._known
    assert len(facts._known) <= 64


# --- Whatever else -------------------------------------------------------------------------------------------------


def test_certificates_of_which_one_octet_was_changed_before_they_were_signed() -> None:
    """Signatures hold, so that the search goes all the way: each gets a verdict, in every place of a path."""
    dice = random.Random(5280)
    first = make("First", ROOT, RICH)
    second = make("Second", first, [CA, CERT_SIGN, policies(B)])
    leaf = make("Leaf", second, [*LEAF, policies(B), RICH[-1]])
    chain = {first: ROOT, second: first, leaf: second}
    judged = 0
    for _ in range(600):
        node = dice.choice(list(chain))
        signed, algorithm, _ = der.read(encoded(node.certificate)).sequence()
        body = bytearray(signed.encoded)
        at = dice.randrange(len(body))
        body[at] = dice.choice((0x00, 0x05, 0x30, 0x80, 0xFF, body[at] ^ 1, dice.randrange(256)))
        signature = chain[node].key.sign(bytes(body), ec.ECDSA(hashes.SHA256()))
        odd = loaded(der.sequence(body, algorithm.encoded, der.tlv(der.BIT_STRING, b"\x00", signature)))
        if odd is None:
            continue
        judged += 1
        path = [odd if each is node else each.certificate for each in chain]
        for purpose in (Purpose.MAIL_SIGNATURE, Purpose.MAIL_ENCRYPTION):
            assert VALIDATOR.validate(path[2], path[:2], purpose, NOW).section
            assert VALIDATOR.validate(odd, path, purpose, NOW).section
        assert isinstance(mail_addresses(odd), tuple)
    assert judged > 200
