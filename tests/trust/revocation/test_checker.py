"""The whole of it over loopback: fetched, kept, refreshed, asked again after a restart (pitfalls D21, D22)."""

from __future__ import annotations

import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as builder

from tests.trust.revocation.authority import DAY, HOUR, NOW, Authority, access, cdp, reply, revoked, site
from trust.revocation import RevocationState
from trust.revocation.checker import Revocation, RevocationOptions
from trust.revocation.fetching import FetchOptions

GOOD, REVOKED, UNKNOWN, STALE = (
    RevocationState.GOOD,
    RevocationState.REVOKED,
    RevocationState.UNKNOWN,
    RevocationState.STALE,
)


@pytest.fixture(scope="module")
def root() -> Authority:
    return Authority("Racine")


@pytest.fixture(scope="module")
def ca(root) -> Authority:
    return Authority("AC Fictive", root)


@pytest.fixture
def server():
    with site() as found:
        yield found


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def build(root, ca, clock, tmp_path):
    """Make checkers that are stopped at the end."""
    made = []

    def make(*, cache=None, fetch_seconds=2.0, allowed=frozenset({"127.0.0.1"}), **options) -> Revocation:
        fetch = FetchOptions(allowed=allowed, seconds=fetch_seconds)
        revocation = Revocation(
            [root.certificate],
            [ca.certificate],
            RevocationOptions(cache=cache, fetch=fetch, **options),
            clock=clock,
        )
        revocation.start()
        made.append(revocation)
        return revocation

    yield make
    for each in made:
        each.stop()


def settle(revocation, certificate, ca, at=NOW):
    """Ask, let what is missing be fetched, ask again."""
    revocation.check(certificate, ca.certificate, at)
    assert revocation.settled(10)
    return revocation.check(certificate, ca.certificate, at)


def test_list_is_fetched_once_for_everybody(build, server, ca):
    certificates = [ca.issue(cdp(f"{server.url}/crl")) for _ in range(20)]
    server.pages["/crl"] = ca.crl(revoked(certificates[3]))
    revocation = build()
    with ThreadPoolExecutor(8) as threads:
        first = list(threads.map(lambda each: revocation.check(each, ca.certificate, NOW).state, certificates))
    assert UNKNOWN in first
    assert revocation.settled(10)
    states = [revocation.check(each, ca.certificate, NOW).state for each in certificates]
    assert states == [REVOKED if number == 3 else GOOD for number in range(20)]
    assert server.asked == ["/crl"]
    (held,) = revocation.held()
    assert (held.entries, held.next_update, held.failures) == (1, NOW + DAY, 0)


def test_checking_never_waits_for_the_network(build, server, ca):
    server.pages["/crl"] = lambda *_: server.closing.wait(10)
    certificate = ca.issue(cdp(f"{server.url}/crl"))
    revocation = build()
    done = threading.Event()
    threading.Thread(target=lambda: (revocation.check(certificate, ca.certificate, NOW), done.set())).start()
    assert done.wait(1)


@pytest.mark.parametrize(
    "page", [b"", b"<html>not here</html>", b"\x30\x82\xff\xff", None, "truncated", "huge", "foreign"]
)
def test_what_is_no_list_is_not_used(build, server, root, ca, page):
    foreign = Authority("AC Fictive", None)
    special = {"truncated": ca.crl()[:-9], "huge": b"\x30" * 20_000, "foreign": foreign.crl()}
    if page is not None:
        server.pages["/crl"] = special.get(page, page) if isinstance(page, str) else page
    certificate = ca.issue(cdp(f"{server.url}/crl"))
    revocation = build(max_crl_bytes=10_000)
    assert settle(revocation, certificate, ca).state is UNKNOWN
    (missing,) = revocation.missing()
    assert missing.failures == 1
    assert missing.error


def test_failures_are_tried_again_after_a_pause(build, server, ca, clock):
    certificate = ca.issue(cdp(f"{server.url}/crl"))
    revocation = build()
    for attempts in (1, 2):
        assert settle(revocation, certificate, ca).state is UNKNOWN
        assert len(server.asked) == attempts
        assert settle(revocation, certificate, ca).state is UNKNOWN
        assert len(server.asked) == attempts
        clock.now += timedelta(minutes=2)
        wake(revocation)
    server.pages["/crl"] = ca.crl()
    clock.now += timedelta(minutes=10)
    wake(revocation)
    assert settle(revocation, certificate, ca).state is GOOD


def wake(revocation: Revocation) -> None:
    """The threads sleep by the wall clock; tests have their own."""
    with revocation._refresher._changed:
        revocation._refresher._changed.notify_all()
    assert revocation.settled(10)


