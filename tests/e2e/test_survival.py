"""The machine is lost: everything comes back from the backup, and from two sheets of paper the key that opens it."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from config.show import acknowledgement_code
from tests.e2e.test_road import DOCTOR, attachment, digest_of, oru
from tests.e2e.test_submission import connected, letter
from tests.support.private import until
from tests.support.reports import PATIENT, Flags
from tests.support.running import Running, running

pytestmark = [pytest.mark.e2e]


def relais(*arguments: str | Path, fails: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "config", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def wiped(state: Path) -> None:
    shutil.rmtree(state)


@pytest.mark.timeout(240)
def test_the_machine_is_lost_under_traffic_and_everything_comes_back(tmp_path: Path) -> None:
    with running() as up:
        target, kept = up.state.parent / "backup", up.state.parent / "kept"
        before = [oru(f"BEFORE-{n}", flags=Flags(to_dossier=n == 0)) for n in range(3)]
        for message in before:
            up.accepted(message)
        up.wait_settled()
        mail = letter(up)
        account = up.account("gp")
        with connected(up) as client:
            client.login(account["user"], account["password"])
            client.send_message(mail)
        up.wait_settled()
        old = {mail["Message-ID"] for mail in up.mails("gp")}

        stopped = threading.Event()
        during: list[bytes] = []

        def traffic() -> None:
            number = 0
            while not stopped.wait(0.2):
                message = oru(f"DURING-{number}")
                number += 1
                try:
                    if acknowledgement_code(up.send(message)) == "AA":
                        during.append(message)
                except OSError:
                    return

        sender = threading.Thread(target=traffic)
        sender.start()
        try:
            until(lambda: len(during) > 3, 30, "traffic")
            first = json.loads(relais("backup", target, "--state", up.state, "--json"))
            accepted_before_second = list(during)
            report = json.loads(relais("backup", "--state", up.state, "--keep", "1", "--json", target))
        finally:
            stopped.set()
            sender.join()
        assert not report["notes"], report
        assert report["reused"] >= first["copied"] / 2, "what is there already is not copied again"
        assert relais("backup", "list", target).count("\n") == 2, "the older cut is gone"

        up.stop()
        for operator in ("laboratoire", "ville"):
            key = up.state / operator / "vault" / "kek"
            (kept / operator).mkdir(parents=True)
            shutil.copy2(key, kept / operator / "kek")
        secret = b"".join((kept / operator / "kek").read_bytes() for operator in ("laboratoire", "ville"))
        assert_only_ciphertext(target, up, secret)
        passwords = json.loads((up.state / "secrets.json").read_text())
        wiped(up.state)

        keks = [option for name in ("laboratoire", "ville") for option in ("--kek", kept / name / "kek")]
        assert "authentic" in relais("backup", "verify", target, *keks)
        assert "not proved" in relais("backup", "verify", target)
        assert "--kek" in relais("restore", target, "--state", up.state, *keks[:2], fails=True)
        restored = json.loads(relais("restore", target, "--state", up.state, *keks, "--json"))
        assert {Path(each["state"]).name for each in restored} == {"laboratoire", "ville"}
        assert "overwritten" in relais("restore", target, "--state", up.state, *keks, fails=True)
        assert json.loads((up.state / "secrets.json").read_text()) == passwords
        marked = sum(each["in_flight"] for each in restored)
        assert steps_of(up, "restored") == marked

        up.start()
        up.wait_settled()
        assert old <= {mail["Message-ID"] for mail in up.mails("gp")}
        arrived = documents(up)
        assert [arrived[digest_of(message)] for message in before + accepted_before_second] == [1] * (
            len(before) + len(accepted_before_second)
        )
        listed = up.ask("laboratoire", "dossier.list", **{"every": False, **DOCTOR, "patient": PATIENT.matricule})
        assert listed, "the record is there"
        verdicts = json.loads(
            relais(
                "journal",
                "verify",
                "--state",
                up.state / "laboratoire",
                "--json",
                "--heads",
                up.state / "laboratoire" / "journal-heads.jsonl",
            )
        )
        assert all(each["ok"] for each in verdicts.values())
        entries = up.ask("laboratoire", "journal.list", limit=50)
        assert any(entry.get("action") == "state.restored" for entry in entries)

        # It is a gateway as before: reports arrive, people write.
        after = oru("AFTER-1")
        up.accepted(after)
        with connected(up) as client:
            client.login(account["user"], account["password"])
            client.send_message(letter(up))
        up.wait_settled()
        assert documents(up)[digest_of(after)] == 1


def documents(up: Running) -> Counter[str]:
    """How often each document is in the doctor's mailbox, by its SHA-256."""
    found: Counter[str] = Counter()
    for mail in up.mails("gp"):
        archive = attachment(mail, "IHE_XDM.zip")
        if archive is not None:
            with zipfile.ZipFile(io.BytesIO(archive)) as opened:
                found.update({hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()})
    return found


def assert_only_ciphertext(target: Path, up: Running, secret: bytes) -> None:
    needles = [b"mssante.fr", b"PRIVATE KEY", b"SQLite format", b"Subject:", secret[:32], secret[32:]]
    for path in target.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            content = path.read_bytes()
            assert not any(needle in content for needle in needles), path


def steps_of(up: Running, kind: str) -> int:
    total = 0
    for operator in ("laboratoire", "ville"):
        with closing(sqlite3.connect(f"file:{up.state}/{operator}/relais.db?mode=ro", uri=True)) as database:
            (count,) = database.execute("SELECT count(*) FROM mta_steps WHERE kind = ?", (kind,)).fetchone()
        total += int(count)
    return total
