"""A real gateway is brought into each state that an alert is for; its own /metrics, given to promtool, fire it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hashes import SHA256
from prometheus_client.parser import text_string_to_metric_families

from config.bench.soak_faults import own_disk
from config.demonstration import OPERATORS, World, certificate_name
from tests.config.test_alerts import ALERTS, PROMTOOL, fires
from tests.e2e.test_killed import pid_of
from tests.e2e.test_road import oru
from tests.support.private import give, service_directory, service_ids, until
from tests.support.reports import DOCTOR as TO_DOCTOR
from tests.support.reports import Correspondent, Flags
from tests.support.running import Running, running
from trust.issuing import DemonstrationAuthority
from trust.revocation.cache import DiskCache, Record
from trust.trustlist import ListedDomain, write_trust_list

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.proof,  # tests/config/test_survival_metrics.py is the short one
    pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian package prometheus) is not installed"),
]
_HOUR, _DAY = 3600.0, 86400.0
TO_ANOTHER = Correspondent("thomas.eric@medecin.mssante.fr", "801234564895", "Thomas", "Eric")


def scraped(up: Running) -> dict[str, str]:
    """The laboratory's gateway as Prometheus sees it: its series, and whether it answers."""
    at = up.endpoints["metrics"]["laboratoire"]
    try:
        with urllib.request.urlopen(f"http://{at['host']}:{at['port']}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {'up{job="relais"}': "0"}
    found = {'up{job="relais"}': "1"}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("relais_"):
                labels = ", ".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                value = f"{sample.value:f}".replace("inf", "Inf")
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = value
    return found


def firing(up: Running, folder: Path, *alerts: str) -> set[str]:
    """Which of these alerts what the gateway says now would fire, were it to last an hour."""
    series = scraped(up)
    return {alert for alert in alerts if fires(folder, alert, series, 60)}


@contextmanager
def database(up: Running) -> Iterator[sqlite3.Connection]:
    """The gateway's, written to beside it: time cannot be made to pass."""
    with closing(sqlite3.connect(up.state / "laboratoire" / "relais.db", timeout=30)) as connection:
        yield connection
        connection.commit()


def age_messages(up: Running, seconds: float) -> None:
    with database(up) as connection:
        connection.execute("UPDATE mta_messages SET accepted_at = accepted_at - ?", (seconds,))


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    with running() as started:
        yield started


def listed(world: World) -> list[ListedDomain]:
    return [
        ListedDomain(domain, certificate_name(world.of(operator)), operator.name)
        for operator in OPERATORS
        for domain in operator.domains
    ]


def soon_ended(up: Running) -> None:
    """Certificates, list and CRL of a gateway nobody looked after, in place of the fresh ones of the demonstration."""
    up.stop()
    world = World(up.state)
    authority = DemonstrationAuthority.load(world.authority)
    key = serialization.load_pem_private_key((world.authority / "intermediate.key").read_bytes(), None)
    now = datetime.now(UTC)
    home = world.state / "laboratoire"
    chain = x509.load_pem_x509_certificates((home / "operator.pem").read_bytes())
    old = chain[0]
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), old.serial_number)
    builder = builder.not_valid_before(old.not_valid_before_utc).not_valid_after(now + timedelta(days=5))
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    renewed = builder.sign(key, SHA256())
    pem = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (renewed, *chain[1:]))
    (home / "operator.pem").write_bytes(pem)
    signer = authority.issue_list_signer()
    rows = listed(world)
    list_ = write_trust_list(rows, now - timedelta(days=8), signer.key, signer.certificate, signer.chain)
    world.trust_list.write_bytes(list_)
    for operator in OPERATORS:
        for file in (world.of(operator) / "trust-list").glob("*"):
            file.unlink()
    intermediate = authority.intermediate
    crl = (
        x509.CertificateRevocationListBuilder(intermediate.subject, now - timedelta(days=1), now + timedelta(hours=2))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(1), critical=False)
        .sign(key, SHA256())
    )
    der = serialization.Encoding.DER
    record = Record("crl", "http://crl.invalid/1.crl", 0, (intermediate.public_bytes(der),), crl.public_bytes(der))
    DiskCache(home / "revocation", 1 << 20).store(record)
    give(up.state)
    up.start()


