"""What comes in, evaluated by the open stage over a real DNS server: results nobody can forge, and a DNS that fails."""

from __future__ import annotations

import asyncio
import email
import email.policy
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from directory.partners import PartnerBook
from directory.records import Partner
from mta import refusals
from mta.authors import AuthorCheck
from mta.dns import DnsOptions, Resolver
from mta.evaluation import DkimKeys, EvaluationOptions, Evaluator, Signed, connection_flags
from mta.message import Message, Origin, Phase
from mta.opening import OpenStage
from smime import DkimKey, encrypt, join_message, public_record, sign, sign_dkim, split_message
from tests.support.dns_server import DnsServer, Fault, dns_server
from trust.refusals import Refused
from trust.vault import KeyUse, KeyVault

from .mailboxes import Mailboxes

HOST = "gate.op2.example"
NOIR, LABO, FOREIGN = "dr.noir@op2.example", "labo@op1.example", "chef@op9.example"
KEY = rsa.generate_private_key(65537, 2048)
RECORD = f"v=DKIM1; k=rsa; p={public_record(KEY)}"
PEER = "CN=one"


def mail(author: str = LABO, *fields: bytes) -> bytes:
    return (
        b"".join(fields)
        + f"From: X <{author}>\r\nTo: {NOIR}\r\nSubject: x\r\nMessage-ID: <1@op1.example>\r\n".encode()
        + b"MIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
    )


def signed_by(domain: str, content: bytes, selector: str = "s1") -> bytes:
    return sign_dkim(content, DkimKey(domain, selector, KEY)) + content


def incoming(content: bytes, *, sender: str = LABO, origin: Origin = Origin.OPERATOR, peer: str = PEER) -> Message:
    return Message(
        message_id="<1@op1.example>",
        spool_id="0" * 32,
        delivery_id="d1",
        origin=origin,
        sender=sender,
        recipient=NOIR,
        content=content,
        content_type="message/rfc822",
        accepted_at=1_800_000_000.0,
        peer=peer,
        flags=connection_flags("192.0.2.1", "mx.op1.example"),
    )


class World:
    def __init__(self, server: DnsServer, vault: KeyVault, mailboxes: Mailboxes) -> None:
        self.server, self.vault, self.mailboxes = server, vault, mailboxes
        self.partners = PartnerBook([])

    def stage(self, *, refuse: bool = True, resolver: Resolver | None = None, seconds: float = 2.0) -> OpenStage:
        asking = resolver or Resolver(DnsOptions((self.server.address,), seconds=1.0, try_seconds=0.4))
        evaluator = Evaluator(DkimKeys(self.partners, resolver=asking), asking, EvaluationOptions(seconds))
        owned = {(PEER, "op1.example")}
        authors = AuthorCheck(lambda peer, domain: (peer, domain) in owned, evaluator, refuse_unproven=refuse)
        return OpenStage(
            self.vault, self.mailboxes.validator, self.partners, HOST, evaluator=evaluator, authors=authors
        )

    async def opened(self, message: Message, **options: bool) -> email.message.EmailMessage:
        done = await self.stage(**options).apply(message, Phase.OPEN)
        assert isinstance(done, Message), done
        self.facts = done.facts
        parsed = email.message_from_bytes(done.content, policy=email.policy.default)
        assert isinstance(parsed, email.message.EmailMessage)
        return parsed

    async def results(self, message: Message, **options: bool) -> list[str]:
        opened = await self.opened(message, **options)
        (field,) = opened.get_all("Authentication-Results")
        words = " ".join(str(field).split()).split("; ")
        assert words[0] == HOST
        return words[1:]


@pytest.fixture
async def world(vault: KeyVault, mailboxes: Mailboxes) -> AsyncIterator[World]:
    mailboxes.install(vault, NOIR)
    async with dns_server() as server:
        server.text("op1.example", "v=spf1 ip4:192.0.2.0/24 -all")
        server.text("s1._domainkey.op1.example", RECORD)
        server.text("_dmarc.op1.example", "v=DMARC1; p=reject")
        yield World(server, vault, mailboxes)


async def test_everything_holds(world: World) -> None:
    assert await world.results(incoming(signed_by("op1.example", mail()))) == [
        "spf=pass smtp.mailfrom=op1.example",
        "dkim=pass header.d=op1.example header.s=s1",
        "dmarc=pass header.from=op1.example policy.dmarc=reject",
        "x-author=pass header.from=op1.example policy.by=operator",
        "x-smime=none",
    ]
    assert world.facts["verdict"].endswith("dkim=pass; author=operator")


