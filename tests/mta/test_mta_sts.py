"""MTA-STS: what a policy is, how it is fetched and kept, what it demands; with a web server and a DNS of our own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.dns import Answer, DnsOptions, MxRecord, Resolver, State
from mta.smtp.mta_sts import MAX_POLICY_BYTES, Mode, Policies, Policy, name_matches, parse_policy, policy_id
from tests.support.dns_server import DnsServer, dns_server
from trust.refusals import Refused
from trust.revocation.fetching import Fetcher, FetchOptions
from trust.tls import service_server_context

from .conftest import Clock
from .trust_space import TrustSpace

POLICY = b"version: STSv1\r\nmode: enforce\r\nmx: mx1.op2.example\r\nmx: *.mail.op2.example\r\nmax_age: 86400\r\n"
MX = (MxRecord(10, "mx1.op2.example"), MxRecord(20, "evil.example"))
ANSWER = Answer(MX, State.FOUND, False, 60)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (["v=STSv1; id=20160831085700Z;"], "20160831085700Z"),
        (["v=STSv1;id=a1"], "a1"),
        (["v=spf1 -all", "v=STSv1; id=a1; x=y;"], "a1"),
        (["v=STSv1; id=a1", "v=STSv1; id=a2"], ""),
        (["v=STSv1;"], ""),
        (["v=STSv1; id=no-dashes"], ""),
        (["v=STSv1; id=" + "a" * 33], ""),
        (["v=STSv2; id=a1"], ""),
        ([], ""),
    ],
)
def test_the_record(texts: list[str], found: str) -> None:
    assert policy_id(texts) == found


def test_a_policy() -> None:
    assert parse_policy(POLICY) == Policy(Mode.ENFORCE, ("mx1.op2.example", "*.mail.op2.example"), 86400)
    assert parse_policy(POLICY.replace(b"\r\n", b"\n")) == parse_policy(POLICY)
    assert parse_policy(b"version: STSv1\nmode: none\nmax_age: 99999999999\n") is None
    found = parse_policy(b"version: STSv1\nmode: none\nmax_age: 9999999999\nmax_age: 1\nnew_key: x\n")
    assert found is not None
    assert found.max_age == 31_557_600


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>404</html>",
        POLICY.replace(b"STSv1", b"STSv2"),
        POLICY.replace(b"enforce", b"please"),
        POLICY.replace(b"86400", b"-1"),
        POLICY.replace(b"86400", "٣".encode()),
        POLICY.replace(b"mx: ", b"mxx: "),
        POLICY.replace(b"mx1.op2.example", b"*"),
        POLICY.replace(b"mx1.op2.example", b"*.*.example"),
        POLICY + b"mx: a.example\r\n" * 100,
        POLICY + b"\xff",
    ],
)
def test_no_policy(body: bytes) -> None:
    assert parse_policy(body) is None


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: POLICY + text.encode("utf-8", "replace")))
def test_any_octets_are_a_policy_or_none(body: bytes) -> None:
    parse_policy(body)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a.example", "a.example", True),
        ("*.example.org", "mx.example.org", True),
        ("*.example.org", "a.b.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.org", "example.org", False),
        ("a.example", "b.a.example", False),
    ],
)
def test_names(pattern: str, name: str, fits: bool) -> None:
    assert name_matches(pattern, name) is fits


class Web:
    """The policy host: answers as told, counts."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (
            len(POLICY),
            POLICY,
        )
        self.asked: list[bytes] = []
        self.silent = asyncio.Event()
        self.port = 0

    def says(self, policy: bytes) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(policy), policy)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
            if self.answer:
                writer.write(self.answer)
                await writer.drain()
            else:
                await self.silent.wait()
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()

    def connect(self, address: str, port: int, seconds: float) -> socket.socket:
        assert (address, port) == ("192.88.98.77", 443)
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)


class Setting:
    def __init__(self, dns: DnsServer, web: Web, space: TrustSpace, kept: Path | None, clock: Clock) -> None:
        self.dns, self.web, self.space, self.kept, self.clock = dns, web, space, kept, clock
        self.addresses = ["192.88.98.77"]

    @asynccontextmanager
    async def policies(self) -> AsyncIterator[Policies]:
        fetcher = Fetcher(
            FetchOptions(redirects=0, seconds=1.0),
            tls=self.space.anonymous(),
            resolve=lambda host, port: self.addresses,
            connect=self.web.connect,
        )
        resolver = Resolver(DnsOptions((self.dns.address,), seconds=1.0), clock=self.clock)
        made = Policies(resolver, fetcher.get, self.kept, clock=self.clock)
        try:
            yield made
        finally:
            await made.close()
            await resolver.close()


@pytest.fixture
async def setting(space: TrustSpace, tmp_path: Path, clock: Clock) -> AsyncIterator[Setting]:
    issued = space.authority.issue_server(["mta-sts.op2.example"], [])
    chain, key = tmp_path / "web.pem", tmp_path / "web.key"
    chain.write_bytes(issued.pem_chain())
    key.write_bytes(issued.pem_key())
    web = Web()
    async with dns_server() as dns:
        dns.text("_mta-sts.op2.example", "v=STSv1; id=1;")
        listening = await asyncio.start_server(web.serve, "127.0.0.1", 0, ssl=service_server_context(chain, key))
        web.port = listening.sockets[0].getsockname()[1]
        yield Setting(dns, web, space, tmp_path / "policies.json", clock)
        web.silent.set()
        listening.close()


