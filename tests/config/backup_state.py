"""A gateway's state without the gateway, for the tests of backup and restore, and the commands about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from config.backup.store import BackupStore
from config.cli import relais
from config.migrations import upgrade
from mta.delivery import NewDelivery, Submission
from mta.message import Origin, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from trust.journal import Journal, JournalEntry
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

LARGE = b"a mail of some length\r\n" * 5000
"""Longer than what is kept in the database itself."""


CONFIGURATION = """[operator]
name = "x"
host = "mss.exemple.fr"
domains = ["exemple.fr"]
postmaster = "p@exemple.fr"
state = "{state}"
[trust]
anchors = "anchors.pem"
list = "trust-list.xml"
list_signer = "CN=x"
operator_chain = "operator.pem"
operator_key = "operator.key"
[directory]
uri = "ldap://127.0.0.1:1"
[mailboxes]
lmtp_socket = "lmtp"
authentication_socket = "authentication.sock"
home = "mail"
"""


def relais_toml(state: Path, more: str) -> str:
    """A relais.toml for that state; `more`: further sections."""
    return CONFIGURATION.format(state=state) + more


def accept(spool: Spool, name: str) -> None:
    spool.accept(
        Submission(
            origin=Origin.MLLP,
            sender="resultats@labo-essais.test.mssante.fr",
            peer="SIL-ESSAI",
            content=name.encode() + LARGE,
            content_type="application/hl7-v2",
            deliveries=(NewDelivery("a@test-ci-sis.mssante.fr", TargetKind.MAILBOX),),
            dedup_key=name,
            message_id_domain="labo-essais.test.mssante.fr",
        )
    )


class State:
    """A gateway's state without the gateway."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vault = KeyVault.create(root / "vault")
        self.database = Database(f"sqlite:///{root / 'relais.db'}")
        upgrade(self.database)
        self.blobs = BlobStore(root / "blobs", self.vault)
        self.spool = Spool(self.database, self.blobs, self.vault, node="n1", schedule=RetrySchedule())
        self.database.transact(
            lambda connection: Journal(self.vault, "n1").append(connection, JournalEntry("a", "test", "done"))
        )

    def accept(self, name: str) -> None:
        accept(self.spool, name)

    def files(self) -> set[str]:
        return {blob for blob, _ in self.blobs.ids() if re.fullmatch("[0-9a-f]{32}", blob)}


def made_in(root: Path) -> Iterator[State]:
    """With three mails under way."""
    made = State(root)
    for number in range(3):
        made.accept(f"mail-{number}")
    yield made
    made.database.close()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(relais, [*map(str, arguments)])


def backed_up(state: State, target: Path) -> dict[str, Any]:
    done = run("backup", target, "--state", state.root, "--json")
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def restored(state: State, target: Path, to: Path) -> Result:
    return run("restore", target, "--state", to, "--kek", state.root / "vault" / "kek", "--json")


def cut_of(target: Path) -> Path:
    return BackupStore(target).cut(None)


def some_object(target: Path) -> Path:
    return next(path for path in sorted((target / "objects").rglob("*")) if path.is_file())
