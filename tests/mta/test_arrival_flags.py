"""Flags, folders and `\\Seen` of arriving mail in a real Dovecot, over LMTP, IMAPS and doveadm's socket."""

from __future__ import annotations

import imaplib
import quopri
import re
import smtplib
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from directory.records import MailboxKind
from mta.collecting import KEYWORD
from mta.mailboxes.dovecot import DELIVERY_HEADER
from mta.mailboxes.lmtp import LmtpOptions, LmtpTarget
from mta.mailboxes.records import MailboxRecord, ReadingPreferences
from mta.mailboxes.seen import Looked, SeenMail
from mta.mailboxes.sieve import FOLDER_FIELD, KEYWORDS, MARKS_FIELD, Folder, Mark
from mta.message import Delivered, Message
from tests.bridges.test_arriving import LABO, NOIR, Gateway, Registry, a_report, mail, xdm
from tests.support.private import give
from trust.issuing import DemonstrationAuthority
from trust.vault import KeyVault

from .mailboxes import Directory, Mailboxes
from .test_dovecot import PATIENT, Running, a_dovecot

DOCTOR, NURSE, LABORATORY = (f"{name}@ville.mssante.test" for name in ("medecin", "garde", "labo"))
PASSWORD = "pass word/é$"


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with a_dovecot() as server:
        yield server


def deliver(running: Running, recipient: str, identity: str, *fields: str) -> None:
    header = "".join(f"{field}\r\n" for field in (f"{DELIVERY_HEADER}: {identity}", *fields, f"Subject: {identity}"))
    with smtplib.LMTP(str(running.dovecot.lmtp_socket)) as lmtp:
        lmtp.sendmail("relay@ville.mssante.test", [recipient], (header + "\r\nx\r\n").encode())


def flags(running: Running, user: str, folder: str = "INBOX") -> dict[str, set[str]]:
    """By subject, as an IMAP client sees them; the folder is only looked at."""
    with running.log_in(user, PASSWORD) as client:
        status, _ = client.select(folder, readonly=True)
        if status != "OK":
            return {}
        found = {}
        for number in client.search(None, "ALL")[1][0].split():
            answer = client.fetch(number, "(FLAGS BODY.PEEK[HEADER.FIELDS (SUBJECT)])")[1]
            said = b" ".join(part for item in answer for part in (item if isinstance(item, tuple) else (item,)))
            subject = re.search(rb"Subject: (\S+)", said)
            assert subject is not None
            found[subject[1].decode()] = {
                each.decode() for flag in imaplib.ParseFlags(said) for each in [flag] if each != rb"\Recent"
            }
        return found


def test_what_is_critical_is_flagged_and_everything_has_its_keyword(running: Running) -> None:
    every = ", ".join(mark.value for mark in Mark)
    deliver(running, DOCTOR, "every", f"{MARKS_FIELD}: {every}")
    deliver(running, DOCTOR, "normal", f"{MARKS_FIELD}: laboratory, verified")
    deliver(running, DOCTOR, "plain")
    found = flags(running, DOCTOR)
    assert found["every"] == {"\\Flagged", *KEYWORDS.values()}
    assert found["normal"] == {KEYWORDS[Mark.LABORATORY], KEYWORDS[Mark.VERIFIED]}
    assert found["plain"] == set()


def test_filing_by_type_and_only_where_it_is_asked_for(running: Running) -> None:
    for folder in Folder:
        deliver(running, LABORATORY, folder.name, f"{FOLDER_FIELD}: {folder.value}", f"{MARKS_FIELD}: critical")
    deliver(running, LABORATORY, "elsewhere", f"{FOLDER_FIELD}: ../../Autre")
    assert set(flags(running, LABORATORY)) == {"elsewhere"}
    for folder in Folder:
        assert flags(running, LABORATORY, folder.value) == {folder.name: {"\\Flagged", KEYWORDS[Mark.CRITICAL]}}


def test_a_script_of_the_holders_own_goes_before_filing_and_keeps_the_flags(running: Running) -> None:
    home = running.options.realms[0].home_of(NURSE)
    assert home is not None
    deliver(running, NURSE, "first")
    script = 'require ["fileinto", "mailbox"];\nif header :is "Subject" "mine" { fileinto :create "Perso"; }\n'
    (home / ".dovecot.sieve").write_text(script)
    give(home)
    filed = (f"{FOLDER_FIELD}: {Folder.LABORATORY.value}", f"{MARKS_FIELD}: critical")
    deliver(running, NURSE, "mine", *filed)
    deliver(running, NURSE, "other", *filed)
    assert flags(running, NURSE, "Perso") == {"mine": {"\\Flagged", KEYWORDS[Mark.CRITICAL]}}
    assert flags(running, NURSE, Folder.LABORATORY.value) == {"other": {"\\Flagged", KEYWORDS[Mark.CRITICAL]}}
    (home / ".dovecot.sieve").unlink()


