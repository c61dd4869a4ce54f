"""A key that is rotated while its gateway runs: the next report is signed with the new one, and nothing restarts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from config.demonstration import LABORATORY
from tests.e2e.test_road import digest_of, mails_about, oru
from tests.support.running import Running
from tests.trust.certificate_authority import Authority

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]


def keys(up: Running, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "config", "keys", *arguments, "--json", "--state", str(up.state)],
        check=False,
        capture_output=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_rotated_while_it_runs(up: Running, tmp_path: Path) -> None:
    before = {operator: up.pids(operator) for operator in ("laboratoire", "ville")}
    generations = keys(up, "list", LABORATORY.address)
    (old,) = [each for each in generations if each["use"] == "signing" and each["state"] == "current"]
    (made,) = keys(up, "rotate", LABORATORY.address, "--use", "signing")
    authority = up.state / "authority"
    issuer = x509.load_pem_x509_certificate((authority / "intermediate.pem").read_bytes())
    request = x509.load_pem_x509_csr(made["request"].encode())
    issuing_key = load_pem_private_key((authority / "intermediate.key").read_bytes(), None)
    certificate = Authority._sign(
        request.subject, request.public_key(), issuer.subject, issuing_key, list(request.extensions), since=0
    )
    file = tmp_path / "new.cer"
    file.write_bytes(certificate.public_bytes(Encoding.PEM) + issuer.public_bytes(Encoding.PEM))
    (new,) = keys(up, "install", str(file))
    assert new["state"] == "current"
    assert keys(up, "retire", old["id"])[0]["state"] == "retired"  # from now on only the new one can have signed

    report = oru("KEYS-0001")
    up.accepted(report)
    up.wait_settled()
    (mail,) = mails_about(up, "gp", digest_of(report))
    assert "signature=valid" in mail["X-Relais-Verdict"]
    assert {operator: up.pids(operator) for operator in before} == before


def test_no_other_process_of_the_user_looks_into_a_gateway(up: Running) -> None:
    """The kernel gives the files of a process that may not be dumped to root (proc(5))."""
    for operator in ("laboratoire", "ville"):
        pid = up.pids(operator)
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0
        limits = Path(f"/proc/{pid}/limits")
        if os.access(limits, os.R_OK):
            core = next(line for line in limits.read_text().splitlines() if line.startswith("Max core file size"))
            assert core.split()[4:6] == ["0", "0"]
