"""How our mailboxes are served: what Dovecot is told of each, IMAP with a certificate, and their copies."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from config.door_service import certificate_sign_in
from config.gateway.belief import Belief
from config.gateway.doors import listen
from config.gateway.mailboxes import Mailboxes, realm_of
from config.node import Process
from config.settings import Loaded, SettingsError
from mta.mailboxes.certificate_door import CertificateDoor, CertificateDoorOptions, Passes
from mta.mailboxes.dovecot import mail_location
from mta.mailboxes.mailbox_keys import MailboxKeys
from mta.mailboxes.moving import MailboxCopies
from mta.mailboxes.serving import Serving, ServingOptions
from trust.tls import TlsMaterialError, followed_service_server
from trust.vault import KeyVault


@dataclass(frozen=True, slots=True)
class MailboxServing:
    """Of one gateway."""

    serving: Serving
    passes: Passes
    """Between the door for certificates and the authentication socket: both are process 0's."""


def make_serving(loaded: Loaded, vault: KeyVault, mailboxes: Mailboxes) -> MailboxServing:
    """What Dovecot is told of them."""
    section = loaded.settings.mailboxes
    where = mail_location(loaded.path(section.memory)) if section.memory else ""
    options = ServingOptions(section.quota_bytes, where)
    return MailboxServing(Serving(vault, mailboxes.registry, mailboxes.accounts.by_address, options), Passes())


def copies_of(loaded: Loaded, vault: KeyVault) -> MailboxCopies | None:
    """Backup and move of mailboxes; None where Dovecot cannot be asked for it."""
    mailboxes = loaded.settings.mailboxes
    if not mailboxes.search_socket or not mailboxes.memory:
        return None
    realm = realm_of(loaded, vault)
    return MailboxCopies(
        loaded.path(mailboxes.search_socket), realm.home_of, MailboxKeys(vault), loaded.path(mailboxes.memory)
    )


async def open_certificate_door(
    process: Process,
    belief: Belief,
    mailboxes: Mailboxes,
    passes: Passes,
    stack: AsyncExitStack,
) -> CertificateDoor | None:
    """IMAP for machines, where the settings want it; `belief` follows its certificate. Raises `SettingsError`."""
    loaded, wanted = process.loaded, process.loaded.settings.imap_certificates
    if wanted is None or not process.first:
        return None
    try:
        tls = followed_service_server(
            "imap-certificates",
            loaded.path(wanted.chain),
            loaded.path(wanted.key),
            loaded.path(loaded.settings.trust.anchors),
        )
        authorities = str(loaded.path(wanted.dovecot_ca)) if wanted.dovecot_ca else None
        dovecot = ssl.create_default_context(cafile=authorities)
    except (TlsMaterialError, OSError) as error:
        raise SettingsError(f"imap_certificates: TLS cannot be set up: {error}") from error
    options = CertificateDoorOptions(
        wanted.dovecot_host,
        wanted.dovecot_port,
        dovecot,
        wanted.dovecot_name,
        wanted.recheck_seconds,
        connections_per_client=loaded.settings.doors.connections_per_client,
    )
    certificates = certificate_sign_in(mailboxes.accounts, belief.validator)
    door = CertificateDoor(options, tls, mailboxes.certificate_sign_in(certificates), passes)
    await listen(door.start, wanted.host, wanted.port)
    stack.push_async_callback(door.stop)
    belief.service.follow(tls)
    return door


class CertificateDoorCollector(Collector):
    """What came to the door for certificates."""

    def __init__(self, door: CertificateDoor | None) -> None:
        self._door = door

    def describe(self) -> Iterable[Metric]:
        """Nothing beforehand."""
        return ()

    def collect(self) -> Iterator[Metric]:
        door = self._door
        if door is None:
            return
        yield GaugeMetricFamily(
            "relais_imap_certificates_connections", "Open connections of machines.", value=door.connections
        )
        answers = CounterMetricFamily(
            "relais_imap_certificates_answers",
            "What machines were told: signed-in, later, full, or the code of a refusal.",
            labels=["answer"],
        )
        for answer, count in list(door.told.items()):
            answers.add_metric([answer], count)
        yield answers
        yield CounterMetricFamily(
            "relais_imap_certificates_ended",
            "Sessions ended because their certificate was believed no longer, or their mailbox was shut.",
            value=door.ended,
        )
