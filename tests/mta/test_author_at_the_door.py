"""The operators' door and whose word From is: real sessions, a real DNS server; and mail that goes round."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from directory.partners import PartnerBook
from mta.authors import AuthorCheck
from mta.delivery import Lease
from mta.dns import DnsOptions, Resolver
from mta.evaluation import DkimKeys, EvaluationOptions, Evaluator
from mta.message import DeliveryState, Message, Phase
from mta.opening import OpenStage
from mta.smtp.door import DoorOptions, OperatorDoor
from mta.smtp.session import Limits
from mta.spool import Spool
from smime import DkimKey, public_record, sign_dkim
from tests.support.dns_server import DnsServer, Fault, dns_server
from trust.names import DistinguishedName
from trust.refusals import Refused
from trust.vault import KeyVault

from .conftest import MakeSpool
from .mailboxes import Mailboxes
from .smtp_client import Raw, secured
from .trust_space import Listed, TrustSpace

HOST = "gate.op1.example"
GRIS, BLEU = "dr.gris@op1.example", "dr.bleu@op1.example"
KEY = rsa.generate_private_key(65537, 2048)
RECORD = f"v=DKIM1; k=rsa; p={public_record(KEY)}"


def mail(author: str, *fields: bytes) -> bytes:
    return (
        b"".join(fields)
        + f"From: X <{author}>\r\nTo: {GRIS}\r\nSubject: x\r\nMessage-ID: <1@op2.example>\r\n\r\nhello\r\n".encode()
    )


def signed_by(domain: str, content: bytes) -> bytes:
    return sign_dkim(content, DkimKey(domain, "s1", KEY)) + content


class World:
    def __init__(self, server: DnsServer, spool: Spool, space: TrustSpace, listed: Listed) -> None:
        self.server, self.spool, self.space, self.listed = server, spool, space, listed
        resolver = Resolver(DnsOptions((server.address,), seconds=0.6, try_seconds=0.3))
        self.evaluator = Evaluator(DkimKeys(PartnerBook([]), resolver=resolver), resolver, EvaluationOptions(1.0))
        self.authors = AuthorCheck(self.speaks_for, self.evaluator)
        self.door = OperatorDoor(
            spool,
            lambda: listed,
            {GRIS, BLEU}.__contains__,
            space.server("one"),
            DoorOptions(HOST, Limits(hops=30)),
            authors=self.authors,
        )
        self.port = 0

    def speaks_for(self, peer: str, domain: str) -> bool:
        return DistinguishedName.parse(peer) in self.listed.operators_of(domain)

    async def reply(self, content: bytes, sender: str = "labo@op2.example", *recipients: str) -> str:
        async with secured(self.port, self.space.client("two")) as client:
            return await handed(client, content, sender, *(recipients or (GRIS,)))

    def kept(self) -> list[Lease]:
        return self.spool.claim(100, 60)


async def handed(client: Raw, content: bytes, sender: str, *recipients: str) -> str:
    assert (await client.say(f"MAIL FROM:<{sender}>")).startswith("250")
    for recipient in recipients:
        assert (await client.say(f"RCPT TO:<{recipient}>")).startswith("250")
    assert (await client.say("DATA")).startswith("354")
    return await client.say(content + b".\r\n")


@pytest.fixture
async def world(make_spool: MakeSpool, space: TrustSpace, listed: Listed) -> AsyncIterator[World]:
    async with dns_server() as server:
        made = World(server, make_spool(), space, listed)
        made.port = await made.door.start("127.0.0.1", 0)
        yield made
        await made.door.stop()


async def test_an_operator_s_own_author_needs_no_dns(world: World) -> None:
    assert (await world.reply(mail("labo@op2.example"))).startswith("250")
    (lease,) = world.kept()
    assert "CLIENT=127.0.0.1" in lease.flags
    assert "HELO=test.example" in lease.flags
    assert world.server.asked == []


async def test_somebody_else_s_author_is_refused_in_the_session(world: World) -> None:
    """Also under a null reverse-path, and also when the name is one of ours."""
    for author in ("dr.noir@op9.example", GRIS, "x@sub.op2.example"):
        for sender in ("labo@op2.example", ""):
            reply = await world.reply(mail(author), sender)
            assert reply.startswith("550 5.7.1 Nothing proves the From address")
            assert author.partition("@")[2] in reply
    assert world.kept() == []


async def test_unless_that_author_s_domain_signed_it(world: World) -> None:
    world.server.text("s1._domainkey.op9.example", RECORD)
    signed = signed_by("op9.example", mail("dr.noir@op9.example"))
    assert (await world.reply(signed.replace(b"hello", b"hullo"))).startswith("550 5.7.1")
    assert (await world.reply(signed)).startswith("250")
    assert len(world.kept()) == 1


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENT])
async def test_while_the_dns_does_not_say_the_sender_keeps_it(world: World, fault: Fault) -> None:
    world.server.faults["s1._domainkey.op9.example"] = fault
    signed = signed_by("op9.example", mail("dr.noir@op9.example"))
    async with asyncio.timeout(10):
        assert (await world.reply(signed)).startswith("451 4.7.5")
    assert world.kept() == []


async def test_what_may_be_smime_is_judged_when_it_is_open(world: World, vault: KeyVault, mailboxes: Mailboxes) -> None:
    """And then refused for good: a sender that pretends gets its mail back, the reader does not get it."""
    forged = mail("dr.noir@op9.example").replace(
        b"\r\n\r\nhello", b'\r\nContent-Type: application/octet-stream; name="smime.p7m"\r\n\r\nhello'
    )
    assert (await world.reply(forged)).startswith("250")
    (lease,) = world.kept()
    stage = OpenStage(
        vault, mailboxes.validator, PartnerBook([]), HOST, evaluator=world.evaluator, authors=world.authors
    )
    message = Message(
        lease.message_id,
        lease.spool_id,
        lease.delivery_id,
        lease.origin,
        lease.sender,
        lease.recipient,
        world.spool.content(lease),
        lease.content_type,
        lease.accepted_at,
        lease.peer,
        flags=lease.flags,
    )
    refused = await stage.apply(message, Phase.OPEN)
    assert isinstance(refused, Refused)
    assert refused.refusal.permanent


async def test_the_dns_is_slow_for_one_and_others_come_in(world: World) -> None:
    world.server.slow["s1._domainkey.op9.example"] = 30.0
    slow = asyncio.create_task(world.reply(signed_by("op9.example", mail("dr.noir@op9.example"))))
    for number in range(5):
        content = mail("labo@op2.example").replace(b"<1@", f"<q{number}@".encode())
        assert (await world.reply(content)).startswith("250")
    assert (await slow).startswith("451")


# What goes round


def lapped(lease: Lease, content: bytes) -> bytes:
    """As it would come back: with the trace field it left with."""
    header = f"Received: by {HOST} with ESMTPS id {lease.spool_id};\r\n Sat, 1 Jan 2028 00:00:00 +0000\r\n"
    return b"Received: from gate.op1.example by mx.op2.example; x\r\n" + header.encode() + content


async def test_a_message_that_comes_back_for_the_same_mailbox_goes_round(world: World) -> None:
    content = mail("labo@op2.example")
    await world.reply(content)
    (lease,) = world.kept()
    assert (await world.reply(lapped(lease, content))).startswith("554 5.4.6 This message was here before")
    # redirected to somebody else it is a message like any other
    assert (await world.reply(lapped(lease, content), "labo@op2.example", BLEU)).startswith("250")
    assert [each.recipient for each in world.kept()] == [BLEU]


async def test_of_two_recipients_only_one_goes_round(world: World) -> None:
    """The other one gets it; whose it failed for is told once, by a delivery that has failed."""
    content = mail("labo@op2.example")
    await world.reply(content)
    (lease,) = world.kept()
    assert (await world.reply(lapped(lease, content), "labo@op2.example", GRIS, BLEU)).startswith("250")
    (other,) = world.kept()
    states = {each.recipient: (each.state, each.code) for each in world.spool.deliveries(other.spool_id)}
    assert states[GRIS] == (DeliveryState.FAILED, "mta.mail-loop")
    assert states[BLEU][0] is DeliveryState.READY


async def test_thirty_hops_are_a_loop(world: World) -> None:
    hop = b"Received: by x.example id 1; x\r\n"
    assert (await world.reply(mail("labo@op2.example", hop * 30))).startswith("554 5.4.6")
    assert (await world.reply(mail("labo@op2.example", hop * 29))).startswith("250")


async def test_a_forged_trace_loses_nobody_else_s_mail(world: World) -> None:
    forged = f"Received: by {HOST} id {'f' * 32}; x\r\n".encode()
    assert (await world.reply(mail("labo@op2.example", forged))).startswith("250")
