"""Mailboxes of a running gateway, real clients at its doors: suspended, closed, opened; and a patient who answers."""

from __future__ import annotations

import imaplib
import json
import smtplib
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path
from typing import Any

import pytest

from config.demonstration import DOCTOR, LABORATORY, PATIENT
from tests.support.private import until
from tests.support.running import Running
from trust.issuing import DemonstrationAuthority

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

DOMAIN = "medecin.mssante.fr"


def relais(up: Running, *arguments: str, text: str = "") -> Any:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "config", *arguments, "--json", "--state", str(up.state)],
        check=False,
        capture_output=True,
        input=text.encode(),
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def mailbox(up: Running, *arguments: str, text: str = "") -> Any:
    return relais(up, "mailbox", *arguments, text=text)


def create(up: Running, address: str, kind: str, label: str) -> str:
    mailbox(up, "create", address, "--kind", kind, "--label", label, "--password-file", "-", text="mot de passe\n")
    return address


@contextmanager
def imap(up: Running, user: str, password: str = "mot de passe") -> Iterator[imaplib.IMAP4_SSL]:
    where = up.endpoints["imaps"]
    context = ssl.create_default_context(cafile=up.endpoints["ca_file"])
    client = imaplib.IMAP4_SSL(where["host"], where["port"], ssl_context=context, timeout=20)
    try:
        client.login(user, password)
        client.select("INBOX")
        yield client
    finally:
        client.shutdown()


def reads(up: Running, user: str, password: str = "mot de passe") -> bool:
    try:
        with imap(up, user, password) as client:
            return client.state == "SELECTED"
    except imaplib.IMAP4.error:
        return False


@contextmanager
def submission(up: Running, user: str, password: str = "mot de passe") -> Iterator[smtplib.SMTP]:
    where = up.endpoints["submission"]
    with smtplib.SMTP(where["host"], where["port"], timeout=20) as client:
        client.starttls(context=ssl.create_default_context(cafile=up.endpoints["ca_file"]))
        client.login(user, password)
        yield client


def refusal(up: Running, account: dict[str, Any], mail: EmailMessage) -> tuple[int, str]:
    """Of the one recipient or of the content; (250, "") when it was taken."""
    try:
        with submission(up, account["user"], account["password"]) as client:
            client.send_message(mail)
    except smtplib.SMTPRecipientsRefused as error:
        ((code, words),) = error.recipients.values()
    except smtplib.SMTPResponseException as error:
        code, words = error.smtp_code, error.smtp_error
    else:
        return 250, ""
    return code, words.decode()


