"""Who is told how it ended: the sender's mailbox, the sender's system; and of what takes too long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridges.receipts import ReceiptConsumer
from config.catalogue import CATALOGUE
from config.gateway.running import Running
from config.gateway.stages import Parse
from config.gateway.store import Store
from config.incoming import Incoming
from config.node import Process
from config.screening_service import overdue_options
from mta.awaited import AwaitedReceipts
from mta.dsn import DsnConsumer, DsnOptions
from mta.follow_up import FollowUp
from mta.notices import Notices
from mta.overdue import Overdue
from mta.quarantine import Quarantine
from mta.reporting import Reporter
from mta.spool import Spool
from mta.system_mail import SystemMail


@dataclass(frozen=True, slots=True)
class Telling:
    """What others ask of it."""

    quarantine: Quarantine
    overdue: Overdue


def start_telling(
    process: Process,
    store: Store,
    is_trusted: Callable[[str], bool],
    spool: Spool,
    incoming: Incoming,
    notices: Notices,
    parse: Parse,
    running: Running,
    follow: FollowUp,
) -> Telling:
    """From now on, as soon as something ended. `is_trusted` judges a lower-case mail domain."""
    loaded, settings = process.loaded, process.loaded.settings
    operator, patients = settings.operator, settings.identity.patient_domains
    us = (operator.postmaster, operator.host, operator.domains, is_trusted)
    node, clock = process.name, store.clock
    beside = settings.connect is not None  # the reader of collected mail; our operators have judged who reports
    dsn = DsnConsumer(
        spool,
        *us,
        CATALOGUE,
        patient_domains=patients,
        options=DsnOptions(settings.notifications.return_max_bytes, lifetime=settings.spool.expire_seconds),
        notices=notices,
        node=node,
        collected_to_reader=beside,
    )
    system_mail = SystemMail(spool, *us, patients)
    quarantine = Quarantine(
        spool, store.database, store.blobs, store.vault, store.journal, system_mail, node=node, clock=clock
    )
    overdue = Overdue(spool, store.database, dsn, quarantine, overdue_options(loaded), node=node, clock=clock)
    receipts = ReceiptConsumer(
        spool,
        {each.partner: each.sender for each in settings.mllp if each.receiver_port},
        parse,
        CATALOGUE,
        incoming.speaks_for,
    )
    follow.tell_systems_by(receipts.unread)
    running.start(follow, "follow-up")
    awaited = AwaitedReceipts(spool, incoming.speaks_for, collected=beside)
    reporter = Reporter(spool, (dsn, quarantine, receipts, awaited, follow))
    running.start(reporter, "reporter")
    running.start(overdue, "overdue")
    return Telling(quarantine, overdue)
