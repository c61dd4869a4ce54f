"""`relais connect`: the practice connector."""

from __future__ import annotations

import asyncio
import functools
import ssl
import sys
from pathlib import Path

import click

from config.options import STATE


class _ClickTerminal:
    """The person at the terminal."""

    def ask(self, question: str, default: str = "", *, hidden: bool = False) -> str:
        said = click.prompt(question, default=default, hide_input=hidden, show_default=bool(default))
        return str(said).strip()

    def agree(self, question: str) -> bool:
        return click.confirm(question, default=True)

    def say(self, sentence: str) -> None:
        click.echo(sentence)


@click.command("connect")
@STATE
@click.option("--init", "first", is_flag=True, help="Set it up: asks what your operator's servers cannot tell.")
@click.option("--dns", "servers", multiple=True, metavar="ADDRESS", help="With --init: name servers to ask.")
@click.option("--log-level", default="WARNING", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
def connect(state: Path, first: bool, servers: tuple[str, ...], log_level: str) -> None:
    """Run beside the doctor: collect, open, send through the operators, serve the local mail program."""
    from config import doctor, logs
    from config.connector.examining import unwritable_folders
    from config.connector.first_time import FILE
    from config.connector.supervising import connect as run
    from config.privileges import PrivilegeError
    from config.settings import SettingsError, load
    from config.supervise import StartError
    from config.up import UpError, become_service

    if first:
        _set_up(state, servers)
        return
    logs.configure(log_level)
    missing = [each for each in doctor.missing_programs() if not each.startswith("slap")]
    if missing:
        _fail(f"Missing on this machine: {', '.join(missing)}.")
    if not (state / FILE).exists():
        _fail(f"There is no {state / FILE}: set the connector up with relais connect --init --state {state}")
    try:
        state = become_service(state)
        loaded = load(state / FILE)
        if loaded.settings.connect is None:
            _fail(f"{state / FILE} has no [connect]: it is an operator's, for relais serve.")
        if loaded.state.resolve() != state:
            _fail("connect.state is not the directory of --state: leave it out of the file.")
        for folder in unwritable_folders(loaded):  # it may be a share that is away: no reason not to start
            _say(f"{folder} is no folder that Relais can write: what is for it waits.")
        asyncio.run(run(loaded, state / FILE, _say))
    except (UpError, PrivilegeError, StartError, SettingsError) as error:
        _fail(str(error))


def _set_up(state: Path, servers: tuple[str, ...]) -> None:
    from config.connector.discovery import discover
    from config.connector.first_time import LOCAL_PASSWORD, FirstTimeError, first_time
    from config.privileges import PrivilegeError
    from directory.srv import SrvLookup
    from trust.revocation.fetching import Fetcher, FetchOptions

    try:
        lookup = SrvLookup(servers)
    except ValueError:
        raise click.BadParameter("--dns takes the address of a name server") from None
    fetcher = Fetcher(FetchOptions(seconds=10.0), tls=ssl.create_default_context())
    look = functools.partial(discover, lookup=lookup, get=fetcher.get)
    try:
        loaded = first_time(state, _ClickTerminal(), look)
    except (FirstTimeError, PrivilegeError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or state} cannot be written: {error.strerror}")
    settings = loaded.settings.connect
    assert settings is not None  # noqa: S101 - it was written just now
    click.echo(f"Written: {state}. Start it with relais connect --state {state}, then set up your mail program:")
    click.echo(
        f"  IMAP 127.0.0.1 port {settings.imaps_port} (SSL/TLS), SMTP 127.0.0.1 port {settings.submissions_port}"
    )
    click.echo(f"  user: the address; password: in {state / LOCAL_PASSWORD}")


def _say(sentence: str) -> None:
    click.echo(sentence)
    sys.stdout.flush()


def _fail(sentence: str) -> None:
    click.echo(sentence, err=True)
    sys.exit(1)
