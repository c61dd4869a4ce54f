"""Whose mail is followed up until it is read, as `[[follow]]` sections say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from config.gateway.arriving import FindMailbox
from config.gateway.store import Store
from config.node import Process
from config.sections import FollowSettings
from config.settings import SettingsError
from directory.records import MailboxKind
from mta.follow_up import Followed, FollowUp
from mta.mailboxes.seen import SeenMail
from mta.smtp.address import domain_of, is_address
from mta.spool import Spool
from mta.system_mail import SystemMail

log = structlog.get_logger(__name__)

_MINUTE = 60.0


def open_following(
    process: Process, store: Store, is_trusted: Callable[[str], bool], spool: Spool, find: FindMailbox
) -> FollowUp:
    """Not yet running. `is_trusted` judges a lower-case mail domain; `find` is `MailboxRegistry.find`. Raises
    `SettingsError`."""
    loaded, settings = process.loaded, process.loaded.settings
    operator, patients = settings.operator, settings.identity.patient_domains
    followed = services(settings.follow, patients)
    mail = SystemMail(spool, operator.postmaster, operator.host, operator.domains, is_trusted, patients)
    for each in followed:
        if each.fallback and mail.route(each.fallback) is None:  # the trust list may not have come yet
            log.warning("follow.fallback-unreachable", sender=each.sender, fallback=each.fallback)
    search = settings.mailboxes.search_socket

    def is_machine(address: str) -> bool:
        record = find(address.lower())
        return record is not None and record.kind is MailboxKind.APP

    return FollowUp(
        spool,
        store.database,
        store.vault,
        store.journal,
        mail,
        followed,
        node=process.name,
        seen=SeenMail(loaded.path(search), is_machine=is_machine).look if search else None,
        patient_domains=patients,
        clock=store.clock,
    )


def services(sections: Sequence[FollowSettings], patient_domains: Sequence[str]) -> list[Followed]:
    """As `[[follow]]` sections say. Raises `SettingsError`: what is wrong would be found out at night, with the first
    critical result that nobody reads."""
    followed = [
        Followed(
            each.sender.lower(),
            unread_days=each.unread_days,
            critical_seconds=each.critical_minutes * _MINUTE,
            fallback=each.fallback,
            fallback_seconds=each.fallback_minutes * _MINUTE,
        )
        for each in sections
    ]
    if len({each.sender for each in followed}) < len(followed):
        raise SettingsError("two [[follow]] sections have the same sender; write one")
    patients = {domain.lower() for domain in patient_domains}
    for each in followed:
        fallback = each.fallback.lower()
        if not fallback:
            continue
        if not each.critical_seconds:
            raise SettingsError("follow.fallback: nothing is handed on without follow.critical_minutes")
        if not is_address(fallback):
            raise SettingsError("follow.fallback must be a mail address")
        if domain_of(fallback) in patients:
            raise SettingsError("follow.fallback must be a professional's mailbox, not a patient's")
        if fallback == each.sender:
            raise SettingsError("follow.fallback must be somebody else than follow.sender")
    return followed
