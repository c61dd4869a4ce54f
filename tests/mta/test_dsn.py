"""Delivery receipts: who gets one, what it says, that it comes once, and that it comes back between two operators."""

from __future__ import annotations

import asyncio
import email
import email.policy
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import select

from directory.partners import PartnerBook
from directory.records import Partner
from mta import refusals as mta_refusals
from mta.delivery import EndedDelivery, NewDelivery, Submission
from mta.dsn import DsnConsumer, action_of
from mta.message import Delivered, DeliveryState, Failed, Message, Origin, Outcome, TargetKind
from mta.notifications import DeliveryNotification, parse_notification
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from mta.refusals import ADDRESS_INVALID, MAILBOX_UNKNOWN, REMOTE_REFUSED
from mta.reporting import Reporter
from mta.schedule import RetrySchedule
from mta.smtp.door import DoorOptions, OperatorDoor
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from mta.spool import RELAYED, Spool
from mta.tables import messages
from mta.worker import Worker
from smime import refusals as smime_refusals
from trust.refusals import Refused, join_catalogues
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import MakeSpool, submission
from .mailboxes import Directory, Mailboxes, agreements
from .trust_space import Listed, TrustSpace

ROOT = Path(__file__).parents[2]
ALL_CODES = join_catalogues([mta_refusals.CATALOGUE, smime_refusals.CATALOGUE])
ENDED = EndedDelivery(
    delivery_id="d" * 32,
    spool_id="s" * 32,
    message_id="<1@op1.example>",
    origin=Origin.SUBMISSION,
    target=TargetKind.MAILBOX,
    sender="labo@op1.example",
    recipient="dr.gris@op1.example",
    peer="labo",
    external_id="",
    content_type="message/rfc822",
    accepted_at=1_800_000_000.0,
    ended_at=1_800_000_060.0,
    delivered=False,
    code="mta.expired",
    detail="mta.unreachable connect: timeout",
    content_blob="",
    prepared_blob=None,
    envelope_id="",
    notify="",
    original_recipient="",
    flags=(),
    facts={},
)
DELIVERED = replace(ENDED, delivered=True, code="", detail="250 ok")
PASSED = replace(DELIVERED, target=TargetKind.SMTP)
REPORTED = replace(PASSED, code=RELAYED)


def consumer(spool: Spool, postmaster: str = "postmaster@op1.example") -> DsnConsumer:
    return DsnConsumer(spool, postmaster, "gate.op1.example", {"op1.example"}, "op2.example".__eq__, ALL_CODES)


def receipts(spool: Spool) -> list[tuple[TargetKind, str, bytes]]:
    """Target, recipient and content of every receipt waiting, all with a null sender."""
    leases = spool.claim(100, 0)
    assert {(lease.origin, lease.sender) for lease in leases} <= {(Origin.SYSTEM, "")}
    return [(lease.target, lease.recipient, spool.content(lease)) for lease in leases]


@pytest.mark.parametrize(
    ("delivery", "action"),
    [
        (ENDED, "failed"),
        (replace(ENDED, notify="FAILURE"), "failed"),
        (replace(ENDED, notify="success,failure"), "failed"),
        (replace(ENDED, notify="DELAY"), None),
        (replace(ENDED, notify="SUCCESS"), None),
        (replace(ENDED, notify="NEVER"), None),
        (replace(ENDED, target=TargetKind.SMTP), "failed"),
        (replace(ENDED, origin=Origin.OPERATOR), "failed"),
        (replace(ENDED, origin=Origin.MLLP), "failed"),
        (replace(ENDED, sender=""), None),
        (replace(ENDED, origin=Origin.SYSTEM), None),
        (replace(ENDED, target=TargetKind.DOSSIER), None),
        (replace(ENDED, target=TargetKind.MLLP), None),
        (DELIVERED, None),
        (replace(DELIVERED, notify="SUCCESS"), "delivered"),
        (replace(DELIVERED, notify="SUCCESS,FAILURE", origin=Origin.OPERATOR), "delivered"),
        (replace(DELIVERED, notify="NEVER", origin=Origin.MLLP), None),
        (replace(DELIVERED, origin=Origin.MLLP), "delivered"),
        (replace(DELIVERED, notify="SUCCESS", sender=""), None),
        (replace(DELIVERED, notify="SUCCESS", origin=Origin.SYSTEM), None),
        (replace(DELIVERED, notify="SUCCESS", target=TargetKind.DOSSIER), None),
        (PASSED, None),
        (replace(PASSED, notify="SUCCESS"), "relayed"),
        (REPORTED, None),
        (replace(REPORTED, notify="SUCCESS"), None),
    ],
)
def test_who_is_told_what(delivery: EndedDelivery, action: str | None) -> None:
    assert action_of(delivery) == action


