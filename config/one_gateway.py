"""How `relais account` and `relais mailbox` reach one operator: a running gateway over its control socket, the state of
one that is stopped directly, under the gateway's own lock, so that there is never a second writer.

Passwords are asked for, or read from a file or standard input; never from the command line, which every user of the
machine can see.
"""

from __future__ import annotations

import fcntl
import functools
import getpass
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click
from sqlalchemy.exc import SQLAlchemyError

from config.control import ControlError, ask
from config.key_places import Place, Where, as_owner, fail
from config.options import CONFIG, STATE
from config.settings import Loaded, SettingsError
from trust.vault import KeyVault, VaultError

if TYPE_CHECKING:
    from trust.store.database import Database

Calls = Mapping[str, Callable[[Mapping[str, Any]], Any]]

_LONGEST_PASSWORD = 4096
_PATIENCE = 300.0
"""Seconds a gateway has for its answer: a list takes it a millisecond for each account."""
_OPEN_SESSIONS = (
    "Done; but IMAP sessions that are open could not be ended: Dovecot's doveadm socket (mailboxes.search_socket) does "
    "not answer. They last until their clients leave, or Dovecot restarts."
)


class Gateway(ABC):
    """One operator, wherever it can be reached now."""

    family: ClassVar[str]
    """What its calls begin with."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def do(self, call: str, **arguments: Any) -> Any:
        """The answer; ends the command with a sentence when there is none."""
        answer = self._answer(f"{self.family}.{call}", arguments | {"by": who()})
        if isinstance(answer, dict) and "problem" in answer:
            problem = answer["problem"]
            fail(f"{problem[:1].upper()}{problem[1:]}.")
        if isinstance(answer, dict) and not answer.get("sessions_ended", True):
            click.echo(_OPEN_SESSIONS, err=True)
        return answer

    def has(self, name: str) -> bool:
        return "problem" not in self._answer(f"{self.family}.show", {"name": name, "by": who()})

    @abstractmethod
    def calls(self, loaded: Loaded, database: Database, vault: KeyVault, call: str) -> Calls:
        """What a running gateway would answer with; `call` is the one that will be made."""

    def _answer(self, call: str, arguments: dict[str, Any]) -> Any:
        socket, state = self.place.state / "control.sock", self.place.state
        with as_owner(state):
            lock = os.open(state / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return ask(socket, call, _PATIENCE, **arguments)
                return self._directly(call, arguments)
            finally:
                os.close(lock)

    def _directly(self, call: str, arguments: dict[str, Any]) -> Any:
        from config.migrations import upgrade
        from config.node import open_database

        loaded = self.place.loaded
        if loaded is None:
            fail(f"{self.place.state} has no relais.toml: name the operator's with --config.")
        vault = self.place.open()
        database = open_database(loaded)
        try:
            upgrade(database)
            return self.calls(loaded, database, vault, call)[call](arguments)
        finally:
            database.close()


def on_gateway(work: Callable[..., None]) -> Callable[..., None]:
    """Which gateway, and sentences instead of stack traces."""

    @STATE
    @CONFIG
    @functools.wraps(work)
    def command(state: Path, config: Path | None, **arguments: Any) -> None:
        try:
            work(Where(state, config), **arguments)
        except ControlError as error:
            fail(str(error))
        except (SettingsError, VaultError) as error:
            fail(f"{str(error)[:1].upper()}{str(error)[1:]}.")
        except SQLAlchemyError as error:
            fail(f"The accounts' database cannot be used ({type(error).__name__}).")

    return command


def read_password(file: Any, none: bool) -> str | None:
    """From the file, or asked for twice; never from the command line."""
    if none:
        if file is not None:
            raise click.UsageError("--no-password and --password-file exclude each other")
        return None
    if file is None:
        asked: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return asked
    line = file.read(_LONGEST_PASSWORD).split(b"\n", 1)[0].removesuffix(b"\r")
    try:
        return str(line.decode("utf-8-sig"))  # Windows writes a mark before the first character
    except UnicodeDecodeError:
        fail("The password file must be UTF-8.")


def who() -> str:
    """Who gives the command, for the journal."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
