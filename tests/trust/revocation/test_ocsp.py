"""Who may answer, about what, and when (RFC 6960; pitfall D21)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ReasonFlags
from cryptography.x509 import ocsp as builder
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.trust.revocation.authority import DAY, HOUR, NOW, Authority, name, revoked
from trust.revocation import RevocationState, ocsp
from trust.revocation.checker import Revocation

NO_CHECK = x509.OCSPNoCheck()


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("Racine")


@pytest.fixture(scope="module")
def ca(root) -> Authority:
    return Authority("AC Fictive", root)


@pytest.fixture(scope="module")
def leaf(ca) -> x509.Certificate:
    return ca.issue()


def read(data: bytes, leaf, ca, **options) -> ocsp.Answer:
    return ocsp.read(data, leaf.serial_number, ca.certificate, NOW, **options)


@pytest.mark.parametrize("encoding", list(builder.OCSPResponderEncoding))
@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_the_issuer_answers(ca, leaf, encoding, algorithm):
    answer = read(ca.ocsp(leaf, encoding=encoding, algorithm=algorithm), leaf, ca)
    assert (answer.state, answer.this_update, answer.next_update) == (RevocationState.GOOD, NOW - HOUR, NOW + DAY)
    assert answer.delegate is None


def test_revoked_and_unknown(ca, leaf):
    answer = read(ca.ocsp(leaf, revoked=NOW - DAY, reason=ReasonFlags.superseded), leaf, ca)
    assert (answer.state, answer.reason, answer.revoked_at) == (RevocationState.REVOKED, "superseded", NOW - DAY)
    assert read(ca.ocsp(leaf, revoked=NOW - DAY), leaf, ca).reason == "unspecified"
    assert read(ca.ocsp(leaf, unknown=True), leaf, ca).state is RevocationState.UNKNOWN


@pytest.mark.parametrize("encoding", list(builder.OCSPResponderEncoding))
def test_delegated_responder(ca, leaf, encoding):
    delegate = ca.responder(NO_CHECK)
    answer = read(ca.ocsp(leaf, by=delegate, encoding=encoding), leaf, ca)
    assert (answer.state, answer.delegate) == (RevocationState.GOOD, None)
    own = ca.responder(after=NOW + HOUR)
    answer = read(ca.ocsp(leaf, by=own), leaf, ca)
    assert answer.delegate == own[1]
    assert answer.next_update == NOW + HOUR  # no longer than the delegate itself


def test_responder_by_key_hash_where_its_key_identifier_is_something_else(ca, leaf):
    key, _ = ca.responder()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name("Responder"))
        .issuer_name(ca.name)
        .public_key(key.public_key())
        .serial_number(99)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectKeyIdentifier(b"anything at all"), False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)
        .add_extension(NO_CHECK, False)
        .sign(ca.key, hashes.SHA256())
    )
    data = ca.ocsp(leaf, by=(key, certificate), encoding=builder.OCSPResponderEncoding.HASH)
    assert read(data, leaf, ca).state is RevocationState.GOOD


def test_wrong_responders(root, ca, leaf):
    stranger = Authority("AC Autre", root)
    twin = Authority("AC Fictive", root)
    wrong = {
        "not for OCSP": ca.responder(NO_CHECK, eku=ExtendedKeyUsageOID.EMAIL_PROTECTION),
        "for OCSP signing": ca.responder(NO_CHECK, eku=ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE),
        "not valid": ca.responder(NO_CHECK, before=NOW - 2 * DAY, after=NOW - DAY),
        "from the same issuer": stranger.responder(NO_CHECK),
        "same issuer": twin.responder(NO_CHECK),
    }
    for why, delegate in wrong.items():
        with pytest.raises(ocsp.OcspError, match=why.removeprefix("not for OCSP") or "OCSP signing"):
            read(ca.ocsp(leaf, by=delegate), leaf, ca)
    with pytest.raises(ocsp.OcspError, match="not for OCSP signing"):
        read(ca.ocsp(leaf, by=(stranger.key, stranger.certificate)), leaf, ca)
    # the right name, another key
    with pytest.raises(ocsp.OcspError, match="not the responder's"):
        data = ca.ocsp(leaf, by=(twin.key, twin.certificate), encoding=builder.OCSPResponderEncoding.NAME)
        read(data, leaf, ca)


def test_every_part_of_the_certificate_identifier_counts(root, ca, leaf):
    other = ca.issue()
    with pytest.raises(ocsp.OcspError, match="about this"):
        read(ca.ocsp(other), leaf, ca)
    twin = Authority("AC Fictive", root)  # same name, other key
    with pytest.raises(ocsp.OcspError, match="about this"):
        read(ca.ocsp(leaf, about=twin), leaf, ca)


def test_dates(ca, leaf):
    minute = timedelta(minutes=1)
    with pytest.raises(ocsp.OcspError, match="future"):
        read(ca.ocsp(leaf, this=NOW + minute, until=NOW + DAY), leaf, ca)
    data = ca.ocsp(leaf)
    with pytest.raises(ocsp.OcspError, match="future"):
        ocsp.read(data, leaf.serial_number, ca.certificate, NOW - DAY)


def test_nonce(ca, leaf):
    nonce = b"n" * 32
    assert read(ca.ocsp(leaf, nonce=nonce), leaf, ca, nonce=nonce, nonce_required=True)
    assert read(ca.ocsp(leaf), leaf, ca, nonce=nonce)
    with pytest.raises(ocsp.OcspError, match="missing"):
        read(ca.ocsp(leaf), leaf, ca, nonce=nonce, nonce_required=True)
    with pytest.raises(ocsp.OcspError, match="another"):
        read(ca.ocsp(leaf, nonce=b"m" * 32), leaf, ca, nonce=nonce)


def test_request_is_what_others_read(ca, leaf):
    asked = builder.load_der_ocsp_request(ocsp.request(leaf.serial_number, ca.certificate, b"n" * 32))
    reference = builder.OCSPRequestBuilder().add_certificate(leaf, ca.certificate, hashes.SHA1()).build()
    assert asked.serial_number == reference.serial_number
    assert (asked.issuer_name_hash, asked.issuer_key_hash) == (reference.issuer_name_hash, reference.issuer_key_hash)
    assert asked.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32


def test_refusals_junk_and_truncations(ca, leaf):
    for status in list(builder.OCSPResponseStatus)[1:]:
        from cryptography.hazmat.primitives.serialization import Encoding

        data = builder.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)
        with pytest.raises(ocsp.OcspError, match="status"):
            read(data, leaf, ca)
    good = ca.ocsp(leaf)
    for junk in (b"", b"<html>", b"\x30\x80", b"\x30\x03\x0a\x01\x00", b"\xff" * 999, good + b"\0"):
        with pytest.raises(ocsp.OcspError):
            read(junk, leaf, ca)
    for size in range(0, len(good), 3):
        with pytest.raises(ocsp.OcspError):
            read(good[:size], leaf, ca)
    altered = bytearray(good)
    for position in range(0, len(good), 5):
        altered[position] ^= 4
        with pytest.raises(ocsp.OcspError):
            read(bytes(altered), leaf, ca)
        altered[position] ^= 4


def test_stapled_responses(root, ca, leaf):
    revocation = Revocation([root.certificate], [ca.certificate], clock=lambda: NOW)
    check = revocation.check
    assert check(leaf, ca.certificate, NOW).state is RevocationState.UNKNOWN
    status = check(leaf, ca.certificate, NOW, ca.ocsp(leaf))
    assert (status.state, status.source, status.next_update) == (RevocationState.GOOD, "ocsp", NOW + DAY)
    assert check(leaf, ca.certificate, NOW, b"junk").state is RevocationState.UNKNOWN
    stale = ca.ocsp(leaf, this=NOW - DAY, until=NOW - HOUR)
    assert check(leaf, ca.certificate, NOW, stale).state is RevocationState.STALE
    assert check(leaf, ca.certificate, NOW, ca.ocsp(leaf, revoked=NOW - HOUR)).state is RevocationState.REVOKED
    # whoever staples "good" does not undo what the list says
    revocation.add_crl(ca.crl(revoked(leaf)))
    assert check(leaf, ca.certificate, NOW, ca.ocsp(leaf, this=NOW)).state is RevocationState.REVOKED


def test_hold_ends_with_a_newer_statement_only(root, ca):
    certificate = ca.issue()
    revocation = Revocation([root.certificate], [ca.certificate], clock=lambda: NOW)
    revocation.add_crl(ca.crl(revoked(certificate, reason=ReasonFlags.certificate_hold)))
    check = revocation.check
    older = ca.ocsp(certificate, this=NOW - 2 * HOUR)
    assert check(certificate, ca.certificate, NOW, older).reason == "certificateHold"
    newer = ca.ocsp(certificate, this=NOW)
    assert check(certificate, ca.certificate, NOW, newer).state is RevocationState.GOOD


def test_delegate_without_nocheck_needs_its_own_good_standing(root, ca, leaf):
    revocation = Revocation([root.certificate], [ca.certificate], clock=lambda: NOW)
    delegate = ca.responder()
    stapled = ca.ocsp(leaf, by=delegate)
    status = revocation.check(leaf, ca.certificate, NOW, stapled)
    assert (status.state, status.detail) == (RevocationState.UNKNOWN, "the responder's own revocation: unknown")
    bad = Authority("AC Fictive 2", root)
    victim, rogue = bad.issue(), bad.responder()
    revocation.add_crl(bad.crl(revoked(rogue[1])), [bad.certificate])
    assert revocation.check(victim, bad.certificate, NOW, bad.ocsp(victim, by=rogue)).source == "crl"
    revocation.add_crl(ca.crl())
    assert revocation.check(leaf, ca.certificate, NOW, ca.ocsp(leaf, by=delegate, this=NOW)).source == "ocsp"


def test_certificates_whose_issuer_revokes_none(root, ca):
    never = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.56"), b"\x05\x00")
    revocation = Revocation([root.certificate], clock=lambda: NOW)
    assert revocation.check(ca.issue(never), ca.certificate, NOW).state is RevocationState.GOOD
