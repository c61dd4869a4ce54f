"""`relais connect` while it runs: the connector's gateway and its private Dovecot, kept alive as by
`relais up`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import structlog

from config.connector.expanding import CHAIN, DOVECOT, KEY
from config.connector.local_certificate import AUTHORITY, keep_local_certificate
from config.logs import without_addresses
from config.settings import Loaded
from config.supervise import Supervisor
from config.up import Gateway, UpError, only_one, unless_stopped
from mta.mailboxes.dovecot import DovecotOptions, MailboxRealm, PrivateDovecot

log = structlog.get_logger(__name__)


async def connect(loaded: Loaded, path: Path, say: Callable[[str], None]) -> None:
    """Start both and stay until SIGINT, SIGTERM or SIGHUP. `path` is the file `loaded` comes from. Raises `UpError` or
    `StartError`."""
    state = loaded.state
    lock = only_one(state)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    logs = state / "log"
    logs.mkdir(exist_ok=True, mode=0o700)
    supervisor = Supervisor(logs)
    dovecot = _dovecot(loaded)

    async def bring_up() -> bool:
        try:
            made = await asyncio.to_thread(keep_local_certificate, state)
        except OSError as error:
            raise UpError(f"{state} cannot be written: {error.strerror}") from error
        await supervisor.start("gateway", Gateway(path, state / "control.sock"), holds_keys=True)
        # After the gateway that answers its questions, and ended after it: what it drains still finds its mailbox.
        await supervisor.start("dovecot", dovecot, clean=without_addresses, outlives=True)
        connect = loaded.settings.connect
        assert connect is not None  # noqa: S101 - who calls has asked
        say(f"Relais: IMAP 127.0.0.1:{connect.imaps_port}, SMTP 127.0.0.1:{connect.submissions_port}, both under TLS.")
        if made:
            say(f"Let your mail program trust {state / AUTHORITY}.")
        log.info("connect.ready", children=supervisor.pids())
        return True

    try:
        if await unless_stopped(bring_up(), stop):
            await stop.wait()
    finally:
        await supervisor.stop()
        dovecot.clear()
        os.close(lock)


def _dovecot(loaded: Loaded) -> PrivateDovecot:
    settings, connect = loaded.settings, loaded.settings.connect
    assert connect is not None  # noqa: S101 - who calls has asked
    state = loaded.state.resolve()
    return PrivateDovecot(
        DovecotOptions(
            state=state / DOVECOT,
            imaps_port=connect.imaps_port,
            certificate_chain=state / CHAIN,
            key=state / KEY,
            realms=(
                MailboxRealm(
                    domains=settings.operator.domains,
                    authentication_socket=loaded.path(settings.mailboxes.authentication_socket).resolve(),
                    home=loaded.path(settings.mailboxes.home).resolve(),
                ),
            ),
            memory=loaded.path(settings.mailboxes.memory) if settings.mailboxes.memory else None,
            log_to_stderr=True,
        )
    )
