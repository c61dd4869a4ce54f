"""What is done about the copies of a mailbox on a running gateway: backup, restore, move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mta.mailboxes.moving import CopyError, Holding, MailboxCopies
from trust.journal import Journal, JournalEntry
from trust.sealing import VaultError
from trust.store.database import Database

Request = Mapping[str, Any]

_NOWHERE = (
    "Dovecot cannot be asked: the configuration must name mailboxes.search_socket (doveadm's socket) and "
    "mailboxes.memory"
)


class MailboxCopyAnswers:
    """Each act stands in the journal, with the mailbox's pseudonym. Synchronous: a large mailbox takes minutes."""

    def __init__(
        self, copies: MailboxCopies | None, database: Database, journal: Journal, name_of: Callable[[str], str]
    ) -> None:
        """`name_of`: what stands for an address in the journal."""
        self._copies = copies
        self._database = database
        self._journal = journal
        self._name_of = name_of

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
        address = str(request["address"]).strip().lower()
        outcome, problem, held = "done", "", None
        try:
            held = act(self._copies, address, request)
        except (CopyError, VaultError) as error:
            outcome, problem = "failed", str(error)
        except OSError as error:
            outcome, problem = "failed", f"the disk refuses: {error.strerror}"
        entry = JournalEntry(
            str(request["by"]), f"mailbox.{name}", outcome, object_id=self._name_of(address), reason=problem
        )
        self._database.transact(lambda connection: self._journal.append(connection, entry) and None)
        if problem:
            return {"problem": problem}
        return {} if held is None else asdict(held)