def letter(author: str, to: str, **fields: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = author, to, "Votre suivi"
    mail["Message-ID"] = make_msgid(domain=author.rpartition("@")[2])
    for name, value in fields.items():
        del mail[name.replace("_", "-")]
        mail[name.replace("_", "-")] = value
    mail.set_content("Bonjour")
    return mail


def listed(up: Running, address: str) -> Any:
    return up.ask("ville", "directory.resolve", address=address)


def test_the_demonstration_s_mailboxes_are_what_they_are(up: Running) -> None:
    kinds = {row["address"]: row["kind"] for row in mailbox(up, "list")}
    assert (kinds[DOCTOR.address], kinds[LABORATORY.address], kinds[PATIENT.address]) == ("PER", "APP", "PATIENT")
    assert mailbox(up, "show", DOCTOR.address)["label"] == "Dr Adam HODA"


def test_suspended_and_opened_again(up: Running) -> None:
    address = create(up, f"camille.fictive@{DOMAIN}", "PER", "Dr Camille FICTIVE")
    until(lambda: listed(up, address) is not None, 20, "the new mailbox in the directory")
    assert listed(up, address)["name"] == "Dr Camille FICTIVE"
    with imap(up, address) as client:
        assert client.noop()[0] == "OK"
        with submission(up, address) as sending:
            assert mailbox(up, "suspend", address, "--reason", "congé")["sessions_ended"]
            assert sending.mail(address)[0] == 550
        with pytest.raises((imaplib.IMAP4.abort, OSError)):
            for _ in range(20):
                client.noop()
    assert not reads(up, address)
    with pytest.raises(smtplib.SMTPAuthenticationError, match=r"5\.7\.13"), submission(up, address):
        pass
    until(lambda: listed(up, address) is not None, 10, "the directory")
    mailbox(up, "open", address)
    assert reads(up, address)


def test_closed_it_bounces_with_the_reason_and_keeps_its_mail(up: Running) -> None:
    address = create(up, f"dominique.fictif@{DOMAIN}", "PER", "Dr Dominique FICTIF")
    until(lambda: listed(up, address) is not None, 20, "the new mailbox in the directory")
    closed = mailbox(up, "close", address, "--reason", "Départ à la retraite")
    assert closed["directory_told"]
    until(lambda: listed(up, address) is None, 20, "the mailbox out of the directory")
    assert not reads(up, address)
    code, words = refusal(up, up.account("gp"), letter(DOCTOR.address, address))
    assert code == 550
    assert words.startswith("5.2.1 ")
    assert words.endswith("(Depart a la retraite)")
    mailbox(up, "open", address)
    assert reads(up, address)
    until(lambda: listed(up, address) is not None, 20, "the mailbox in the directory again")


def test_a_team_sees_who_has_answered(up: Running) -> None:
    team, member = "dpi@hopitala.mssante.fr", create(up, f"claude.fictif@{DOMAIN}", "PER", "Claude FICTIF")
    mailbox(up, "password", team, "--password-file", "-", text="mot de passe\n")
    mailbox(up, "members", team, member, "--read", "--send")
    question = letter(DOCTOR.address, team)
    assert refusal(up, up.account("gp"), question)[0] == 250

    def flags() -> str:
        with imap(up, team) as client:
            if not client.search(None, "ALL")[1][0]:
                return ""
            _, found = client.fetch("1:*", "(FLAGS)")
            return b" ".join(each for each in found if isinstance(each, bytes)).decode()

    until(lambda: "FLAGS" in flags(), 40, "the question")
    assert "Answered" not in flags()
    answer = letter(team, DOCTOR.address, In_Reply_To=str(question["Message-ID"]))
    assert refusal(up, {"user": member, "password": "mot de passe"}, answer)[0] == 250
    until(lambda: "Answered" in flags(), 40, "the mark of the answer")
    assert "$Repondu-claude.fictif" in flags()


def test_a_team_is_served_to_its_members_by_their_rights(up: Running) -> None:
    team = f"equipe.fictive@{DOMAIN}"
    made = mailbox(up, "create", team, "--kind", "ORG", "--label", "Equipe FICTIVE")
    writer = create(up, f"alix.fictive@{DOMAIN}", "PER", "Dr Alix FICTIVE")
    reader = create(up, f"noa.fictif@{DOMAIN}", "PER", "Noa FICTIF")
    mailbox(up, "members", team, writer, "--read", "--write")
    mailbox(up, "members", team, reader, "--read")
    mailbox(up, "quota", made["id"][:12], "100K")
    below = f'"Equipes/{team}/INBOX"'
    note = b"Subject: note\r\n\r\nvu\r\n"
    with imap(up, writer) as client:
        assert client.append(below, "", None, note)[0] == "OK"
        assert client.append(below, "", None, note + b"x" * 120_000)[0] == "NO", "the quota is the team's own"
    with imap(up, reader) as client:
        assert client.select(below) == ("OK", [b"1"])
        assert client.append(below, "", None, note)[0] == "NO"
    with pytest.raises(imaplib.IMAP4.error), imap(up, f"{team}*{DOCTOR.address}"):
        pass
    mailbox(up, "members", team, reader, "--remove")
    with imap(up, reader) as client:
        assert client.select(below)[0] == "NO"
    # Put aside by its id: no address on a command line that lasts.
    copy = up.state / "ville" / "copy"
    assert mailbox(up, "backup", made["id"], str(copy))["messages"] == 1
    assert not [each for each in copy.rglob("*") if each.is_file() and b"Subject: note" in each.read_bytes()]


def test_a_machine_reads_with_its_certificate_while_it_may(up: Running, tmp_path: Path) -> None:
    machine, team = f"automate.fictif@{DOMAIN}", f"garde.fictive@{DOMAIN}"
    mailbox(up, "create", machine, "--kind", "APP", "--label", "Automate FICTIF")
    mailbox(up, "create", team, "--kind", "ORG", "--label", "Garde FICTIVE")
    mailbox(up, "members", team, machine, "--read")
    issued = DemonstrationAuthority.load(up.state / "authority").issue_operator(
        "automate", "Automate", "1750000009", ["automate.test"]
    )
    chain, key = tmp_path / "machine.pem", tmp_path / "machine.key"
    chain.write_bytes(issued.pem_chain())
    key.write_bytes(issued.pem_key())
    relais(up, "account", "certificate", "bind", machine, str(chain))
    where = up.endpoints["imap_certificates"]["ville"]
    context = ssl.create_default_context(cafile=up.endpoints["ca_file"])
    context.load_cert_chain(chain, key)

    @contextmanager
    def signed_in(wanted: str = "") -> Iterator[imaplib.IMAP4_SSL]:
        client = imaplib.IMAP4_SSL(where["host"], where["port"], ssl_context=context, timeout=20)
        try:
            client.authenticate("EXTERNAL", lambda _: wanted.encode())
            yield client
        finally:
            client.shutdown()

    with signed_in(team) as client:
        assert client.select("INBOX")[0] == "OK"
        assert client.append("INBOX", "", None, b"Subject: x\r\n\r\nx\r\n")[0] == "NO", "it only reads"
    with signed_in() as client:
        assert client.select("INBOX")[0] == "OK"
        assert mailbox(up, "suspend", machine, "--reason", "panne")["sessions_ended"]
        with pytest.raises((imaplib.IMAP4.abort, OSError)):
            for _ in range(20):
                client.noop()
    for wanted in ("", machine):
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"), signed_in(wanted):
            pass
    mailbox(up, "open", machine)
    mailbox(up, "suspend", team, "--reason", "panne")
    with pytest.raises(imaplib.IMAP4.error), signed_in(team):
        pass
    with signed_in() as client:
        assert client.select("INBOX")[0] == "OK"


def test_a_patient_answers_until_the_last_word(up: Running) -> None:
    patient, doctor = up.account("patient"), up.account("gp")
    code, words = refusal(up, patient, letter(PATIENT.address, f"thomas.eric@{DOMAIN}"))
    assert (code, words[:5]) == (550, "5.7.1")
    assert "2790" not in words
    first = letter(DOCTOR.address, PATIENT.address)
    assert refusal(up, doctor, first)[0] == 250
    until(lambda: any(each["Message-ID"] == first["Message-ID"] for each in up.mails("patient")), 40, "the first mail")
    assert refusal(up, patient, letter(PATIENT.address, DOCTOR.address))[0] == 550, "no answer"
    answer = letter(PATIENT.address, DOCTOR.address, In_Reply_To=str(first["Message-ID"]))
    assert refusal(up, patient, answer)[0] == 250
    until(lambda: any(each["Message-ID"] == answer["Message-ID"] for each in up.mails("gp")), 40, "the answer")
    last = letter(DOCTOR.address, PATIENT.address, In_Reply_To=str(answer["Message-ID"]), X_MSS_MES="FIN")
    assert refusal(up, doctor, last)[0] == 250
    until(lambda: any(each["Message-ID"] == last["Message-ID"] for each in up.mails("patient")), 40, "the last word")
    again = letter(PATIENT.address, DOCTOR.address, In_Reply_To=str(last["Message-ID"]))
    code, words = refusal(up, patient, again)
    assert (code, words[:5]) == (550, "5.7.1")
