"""What CRLs say: scope, deltas, indirect ones, signers, dates (RFC 5280 §5, §6.3.3; pitfall D21)."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ReasonFlags

from tests.trust.revocation.authority import DAY, HOUR, NOW, Authority, cdp, idp, name, revoked
from trust import der
from trust.revocation import RevocationState, crl
from trust.revocation.checker import Revocation
from trust.revocation.naming import name_key

GOOD, REVOKED, UNKNOWN, STALE = (
    RevocationState.GOOD,
    RevocationState.REVOKED,
    RevocationState.UNKNOWN,
    RevocationState.STALE,
)


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("Racine")


@pytest.fixture
def ca(root: Authority) -> Authority:
    return Authority("AC Fictive", root)


def checker(root: Authority, *pool: x509.Certificate) -> Revocation:
    return Revocation([root.certificate], pool)


def state(revocation, certificate, ca, at=NOW):
    return revocation.check(certificate, ca.certificate, at).state


def test_listed_is_revoked_and_unlisted_is_good(root, ca):
    one, other = ca.issue(), ca.issue()
    revocation = checker(root, ca.certificate)
    assert state(revocation, one, ca) is UNKNOWN
    revocation.add_crl(ca.crl(revoked(one, NOW - 2 * HOUR, ReasonFlags.key_compromise, NOW - 5 * HOUR)))
    status = revocation.check(one, ca.certificate, NOW)
    assert (status.state, status.source, status.reason) == (REVOKED, "crl", "keyCompromise")
    assert status.revoked_at == NOW - 2 * HOUR
    assert status.invalid_since == NOW - 5 * HOUR
    assert status.as_of == NOW - HOUR
    assert status.next_update == NOW + DAY
    assert state(revocation, other, ca) is GOOD


def test_when_a_revocation_begins(root, ca):
    superseded, stolen, dated = ca.issue(), ca.issue(), ca.issue()
    revocation = checker(root, ca.certificate)
    revocation.add_crl(
        ca.crl(
            revoked(superseded, NOW - HOUR, ReasonFlags.superseded),
            revoked(stolen, NOW - HOUR, ReasonFlags.key_compromise),
            revoked(dated, NOW - HOUR, ReasonFlags.key_compromise, NOW - 3 * HOUR),
        )
    )
    before = NOW - 2 * HOUR
    assert state(revocation, superseded, ca, before) is GOOD
    assert state(revocation, superseded, ca) is REVOKED
    assert state(revocation, stolen, ca, before) is REVOKED
    assert state(revocation, dated, ca, before) is REVOKED
    assert state(revocation, dated, ca, NOW - 4 * HOUR) is GOOD


def test_freshness_with_a_second_of_tolerance(root, ca):
    certificate = ca.issue()
    revocation = Revocation([root.certificate], [ca.certificate], clock=lambda: NOW)
    revocation.add_crl(ca.crl(until=NOW + HOUR))
    at = NOW + HOUR
    assert state(revocation, certificate, ca, at + 0.9 * (DAY / 86400)) is GOOD
    status = revocation.check(certificate, ca.certificate, at + 2 * (DAY / 86400))
    assert (status.state, status.next_update) == (STALE, at)


def test_future_list_is_not_taken(root, ca):
    revocation = Revocation([root.certificate], [ca.certificate], clock=lambda: NOW)
    with pytest.raises(crl.CrlError, match="future"):
        revocation.add_crl(ca.crl(this=NOW + 60 * HOUR / 60, until=NOW + DAY))


def test_older_list_does_not_replace_a_newer_one(root, ca):
    certificate = ca.issue()
    revocation = checker(root, ca.certificate)
    old = ca.crl(number=7)
    revocation.add_crl(ca.crl(revoked(certificate), number=8), url="http://crl.example/1")
    with pytest.raises(crl.CrlError, match="older"):
        revocation.add_crl(old, url="http://crl.example/1")
    assert state(revocation, certificate, ca) is REVOKED


def test_same_name_other_key_is_refused(root, ca):
    impostor = Authority("AC Fictive", None)
    revocation = checker(root, ca.certificate)
    for data in (ca.crl(key=impostor.key), impostor.crl(), ca.crl(key=impostor.key, aki=False)):
        with pytest.raises(crl.CrlError, match="not signed"):
            revocation.add_crl(data, [ca.certificate])
    # even when the impostor's own certificate is given along, it does not speak for the issuer
    revocation.add_crl(impostor.crl(), [impostor.certificate])
    assert state(revocation, ca.issue(), ca) is UNKNOWN


def test_another_authority_of_the_network_does_not_speak_for_this_one(root, ca):
    other = Authority("AC Autre", root)
    revocation = checker(root, ca.certificate, other.certificate)
    revocation.add_crl(other.crl(extensions=[idp(indirect=True)]))
    assert state(revocation, ca.issue(), ca) is UNKNOWN


def test_separate_key_for_lists_of_the_same_authority(root, ca):
    signer = Authority("AC Fictive", root)
    revocation = checker(root, ca.certificate, signer.certificate)
    certificate = ca.issue()
    revocation.add_crl(signer.crl(revoked(certificate)))
    assert state(revocation, certificate, ca) is REVOKED
    # until that signer is revoked itself
    revocation.add_crl(root.crl(revoked(signer.certificate)))
    assert state(revocation, ca.issue(), ca) is UNKNOWN


def test_issuer_without_crl_sign_cannot_sign_lists(root):
    ca = Authority("AC Muette", root, crl_sign=False)
    with pytest.raises(crl.CrlError, match="not signed"):
        checker(root, ca.certificate).add_crl(ca.crl())


def test_altered_list(root, ca):
    data = bytearray(ca.crl(revoked(ca.issue())))
    for position in range(0, len(data), 7):
        data[position] ^= 1
        with pytest.raises(crl.CrlError):
            crl.read(bytes(data), [ca.certificate])
        data[position] ^= 1


def test_scope_by_kind_of_certificate(root, ca):
    sub = Authority("AC Fille", ca)
    leaf = ca.issue()
    users = checker(root, ca.certificate)
    users.add_crl(ca.crl(extensions=[idp(user=True)]))
    assert state(users, leaf, ca) is GOOD
    assert state(users, sub.certificate, ca) is UNKNOWN
    authorities = checker(root, ca.certificate)
    authorities.add_crl(ca.crl(extensions=[idp(authority=True)]))
    assert state(authorities, leaf, ca) is UNKNOWN
    assert state(authorities, sub.certificate, ca) is GOOD


def test_partitioned_lists(root, ca):
    first = ca.issue(cdp("http://crl.example/1"))
    second = ca.issue(cdp("http://crl.example/2"))
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(revoked(second), extensions=[idp("http://crl.example/1")]), url="http://crl.example/1")
    assert state(revocation, first, ca) is GOOD
    assert state(revocation, second, ca) is UNKNOWN  # the list is for the other partition
    revocation.add_crl(ca.crl(revoked(second), extensions=[idp("http://crl.example/2")]), url="http://crl.example/2")
    assert state(revocation, second, ca) is REVOKED
    # a certificate without a point is not covered by partitions
    assert state(revocation, ca.issue(), ca) is UNKNOWN


def test_lists_for_some_reasons_are_added_up(root, ca):
    certificate = ca.issue()
    revocation = checker(root, ca.certificate)
    some = frozenset({ReasonFlags.key_compromise, ReasonFlags.ca_compromise})
    others = frozenset(set(ReasonFlags) - some - {ReasonFlags.unspecified, ReasonFlags.remove_from_crl})
    revocation.add_crl(ca.crl(extensions=[idp(reasons=some)]))
    status = revocation.check(certificate, ca.certificate, NOW)
    assert (status.state, status.detail[:4]) == (UNKNOWN, "CRLs")
    revocation.add_crl(ca.crl(extensions=[idp(reasons=others)]))
    assert state(revocation, certificate, ca) is GOOD


def test_indirect_list(root, ca):
    lister = Authority("Listes", root)
    mine = ca.issue(cdp("http://crl.example/i", issuer=lister.name), serial=77)
    twin = ca.issue(cdp("http://crl.example/i", issuer=lister.name), serial=78)
    follower = ca.issue(cdp("http://crl.example/i", issuer=lister.name), serial=79)
    revocation = checker(root, ca.certificate, lister.certificate)
    scope = [idp("http://crl.example/i", indirect=True)]
    entries = [revoked(78), revoked(77, issuer=ca.name), revoked(79)]
    revocation.add_crl(lister.crl(*entries, extensions=scope), url="http://crl.example/i")
    assert state(revocation, mine, ca) is REVOKED
    assert state(revocation, follower, ca) is REVOKED  # the issuer of an entry stays that of the one before
    assert state(revocation, twin, ca) is GOOD  # 78 is the lister's own certificate
    # a list that is not declared indirect does not answer for others
    plain = checker(root, ca.certificate, lister.certificate)
    plain.add_crl(lister.crl(extensions=[idp("http://crl.example/i")]), url="http://crl.example/i")
    assert state(plain, mine, ca) is UNKNOWN


def test_certificate_issuer_in_a_direct_list_makes_it_unusable(root, ca):
    with pytest.raises(crl.CrlError, match="not indirect"):
        checker(root, ca.certificate).add_crl(ca.crl(revoked(5, issuer=root.name)))


def test_delta_over_its_base(root, ca):
    held, fresh, listed = ca.issue(), ca.issue(), ca.issue()
    revocation = Revocation([root.certificate], [ca.certificate], clock=lambda: NOW)
    base = [revoked(held, NOW - 9 * HOUR, ReasonFlags.certificate_hold), revoked(listed, NOW - 9 * HOUR)]
    revocation.add_crl(ca.crl(*base, this=NOW - 8 * HOUR, until=NOW - 2 * HOUR, number=10))
    assert state(revocation, held, ca) is REVOKED
    assert state(revocation, fresh, ca) is STALE
    delta = [(x509.DeltaCRLIndicator(10), True)]
    changes = [revoked(held, NOW - HOUR, ReasonFlags.remove_from_crl), revoked(fresh, NOW - HOUR)]
    revocation.add_crl(ca.crl(*changes, number=12, extensions=delta))
    assert state(revocation, held, ca) is GOOD
    assert state(revocation, fresh, ca) is REVOKED
    assert state(revocation, listed, ca) is REVOKED
    assert state(revocation, ca.issue(), ca) is GOOD


def test_delta_of_a_later_base_or_another_scope_is_not_used(root, ca):
    certificate = ca.issue()
    for extensions in ([(x509.DeltaCRLIndicator(11), True)], [(x509.DeltaCRLIndicator(9), True), idp(user=True)]):
        revocation = checker(root, ca.certificate)
        revocation.add_crl(ca.crl(number=10))
        revocation.add_crl(ca.crl(revoked(certificate), number=12, extensions=extensions))
        assert state(revocation, certificate, ca) is GOOD
    alone = checker(root, ca.certificate)
    alone.add_crl(ca.crl(number=12, extensions=[(x509.DeltaCRLIndicator(10), True)]))
    assert state(alone, certificate, ca) is UNKNOWN


def test_unknown_critical_extension_makes_a_list_unusable(root, ca):
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    revocation = checker(root, ca.certificate)
    with pytest.raises(crl.CrlError, match="critical"):
        revocation.add_crl(ca.crl(extensions=[(unknown, True)]))
    entry = x509.RevokedCertificateBuilder().serial_number(5).revocation_date(NOW).add_extension(unknown, True).build()
    with pytest.raises(crl.CrlError, match="critical"):
        revocation.add_crl(ca.crl(entry))
    revocation.add_crl(ca.crl(extensions=[(unknown, False)]))


def test_expired_certificates_leave_the_list(root, ca):
    expired = ca.issue(before=NOW - 3 * DAY, after=NOW - DAY)
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl())
    assert state(revocation, expired, ca, NOW - 2 * DAY) is UNKNOWN
    keeps = x509.UnrecognizedExtension(
        x509.ObjectIdentifier("2.5.29.60"),
        der.tlv(der.GENERALIZED_TIME, (NOW - 9 * DAY).strftime("%Y%m%d%H%M%SZ").encode()),
    )
    keeping = checker(root, ca.certificate)
    keeping.add_crl(ca.crl(extensions=[(keeps, False)]))
    assert state(keeping, expired, ca, NOW - 2 * DAY) is GOOD


def test_size_cap(root, ca):
    from trust.revocation.checker import RevocationOptions

    revocation = Revocation([root.certificate], [ca.certificate], RevocationOptions(max_crl_bytes=100))
    with pytest.raises(crl.CrlError, match="large"):
        revocation.add_crl(ca.crl())


def by_hand(
    ca: Authority, entries: bytes, *, next_update: bytes | None = None, version: bytes = b"\x02\x01\x01"
) -> bytes:
    algorithm = der.sequence(der.oid("1.2.840.10045.4.3.2"))
    ends = der.time(NOW + DAY) if next_update is None else next_update
    signed = der.sequence(
        version,
        algorithm,
        ca.name.public_bytes(),
        der.time(NOW - HOUR),
        ends,
        der.sequence(entries) if entries else b"",
    )
    return der.sequence(signed, algorithm, der.tlv(3, b"\0" + ca.key.sign(signed, ec.ECDSA(hashes.SHA256()))))


DATE = der.time(datetime(2026, 1, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    "entry",
    [
        b"\x30",
        b"\x30\x05\x02\x01\x05",
        der.sequence(der.integer(5)),
        der.sequence(der.integer(5), der.null()),
        der.sequence(der.tlv(2, b""), DATE),
        der.sequence(der.tlv(2, b"\0\x05"), DATE),
        der.sequence(der.tlv(2, b"\x01" * 65), DATE),
        der.tlv(0x31, der.integer(5), DATE),
        der.sequence(der.integer(5), DATE, b"\x30\x7f"),
        der.sequence(der.integer(5), DATE)[:-1],
        der.sequence(der.integer(5), DATE) + b"\0",
        b"\x30\x80" + der.integer(5) + DATE + b"\0\0",
        b"\x30\x84\xff\xff\xff\xff" + der.integer(5) + DATE,
    ],
)
def test_malformed_entries_make_a_list_unusable(ca, entry):
    good = der.sequence(der.integer(9), DATE)
    for data in (by_hand(ca, entry), by_hand(ca, good + entry)):
        with pytest.raises(crl.CrlError):
            crl.read(data, [ca.certificate])


def test_unreadable_date_still_revokes(ca):
    read = crl.read(by_hand(ca, der.sequence(der.integer(5), der.tlv(0x17, b"2613322460600"))), [ca.certificate])
    entry = read.find(5, name_key(ca.name.public_bytes()))
    assert entry is not None
    assert entry.revoked_at is None


def test_list_without_next_update_is_stale_at_once(root, ca):
    revocation = checker(root, ca.certificate)
    revocation.add_crl(by_hand(ca, b"", next_update=b""))
    assert state(revocation, ca.issue(), ca) is STALE


@pytest.mark.parametrize("junk", [b"", b"<html>", b"\x30\x00", b"\x30\x80", b"\xff" * 999, b"-----BEGIN X509 CRL-----"])
def test_junk(ca, junk):
    with pytest.raises(crl.CrlError):
        crl.issuer_of(junk)
    with pytest.raises(crl.CrlError):
        crl.read(junk, [ca.certificate])


def test_every_truncation_is_refused(ca):
    data = ca.crl(revoked(5), revoked(6, reason=ReasonFlags.superseded))
    for size in range(len(data)):
        with pytest.raises(crl.CrlError):
            crl.read(data[:size], [ca.certificate])


def test_serial_numbers_of_every_length_and_sign(ca):
    serials = [1, 127, 128, 255, 256, 2**63, 2**64 - 1, 2**159 - 1, 2**160, 0, -1, -128, -129]
    entries = b"".join(der.sequence(der.integer(serial), DATE) for serial in serials)
    long = der.sequence(
        der.integer(2**31), DATE, der.sequence(der.sequence(der.oid("1.2.3.9"), der.octet_string(b"x" * 300)))
    )
    read = crl.read(by_hand(ca, entries + long), [ca.certificate])
    issuer = name_key(ca.name.public_bytes())
    assert read.size == len(serials) + 1
    for serial in (*serials, 2**31):
        assert read.find(serial, issuer) is not None
    for serial in (2, 129, -2, 2**159):
        assert read.find(serial, issuer) is None
    assert read.find(1, name_key(name("Autre").public_bytes())) is None


def test_lookup_does_not_depend_on_size_and_loading_is_fast(ca):
    """The bar is 400,000 entries a second; an eighth of it here, in processor time, since other tests run beside."""
    issuer = name_key(ca.name.public_bytes())
    costs = []
    for count in (1_000, 200_000):
        serials = [random.getrandbits(127) for _ in range(count)]
        data = by_hand(ca, b"".join(der.sequence(der.integer(serial), DATE) for serial in serials))
        begun = time.thread_time()
        read = crl.read(data, [ca.certificate])
        taken = time.thread_time() - begun
        assert read.octets < 2.5 * len(data) + 4096
        sample = random.sample(serials, 500)
        begun = time.thread_time()
        assert all(read.find(serial, issuer) for serial in sample)
        costs.append(time.thread_time() - begun)
    assert count / taken > 50_000
    assert costs[1] < 10 * costs[0]
