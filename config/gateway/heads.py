"""Signed heads of the journal leave the machine for as long as the gateway runs."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from config.gateway.running import Running
from config.gateway.store import Store
from config.journal_answers import JournalAnswers
from config.node import Process
from config.publishing import PublishingTask
from config.sections import JournalSettings
from config.settings import Loaded, SettingsError
from config.vaults import vault_for
from trust.checkpoints import Checkpoints
from trust.journal import Journal
from trust.publishing import Destination, HeadFile, HeadSyslog, Publisher, PublisherOptions
from trust.signed_heads import HeadSigner, KeyHeadSigner, SealedHeadSigner
from trust.syslog import SyslogAddress
from trust.vault import KeyVault


async def publish_heads(process: Process, store: Store, running: Running) -> JournalAnswers:
    """From now on. Raises `SettingsError`."""
    loaded, journal = process.loaded, store.journal
    section = loaded.settings.journal
    name = section.name or loaded.settings.operator.host
    try:
        signer = await _signer(loaded, store.vault)
        destinations = _destinations(loaded, section, journal)
        if not process.first:  # the first process of this machine publishes every head
            destinations = []
    except (OSError, ValueError) as error:
        raise SettingsError(f"the journal's heads cannot be published as [journal] says: {error}") from error
    checkpoints = Checkpoints(store.database, journal, signer, name)
    options = PublisherOptions(section.checkpoint_seconds, section.idle_seconds)
    publisher = Publisher(store.database, checkpoints, destinations, name, journal.writer, options)
    running.start(PublishingTask(publisher, section.checkpoint_seconds), "journal heads")
    return JournalAnswers(store.database, store.vault, journal, checkpoints, publisher, name, signer.public_key)


async def _signer(loaded: Loaded, vault: KeyVault) -> HeadSigner:
    mailbox = loaded.settings.journal.signer
    if not mailbox:
        return await asyncio.to_thread(SealedHeadSigner.open, _head_key(loaded), vault)
    held = await asyncio.to_thread(vault.signer, mailbox)
    if held is None:
        raise SettingsError(f"journal.signer: no valid signing key of {mailbox} is held")
    return KeyHeadSigner(held)


def _destinations(loaded: Loaded, section: JournalSettings, journal: Journal) -> list[Destination]:
    context = None
    if any(url.startswith("tls:") for url in section.syslog):
        context = ssl.create_default_context(cafile=str(loaded.path(section.syslog_ca)) if section.syslog_ca else None)
        if section.syslog_chain:
            context.load_cert_chain(loaded.path(section.syslog_chain), loaded.path(section.syslog_key))
    destinations: list[Destination] = [HeadFile(loaded.path(section.heads))] if section.heads else []
    return destinations + [HeadSyslog(SyslogAddress(url, context), journal.writer) for url in section.syslog]


def _head_key(loaded: Loaded) -> Path:
    """Beside the vault where nodes share one: heads of one journal are signed by one key."""
    return (vault_for(loaded) if loaded.settings.keys.vault else loaded.state) / "journal.key"