def test_second_url_of_the_same_point_is_the_way_around(build, server, ca):
    server.pages["/b"] = ca.crl()
    certificate = ca.issue(cdp("ldap://ldap.example/cn=a", f"{server.url}/a", f"{server.url}/b"))
    revocation = build()
    assert settle(revocation, certificate, ca).state is UNKNOWN
    assert settle(revocation, certificate, ca).state is GOOD


def test_lists_are_renewed_ahead_of_their_end(build, server, ca, clock):
    certificate = ca.issue(cdp(f"{server.url}/crl"))
    server.pages["/crl"] = ca.crl(until=NOW + HOUR)
    revocation = build()
    assert settle(revocation, certificate, ca).state is GOOD
    server.pages["/crl"] = ca.crl(revoked(certificate, NOW + HOUR / 2), this=NOW + HOUR / 2, until=NOW + 2 * HOUR)
    clock.now = NOW + timedelta(minutes=55)
    wake(revocation)
    assert revocation.check(certificate, ca.certificate, clock.now).state is REVOKED


def test_a_rolled_back_list_is_not_taken(build, server, ca, clock):
    certificate = ca.issue(cdp(f"{server.url}/crl"))
    old = ca.crl(this=NOW - 2 * HOUR)
    server.pages["/crl"] = ca.crl(revoked(certificate), until=NOW + HOUR)
    revocation = build()
    assert settle(revocation, certificate, ca).state is REVOKED
    server.pages["/crl"] = old
    clock.now = NOW + timedelta(minutes=55)
    wake(revocation)
    assert revocation.check(certificate, ca.certificate, NOW).state is REVOKED
    assert revocation.held()[0].failures == 1


def test_delta_that_a_list_points_to(build, server, ca):
    certificate = ca.issue(cdp(f"{server.url}/crl"))
    freshest = x509.FreshestCRL(
        [x509.DistributionPoint([x509.UniformResourceIdentifier(f"{server.url}/delta")], None, None, None)]
    )
    server.pages["/crl"] = ca.crl(number=50, extensions=[(freshest, False)])
    server.pages["/delta"] = ca.crl(revoked(certificate), number=51, extensions=[(x509.DeltaCRLIndicator(50), True)])
    assert settle(build(), certificate, ca).state is REVOKED


def answer(ca, certificate, **options):
    def page(handler, body):
        asked = builder.load_der_ocsp_request(body)
        assert asked.serial_number == certificate.serial_number
        nonce = asked.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
        reply(handler, ca.ocsp(certificate, **({"nonce": nonce} | options)))

    return page


def test_responder_is_asked_when_there_is_no_list(build, server, ca):
    certificate = ca.issue(access(ocsp=f"{server.url}/ocsp"))
    server.pages["/ocsp"] = answer(ca, certificate)
    revocation = build(nonce="require")
    status = settle(revocation, certificate, ca)
    assert (status.state, status.source) == (GOOD, "ocsp")
    settle(revocation, certificate, ca)
    assert server.asked == ["/ocsp"]


@pytest.mark.parametrize("options", [{"nonce": b"x" * 32}, {"nonce": None}])
def test_replayed_answers(build, server, ca, options):
    certificate = ca.issue(access(ocsp=f"{server.url}/ocsp"))
    server.pages["/ocsp"] = answer(ca, certificate, **options)
    assert settle(build(nonce="require"), certificate, ca).state is UNKNOWN


def test_lists_come_before_responders_and_responders_help_when_lists_fail(build, server, ca):
    certificate = ca.issue(cdp(f"{server.url}/crl"), access(ocsp=f"{server.url}/ocsp"))
    server.pages["/ocsp"] = answer(ca, certificate)
    server.pages["/crl"] = ca.crl()
    assert settle(build(), certificate, ca).source == "crl"
    assert server.asked == ["/crl"]
    del server.pages["/crl"]
    revocation = build()
    settle(revocation, certificate, ca)
    assert settle(revocation, certificate, ca).source == "ocsp"


@pytest.mark.parametrize("url", ["http://169.254.169.254/crl", "http://localhost:8080/crl", "http://10.0.0.1/crl"])
def test_certificates_cannot_steer_us_inside(build, ca, url):
    revocation = build(allowed=frozenset())
    certificate = ca.issue(cdp(url), access(ocsp=url))
    assert settle(revocation, certificate, ca).state is UNKNOWN
    error = revocation.missing()[0].error
    assert "internal" in error or ("localhost" in url and "cannot be resolved" in error)  # a system without /etc/hosts


