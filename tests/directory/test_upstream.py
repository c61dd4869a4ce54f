"""Other people's LDAP directories: real slapd servers found by SRV records in a real DNS server; one of them down."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509

from directory.entries import from_recipient
from directory.pool import DirectoryUnavailableError
from directory.records import MailboxKind, Recipient
from directory.srv import SrvLookup, SrvRecord, in_order
from directory.upstream import UpstreamDirectories, UpstreamOptions, names
from tests.directory.conftest import BASE, Server, certificate, key_usage, new_server
from tests.support.dns_server import DnsServer, Fault, dns_server
from tests.support.loops import on_a_loop_of_its_own
from tests.support.private import free_port

ADDRESS = "marie.blanc@demo-loin.mssante.fr"
DOMAIN = "demo-loin.mssante.fr"


def named(*alternatives: x509.GeneralName, usage: str = "key_agreement") -> x509.Certificate:
    return certificate("far", x509.SubjectAlternativeName(alternatives), key_usage(usage))


MINE = named(x509.RFC822Name(ADDRESS))
SIGNING = named(x509.RFC822Name(ADDRESS), usage="digital_signature")
SOMEBODY_S = named(x509.RFC822Name("somebody@demo-loin.mssante.fr"))
ALL = named(x509.DNSName(DOMAIN))


@pytest.fixture(scope="module")
def far(server_files: Path) -> Iterator[Server]:
    with new_server(server_files) as server:
        mailbox = Recipient(ADDRESS, MailboxKind.PER, "Dr Marie BLANC", (MINE, SOMEBODY_S), (SIGNING,))
        # anonymous readers may be shown no more than this directory shows the public
        server.slapd.load([from_recipient(mailbox, BASE)])
        server.start()
        yield server


def options(far: Server, *servers: str, **changes: object) -> UpstreamOptions:
    values = {"servers": servers or (far.slapd.ldaps_uri,), "ca_file": far.ca, "timeout_seconds": 5.0}
    return UpstreamOptions(**(values | changes))  # type: ignore[arg-type]


def test_only_what_names_the_address_and_encrypts(far: Server) -> None:
    upstream = UpstreamDirectories([options(far)])
    assert upstream.certificates(ADDRESS.upper()) == (MINE,)
    assert upstream.certificates("nobody@demo-loin.mssante.fr") == ()
    assert upstream.certificates("*)(mail=*") == ()


def test_a_base_may_be_given_and_may_be_wrong(far: Server) -> None:
    assert UpstreamDirectories([options(far, base=BASE)]).certificates(ADDRESS) == (MINE,)
    with pytest.raises(DirectoryUnavailableError):  # it proves nothing of the address
        UpstreamDirectories([options(far, base="dc=nowhere")]).certificates(ADDRESS)


def test_a_server_that_is_silent_is_left_alone_for_a_while() -> None:
    """One that accepts and says nothing costs its time-out once, and not each mail's."""
    now = [0.0]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"ldaps://127.0.0.1:{silent.getsockname()[1]}"
        options = UpstreamOptions(servers=(uri,), timeout_seconds=0.3)
        upstream = UpstreamDirectories([options], clock=lambda: now[0])
        spent = []
        for moment in (0.0, 1.0, 1.0, 11.0):
            now[0] = moment
            started = time.monotonic()
            with pytest.raises(DirectoryUnavailableError):
                upstream.certificates(ADDRESS)
            spent.append(time.monotonic() - started)
    assert max(spent) < 4.0 and spent[0] > 0.25 < spent[3] and max(spent[1:3]) < 0.25


def test_a_server_that_lies_is_passed_over_for_one_that_does_not(far: Server, server_files: Path) -> None:
    """The first has another's certificate under the address."""
    with new_server(server_files) as liar:
        liar.slapd.load([from_recipient(Recipient(ADDRESS, MailboxKind.PER, "Dr", (SOMEBODY_S, ALL)), BASE)])
        liar.start()
        upstream = UpstreamDirectories([options(far, liar.slapd.ldaps_uri, far.slapd.ldaps_uri)])
        assert upstream.certificates(ADDRESS) == (MINE,)
        assert UpstreamDirectories([options(far, liar.slapd.ldaps_uri)]).certificates(ADDRESS) == ()


def test_what_the_dns_calls_a_server_may_be_nonsense() -> None:
    lookup = lambda domain: [SrvRecord(0, 0, 636, "a b[%]"), SrvRecord(0, 0, 99999, "x" * 300)]  # noqa: E731
    with pytest.raises(DirectoryUnavailableError):
        UpstreamDirectories([UpstreamOptions(timeout_seconds=0.5)], lookup).certificates(ADDRESS)


def test_one_of_several_is_down(far: Server) -> None:
    down = f"ldaps://127.0.0.1:{free_port()}"
    assert UpstreamDirectories([options(far, down, far.slapd.ldaps_uri)]).certificates(ADDRESS) == (MINE,)
    assert UpstreamDirectories([options(far, far.slapd.ldaps_uri, down)]).certificates("x@demo-loin.mssante.fr") == ()
    with pytest.raises(DirectoryUnavailableError):
        UpstreamDirectories([options(far, down, down)]).certificates(ADDRESS)


