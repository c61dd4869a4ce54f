"""The machine is lost: everything comes back from the backup, and from two sheets of paper the key that opens it."""

from __future__ import annotations

import hashlib
import imaplib
import io
import json
import shutil
import sqlite3
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
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


@pytest.mark.timeout(180)
def test_the_machine_is_lost_under_traffic_and_everything_comes_back() -> None:
    """One backup while reports come in, the state directory wiped, one restore."""
    with running() as up:
        before = [oru(f"BEFORE-{n}", flags=Flags(to_dossier=n == 0)) for n in range(2)]
        for message in before:
            up.accepted(message)
        with traffic(up) as during:
            relais("backup", up.state.parent / "backup", "--state", up.state)
        up.stop()
        keks = keys_kept(up)
        shutil.rmtree(up.state)
        restored = json.loads(relais("restore", up.state.parent / "backup", "--state", up.state, *keks, "--json"))
        up.start()
        after = oru("AFTER-1")
        up.accepted(after)
        up.wait_settled()
        arrived = documents(up)
        wanted = [*before, *during[:FIRST], after]
        assert [arrived[digest_of(message)] for message in wanted] == [1] * len(wanted)
        assert {Path(each["state"]).name for each in restored} == {"laboratoire", "ville"}
        assert up.ask("laboratoire", "dossier.list", **{"every": False, **DOCTOR, "patient": PATIENT.matricule})


FIRST = 3
"""So many reports are accepted before a backup begins."""


@contextmanager
def traffic(up: Running) -> Iterator[list[bytes]]:
    """Reports coming in, of which the list holds those that were accepted; `FIRST` of them before it is yielded."""
    stopped = threading.Event()
    during: list[bytes] = []

    def send() -> None:
        number = 0
        while not stopped.wait(0.2):
            message = oru(f"DURING-{number}")
            number += 1
            try:
                if acknowledgement_code(up.send(message)) == "AA":
                    during.append(message)
            except OSError:
                return

    sender = threading.Thread(target=send)
    sender.start()
    try:
        until(lambda: len(during) >= FIRST, 30, "traffic")
        yield during
    finally:
        stopped.set()
        sender.join()


def keys_kept(up: Running) -> list[str | Path]:
    """Copies of the key-encryption keys that survive the machine, as options of `relais restore`."""
    options: list[str | Path] = []
    for operator in ("laboratoire", "ville"):
        kept = up.state.parent / f"{operator}.kek"
        shutil.copy2(up.state / operator / "vault" / "kek", kept)
        options += ["--kek", kept]
    return options


@pytest.mark.proof
@pytest.mark.timeout(300)
def test_every_command_about_a_machine_that_is_lost() -> None:
    """Two backups under traffic, mailboxes and accounts of people, what is refused, and the journal afterwards."""
    with running() as up:
        target = up.state.parent / "backup"
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

        with traffic(up) as during:
            first = json.loads(relais("backup", target, "--state", up.state, "--json"))
            accepted_before_second = list(during)
            report = json.loads(relais("backup", "--state", up.state, "--keep", "1", "--json", target))
        assert not report["notes"], report
        assert report["reused"] >= first["copied"] / 2, "what is there already is not copied again"
        assert relais("backup", "list", target).count("\n") == 2, "the older cut is gone"

        up.stop()
        keks = keys_kept(up)
        secret = b"".join(Path(file).read_bytes() for file in keks[1::2])
        assert_only_ciphertext(target, up, secret)
        passwords = json.loads((up.state / "secrets.json").read_text())
        shutil.rmtree(up.state)

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
    try:
        mails = up.mails("gp")
    except imaplib.IMAP4.abort:  # a restored index may be older than the mails beside it: Dovecot rebuilds it, once
        mails = up.mails("gp")
    for mail in mails:
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