@pytest.mark.parametrize("sender", ["", "labo@ailleurs.example"])
@pytest.mark.parametrize("target", [TargetKind.MAILBOX, TargetKind.FOLDER])
async def test_what_was_collected_for_one_reader_is_told_to_no_other(
    make_spool: MakeSpool, sender: str, target: TargetKind
) -> None:
    """Two doctors, one connector: the first mailbox of the file is its postmaster. Also without a Return-Path."""
    spool = make_spool()
    beside = DsnConsumer(
        spool,
        "dr.noir@op1.example",
        "gate.op1.example",
        {"op1.example"},
        lambda domain: False,
        ALL_CODES,
        collected_to_reader=True,
    )
    failed = replace(ENDED, origin=Origin.COLLECTED, sender=sender, code="mta.mail-loop", target=target)
    await beside.ended(failed)
    await beside.ended(replace(failed, delivery_id="e" * 32, delivered=True, code=""))
    await beside.ended(replace(failed, delivery_id="f" * 32, code=mta_refusals.MALWARE_FOUND.code))
    ((_, to, content),) = receipts(spool)
    assert to == "dr.gris@op1.example"
    said = email.message_from_bytes(content, policy=email.policy.default)
    text = next(part.get_content() for part in said.walk() if part.get_content_type() == "text/plain")
    assert "relevé pour vous" in text
    assert "Votre message" not in text
    assert said["Subject"].startswith("Message releve non depose")


@pytest.mark.parametrize(
    ("sender", "target"),
    [
        ("labo@op1.example", TargetKind.MAILBOX),
        ("Labo@OP1.example", TargetKind.MAILBOX),
        ("dr.noir@op2.example", TargetKind.SMTP),
        ("someone@outside.example", None),
        ("not an address", None),
        ("a@op1.example>\r\nX: y", None),
    ],
)
async def test_where_it_goes(make_spool: MakeSpool, sender: str, target: TargetKind | None) -> None:
    spool = make_spool()
    await consumer(spool).ended(replace(ENDED, sender=sender))
    assert [(kind, to) for kind, to, _ in receipts(spool)] == ([] if target is None else [(target, sender)])


async def test_what_a_failure_says(make_spool: MakeSpool) -> None:
    spool = make_spool()
    await consumer(spool).ended(
        replace(
            ENDED, envelope_id="E+2B1", original_recipient="rfc822;dr+2Bgris@op1.example", recipient="x@op2.example"
        )
    )
    ((_, _, content),) = receipts(spool)
    found = parse_notification(content)
    assert isinstance(found, DeliveryNotification)
    assert (found.original_envelope_id, found.original_message_id) == ("E+1", "<1@op1.example>")
    (status,) = found.recipients
    assert (status.final_recipient, status.original_recipient) == ("x@op2.example", "dr+gris@op1.example")
    assert (status.action, status.status) == ("failed", "5.4.7")
    assert status.diagnostic.startswith("smtp; 554 5.4.7 The destination could not be reached in time")
    mail = email.message_from_bytes(content, policy=email.policy.default)
    assert (mail["From"], mail["To"]) == ("postmaster@op1.example", "labo@op1.example")
    assert mail["Message-ID"] == f"<dsn.{'d' * 32}.failed@gate.op1.example>"
    text = next(mail.iter_parts()).get_content()
    assert "n'a pas pu être remis à x@op2.example" in text
    assert "n'a pas pu être joint à temps" in text
    assert "could not be delivered" in text
    assert "mta.expired 5.4.7" in text


