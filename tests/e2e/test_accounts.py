"""Accounts of a running gateway changed from the command line, and felt at once at both doors."""

from __future__ import annotations

import imaplib
import json
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_submission import connected
from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]


def account(up: Running, *arguments: str, text: str = "") -> Any:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "config", "account", *arguments, "--json", "--state", str(up.state)],
        check=False,
        capture_output=True,
        input=text.encode(),
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def reads(up: Running, user: str, password: str) -> bool:
    imaps = up.endpoints["imaps"]
    context = ssl.create_default_context(cafile=up.endpoints["ca_file"])
    with imaplib.IMAP4_SSL(imaps["host"], imaps["port"], ssl_context=context, timeout=20) as client:
        try:
            client.login(user, password)
        except imaplib.IMAP4.error:
            return False
        return client.select("INBOX")[0] == "OK"


@contextmanager
def opened(up: Running, user: str, password: str) -> Iterator[imaplib.IMAP4_SSL]:
    imaps = up.endpoints["imaps"]
    context = ssl.create_default_context(cafile=up.endpoints["ca_file"])
    client = imaplib.IMAP4_SSL(imaps["host"], imaps["port"], ssl_context=context, timeout=20)
    try:
        client.login(user, password)
        client.select("INBOX")
        yield client
    finally:
        client.shutdown()


def sends(up: Running, user: str, password: str) -> bool:
    with connected(up) as client:
        try:
            client.login(user, password)
        except smtplib.SMTPAuthenticationError:
            return False
        return True


def test_a_secretary_at_the_doctors_practice(up: Running) -> None:
    doctor = up.account("gp")
    domain = doctor["address"].rpartition("@")[2]
    secretary, team = f"secretariat@{domain}", f"equipe@{domain}"
    account(up, "create", secretary, "--password-file", "-", text="mot de passe\n")
    account(up, "create", team, "--no-password")
    phone = account(up, "app-password", "add", secretary, "Téléphone", "--only", "imap")
    assert reads(up, secretary, "mot de passe")
    assert not sends(up, secretary, phone["password"])
    assert not reads(up, team, phone["password"])
    account(up, "grant", secretary, "--member-of", team)
    assert reads(up, team, phone["password"]), "a team's mailbox, with a member's application password"

    for number in range(5):
        assert not sends(up, secretary, f"guess {number}")
    shown = account(up, "show", secretary)
    assert shown["application_passwords"][0]["last_used"]
    assert shown["guessing"]["networks_familiar"] == 1, "Dovecot tells where its clients are"
    assert shown["guessing"]["networks_locked"] == 1
    assert not reads(up, secretary, "mot de passe"), "one count for both doors"
    assert reads(up, secretary, phone["password"]), "no guess locks an application password"
    account(up, "unlock", secretary)
    assert sends(up, secretary, "mot de passe")
    with opened(up, secretary, phone["password"]) as client, opened(up, doctor["address"], doctor["password"]) as other:
        assert account(up, "lock", secretary, "--reason", "congé")["sessions_ended"]
        with pytest.raises((imaplib.IMAP4.abort, OSError)):
            client.noop()
        assert other.noop()[0] == "OK", "nobody else's"
    assert not sends(up, secretary, "mot de passe")
    assert not reads(up, secretary, phone["password"])
