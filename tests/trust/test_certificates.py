"""Certificates meant to be believed and certificates meant to fool us; OpenSSL's own verdict as a second opinion."""

from __future__ import annotations

import secrets
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from tests.trust.chains import CA, CERT_SIGN, DAY, LEAF, MAIL, NOW, SIGNING, Node, ca, make, usage
from trust import der
from trust.certificates import CertificateValidator, PathVerdict, Purpose, mail_addresses
from trust.issuing import DemonstrationAuthority

PEM = serialization.Encoding.PEM


ROOT = make("Root", None, [CA, CERT_SIGN])
INTERMEDIATE = make("Intermediate", ROOT, [CA, CERT_SIGN])
VALIDATOR = CertificateValidator([ROOT.certificate])


def judge(
    leaf: Node,
    *offered: Node,
    purpose: Purpose = Purpose.MAIL_SIGNATURE,
    at: datetime = NOW,
    validator: CertificateValidator = VALIDATOR,
) -> PathVerdict:
    verdict = validator.validate(leaf.certificate, [node.certificate for node in offered], purpose, at)
    assert verdict.revocation == "not-checked"
    assert bool(verdict.path) is verdict.ok
    return verdict


def test_good_path_leaf_first() -> None:
    leaf = make("Leaf", INTERMEDIATE, LEAF)
    verdict = judge(leaf, INTERMEDIATE)
    assert verdict.ok, verdict
    assert verdict.path == (leaf.certificate, INTERMEDIATE.certificate, ROOT.certificate)
    assert judge(leaf, INTERMEDIATE) == verdict, "the remembered path gives the same verdict"


def test_configured_intermediate_need_not_be_sent() -> None:
    validator = CertificateValidator([ROOT.certificate], [INTERMEDIATE.certificate])
    assert judge(make("Leaf", INTERMEDIATE, LEAF), validator=validator).ok
    assert judge(make("Leaf", INTERMEDIATE, LEAF)).rule == "rfc5280-6.1-no-path"


@pytest.mark.parametrize(
    ("since", "until", "word"), [(NOW - 9 * DAY, NOW - DAY, "expired"), (NOW + DAY, NOW + 9 * DAY, "not yet valid")]
)
def test_outside_validity(since: datetime, until: datetime, word: str) -> None:
    leaf = make("Prénom NOM", ROOT, LEAF, since=since, until=until)
    verdict = judge(leaf)
    assert verdict.rule == "rfc5280-6.1.3-validity"
    assert word in verdict.detail
    assert f"{leaf.certificate.serial_number:x}" in verdict.detail
    assert "NOM" not in verdict.detail, "an end entity may be a person: never named"


def test_validity_ends_belong_to_it_and_moves_with_the_moment() -> None:
    leaf = make("Leaf", ROOT, LEAF)
    assert judge(leaf, at=NOW - DAY).ok
    assert judge(leaf, at=NOW + DAY).ok
    assert not judge(leaf, at=NOW + DAY + timedelta(seconds=1)).ok


def test_expired_intermediate_even_when_its_edge_is_remembered() -> None:
    old = make("Old", ROOT, [CA, CERT_SIGN], until=NOW)
    leaf = make("Leaf", old, LEAF)
    assert judge(leaf, old, at=NOW).ok
    verdict = judge(leaf, old, at=NOW + timedelta(hours=1))
    assert (verdict.rule, "CA CN=Old" in verdict.detail) == ("rfc5280-6.1.3-validity", True)


def test_expired_anchor() -> None:
    root = make("Root", None, [CA, CERT_SIGN], until=NOW - timedelta(hours=1))
    assert not judge(make("Leaf", root, LEAF), validator=CertificateValidator([root.certificate])).ok


