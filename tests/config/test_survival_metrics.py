"""The gauges of survival on a real database and real files, and the alerts they fire; without a gateway.

tests/e2e/test_watch.py does the same with a whole gateway for every alert.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from config.bench.soak_faults import own_disk
from config.survival_metrics import SurvivalCollector
from mta.tables import deliveries, messages
from tests.config.backup_state import State, made_in
from tests.config.test_alerts import PROMTOOL, fires
from trust.tables import journal_entries

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian package prometheus) is not installed")
_HOUR = 3600.0


class Gateway:
    """What the collector asks of one."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.published = 0
        self.works = True
        self.place = state.root

    def series(self) -> dict[str, str]:
        collector = SurvivalCollector(
            self.place, self.state.database, lambda: self.published, {"worker": lambda: self.works}
        )
        found = {}
        for family in collector.collect():
            for sample in family.samples:
                labels = ", ".join(f'{name}="{value}"' for name, value in sample.labels.items())
                value = f"{sample.value:f}".replace("inf", "Inf")
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = value
        return found

    def write(self, statement: Any) -> None:
        self.state.database.transact(lambda connection: connection.execute(statement) and None)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    for state in made_in(tmp_path / "state"):
        yield Gateway(state)


def test_each_alert_of_survival_fires_in_its_state_and_in_no_other(gateway: Gateway, tmp_path: Path) -> None:
    def firing(*alerts: str) -> set[str]:
        series = gateway.series()
        return {alert for alert in alerts if fires(tmp_path, alert, series, 60)}

    own = ("RelaisUnprepared", "RelaisWorkerDead", "RelaisJournalUnpublished")
    assert firing(*own) == set()
    assert firing("RelaisBackupOld"), "there is none"
    record = gateway.place / "backup.json"
    record.write_text(json.dumps({"cut": "20261121T000000Z", "at": time.time() - _HOUR}))
    assert not firing("RelaisBackupOld")
    record.write_text(json.dumps({"cut": "20261121T000000Z", "at": time.time() - 48 * _HOUR}))
    assert firing("RelaisBackupOld")
    record.write_text("{half a rec")
    assert firing("RelaisBackupOld"), "what cannot be read is no backup"

    gateway.write(update(messages).values(accepted_at=messages.c.accepted_at - _HOUR))
    gateway.works = False
    gateway.write(update(journal_entries).values(at=journal_entries.c.at - int(_HOUR * 1e6)))
    assert firing(*own) == set(own)
    gateway.write(update(deliveries).values(prepared_blob="0" * 32))
    gateway.works = True
    assert firing(*own) == {"RelaisJournalUnpublished"}


def test_a_database_that_cannot_be_read_hides_neither_disk_nor_backup(gateway: Gateway) -> None:
    with gateway.state.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE mta_deliveries RENAME TO taken_away")
    series = gateway.series()
    assert {"relais_disk_free_bytes", "relais_backup_age_seconds", 'relais_at_work{part="worker"}'} <= set(series)
    assert "relais_unprepared" not in series


def test_a_small_disk_is_told(gateway: Gateway, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    with own_disk(place, 900 << 20, None) as problem:
        if problem:
            pytest.skip(problem)
        gateway.place = place
        assert fires(tmp_path, "RelaisDisk", gateway.series(), 60)
