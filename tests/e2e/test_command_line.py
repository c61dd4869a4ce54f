"""What a person types: the demonstration in one shot, the record as a named doctor, a file sent over MLLP."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.test_road import digest_of, oru
from tests.support.private import free_port, service_directory
from tests.support.running import Running

pytestmark = [pytest.mark.e2e]


def relais(
    *arguments: str, state: Path | None = None, seconds: float = 60, cwd: Path = Path("/")
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "config", *arguments],
        capture_output=True,
        check=False,
        timeout=seconds,
        cwd=cwd,
        env={**os.environ, **({"RELAIS_STATE": str(state)} if state else {})},
    )


@pytest.mark.timeout(180)
def test_the_demonstration_in_one_shot_tells_the_truth() -> None:
    """Twice on the same state: the second finds everything made, and the same mailboxes one mail fuller."""
    with service_directory() as place:
        imaps = free_port()
        for _ in range(2):
            shown = relais(
                "up", "--state", str(place / "state"), "--demo", "--oneshot", "--port", f"imaps={imaps}", seconds=90
            )
            text = shown.stdout.decode()
            assert shown.returncode == 0, text + shown.stderr.decode()
            assert "acknowledged AA" in text
            assert text.count("IHE_XDM.zip") == 2
            assert f"IMAPS       127.0.0.1:{imaps}" in text
            assert not (place / "state" / "endpoints.json").exists(), "nothing announced that is not there"


@pytest.mark.xdist_group("up")
def test_a_second_up_on_the_same_state_is_refused(up: Running) -> None:
    refused = relais("up", "--state", str(up.state))
    assert refused.returncode == 1
    assert b"another relais up" in refused.stderr
    assert b"Traceback" not in refused.stderr


@pytest.mark.xdist_group("up")
def test_a_file_is_sent_and_the_record_is_read(up: Running, tmp_path: Path) -> None:
    message = oru("CLI-1")
    file, copy = tmp_path / "report.hl7", tmp_path / "copy.xml"
    file.write_bytes(message)
    sent = relais("bridge", "send", str(file), state=up.state)
    assert sent.returncode == 0, sent.stderr
    assert b"MSA|AA|CLI-1" in sent.stdout
    up.wait_settled()
    matricule = re.search(rb"PID\|\|\|(\w+)\^", message)
    assert matricule is not None
    who = ("--as", "801234567897", "--patient", matricule.group(1).decode())
    listed = relais("dossier", "list", *who, "--json", state=up.state)
    assert listed.returncode == 0, listed.stderr
    wanted = f"1.2.250.1.999.2.{int(hashlib.sha256(b'CLI-1').hexdigest()[:12], 16)}.1"
    (entry,) = [entry for entry in json.loads(listed.stdout) if entry["unique_id"] == wanted]
    read = relais("dossier", "read", *who, entry["id"], "-o", str(copy), state=up.state)
    assert read.returncode == 0, read.stderr
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == digest_of(message)
    unknown = relais("dossier", "read", *who, "no-such-document", state=up.state)
    assert unknown.returncode == 1 and unknown.stdout == b""


@pytest.mark.xdist_group("up")
def test_doctor_queue_journal_and_directory_answer(up: Running) -> None:
    doctor = relais("doctor", "--state", str(up.state), "--json")
    findings = json.loads(doctor.stdout)
    assert [finding for finding in findings if finding["level"] == "problem"] == []
    assert {"mllp", "imaps", "submission", "ldaps"} <= {finding["text"].split()[0] for finding in findings}
    queue = json.loads(relais("queue", "list", "--json", state=up.state).stdout)
    assert set(queue) == {"laboratoire", "ville"}
    assert relais("journal", "verify", state=up.state).returncode == 0
    found = relais("directory", "resolve", "Adam.HODA@test-ci-sis.mssante.fr", "--json", state=up.state)
    assert json.loads(found.stdout)["identifier"] == "801234567897"
    assert relais("directory", "resolve", "nobody@test-ci-sis.mssante.fr", state=up.state).returncode == 1