@pytest.mark.parametrize(
    ("purpose", "key_usage", "accepted"),
    [
        (Purpose.MAIL_SIGNATURE, ("digital_signature",), True),
        (Purpose.MAIL_SIGNATURE, ("content_commitment",), True),
        (Purpose.MAIL_SIGNATURE, ("key_agreement",), False),
        (Purpose.LIST_SIGNATURE, ("content_commitment",), True),
        (Purpose.MAIL_ENCRYPTION, ("key_agreement",), True),
        (Purpose.MAIL_ENCRYPTION, ("key_encipherment",), False),
        (Purpose.MAIL_ENCRYPTION, ("digital_signature", "content_commitment"), False),
        (Purpose.MAIL_SIGNATURE, None, True),
        (Purpose.MAIL_ENCRYPTION, None, True),
    ],
)
def test_key_usage(purpose: Purpose, key_usage: tuple[str, ...] | None, accepted: bool) -> None:
    extensions = [MAIL] if key_usage is None else [(usage(*key_usage), True), MAIL]
    verdict = judge(make("Leaf", ROOT, extensions), purpose=purpose)
    assert verdict.ok is accepted
    assert accepted or verdict.rule == "rfc5280-4.2.1.3-key-usage"


def test_encryption_to_rsa_needs_key_encipherment() -> None:
    key = rsa.generate_private_key(65537, 2048)
    for on, accepted in (("key_encipherment", True), ("key_agreement", False)):
        leaf = make("Leaf", ROOT, [(usage(on), True), MAIL], key=key)
        assert judge(leaf, purpose=Purpose.MAIL_ENCRYPTION).ok is accepted


@pytest.mark.parametrize("purpose", list(Purpose))
def test_extended_key_usage(purpose: Purpose) -> None:
    wanted = {
        Purpose.OPERATOR_TLS_SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
        Purpose.OPERATOR_TLS_CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    }.get(purpose, ExtendedKeyUsageOID.EMAIL_PROTECTION)
    any_use = (usage("digital_signature", "key_agreement"), True)

    def with_eku(*oids: ObjectIdentifier) -> PathVerdict:
        eku = [(x509.ExtendedKeyUsage(oids), False)] if oids else []
        return judge(make("Leaf", ROOT, [any_use, *eku]), purpose=purpose)

    assert with_eku(wanted).ok
    assert with_eku(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE).ok
    assert with_eku().ok
    assert with_eku(ExtendedKeyUsageOID.TIME_STAMPING).rule == "rfc5280-4.2.1.12-extended-key-usage"


def test_issuer_that_is_no_ca() -> None:
    for extensions in ([(x509.BasicConstraints(False, None), True), CERT_SIGN], [CERT_SIGN], []):
        false_ca = make("Holder", ROOT, extensions)
        assert judge(make("Leaf", false_ca, LEAF), false_ca).rule == "rfc5280-6.1.4-basic-constraints"


def test_issuer_that_may_not_sign_certificates() -> None:
    issuer = make("CA", ROOT, [CA, (usage("crl_sign"), True)])
    assert judge(make("Leaf", issuer, LEAF), issuer).rule == "rfc5280-6.1.4-key-usage"


def test_issuer_for_another_purpose() -> None:
    issuer = make("CA", ROOT, [CA, CERT_SIGN, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)])
    assert judge(make("Leaf", issuer, LEAF), issuer).rule == "relais-extended-key-usage"


def test_path_length_counts_only_what_is_not_self_issued() -> None:
    top = make("Top", ROOT, [ca(0), CERT_SIGN])
    rollover = make("Top", top, [ca(0), CERT_SIGN])
    below = make("Below", top, [CA, CERT_SIGN])
    assert judge(make("Leaf", top, LEAF), top).ok
    assert judge(make("Leaf", rollover, LEAF), top, rollover).ok
    assert judge(make("Leaf", below, LEAF), top, below).rule == "rfc5280-6.1.4-path-length"


def test_path_length_of_the_anchor() -> None:
    root = make("Root", None, [ca(0), CERT_SIGN])
    middle = make("Middle", root, [CA, CERT_SIGN])
    validator = CertificateValidator([root.certificate])
    assert judge(make("Leaf", root, LEAF), validator=validator).ok
    assert not judge(make("Leaf", middle, LEAF), middle, validator=validator).ok


def test_unknown_critical_extension() -> None:
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.250.1.71.1.2.99"), b"\x05\x00")
    assert judge(make("Leaf", ROOT, [*LEAF, (unknown, False)])).ok
    assert judge(make("Leaf", ROOT, [*LEAF, (unknown, True)])).rule == "rfc5280-6.1.5-critical-extension"
    issuer = make("CA", ROOT, [CA, CERT_SIGN, (unknown, True)])
    assert judge(make("Leaf", issuer, LEAF), issuer).rule == "rfc5280-6.1.4-critical-extension"


