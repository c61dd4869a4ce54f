"""What the control socket answers about copies of mailboxes: each act in the journal, every failure a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.mailbox_copy_answers import MailboxCopyAnswers
from config.mailbox_serving_command import SERVING_COMMANDS
from directory.records import MailboxKind
from mta.mailboxes.moving import CopyError, Holding
from mta.mailboxes.records import MailboxRecord
from mta.mailboxes.registry import Entry
from trust import tables as _tables  # noqa: F401
from trust.identities import AccountError
from trust.journal import Journal
from trust.sealing import VaultError
from trust.store import metadata
from trust.store.database import Database
from trust.vault import KeyVault

ADDRESS = "279035121518989@patient.mssante.test"
ENTRY = Entry("0123abcd", MailboxRecord(address=ADDRESS, kind=MailboxKind.PATIENT, label=""))


def named(name: str) -> Entry:
    if name not in (ADDRESS, "0123"):
        raise AccountError("there is no mailbox of this address or id")
    return ENTRY


class Copies:
    """Does what it is told, or fails so."""

    failure: Exception | None = None
    meanwhile: Callable[[], object] | None = None

    def backup(self, address: str, directory: Path) -> Holding:
        if self.failure is not None:
            raise self.failure
        assert (address, directory) == (ADDRESS, Path("/copies/a"))
        return Holding(2, 300)

    def release(self, address: str) -> None:
        assert address == ADDRESS

    def move_out(self, address: str, directory: Path) -> Holding:
        assert self.meanwhile is not None
        self.meanwhile()
        return Holding(2, 300)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/relais.db")
    metadata.create_all(database.engine)
    yield database
    database.close()


def test_each_act_is_journalled_without_an_address(database: Database, tmp_path: Path) -> None:
    journal = Journal(KeyVault.create(tmp_path / "vault"), "node")
    copies = Copies()
    calls = MailboxCopyAnswers(copies, database, journal, named).calls()  # type: ignore[arg-type]
    asked = {"name": "0123", "directory": "/copies/a", "by": "exploitant"}
    assert calls["mailbox.backup"](asked) == {"messages": 2, "octets": 300}
    assert calls["mailbox.move.undo"](asked) == {}
    failures = [(CopyError("no such thing"), "no such thing"), (VaultError("altered"), "altered")]
    for failure, sentence in [*failures, (OSError(28, "No space left"), "the disk refuses: No space left")]:
        copies.failure = failure
        assert calls["mailbox.backup"](asked) == {"problem": sentence}
    assert "no mailbox" in calls["mailbox.backup"](asked | {"name": "9999"})["problem"]
    busy: list[object] = []
    copies.meanwhile = lambda: busy.append(calls["mailbox.backup"](asked | {"name": ADDRESS}))
    assert calls["mailbox.move.out"](asked) == {"messages": 2, "octets": 300}
    assert busy == [{"problem": "this mailbox is being copied or moved just now: wait until that has ended"}]
    entries = [each.entry for each in database.read(journal.entries)]
    acts = {(each.action, each.outcome) for each in entries if each}
    assert acts == {
        ("mailbox.backup", "done"),
        ("mailbox.move.undo", "done"),
        ("mailbox.backup", "failed"),
        ("mailbox.move.out", "begun"),
        ("mailbox.move.out", "done"),
    }
    assert len(entries) == 7
    assert {each.object_id for each in entries if each} == {"0123abcd"}
    assert "279035121518989" not in repr(entries)


def test_where_dovecot_cannot_be_asked_that_is_said() -> None:
    calls = MailboxCopyAnswers(None, None, None, named).calls()  # type: ignore[arg-type]
    assert "search_socket" in calls["mailbox.restore"]({})["problem"]
    assert {each.name for each in SERVING_COMMANDS} == {"backup", "restore", "move", "dovecot-files"}
