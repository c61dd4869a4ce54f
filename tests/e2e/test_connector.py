"""A practice with mailboxes at two operators, its connector, and a network that goes and comes."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import smtplib
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import make_msgid
from pathlib import Path
from typing import Any

import pytest

import config
from config.demonstration import World
from smime import encrypt, join_message, sign
from smime.suites import Suite
from tests.support.practice import CLINIC, TOWN, Mailbox, Practice, letter, practice
from tests.support.private import give, until
from tests.support.running import Running
from trust.issuing import DemonstrationAuthority
from trust.vault import KeyUse, KeyVault

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up"), pytest.mark.timeout(300)]

LABORATORY = "resultats@labo-tilleuls.mssante.fr"


async def test_a_day_and_a_night(up: Running) -> None:
    async with practice(up) as (cabinet, line):
        await asyncio.to_thread(cabinet.start)
        try:
            await asyncio.to_thread(a_day, cabinet)
            await line.cut()
            waiting = await asyncio.to_thread(a_night, cabinet)
            line.mend()
            await asyncio.to_thread(a_morning, cabinet, waiting)
        except TimeoutError as error:
            raise AssertionError(cabinet.said()) from error
        logs = cabinet.said()
        assert "EXEMPLE" not in logs
        assert "prise en charge" not in logs


def a_day(cabinet: Practice) -> None:
    # From the one operator to the other, and back home: opened with the key of the practice, in the practice only.
    mail = letter(TOWN.address, CLINIC.address)
    cabinet.submit(TOWN, mail, "NOTIFY=SUCCESS,FAILURE")
    arrived = cabinet.wait(CLINIC, mail)
    assert arrived["Subject"] == mail["Subject"]
    assert "signature=valid" in arrived["X-Relais-Verdict"]
    assert f"signer={TOWN.address}" in arrived["X-Relais-Verdict"]
    # The operator of today opens mail itself: what it leaves readable in its mailbox does not stay there.
    until(lambda: not cabinet.left_upstream(CLINIC), 10.0, "an empty mailbox upstream")

    # The practice software has it too.
    def files() -> list[dict[str, Any]]:
        return [each for each in cabinet.files() if each["message_id"] == mail["Message-ID"]]

    until(lambda: bool(files()), 10.0, "files for the practice software")
    (told,) = files()
    assert told["mailbox"] == CLINIC.address
    assert [(each["name"], each["type"]) for each in told["attachments"]] == [("compte rendu.pdf", "application/pdf")]
    assert (cabinet.state / "inbox" / told["attachments"][0]["file"]).read_bytes().startswith(b"%PDF-1.4")

    # The operator's receipt is heard: nothing is awaited any more, and no notice says that it never came.
    until(lambda: "answered" in steps(cabinet, mail), 30.0, "the operator's receipt")
    receipt = cabinet.wait_for(TOWN, ("SUBJECT", '"Message delivered"'))
    assert "postmaster@" in receipt["From"]

    # What only the practice can open stays at the operator as it came, and is read here.
    sealed = protected(cabinet, CLINIC.address, TOWN.address)
    leave_upstream(cabinet, sealed)
    arrived = cabinet.wait(TOWN, sealed)
    assert "decrypted=yes; signature=valid" in arrived["X-Relais-Verdict"]
    assert any(
        "confidentiel" in each.get_content() for each in arrived.walk() if each.get_content_type() == "text/plain"
    )
    # on this disk, which may be stolen, nobody reads it
    stored = [each.read_bytes() for each in (cabinet.state / "mail").rglob("*") if each.is_file()]
    assert not any(b"confidentiel" in each for each in stored)
    assert any(b"CRYPTED" in each for each in stored)
    (left,) = cabinet.left_upstream(TOWN)
    assert left.get_content_type() == "application/pkcs7-mime"
    assert b"confidentiel" not in left.as_bytes()
    with cabinet.upstream(TOWN) as client:  # who asks there whether it was read is not told that it was
        assert client.search(None, "SEEN")[1] == [b""]

    # What nobody here has a key for is not lost: its reader sees that it is there.
    stranger = DemonstrationAuthority.load(World(cabinet.up.state).authority)
    other = stranger.issue_mailbox(TOWN.address, "Ancienne clef", "encryption").certificate
    unopened = protected(cabinet, CLINIC.address, TOWN.address, other)
    leave_upstream(cabinet, unopened)
    arrived = cabinet.wait(TOWN, unopened)
    assert "refused=smime.cannot-open" in arrived["X-Relais-Verdict"]
    assert arrived.get_content_type() == "application/pkcs7-mime"

    # Nobody to encrypt to: the doctor is told in his own mailbox, and nothing has left in clear.
    refused = letter(TOWN.address, "claude.sanscertificat@medecin.mssante.fr")
    cabinet.submit(TOWN, refused)
    notice = cabinet.wait_for(TOWN, ("SUBJECT", '"not delivered"'))
    assert notice["To"] == TOWN.address
    assert "claude.sanscertificat@medecin.mssante.fr" in notice.as_string()


def a_night(cabinet: Practice) -> list[tuple[str, EmailMessage]]:
    """No network: what was collected is read, what is written waits, over a power cut as well."""
    before = [len(cabinet.mails(each)) for each in (TOWN, CLINIC)]
    first, second = letter(TOWN.address, LABORATORY), letter(CLINIC.address, LABORATORY)
    cabinet.submit(TOWN, first)
    cabinet.stop(signal.SIGKILL)
    cabinet.start()
    assert [len(cabinet.mails(each)) for each in (TOWN, CLINIC)] == before
    cabinet.submit(CLINIC, second)
    document = Path(config.__file__).parent / "demo" / "letter.xml"
    (cabinet.state / "outbox" / "lettre.xml").write_bytes(document.read_bytes())
    (cabinet.state / "outbox" / "lettre.to").write_text(f"{TOWN.address}\n")
    give(cabinet.state / "outbox")
    outbox = cabinet.state / "outbox"
    until(lambda: bool(list(outbox.glob("*/lettre.result.json"))), 20.0, "the letter taken")
    assert not list(outbox.glob("rejected/*.txt")), [each.read_text() for each in outbox.glob("rejected/*.txt")]
    assert cabinet.ask("queue.counts")["ready"] == 3
    leave_upstream(cabinet, arrives := protected(cabinet, CLINIC.address, TOWN.address))
    return [("laboratory", first), ("laboratory", second), ("", arrives)]


def a_morning(cabinet: Practice, waiting: list[tuple[str, EmailMessage]]) -> None:
    """The network is back, and nobody has to do anything."""
    for role, mail in waiting:
        if role:

            def arrived(role: str = role, mail: EmailMessage = mail) -> bool:
                return any(each["Message-ID"] == mail["Message-ID"] for each in cabinet.up.mails(role))

            until(arrived, 60.0, "mail of the night at the laboratory")
        else:
            cabinet.wait(TOWN, mail, 60.0)
    until(lambda: cabinet.ask("queue.counts")["ready"] == 0, 30.0, "an empty queue")
    cabinet.wait_for(TOWN, ("SUBJECT", "XDM/1.0"), 30.0)
    for role, mail in waiting:
        there = cabinet.up.mails(role) if role else cabinet.mails(TOWN)
        assert len([each for each in there if each["Message-ID"] == mail["Message-ID"]]) == 1
    # Drafts and sent mail never go up: at the operators there are no folders with anything in them but INBOX.
    for mailbox in (TOWN, CLINIC):
        with cabinet.upstream(mailbox) as client:
            for line in client.list()[1]:
                folder = line.decode().rpartition(" ")[2].strip('"')
                _, counted = client.select(folder, readonly=True)
                assert folder == "INBOX" or counted == [b"0"]

        def only_sealed(at: Mailbox = mailbox) -> bool:
            return all(each.get_content_type() == "application/pkcs7-mime" for each in cabinet.left_upstream(at))

        until(only_sealed, 30.0, "operators where nothing readable is left")


def steps(cabinet: Practice, mail: EmailMessage) -> set[str]:
    """Kinds of what happened to it here."""
    found = cabinet.ask("trace", reference=mail["Message-ID"])
    return set(re.findall(r'"step": "([a-z-]+)"', json.dumps(found)))


def protected(cabinet: Practice, sender: str, to: str, certificate: object = None) -> EmailMessage:
    """A mail as another holder of keys sends it; `EmailMessage` only carries it."""
    vault = KeyVault.open(cabinet.state / "vault")
    signer = vault.signer(sender)
    assert signer is not None
    entity = b"Content-Type: text/plain; charset=utf-8\r\n\r\nCeci est confidentiel.\r\n"
    certificates = [certificate or vault.certificates(to, KeyUse.ENCRYPTION)[0]]
    sealed = encrypt(sign(entity, signer, datetime.now(UTC), Suite()), certificates, Suite())
    header = f"From: <{sender}>\r\nTo: <{to}>\r\nSubject: =?utf-8?q?R=C3=A9ponse?=\r\n"
    header += f"Date: Sun, 22 Nov 2026 04:00:00 +0000\r\nMessage-ID: {make_msgid(domain='exemple.test')}\r\n"
    return message_from_bytes(join_message(header.encode(), sealed), _class=EmailMessage, policy=SMTP)


def leave_upstream(cabinet: Practice, mail: EmailMessage) -> None:
    """The operator files it as it came, for a mailbox whose holder has the keys."""
    with smtplib.LMTP(str(cabinet.up.state / "dovecot" / "run" / "lmtp")) as client:
        client.sendmail(CLINIC.address, [TOWN.address], mail.as_bytes())
