"""`relais mailbox backup|restore|move|dovecot-files`: what concerns a mailbox's mail, and the operator's own Dovecot.

The first three ask the running gateway: it has the vault, and Dovecot answers it. `SERVING_COMMANDS` are added to the
group `relais mailbox`.
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
from config.options import CONFIG, JSON, STATE
from config.settings import SettingsError
from trust.vault import VaultError

_PATIENCE = 4 * 3600.0
_ADDRESS = click.argument("address")
_DIRECTORY = click.argument("directory", type=click.Path(file_okay=False, path_type=Path))


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    return STATE(CONFIG(JSON(command)))


@click.command("backup")
@_ADDRESS
@_DIRECTORY
@_options
def backup(address: str, directory: Path, state: Path, config: Path | None, as_json: bool) -> None:
    """Put a mailbox aside in DIRECTORY, still encrypted; into an earlier backup only what changed is written.

    Mail comes in and is read meanwhile. The backup opens with this gateway's vault only.
    """
    _say(_do("backup", address, state, config, directory=str(directory.resolve())), as_json)


@click.command("restore")
@_ADDRESS
@_DIRECTORY
@click.option("--exactly", is_flag=True, help="Make the mailbox what it was: what came since is gone.")
@_options
def restore(address: str, directory: Path, exactly: bool, state: Path, config: Path | None, as_json: bool) -> None:
    """Bring a backup back: into an empty mailbox as it was, else below the folder Restauration."""
    answer = _do("restore", address, state, config, directory=str(directory.resolve()), exactly=exactly)
    _say(answer, as_json)


@click.command("move")
@_ADDRESS
@_DIRECTORY
@click.option("--out", "step", flag_value="out", help="Here: write it to DIRECTORY; from now on its mail waits.")
@click.option("--in", "step", flag_value="in", help="There: take it from DIRECTORY, and open it.")
@click.option("--undo", "step", flag_value="undo", help="Here: as if nothing had been done.")
@click.option("--done", "step", flag_value="done", help="Here: remove it, its new place has it.")
@_options
def move(address: str, directory: Path, step: str | None, state: Path, config: Path | None, as_json: bool) -> None:
    """Move a mailbox to another Dovecot under the same vault: --out here, --in there, then --done here."""
    if step is None:
        raise click.UsageError("say which step it is: --out, --in, --undo or --done")
    _say(_do(f"move.{step}", address, state, config, directory=str(directory.resolve())), as_json)


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


def _place(state: Path, config: Path | None, address: str = "") -> Place:
    try:
        places = Where(state, config).places()
    except (SettingsError, VaultError, OSError) as error:
        fail(str(error))
    mine = [each for each in places if not address or each.serves(address)]
    if len(mine) != 1:
        fail("No gateway of this state has that address." if not mine else "Say which gateway it is with --config.")
    return mine[0]


def _do(call: str, address: str, state: Path, config: Path | None, **arguments: Any) -> dict[str, Any]:
    place = _place(state, config, address)
    try:
        with as_owner(place.state):
            answer = ask(
                place.state / "control.sock", f"mailbox.{call}", _PATIENCE, address=address, by=_who(), **arguments
            )
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


def _who() -> str:
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