@pytest.mark.parametrize(
    ("code", "detail", "status", "diagnostic"),
    [
        ("mta.remote-refused", "RCPT: 550 5.1.1 <address> unknown", "5.1.1", "smtp; 550 5.1.1 <address> unknown"),
        ("mta.remote-refused", "end of data: 554 virus: found", "5.0.0", "smtp; 554 virus: found"),
        ("mta.remote-refused", "MAIL: 550", "5.0.0", "smtp; 550"),
        ("mta.mailbox-unknown", "", "5.1.1", f"smtp; {Refused(MAILBOX_UNKNOWN).reply}"),
        ("mta.address-invalid", "PRT-15", "5.1.3", f"smtp; {Refused(ADDRESS_INVALID, 'PRT-15').reply}"),
        ("from.another.version", "x", "5.0.0", ""),
    ],
)
async def test_why_it_failed(make_spool: MakeSpool, code: str, detail: str, status: str, diagnostic: str) -> None:
    spool = make_spool()
    await consumer(spool).ended(replace(ENDED, code=code, detail=detail, recipient="279035121518989"))
    found = parse_notification(receipts(spool)[0][2])
    assert isinstance(found, DeliveryNotification)
    (said,) = found.recipients
    assert (said.status, said.diagnostic, said.final_recipient) == (status, diagnostic, "279035121518989")


async def test_who_has_no_address_at_all(make_spool: MakeSpool) -> None:
    spool = make_spool()
    await consumer(spool).ended(replace(ENDED, origin=Origin.MLLP, code="mta.address-invalid", recipient=""))
    ((_, _, content),) = receipts(spool)
    found = parse_notification(content)
    assert isinstance(found, DeliveryNotification)
    assert [(each.final_recipient, each.action) for each in found.recipients] == [("none", "failed")]
    text = next(email.message_from_bytes(content, policy=email.policy.default).iter_parts()).get_content()
    assert "n'a pas pu être remis à un destinataire sans adresse." in text


async def test_a_sending_system_is_named_its_message_by_us(make_spool: MakeSpool) -> None:
    """As its mails do at the next operator's: it has no ENVID of its own to find the receipt by."""
    spool = make_spool()
    await consumer(spool).ended(replace(ENDED, origin=Origin.MLLP, external_id="MSG1"))
    found = parse_notification(receipts(spool)[0][2])
    assert isinstance(found, DeliveryNotification)
    assert found.original_envelope_id == ENDED.spool_id


async def test_it_returns_the_message_and_leaves_the_envelope_to_encryption(make_spool: MakeSpool) -> None:
    """What leaves the spool's hands is never this content in clear: `tests.mta.test_returned`."""
    spool = make_spool()
    secret = b"From: labo@op1.example\r\nMessage-ID: <2@op1.example>\r\nSubject: DURAND\r\n\r\nglycemie\r\n"
    spool.accept(replace(submission(content=secret, message_id="<2@op1.example>"), sender="labo@op1.example"))
    (lease,) = spool.claim(1, 60)
    spool.settle(lease, Failed(Refused(REMOTE_REFUSED, "RCPT: 550 5.1.1 no")))
    await consumer(spool).ended(spool.ended(1)[0])
    (receipt,) = spool.claim(100, 0)
    content = spool.content(receipt)
    assert secret.removesuffix(b"\r\n") in content
    assert receipt.flags == (), "not the flag that lets a bare notice travel in clear"


async def test_a_content_that_is_damaged_does_not_silence_the_failure(make_spool: MakeSpool) -> None:
    spool = make_spool()
    await consumer(spool).ended(replace(ENDED, content_blob="0" * 32))
    found = parse_notification(receipts(spool)[0][2])
    assert isinstance(found, DeliveryNotification)
    assert found.recipients[0].action == "failed"


async def test_told_twice_is_one_receipt(make_spool: MakeSpool) -> None:
    spool = make_spool()
    teller = consumer(spool)
    await asyncio.gather(*(teller.ended(ENDED) for _ in range(5)))
    await consumer(spool).ended(ENDED)
    assert len(receipts(spool)) == 1


# Killed between the receipt's acceptance and the note that it was written


async def report_all(root: Path, *, die: bool) -> Spool:
    """Report everything that ended; with `die`, SIGKILL ourselves before the spool takes note of it."""
    vault = KeyVault.open(root / "vault")
    database = Database(f"sqlite:///{root / 'relais.db'}")
    spool = Spool(database, BlobStore(root / "blobs", vault), vault, node="n", schedule=RetrySchedule())
    if die:
        spool.reported = lambda ended: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    reporter = Reporter(spool, [consumer(spool)])
    running = asyncio.create_task(reporter.run())
    async with asyncio.timeout(10):
        while spool.ended(1):  # noqa: ASYNC110 - the reporter tells nobody
            await asyncio.sleep(0.01)
    await reporter.stop()
    await running
    return spool