@pytest.mark.timeout(300)
def test_every_alert_is_fired_by_a_gateway_in_its_state(up: Running, tmp_path: Path) -> None:
    quiet = set(ALERTS) - {"RelaisDisk", "RelaisBackupOld"}  # the first is the machine's affair
    until(lambda: collecting(up), 60, "the hospital's old mailbox")  # it is collected once its server is up
    assert firing(up, tmp_path, *quiet) == set()

    # No backup yet; then one; then it grows old.
    assert firing(up, tmp_path, "RelaisBackupOld")
    record = up.state / "laboratoire" / "backup.json"
    record.write_text(json.dumps({"cut": "20261121T000000Z", "at": time.time() - _HOUR}))
    record.chmod(0o644)
    assert not firing(up, tmp_path, "RelaisBackupOld")
    record.write_text(json.dumps({"cut": "20261121T000000Z", "at": time.time() - 2 * _DAY}))
    assert firing(up, tmp_path, "RelaisBackupOld")

    # A correspondent's operator does not answer: the delivery grows old, and so does the sender's waiting.
    frozen = pid_of(up, "ville")
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)
    try:
        up.accepted(oru("WATCH-1", recipients=(TO_DOCTOR,), flags=Flags(to_dossier=False)))
        age_messages(up, 5 * _HOUR)
        assert firing(up, tmp_path, "RelaisOldestDelivery", "RelaisOldestUnacknowledged") == {"RelaisOldestDelivery"}
        age_messages(up, 22 * _HOUR)
        assert firing(up, tmp_path, "RelaisOldestUnacknowledged")
    finally:
        os.kill(frozen, signal.SIGCONT)
    up.wait_settled()
    assert not firing(up, tmp_path, "RelaisOldestDelivery")

    # The directory does not answer: what came cannot be composed. To another doctor: the first may still be remembered.
    directory = pid_of(up, "slapd")
    assert directory is not None
    os.kill(directory, signal.SIGSTOP)
    try:
        up.accepted(oru("WATCH-2", recipients=(TO_ANOTHER,), flags=Flags(to_dossier=False)))
        age_messages(up, _HOUR)
        assert firing(up, tmp_path, "RelaisUnprepared")
    finally:
        os.kill(directory, signal.SIGCONT)
    up.wait_settled()
    assert not firing(up, tmp_path, "RelaisUnprepared")

    # A delivery was given up after it had broken down too often.
    with database(up) as connection:
        connection.execute(
            "INSERT INTO mta_steps (spool_id, delivery_id, at, node, kind, code, detail) "
            "SELECT spool_id, id, 0, 'n', 'parked', 'mta.parked', '' FROM mta_deliveries LIMIT 1"
        )
    assert firing(up, tmp_path, "RelaisParked")

    # Heads of the journal do not leave the machine.
    heads = up.state / "laboratoire" / "journal-heads.jsonl"
    heads.rename(heads.with_suffix(".away"))
    heads.mkdir()
    with database(up) as connection:
        connection.execute("UPDATE journal_publications SET number = 0")
        connection.execute("UPDATE journal_entries SET at = at - ?", (int(_HOUR * 1e6),))
    assert firing(up, tmp_path, "RelaisJournalUnpublished")

    # The worker no longer reaches its queue: what it reads is not there.
    with database(up) as connection:
        connection.execute("ALTER TABLE mta_breakdowns RENAME TO taken_away")
    try:
        until(lambda: not at_work(up), 60, "a worker that is not at work")
        assert firing(up, tmp_path, "RelaisWorkerDead")
    finally:
        with database(up) as connection:
            connection.execute("ALTER TABLE taken_away RENAME TO mta_breakdowns")
    until(lambda: at_work(up), 60, "the worker")


def collecting(up: Running) -> bool:
    connected = [value for name, value in scraped(up).items() if name.startswith("relais_collector_connected{")]
    return bool(connected) and all(value.startswith("1") for value in connected)


def at_work(up: Running) -> bool:
    return scraped(up)['relais_at_work{part="worker"}'].startswith("1")


@pytest.mark.timeout(200)
def test_what_ends_soon_is_told(tmp_path: Path) -> None:
    with running() as up:
        soon_ended(up)
        wanted = {"RelaisCertificateExpiry", "RelaisCertificateExpiryNear", "RelaisTrustListOld", "RelaisCrlExpiry"}
        assert firing(up, tmp_path, *wanted) == wanted

        # A newer list that lost most of its rows waits for a human.
        world = World(up.state)
        signer = DemonstrationAuthority.load(world.authority).issue_list_signer()
        now = datetime.now(UTC)
        short = write_trust_list(listed(world)[:1], now, signer.key, signer.certificate, signer.chain)
        world.trust_list.write_bytes(short)
        up.ask("laboratoire", "trust.list.refresh")
        assert firing(up, tmp_path, "RelaisTrustListHeld")

        pid = pid_of(up, "laboratoire")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            assert firing(up, tmp_path, "RelaisDown")
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.timeout(120)
def test_a_small_disk_is_told(tmp_path: Path) -> None:
    with service_directory() as place, own_disk(place / "state", 900 << 20, service_ids()) as problem:
        if problem:
            pytest.skip(problem)
        up = Running(place / "state")
        try:
            up.start()
            assert firing(up, tmp_path, "RelaisDisk")
        finally:
            up.stop()