async def test_a_policy_is_read_once_and_leaves_out_what_is_not_in_it(setting: Setting) -> None:
    async with setting.policies() as policies:
        found = await asyncio.gather(*(policies.require("op2.example", ANSWER, MX) for _ in range(5)))
        assert all(set(each) == {"mx1.op2.example"} for each in found if not isinstance(each, Refused))
        assert setting.web.asked == [b"GET /.well-known/mta-sts.txt HTTP/1.1"]
        refused = await policies.require("op2.example", ANSWER, MX[1:])
        assert isinstance(refused, Refused)
        assert refused.refusal.code == "mta.host-refused"
        assert policies.mismatches > 0


async def test_testing_lets_everything_through_and_counts(setting: Setting) -> None:
    setting.web.says(POLICY.replace(b"enforce", b"testing"))
    async with setting.policies() as policies:
        found = await policies.require("op2.example", ANSWER, MX)
        assert set(found) == {"mx1.op2.example", "evil.example"}
        assert policies.mismatches == 1


@pytest.mark.parametrize("loss", ["record", "web", "restart"])
async def test_a_policy_holds_when_its_sources_are_gone(setting: Setting, loss: str) -> None:
    async with setting.policies() as policies:
        assert (await policies.policy("op2.example")) is not None
        setting.clock.now += 3700
        setting.web.answer = b"HTTP/1.1 404 no\r\n\r\n"
        if loss == "record":
            setting.dns.records.clear()
        else:
            setting.dns.records.clear()
            setting.dns.text("_mta-sts.op2.example", "v=STSv1; id=2;")
        if loss != "restart":
            policy = await policies.policy("op2.example")
            assert policy is not None
            assert policy.mode is Mode.ENFORCE
            setting.clock.now += 86400
            assert await policies.policy("op2.example") is None, "and ends when it said"
    if loss == "restart":
        async with setting.policies() as again:
            assert await again.policy("op2.example") is not None


async def test_a_new_id_is_a_new_policy(setting: Setting) -> None:
    async with setting.policies() as policies:
        await policies.policy("op2.example")
        setting.dns.records.clear()
        setting.dns.text("_mta-sts.op2.example", "v=STSv1; id=2;")
        setting.web.says(b"version: STSv1\nmode: none\nmax_age: 60\n")
        setting.clock.now += 3700
        policy = await policies.policy("op2.example")
        assert policy is not None
        assert policy.mode is Mode.NONE


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 moved\r\nLocation: https://mta-sts.op2.example/other\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (2 * MAX_POLICY_BYTES),
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 * MAX_POLICY_BYTES),
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"nonsense\r\n\r\n",
        b"",
    ],
    ids=["redirect", "announced", "endless", "no-policy", "no-http", "silent"],
)
async def test_what_is_no_policy_is_not_asked_for_again_at_once(setting: Setting, answer: bytes) -> None:
    setting.web.answer = answer
    async with setting.policies() as policies:
        assert await policies.policy("op2.example") is None
        assert await policies.policy("op2.example") is None
        assert len(setting.web.asked) == 1
        setting.web.says(POLICY)
        setting.clock.now += 301
        assert await policies.policy("op2.example") is not None


async def test_a_policy_host_inside_or_with_another_name_is_not_believed(setting: Setting) -> None:
    setting.addresses = ["10.0.0.1", "127.0.0.1"]
    async with setting.policies() as policies:
        assert await policies.policy("op2.example") is None
        assert setting.web.asked == []
    setting.addresses = ["192.88.98.77"]
    setting.dns.text("_mta-sts.op3.example", "v=STSv1; id=1;")
    async with setting.policies() as policies:
        assert await policies.policy("op3.example") is None, "its certificate is op2's"


async def test_a_kept_file_of_nonsense_is_begun_anew(setting: Setting) -> None:
    assert setting.kept is not None
    for nonsense in (b"", b"[]", b'{"a": {}}', b'{"a": {"policy": {"mode": "x"}}}', b"\xff"):
        setting.kept.write_bytes(nonsense)
        async with setting.policies() as policies:
            assert await policies.policy("op2.example") is not None


async def test_a_policy_is_read_again_before_it_ends(setting: Setting) -> None:
    """Or whoever can keep us from reading at that one moment would be rid of it (RFC 8461 section 10.2)."""
    async with setting.policies() as policies:
        assert await policies.policy("op2.example") is not None
        setting.clock.now += 40_000
        assert await policies.policy("op2.example") is not None
        assert len(setting.web.asked) == 1
        setting.clock.now += 4_000
        assert await policies.policy("op2.example") is not None
        assert len(setting.web.asked) == 2
        right, setting.web.answer = setting.web.answer, b"HTTP/1.1 404 no\r\n\r\n"
        setting.clock.now += 60_000
        for _ in range(5):
            assert await policies.policy("op2.example") is not None, "it still holds"
        assert len(setting.web.asked) == 3, "and is not asked for with each message"
        setting.clock.now += 400
        setting.web.answer = right
        assert await policies.policy("op2.example") is not None
        setting.clock.now += 40_000
        assert await policies.policy("op2.example") is not None, "it holds from then on"
        assert len(setting.web.asked) == 4


async def test_a_policy_that_ends_at_once_is_not_read_for_each_message(setting: Setting) -> None:
    setting.web.says(POLICY.replace(b"86400", b"0"))
    async with setting.policies() as policies:
        for _ in range(20):
            assert await policies.policy("op2.example") is not None
        assert len(setting.web.asked) == 1
        setting.clock.now += 301
        assert await policies.policy("op2.example") is not None
        assert len(setting.web.asked) == 2