def test_what_was_looked_at_wherever_it_lies_and_what_is_gone(running: Running) -> None:
    address = f"{PATIENT}@patient.mssante.test"
    asking = SeenMail(running.dovecot.search_socket)
    for identity in ("unread", "read", "moved", "gone"):
        deliver(running, address, identity)
    with running.log_in(address, PASSWORD) as client:
        client.select("INBOX")
        client.fetch("2:4", "(BODY[])")
        client.copy("3", "Trash")
        client.store("3:4", "+FLAGS", r"(\Deleted)")
        client.expunge()
    wanted = ["unread", "read", "moved", "gone", "never", "bad\tname"]
    assert asking.look(address, wanted) == Looked(frozenset({"unread", "read", "moved"}), frozenset({"read", "moved"}))
    assert asking.look(address, []) == Looked(frozenset(), frozenset())
    assert asking.look("a\tb@ville.mssante.test", wanted) is None


def test_a_machine_has_read_nothing_nor_has_a_collector(running: Running) -> None:
    address = f"{PATIENT}@patient.mssante.test"
    for identity in ("opened", "collected"):
        deliver(running, address, identity)
    with running.log_in(address, PASSWORD) as client:
        client.select("INBOX")
        for identity, set_flags in (("opened", r"(\Seen)"), ("collected", rf"(\Seen {KEYWORD})")):
            (numbers,) = client.search(None, "HEADER", DELIVERY_HEADER, identity)[1]
            client.store(numbers.decode(), "+FLAGS", set_flags)
    wanted, asked_at = ["opened", "collected"], running.dovecot.search_socket
    assert SeenMail(asked_at).look(address, wanted) == Looked(frozenset(wanted), frozenset({"opened"}))
    machine = SeenMail(asked_at, is_machine=lambda asked: asked == address)
    assert machine.look(address, wanted) == Looked(frozenset(wanted), frozenset())


def test_a_dovecot_that_does_not_answer_says_nothing(running: Running) -> None:
    with pytest.raises(OSError):
        SeenMail(Path("/nonexistent"), 1).look(DOCTOR, ["every"])
    with socket.socket(socket.AF_UNIX) as hanging, tempfile.TemporaryDirectory() as folder:
        hanging.bind(f"{folder}/s")
        hanging.listen()
        with pytest.raises(OSError):
            SeenMail(Path(folder) / "s", 0.2).look(DOCTOR, ["every"])
    assert SeenMail(running.dovecot.lmtp_socket, 2).look(DOCTOR, ["every"]) is None
    unknown = SeenMail(running.dovecot.search_socket).look("personne@ville.mssante.test", ["x"])
    assert unknown is None, "an identity that is gone for a moment has taken nothing out of its mailbox"


async def test_the_whole_way_into_a_mail_program(running: Running, tmp_path: Path) -> None:
    """Signed and encrypted by a laboratory, made ready, filed over LMTP, and read by an IMAP client that knows no
    S/MIME: the notice first, the mail as it came behind it."""
    people = Mailboxes(DemonstrationAuthority.create("Chemin"))
    vault = KeyVault.create(tmp_path / "vault")
    people.install(vault, LABO, NOIR)
    record = MailboxRecord(
        address=NOIR, kind=MailboxKind.PER, label="", preferences=ReadingPreferences(filing=True, hprim=True)
    )
    gateway = Gateway(vault, people, Directory.of(people), Registry(record), {})
    arrived = await gateway.arrive(await gateway.protect(mail(xdm(a_report()))))
    assert isinstance(arrived, Message)
    lmtp = LmtpTarget(LmtpOptions("relay", running.dovecot.lmtp_socket))
    outcome = await lmtp.deliver(replace(arrived, recipient=DOCTOR))
    await lmtp.close()
    assert isinstance(outcome, Delivered), outcome
    folder = Folder.LABORATORY.value
    (marked,) = flags(running, DOCTOR, folder).values()
    assert {"\\Flagged", KEYWORDS[Mark.CRITICAL], KEYWORDS[Mark.VERIFIED]} <= marked
    with running.log_in(DOCTOR, PASSWORD) as client:
        client.select(folder)
        assert client.search(None, "KEYWORD", KEYWORDS[Mark.CRITICAL])[1] == [b"1"]
        structure = client.fetch("1", "(BODYSTRUCTURE)")[1][0].decode()
        first = client.fetch("1", "(BODY.PEEK[1])")[1][0][1]
        whole = client.fetch("1", "(BODY[])")[1][0][1]
    assert "Avis de la passerelle" in quopri.decodestring(first).decode()
    assert '"signed"' in structure.lower()
    assert ".hpr" in structure
    assert whole.endswith(arrived.content[-2000:])
    assert SeenMail(running.dovecot.search_socket).look(DOCTOR, ["d1"]) == Looked(frozenset({"d1"}), frozenset({"d1"}))