@pytest.mark.parametrize(
    "digest_and_padding",
    [
        (hashes.SHA256(), None),
        (hashes.SHA512(), None),
        (hashes.SHA256(), padding.PSS(padding.MGF1(hashes.SHA256()), 32)),
        (hashes.SHA384(), padding.PSS(padding.MGF1(hashes.SHA384()), 20)),
    ],
)
def test_rsa_signatures(digest_and_padding: tuple[hashes.HashAlgorithm, object]) -> None:
    digest, scheme = digest_and_padding
    root = make("RSA", None, [CA, CERT_SIGN], key=rsa.generate_private_key(65537, 2048))
    leaf = make("Leaf", root, LEAF, digest=digest, rsa_padding=scheme)
    validator = CertificateValidator([root.certificate])
    assert judge(leaf, validator=validator).ok
    assert not judge(_tampered(leaf), validator=validator).ok


def test_pss_with_another_mask_hash() -> None:
    root = make("RSA", None, [CA, CERT_SIGN], key=rsa.generate_private_key(65537, 2048))
    leaf = make("Leaf", root, LEAF, rsa_padding=padding.PSS(padding.MGF1(hashes.SHA512()), 32))
    assert judge(leaf, validator=CertificateValidator([root.certificate])).rule == "relais-algorithm-too-weak"


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP521R1()), "ed25519"]
)
def test_other_curves(key: object) -> None:
    digest = hashes.SHA384()
    if key == "ed25519":
        key, digest = ed25519.Ed25519PrivateKey.generate(), None
    root = make("Root", None, [CA, CERT_SIGN], key=key, digest=digest)
    leaf = make("Leaf", root, LEAF, digest=digest)
    assert judge(leaf, validator=CertificateValidator([root.certificate])).ok
    assert not judge(_tampered(leaf), validator=CertificateValidator([root.certificate])).ok


def _tampered(node: Node) -> Node:
    """The last byte of the serial number changed, the signature kept."""
    der = node.certificate.public_bytes(serialization.Encoding.DER)
    serial = node.certificate.serial_number.to_bytes(20, "big").lstrip(b"\x00")
    changed = der.replace(serial, serial[:-1] + bytes([serial[-1] ^ 1]), 1)
    return Node(x509.load_der_x509_certificate(changed), node.key)


def test_inner_and_outer_algorithm_must_agree() -> None:
    root = make("RSA", None, [CA, CERT_SIGN], key=rsa.generate_private_key(65537, 2048))
    leaf = make("Leaf", root, LEAF)
    der = leaf.certificate.public_bytes(serialization.Encoding.DER)
    sha256, sha384 = bytes.fromhex("06092a864886f70d01010b"), bytes.fromhex("06092a864886f70d01010c")
    start = der.rindex(sha256)
    forged = x509.load_der_x509_certificate(der[:start] + sha384 + der[start + len(sha384) :])
    verdict = CertificateValidator([root.certificate]).validate(forged, [], Purpose.MAIL_SIGNATURE, NOW)
    assert verdict.rule == "rfc5280-4.1.1.2-signature-algorithm"


