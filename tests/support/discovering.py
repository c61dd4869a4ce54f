"""A mail program's first minute: from an address alone to hosts and ports, by the DNS (RFC 6186, RFC 8314) or by the
autoconfiguration file. What a test hands over is the network: a name server, and the authority the device trusts."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.nameserver
import dns.resolver
from click.testing import CliRunner
from lxml import etree

from config.cli import relais
from tests.support.dns_server import DnsServer, dns_server


@dataclass(frozen=True)
class Found:
    """What a program needs besides the password."""

    user: str
    imap_host: str
    imap_port: int
    smtp_host: str
    smtp_port: int


class Network:
    """Where a program asks: a resolver, and the certificates it believes."""

    def __init__(self, server: DnsServer, ca_file: str) -> None:
        self.ca_file = ca_file
        self._resolver = dns.resolver.Resolver(configure=False)
        self._resolver.nameservers = [dns.nameserver.Do53Nameserver("127.0.0.1", server.port)]

    def service(self, name: str, domain: str) -> tuple[str, int] | None:
        """By SRV; None when it is not offered."""
        try:
            record = self._resolver.resolve(f"_{name}._tcp.{domain}.", "SRV")[0]
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return None
        host = record.target.to_text(omit_final_dot=True)
        return (host, record.port) if host != "." else None

    def by_srv(self, address: str) -> Found:
        domain = address.rpartition("@")[2]
        imap, smtp = self.service("imaps", domain), self.service("submissions", domain)
        assert imap is not None
        assert smtp is not None
        return Found(address, *imap, *smtp)

    def by_autoconfig(self, address: str) -> Found:
        domain = address.rpartition("@")[2]
        status, _, body = self.get(f"autoconfig.{domain}", f"/mail/config-v1.1.xml?emailaddress={address}")
        assert status == 200
        provider = etree.fromstring(body).find("emailProvider")
        assert domain in [each.text for each in provider.findall("domain")]

        def server(element: str, socket_type: str) -> tuple[str, str, int]:
            found = next(each for each in provider.findall(element) if each.findtext("socketType") == socket_type)
            assert "password-cleartext" in [each.text for each in found.findall("authentication")]
            user = found.findtext("username").replace("%EMAILADDRESS%", address)
            return user, found.findtext("hostname"), int(found.findtext("port"))

        user, *imap = server("incomingServer", "SSL")
        _, *smtp = server("outgoingServer", "SSL")
        return Found(user, *imap, *smtp)

    def get(
        self, host: str, path: str, method: str = "GET", body: bytes | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request to that name, its certificate judged as a program does. Programs ask on 443 and nowhere else; a
        test's door cannot have that, and the port of another record stands for it."""
        domain = host.partition(".")[2]
        asked = self.service("autodiscover", domain)
        assert asked is not None
        (address,) = {each.to_text() for each in self._resolver.resolve(f"{host}.", "A")}
        context = ssl.create_default_context(cafile=self.ca_file)
        connection = http.client.HTTPSConnection(host, asked[1], timeout=20, context=context)
        connection._create_connection = lambda where, *rest: socket.create_connection((address, where[1]), 20)  # type: ignore[attr-defined]
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()


def printed_records(state: Path) -> list[dict[str, Any]]:
    """What `relais doctor --dns` prints."""
    result = CliRunner().invoke(relais, ["doctor", "--dns", "--json", "--state", str(state)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def publish(server: DnsServer, records: list[dict[str, Any]]) -> None:
    """Into the zones, as an operator would."""
    for each in records:
        server.add(each["name"], each["kind"], each["line"].split(f" IN {each['kind']} ", 1)[1])
    server.add("localhost", "A", "127.0.0.1")


@contextmanager
def network(state: Path, ca_file: str, port: int = 0) -> Iterator[tuple[Network, DnsServer]]:
    """A name server with what doctor prints, on a loop of its own; `port` 53 where programs ask it by themselves."""
    ready: list[DnsServer] = []
    started, end = threading.Event(), []

    async def serve() -> None:
        stop = asyncio.Event()
        end.append((asyncio.get_running_loop(), stop))
        async with dns_server(port) as server:
            publish(server, printed_records(state))
            ready.append(server)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        yield Network(ready[0], ca_file), ready[0]
    finally:
        loop, stop = end[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join()