async def test_killed_before_taking_note_it_is_still_one_receipt(tmp_path: Path) -> None:
    vault = KeyVault.create(tmp_path / "vault")
    database = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(database.engine)
    spool = Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n", schedule=RetrySchedule())
    refused = NewDelivery("x@op2.example", TargetKind.SMTP, Refused(ADDRESS_INVALID))
    spool.accept(replace(submission(), sender="labo@op1.example", deliveries=(refused,)))
    database.close()
    script = f"import asyncio,pathlib;from tests.mta.test_dsn import report_all;p=pathlib.Path({str(tmp_path)!r});"
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script + "asyncio.run(report_all(p, die=True))"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    reader = await report_all(tmp_path, die=False)
    assert len(receipts(reader)) == 1
    assert reader.ended(10) == []


# Two operators over real sockets


@dataclass
class Shelf:
    """A mailbox target that refuses the recipients it was told to."""

    refused: set[str] = field(default_factory=set)
    seen: list[Message] = field(default_factory=list)

    async def deliver(self, message: Message) -> Outcome:
        self.seen.append(message)
        if message.recipient in self.refused:
            return Failed(Refused(REMOTE_REFUSED, "RCPT: 550 5.1.1 <address> unknown"))
        return Delivered("250 2.0.0 saved")


@dataclass
class Gateway:
    """One operator: door, road, reporter; mailboxes on a shelf."""

    domain: str
    database: Database
    spool: Spool
    port: int
    shelf: Shelf
    partners: dict[str, Partner] = field(default_factory=dict)

    def of(self, domain: str) -> Partner | None:
        return self.partners.get(domain)

    def knows(self, other: Gateway) -> None:
        self.partners[other.domain] = Partner(other.domain, "127.0.0.1", other.port)

    def origins(self) -> list[str]:
        with self.database.engine.connect() as connection:
            return list(connection.scalars(select(messages.c.origin).order_by(messages.c.origin)))


@dataclass(frozen=True)
class World:
    space: TrustSpace
    listed: Listed
    mailboxes: Mailboxes


@pytest.fixture(scope="session")
def world(space: TrustSpace, listed: Listed, mailboxes: Mailboxes) -> World:
    for domain in ("op1.example", "op2.example"):
        mailboxes.issue(f"postmaster@{domain}")
    return World(space, listed, mailboxes)


@asynccontextmanager
async def a_gateway(root: Path, world: World, name: str, domain: str, *addresses: str) -> AsyncIterator[Gateway]:
    host = f"gate.{domain}"
    vault = KeyVault.create(root / "vault")
    database = Database(f"sqlite:///{root / 'relais.db'}")
    metadata.create_all(database.engine)
    schedule = RetrySchedule(pauses=(0.05,), jitter=0.0)
    spool = Spool(database, BlobStore(root / "blobs", vault), vault, node=name, schedule=schedule)
    world.mailboxes.install(vault, f"postmaster@{domain}", *addresses)
    directory = Directory.of(world.mailboxes)
    async with AsyncExitStack() as stack:
        stack.callback(database.close)
        exists = {*addresses, f"gone@{domain}"}.__contains__
        door = OperatorDoor(spool, lambda: world.listed, exists, world.space.server(name), DoorOptions(host))
        gateway = Gateway(domain, database, spool, await door.start("127.0.0.1", 0), Shelf({f"gone@{domain}"}))
        stack.push_async_callback(door.stop)
        smtp = SmtpTarget(gateway, lambda: world.listed, world.space.client(name), SmtpTargetOptions(host))
        stack.push_async_callback(smtp.close)
        stages = (
            ProtectStage(vault, directory, world.mailboxes.validator, world.mailboxes.dkim.get, host, agreements()),
            OpenStage(vault, world.mailboxes.validator, PartnerBook([]), host),
        )
        worker = Worker(spool, stages, {TargetKind.MAILBOX: gateway.shelf, TargetKind.SMTP: smtp})
        reporter = Reporter(
            spool,
            [
                DsnConsumer(
                    spool,
                    f"postmaster@{domain}",
                    host,
                    {domain},
                    world.listed.domains.__contains__,
                    ALL_CODES,
                )
            ],
        )
        running = [asyncio.create_task(worker.run()), asyncio.create_task(reporter.run())]
        try:
            yield gateway
        finally:
            await reporter.stop()
            await worker.stop(5)
            await asyncio.gather(*running)