def test_sha1_signature(tmp_path: Path) -> None:
    """`cryptography` no longer makes such signatures, OpenSSL still does."""
    key = rsa.generate_private_key(65537, 2048)
    root = make("RSA", None, [CA, CERT_SIGN], key=key)
    request = make("Leaf", None, LEAF, key=key, since=NOW - 9000 * DAY, until=NOW + 9000 * DAY)
    (tmp_path / "root.pem").write_bytes(root.certificate.public_bytes(PEM))
    (tmp_path / "leaf.pem").write_bytes(request.certificate.public_bytes(PEM))
    (tmp_path / "root.key").write_bytes(
        key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    for digest, rule in (("sha256", "rfc5280-6.1"), ("sha1", "relais-algorithm-too-weak")):
        command = f"openssl x509 -in leaf.pem -CA root.pem -CAkey root.key -{digest} -set_serial 7 -out signed.pem"
        subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
        leaf = x509.load_pem_x509_certificate((tmp_path / "signed.pem").read_bytes())
        moment = leaf.not_valid_before_utc
        anchor = make("RSA", None, [CA, CERT_SIGN], key=key, since=moment - DAY, until=moment + DAY)
        verdict = CertificateValidator([anchor.certificate]).validate(leaf, [], Purpose.MAIL_SIGNATURE, moment)
        assert verdict.rule == rule


def test_rsa_1024() -> None:
    short = rsa.generate_private_key(65537, 1024)
    assert judge(make("Leaf", ROOT, LEAF, key=short)).rule == "relais-key-too-weak"
    issuer = make("CA", ROOT, [CA, CERT_SIGN], key=short)
    assert judge(make("Leaf", issuer, LEAF), issuer).rule == "relais-key-too-weak"


def test_imposter_root_with_the_same_name() -> None:
    imposter = make("Root", None, [CA, CERT_SIGN])
    assert judge(make("Leaf", imposter, LEAF), imposter).rule == "rfc5280-6.1-no-path"
    unmarked = make("Root", None, [CA, CERT_SIGN], identifiers=False)
    assert judge(make("Leaf", unmarked, LEAF, identifiers=False), unmarked).rule == "rfc5280-6.1.3-signature"


def test_self_signed_leaf_and_anchor_as_leaf() -> None:
    assert not judge(make("Alone", None, LEAF)).ok
    pinned = make("Pinned", None, LEAF)
    assert not judge(pinned, pinned, validator=CertificateValidator([pinned.certificate])).ok


def test_wrong_issuer_name_over_a_good_signature() -> None:
    other = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Elsewhere")])
    assert not judge(make("Leaf", ROOT, LEAF, issuer_name=other)).ok


def test_names_chain_without_regard_to_case_and_spaces() -> None:
    spelled = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "  rOOt ")])
    assert judge(make("Leaf", ROOT, LEAF, issuer_name=spelled)).ok


def test_empty_issuer_name() -> None:
    assert judge(make("Leaf", ROOT, LEAF, issuer_name=x509.Name([]))).rule == "rfc5280-4.1.2.4-issuer"


def test_key_identifier_chooses_among_issuers_of_one_name() -> None:
    old, new = make("CA", ROOT, [CA, CERT_SIGN]), make("CA", ROOT, [CA, CERT_SIGN])
    for issuer in (old, new):
        verdict = judge(make("Leaf", issuer, LEAF), old, new)
        assert verdict.path[1] == issuer.certificate


def test_depth() -> None:
    chain = [ROOT]
    for level in range(6):
        chain.append(make(f"CA {level}", chain[-1], [CA, CERT_SIGN]))
    assert judge(make("Leaf", chain[5], LEAF), *chain[1:6]).ok
    assert judge(make("Leaf", chain[6], LEAF), *chain[1:]).rule == "relais-path-depth"


def _milliseconds(leaf: Node, bomb: list[Node]) -> tuple[PathVerdict, float]:
    """The verdict, and the processor time of this thread: what other processes do to the clock does not count."""
    spent = []
    for _ in range(3):
        started = time.thread_time()
        verdict = judge(leaf, *bomb)
        spent.append((time.thread_time() - started) * 1000)
    return verdict, min(spent)


def test_bomb_of_fifty_same_subjects() -> None:
    """Fifty CAs of one name and key without identifiers: each is an issuer of the leaf and of all the others."""
    key = rsa.generate_private_key(65537, 2048)
    seed = make("Bomb", None, [CA, CERT_SIGN], key=key, identifiers=False)
    bomb = [make("Bomb", seed, [CA, CERT_SIGN], key=key, identifiers=False) for _ in range(50)]
    verdict, spent = _milliseconds(make("Leaf", seed, LEAF, identifiers=False), bomb)
    assert verdict.rule == "relais-path-budget"
    assert spent < 20


class PublicOnly:
    """An RSA key of the costliest accepted shape; nobody knows its factors, verifying under it costs all the same."""

    def public_key(self) -> rsa.RSAPublicKey:
        return rsa.RSAPublicNumbers((1 << 32) - 1, secrets.randbits(8190) | 1 | 3 << 8190).public_key()


