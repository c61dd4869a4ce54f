"""The hospital's letter, and mail collected from an old mailbox, on the same road."""

from __future__ import annotations

import json
import os
import smtplib
import ssl
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.test_command_line import relais
from tests.e2e.test_submission import letter
from tests.support import reports
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
    printed = {path: path.read_bytes() for path in (tmp_path / "print").iterdir()}
    again = relais(
        "submit", "--from", HOSPITAL, *arguments, "--document", str(document), "--print-to", str(tmp_path / "print"),
        "--json", state=up.state,
    )  # fmt: skip
    assert json.loads(again.stdout)["duplicate"] is True
    assert {path: path.read_bytes() for path in (tmp_path / "print").iterdir()} == printed
    up.wait_settled()
    assert len(up.mails("gp")) == before + 1


def test_the_letters_of_two_calls_stand_side_by_side(up: Running, tmp_path: Path) -> None:
    """Into the same folder, by default the one the call is made in: no letter to post takes another's place."""
    document = tmp_path / "letter.xml"
    document.write_bytes(cda(level=1, unique_id="1.2.250.1.999.7.2", set_id="1.2.250.1.999.7"))
    files = []
    for town in ("75012 PARIS", "69001 LYON"):
        sent = relais(
            "submit", "--from", HOSPITAL, "--to", f"Dr Jean SANSBOITE|12 rue des Lilas|{town}",
            "--document", str(document), "--json", state=up.state, cwd=tmp_path,
        )  # fmt: skip
        assert sent.returncode == 0, sent.stderr
        (unreached,) = json.loads(sent.stdout)["unreached"]
        files.append(tmp_path / unreached["file"])
    assert {path.parent for path in files} == {tmp_path / "letters-to-print"}
    assert len(set(files)) == 2
    for path in files:
        assert path.read_bytes().startswith(b"%PDF-")
        assert path.stat().st_mode & 0o777 == 0o600


def test_letters_that_cannot_be_written_are_told_and_not_lost(up: Running, tmp_path: Path) -> None:
    document = tmp_path / "letter.xml"
    document.write_bytes(cda(level=1, unique_id="1.2.250.1.999.7.3", set_id="1.2.250.1.999.7"))
    (tmp_path / "taken").touch()
    arguments = ("submit", "--from", HOSPITAL, "--to", DOCTOR, "--to", POSTAL, "--document", str(document), "--json")
    sent = relais(*arguments, "--print-to", str(tmp_path / "taken" / "x"), state=up.state)
    assert sent.returncode == 1
    assert json.loads(sent.stdout)["reached"] == [DOCTOR]
    assert b"--print-to" in sent.stderr
    assert b"Traceback" not in sent.stderr
    again = relais(*arguments, "--print-to", str(tmp_path / "print"), state=up.state)
    assert again.returncode == 0
    assert json.loads(again.stdout)["duplicate"] is True
    assert len(list((tmp_path / "print").iterdir())) == 1


def test_a_document_with_many_pages_passes(up: Running, tmp_path: Path) -> None:
    """Its own PDF of some megabytes, as scanners make them."""
    pages = reports.pdf(["Lettre"]) + b"%" + os.urandom(3_000_000).replace(b"%%EOF", b"")
    document = tmp_path / "letter.xml"
    document.write_bytes(cda(level=1, unique_id="1.2.250.1.999.7.4", set_id="1.2.250.1.999.7", document_pdf=pages))
    sent = relais(
        "submit", "--from", HOSPITAL, "--to", DOCTOR, "--to", POSTAL, "--document", str(document),
        "--print-to", str(tmp_path), "--json", state=up.state,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    assert json.loads(sent.stdout)["reached"] == [DOCTOR]
    assert list(tmp_path.glob("*.pdf"))


def test_who_gets_neither_mail_nor_paper_is_not_called_printed(up: Running, tmp_path: Path) -> None:
    document = tmp_path / "letter.xml"
    document.write_bytes(cda(level=1, unique_id="1.2.250.1.999.7.5", set_id="1.2.250.1.999.7"))
    patient = up.account("patient")["address"]
    sent = relais(
        "submit", "--from", HOSPITAL, "--to", patient, "--document", str(document), state=up.state, cwd=tmp_path
    )
    assert sent.returncode == 1
    assert sent.stdout.startswith(f"not sent   {patient}".encode())
    assert not (tmp_path / "letters-to-print").exists()


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
