"""The doctor writes from an ordinary mail client: STARTTLS, a password, and the same protected road."""

from __future__ import annotations

import io
import json
import smtplib
import ssl
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import make_msgid

import pytest

from bridges.screening_refusals import ARCHIVE_REFUSED
from mta import refusals
from tests.support.running import Running
from trust.refusals import Refused

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

SENDER_NOT_ALLOWED, MESSAGE_TOO_LARGE = Refused(refusals.SENDER_NOT_ALLOWED), Refused(refusals.MESSAGE_TOO_LARGE)
LABORATORY = "resultats@labo-tilleuls.mssante.fr"


@contextmanager
def connected(up: Running) -> Iterator[smtplib.SMTP]:
    submission = up.endpoints["submission"]
    with smtplib.SMTP(submission["host"], submission["port"], timeout=20) as client:
        client.starttls(context=ssl.create_default_context(cafile=up.endpoints["ca_file"]))
        yield client


def letter(up: Running, to: str = LABORATORY) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = f"Dr Adam HODA <{up.account('gp')['address']}>"
    mail["To"] = to
    mail["Subject"] = "Précision demandée"
    mail["Message-ID"] = make_msgid(domain="test-ci-sis.mssante.fr")
    mail.set_content("Bonjour,\nPouvez-vous préciser la méthode ?\n")
    mail.add_attachment(b"%PDF-1.4\n%%EOF\n", maintype="application", subtype="pdf", filename="note.pdf")
    return mail


def test_a_letter_reaches_the_laboratory_signed_and_encrypted(up: Running) -> None:
    account, mail = up.account("gp"), letter(up)
    with connected(up) as client:
        client.login(account["user"], account["password"])
        client.send_message(mail)
    up.wait_settled()
    (arrived,) = [found for found in up.mails("laboratory") if found["Message-ID"] == mail["Message-ID"]]
    assert "decrypted=yes" in arrived["X-Relais-Verdict"]
    assert "signature=valid" in arrived["X-Relais-Verdict"]
    assert arrived["Subject"] == "Précision demandée"
    assert any(part.get_filename() == "note.pdf" for part in arrived.walk())


def test_a_letter_reaches_the_hospital_whose_key_is_on_a_curve(up: Running) -> None:
    account, mail = up.account("gp"), letter(up, up.account("hospital")["address"])
    with connected(up) as client:
        client.login(account["user"], account["password"])
        client.send_message(mail)
    up.wait_settled()
    (arrived,) = [found for found in up.mails("hospital") if found["Message-ID"] == mail["Message-ID"]]
    assert "decrypted=yes" in arrived["X-Relais-Verdict"]
    assert "signature=valid" in arrived["X-Relais-Verdict"]


def test_the_same_door_under_tls_from_the_first_octet(up: Running) -> None:
    account, endpoint = up.account("gp"), up.endpoints["submissions"]
    context = ssl.create_default_context(cafile=up.endpoints["ca_file"])
    with smtplib.SMTP_SSL(endpoint["host"], endpoint["port"], timeout=20, context=context) as client:
        client.login(account["user"], account["password"])
        assert client.send_message(letter(up)) == {}


def test_nobody_sends_without_a_password(up: Running) -> None:
    with connected(up) as client, pytest.raises(smtplib.SMTPException) as refused:
        client.send_message(letter(up))
    assert "530" in str(refused.value) or "5.7.0" in str(refused.value)


def test_a_wrong_password_is_refused(up: Running) -> None:
    with connected(up) as client, pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        client.login("cardiologie@ch-bellevue.mssante.fr", "not the password")
    assert refused.value.smtp_code == 535


def test_the_sender_owns_the_from_address(up: Running) -> None:
    account, mail = up.account("gp"), letter(up)
    mail.replace_header("From", "Somebody Else <thomas.eric@medecin.mssante.fr>")
    with connected(up) as client:
        client.login(account["user"], account["password"])
        with pytest.raises(smtplib.SMTPResponseException) as refused:
            client.sendmail(account["address"], [LABORATORY], mail.as_bytes(policy=SMTP))
    assert refused.value.smtp_code == 550
    assert refused.value.smtp_error.startswith(b"5.7.1")


@pytest.mark.parametrize(
    ("recipient", "status"),
    [("quelquun@example.com", b"5.7.1"), ("personne.inconnue@test-ci-sis.mssante.fr", b"5.1.1")],
)
def test_impossible_recipients_are_refused_at_once(up: Running, recipient: str, status: bytes) -> None:
    account = up.account("gp")
    with connected(up) as client:
        client.login(account["user"], account["password"])
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            client.send_message(letter(up, recipient))
    code, words = refused.value.recipients[recipient]
    assert 500 <= code < 600
    assert words.startswith(status)


def test_the_sender_field_is_ones_own_as_well(up: Running) -> None:
    account, mail = up.account("gp"), letter(up)
    mail["Sender"] = "thomas.eric@medecin.mssante.fr"
    with connected(up) as client:
        client.login(account["user"], account["password"])
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.send_message(mail, from_addr=account["address"])
    assert (refused.value.smtp_code, refused.value.smtp_error) == (550, SENDER_NOT_ALLOWED.reply_fr[4:].encode())


def test_too_large_a_message_is_refused_before_it_is_sent(up: Running) -> None:
    account = up.account("gp")
    with connected(up) as client:
        client.login(account["user"], account["password"])
        limit = int(client.esmtp_features["size"])
        code, words = client.mail(account["address"], [f"size={limit + 1}"])
    assert f"{code} {words.decode()}" == MESSAGE_TOO_LARGE.reply_fr


def test_a_zip_bomb_is_refused_with_its_reason(up: Running) -> None:
    account, mail = up.account("gp"), letter(up)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("resultats.txt", bytes(20_000_000))
    mail.add_attachment(bomb.getvalue(), maintype="application", subtype="zip", filename="resultats.zip")
    with connected(up) as client:
        client.login(account["user"], account["password"])
        with pytest.raises(smtplib.SMTPDataError) as refused:
            client.send_message(mail)
    said = Refused(ARCHIVE_REFUSED, "part 3: compression ratio").reply_fr
    assert f"{refused.value.smtp_code} {refused.value.smtp_error.decode()}" == said


def test_operators_come_with_a_certificate_or_not_at_all(up: Running) -> None:
    """Port 25 of the trust space, as seen by somebody who is not in it."""
    port = json.loads((up.state / "ports.json").read_text())["operators-ville"]
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.ehlo()
        code, words = client.mail("a@labo-tilleuls.mssante.fr")
        assert code == 530 and b"5.7.0" in words
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        context = ssl.create_default_context(cafile=up.endpoints["ca_file"])
        context.check_hostname = False
        with pytest.raises((ssl.SSLError, smtplib.SMTPException, ConnectionError)):
            client.starttls(context=context)
            client.ehlo()
            client.mail("a@labo-tilleuls.mssante.fr")