def test_bomb_of_fifty_slow_keys() -> None:
    issuer = make("CA", None, [CA, CERT_SIGN], key=rsa.generate_private_key(65537, 2048), identifiers=False)
    whole, _, _ = der.read(
        make("Leaf", issuer, LEAF, identifiers=False).certificate.public_bytes(serialization.Encoding.DER)
    ).sequence()
    algorithm = whole.sequence()[2]
    forged = der.sequence(whole.encoded, algorithm.encoded, der.tlv(der.BIT_STRING, b"\x00" + b"\x01" * 1024))
    leaf = Node(x509.load_der_x509_certificate(forged), None)
    bomb = [make("CA", issuer, [CA, CERT_SIGN], key=PublicOnly(), identifiers=False) for _ in range(50)]
    verdict, spent = _milliseconds(leaf, bomb)
    assert verdict.rule == "relais-path-budget"
    assert spent < 20


def test_bomb_of_fifty_different_keys() -> None:
    bomb = [make("Bomb", None, [CA, CERT_SIGN], identifiers=False) for _ in range(50)]
    verdict, spent = _milliseconds(make("Leaf", bomb[0], LEAF, identifiers=False), bomb)
    assert not verdict.ok
    assert spent < 20


def test_cross_certified_loops() -> None:
    """Six CAs that all certified each other: walks are exponential, the search is not."""
    cas = [make(f"Loop {n}", None, [CA, CERT_SIGN]) for n in range(6)]
    crossed = [
        make(f"Loop {n}", issuer, [CA, CERT_SIGN], key=subject.key)
        for n, subject in enumerate(cas)
        for issuer in cas
        if issuer is not subject
    ]
    leaf = make("Leaf", cas[0], LEAF)
    verdict, spent = _milliseconds(leaf, crossed)
    assert not verdict.ok
    assert spent < 20
    bridge = make("Loop 0", ROOT, [CA, CERT_SIGN], key=cas[0].key)
    assert judge(leaf, bridge, *crossed).ok
    assert judge(leaf, *crossed[:10], bridge).ok


def test_bomb_does_not_hide_configured_intermediates() -> None:
    validator = CertificateValidator([ROOT.certificate], [INTERMEDIATE.certificate])
    bomb = [make("Intermediate", None, [CA, CERT_SIGN], identifiers=False) for _ in range(50)]
    assert judge(make("Leaf", INTERMEDIATE, LEAF), *bomb, validator=validator).ok


def test_garbage_is_a_verdict() -> None:
    """Every byte of a certificate spoilt in turn: whatever still parses gets a verdict, as leaf and as candidate."""
    leaf = make("Leaf", INTERMEDIATE, LEAF)
    for good, as_leaf in ((leaf, True), (INTERMEDIATE, False)):
        der = good.certificate.public_bytes(serialization.Encoding.DER)
        accepted = 0
        for position in range(len(der)):
            spoilt = bytearray(der)
            spoilt[position] ^= 0xFF if position % 2 else 0x01
            try:
                node = Node(x509.load_der_x509_certificate(bytes(spoilt)), None)
            except (ValueError, UserWarning, x509.InvalidVersion):
                continue
            verdict = judge(node, INTERMEDIATE) if as_leaf else judge(leaf, node)
            accepted += verdict.ok
        assert accepted == 0


