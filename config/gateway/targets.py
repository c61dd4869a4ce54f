"""Where a mail ends: our mailboxes, other operators, the senders' systems, patients' records; how many at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from bridges.dossier.repository import Dossier
from bridges.dossier.rights import load_matrix
from bridges.dossier.target import DossierTarget
from bridges.hl7.client import MllpTarget
from config.gateway.belief import Belief
from config.gateway.mailboxes import Mailboxes, realm_of
from config.gateway.places import Places
from config.gateway.serving import MailboxServing
from config.gateway.stages import Parse
from config.gateway.store import Store
from config.incoming import Incoming
from config.outgoing import Outgoing
from config.settings import Loaded
from mta.absorbing import ReceiptDoorkeeper
from mta.believed import Believed
from mta.mailboxes.authentication import AuthenticationSocket, is_held
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.mailboxes.rules import GuardedMailboxes
from mta.message import Target, TargetKind
from mta.notices import Notices
from mta.spool import Spool
from mta.worker import WorkerOptions
from trust.certificates import Purpose
from trust.identities import Identity
from trust.refusals import Refused
from trust.vault import KeyVault


@dataclass(frozen=True, slots=True)
class Targets:
    """Of one gateway."""

    by_kind: Mapping[TargetKind, Target]
    outgoing: Outgoing
    dossier: Dossier | None
    """None where no record is kept."""


def open_targets(
    loaded: Loaded,
    store: Store,
    belief: Belief,
    places: Places,
    spool: Spool,
    incoming: Incoming,
    notices: Notices,
    parse: Parse,
    mailboxes: Mailboxes,
    wants_readings: Callable[[str], bool],
    stack: AsyncExitStack,
) -> Targets:
    """`wants_readings`: as in `mta.absorbing.ReceiptDoorkeeper`. Raises `SettingsError`."""
    settings, served = loaded.settings, loaded.settings.mailboxes
    lmtp = LmtpTarget(
        LmtpOptions(
            settings.operator.host,
            loaded.path(served.lmtp_socket),
            search_socket=loaded.path(served.search_socket) if served.search_socket else None,
            full_seconds=served.full_seconds,
            is_held=functools.partial(is_held, realm_of(loaded, store.vault).home_of),
        )
    )
    stack.push_async_callback(lmtp.close)
    trust_list = belief.trust_list
    outgoing = Outgoing(
        loaded,
        places.partners,
        lambda: trust_list.current,
        belief.service.partners,
        belief.service.judge(Purpose.OPERATOR_TLS_SERVER),
        incoming.resolver,
        stack,
    )
    acknowledge = MllpTarget(
        {each.partner: (each.receiver_host, each.receiver_port) for each in settings.mllp if each.receiver_port}
    )
    stack.push_async_callback(acknowledge.close)
    by_kind: dict[TargetKind, Target] = {
        TargetKind.MAILBOX: ReceiptDoorkeeper(
            GuardedMailboxes(lmtp, mailboxes.rules, lmtp.filed),
            spool,
            Believed(spool, incoming.speaks_for),
            notices,
            wants_readings,
        ),
        TargetKind.SMTP: outgoing.target,
        TargetKind.MLLP: acknowledge,
    }
    dossier = None
    if settings.dossier.enabled:
        dossier = Dossier(store.database, store.blobs, store.vault, store.journal, load_matrix())
        by_kind[TargetKind.DOSSIER] = DossierTarget(dossier, parse)
    return Targets(by_kind, outgoing, dossier)


def authentication_socket(
    loaded: Loaded,
    mailboxes: Mailboxes,
    vault: KeyVault,
    tokens: Callable[[str, str], Identity | Refused] | None,
    served: MailboxServing,
) -> AuthenticationSocket:
    """What Dovecot asks about our mailboxes; not yet listening. `tokens`: None when no access token is taken."""
    realm = realm_of(loaded, vault)
    return AuthenticationSocket(
        realm.authentication_socket,
        mailboxes.accounts,
        realm.home_of,
        mailboxes.sign_in,
        mailboxes.token_sign_in(tokens) if tokens else None,
        served.serving,
        served.passes.take,
    )


def worker_options(per_destination: int, final_seconds: float = 600.0) -> WorkerOptions:
    """More places in all than for one destination, or one that stalls would stop every other. An attempt outlasts the
    wait for a final answer, or what was sent whole would be given up and sent again."""
    attempt = max(600.0, final_seconds + 300.0)
    return WorkerOptions(
        concurrency=4 * per_destination,
        per_destination=per_destination,
        attempt_seconds=attempt,
        lease_seconds=attempt + 900.0,
    )
