"""What is done to mailboxes' keys, in the journal: who, what, whose (a pseudonym), which key; no secret and no name.

The vault is files and the journal a database, so one transaction cannot hold both. Two entries do instead: `begun`,
committed before anything is changed, and `done` or `failed` after it. Whatever is killed, no act is without an entry,
and one that has begun and did not end tells where to look. A running gateway writes them, asked over its control
socket; for one that is stopped the command does, under the gateway's lock, so that there is never a second writer.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from config.control import ControlError, ask
from config.key_places import Place
from trust.generations import KeyUse
from trust.identities import normalised
from trust.journal import Journal, JournalEntry
from trust.store.database import Database, StoreUnavailableError, UnsupportedDatabaseError
from trust.vault import KeyVault

_WRITER = "relais keys"
"""The chain of a state without a configuration, which has no gateway yet whose chain it could be."""
_PATIENCE = 30.0
_LOOK = 0.1
"""Seconds between two looks at the lock."""
_ACTIONS = frozenset(
    f"key.{act}" for act in ("request", "import", "install", "rotate", "retire", "discard", "rewrap", "forget-old")
)
_OUTCOMES = frozenset(("begun", "done", "failed"))
Request = Mapping[str, Any]


class JournalUnavailableError(Exception):
    """The journal cannot be written, so nothing is done. The text is a sentence."""


@dataclass(frozen=True, slots=True)
class KeyAnswers:
    """The gateway's side; synchronous, off the loop."""

    database: Database
    journal: Journal

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        return {"key.note": self.note}

    def note(self, request: Request) -> Any:
        """Append entries about keys, all or none; a request for anything else is answered with a `problem`."""
        rows = request["entries"]
        if any(row["action"] not in _ACTIONS or row["outcome"] not in _OUTCOMES for row in rows):
            return {"problem": "these are no acts on keys"}
        entries = [
            JournalEntry(
                str(request["by"]),
                row["action"],
                row["outcome"],
                object_id=str(row["object_id"]),
                purpose="administration",
                details={str(name): str(value) for name, value in row["details"].items()},
            )
            for row in rows
        ]

        def work(connection: Connection) -> None:
            for entry in entries:
                self.journal.append(connection, entry)

        self.database.transact(work)
        return {}


class KeyJournal:
    """The command's side, for one operator, while `opened`."""

    def __init__(self, vault: KeyVault, note: Callable[[Request], Any]) -> None:
        self._vault = vault
        self._note = note

    @contextmanager
    def act(
        self, action: str, address: str = "", use: KeyUse | None = None, object_id: str = "", **details: str
    ) -> Iterator[dict[str, str]]:
        """One act, between its two entries; what is put into the dictionary is told in the second.

        Raises `JournalUnavailableError` before anything is done, or after: then the act is done, and has begun.
        """
        told = dict(details)
        if address:
            told["mailbox"] = self._vault.pseudonym("address", normalised(address))
        if use is not None:
            told["use"] = use.value
        row = {"action": f"key.{action}", "object_id": object_id, "details": told}
        self._write(row | {"outcome": "begun"}, "nothing is done")
        more: dict[str, str] = {}
        try:
            yield more
        except BaseException:
            with suppress(JournalUnavailableError):  # what went wrong first is told
                self._write(row | {"outcome": "failed"}, "")
            raise
        row["object_id"] = more.pop("object_id", object_id)
        self._write(
            row | {"outcome": "done", "details": told | more}, "what was asked for is done, and has begun there"
        )

    def _write(self, row: Mapping[str, Any], so: str) -> None:
        try:
            answer = self._note({"by": _who(), "entries": [row]})
        except ControlError as error:
            raise JournalUnavailableError(f"the journal cannot be written ({error}): {so}") from error
        except (SQLAlchemyError, StoreUnavailableError) as error:
            raise JournalUnavailableError(f"the journal cannot be written ({type(error).__name__}): {so}") from error
        if answer.get("problem"):
            raise JournalUnavailableError(f"the journal refuses an entry ({answer['problem']}): {so}")


@contextmanager
def opened(place: Place, vault: KeyVault) -> Iterator[KeyJournal]:
    """The journal of one operator, wherever it can be written now; entered as the owner of its state.

    Raises `JournalUnavailableError`.
    """
    state = place.state
    with ExitStack() as stack:
        lock = os.open(state / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        stack.callback(os.close, lock)
        if not _taken(lock, state / "control.sock"):
            yield KeyJournal(vault, lambda request: ask(state / "control.sock", "key.note", **request))
            return
        from config.migrations import upgrade  # not for whom a gateway answers

        try:
            database = Database(f"sqlite:///{state / 'relais.db'}")
            stack.callback(database.close)
            upgrade(database)
        except (SQLAlchemyError, StoreUnavailableError, UnsupportedDatabaseError, CommandError) as error:
            raise JournalUnavailableError(f"the journal's database cannot be used ({type(error).__name__})") from error
        writer = place.loaded.settings.operator.host if place.loaded is not None else _WRITER
        yield KeyJournal(vault, KeyAnswers(database, Journal(vault, writer)).note)


def _taken(lock: int, socket: Path) -> bool:
    """Whether the lock is ours now; not when a gateway has it, which can be asked. Other commands have it a moment."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if socket.exists() or time.monotonic() > until:
                return False
            time.sleep(_LOOK)
        else:
            return True


def _who() -> str:
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