async def test_nothing_holds_and_the_operator_is_still_believed(world: World) -> None:
    world.server.records.clear()
    world.server.text("op1.example", "v=spf1 -all")
    world.server.text("_dmarc.op1.example", "v=DMARC1; p=reject")
    assert await world.results(incoming(signed_by("op1.example", mail()))) == [
        "spf=fail smtp.mailfrom=op1.example",
        'dkim=permerror reason="no key" header.d=op1.example header.s=s1',
        "dmarc=fail header.from=op1.example policy.dmarc=reject",
        "x-author=pass header.from=op1.example policy.by=operator",
        "x-smime=none",
    ]


@pytest.mark.parametrize("fault", [Fault.SERVFAIL, Fault.SILENT, Fault.GARBAGE])
async def test_a_dns_that_fails_costs_no_mail(world: World, fault: Fault) -> None:
    """And is not passed over in silence."""
    for name in ("op1.example", "s1._domainkey.op1.example", "_dmarc.op1.example"):
        world.server.faults[name] = fault
    async with asyncio.timeout(4):
        assert await world.results(incoming(signed_by("op1.example", mail()))) == [
            "spf=temperror smtp.mailfrom=op1.example",
            'dkim=temperror reason="no answer about the key" header.d=op1.example header.s=s1',
            "dmarc=temperror header.from=op1.example",
            "x-author=pass header.from=op1.example policy.by=operator",
            "x-smime=none",
        ]


async def test_a_dns_that_is_slow_is_waited_for_so_long(world: World) -> None:
    for name in ("op1.example", "s1._domainkey.op1.example", "_dmarc.op1.example"):
        world.server.slow[name] = 30.0
    stage = world.stage(
        resolver=Resolver(DnsOptions((world.server.address,), seconds=60.0, try_seconds=60.0)), seconds=0.3
    )
    async with asyncio.timeout(2):
        done = await stage.apply(incoming(signed_by("op1.example", mail())), Phase.OPEN)
    assert isinstance(done, Message)
    assert done.content.count(b"=temperror") == 3


async def test_the_loop_goes_on_meanwhile(world: World) -> None:
    world.server.slow["op1.example"] = 0.3
    ticks = 0
    work = asyncio.create_task(world.stage().apply(incoming(mail()), Phase.OPEN))
    while not work.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert ticks > 10


async def test_a_null_reverse_path_is_judged_by_helo(world: World) -> None:
    world.server.text("mx.op1.example", "v=spf1 ip4:192.0.2.1 -all")
    assert "spf=pass smtp.helo=mx.op1.example" in await world.results(incoming(mail(), sender=""))


async def test_an_unaligned_pass_is_no_pass_of_dmarc(world: World) -> None:
    world.server.text("s1._domainkey.evil.example", RECORD)
    world.server.text("evil.example", "v=spf1 +all")
    found = await world.results(incoming(signed_by("evil.example", mail()), sender="x@evil.example"))
    assert found[:3] == [
        "spf=pass smtp.mailfrom=evil.example",
        "dkim=pass header.d=evil.example header.s=s1",
        "dmarc=fail header.from=op1.example policy.dmarc=reject",
    ]


async def test_an_agreed_key_is_the_only_one(world: World) -> None:
    """Whoever can forge an answer of the DNS adds no key to a partner who agreed on one."""
    other = rsa.generate_private_key(65537, 2048)
    record = public_record(other)
    world.partners = PartnerBook([Partner("op1.example", dkim_selector="agreed", dkim_public_key=record)])
    found = await world.results(incoming(signed_by("op1.example", mail())))
    assert 'dkim=permerror reason="no key" header.d=op1.example header.s=s1' in found
    assert world.server.count("s1._domainkey.op1.example", "TXT") == 0
    signed = sign_dkim(mail(), DkimKey("op1.example", "agreed", other)) + mail()
    assert "dkim=pass header.d=op1.example header.s=agreed" in await world.results(incoming(signed))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("v=DKIM1; p=", 'dkim=permerror reason="key revoked"'),
        ("v=DKIM1; t=y; p={}", 'dkim=pass reason="testing"'),
        ("v=DKIM1; s=tlsrpt; p={}", 'dkim=permerror reason="key record"'),
        ("v=DKIM1; h=sha1; p={}", 'dkim=permerror reason="key record"'),
        ("v=DKIM1; k=ed25519; p={}", 'dkim=permerror reason="key record"'),
        ("v=DKIM1; p={}" + " " * 5000, 'dkim=permerror reason="no key"'),
        ("v=spf1 -all", 'dkim=permerror reason="no key"'),
    ],
)
async def test_what_the_dns_says_of_a_key(world: World, record: str, expected: str) -> None:
    world.server.records["s1._domainkey.op1.example", "TXT"] = []
    world.server.text("s1._domainkey.op1.example", record.format(public_record(KEY)))
    found = await world.results(incoming(signed_by("op1.example", mail())))
    assert f"{expected} header.d=op1.example header.s=s1" in found


