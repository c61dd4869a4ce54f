"""Sloppy authorities, strange certificates, replays, clocks set wrong: revocation must neither be fooled nor stop."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ReasonFlags

from tests.trust.revocation.authority import DAY, HOUR, NOW, Authority, access, cdp, idp, name, revoked
from trust import der
from trust.revocation import RevocationState, crl, ocsp, refresher
from trust.revocation.cache import DiskCache, Record, kept
from trust.revocation.checker import Revocation, RevocationOptions
from trust.revocation.fetching import FetchError, is_public
from trust.revocation.naming import name_key
from trust.revocation.refresher import FORGOTTEN, LATEST, Refresher

GOOD, REVOKED, UNKNOWN, STALE = (
    RevocationState.GOOD,
    RevocationState.REVOKED,
    RevocationState.UNKNOWN,
    RevocationState.STALE,
)
SECOND = timedelta(seconds=1)
DATE = der.time(datetime(2026, 1, 2, tzinfo=UTC))


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("Racine")


@pytest.fixture
def ca(root: Authority) -> Authority:
    return Authority("AC Fictive", root)


def checker(root: Authority, *pool: x509.Certificate, clock=lambda: NOW) -> Revocation:
    return Revocation([root.certificate], pool, clock=clock)


def state(revocation, certificate, ca, at=NOW):
    return revocation.check(certificate, ca.certificate, at).state


def strange(oid: str, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)


def by_hand(ca: Authority, entries: bytes, *extensions: bytes) -> bytes:
    """A CRL of the entries and extensions given in DER."""
    algorithm = der.sequence(der.oid("1.2.840.10045.4.3.2"))
    parts = [der.integer(1), algorithm, ca.name.public_bytes(), der.time(NOW - HOUR), der.time(NOW + DAY)]
    parts += [der.sequence(entries)] if entries else []
    parts += [der.tlv(der.context(0), der.sequence(*extensions))] if extensions else []
    signed = der.sequence(*parts)
    return der.sequence(signed, algorithm, der.tlv(3, b"\0" + ca.key.sign(signed, ec.ECDSA(hashes.SHA256()))))


def extension(oid: str, value: bytes, critical: bytes = b"") -> bytes:
    return der.sequence(der.oid(oid), critical, der.octet_string(value))


# --- Certificates that are read by nobody's parser but ours ----------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        strange("2.5.29.17", der.sequence(der.tlv(0xA3, der.sequence()))),  # x400Address
        strange("2.5.29.31", der.sequence(der.sequence(der.tlv(0xA0, der.tlv(0xA0, der.tlv(0xA4, b"\x30")))))),
        strange("2.5.29.31", b"\x30\x80\x00\x00"),
        strange("2.5.29.46", b"\x04\x00"),
        strange("1.3.6.1.5.5.7.1.1", b"\x30\x03\x02\x01\x05"),
    ],
)
def test_strange_extensions_do_not_hide_a_revocation(root, ca, odd):
    victim = ca.issue(odd)
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(revoked(victim)))
    assert state(revocation, victim, ca) is REVOKED
    assert revocation.issuers(victim) == ()


def test_no_revocation_together_with_where_it_is_published(root, ca):
    never = strange("2.5.29.56", b"\x05\x00")
    for pointer in (cdp("http://crl.example/1"), access(ocsp="http://ocsp.example/")):
        revocation = checker(root, ca.certificate)
        victim = ca.issue(never, pointer)
        assert state(revocation, victim, ca) is UNKNOWN
        revocation.add_crl(ca.crl(revoked(victim)))
        assert state(revocation, victim, ca) is REVOKED


def test_many_points_are_not_all_fetched(root, ca):
    points = x509.CRLDistributionPoints(
        [point for number in range(60) for point in cdp(f"http://{number}.example/crl")]  # as many as are read
    )
    revocation = checker(root, ca.certificate)
    assert state(revocation, ca.issue(points), ca) is UNKNOWN
    assert len(revocation._refresher._jobs) <= 16


def test_deltas_in_directories_are_not_asked_for(ca):
    """The lists of the IGC-Santé name theirs in LDAP only."""
    urls = [f"ldap://annuaire.example/cn={number}" for number in range(3)]
    more = [f"http://crl.example/{number}" for number in range(9)]
    for listed, expected in ((urls, ()), (urls + more, tuple(more[:4]))):
        points = [x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None) for url in listed]
        read = crl.read(ca.crl(extensions=[(x509.FreshestCRL(points), False)]), [ca.certificate])
        assert read.delta_urls == expected


def test_name_with_letters_its_type_does_not_have(root):
    """`é` in a PrintableString: common in old French authorities."""
    attribute = der.sequence(der.oid("2.5.4.3"), der.tlv(0x13, "AC Régionale".encode("latin-1")))
    issuer = der.sequence(der.tlv(0x31, attribute))
    assert name_key(issuer) == name_key(issuer)
    assert name_key(issuer) != name_key(issuer.replace(b"\xe9", b"\xe8"))


# --- Who speaks -------------------------------------------------------------------------------------------------------


def test_authority_of_the_same_name_below_another_anchor(root, ca):
    other = Authority("Autre racine")
    twin = Authority("AC Fictive", other)
    victim = ca.issue()
    revocation = Revocation(
        [root.certificate, other.certificate], [ca.certificate, twin.certificate], clock=lambda: NOW
    )
    assert state(revocation, twin.issue(), twin) is UNKNOWN
    revocation.add_crl(twin.crl())
    assert state(revocation, victim, ca) is UNKNOWN
    assert state(revocation, twin.issue(), twin) is GOOD
    revocation.add_crl(ca.crl(revoked(victim), this=NOW - 2 * HOUR))
    assert state(revocation, victim, ca) is REVOKED


def test_authorities_met_on_paths_help_to_find_the_anchor(root):
    """Several anchors, and an issuer in between that only came with a mail: the key for lists is still recognised."""
    other = Authority("Autre racine")
    between = Authority("AC Intermédiaire", root)
    issuer, signer = Authority("AC Fictive", between), Authority("AC Fictive", root)
    revocation = Revocation([root.certificate, other.certificate], [signer.certificate], clock=lambda: NOW)
    victim = issuer.issue()
    # as a path is asked about: from the anchor downwards
    state(revocation, between.certificate, root)
    state(revocation, issuer.certificate, between)
    revocation.add_crl(signer.crl(revoked(victim)))
    assert state(revocation, victim, issuer) is REVOKED


def test_nobody_on_the_chain_of_a_signer_may_be_revoked(root, ca):
    between = Authority("AC Intermédiaire", root)
    signer = Authority("AC Fictive", between)
    revocation = checker(root, ca.certificate, between.certificate, signer.certificate)
    revocation.add_crl(signer.crl())
    assert state(revocation, ca.issue(), ca) is GOOD
    revocation.add_crl(root.crl(revoked(between.certificate)))
    assert state(revocation, ca.issue(), ca) is UNKNOWN


def test_signer_that_is_not_valid_yet_speaks_later(root, ca):
    now = [NOW]
    signer = Authority("AC Fictive", root, before=NOW + HOUR)
    revocation = checker(root, ca.certificate, signer.certificate, clock=lambda: now[0])
    revocation.add_crl(signer.crl())
    assert state(revocation, ca.issue(), ca) is UNKNOWN
    now[0] += 2 * HOUR
    assert state(revocation, ca.issue(), ca) is GOOD


def test_lists_signed_with_ed448(root, ca):
    """What paths accept, lists accept: one table of algorithms."""
    key = ed448.Ed448PrivateKey.generate()
    extensions = [(x509.KeyUsage(False, False, False, False, False, True, True, False, False), True)]
    certificate = root.sign(name("AC Edwards"), key.public_key(), extensions, ca=True)
    made = x509.CertificateRevocationListBuilder().issuer_name(name("AC Edwards")).last_update(NOW - HOUR)
    data = made.next_update(NOW + DAY).add_revoked_certificate(revoked(5)).sign(key, None).public_bytes(Encoding.DER)
    assert crl.read(data, [certificate]).size == 1
    with pytest.raises(crl.CrlError, match="not signed"):
        crl.read(data[:-1] + bytes([data[-1] ^ 1]), [certificate])


# --- What a list says -------------------------------------------------------------------------------------------------


def test_point_without_a_name_is_no_point(ca):
    for content in (b"", der.tlv(0xA0), der.tlv(0xA1)):
        data = by_hand(ca, b"", extension("2.5.29.28", der.sequence(der.tlv(0xA0, content)), b"\x01\x01\xff"))
        with pytest.raises(crl.CrlError):
            crl.read(data, [ca.certificate])
    flag = der.sequence(der.tlv(0x84, b""))
    with pytest.raises(crl.CrlError):
        crl.read(by_hand(ca, b"", extension("2.5.29.28", flag, b"\x01\x01\xff")), [ca.certificate])


@pytest.mark.parametrize("true", [b"\x01\x01\xff", b"\x01\x01\x01", b"\x01\x81\x01\xff"])
@pytest.mark.parametrize("before", [b"", extension("2.5.29.21", b"\x0a\x01\x01")])
def test_unknown_critical_extension_of_an_entry_however_it_is_spelled(ca, true, before):
    entry = der.sequence(der.integer(5), DATE, der.sequence(before, extension("1.2.3.4", b"\x05\x00", true)))
    with pytest.raises(crl.CrlError, match="critical"):
        crl.read(by_hand(ca, der.sequence(der.integer(9), DATE) + entry), [ca.certificate])


def test_extensions_that_cannot_be_read_make_a_revocation_no_lesser(root, ca):
    victim = ca.issue()
    bad = der.sequence(extension("2.5.29.21", b"\x0a\x01\x01"), extension("2.5.29.24", b"\x18\x03abc"))
    revocation = checker(root, ca.certificate)
    revocation.add_crl(by_hand(ca, der.sequence(der.integer(victim.serial_number), der.time(NOW - HOUR), bad)))
    status = revocation.check(victim, ca.certificate, NOW - DAY)
    assert (status.state, status.reason) == (REVOKED, "keyCompromise")


def test_one_serial_number_very_often_costs_nothing(ca):
    begun = time.thread_time()
    with pytest.raises(crl.CrlError, match="alike"):
        crl.read(by_hand(ca, der.sequence(der.integer(5), DATE) * 100_000), [ca.certificate])
    assert time.thread_time() - begun < 10
    # a few, as careless authorities have them
    assert crl.read(by_hand(ca, der.sequence(der.integer(5), DATE) * 50), [ca.certificate]).size == 50


def test_indirect_list_that_names_an_issuer_in_every_entry(ca):
    def about(common: str) -> bytes:
        names = der.sequence(der.tlv(0xA4, name(common).public_bytes()))
        return der.sequence(extension("2.5.29.29", names, b"\x01\x01\xff"))

    entries = [
        der.sequence(der.integer(serial), DATE, about(f"AC {serial % 2}") if serial % 3 else b"")
        for serial in range(1, 5000)
    ]
    indirect = extension("2.5.29.28", der.sequence(der.tlv(0x84, b"\xff")), b"\x01\x01\xff")
    read = crl.read(by_hand(ca, b"".join(entries), indirect), [ca.certificate])
    issuers = {number: name_key(name(f"AC {number}").public_bytes()) for number in (0, 1)}
    expected = None
    for serial in range(1, 5000):
        if serial % 3:
            expected = serial % 2
        for number, issuer in issuers.items():
            assert (read.find(serial, issuer) is not None) is (number == expected)
    assert read.find(6, name_key(ca.name.public_bytes())) is None


def test_date_of_revocation_still_to_come(root, ca):
    """Local time with a Z behind it: who is listed is revoked."""
    victim, answered = ca.issue(), ca.issue()
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(revoked(victim, NOW + 2 * HOUR)))
    status = revocation.check(victim, ca.certificate, NOW)
    assert (status.state, status.revoked_at) == (REVOKED, NOW - HOUR)
    stapled = ca.ocsp(answered, revoked=NOW + 2 * HOUR)
    assert revocation.check(answered, ca.certificate, NOW, stapled).state is REVOKED


def test_list_in_pem(root, ca):
    victim = ca.issue()
    revocation = checker(root, ca.certificate)
    pem = x509.load_der_x509_crl(ca.crl(revoked(victim))).public_bytes(Encoding.PEM)
    revocation.add_crl(pem)
    assert state(revocation, victim, ca) is REVOKED
    for junk in (pem[:-40], pem.replace(b"\n", b"!", 3), b"-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----"):
        with pytest.raises(crl.CrlError):
            revocation.add_crl(junk)


def test_point_whose_host_is_spelled_otherwise(root, ca):
    certificate = ca.issue(cdp("http://crl.example/Un.crl"))
    other = ca.issue(cdp("http://crl.example/un.crl"))
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(extensions=[idp("HTTP://CRL.example/Un.crl")]))
    assert state(revocation, certificate, ca) is GOOD
    assert state(revocation, other, ca) is UNKNOWN


# --- Replays and clocks -----------------------------------------------------------------------------------------------


def test_list_replayed_at_one_point_hides_nothing_that_came_from_another(root, ca):
    victim = ca.issue(cdp("http://crl.example/a"))
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(this=NOW - 2 * HOUR), url="http://crl.example/a")
    assert state(revocation, victim, ca) is GOOD
    revocation.add_crl(ca.crl(revoked(victim)), url="http://mirror.example/b")
    assert state(revocation, victim, ca) is REVOKED
    assert state(revocation, ca.issue(cdp("http://crl.example/a")), ca) is GOOD


def test_numbers_that_start_again_count_once_the_old_list_has_ended(root, ca):
    url = "http://crl.example/1"
    victim = ca.issue()
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(number=900, this=NOW - 9 * HOUR, until=NOW - 2 * HOUR), url=url)
    for this in (NOW - 9 * HOUR, NOW - 3 * HOUR, NOW - 2 * HOUR):
        with pytest.raises(crl.CrlError, match="older"):
            revocation.add_crl(ca.crl(number=2, this=this), url=url)
    revocation.add_crl(ca.crl(revoked(victim), number=3, this=NOW - HOUR), url=url)
    assert state(revocation, victim, ca) is REVOKED
    with pytest.raises(crl.CrlError, match="older"):
        revocation.add_crl(ca.crl(number=2), url=url)


def test_clocks_of_others_are_a_little_ahead(root, ca):
    certificate = ca.issue()
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(this=NOW + 20 * SECOND))
    assert state(revocation, certificate, ca) is GOOD
    answer = ca.ocsp(certificate, this=NOW + 20 * SECOND)
    assert ocsp.read(answer, certificate.serial_number, ca.certificate, NOW).state is GOOD
    with pytest.raises(crl.CrlError, match="future"):
        revocation.add_crl(ca.crl(this=NOW + 60 * SECOND))


def test_expired_before_one_of_the_lists_for_some_reasons(root, ca):
    """The list that ends first must not decide alone whether absence says anything."""
    stolen = frozenset({ReasonFlags.key_compromise, ReasonFlags.ca_compromise})
    rest = frozenset(ReasonFlags) - stolen - {ReasonFlags.unspecified, ReasonFlags.remove_from_crl}
    certificate = ca.issue(after=NOW - 3 * HOUR)
    revocation = checker(root, ca.certificate)
    at = NOW - 4 * HOUR
    revocation.add_crl(ca.crl(this=NOW - 9 * HOUR, until=NOW + HOUR, extensions=[idp(reasons=stolen)]))
    revocation.add_crl(ca.crl(this=NOW - 9 * HOUR, until=NOW + DAY, extensions=[idp(reasons=rest)]))
    assert state(revocation, certificate, ca, at) is GOOD
    revocation.add_crl(ca.crl(this=NOW - HOUR, until=NOW + 2 * DAY, extensions=[idp(reasons=rest)]))
    assert state(revocation, certificate, ca, at) is UNKNOWN


def test_responder_that_was_revoked_before_it_spoke(root, ca):
    certificate = ca.issue()
    delegate = ca.responder()
    revocation = checker(root, ca.certificate)
    superseded = revoked(delegate[1], NOW - 4 * HOUR, ReasonFlags.superseded)
    revocation.add_crl(ca.crl(superseded, this=NOW - 2 * HOUR))
    stapled = ca.ocsp(certificate, by=delegate, this=NOW - HOUR)
    assert revocation.check(certificate, ca.certificate, NOW - 5 * HOUR, stapled).source == "crl"


def test_responder_of_unknown_standing_revokes_but_does_not_clear(root, ca):
    """In soft mode "unknown" passes: somebody the issuer delegated says that it must not."""
    certificate, delegate = ca.issue(), ca.responder()
    revocation = checker(root, ca.certificate)
    for options, expected in (({}, UNKNOWN), ({"revoked": NOW - HOUR}, REVOKED)):
        stapled = ca.ocsp(certificate, by=delegate, **options)
        assert revocation.check(certificate, ca.certificate, NOW, stapled).state is expected
    revocation.add_crl(ca.crl(revoked(delegate[1])))
    assert revocation.check(certificate, ca.certificate, NOW, stapled).state is GOOD


def test_serial_number_that_was_never_used(root, ca):
    """RFC 6960 §2.2: on hold since 1970 means that nobody ever issued it; no later list ends that hold."""
    forged = ca.issue()
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(this=NOW))
    hold = ReasonFlags.certificate_hold
    stapled = ca.ocsp(forged, revoked=datetime(1970, 1, 1, tzinfo=UTC), reason=hold)
    assert revocation.check(forged, ca.certificate, NOW, stapled).state is REVOKED
    suspended = ca.ocsp(forged, revoked=NOW - DAY, reason=hold)
    assert revocation.check(forged, ca.certificate, NOW, suspended).state is GOOD


def test_response_that_breaks_its_parser_does_not_hide_a_revocation(root, ca, monkeypatch):
    victim = ca.issue()
    revocation = checker(root, ca.certificate)
    revocation.add_crl(ca.crl(revoked(victim)))

    def broken(*_: object) -> None:
        raise x509.DuplicateExtension("twice", x509.ObjectIdentifier("1.2.3"))

    monkeypatch.setattr(ocsp, "_read", broken)
    assert revocation.check(victim, ca.certificate, NOW, ca.ocsp(victim)).state is REVOKED
    assert revocation.check(victim, ca.certificate, NOW, b"\x30" * 10_000_000).state is REVOKED


# --- What is wanted, and the clock ------------------------------------------------------------------------------------


class Unreachable:
    """A network where nobody answers."""

    def get(self, *_: object) -> bytes:
        raise FetchError("nobody answers")

    post = get


def wake(revocation: Revocation) -> None:
    with revocation._refresher._changed:
        revocation._refresher._changed.notify_all()
    assert revocation.settled(10)


def test_what_is_fetched_no_more_makes_room(root, ca, monkeypatch):
    """Authorities that give every certificate a point of its own must not use up what a gateway can remember."""
    monkeypatch.setattr(refresher, "MAX_JOBS", 20)
    now = [NOW]
    revocation = Revocation([root.certificate], [ca.certificate], fetcher=Unreachable(), clock=lambda: now[0])
    revocation.start()
    try:
        for number in range(30):
            state(revocation, ca.issue(cdp(f"http://crl.example/{number}")), ca)
        assert revocation.settled(10)
        assert len(revocation.missing()) == 20
        now[0] += timedelta(minutes=61)
        state(revocation, ca.issue(cdp("http://crl.example/later")), ca)
        assert "http://crl.example/later" in revocation._wanting
        assert len(revocation._wanting) <= 20
        now[0] += FORGOTTEN + DAY
        wake(revocation)
        assert revocation.missing() == []
        assert not revocation._wanting
    finally:
        revocation.stop()


def test_strangers_who_name_places_do_not_hold_up_revocation(root, ca):
    """A forged certificate needs only the name of an anchor's child for its URLs to be looked at."""
    blocked = threading.Event()

    class Slow(Unreachable):
        def get(self, url: str, *_: object) -> bytes:
            if "stranger" in url:
                blocked.wait(20)
                raise FetchError("nothing")
            return ca.crl()

    revocation = Revocation([root.certificate], [ca.certificate], fetcher=Slow(), clock=lambda: NOW)
    revocation.start()
    try:
        for number in range(300):
            revocation.issuers(ca.issue(access(issuers=f"http://stranger.example/{number}")))
        assert len(revocation._finder._jobs) == 256
        certificate = ca.issue(cdp("http://crl.example/1"))
        state(revocation, certificate, ca)
        assert revocation._refresher.settled(10)
        assert state(revocation, certificate, ca) is GOOD
    finally:
        blocked.set()
        revocation.stop()