def test_duplicate_and_broken_extensions() -> None:
    broken = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.15"), b"\xff\x00garbage")
    node = make("Leaf", ROOT, [(broken, False)])
    assert judge(node).rule == "rfc5280-4.1-unreadable"
    assert judge(make("Leaf", INTERMEDIATE, LEAF), node, INTERMEDIATE).ok
    assert (
        mail_addresses(
            make(
                "Leaf", ROOT, [(x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.17"), b"\x30\x05"), False)]
            ).certificate
        )
        == ()
    )


def test_unreadable_anchor_is_a_configuration_error() -> None:
    broken = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.15"), b"\xff\x00garbage")
    with pytest.raises(ValueError, match="unreadable"):
        CertificateValidator([make("Root", None, [(broken, False)]).certificate])


def _subject_with_mail(address: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x"), x509.NameAttribute(NameOID.EMAIL_ADDRESS, address)])


def test_mail_addresses() -> None:
    san = x509.SubjectAlternativeName(
        [
            x509.RFC822Name("Jean.Test@CHU.MSSANTE.example"),
            x509.DNSName("chu.example"),
            x509.RFC822Name("second@chu.mssante.example"),
        ]
    )
    node = make(_subject_with_mail("old@Legacy.example"), ROOT, [*LEAF, (san, False)])
    assert mail_addresses(node.certificate) == (
        "Jean.Test@chu.mssante.example",
        "second@chu.mssante.example",
        "old@legacy.example",
    )
    assert mail_addresses(make("none", ROOT, LEAF).certificate) == ()


@pytest.mark.parametrize(
    "address",
    [
        *("a@b.example\x00.evil.example", "a\x00@b.example", "a@b@c.example", "A <a@b.example>", "a b@c.example"),
        *("@b.example", "a@", "a@b..example", "a@-b.example", "a@b.example\r\nTo: x", "é@b.example", '"a"@b.example'),
    ],
)
def test_addresses_that_are_no_addresses(address: str) -> None:
    assert mail_addresses(make(_subject_with_mail(address), ROOT, LEAF).certificate) == ()
    encoded = address.encode()
    general_names = bytes([0x30, len(encoded) + 2, 0x81, len(encoded)]) + encoded
    san = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.17"), general_names)
    assert mail_addresses(make("x", ROOT, [*LEAF, (san, False)]).certificate) == ()


def test_openssl_agrees(tmp_path: Path) -> None:
    """Independent oracle: `openssl verify` on the same chains, for the same purpose, at the same moment."""
    no_ca = make("Holder", ROOT, [(x509.BasicConstraints(False, None), True)])
    short = make("Short", ROOT, [ca(0), CERT_SIGN])
    below = make("Below", short, [CA, CERT_SIGN])
    authority = DemonstrationAuthority.create("Démonstration")
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    mailbox = authority.issue_mailbox("a@b.example", "A", "signing", "p256")
    cases: list[tuple[Node, list[Node], bool]] = [
        (make("Leaf", INTERMEDIATE, LEAF), [INTERMEDIATE], True),
        (make("Leaf", INTERMEDIATE, LEAF), [], False),
        (make("Leaf", no_ca, LEAF), [no_ca], False),
        (make("Leaf", below, LEAF), [short, below], False),
        (make("Leaf", ROOT, LEAF, until=NOW - timedelta(hours=1)), [], False),
        (make("Leaf", ROOT, [*LEAF, (unknown, True)]), [], False),
        (make("Leaf", ROOT, [(usage("content_commitment"), True), MAIL]), [], True),
        (make("Leaf", ROOT, [SIGNING, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)]), [], False),
        (_tampered(make("Leaf", ROOT, LEAF)), [], False),
    ]
    for leaf, offered, expected in cases:
        at = NOW
        assert judge(leaf, *offered).ok is expected
        assert _openssl_verifies(
            tmp_path, ROOT.certificate, leaf.certificate, [o.certificate for o in offered], at
        ) is (expected)
    now = datetime.now(UTC)
    validator = CertificateValidator([authority.root])
    assert validator.validate(mailbox.certificate, mailbox.chain, Purpose.MAIL_SIGNATURE, now).ok
    assert _openssl_verifies(tmp_path, authority.root, mailbox.certificate, list(mailbox.chain), now)


def _openssl_verifies(
    directory: Path, root: x509.Certificate, leaf: x509.Certificate, offered: list[x509.Certificate], at: datetime
) -> bool:
    (directory / "root.pem").write_bytes(root.public_bytes(PEM))
    (directory / "leaf.pem").write_bytes(leaf.public_bytes(PEM))
    (directory / "offered.pem").write_bytes(b"".join(c.public_bytes(PEM) for c in offered))
    untrusted = ["-untrusted", "offered.pem"] if offered else []
    command = ["openssl", "verify", "-x509_strict", "-purpose", "smimesign", "-attime", str(int(at.timestamp()))]
    command += ["-CAfile", "root.pem", *untrusted, "leaf.pem"]
    return subprocess.run(command, cwd=directory, capture_output=True, check=False).returncode == 0