def test_cache_survives_a_restart(build, server, root, ca, tmp_path):
    directory = tmp_path / "state" / "revocation"
    second = Authority("AC Sans Liste", root)
    listed, asked = ca.issue(cdp(f"{server.url}/crl")), second.issue(access(ocsp=f"{server.url}/ocsp"))
    server.pages["/crl"] = ca.crl(revoked(listed))
    server.pages["/ocsp"] = answer(second, asked)
    first = build(cache=directory)
    assert settle(first, listed, ca).state is REVOKED
    assert settle(first, asked, second).state is GOOD
    first.stop()
    server.pages.clear()
    again = build(cache=directory)
    assert again.check(listed, ca.certificate, NOW).state is REVOKED
    assert again.check(asked, second.certificate, NOW).source == "ocsp"
    assert again.settled(10)
    assert server.asked == ["/crl", "/ocsp"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_cache_is_not_believed_for_being_there(build, server, root, ca, tmp_path):
    certificate = ca.issue(cdp(f"{server.url}/crl"))
    server.pages["/crl"] = ca.crl(revoked(certificate))
    first = build(cache=tmp_path)
    assert settle(first, certificate, ca).state is REVOKED
    first.stop()
    server.pages.clear()
    (path,) = tmp_path.glob("*.rev")
    whole = path.read_bytes()
    for spoilt in (b"", whole[:-1], whole[:40], whole.replace(b"revocation-1", b"revocation-9"), b"\0" * 500):
        path.write_bytes(spoilt)
        assert build(cache=tmp_path).check(certificate, ca.certificate, NOW).state is UNKNOWN
        path.unlink(missing_ok=True)
    # a whole record, put there by somebody with an authority of the same name
    impostor = Authority("AC Fictive", None)
    head, line, _ = whole.split(b"\n", 2)
    import base64
    import json

    record = json.loads(line)
    record["issuers"] = [base64.b64encode(impostor.certificate.public_bytes(Encoding.DER)).decode()]
    path.write_bytes(head + b"\n" + json.dumps(record).encode() + b"\n" + impostor.crl())
    assert build(cache=tmp_path).check(certificate, ca.certificate, NOW).state is UNKNOWN


def test_cache_is_bounded(build, server, ca, tmp_path):
    revocation = build(cache=tmp_path, max_cache_bytes=5_000)
    for number in range(12):
        server.pages[f"/{number}"] = ca.crl()
        settle(revocation, ca.issue(cdp(f"{server.url}/{number}")), ca)
    files = list(tmp_path.iterdir())
    assert 0 < len(files) < 12
    assert sum(path.stat().st_size for path in files) <= 5_000


def test_issuers_are_found_for_the_next_time(build, server, root):
    middle = Authority("AC Intermediaire", root)
    leaf = middle.issue(access(issuers=f"{server.url}/ca.cer"))
    server.pages["/ca.cer"] = middle.certificate.public_bytes(Encoding.DER)
    revocation = build()
    assert revocation.issuers(leaf) == ()
    assert revocation.settled(10)
    assert revocation.issuers(leaf) == (middle.certificate,)
    # what has another name is not an issuer
    server.pages["/other.cer"] = root.certificate.public_bytes(Encoding.DER)
    other = middle.issue(access(issuers=f"{server.url}/other.cer"))
    revocation.issuers(other)
    assert revocation.settled(10)
    assert revocation.issuers(other) == ()


def test_certificates_that_cannot_be_read_are_unknown(build, ca):
    broken = ca.issue(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.31"), b"\x30\x03junk"))
    assert build().check(broken, ca.certificate, NOW).state is UNKNOWN


def test_the_same_list_again_and_memory_that_is_bounded(build, server, ca, clock):
    first, second = ca.issue(cdp(f"{server.url}/1")), ca.issue(cdp(f"{server.url}/2"))
    server.pages["/1"] = ca.crl(revoked(first), until=NOW + HOUR)
    server.pages["/2"] = ca.crl(*(revoked(serial) for serial in range(1, 300)), revoked(second))
    revocation = build(max_memory_bytes=20_000)
    assert settle(revocation, first, ca).state is REVOKED
    (held,) = revocation._holdings.all()
    clock.now = NOW + timedelta(minutes=55)
    wake(revocation)
    assert server.asked == ["/1", "/1"]
    assert revocation._holdings.all() == [held]
    assert settle(revocation, second, ca).state is REVOKED
    assert sum(each.octets for each in revocation.held()) <= 20_000
    tight = build(max_memory_bytes=100)
    settle(tight, first, ca)
    settle(tight, second, ca)
    assert [each.url for each in tight.held()] == [f"{server.url}/2"]