MAIL = (
    b"From: labo@op1.example\r\nTo: dr.noir@op2.example\r\nMessage-ID: <77@op1.example>\r\nSubject: resultat\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nglycemie\r\n"
)


def from_the_laboratory(*deliveries: NewDelivery) -> Submission:
    return Submission(
        origin=Origin.SUBMISSION,
        sender="labo@op1.example",
        peer="labo",
        content=MAIL,
        content_type="message/rfc822",
        deliveries=deliveries,
        dedup_key="77",
        message_id_domain="op1.example",
        message_id="<77@op1.example>",
    )


@pytest.mark.e2e
async def test_receipts_come_back_between_two_operators(tmp_path: Path, world: World) -> None:
    async with (
        a_gateway(tmp_path / "one", world, "one", "op1.example", "labo@op1.example", "dr.gris@op1.example") as one,
        a_gateway(tmp_path / "two", world, "two", "op2.example", "dr.noir@op2.example") as two,
    ):
        one.knows(two)
        two.knows(one)
        both = "SUCCESS,FAILURE"
        kept = one.spool.accept(
            from_the_laboratory(
                NewDelivery("dr.noir@op2.example", TargetKind.SMTP, notify=both),  # the next hop reports
                NewDelivery("gone@op2.example", TargetKind.SMTP, notify=both),  # no certificate: never leaves
                NewDelivery("dr.gris@op1.example", TargetKind.MAILBOX, notify=both),
                NewDelivery("gone@op1.example", TargetKind.MAILBOX, notify="NEVER"),
                NewDelivery("279035121518989", TargetKind.SMTP, Refused(ADDRESS_INVALID), notify=both),
            )
        )
        async with asyncio.timeout(20):
            while len([m for m in one.shelf.seen if m.recipient == "labo@op1.example"]) < 4 or any(  # noqa: ASYNC110
                spool.ended(1) or spool.counts()[DeliveryState.READY] for spool in (one.spool, two.spool)
            ):
                await asyncio.sleep(0.02)
        came = [message for message in one.shelf.seen if message.recipient == "labo@op1.example"]
        said = {}
        for message in came:
            assert message.sender == ""
            mail = email.message_from_bytes(message.content, policy=email.policy.default)
            domain = mail["From"].rpartition("@")[2]
            assert "decrypted=yes; signature=valid;" in mail["X-Relais-Verdict"]
            assert f"signer=postmaster@{domain}" in mail["X-Relais-Verdict"]
            assert mail.get_content_type() == "multipart/signed"
            found = parse_notification(message.content)
            assert isinstance(found, DeliveryNotification)
            assert found.original_message_id == "<77@op1.example>"
            (status,) = found.recipients
            said[status.final_recipient] = (domain, status.action, status.status, found.original_envelope_id)
        assert said == {
            "dr.noir@op2.example": ("op2.example", "delivered", "2.0.0", kept.spool_id),
            "gone@op2.example": ("op1.example", "failed", "5.7.5", ""),
            "dr.gris@op1.example": ("op1.example", "delivered", "2.0.0", ""),
            "279035121518989": ("op1.example", "failed", "5.1.3", ""),
        }
        assert one.origins() == ["operator", "submission", "system", "system", "system"]
        assert two.origins() == ["operator", "system"], "no receipt about a receipt"


@pytest.mark.e2e
async def test_the_next_hops_mailbox_server_refuses(tmp_path: Path, world: World) -> None:
    """A 250 at the door, a 550 behind it: the operator that said yes tells."""
    async with (
        a_gateway(tmp_path / "one", world, "one", "op1.example", "labo@op1.example") as one,
        a_gateway(tmp_path / "two", world, "two", "op2.example", "dr.noir@op2.example") as two,
    ):
        one.knows(two)
        two.knows(one)
        two.shelf.refused.add("dr.noir@op2.example")
        one.spool.accept(from_the_laboratory(NewDelivery("dr.noir@op2.example", TargetKind.SMTP)))
        async with asyncio.timeout(20):
            while not one.shelf.seen:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        found = parse_notification(one.shelf.seen[0].content)
        assert isinstance(found, DeliveryNotification)
        assert [(each.action, each.status) for each in found.recipients] == [("failed", "5.1.1")]