def test_clock_that_was_ahead_and_is_set_right():
    now = [NOW + 400 * DAY]
    done = []
    threads = Refresher(lambda: now[0], threads=1)
    threads.want("list", lambda: done.append(now[0]))
    threads.start()
    try:
        assert threads.settled(10)
        assert done == [NOW + 400 * DAY]
        now[0] = NOW
        with threads._changed:
            threads._changed.notify_all()
        assert threads.settled(10)
        assert done[1:] == [NOW]
        assert NOW < threads.state("list").due <= NOW + LATEST
    finally:
        threads.stop()


@pytest.mark.parametrize("inside", ["10.0.0.1", "169.254.169.254", "127.0.0.1", "8.8.8.8"])
@pytest.mark.parametrize("prefix", ["2606:4700::5efe:", "2606:4700::200:5efe:", "64:ff9b::", "::ffff:"])
def test_addresses_within_addresses(prefix, inside):
    assert is_public(ipaddress.ip_address(prefix + inside)) is (inside == "8.8.8.8")


# --- Disk -------------------------------------------------------------------------------------------------------------


HEAD = {"kind": "crl", "url": "http://a.example/", "serial": "0", "issuers": [], "as_of": None, "ends": None}


@pytest.mark.parametrize(
    "head",
    [
        b"[" * 100_000,
        b'{"a":' * 20_000,
        json.dumps(HEAD | {"url": "\ud800"}).encode(),
        json.dumps(HEAD | {"issuers": 5}).encode(),
        json.dumps(HEAD | {"serial": "x"}).encode(),
        json.dumps(HEAD | {"as_of": "2026-01-01T00:00:00"}).encode(),
        json.dumps(HEAD | {"as_of": 5}).encode(),
        b"5",
        b"null",
        b"\xff",
    ],
)
def test_files_that_somebody_else_wrote(root, ca, tmp_path, head):
    (tmp_path / ("0" * 64 + ".rev")).write_bytes(b"relais-revocation-1\n" + head + b"\nbody")
    (tmp_path / "directory.tmp").mkdir()
    (tmp_path / "directory.rev").mkdir()
    assert kept(tmp_path) == [] or head.startswith(b"{")
    for each in kept(tmp_path):
        assert each.as_of is None
    revocation = Revocation([root.certificate], [ca.certificate], RevocationOptions(cache=tmp_path), clock=lambda: NOW)
    revocation.start()
    revocation.stop()
    assert revocation.held() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory.rev", "directory.tmp"]


def test_large_record_in_place_of_many_small_ones(tmp_path):
    disk = DiskCache(tmp_path / "cache", 100_000, max_files=50)
    assert list(disk.load(100_000)) == []
    for serial in range(60):
        disk.store(Record("ocsp", "", serial, (), b"x" * 100))
    assert len(disk.names()) == 50
    disk.store(Record("ocsp", "", 59, (), b"y" * 100))
    assert len(disk.names()) == 50
    disk.store(Record("crl", "http://a.example/", 0, (), b"z" * 99_000))
    assert len(disk.names()) <= 5
    assert {path.name for path in (tmp_path / "cache").iterdir()} == set(disk.names())
