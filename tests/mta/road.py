"""One whole gateway for tests: real spool, stages and cryptography, a scanner that is told what to find, mailboxes on a
shelf. Neither doors nor network."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, or_, select

from bridges.arriving.following import FollowedStage
from bridges.hl7 import reader as hl7
from directory.partners import PartnerBook
from mta import follow_up_refusals, quarantine_refusals
from mta import refusals as mta_refusals
from mta.absorbing import ReceiptDoorkeeper
from mta.any_delivery import AnyReader
from mta.awaited import AwaitedReceipts
from mta.believed import Believed
from mta.clamd import Clean, Infected, ScannerTroubleError, Verdict
from mta.delivery import Accepted, NewDelivery, Submission
from mta.dsn import DsnConsumer, DsnOptions
from mta.follow_up import Followed, FollowUp
from mta.mailboxes.seen import Looked
from mta.message import Delivered, DeliveryState, Message, Origin, Outcome, TargetKind
from mta.notices import Notices
from mta.opening import OpenStage
from mta.overdue import Overdue, OverdueOptions
from mta.protecting import ProtectStage
from mta.quarantine import Quarantine
from mta.reporting import Reporter
from mta.scanning import ScanOptions, ScanStage
from mta.schedule import RetrySchedule
from mta.spool import Spool
from mta.system_mail import SystemMail
from mta.tables import deliveries
from mta.worker import Worker
from smime import refusals as smime_refusals
from tests.support.clamd import EICAR
from trust.journal import Journal
from trust.refusals import join_catalogues
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

from .conftest import Clock
from .mailboxes import Directory, Mailboxes, agreements

CATALOGUE = join_catalogues(
    [mta_refusals.CATALOGUE, smime_refusals.CATALOGUE, quarantine_refusals.CATALOGUE, follow_up_refusals.CATALOGUE]
)
LABO, GRIS, NOIR = "labo@op1.example", "dr.gris@op1.example", "dr.noir@op2.example"
POSTMASTER = "postmaster@op1.example"
OPERATOR_TWO = "CN=two"


@dataclass
class ToldScanner:
    """Finds EICAR, unless it is down or told what to say."""

    down: bool = False
    says: Verdict | None = None
    scanned: list[bytes] = field(default_factory=list)

    async def scan(self, content: bytes) -> Verdict:
        if self.down:
            raise ScannerTroubleError("no verdict in time")
        self.scanned.append(content)
        if self.says is not None:
            return self.says
        return Infected("Eicar-Test-Signature") if EICAR in content else Clean()


@dataclass
class Shelf:
    """A target that keeps what it gets, or answers as told for a recipient."""

    seen: list[Message] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    async def deliver(self, message: Message) -> Outcome:
        self.seen.append(message)
        return self.outcomes.get(message.recipient, Delivered("250 ok"))

    def to(self, recipient: str) -> list[Message]:
        return [each for each in self.seen if each.recipient == recipient]


@dataclass
class Road:
    spool: Spool
    database: Database
    vault: KeyVault
    journal: Journal
    directory: Directory
    scanner: ToldScanner
    mailboxes: Shelf
    partners: Shelf
    quarantine: Quarantine
    overdue: Overdue
    notices: Notices
    deliveries: AnyReader
    clock: Clock
    follow: FollowUp

    def accept(
        self, content: bytes, *deliveries: NewDelivery, origin: Origin = Origin.SUBMISSION, **more: object
    ) -> str:
        values = {"sender": LABO, "peer": "account-labo", "dedup_key": f"key-{self.clock.now}-{hash(content)}"} | more
        kept = self.spool.accept(
            Submission(
                origin=origin,
                content=content,
                content_type="message/rfc822",
                deliveries=deliveries,
                message_id_domain="op1.example",
                **values,  # type: ignore[arg-type]
            )
        )
        assert isinstance(kept, Accepted)
        return kept.spool_id

    async def quiet(self) -> None:
        """Until nothing is due and everybody was told."""

        due = deliveries.c.due <= self.clock.now
        waiting = (deliveries.c.state == "ready") & (deliveries.c.lease.is_not(None) | due)
        untold = (deliveries.c.state != "ready") & ~deliveries.c.reported
        busy = select(func.count()).where(or_(waiting, untold))
        self.spool.announce()  # a clock that was moved rings no bell
        async with asyncio.timeout(60):
            while self.database.read(lambda connection: connection.scalar(busy)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def state(self, spool_id: str) -> list[tuple[DeliveryState, str]]:
        return [(each.state, each.code) for each in self.spool.deliveries(spool_id)]

    def kinds(self, spool_id: str) -> list[str]:
        return [each.kind for each in self.spool.steps(spool_id)]


def may_report(peer: str, domain: str) -> bool:
    return (peer, domain) == (OPERATOR_TWO, "op2.example")


@asynccontextmanager
async def a_road(
    root: Path,
    mailboxes: Mailboxes,
    *,
    scan: ScanOptions | None = None,
    dsn: DsnOptions | None = None,
    overdue: OverdueOptions | None = None,
    clock: Clock | None = None,
    held: tuple[str, ...] = (POSTMASTER, LABO, GRIS),
    followed: tuple[Followed, ...] = (),
    seen: Callable[[str, Collection[str]], Looked | None] | None = None,
    wants_readings: Callable[[str], bool] = lambda address: True,
    url: str = "",
) -> AsyncIterator[Road]:
    clock = clock or Clock()
    mailboxes.keys.get(POSTMASTER) or mailboxes.issue(POSTMASTER)
    mailboxes.keys.get("postmaster@op2.example") or mailboxes.issue("postmaster@op2.example")
    vault = KeyVault.create(root / "vault")
    mailboxes.install(vault, *held)
    database = Database(url or f"sqlite:///{root / 'relais.db'}")
    metadata.create_all(database.engine)
    blobs = BlobStore(root / "blobs", vault)
    schedule = RetrySchedule(pauses=(600.0,), jitter=0.0)
    spool = Spool(database, blobs, vault, node="n1", schedule=schedule, clock=clock)
    journal = Journal(vault, "n1")
    directory = Directory.of(mailboxes)
    us = (POSTMASTER, "gate.op1.example", {"op1.example"}, {"op1.example", "op2.example"}.__contains__)
    notices = Notices(database, "n1", clock)
    teller = DsnConsumer(
        spool, *us, CATALOGUE, patient_domains=("patient.op2.example",), options=dsn, notices=notices, node="n1"
    )
    mail = SystemMail(spool, *us, ("patient.op2.example",))
    quarantine = Quarantine(spool, database, blobs, vault, journal, mail, node="n1", clock=clock)
    late = Overdue(spool, database, teller, quarantine, overdue or OverdueOptions(), node="n1", clock=clock)
    scanner, shelf, partners = ToldScanner(), Shelf(), Shelf()
    follow = FollowUp(
        spool, database, vault, journal, mail, followed, node="n1", seen=seen,
        patient_domains=("patient.op2.example",), clock=clock,
    )  # fmt: skip
    followed_stage = FollowedStage(follow.senders, follow.begin, functools.partial(hl7.parse, environment="test"))
    follow.examine_by(followed_stage.critical_of)
    stages = (
        followed_stage,
        ProtectStage(vault, directory, mailboxes.validator, mailboxes.dkim.get, "gate.op1.example", agreements()),
        OpenStage(vault, mailboxes.validator, PartnerBook([]), "gate.op1.example"),
        ScanStage(scanner, scan),
    )
    filing = ReceiptDoorkeeper(shelf, spool, Believed(spool, may_report), notices, wants_readings)
    worker = Worker(spool, stages, {TargetKind.MAILBOX: filing, TargetKind.SMTP: partners}, clock=clock)
    reporter = Reporter(spool, [teller, quarantine, follow, AwaitedReceipts(spool, may_report)])
    road = Road(
        spool, database, vault, journal, directory, scanner, shelf, partners, quarantine, late, notices,
        AnyReader(spool), clock, follow,
    )  # fmt: skip
    tasks = [asyncio.create_task(worker.run()), asyncio.create_task(reporter.run())]
    try:
        yield road
    finally:
        await reporter.stop()
        await worker.stop(5)
        await asyncio.gather(*tasks)
        database.close()
