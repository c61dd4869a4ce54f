"""Fetchers that cannot be steered: addresses, redirects, sizes, time (pitfall D22)."""

from __future__ import annotations

import ipaddress
import os
import socket
import time

import pytest

from tests.trust.revocation.authority import reply, site
from trust.revocation.fetching import Fetcher, FetchError, FetchOptions, FetchRefusedError, RateLimitedError, is_public


@pytest.fixture
def server():
    with site() as found:
        yield found


def fetcher(server, **options) -> Fetcher:
    return Fetcher(FetchOptions(allowed=frozenset({f"127.0.0.1:{server.port}"}), **options))


def test_get_and_post(server):
    server.pages["/crl?x=1"] = b"list"
    server.pages["/ocsp"] = lambda handler, body: reply(handler, body[::-1] + handler.headers["Content-Type"].encode())
    fetch = fetcher(server)
    assert fetch.get(f"{server.url}/crl?x=1", 100) == b"list"
    assert fetch.post(f"{server.url}/ocsp", b"abc", "application/ocsp-request", 100) == b"cbaapplication/ocsp-request"
    with pytest.raises(FetchError, match="404"):
        fetch.get(f"{server.url}/nothing", 100)


@pytest.mark.parametrize(
    "url",
    [
        "ldap://ldap.example/cn=CRL",
        "file:///etc/passwd",
        "ftp://host.example/crl",
        "gopher://host.example/",
        "//host.example/crl",
        "http:///crl",
        "http://user@host.example/crl",
        "http://user:secret@host.example/crl",
        "http://host.example:25/crl",
        "http://host.example:99999/",
        "http://host.example:x/",
        "http://host.example/a b",
        "http://host.example/\r\nX: y",
        "http://ho\tst.example/",
        "http://hôte.example/",
        "http://host.example\\@127.0.0.1/",
        "http://[::1/",
        "http://%6c%6f/",
        "http://-/",
        "http://host.example/" + "x" * 2048,
    ],
)
def test_urls_that_are_not_gone_to(url):
    def never(*_):
        raise AssertionError("connected")

    with pytest.raises(FetchRefusedError):
        Fetcher(resolve=lambda *_: ["93.184.215.14"], connect=never).get(url, 100)


INTERNAL = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "::7f00:1",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", INTERNAL)
def test_internal_addresses(address):
    assert not is_public(ipaddress.ip_address(address))

    def never(*_):
        raise AssertionError("connected")

    for host in ("crl.example", f"[{address}]" if ":" in address else address):
        with pytest.raises(FetchRefusedError, match="internal"):
            Fetcher(resolve=lambda *_: [address], connect=never).get(f"http://{host}/crl", 100)


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f000001", "127.1", "0177.0.0.1"])
def test_spellings_of_loopback(host):
    with pytest.raises(FetchError):
        Fetcher().get(f"http://{host}/", 100)


def test_the_checked_address_is_the_one_connected_to(server):
    """DNS that answers differently the second time is not asked a second time."""
    server.pages["/crl"] = b"list"
    answers = [["10.0.0.1", "93.184.215.14"], ["127.0.0.1"]]
    went_to = []

    def connect(address, port, seconds):
        went_to.append((address, port))
        return socket.create_connection(("127.0.0.1", server.port), seconds)

    fetch = Fetcher(resolve=lambda *_: answers.pop(0), connect=connect)
    assert fetch.get("http://crl.example/crl", 100) == b"list"
    assert went_to == [("93.184.215.14", 80)]
    with pytest.raises(FetchRefusedError):
        fetch.get("http://crl.example/crl", 100)
    assert len(went_to) == 1


def test_redirects(server):
    server.pages["/end"] = b"list"
    server.pages["/away"] = lambda handler, _: reply(handler, b"", 302, Location="/end")
    server.pages["/2"] = lambda handler, _: reply(handler, b"", 301, Location=f"{server.url}/away")
    server.pages["/3"] = lambda handler, _: reply(handler, b"", 307, Location="2")
    server.pages["/4"] = lambda handler, _: reply(handler, b"", 308, Location="/3")
    server.pages["/round"] = lambda handler, _: reply(handler, b"", 302, Location="/round")
    fetch = fetcher(server)
    assert fetch.get(f"{server.url}/3", 100) == b"list"
    for path in ("/4", "/round"):
        with pytest.raises(FetchRefusedError, match="too often"):
            fetch.get(server.url + path, 100)
    with pytest.raises(FetchError, match="302"):
        fetch.post(f"{server.url}/away", b"x", "text/plain", 100)


