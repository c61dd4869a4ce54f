"""What monitoring watches: certificates and what must answer, on real files and a real database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import monitored
from config.metrics import MetricsServer
from directory.resolve import DirectoryUnavailableError
from mta.schedule import RetrySchedule
from mta.spool import Spool
from tests.config.test_metrics import ask
from trust.issuing import DemonstrationAuthority
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyUse, KeyVault


class Directory:
    def __init__(self) -> None:
        self.answers = True

    def resolve(self, address: str) -> None:
        if not self.answers:
            raise DirectoryUnavailableError("no answer")


@pytest.fixture
def loaded(tmp_path: Path) -> SimpleNamespace:
    settings = SimpleNamespace(
        trust=SimpleNamespace(anchors="anchors.pem", operator_chain="operator.pem"),
        discovery=None,
        submission=SimpleNamespace(chain="submission.pem"),
        operator=SimpleNamespace(postmaster="postmaster@op1.example"),
        mailboxes=SimpleNamespace(lmtp_socket="lmtp"),
    )
    return SimpleNamespace(settings=settings, path=lambda name: tmp_path / name)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'relais.db'}")
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


def test_certificates_have_few_names_that_stay(tmp_path: Path, loaded: SimpleNamespace) -> None:
    authority = DemonstrationAuthority.create("Essai")
    server = authority.issue_server(["op1.example"])
    (tmp_path / "anchors.pem").write_bytes(server.pem_chain())
    (tmp_path / "operator.pem").write_bytes(server.pem_chain())
    (tmp_path / "submission.pem").write_text("half a certif")
    vault = KeyVault.create(tmp_path / "vault")
    for address in ("279035121518989@patient.mssante.fr", "b@op1.example"):
        issued = authority.issue_mailbox(address, "B", "signing", "p256")
        vault.install(address, KeyUse.SIGNING, issued.key, issued.certificate, issued.chain)
    found = dict(monitored.expiries(loaded, vault)())
    assert list(found) == ["anchors", "operator", "submission", "mailboxes"], "not one for each mailbox"
    assert found["submission"] is None, "what cannot be read is said, and hides no other"
    assert found["mailboxes"] == vault.expiring(datetime.max.replace(tzinfo=UTC))[0][1]


async def test_not_ready_while_the_database_is_locked_or_the_directory_is_away(
    tmp_path: Path, loaded: SimpleNamespace, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.metrics._CHECK_SECONDS", 0.3)
    directory = Directory()
    checks = monitored.checks(loaded, directory, database)
    checks.pop("mailboxes")
    vault = KeyVault.create(tmp_path / "vault")
    spool = Spool(database, BlobStore(tmp_path / "blobs", vault), vault, node="n", schedule=RetrySchedule())
    server = MetricsServer(spool, list, checks)
    port = await server.start("127.0.0.1", 0)
    other = sqlite3.connect(tmp_path / "relais.db", isolation_level=None)
    try:
        assert await ask(port, "/readyz") == (200, "ready\n")
        other.execute("BEGIN IMMEDIATE")
        directory.answers = False
        assert await ask(port, "/readyz") == (503, "directory\ndatabase\n")
        assert (await ask(port, "/metrics"))[0] == 200, "reading does not wait for the writer"
        other.execute("ROLLBACK")
        directory.answers = True
        while (await ask(port, "/readyz"))[0] != 200:
            pass
    finally:
        other.close()
        await server.stop()
