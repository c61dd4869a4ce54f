"""The hospital's letter, and mail collected from an old mailbox, on the same road."""

from __future__ import annotations

import json
import smtplib
import ssl
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.test_command_line import relais
from tests.e2e.test_submission import letter
from tests.support.private import give, until
from tests.support.reports import cda
from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

HOSPITAL = "cardiologie@ch-bellevue.mssante.fr"
DOCTOR = "adam.hoda@test-ci-sis.mssante.fr"
POSTAL = "Dr Jean SANSBOITE|12 rue des Lilas|75012 PARIS"


def test_one_call_reaches_whom_it_can_and_prints_for_the_others(up: Running, tmp_path: Path) -> None:
    document = tmp_path / "letter.xml"
    document.write_bytes(cda(level=1, unique_id="1.2.250.1.999.7.1", set_id="1.2.250.1.999.7"))
    before = len(up.mails("gp"))
    recipients = [DOCTOR, "personne.inconnue@test-ci-sis.mssante.fr", "x@example.com", POSTAL]
    recipients += [f"{name}@medecin.mssante.fr" for name in ("thomas.eric", "claude.sanscertificat")]
    arguments = [argument for recipient in recipients for argument in ("--to", recipient)]
    sent = relais(
        "submit", "--from", HOSPITAL, *arguments, "--document", str(document), "--print-to", str(tmp_path / "print"),
        "--json", state=up.state,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    result = json.loads(sent.stdout)
    assert set(result["reached"]) == {DOCTOR, "thomas.eric@medecin.mssante.fr"}
    assert {each["recipient"] for each in result["unreached"]} >= {"x@example.com"}
    assert len(list((tmp_path / "print").glob("*.pdf"))) == 4
    up.wait_settled()
    assert len(up.mails("gp")) == before + 1
    again = relais("submit", "--from", HOSPITAL, *arguments, "--document", str(document), "--json", state=up.state)
    assert json.loads(again.stdout)["duplicate"] is True
    up.wait_settled()
    assert len(up.mails("gp")) == before + 1


def test_a_service_that_is_not_ours_cannot_send(up: Running, tmp_path: Path) -> None:
    document = tmp_path / "letter.xml"
    document.write_bytes(cda(level=1))
    refused = relais("submit", "--from", DOCTOR, "--to", DOCTOR, "--document", str(document), state=up.state)
    assert refused.returncode == 1
    assert b"Traceback" not in refused.stderr


def test_the_drop_folder_sends_and_says_so(up: Running) -> None:
    folder = Path(up.endpoints["letters"])
    before = len(up.mails("gp"))
    (folder / "a.xml").write_bytes(cda(level=1, unique_id="1.2.250.1.999.8.1", set_id="1.2.250.1.999.8"))
    (folder / "a.to").write_text(f"{DOCTOR}\n{POSTAL}\n")
    give(folder)
    until((folder / "done" / "a.result.json").exists, 30, "the result")
    assert json.loads((folder / "done" / "a.result.json").read_text())["reached"] == [DOCTOR]
    assert list((folder / "done").glob("a*.pdf"))
    up.wait_settled()
    assert len(up.mails("gp")) == before + 1


def test_the_old_mailbox_is_collected_once(up: Running) -> None:
    account = up.account("gp")
    mail = letter(up, "cardiologie@hopitala.mssante.fr")
    with smtplib.SMTP("127.0.0.1", up.endpoints["submission"]["port"], timeout=20) as client:
        client.starttls(context=ssl.create_default_context(cafile=up.endpoints["ca_file"]))
        client.login(account["user"], account["password"])
        client.send_message(mail)

    def arrived() -> bool:
        return sum(found["Message-ID"] == mail["Message-ID"] for found in up.mails("hospital")) == 1

    until(arrived, 60, "the collected mail")
    (found,) = [each for each in up.mails("hospital") if each["Message-ID"] == mail["Message-ID"]]
    assert "signature=valid" in found["X-Relais-Verdict"]


def test_metrics_and_health_answer(up: Running) -> None:
    for place in up.endpoints["metrics"].values():
        base = f"http://127.0.0.1:{place['port']}"
        with urllib.request.urlopen(f"{base}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name in ("relais_deliveries", "relais_queue_oldest_seconds", "relais_certificate_expiry_seconds"):
            assert name in text
        assert "@" not in text, "no address in a label"
        for path in ("healthz", "readyz"):
            with urllib.request.urlopen(f"{base}/{path}", timeout=10) as answer:
                assert answer.status == 200
