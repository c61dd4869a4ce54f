"""What comes in other than by SMTP: reports over MLLP, upstream mailboxes that are collected, services' letters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

from bridges.cda import read_cda
from bridges.dropfolder import DropFolder
from bridges.hl7.door import MllpDoor, MllpOptions
from bridges.hl7.mllp import FrameError
from bridges.intake import Intake, IntakeOptions, SendingSystem, TrustedDomains
from bridges.letters import Letters
from config.gateway.doors import listen
from config.gateway.mailboxes import Mailboxes
from config.gateway.running import Running
from config.gateway.spooling import Spooling
from config.gateway.stages import Parse, routing_options
from config.incoming import MailCollectors
from config.node import Process
from config.sections import MllpListener
from directory.resolve import Directory
from mta.collecting import Collector
from mta.collecting_options import CollectorOptions
from mta.spool import Spool

_LOOK_SECONDS = 2.0
"""Between two looks at a drop folder."""


async def open_systems(
    process: Process,
    spooling: Spooling,
    directory: Directory,
    trust_list: TrustedDomains,
    parse: Parse,
    mailboxes: Mailboxes,
    collected: Sequence[CollectorOptions],
    collectors: MailCollectors,
    threads: ThreadPoolExecutor,
    running: Running,
    stack: AsyncExitStack,
    has_key: Callable[[str], bool] = lambda address: True,
) -> Letters:
    """`collectors` tells of the mailboxes `collected`; `threads` acknowledge; `has_key` as in
    `mta.collecting.Collector`. Returns who takes letters. Raises `SettingsError`."""
    loaded, settings = process.loaded, process.loaded.settings
    spool = spooling.spool
    intake = Intake(
        spool,
        directory,
        trust_list,
        parse,
        IntakeOptions(routing_options(settings)),
        # the configuration names who sends: as good as a certificate
        sends=functools.partial(mailboxes.rules.sends, certified=True),
    )
    stack.callback(intake.close)
    for listener in settings.mllp:
        door = _mllp_door(listener, intake, threads)
        await listen(door.start, listener.host, listener.port, reuse_port=process.shares_ports)
        stack.push_async_callback(door.stop)
    for each in collected:
        collect = functools.partial(_collector, collectors, each, spool, mailboxes.exists, has_key)
        running.start(spooling.once_for_all(collect), f"collect {each.name}")
    letters = Letters(
        intake,
        read_cda,
        {
            each.sender: SendingSystem(f"letters:{each.sender}", each.sender, each.sender_name)
            for each in settings.letters
        },
    )
    for service in settings.letters:
        if service.folder and process.first:
            folder = DropFolder(loaded.path(service.folder), letters, service.sender, _LOOK_SECONDS)
            running.start(folder, f"letters {service.sender}")
    return letters


def _collector(
    collectors: MailCollectors,
    options: CollectorOptions,
    spool: Spool,
    exists: Callable[[str], bool],
    has_key: Callable[[str], bool],
) -> Collector:
    return collectors.add(Collector(options, spool, exists, has_key))


def _mllp_door(listener: MllpListener, intake: Intake, threads: ThreadPoolExecutor) -> MllpDoor:
    system = SendingSystem(listener.partner, listener.sender, listener.sender_name)

    def receive(frame: bytes) -> bytes:
        return intake.receive(frame, system)

    def refuse(error: FrameError) -> bytes:
        return intake.refuse(error, system)

    options = MllpOptions(listener.max_frame_bytes, listener.idle_seconds)
    return MllpDoor(options, receive, refuse, threads)
