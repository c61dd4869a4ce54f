"""`relais mailbox backup|restore|move|dovecot-files`: what concerns a mailbox's mail, and the operator's own Dovecot.

The first three ask the running gateway: it has the vault, and Dovecot answers it. They last, and every user of the
machine can read a command line meanwhile: name a patient's mailbox by the id that `relais mailbox list` shows.
`SERVING_COMMANDS` are added to the group `relais mailbox`.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from config.control import ControlError, ask
from config.key_places import Place, Where, as_owner, fail
from config.one_gateway import who
from config.options import CONFIG, JSON, STATE
from config.settings import SettingsError
from trust.vault import VaultError

_PATIENCE = 4 * 3600.0
_NAME = click.argument("name", metavar="MAILBOX")
_DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, path_type=Path))


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    return STATE(CONFIG(JSON(command)))


@click.command("backup")
@_NAME
@_DIRECTORY
@_options
def backup(name: str, directory: Path, state: Path, config: Path | None, as_json: bool) -> None:
    """Put a mailbox aside in DIRECTORY, still encrypted; into an earlier backup only what changed is written.

    Mail comes in and is read meanwhile. The backup opens with this gateway's vault only.
    """
    _say(_do("backup", name, state, config, directory=str(directory.resolve())), as_json)


@click.command("restore")
@_NAME
@_DIRECTORY
@click.option("--exactly", is_flag=True, help="Make the mailbox what it was: what came since is gone.")
@_options
def restore(name: str, directory: Path, exactly: bool, state: Path, config: Path | None, as_json: bool) -> None:
    """Bring a backup back: into an empty mailbox as it was, else below the folder Restauration.

    While a mailbox is made what it was, its mail waits and nobody is in it.
    """
    answer = _do("restore", name, state, config, directory=str(directory.resolve()), exactly=exactly)
    _say(answer, as_json)


@click.command("move")
@_NAME
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), required=False)
@click.option("--out", "step", flag_value="out", help="Here: write it to DIRECTORY; from now on its mail waits.")
@click.option("--in", "step", flag_value="in", help="There: take it from DIRECTORY, and open it.")
@click.option("--undo", "step", flag_value="undo", help="Here: as if nothing had been done.")
@click.option("--done", "step", flag_value="done", help="Here: remove it, its new place has it.")
@_options
def move(name: str, directory: Path | None, step: str | None, state: Path, config: Path | None, as_json: bool) -> None:
    """Move a mailbox to another Dovecot under the same vault: --out here, --in there, then --done here.

    --done removes only what --out wrote whole, and only while the mailbox still holds just that.
    """
    if step is None:
        raise click.UsageError("say which step it is: --out, --in, --undo or --done")
    if (directory is None) == (step in ("out", "in")):
        raise click.UsageError("--out and --in take a DIRECTORY, --undo and --done none")
    where = {} if directory is None else {"directory": str(directory.resolve())}
    _say(_do(f"move.{step}", name, state, config, **where), as_json)


@click.command("dovecot-files")
@_DIRECTORY
@click.option("--user", default="", help="Account Dovecot and this gateway run as; default: the state's owner.")
@click.option("--loopback-port", type=click.IntRange(1, 65535), help="Dovecot's own IMAP port on 127.0.0.1, for teams.")
@click.option("--tokens", is_flag=True, help="Offer XOAUTH2 and OAUTHBEARER.")
@STATE
@CONFIG
def dovecot_files(
    directory: Path, user: str, loopback_port: int | None, tokens: bool, state: Path, config: Path | None
) -> None:
    """Write what a Dovecot of your own includes to serve this gateway's mailboxes (docs/dovecot.md)."""
    from config.gateway.mailboxes import realm_of
    from mta.mailboxes.dovecot import DovecotConfigurationError
    from mta.mailboxes.dovecot_files import write_files

    place = _place(state, config)
    if place.loaded is None:
        fail("This needs the gateway's configuration: name it with --config.")
    if not place.loaded.settings.mailboxes.memory:
        fail("mailboxes.memory must name a directory on a tmpfs, such as /run/relais-mailboxes.")
    account = user or pwd.getpwuid(place.state.stat().st_uid).pw_name
    memory = place.loaded.path(place.loaded.settings.mailboxes.memory)
    target = directory.resolve()
    try:
        _make_for(target, place.state)
        with as_owner(place.state):
            realm = realm_of(place.loaded, place.open())
            written = write_files(target, (realm,), memory, account, loopback_port=loopback_port, tokens=tokens)
    except (SettingsError, VaultError, DovecotConfigurationError) as error:
        fail(f"{error}")
    except OSError as error:
        fail(f"{target} cannot be written: {error.strerror}")
    for each in written:
        click.echo(each)


SERVING_COMMANDS = (backup, restore, move, dovecot_files)


def _place(state: Path, config: Path | None) -> Place:
    try:
        places = Where(state, config).places()
    except (SettingsError, VaultError, OSError) as error:
        fail(str(error))
    if len(places) != 1:
        fail("Say which gateway it is with --config.")
    return places[0]


def _make_for(directory: Path, state: Path) -> None:
    """As root: the gateway's user may make nothing where Dovecot's configuration is. What is there is left as it is."""
    if os.geteuid() == 0 and not directory.exists():
        owner = state.stat()
        directory.mkdir(mode=0o700)
        os.chown(directory, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _do(call: str, name: str, state: Path, config: Path | None, **arguments: Any) -> dict[str, Any]:
    from config.mailbox_command import gateway_of  # which has these commands in its group

    try:
        gateway, name = gateway_of(Where(state, config), name)
        place = gateway.place
        with as_owner(place.state):
            answer = ask(place.state / "control.sock", f"mailbox.{call}", _PATIENCE, name=name, by=who(), **arguments)
    except (SettingsError, VaultError, OSError) as error:
        fail(str(error))
    except ControlError as error:
        fail(str(error))
    if "problem" in answer:
        fail(f"{answer['problem'][:1].upper()}{answer['problem'][1:]}.")
    return dict(answer)


def _say(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(answer))
    elif answer:
        click.echo(f"{answer['messages']} messages, {answer['octets']} octets.")
    else:
        click.echo("Done.")
