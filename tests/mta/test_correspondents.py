"""Capabilities are those of the newest signed mail, and the address does not stand in the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from mta.correspondents import MAX_CAPABILITIES, Correspondents
from trust.store.database import Database
from trust.vault import KeyVault

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_the_newest_signed_mail_counts(database: Database, vault: KeyVault) -> None:
    known = Correspondents(database, vault)
    assert known.capabilities("a@lab.example") is None
    known.remember("a@lab.example", ("1.2.3", "1.2.4"), NOW)
    known.remember("A@Lab.example", ("1.2.5",), NOW - timedelta(days=1))
    assert known.capabilities("A@lab.example") == ("1.2.3", "1.2.4")
    known.remember("a@lab.example", (), NOW + timedelta(days=1))
    assert known.capabilities("a@lab.example") == ()
    assert known.capabilities("b@lab.example") is None


def test_nobody_is_named_and_nobody_fills_the_disk(database: Database, vault: KeyVault, tmp_path: Path) -> None:
    known = Correspondents(database, vault)
    known.remember("ins-nir@patient.example", tuple(f"1.2.{arc}" for arc in range(1000)), NOW)
    assert len(known.capabilities("ins-nir@patient.example") or ()) == MAX_CAPABILITIES
    database.close()
    assert all(b"ins-nir" not in file.read_bytes() for file in tmp_path.glob("relais.db*"))
