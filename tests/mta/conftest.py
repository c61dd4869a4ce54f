"""What the road's tests share: a spool on a real database and blob store, and a small trust space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mta.delivery import NewDelivery, Submission
from mta.message import Origin, TargetKind
from mta.schedule import RetrySchedule
from mta.spool import Spool
from trust.issuing import DemonstrationAuthority
from trust.store import metadata
from trust.store.blobs import BlobStore
from trust.store.database import Database
from trust.vault import KeyVault

from .mailboxes import Mailboxes
from .trust_space import Listed, TrustSpace

MakeSpool = Callable[..., Spool]


class Clock:
    """A clock the test moves."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextmanager
def with_tables(url: str) -> Iterator[Database]:
    """An empty database with every table."""
    opened = Database(url)
    metadata.create_all(opened.engine)
    yield opened
    opened.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with with_tables(f"sqlite:///{tmp_path / 'relais.db'}") as opened:
        yield opened


@pytest.fixture
def each_database(database_url: str) -> Iterator[Database]:
    """For tests that run on both kinds."""
    with with_tables(database_url) as opened:
        yield opened


@pytest.fixture
def vault(tmp_path: Path) -> KeyVault:
    return KeyVault.create(tmp_path / "vault")


@pytest.fixture
def blobs(tmp_path: Path, vault: KeyVault) -> BlobStore:
    return BlobStore(tmp_path / "blobs", vault)


@pytest.fixture
def make_spool(database: Database, blobs: BlobStore, vault: KeyVault) -> MakeSpool:
    def make(**options: object) -> Spool:
        options = {"node": "n1", "schedule": RetrySchedule(pauses=(10.0,), jitter=0.0, lifetime=100.0)} | options
        return Spool(database, blobs, vault, **options)  # type: ignore[arg-type]

    return make


def submission(
    *recipients: str,
    key: str = "k",
    target: TargetKind = TargetKind.SMTP,
    content: bytes = b"From: a@labo.example\r\nSubject: x\r\n\r\nhello\r\n",
    origin: Origin = Origin.SUBMISSION,
    **more: object,
) -> Submission:
    return Submission(
        origin=origin,
        sender="a@labo.example",
        peer="account-a",
        content=content,
        content_type="message/rfc822",
        deliveries=tuple(NewDelivery(recipient, target) for recipient in recipients or ("b@op2.example",)),
        dedup_key=key,
        message_id_domain="labo.example",
        **more,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> TrustSpace:
    """Operators `one` and `two`, both listed below; `rogue`, certified and not listed."""
    made = TrustSpace(tmp_path_factory.mktemp("pki"), DemonstrationAuthority.create("Confiance"))
    for name in ("one", "two", "rogue"):
        made.operator(name)
    return made


@pytest.fixture(scope="session")
def listed(space: TrustSpace) -> Listed:
    return Listed(
        {
            "op1.example": frozenset({space.names["one"]}),
            "op2.example": frozenset({space.names["two"]}),
        }
    )


@pytest.fixture(scope="session")
def mailboxes(space: TrustSpace) -> Mailboxes:
    return Mailboxes(space.authority)
