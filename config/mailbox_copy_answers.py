"""What is done about the copies of a mailbox on a running gateway: backup, restore, move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from mta.mailboxes.moving import CopyError, Holding, MailboxCopies
from mta.mailboxes.registry import Entry
from trust.identities import AccountError
from trust.journal import Journal, JournalEntry
from trust.sealing import VaultError
from trust.store.database import Database

Request = Mapping[str, Any]

_NOWHERE = (
    "Dovecot cannot be asked: the configuration must name mailboxes.search_socket (doveadm's socket) and "
    "mailboxes.memory"
)

_HOLDING = frozenset({"restore", "move.out", "move.in"})
"""What makes mail wait."""


class MailboxCopyAnswers:
    """Each act stands in the journal, with the mailbox's id. Synchronous: a large mailbox takes minutes."""

    def __init__(
        self, copies: MailboxCopies | None, database: Database, journal: Journal, named: Callable[[str], Entry]
    ) -> None:
        """`named`: the mailbox of an address or an id; raises `AccountError`
        (`mta.mailboxes.administration.MailboxAdministration.show`)."""
        self._copies = copies
        self._database = database
        self._journal = journal
        self._named = named
        self._busy: set[str] = set()
        self._lock = Lock()

    def calls(self) -> dict[str, Callable[[Request], Any]]:
        """All calls by name; what cannot be done comes as `{"problem": sentence}`."""
        acts: dict[str, Callable[[MailboxCopies, str, Request], Holding | None]] = {
            "backup": lambda copies, address, said: copies.backup(address, Path(said["directory"])),
            "restore": lambda copies, address, said: copies.restore(
                address, Path(said["directory"]), exactly=said["exactly"]
            ),
            "move.out": lambda copies, address, said: copies.move_out(address, Path(said["directory"])),
            "move.in": lambda copies, address, said: copies.move_in(address, Path(said["directory"])),
            "move.undo": lambda copies, address, _: copies.release(address),
            "move.done": lambda copies, address, _: copies.forget(address),
        }
        return {f"mailbox.{name}": partial(self._done, name, act) for name, act in acts.items()}

    def _done(
        self, name: str, act: Callable[[MailboxCopies, str, Request], Holding | None], request: Request
    ) -> dict[str, Any]:
        if self._copies is None:
            return {"problem": _NOWHERE}
        try:
            entry = self._named(str(request["name"]))
        except AccountError as error:
            return {"problem": str(error)}
        with self._lock:
            if entry.id in self._busy:
                return {"problem": "this mailbox is being copied or moved just now: wait until that has ended"}
            self._busy.add(entry.id)
        try:
            return self._alone(self._copies, name, act, entry, request)
        finally:
            with self._lock:
                self._busy.discard(entry.id)

    def _alone(
        self,
        copies: MailboxCopies,
        name: str,
        act: Callable[[MailboxCopies, str, Request], Holding | None],
        entry: Entry,
        request: Request,
    ) -> dict[str, Any]:
        if name in _HOLDING:  # whatever ends it, that it was begun is known
            self._note(name, "begun", entry, request)
        outcome, problem, held = "done", "", None
        try:
            held = act(copies, entry.record.address, request)
        except (CopyError, VaultError) as error:
            outcome, problem = "failed", str(error)
        except OSError as error:
            outcome, problem = "failed", f"the disk refuses: {error.strerror}"
        self._note(name, outcome, entry, request, problem)
        if problem:
            return {"problem": problem}
        return {} if held is None else asdict(held)

    def _note(self, name: str, outcome: str, entry: Entry, request: Request, problem: str = "") -> None:
        note = JournalEntry(str(request["by"]), f"mailbox.{name}", outcome, object_id=entry.id, reason=problem)
        self._database.transact(lambda connection: self._journal.append(connection, note) and None)
