"""SPF against the official test suite of RFC 7208, asked over a real DNS server, and our own bounds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.name
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.dns import DnsOptions, Resolver
from mta.spf import SpfResult, _EndError, _parse, check_host
from tests.support.dns_server import DnsServer, Fault, dns_server

SUITE = Path(__file__).parents[1] / "data/spf/rfc7208-tests.yml"


def scenarios() -> Iterator[Any]:
    with SUITE.open() as opened:
        for scenario in yaml.safe_load_all(opened):
            yield pytest.param(scenario, id=scenario["description"].replace(" ", "-"))


def hold(server: DnsServer, zone: dict[str, Any]) -> None:
    """The suite's zones: `TIMEOUT` is an answer nobody gets; SPF records stand for TXT unless TXT is said."""
    for raw, entries in zone.items():
        name = str(raw).lower()
        held = [item for entry in entries if isinstance(entry, dict) for item in entry.items()]
        said = {kind for kind, _ in held}
        for entry in entries:
            if entry == "TIMEOUT":
                if not any(kind == "TXT" and value != "NONE" for kind, value in held):
                    server.faults[name] = Fault.SERVFAIL
                continue
            ((kind, value),) = entry.items()
            if kind == "SPF" and "TXT" in said:
                continue
            if kind in ("SPF", "TXT"):
                if value != "NONE":
                    text = "".join(value) if isinstance(value, list) else value
                    server.text(escaped(name), text)
            elif kind == "MX":
                server.add(escaped(name), "MX", f"{value[0]} {escaped(str(value[1]))}.")
            elif kind in ("PTR", "CNAME"):
                server.add(escaped(name), kind, f"{escaped(str(value))}.")
            else:
                server.add(escaped(name), kind, str(value))


def escaped(name: str) -> str:
    """In the presentation format of zone files."""
    labels = [label.encode() for label in name.removesuffix(".").split(".")]
    return dns.name.Name(labels).to_text() if name else ""


@pytest.mark.parametrize("scenario", list(scenarios()))
async def test_the_official_suite(scenario: dict[str, Any]) -> None:
    wrong = []
    async with dns_server() as server:
        hold(server, scenario["zonedata"])
        for name, case in scenario["tests"].items():
            resolver = Resolver(DnsOptions((server.address,), seconds=2.0))
            helo, sender = case["helo"], case["mailfrom"]
            domain = sender.rpartition("@")[2] or helo
            identity = sender if "@" in sender else f"postmaster@{domain}"
            result = await check_host(resolver, case["host"], domain, identity, helo)
            expected = case["result"] if isinstance(case["result"], list) else [case["result"]]
            if result.value not in expected:
                wrong.append((name, result.value, expected))
    assert wrong == []


async def check(server: DnsServer, domain: str = "op.example", client: str = "192.0.2.1") -> SpfResult:
    resolver = Resolver(DnsOptions((server.address,), seconds=2.0))
    return await check_host(resolver, client, domain, f"a@{domain}", "mx.op.example")


async def test_a_stranger_s_record_cannot_make_us_ask_for_ever() -> None:
    async with dns_server() as server:
        server.text("op.example", "v=spf1 include:op.example -all")
        assert await check(server) is SpfResult.PERMERROR
        for number in range(40):
            server.text(
                f"n{number}.example", f"v=spf1 include:n{2 * number + 1}.example include:n{2 * number + 2}.example"
            )
        server.asked.clear()
        assert await check(server, "n0.example") is SpfResult.PERMERROR
        assert len(server.asked) <= 12
        server.text("long.example", "v=spf1 " + "ip4:192.0.2.9 " * 1000)
        assert await check(server, "long.example") is SpfResult.PERMERROR


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 exists:%{d" + "1" * 5000 + "}.x.example -all",
        "v=spf1 redirect=%{i" + "9" * 7000 + "r}.x.example",
        "v=spf1 a:x." + "a" * 8000 + "_ -all",
        "v=spf1 a:x" + ".a" * 4000 + "_ -all",
        "v=spf1 a:" + "%{d}" * 2000 + "{ -all",
        "v=spf1 a:x." + "a-" * 4000 + " -all",
        "v=spf1 a:x" + "/1" * 4000 + "x -all",
        "v=spf1 " + "x" * 8000,
        "v=spf1 ip6:" + ":" * 8000,
        "v=spf1 ip4:1.2.3.4/" + "1" * 7000,
        "v=spf1 x=" + "%{" * 4000,
        "v=spf1 exists:" + "%{d}.%{h}." * 700 + "example -all",
    ],
)
async def test_a_stranger_s_record_costs_no_time_and_raises_nothing(record: str) -> None:
    async with dns_server() as server:
        server.text("op.example", record)
        resolver = Resolver(DnsOptions((server.address,), seconds=2.0))
        await resolver.lookup("op.example", "TXT")
        start = time.process_time()
        result = await check_host(resolver, "192.0.2.1", "op.example", "a@op.example", "a." * 126 + "b")
        assert time.process_time() - start < 0.2
        assert result in (SpfResult.PERMERROR, SpfResult.FAIL)


async def test_more_digits_than_labels_take_all_of_them() -> None:
    async with dns_server() as server:
        server.text(
            "op.example", f"v=spf1 exists:%{{d{'0' * 5000}1}}.one.example exists:%{{d{'9' * 40}}}.all.example -all"
        )
        server.add("op.example.all.example", "A", "127.0.0.2")
        assert await check(server) is SpfResult.PASS
        assert "example.one.example" in {name for name, _, _ in server.asked}


async def test_what_is_no_address_has_no_policy() -> None:
    async with dns_server() as server:
        server.text("op.example", "v=spf1 ip4:192.0.2.1 -all")
        assert await check(server, client="") is SpfResult.PERMERROR
        assert await check(server, client="::ffff:192.0.2.1") is SpfResult.PASS
        assert await check(server, client="fe80::1%eth0") is SpfResult.FAIL
        assert await check(server) is SpfResult.PASS
        assert await check(server, client="192.0.2.2") is SpfResult.FAIL
        assert await check(server, "é.example") is SpfResult.NONE
        server.faults["op.example"] = Fault.SERVFAIL
        assert await check(server) is SpfResult.TEMPERROR


TERMS = st.sampled_from(
    [
        "a",
        "mx",
        "ptr",
        "ip4:",
        "ip6:",
        "include:",
        "exists:",
        "redirect=",
        "exp=",
        "all",
        "-",
        "~",
        "/",
        "//",
        ":",
        "=",
        "%{",
        "}",
        "%%",
        "%",
        "{i}",
        "%{ir}.x.example",
        "op.example",
        "192.0.2.1/24",
        "2001:db8::/32",
        " ",
        "\t",
        "é",
        "\0",
    ]
)


@given(st.lists(TERMS, max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_record_makes_the_reader_raise(record: str) -> None:
    with contextlib.suppress(_EndError):
        _parse("v=spf1 " + record)