def test_a_server_nobody_vouches_for_is_not_believed(far: Server, server_files: Path) -> None:
    with pytest.raises(DirectoryUnavailableError):
        UpstreamDirectories([options(far, ca_file=server_files / "other.pem")]).certificates(ADDRESS)


def test_each_is_asked_about_its_domains_only(far: Server) -> None:
    down = f"ldaps://127.0.0.1:{free_port()}"
    other = options(far, down, domains=frozenset({"elsewhere.mssante.fr"}))
    upstream = UpstreamDirectories([other, options(far, domains=frozenset({DOMAIN}))])
    assert upstream.certificates(ADDRESS) == (MINE,)
    assert upstream.certificates("x@sub.demo-loin.mssante.fr") == ()
    with pytest.raises(DirectoryUnavailableError):
        upstream.certificates("x@elsewhere.mssante.fr")


def test_answers_are_remembered_and_silence_is_not(far: Server) -> None:
    asked = []

    def lookup(domain: str) -> list[SrvRecord]:
        asked.append(domain)
        return []

    now = [0.0]
    upstream = UpstreamDirectories([UpstreamOptions(missing_seconds=60.0, entries=2)], lookup, lambda: now[0])
    for _ in range(3):
        assert upstream.certificates(ADDRESS) == ()
    assert asked == [DOMAIN]
    now[0] = 61.0
    upstream.certificates(ADDRESS)
    upstream.certificates("a@b.fr")
    upstream.certificates("c@d.fr")
    upstream.certificates(ADDRESS)  # forgotten for the other two
    assert asked == [DOMAIN, DOMAIN, "b.fr", "d.fr", DOMAIN]


def dns() -> AbstractContextManager[DnsServer]:
    """A DNS server for one who asks synchronously."""
    return on_a_loop_of_its_own(dns_server())


def test_servers_by_srv_records_the_preferred_down(far: Server) -> None:
    port = urlsplit(far.slapd.ldaps_uri).port
    with dns() as held:
        held.add(f"_ldap._tcp.{DOMAIN}", "SRV", f"20 0 {port} 127.0.0.1.", f"10 0 {free_port()} 127.0.0.1.")
        held.add("_ldap._tcp.none.mssante.fr", "SRV", "0 0 0 .")
        held.faults["_ldap._tcp.silent.mssante.fr"] = Fault.SERVFAIL
        lookup = SrvLookup([held.address], 2.0)
        found = in_order(lookup(DOMAIN))
        assert [record.priority for record in found] == [10, 20] and found[1].port == port
        assert lookup("none.mssante.fr") == [] and lookup("absent.mssante.fr") == []
        with pytest.raises(DirectoryUnavailableError):
            lookup("silent.mssante.fr")
        with pytest.raises(DirectoryUnavailableError):
            UpstreamDirectories([UpstreamOptions()], lookup).certificates("x@silent.mssante.fr")
        # the test's slapd speaks ldaps only: the records' ports are what counts here
        servers = tuple(f"ldaps://{record.target}:{record.port}" for record in found)
        assert UpstreamDirectories([options(far, *servers)]).certificates(ADDRESS) == (MINE,)


def test_priority_decides_and_weight_draws() -> None:
    heavy, light, never = SrvRecord(1, 300, 389, "heavy"), SrvRecord(1, 100, 389, "light"), SrvRecord(2, 9, 389, "last")
    zero = SrvRecord(1, 0, 389, "zero")
    first = Counter(in_order([never, light, heavy])[0].target for _ in range(4000))
    assert first["last"] == 0 and 0.62 < first["heavy"] / 4000 < 0.88
    assert [record.target for record in in_order([never, light, heavy], lambda most: 0)] == ["light", "heavy", "last"]
    assert in_order([heavy, zero], lambda most: 0)[0] == zero
    assert in_order([heavy, zero], lambda most: most)[0] == heavy
    assert sorted(record.target for record in in_order([zero, heavy, light, never])) == [
        "heavy",
        "last",
        "light",
        "zero",
    ]


def test_whom_a_certificate_speaks_for() -> None:
    assert names(MINE, ADDRESS) and names(ALL, DOMAIN)
    assert not names(ALL, ADDRESS) and not names(ALL, "sub." + DOMAIN) and not names(MINE, DOMAIN)
    both = named(x509.RFC822Name(ADDRESS), x509.DNSName(DOMAIN))
    assert names(both, ADDRESS) and not names(both, DOMAIN)
    assert not names(certificate("bare", key_usage("key_agreement")), DOMAIN)


def test_only_ldap_uris() -> None:
    with pytest.raises(ValueError, match="ldap"):
        UpstreamDirectories([UpstreamOptions(servers=("http://127.0.0.1",))])
