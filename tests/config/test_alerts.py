"""The shipped alert rules, each evaluated by promtool: it fires in its state, after its time, and not before."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

RULES = Path(__file__).parents[2] / "config" / "deploy" / "alerts.yml"
PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian package prometheus) is not installed")

ALERTS = {
    "RelaisDown": ('up{job="relais", instance="g"}', "0", "1"),
    "RelaisWorkerDead": ('relais_at_work{part="worker"}', "0", "1"),
    "RelaisOldestDelivery": ("relais_queue_oldest_seconds", "14401", "14399"),
    "RelaisOldestUnacknowledged": ("relais_oldest_unacknowledged_seconds", "86401", "86399"),
    "RelaisUnprepared": ("relais_unprepared_oldest_seconds", "901", "899"),
    "RelaisParked": ('relais_deliveries{state="parked"}', "1", "0"),
    "RelaisCollectorDown": ('relais_collector_connected{collector="c"}', "0", "1"),
    "RelaisCollectorLeft": ('relais_collector_messages_total{collector="c", result="refused"}', "0+1", "3"),
    "RelaisCertificateExpiry": ('relais_certificate_expiry_seconds{certificate="operator"}', "2591999", "2592001"),
    "RelaisCertificateExpiryNear": ('relais_certificate_expiry_seconds{certificate="operator"}', "-Inf", "604801"),
    "RelaisCrlExpiry": ("relais_revocation_next_update_seconds", "21599", "+Inf"),
    "RelaisTrustListOld": ("relais_trust_list_age_seconds", "604801", "604799"),
    "RelaisTrustListHeld": ("relais_trust_list_held", "1", "0"),
    "RelaisDisk": ("relais_disk_free_bytes", "999999999", "5000000000"),
    "RelaisJournalUnpublished": ("relais_journal_unpublished_seconds", "901", "899"),
    "RelaisBackupOld": ("relais_backup_age_seconds", "+Inf", "93599"),
}
"""By alert: the series, a value that must fire it, and the nearest one that must not."""


def names() -> list[str]:
    return [line.split()[-1] for line in RULES.read_text().splitlines() if line.strip().startswith("- alert:")]


def fires(folder: Path, alert: str, series: dict[str, str], minutes: int) -> bool:
    """Whether the alert is firing after `minutes` of these constant values, or of these one a minute."""
    inputs = ""
    for name, value in series.items():
        values = " ".join([value] * (minutes + 1)) if "Inf" in value else f"{value}x{minutes}"
        if " " in value:
            values = value
        inputs += f"      - series: '{name}'\n        values: '{values}'\n"
    test = folder / "test.yml"
    # Expected to be silent: promtool's complaint shows that it fires.
    test.write_text(
        f"rule_files: [{RULES}]\nevaluation_interval: 1m\ntests:\n  - interval: 1m\n    input_series:\n{inputs}"
        f"    alert_rule_test:\n      - eval_time: {minutes}m\n        alertname: {alert}\n        exp_alerts: []\n"
    )
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "test", "rules", str(test)], capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0 or f"alertname: {alert}" in told or "FAILED" in told, told
    assert "parse error" not in told and "failed" not in told.replace("FAILED", ""), told
    return done.returncode != 0


def test_the_rules_are_valid_and_each_is_tested() -> None:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(names()) == sorted(ALERTS)


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_it_fires_in_its_state_only(tmp_path: Path, alert: str) -> None:
    series, bad, good = ALERTS[alert]
    beside = {"relais_disk_size_bytes": "20000000000"}
    assert fires(tmp_path, alert, {series: bad, **beside}, 60)
    assert not fires(tmp_path, alert, {series: good, **beside}, 60)


def test_a_tenth_of_a_large_disk_is_little_room(tmp_path: Path) -> None:
    assert fires(tmp_path, "RelaisDisk", {"relais_disk_free_bytes": "90e9", "relais_disk_size_bytes": "1000e9"}, 10)


def test_deliveries_parked_long_ago_are_told_for_a_day(tmp_path: Path) -> None:
    series = 'relais_deliveries{state="parked"}'
    assert fires(tmp_path, "RelaisParked", {series: "3"}, 60 * 20)
    assert not fires(tmp_path, "RelaisParked", {series: "3"}, 60 * 26)
