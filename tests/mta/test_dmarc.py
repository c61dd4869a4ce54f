"""DMARC over a real DNS server: whose policy holds, what is aligned, and what nobody can say."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mta.dmarc import MAX_QUESTIONS, DmarcPolicy, discover
from mta.dns import DnsOptions, Resolver
from tests.support.dns_server import DnsServer, Fault, dns_server


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with dns_server() as running:
        yield running


async def found(server: DnsServer, domain: str) -> object:
    return await discover(Resolver(DnsOptions((server.address,), seconds=1.0)), domain)


async def test_the_domain_s_own_policy(server: DnsServer) -> None:
    server.text("_dmarc.op.example", "v=DMARC1; p=reject; adkim=s; aspf=r")
    policy = await found(server, "op.example")
    assert policy == DmarcPolicy("op.example", "reject", "op.example", strict_dkim=True)
    assert policy.judge({"op.example"}, "") == "pass"
    assert policy.judge({"mail.op.example"}, "") == "fail"
    assert policy.judge(set(), "mail.op.example") == "pass"
    assert policy.judge({"evil.example"}, "evilop.example") == "fail"
    assert policy.judge(set(), "") == "fail"


async def test_the_organization_s_policy_holds_below(server: DnsServer) -> None:
    server.text("_dmarc.op.example", "v=DMARC1; p=reject; sp=quarantine")
    policy = await found(server, "a.b.op.example")
    assert policy == DmarcPolicy("a.b.op.example", "quarantine", "op.example")
    assert policy.judge({"op.example"}, "") == "pass"
    assert policy.judge({"c.op.example"}, "") == "pass"


async def test_who_shares_a_parent_shares_nothing_when_it_says_so(server: DnsServer) -> None:
    server.text("_dmarc.mss.example", "v=DMARC1; p=reject; psd=y")
    server.text("_dmarc.a.mss.example", "v=DMARC1; p=none")
    policy = await found(server, "a.mss.example")
    assert policy == DmarcPolicy("a.mss.example", "none", "a.mss.example")
    assert policy.judge({"b.mss.example", "mss.example"}, "") == "fail"
    server.text("_dmarc.x.a.mss.example", "v=DMARC1; p=none; psd=n")
    assert await found(server, "x.a.mss.example") == DmarcPolicy("x.a.mss.example", "none", "x.a.mss.example")


@pytest.mark.parametrize(
    "record",
    ["v=DMARC2; p=none", "p=none; v=DMARC1", "v=DMARC1", "v=DMARC1; p=perhaps", "", "v=spf1 -all", "V=DMARC1; p=none"],
)
async def test_what_is_no_policy(server: DnsServer, record: str) -> None:
    server.text("_dmarc.op.example", record)
    assert await found(server, "op.example") is None


async def test_two_policies_are_none(server: DnsServer) -> None:
    server.text("_dmarc.op.example", "v=DMARC1; p=none")
    server.text("_dmarc.op.example", "v=DMARC1; p=reject")
    assert await found(server, "op.example") is None
    assert await found(server, "nowhere.example") is None


async def test_nobody_can_say(server: DnsServer) -> None:
    server.faults["_dmarc.op.example"] = Fault.SERVFAIL
    assert await found(server, "op.example") == "temperror"
    assert await found(server, "www.op.example") == "temperror"


async def test_a_long_name_asks_no_more(server: DnsServer) -> None:
    assert await found(server, ".".join("abcdefghijklmnop") + ".example") is None
    assert len(server.asked) == MAX_QUESTIONS


async def test_above_a_public_suffix_nobody_is_asked(server: DnsServer) -> None:
    server.text("_dmarc.gouv.example", "v=DMARC1; p=reject; psd=y")
    server.text("_dmarc.example", "v=DMARC1; p=none")
    server.text("_dmarc.fr.example", "v=DMARC1; p=none")
    policy = await found(server, "a.chu.gouv.example")
    assert isinstance(policy, DmarcPolicy)
    assert (policy.organization, policy.policy) == ("chu.gouv.example", "reject")
    assert policy.judge(["b.chu.gouv.example"], "") == "pass"
    assert policy.judge(["autre.gouv.example"], "gouv.example") == "fail"
    server.text("_dmarc.sante.gouv2.fr.example", "v=DMARC1; p=reject; psd=y")
    policy = await found(server, "chu.sante.gouv2.fr.example")
    assert isinstance(policy, DmarcPolicy)
    assert (policy.organization, policy.policy) == ("chu.sante.gouv2.fr.example", "reject")
    assert policy.judge(["autre.fr.example"], "") == "fail"
