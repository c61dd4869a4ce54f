"""The control socket of a process: what the command line asks of each part of the gateway."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack

from config.accounts_answers import answers_about_accounts
from config.answers import Answers, off_loop
from config.control import ControlSocket
from config.directory_answers import DirectoryAnswers
from config.directory_service import open_register, open_writer
from config.follow_up_answers import FollowUpAnswers
from config.gateway.belief import Belief
from config.gateway.mailboxes import make_registry
from config.gateway.serving import copies_of
from config.gateway.store import Store
from config.housekeeping import Housekeeping
from config.key_journal import KeyAnswers
from config.mailbox_answers import MailboxAnswers
from config.mailbox_copy_answers import MailboxCopyAnswers
from config.node import Process
from config.outgoing import Outgoing
from config.quarantine_answers import QuarantineAnswers
from config.queue_answers import QueueAnswers, Redirections
from directory.resolve import Directory
from mta.follow_up import FollowUp
from mta.quarantine import Quarantine
from mta.queue import Queue
from mta.worker import Worker
from trust.accounts import Accounts
from trust.accounts_administration import Administration

_COPIES = 2
"""Copies of mailboxes at once: each keeps a process of Dovecot busy."""


async def open_control(
    process: Process,
    store: Store,
    belief: Belief,
    directory: Directory,
    accounts: Accounts,
    about_mailboxes: MailboxAnswers,
    answers: Answers,
    queue: Queue,
    quarantine: Quarantine,
    follow: FollowUp,
    housekeeping: Housekeeping,
    worker: Worker,
    outgoing: Outgoing,
    exists: Callable[[str], bool],
    threads: Executor,
    stack: AsyncExitStack,
) -> None:
    """Calls are answered in `threads`; `exists`: whether a mailbox is ours."""
    loaded, settings = process.loaded, process.loaded.settings
    about_directory = DirectoryAnswers(
        directory,
        settings.directory.base,
        belief.validator,
        functools.partial(open_writer, loaded),
        functools.partial(open_register, loaded),
    )
    about_accounts = answers_about_accounts(
        Administration(accounts, store.journal, make_registry(accounts, store.vault, loaded)), belief.validator, loaded
    )
    copies = copies_of(loaded, store.vault)
    # Of their own: a night of backups holds up no report and no command; and the end waits for none of them.
    copying = ThreadPoolExecutor(_COPIES, thread_name_prefix="copies")
    stack.callback(copying.shutdown, wait=False, cancel_futures=True)
    if copies is not None:
        stack.callback(copies.close)
    about_copies = MailboxCopyAnswers(
        copies, store.database, store.journal, lambda name: about_mailboxes.administration.show(name).entry
    )
    redirections = Redirections(
        directory,
        exists,
        frozenset(settings.operator.domains),
        frozenset(settings.identity.patient_domains),
        belief.trust_list.is_trusted,
    )
    loop = asyncio.get_running_loop()

    def hurry() -> None:
        """An operator says "now": also to destinations that rest. From any thread."""
        loop.call_soon_threadsafe(outgoing.target.try_now)
        loop.call_soon_threadsafe(worker.wake)

    own = {
        **about_accounts.calls(),
        **about_mailboxes.calls(),
        **KeyAnswers(store.database, store.journal).calls(),
        **housekeeping.calls(),
        **QuarantineAnswers(quarantine).calls(),
        **FollowUpAnswers(follow).calls(),
        **about_directory.calls(),
        **QueueAnswers(queue, redirections, hurry).calls(),
    }
    calls = {**answers.calls(threads), **belief.service.calls(threads), **off_loop(own, threads)}
    calls |= off_loop(about_copies.calls(), copying)
    control = ControlSocket(process.file("control", ".sock"), calls)
    await control.start()
    stack.push_async_callback(control.stop)
