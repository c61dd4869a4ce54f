"""Two operators, end to end: password at one door, mutual TLS between them, a verdict in the doctor's real mailbox."""

from __future__ import annotations

import asyncio
import email
import email.policy
import smtplib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy import select

from directory.partners import PartnerBook
from directory.records import Partner
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.message import Delivered, DeliveryState, Message, Origin, TargetKind
from mta.opening import OpenStage
from mta.protecting import ProtectStage
from mta.schedule import RetrySchedule
from mta.smtp.door import DoorOptions, OperatorDoor, SubmissionDoor
from mta.smtp.target import SmtpTarget, SmtpTargetOptions
from mta.spool import Spool
from mta.tables import deliveries
from mta.worker import Worker
from smime import public_record
from tests.support.dovecot import Running, a_dovecot
from trust.accounts import Accounts
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

from .mailboxes import Directory, Mailboxes, agreements
from .smtp_client import with_smtplib
from .trust_space import Listed, TrustSpace

DOCTOR, COLLEAGUE, LABORATORY = "medecin@ville.mssante.test", "dr.gris@op1.example", "labo@op1.example"
MAIL = (
    f"From: Labo <{LABORATORY}>\r\nTo: {DOCTOR}\r\nSubject: resultat\r\nMIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nglycémie 3.8\r\n"
).encode()

pytestmark = pytest.mark.e2e


@dataclass
class Node:
    """One operator's road."""

    vault: KeyVault
    database: Database
    spool: Spool

    @classmethod
    def create(cls, root: Path) -> Node:
        root.mkdir()
        vault = KeyVault.create(root / "vault")
        database = Database(f"sqlite:///{root / 'relais.db'}")
        metadata.create_all(database.engine)
        schedule = RetrySchedule(pauses=(0.2,), jitter=0.0)
        return cls(
            vault, database, Spool(database, BlobStore(root / "blobs", vault), vault, node="n", schedule=schedule)
        )

    async def settled(self, count: int) -> None:
        async with asyncio.timeout(20):
            while self.spool.counts()[DeliveryState.READY] or sum(self.spool.counts().values()) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def dovecot() -> Iterator[Running]:
    with a_dovecot() as server:
        yield server


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        await worker.stop(5)
        await running


@pytest.fixture
def trusted(space: TrustSpace) -> Listed:
    return Listed(
        {
            "op1.example": frozenset({space.names["one"]}),
            "ville.mssante.test": frozenset({space.names["two"]}),
        }
    )


async def test_from_a_laboratory_to_a_doctors_mailbox(
    tmp_path: Path, space: TrustSpace, mailboxes: Mailboxes, trusted: Listed, dovecot: Running
) -> None:
    directory = Directory.of(mailboxes)
    one, two = Node.create(tmp_path / "one"), Node.create(tmp_path / "two")
    mailboxes.install(one.vault, LABORATORY, COLLEAGUE)
    mailboxes.install(two.vault, DOCTOR)
    accounts = Accounts(one.database, one.vault, hasher=PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    accounts.create("labo", [LABORATORY], "secret")
    published = public_record(mailboxes.dkim["op1.example"].key)

    async with AsyncExitStack() as stack:
        stack.callback(one.database.close)
        stack.callback(two.database.close)
        incoming = OperatorDoor(
            two.spool, lambda: trusted, DOCTOR.__eq__, space.server("two"), DoorOptions("gate.ville.test")
        )
        incoming_port = await incoming.start("127.0.0.1", 0)
        stack.push_async_callback(incoming.stop)
        lmtp = LmtpTarget(LmtpOptions("gate.ville.test", socket=dovecot.dovecot.lmtp_socket))
        stack.push_async_callback(lmtp.close)
        opening = OpenStage(
            two.vault,
            mailboxes.validator,
            PartnerBook([Partner("op1.example", dkim_selector="s1", dkim_public_key=published)]),
            "gate.ville.test",
        )
        await stack.enter_async_context(working(Worker(two.spool, [opening], {TargetKind.MAILBOX: lmtp})))

        outgoing = SmtpTarget(
            PartnerBook([Partner("ville.mssante.test", "127.0.0.1", incoming_port)]),
            lambda: trusted,
            space.client("one"),
            SmtpTargetOptions("gate.op1.example"),
        )
        stack.push_async_callback(outgoing.close)
        protecting = ProtectStage(
            one.vault, directory, mailboxes.validator, mailboxes.dkim.get, "gate.op1.example", agreements()
        )
        await stack.enter_async_context(working(Worker(one.spool, [protecting], {TargetKind.SMTP: outgoing})))
        submission = SubmissionDoor(
            one.spool,
            accounts,
            COLLEAGUE.__eq__,
            "op1.example".__eq__,
            lambda domain: bool(trusted.operators_of(domain)),
            space.service(),
            DoorOptions("gate.op1.example"),
        )
        submission_port = await submission.start("127.0.0.1", 0)
        stack.push_async_callback(submission.stop)

        def send(client: smtplib.SMTP) -> None:
            client.login("labo", "secret")
            assert client.sendmail(LABORATORY, [DOCTOR], MAIL, ["BODY=8BITMIME"], ["NOTIFY=SUCCESS,FAILURE"]) == {}

        await with_smtplib(submission_port, space.anonymous(), send)
        await one.settled(1)
        await two.settled(1)

        (message_id,) = message_ids(one)
        (spool_id,) = one.spool.find(message_id)
        assert [step.kind for step in one.spool.steps(spool_id)] == ["accept", "attempt", "prepare", "delivered"]
        assert two.spool.find(message_id), "both operators trace one message by one name"

    with dovecot.log_in(DOCTOR, "pass word/é$") as client:
        client.select("INBOX")
        raw = client.fetch("1", "(BODY.PEEK[])")[1][0][1]
    mail = email.message_from_bytes(raw, policy=email.policy.default)
    assert mail.get_body().get_content() == "glycémie 3.8\r\n"
    assert "decrypted=yes; signature=valid;" in mail["X-Relais-Verdict"]
    assert f"signer={LABORATORY}" in mail["X-Relais-Verdict"]
    assert "dkim=pass" in mail["Authentication-Results"]
    assert mail["Return-Path"] == f"<{LABORATORY}>"


def message_ids(node: Node) -> list[str]:
    return list(node.database.read(lambda connection: connection.scalars(select(deliveries.c.message_id)).all()))


async def test_a_delivery_repeated_after_a_crash_is_one_mail(dovecot: Running) -> None:
    """Killed between the mailbox server's 250 and our commit: the same delivery id comes again."""
    target = LmtpTarget(LmtpOptions("gate.ville.test", socket=dovecot.dovecot.lmtp_socket))
    message = Message(
        message_id="<1@x.example>",
        spool_id="s",
        delivery_id="delivery-77",
        origin=Origin.OPERATOR,
        sender="",
        recipient="labo@ville.mssante.test",
        content=b"X-Relais-Delivery: delivery-77\r\nFrom: a@b.example\r\n\r\nonly once\r\n",
        content_type="message/rfc822",
        accepted_at=0.0,
    )
    assert [isinstance(await target.deliver(message), Delivered) for _ in range(2)] == [True, True]
    await target.close()
    assert await asyncio.to_thread(dovecot.texts, message.recipient) == [b"only once"]