async def test_two_keys_in_one_place_are_none(world: World) -> None:
    world.server.text("s1._domainkey.op1.example", RECORD + "; n=another")
    found = await world.results(incoming(signed_by("op1.example", mail())))
    assert 'dkim=permerror reason="no key" header.d=op1.example header.s=s1' in found


async def test_weak_keys_prove_nothing(world: World) -> None:
    weak = rsa.RSAPublicNumbers(65537, (1 << 767) + 1).public_key()
    encoded = b64encode(weak.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    world.server.text("weak._domainkey.op1.example", f"v=DKIM1; p={encoded}")
    found = await world.results(incoming(signed_by("op1.example", mail(), "weak")))
    assert 'dkim=permerror reason="key" header.d=op1.example header.s=weak' in found


async def test_a_hundred_signatures_ask_ten_questions(world: World) -> None:
    fields = b"".join(
        b"DKIM-Signature: v=1; a=rsa-sha256; d=d%d.example; s=s; h=from; bh=YQ==; b=YQ==\r\n" % number
        for number in range(100)
    )
    found = await world.results(incoming(fields + mail()))
    assert sum(each.startswith("dkim=") for each in found) == 10
    assert len({name for name, _, _ in world.server.asked if "_domainkey" in name}) == 10


FORGED = [
    b"Authentication-Results: gate.op2.example; spf=pass; x-author=pass policy.by=operator; x-smime=pass\r\n",
    b"authentication-RESULTS: GATE.OP2.EXAMPLE; dkim=pass\r\n",
    b"Authentication-Results:\r\n gate.op2.example;\r\n\tdkim=pass\r\n",
    b'Authentication-Results: "gate.op2.example"; dkim=pass\r\n',
    b'Authentication-Results: "gate\\.op2.example" 1; dkim=pass\r\n',
    b"Authentication-Results: (a comment) gate.op2.example (x) ; dkim=pass\r\n",
    b"Authentication-Results: other.example; dkim=pass (gate.op2.example; x-smime=pass)\r\n",
    b"Authentication-Results : gate.op2.example; dkim=pass\r\n",
    b"Authentication-Results\t: gate.op2.example; dkim=pass\r\n",
    b"Received-SPF: pass (gate.op2.example: domain of x) client-ip=192.0.2.1\r\n",
    b"X-Relais-Verdict: decrypted=yes; signature=valid; signer=a@b; path=ok; author=smime\r\n",
]


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
@pytest.mark.parametrize("where", ["outside", "encrypted", "last"])
async def test_no_verdict_can_be_forged(world: World, forged: bytes, where: str) -> None:
    if where == "outside":
        content = mail(LABO, forged)
    elif where == "last":
        content = mail().replace(b"\r\n\r\n", b"\r\n" + forged + b"\r\n", 1)
    else:
        inner = b"Content-Type: text/plain\r\n" + forged + b"\r\nhello\r\n"
        certificate = world.mailboxes.keys[NOIR][KeyUse.ENCRYPTION].certificate
        transport, _ = split_message(mail())
        content = join_message(transport, encrypt(inner, [certificate]))
    opened = await world.opened(incoming(content))
    for name, ours in (("Authentication-Results", f"{HOST};"), ("X-Relais-Verdict", "decrypted=")):
        (only,) = opened.get_all(name)
        assert str(only).startswith(ours)
    assert "Received-SPF" not in opened
    assert "dkim=pass" not in str(opened["Authentication-Results"])
    assert "x-smime=none" in str(opened["Authentication-Results"])
    assert "author=operator" in str(opened["X-Relais-Verdict"])


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
@pytest.mark.parametrize("shape", ["protected", "protected-and-encrypted", "wrapped", "wrapped-and-encrypted"])
async def test_no_verdict_is_lifted_out_of_what_we_open(world: World, forged: bytes, shape: str) -> None:
    """Header protection (RFC 9788) and a wrapped message (RFC 8551 §3.1) bring an inner header to light."""
    if shape.startswith("protected"):
        hp = b"cipher" if shape.endswith("encrypted") else b"clear"
        inner = b'Content-Type: text/plain; hp="%s"\r\n' % hp
        inner += f"From: X <{LABO}>\r\nTo: {NOIR}\r\nSubject: inside\r\n".encode() + forged + b"\r\nhello\r\n"
    else:
        inner = b"Content-Type: message/rfc822; forwarded=no\r\n\r\n" + mail(LABO, forged)
    world.mailboxes.install(world.vault, LABO)
    body = sign(inner, world.vault.signer(LABO))
    if shape.endswith("encrypted"):
        body = encrypt(body, [world.mailboxes.keys[NOIR][KeyUse.ENCRYPTION].certificate])
    transport, _ = split_message(mail())
    opened = await world.opened(incoming(join_message(transport, body)))
    for name, ours in (("Authentication-Results", f"{HOST};"), ("X-Relais-Verdict", "decrypted=")):
        (only,) = opened.get_all(name)
        assert str(only).startswith(ours)
        assert "dkim=pass" not in str(only) and "author=smime" not in str(only)
    assert "Received-SPF" not in opened
    assert "signature=valid" in str(opened["X-Relais-Verdict"])


async def test_what_the_client_calls_itself_stays_in_its_place(world: World) -> None:
    message = replace(
        incoming(mail(), sender=""), flags=connection_flags("192.0.2.1", "x; dkim=pass\r\nX-Relais-Verdict: forged")
    )
    opened = await world.opened(message)
    assert 'smtp.helo="x;dkim=passx-relais-verdict:forged"' in " ".join(str(opened["Authentication-Results"]).split())
    (only,) = opened.get_all("X-Relais-Verdict")
    assert "forged" not in str(only)


# Whose word From is


async def test_somebody_else_s_author_is_refused(world: World) -> None:
    refused = await world.stage().apply(incoming(mail(FOREIGN)), Phase.OPEN)
    assert isinstance(refused, Refused)
    assert (refused.refusal, refused.detail) == (refusals.AUTHOR_UNPROVEN, "op9.example")


async def test_or_marked_where_the_operator_wants_that(world: World) -> None:
    found = await world.results(incoming(mail(FOREIGN)), refuse=False)
    assert "x-author=fail header.from=op9.example" in found
    assert world.facts["verdict"].endswith("author=none")


async def test_the_author_s_own_domain_can_sign(world: World) -> None:
    world.server.text("s1._domainkey.op9.example", RECORD)
    found = await world.results(incoming(signed_by("op9.example", mail(FOREIGN))))
    assert "x-author=pass header.from=op9.example policy.by=dkim" in found


@pytest.mark.parametrize("domain", ["example", "sub.op9.example", "op1.example"])
async def test_no_other_domain_can(world: World, domain: str) -> None:
    world.server.text(f"s1._domainkey.{domain}", RECORD)
    refused = await world.stage().apply(incoming(signed_by(domain, mail(FOREIGN))), Phase.OPEN)
    assert isinstance(refused, Refused)
    assert refused.refusal is refusals.AUTHOR_UNPROVEN


async def test_a_key_in_testing_proves_nobody(world: World) -> None:
    world.server.text("s1._domainkey.op9.example", RECORD.replace("v=DKIM1;", "v=DKIM1; t=y;"))
    refused = await world.stage().apply(incoming(signed_by("op9.example", mail(FOREIGN))), Phase.OPEN)
    assert isinstance(refused, Refused)


async def test_while_nobody_can_say_it_waits(world: World) -> None:
    world.server.faults["s1._domainkey.op9.example"] = Fault.SERVFAIL
    refused = await world.stage().apply(incoming(signed_by("op9.example", mail(FOREIGN))), Phase.OPEN)
    assert isinstance(refused, Refused)
    assert (refused.refusal, refused.refusal.permanent) == (refusals.AUTHOR_UNKNOWN_NOW, False)


async def test_the_author_can_sign_himself(world: World) -> None:
    if FOREIGN not in world.mailboxes.keys:
        world.mailboxes.issue(FOREIGN)
    world.mailboxes.install(world.vault, FOREIGN)
    signer = world.vault.signer(FOREIGN)
    assert signer is not None
    transport, entity = split_message(mail(FOREIGN))
    certificate = world.mailboxes.keys[NOIR][KeyUse.ENCRYPTION].certificate
    for protected in (sign(entity, signer), encrypt(sign(entity, signer), [certificate])):
        found = await world.results(incoming(join_message(transport, protected)))
        assert "x-author=pass header.from=op9.example policy.by=smime" in found
    unsigned = await world.stage().apply(incoming(join_message(transport, encrypt(entity, [certificate]))), Phase.OPEN)
    assert isinstance(unsigned, Refused)


async def test_the_author_that_is_read_is_the_one_that_is_judged(world: World) -> None:
    """DKIM or the operator vouch for the outer From; whoever hides another one inside proves nothing by that."""
    world.server.text("s1._domainkey.op9.example", RECORD)
    hidden = b"Content-Type: message/rfc822; forwarded=no\r\n\r\n" + mail("victime@op8.example")
    certificate = world.mailboxes.keys[NOIR][KeyUse.ENCRYPTION].certificate
    for author in (LABO, FOREIGN):
        transport, _ = split_message(mail(author))
        content = signed_by("op9.example", join_message(transport, encrypt(hidden, [certificate])))
        done = await world.stage().apply(incoming(content), Phase.OPEN)
        if isinstance(done, Refused):
            assert done.refusal is refusals.AUTHOR_UNPROVEN
        else:  # what is delivered shows the author that was proved
            assert f"<{author}>".encode() in done.content
            assert b"From: X <victime@op8.example>" not in done.content.partition(b"\r\n\r\n")[0]


async def test_a_notification_of_a_mail_system_is_never_lost(world: World) -> None:
    report = (
        b"From: MAILER-DAEMON@mx7.hoster.example\r\nTo: dr.noir@op2.example\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n"
        b"--b\r\n\r\nfailed\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns;x\r\n\r\n"
        b"Final-Recipient: rfc822; a@b.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n"
    )
    assert "x-author=fail header.from=mx7.hoster.example" in await world.results(incoming(report, sender=""))
    for wrong in (
        incoming(report),
        incoming(report.replace(b"MAILER-DAEMON", b"dr.faux"), sender=""),
        incoming(report.replace(b"multipart/report", b"multipart/mixed"), sender=""),
    ):
        assert isinstance(await world.stage().apply(wrong, Phase.OPEN), Refused)


async def test_what_is_collected_cannot_be_refused_any_more(world: World) -> None:
    found = await world.results(incoming(mail(FOREIGN), origin=Origin.COLLECTED, peer="ailleurs"))
    assert "x-author=fail header.from=op9.example" in found


async def test_our_own_people_are_theirs(world: World) -> None:
    found = await world.results(incoming(mail(), origin=Origin.SUBMISSION, peer="account"))
    assert "x-author=pass header.from=op1.example policy.by=account" in found
    assert world.server.asked == []


async def test_a_chain_is_told(world: World) -> None:
    fields = b"ARC-Seal: i=1; a=rsa-sha256; cv=none; d=x.example; s=s; b=YQ==\r\n"
    found = await world.results(incoming(mail(LABO, fields)))
    assert 'arc=fail reason="an instance is not complete"' in found


async def test_for_a_door_that_has_to_answer(world: World) -> None:
    resolver = Resolver(DnsOptions((world.server.address,), seconds=1.0))
    evaluator = Evaluator(DkimKeys(PartnerBook([]), resolver=resolver), resolver)
    now = datetime.now(UTC)
    good = signed_by("op1.example", mail())
    assert await evaluator.signed_by_author(good, now) is Signed.YES
    assert await evaluator.signed_by_author(good.replace(b"hello", b"hullo"), now) is Signed.NO
    assert await evaluator.signed_by_author(mail(), now) is Signed.NO
    assert await evaluator.signed_by_author(b"no header", now) is Signed.NO
    world.server.faults["s2._domainkey.op1.example"] = Fault.SERVFAIL
    assert await evaluator.signed_by_author(signed_by("op1.example", mail(), "s2"), now) is Signed.UNKNOWN
    assert await evaluator.signed_by_author(signed_by("op1.example", good, "s2"), now) is Signed.YES
