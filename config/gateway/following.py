"""Whose mail is followed up until it is read, as `[[follow]]` sections say."""

from __future__ import annotations

from collections.abc import Callable

from config.gateway.store import Store
from config.node import Process
from config.settings import SettingsError
from mta.follow_up import Followed, FollowUp
from mta.mailboxes.seen import SeenMail
from mta.spool import Spool
from mta.system_mail import SystemMail

_MINUTE = 60.0


def open_following(process: Process, store: Store, is_trusted: Callable[[str], bool], spool: Spool) -> FollowUp:
    """Not yet running. `is_trusted` judges a lower-case mail domain. Raises `SettingsError`."""
    loaded, settings = process.loaded, process.loaded.settings
    operator, patients = settings.operator, settings.identity.patient_domains
    followed = [
        Followed(
            each.sender.lower(),
            unread_days=each.unread_days,
            critical_seconds=each.critical_minutes * _MINUTE,
            fallback=each.fallback,
            fallback_seconds=each.fallback_minutes * _MINUTE,
        )
        for each in settings.follow
    ]
    if len({each.sender for each in followed}) < len(followed):
        raise SettingsError("two [[follow]] sections have the same sender; write one")
    for each in followed:
        if each.fallback and not each.critical_seconds:
            raise SettingsError("follow.fallback: nothing is handed on without follow.critical_minutes")
    mail = SystemMail(spool, operator.postmaster, operator.host, operator.domains, is_trusted, patients)
    search = settings.mailboxes.search_socket
    return FollowUp(
        spool,
        store.database,
        store.vault,
        store.journal,
        mail,
        followed,
        node=process.name,
        seen=SeenMail(loaded.path(search)).look if search else None,
        patient_domains=patients,
        clock=store.clock,
    )
