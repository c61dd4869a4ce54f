"""A whole demonstration with Debian's ClamAV: what a doctor sends infected never leaves; a person decides about it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_submission import connected, letter
from tests.support.clamd import CLAMD, EICAR, real_clamd
from tests.support.private import until
from tests.support.running import Running, running

pytestmark = [
    pytest.mark.proof,
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not CLAMD.exists(), reason="run `make proof`, which installs clamav-daemon"),
    pytest.mark.xdist_group("clamav"),
]


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    patch = pytest.MonkeyPatch()
    with real_clamd("4M") as socket:
        patch.setenv("RELAIS_SCREENING__CLAMD_SOCKET", str(socket))
        patch.setenv("RELAIS_SCREENING__MAX_BYTES", str(4 * 1024 * 1024))
        with running() as started:
            yield started
    patch.undo()


def quarantine(up: Running, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "config", "quarantine", *arguments, "--state", str(up.state)]
    return subprocess.run(command, capture_output=True, check=False, cwd="/", timeout=60)


def held(up: Running) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(quarantine(up, "list", "--json").stdout)
    return rows


def send(up: Running, attachment: bytes) -> str:
    mail, account = letter(up), up.account("gp")
    mail.add_attachment(attachment, maintype="application", subtype="octet-stream", filename="facture.bin")
    with connected(up) as client:
        client.login(account["user"], account["password"])
        client.send_message(mail)
    return str(mail["Message-ID"])


def test_sound_mail_arrives_and_the_monitoring_says_that_it_was_looked_at(up: Running) -> None:
    sent = send(up, b"rien de mal")
    up.wait_settled()
    assert any(mail["Message-ID"] == sent for mail in up.mails("laboratory"))
    metrics = up.endpoints["metrics"]["ville"]
    with urllib.request.urlopen(f"http://{metrics['host']}:{metrics['port']}/metrics", timeout=10) as answer:
        said = answer.read()
    # the mail, and the receipt of the other operator for it
    assert b'relais_scans_total{verdict="clean"} 0.0' not in said
    assert b'relais_scans_total{verdict="infected"} 0.0' in said
    with urllib.request.urlopen(f"http://{metrics['host']}:{metrics['port']}/readyz", timeout=10) as answer:
        assert answer.status == 200


def test_infected_it_stays_here_until_somebody_decides(up: Running) -> None:
    sent = send(up, EICAR)
    until(lambda: len(held(up)) == 1, 60, "something in quarantine")
    (row,) = held(up)
    assert row["found"].startswith("Eicar-Test-Signature")
    assert row["message_id"] == sent
    up.wait_settled()
    assert not any(mail["Message-ID"] == sent for mail in up.mails("laboratory"))
    until(lambda: any("non remis" in str(mail["Subject"]) for mail in up.mails("gp")), 60, "the notification")
    (told,) = [raw for raw in up.raw_mails("gp") if sent.encode() in raw and b"non remis" in raw]
    assert EICAR not in told
    assert b"Eicar-Test-Signature" in told

    refused = quarantine(up, "release", row["reference"], "--by", "Jeanne Martin")
    assert refused.returncode == 2
    released = quarantine(up, "release", row["reference"], "--by", "Jeanne Martin", "--reason", "essai convenu")
    assert released.returncode == 0, released.stderr.decode()
    # the other operator scans as well, and its people decide for themselves
    until(lambda: [each["operator"] for each in held(up)] == ["laboratoire"], 60, "the same at the other operator")
    (there,) = held(up)
    released = quarantine(up, "release", there["reference"], "--by", "Paul Petit", "--reason", "essai convenu")
    assert released.returncode == 0, released.stderr.decode()
    until(lambda: any(mail["Message-ID"] == sent for mail in up.mails("laboratory")), 60, "the released mail")
    assert held(up) == []


def test_nothing_of_it_is_on_the_disk_in_clear(up: Running) -> None:
    send(up, EICAR + b" and a word that is nowhere else: zygomorphe")
    until(lambda: len(held(up)) == 1, 60, "something in quarantine")
    (row,) = held(up)
    ville = up.state / row["operator"]
    for file in (ville, *ville.rglob("*")):
        if file.is_file() and not file.is_socket() and "mail" not in Path(file).relative_to(up.state).parts[1:2]:
            assert b"zygomorphe" not in file.read_bytes(), file
    dropped = quarantine(up, "drop", row["reference"], "--by", "Jeanne Martin", "--reason", "infecté")
    assert dropped.returncode == 0, dropped.stderr.decode()
    assert quarantine(up, "show", row["reference"]).stdout.count(b"dropped") == 1
