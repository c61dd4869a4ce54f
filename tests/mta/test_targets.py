"""The SMTP and LMTP targets against scripted servers that misbehave in every way a network knows."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from directory.partners import PartnerBook
from directory.records import Partner
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.message import Deferred, Delivered, Failed, Message, Origin, Outcome
from mta.smtp.client import Timeouts
from mta.smtp.target import SmtpTarget, SmtpTargetOptions

from .trust_space import Listed, TrustSpace

SHORT = Timeouts(connect=2, greeting=1, tls=2, command=1, block=2, final=1)
MESSAGE = Message(
    message_id="<1@op1.example>",
    spool_id="s1",
    delivery_id="d1",
    origin=Origin.SUBMISSION,
    sender="dr.gris@op1.example",
    recipient="dr.noir@op2.example",
    content=b"From: dr.gris@op1.example\r\n\r\n.dot\r\n..\r\nlast",
    content_type="message/rfc822",
    accepted_at=0.0,
)
FEATURES = ("PIPELINING", "8BITMIME", "SIZE 1000000", "DSN", "ENHANCEDSTATUSCODES")


class Server:
    """A scripted server: `answers` by verb; a bytes answer is sent as it is, None closes the connection."""

    def __init__(
        self,
        context: ssl.SSLContext | None,
        features: tuple[str, ...] = FEATURES,
        **answers: str | bytes | None,
    ) -> None:
        self.context, self.features, self.answers = context, features, answers
        self.commands: list[str] = []
        self.contents: list[bytes] = []
        self.connections = 0
        self.hold: asyncio.Event | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def say(self, writer: asyncio.StreamWriter, verb: str, default: str) -> bool:
        answer = self.answers.get(verb, default)
        if answer is None:
            return False
        writer.write(answer if isinstance(answer, bytes) else answer.encode() + b"\r\n")
        await writer.drain()
        return True

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self.say(writer, "greeting", "220 ready"):
            return
        secured = False
        while True:
            line = (await reader.readuntil(b"\r\n")).decode().strip()
            self.commands.append(line)
            verb = line.split()[0].upper()
            if self.hold is not None and verb == "MAIL":
                await self.hold.wait()
            if verb in ("EHLO", "LHLO"):
                offers = [*self.features]
                if self.context is not None and not secured:
                    offers.append("STARTTLS")
                lines = [f"250-{word}" for word in ("name", *offers)]
                lines[-1] = lines[-1].replace("-", " ", 1)
                await self.say(writer, verb, "\r\n".join(lines))
            elif verb == "STARTTLS":
                if not await self.say(writer, verb, "220 go"):
                    return
                await writer.start_tls(self.context)
                secured = True
            elif verb == "DATA":
                if not await self.say(writer, verb, "354 go"):
                    return
                if str(self.answers.get("DATA", "354")).startswith("354"):
                    content = b""
                    while not (b"\r\n" + content).endswith(b"\r\n.\r\n"):
                        content += await reader.readuntil(b"\r\n")
                    self.contents.append(content)
                    if not await self.say(writer, "final", "250 2.0.0 queued"):
                        return
            elif not await self.say(writer, verb, "250 fine"):
                return


@asynccontextmanager
async def serving(server: Callable[..., Awaitable[None]]) -> AsyncIterator[int]:
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


@pytest.fixture
def target_to(space: TrustSpace, listed: Listed) -> Callable[[int], SmtpTarget]:
    def make(port: int, **partner: int) -> SmtpTarget:
        book = PartnerBook([Partner("op2.example", "127.0.0.1", port, **partner)])
        return SmtpTarget(book, lambda: listed, space.client("one"), SmtpTargetOptions("gate.op1.example", SHORT))

    return make


MakeTarget = Callable[..., SmtpTarget]


async def outcome_with(make: MakeTarget, server: Server, message: Message = MESSAGE) -> Outcome:
    async with serving(server) as port:
        target = make(port)
        try:
            return await target.deliver(message)
        finally:
            await target.close()


async def test_a_message_arrives_whole_and_connections_are_reused(target_to: MakeTarget, space: TrustSpace) -> None:
    server = Server(space.server("two"))
    async with serving(server) as port:
        target = target_to(port)
        told = Delivered("250 2.0.0 queued", reports=False)
        assert await target.deliver(MESSAGE) == told
        assert await target.deliver(replace(MESSAGE, content=b"A: b\r\n\r\n")) == told
        await target.close()
    assert server.connections == 1
    assert server.contents[0] == MESSAGE.content.replace(b"\r\n.", b"\r\n..") + b"\r\n.\r\n"
    assert server.contents[1] == b"A: b\r\n\r\n.\r\n"
    assert server.commands[3].startswith("MAIL FROM:<dr.gris@op1.example> SIZE=")
    assert server.commands[-1] == "QUIT"


@pytest.mark.parametrize("features", [FEATURES, tuple(f for f in FEATURES if f != "PIPELINING")])
@pytest.mark.parametrize(
    ("answers", "expected", "code"),
    [
        ({"MAIL": "451 4.3.0 later"}, Deferred, "mta.remote-deferred"),
        (
            {"RCPT": "550 5.1.1 <dr.noir@op2.example> unknown", "DATA": "554 no recipients"},
            Failed,
            "mta.remote-refused",
        ),
        ({"RCPT": "452 4.2.2 full"}, Deferred, "mta.remote-deferred"),
        ({"DATA": "451 later"}, Deferred, "mta.remote-deferred"),
        ({"final": "554 5.7.1 virus"}, Failed, "mta.remote-refused"),
        ({"final": "451 4.3.0 later"}, Deferred, "mta.remote-deferred"),
        ({"final": None}, Deferred, "mta.connection-lost"),
        ({"final": b"garbage\r\n"}, Deferred, "mta.connection-lost"),
        ({"final": b""}, Deferred, "mta.connection-lost"),
        ({"MAIL": "421 4.3.2 going down"}, Deferred, "mta.connection-lost"),
        ({"RCPT": None}, Deferred, "mta.connection-lost"),
        ({"greeting": "554 no"}, Deferred, "mta.unreachable"),
        ({"greeting": None}, Deferred, "mta.unreachable"),
        ({"greeting": b""}, Deferred, "mta.unreachable"),
        ({"EHLO": "502 what"}, Deferred, "mta.remote-deferred"),
        ({"STARTTLS": "454 no"}, Deferred, "mta.tls-unavailable"),
        ({"STARTTLS": b"220 go\r\n250 injected\r\n"}, Deferred, "mta.connection-lost"),
        ({"STARTTLS": b"220 go\r\nhalf a line"}, Deferred, "mta.connection-lost"),
    ],
)
async def test_every_way_to_fail(
    target_to: MakeTarget,
    space: TrustSpace,
    features: tuple[str, ...],
    answers: dict[str, str | bytes | None],
    expected: type,
    code: str,
) -> None:
    outcome = await outcome_with(target_to, Server(space.server("two"), features, **answers))
    assert isinstance(outcome, expected)
    assert isinstance(outcome, Deferred | Failed)
    assert outcome.reason.refusal.code == code
    assert "dr.noir" not in outcome.reason.detail


async def test_a_refused_recipient_leaves_the_connection_usable(target_to: MakeTarget, space: TrustSpace) -> None:
    server = Server(space.server("two"), RCPT="550 5.1.1 no")
    async with serving(server) as port:
        target = target_to(port)
        assert isinstance(await target.deliver(MESSAGE), Failed)
        server.answers = {}
        assert isinstance(await target.deliver(MESSAGE), Delivered)
        await target.close()
    assert server.connections == 1
    assert server.contents[0] == b".\r\n", "RFC 2920: a server that wants data nobody is to have gets none"


@pytest.mark.parametrize("features", [FEATURES, FEATURES[1:]])
async def test_a_refusal_counts_although_the_peer_then_closes(
    target_to: MakeTarget, space: TrustSpace, features: tuple[str, ...]
) -> None:
    """Or the sender would learn of it after days of trying instead of at once."""
    outcome = await outcome_with(target_to, Server(space.server("two"), features, RCPT="550 5.1.1 no", RSET=None))
    assert isinstance(outcome, Failed)
    assert outcome.reason.refusal.code == "mta.remote-refused"


async def test_a_connection_closed_while_idle_is_replaced(target_to: MakeTarget, space: TrustSpace) -> None:
    server = Server(space.server("two"))
    async with serving(server) as port:
        target = target_to(port)
        assert isinstance(await target.deliver(MESSAGE), Delivered)
        server.answers = {"MAIL": "421 4.4.2 idle too long"}
        deferred = await target.deliver(MESSAGE)
        assert isinstance(deferred, Deferred)
        server.answers = {}
        assert isinstance(await target.deliver(MESSAGE), Delivered)
        await target.close()
    assert server.connections == 3


async def test_nothing_is_sent_without_tls(target_to: MakeTarget) -> None:
    server = Server(None)
    outcome = await outcome_with(target_to, server)
    assert isinstance(outcome, Deferred)
    assert outcome.reason.refusal.code == "mta.tls-unavailable"
    assert [command.split()[0] for command in server.commands] == ["EHLO"]


async def test_nothing_is_said_to_a_server_not_listed(target_to: MakeTarget, space: TrustSpace) -> None:
    for name in ("rogue", "one"):
        server = Server(space.server(name))
        outcome = await outcome_with(target_to, server)
        assert isinstance(outcome, Deferred)
        assert outcome.reason.refusal.code == "mta.peer-not-operator"
        assert not any(command.startswith("MAIL") for command in server.commands)


async def test_a_certificate_of_another_authority_is_refused(
    target_to: MakeTarget, space: TrustSpace, tmp_path: Path
) -> None:
    foreign = TrustSpace(tmp_path, type(space.authority).create("Ailleurs"))
    foreign.operator("two")
    server = Server(foreign.server("two"))
    outcome = await outcome_with(target_to, server)
    assert isinstance(outcome, Deferred)
    assert outcome.reason.refusal.code == "mta.tls-unavailable"
    assert server.commands == ["EHLO gate.op1.example", "STARTTLS"]


async def test_what_is_asked_in_receipts(target_to: MakeTarget, space: TrustSpace) -> None:
    asked = {"dsn.notify": "FAILURE", "dsn.envid": "E+2B", "dsn.orcpt": "rfc822;X@y", "dsn.ret": "HDRS"}
    cases = [
        (replace(MESSAGE, facts=asked), " RET=HDRS ENVID=E+2B", " NOTIFY=FAILURE ORCPT=rfc822;X@y"),
        (replace(MESSAGE, origin=Origin.MLLP), " ENVID=s1", " NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;dr.noir@op2.example"),
        (
            replace(MESSAGE, facts={"dsn.notify": "SUCCESS"}),
            " ENVID=s1",
            " NOTIFY=SUCCESS ORCPT=rfc822;dr.noir@op2.example",
        ),
        (MESSAGE, " ENVID=s1", " NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;dr.noir@op2.example"),
        (replace(MESSAGE, facts={"dsn.notify": "NEVER\r\nQUIT"}), " ENVID=s1", " ORCPT=rfc822;dr.noir@op2.example"),
        (replace(MESSAGE, sender="", facts=asked), " BODY=7BIT", "<dr.noir@op2.example>"),
    ]
    for message, mail_end, rcpt_end in cases:
        server = Server(space.server("two"))
        outcome = await outcome_with(target_to, server, message)
        assert isinstance(outcome, Delivered)
        sender_asked = message.origin is Origin.MLLP or "SUCCESS" in message.facts.get("dsn.notify", "")
        assert outcome.reports == sender_asked, "what only we ourselves asked for is promised to nobody"
        mail, rcpt = server.commands[3:5]
        assert mail.endswith(mail_end)
        assert rcpt.endswith(rcpt_end)
    server = Server(space.server("two"), ("PIPELINING",))
    wanted = replace(MESSAGE, facts={**asked, "dsn.notify": "SUCCESS"})
    assert await outcome_with(target_to, server, wanted) == Delivered("250 2.0.0 queued", reports=False)
    assert server.commands[3:5] == ["MAIL FROM:<dr.gris@op1.example>", "RCPT TO:<dr.noir@op2.example>"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"content": b"A: b\r\n\r\nx\n.\nMAIL FROM:<evil@op1.example>\r\n"}, "mta.line-endings"),
        ({"content": b"A: b\r\n\r\nx\r.\r\n"}, "mta.line-endings"),
        ({"content": b"x" * 70 + b"\r\n" + b"y" * 2_000_000}, "mta.partner-size-limit"),
        ({"recipient": "a@op2.example> NOTIFY=NEVER\r\nRCPT TO:<x@op2.example"}, "mta.address-invalid"),
        ({"recipient": "a b@op2.example"}, "mta.address-invalid"),
        ({"sender": "a@op1.example>\r\nRSET"}, "mta.address-invalid"),
    ],
)
async def test_what_must_not_travel_stays(
    target_to: MakeTarget, space: TrustSpace, change: dict[str, str | bytes], code: str
) -> None:
    server = Server(space.server("two"))
    outcome = await outcome_with(target_to, server, replace(MESSAGE, **change))
    assert isinstance(outcome, Deferred | Failed)
    assert outcome.reason.refusal.code == code
    assert server.contents == []


async def test_eight_bits_only_where_they_are_welcome(target_to: MakeTarget, space: TrustSpace) -> None:
    message = replace(MESSAGE, content="é\r\n".encode())
    server = Server(space.server("two"), ("PIPELINING",))
    outcome = await outcome_with(target_to, server, message)
    assert isinstance(outcome, Failed)
    assert outcome.reason.refusal.code == "mta.eight-bit-unsupported"
    assert isinstance(await outcome_with(target_to, Server(space.server("two")), message), Delivered)


async def test_unknown_and_dead_destinations(target_to: MakeTarget, space: TrustSpace) -> None:
    target = target_to(9)
    for recipient, code in (("a@nowhere.example", "mta.no-route"), ("a@op2.example", "mta.unreachable")):
        outcome = await target.deliver(replace(MESSAGE, recipient=recipient))
        assert isinstance(outcome, Deferred)
        assert outcome.reason.refusal.code == code


async def test_a_large_message_at_the_pace_of_the_peer(target_to: MakeTarget, space: TrustSpace) -> None:
    content = b"A: b\r\n\r\n" + (b"." + b"x" * 70 + b"\r\n") * 12_000
    server = Server(space.server("two"), ("PIPELINING", "SIZE 0"))
    assert isinstance(await outcome_with(target_to, server, replace(MESSAGE, content=content)), Delivered)
    assert server.contents[0].replace(b"\r\n..", b"\r\n.") == content + b".\r\n"


# LMTP


@pytest.mark.parametrize("unix", [True, False])
async def test_lmtp_over_both_kinds_of_socket(tmp_path: Path, unix: bool) -> None:
    server = Server(None)
    if unix:
        path = tmp_path / "lmtp"
        listening = await asyncio.start_unix_server(server, str(path))
        options = LmtpOptions("gate.op1.example", socket=path, timeouts=SHORT)
    else:
        listening = await asyncio.start_server(server, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        options = LmtpOptions("gate.op1.example", port=port, timeouts=SHORT)
    target = LmtpTarget(options)
    assert await target.deliver(MESSAGE) == Delivered("250 2.0.0 queued")
    server.answers = {"final": "452 4.2.2 mailbox full"}
    deferred = await target.deliver(replace(MESSAGE, accepted_at=time.time()))
    assert isinstance(deferred, Deferred)
    assert deferred.reason.detail == "end of data: 452 4.2.2 mailbox full"
    server.answers = {"RCPT": "550 5.1.1 unknown"}
    assert isinstance(await target.deliver(MESSAGE), Failed)
    await target.close()
    listening.close()
    assert server.connections == 1
    assert server.commands[0] == "LHLO gate.op1.example"


async def test_lmtp_without_a_server_waits(tmp_path: Path) -> None:
    outcome = await LmtpTarget(LmtpOptions("g.example", socket=tmp_path / "none", timeouts=SHORT)).deliver(MESSAGE)
    assert isinstance(outcome, Deferred)
    assert outcome.reason.refusal.code == "mta.unreachable"


# REQUIRETLS, limits the server names, LMTP that carries several at once


async def test_a_sender_that_demands_tls_all_the_way(target_to: MakeTarget, space: TrustSpace) -> None:
    demanding = replace(MESSAGE, flags=("REQUIRETLS",))
    outcome = await outcome_with(target_to, Server(space.server("two")), demanding)
    assert isinstance(outcome, Failed)
    assert (outcome.reason.refusal.code, outcome.reason.refusal.enhanced) == ("mta.requiretls-unsupported", "5.7.30")
    server = Server(space.server("two"), (*FEATURES, "REQUIRETLS"))
    assert isinstance(await outcome_with(target_to, server, demanding), Delivered)
    assert server.commands[3].endswith(" REQUIRETLS")
    server = Server(space.server("two"), (*FEATURES, "REQUIRETLS"))
    assert isinstance(await outcome_with(target_to, server), Delivered)
    assert "REQUIRETLS" not in server.commands[3]


async def test_no_more_messages_on_a_connection_than_the_server_wants(target_to: MakeTarget, space: TrustSpace) -> None:
    server = Server(space.server("two"), (*FEATURES, "LIMITS RCPTMAX=1 MAILMAX=3"))
    async with serving(server) as port:
        target = target_to(port)
        for _ in range(7):
            assert isinstance(await target.deliver(MESSAGE), Delivered)
        await target.close()
    assert server.connections == 3


async def test_many_at_once_share_a_connection(tmp_path: Path) -> None:
    server = Server(None)
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    target = LmtpTarget(LmtpOptions("gate.op1.example", port=port, timeouts=SHORT))
    outcomes = await asyncio.gather(*(target.deliver(MESSAGE) for _ in range(100)))
    assert all(isinstance(outcome, Delivered) for outcome in outcomes)
    await target.close()
    listening.close()
    assert len(server.contents) == 100
    assert server.connections <= 8
