"""The SMTP and LMTP doors, opened once whatever they accept can be worked on."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from config.door_service import RELOADED, certificate_sign_in, door_options, limits_of
from config.gateway.belief import Belief
from config.gateway.mailboxes import Mailboxes, answered_marks
from config.gateway.places import Places
from config.gateway.submission import submission_rules
from config.incoming import Incoming, lmtp_door, open_lmtp
from config.node import Process
from config.oidc_service import OidcService
from config.reloading import Reloading
from config.settings import SettingsError
from mta.smtp.door import DoorOptions, OperatorDoor, SubmissionDoor
from mta.spool import Spool
from trust.accounts import Accounts
from trust.certificates import Purpose


@dataclass(frozen=True, slots=True)
class Doors:
    """All that are open, and what they share."""

    open: Sequence[OperatorDoor | SubmissionDoor]
    options: DoorOptions


async def open_doors(
    process: Process,
    spool: Spool,
    belief: Belief,
    places: Places,
    incoming: Incoming,
    accounts: Accounts,
    mailboxes: Mailboxes,
    oidc: OidcService,
    reloading: Reloading,
    stack: AsyncExitStack,
) -> Doors:
    """Raises `SettingsError` where one cannot listen."""
    exists = mailboxes.exists
    settings, trust, trust_list = process.loaded.settings, belief.service, belief.trust_list
    is_local = frozenset(settings.operator.domains).__contains__
    options = door_options(settings)
    rules = submission_rules(settings, places, lambda: trust_list.current.domains)
    doors: list[OperatorDoor | SubmissionDoor] = []
    operators = OperatorDoor(
        spool,
        lambda: trust_list.current,
        exists,
        trust.operators,
        options,
        trust.judge(Purpose.OPERATOR_TLS_CLIENT),
        incoming.authors,
        mailboxes.rules,
    )
    await listen(operators.start, settings.operators.host, settings.operators.port, reuse_port=process.shares_ports)
    stack.push_async_callback(operators.stop)
    doors.append(operators)
    answered = answered_marks(process.loaded, mailboxes)
    if answered is not None:
        stack.push_async_callback(asyncio.to_thread, answered.close)
    if settings.submission is not None and trust.submission is not None:
        submission = SubmissionDoor(
            spool,
            accounts,
            exists,
            is_local,
            trust_list.is_trusted,
            trust.submission,
            options,
            oidc.authenticate if oidc else None,
            certificate_sign_in(accounts, belief.validator) if settings.submission.client_certificates else None,
            mailboxes.rules,
            answered.sent if answered is not None else None,
            rules,
        )
        await listen(
            submission.start, settings.submission.host, settings.submission.port, reuse_port=process.shares_ports
        )
        stack.push_async_callback(submission.stop)
        doors.append(submission)
        if settings.submissions is not None:
            await listen(
                functools.partial(submission.start, implicit_tls=True),
                settings.submissions.host,
                settings.submissions.port,
                reuse_port=process.shares_ports,
            )
    reloading.follow(
        ["spool.max_message_bytes", *RELOADED], lambda changed: [door.reload(limits_of(changed)) for door in doors]
    )
    for each in settings.lmtp:
        door = lmtp_door(
            each,
            spool,
            accounts,
            exists,
            is_local,
            trust_list.is_trusted,
            options,
            mailboxes.rules,
            rules,
        )
        await open_lmtp(door, process.loaded, each, first=process.first, reuse_port=process.shares_ports)
        doors.append(door)
    return Doors(doors, options)


async def listen(start: Callable[..., Any], host: str, port: int, **how: bool) -> None:
    """`start` a door there. Raises `SettingsError`."""
    try:
        await start(host, port, **how)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    except ValueError as error:  # metrics, which are for loopback only
        raise SettingsError(f"cannot listen on {host}:{port}: {error}") from error
