"""A DNS server of our own on loopback, over UDP and TCP, that holds what a test says and misbehaves when told to."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset


class Fault(Enum):
    SILENT = "no answer at all"
    SERVFAIL = "SERVFAIL, as a validating resolver says it of what is bogus"
    REFUSED = "REFUSED"
    TRUNCATED = "over UDP only TC; over TCP everything"
    TRUNCATED_AND_CUT = "over UDP only TC; TCP hangs up"
    GARBAGE = "octets that are no DNS message"
    WRONG_ID = "an answer to another question's id"
    WRONG_QUESTION = "an answer to another name"


@dataclass
class DnsServer:
    """Names are lower case without the final dot. What is not held does not exist (NXDOMAIN, or NODATA when another
    type of that name is held)."""

    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """By name and type, in presentation format."""
    faults: dict[str, Fault] = field(default_factory=dict)
    """By name."""
    slow: dict[str, float] = field(default_factory=dict)
    """Seconds until a name is answered."""
    authenticated: set[str] = field(default_factory=set)
    """Names whose answers carry AD."""
    ttl: int = 60
    negative_ttl: int = 30
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, type, `udp` or `tcp`."""
    port: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, name: str, kind: str, *values: str) -> None:
        self.records.setdefault((name.lower(), kind), []).extend(values)

    def text(self, name: str, value: str) -> None:
        """A TXT record, cut into strings of 255 octets."""
        octets = value.encode()
        pieces = [octets[start : start + 255] for start in range(0, len(octets), 255)] or [b""]
        self.add(name, "TXT", " ".join('"' + "".join(f"\\{octet:03}" for octet in piece) + '"' for piece in pieces))

    def count(self, name: str, kind: str) -> int:
        return sum((asked, what) == (name, kind) for asked, what, _ in self.asked)

    # Answering

    async def answer(self, wire: bytes, transport: str) -> bytes | None:
        try:
            query = dns.message.from_wire(wire)
        except dns.exception.DNSException:
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, transport))
        await asyncio.sleep(self.slow.get(name, 0.0))
        match self.faults.get(name):
            case Fault.SILENT:
                return None
            case Fault.GARBAGE:
                return wire[:2] + b"\xff" * 30
            case Fault.SERVFAIL:
                return self._error(query, dns.rcode.SERVFAIL)
            case Fault.REFUSED:
                return self._error(query, dns.rcode.REFUSED)
            case Fault.WRONG_ID:
                return bytes([wire[0] ^ 0xFF]) + self._reply(query, name, kind)[1:]
            case Fault.WRONG_QUESTION:
                other = dns.message.make_query("other.example", question.rdtype)
                other.id = query.id
                return self._reply(other, name, kind)
            case Fault.TRUNCATED_AND_CUT if transport == "tcp":
                return None
            case Fault.TRUNCATED | Fault.TRUNCATED_AND_CUT if transport == "udp":
                reply = dns.message.make_response(query, recursion_available=True)
                reply.flags |= dns.flags.TC
                return reply.to_wire()
        return self._reply(query, name, kind)

    def _error(self, query: dns.message.Message, code: int) -> bytes:
        reply = dns.message.make_response(query, recursion_available=True)
        reply.set_rcode(dns.rcode.Rcode(code))
        return reply.to_wire()

    def _reply(self, query: dns.message.Message, name: str, kind: str) -> bytes:
        reply = dns.message.make_response(query, recursion_available=True)
        owner = query.question[0].name
        for _ in range(10):
            alias = self.records.get((name, "CNAME"))
            if alias is None or kind == "CNAME":
                break
            reply.answer.append(_rrset(owner, self.ttl, "CNAME", alias))
            name = alias[0].rstrip(".").lower()
            owner = dns.name.from_text(name)
        held = self.records.get((name, kind))
        if held is not None:
            reply.answer.append(_rrset(owner, self.ttl, kind, held))
        else:
            if not any(known == name for known, _ in self.records):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            soa = f"ns.invalid. root.invalid. 1 2 3 4 {self.negative_ttl}"
            reply.authority.append(_rrset(dns.name.root, self.negative_ttl, "SOA", [soa]))
        if name in self.authenticated:
            reply.flags |= dns.flags.AD
        return reply.to_wire(max_size=65535)


def _rrset(owner: dns.name.Name, ttl: int, kind: str, values: list[str]) -> dns.rrset.RRset:
    return dns.rrset.from_text(owner, ttl, dns.rdataclass.IN, kind, *values)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer, tasks: set[asyncio.Task[None]]) -> None:
        self._server, self._tasks = server, tasks

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        async def answer() -> None:
            reply = await self._server.answer(data, "udp")
            if reply is not None:
                self._transport.sendto(reply, address)

        task = asyncio.create_task(answer())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@asynccontextmanager
async def dns_server(port: int = 0) -> AsyncIterator[DnsServer]:
    """Running on that loopback port, or one of its own, the same for both transports."""
    server = DnsServer()
    tasks: set[asyncio.Task[None]] = set()

    async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            (size,) = struct.unpack("!H", await reader.readexactly(2))
            reply = await server.answer(await reader.readexactly(size), "tcp")
            if reply is not None:
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    for _ in range(20):
        tcp = await asyncio.start_server(over_tcp, "127.0.0.1", port)
        server.port = tcp.sockets[0].getsockname()[1]
        try:
            udp, _ = await loop.create_datagram_endpoint(
                lambda: _Udp(server, tasks), local_addr=("127.0.0.1", server.port)
            )
            break
        except OSError:
            tcp.close()
    else:
        raise OSError("no port is free for both UDP and TCP")
    try:
        yield server
    finally:
        udp.close()
        tcp.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
