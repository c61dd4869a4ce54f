"""Debian's Thunderbird, given a name, an address and a password: it finds its servers, reads a report that came signed
and encrypted, and sends a letter with an attachment. What it shows is kept as pictures beside docs/discovery.md."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.proof.thunderbird import DOCTOR, MAIL_HOST

ROOT = Path(__file__).parents[2]
PICTURES = ("thunderbird-found.png", "thunderbird-report.png", "thunderbird-letter.png")

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(400),
    pytest.mark.skipif(shutil.which("thunderbird") is None, reason="run `make proof`, which installs thunderbird"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own takes root"),
]


def test_an_address_and_a_password_are_enough(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--kill-child", sys.executable, "-m", "tests.proof.thunderbird", tmp_path],
        capture_output=True,
        cwd=ROOT,
        timeout=380,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode("utf-8", "replace")[-4000:]
    seen = json.loads((tmp_path / "result.json").read_text())
    for line in (f"host {MAIL_HOST}", "port 465", "tls_starttls off"):
        assert line in seen["msmtp"]
    assert seen["account"]["imap"] == [MAIL_HOST, 993, 3, DOCTOR]
    assert seen["account"]["smtp"] == [MAIL_HOST, 465, 3, DOCTOR]
    assert seen["account"]["exceptions"] == 0
    assert "Hémoglobine" in seen["report"]["text"]
    assert ("IHE_XDM.zip", "application/zip") in [tuple(each) for each in seen["report"]["attachments"]]
    assert seen["report"]["signature"] == 0  # the program itself judges it valid (nsICMSMessageErrors.SUCCESS)
    assert not any("exceptionDialog" in each for each in seen["windows"])
    assert seen["letter"]["subject"] == "Précision demandée"
    assert "signature=valid" in seen["letter"]["verdict"]
    assert seen["letter"]["attached"] == [True]
    for name in PICTURES:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        if os.environ.get("RELAIS_KEEP_PICTURES"):
            shutil.copy(tmp_path / name, ROOT / "docs" / "pictures" / name)
