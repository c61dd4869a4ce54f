"""What the control socket answers about copies of mailboxes: each act in the journal, every failure a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.mailbox_copy_answers import MailboxCopyAnswers
from config.mailbox_serving_command import SERVING_COMMANDS
from mta.mailboxes.moving import CopyError, Holding
from trust import tables as _tables  # noqa: F401
from trust.journal import Journal
from trust.sealing import VaultError
from trust.store import metadata
from trust.store.database import Database
from trust.vault import KeyVault

ADDRESS = "279035121518989@patient.mssante.test"


class Copies:
    """Does what it is told, or fails so."""

    failure: Exception | None = None

    def backup(self, address: str, directory: Path) -> Holding:
        if self.failure is not None:
            raise self.failure
        assert (address, directory) == (ADDRESS, Path("/copies/a"))
        return Holding(2, 300)

    def release(self, address: str) -> None:
        assert address == ADDRESS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/relais.db")
    metadata.create_all(database.engine)
    yield database
    database.close()


def test_each_act_is_journalled_without_an_address(database: Database, tmp_path: Path) -> None:
    journal = Journal(KeyVault.create(tmp_path / "vault"), "node")
    copies = Copies()
    calls = MailboxCopyAnswers(copies, database, journal, lambda _: "pseudonym").calls()  # type: ignore[arg-type]
    asked = {"address": ADDRESS.upper(), "directory": "/copies/a", "by": "exploitant"}
    assert calls["mailbox.backup"](asked) == {"messages": 2, "octets": 300}
    assert calls["mailbox.move.undo"](asked) == {}
    failures = [(CopyError("no such thing"), "no such thing"), (VaultError("altered"), "altered")]
    for failure, sentence in [*failures, (OSError(28, "No space left"), "the disk refuses: No space left")]:
        copies.failure = failure
        assert calls["mailbox.backup"](asked) == {"problem": sentence}
    entries = [each.entry for each in database.read(journal.entries)]
    acts = {(each.action, each.outcome) for each in entries if each}
    assert acts == {
        ("mailbox.backup", "done"),
        ("mailbox.move.undo", "done"),
        ("mailbox.backup", "failed"),
    }
    assert len(entries) == 5
    assert "279035121518989" not in repr(entries)


def test_where_dovecot_cannot_be_asked_that_is_said() -> None:
    calls = MailboxCopyAnswers(None, None, None, str).calls()  # type: ignore[arg-type]
    assert "search_socket" in calls["mailbox.restore"]({})["problem"]
    assert {each.name for each in SERVING_COMMANDS} == {"backup", "restore", "move", "dovecot-files"}