@pytest.mark.parametrize(
    "target",
    [
        "https://crl.example/",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:1/",
        "http://a@b/",
    ],
)
def test_redirects_to_where_we_do_not_go(server, target):
    server.pages["/"] = lambda handler, _: reply(handler, b"", 302, Location=target)
    with pytest.raises(FetchRefusedError):
        fetcher(server).get(f"{server.url}/", 100)


def test_sizes(server):
    server.pages["/huge"] = b"x" * 101
    server.pages["/exact"] = b"x" * 100

    def endless(handler, _):
        handler.send_response(200)
        handler.end_headers()
        while not server.closing.is_set():
            handler.wfile.write(b"x" * 65536)

    def chunked(handler, _):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"4\r\nlist\r\n0\r\n\r\n")

    server.pages["/endless"] = endless
    server.pages["/chunked"] = chunked
    server.pages["/short"] = lambda handler, _: reply(handler, b"x", 200, Content_Length="50")
    server.pages["/packed"] = lambda handler, _: reply(handler, b"x", 200, Content_Encoding="gzip")
    fetch = fetcher(server)
    assert len(fetch.get(f"{server.url}/exact", 100)) == 100
    assert fetch.get(f"{server.url}/chunked", 100) == b"list"
    for path, why in (
        ("huge", "announces more"),
        ("endless", "more"),
        ("short", "less|Incomplete"),
        ("packed", "encoding"),
    ):
        with pytest.raises(FetchError, match=why):
            fetch.get(f"{server.url}/{path}", 100)


def drip(server, octets: bytes):
    def page(handler, _):
        for octet in octets:
            if server.closing.wait(0.05):
                return
            handler.wfile.write(bytes([octet]))

    return page


def test_time_is_limited_over_the_whole_exchange(server):
    head = b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n"
    server.pages["/hangs"] = lambda *_: server.closing.wait(5)
    server.pages["/drips"] = drip(server, head + b"x" * 1000)
    server.pages["/drips-body"] = lambda handler, body: (
        handler.wfile.write(head),
        drip(server, b"x" * 1000)(handler, body),
    )
    for path in ("/hangs", "/drips", "/drips-body"):
        begun = time.monotonic()
        with pytest.raises(FetchError, match="TimeoutError"):
            fetcher(server, seconds=0.3).get(server.url + path, 5000)
        assert time.monotonic() - begun < 2


def test_not_http(server):
    server.pages["/"] = lambda handler, _: handler.wfile.write(b"\x00\xff garbage" * 10)
    server.pages["/header"] = lambda handler, _: handler.wfile.write(b"HTTP/1.0 200 OK\r\nX: " + b"y" * 100_000)
    for path in ("/", "/header"):
        with pytest.raises(FetchError):
            fetcher(server).get(server.url + path, 1_000_000)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(FetchError, match="Refused"):
            Fetcher(FetchOptions(allowed=frozenset({"127.0.0.1"}))).get(f"http://127.0.0.1:{port}/", 100)


def test_no_proxy_of_the_environment(server, monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setitem(os.environ, variable, "http://127.0.0.1:1")
    server.pages["/"] = b"list"
    assert fetcher(server).get(f"{server.url}/", 100) == b"list"


def test_rate_limit_per_host(server):
    server.pages["/"] = b"list"
    now = [0.0]
    options = FetchOptions(allowed=frozenset({"127.0.0.1"}), per_host_a_minute=3)
    fetch = Fetcher(options, clock=lambda: now[0])
    for _ in range(3):
        fetch.get(f"{server.url}/", 100)
    with pytest.raises(RateLimitedError):
        fetch.get(f"{server.url}/", 100)
    assert len(server.asked) == 3
    now[0] = 61
    fetch.get(f"{server.url}/", 100)
