"""A doctor with an ordinary mail program: what leaves, what is refused in its window, and what stays protected."""

from __future__ import annotations

import io
import shutil
import subprocess
import zipfile
from dataclasses import replace
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import make_msgid
from pathlib import Path

import pytest

from tests.support import reports
from tests.support.private import until
from tests.support.running import Running

from .test_submission import connected

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

HOSPITAL = "cardiologie@ch-bellevue.mssante.fr"


def written(up: Running, to: str, *attachments: tuple[str, bytes], **fields: str) -> EmailMessage:
    mail = EmailMessage(policy=SMTP)
    mail["From"] = up.account("gp")["address"]
    mail["To"] = to
    mail["Subject"] = fields.pop("subject", "Résultats")
    mail["Message-ID"] = make_msgid(domain="test-ci-sis.mssante.fr")
    for name, value in fields.items():
        mail[name.replace("_", "-")] = value
    mail.set_content("Bonjour,\nvoici.\n")
    for name, data in attachments:
        mail.add_attachment(data, maintype="application", subtype="octet-stream", filename=name)
    return mail


def sent(up: Running, mail: EmailMessage, *options: str) -> None:
    account = up.account("gp")
    with connected(up) as client:
        client.login(account["user"], account["password"])
        assert client.send_message(mail, rcpt_options=options) == {}
    up.wait_settled()


def arrived(up: Running, role: str, mail: EmailMessage) -> EmailMessage:
    (found,) = [each for each in up.mails(role) if each["Message-ID"] == mail["Message-ID"]]
    assert "decrypted=yes" in found["X-Relais-Verdict"]
    assert "signature=valid" in found["X-Relais-Verdict"]
    return found


def files(mail: EmailMessage) -> dict[str, bytes]:
    """What is attached, the signature excepted."""
    named = {each.get_filename(): each for each in mail.walk()}
    return {str(name): part.get_content() for name, part in named.items() if name and name != "smime.p7s"}


def test_an_attached_document_arrives_as_a_document_mail(up: Running) -> None:
    document = reports.cda()
    mail = written(up, HOSPITAL, ("cr.xml", document))
    sent(up, mail)
    found = arrived(up, "hospital", mail)
    assert found["Subject"] == "XDM/1.0/DDM+CR d'examens biologiques ESSAI-UN CAMILLE 30/02/1979"
    assert str(found["From"]).startswith("Dr_Adam_HODA_Cabinet du Dr Hoda")
    assert found["X-MSS-CODECDA"] == "11502-2"
    assert found["X-MSS-INS"] == "N", "an identity of tests"
    assert found["X-MSS-NIL"] and found["Disposition-Notification-To"]
    kept = files(found)
    assert list(kept) == ["20261119_CR-d-examens-biologiques_ESSAI-UN_CAMILLE.pdf", "IHE_XDM.zip"]
    with zipfile.ZipFile(io.BytesIO(kept["IHE_XDM.zip"])) as archive:
        assert archive.read("IHE_XDM/SUBSET01/DOC00001.XML") == document


def test_good_news_stands_in_the_trace_and_not_in_the_mailbox(up: Running) -> None:
    mail = written(up, HOSPITAL)
    sent(up, mail)
    arrived(up, "hospital", mail)

    def steps() -> list[str]:
        (life,) = up.ask("ville", "trace", reference=mail["Message-ID"])
        return [step["step"] for step in life["deliveries"][0]["steps"]]

    until(lambda: "heard" in steps(), 30, "the receipt of the hospital's operator")
    up.wait_settled()
    assert not [each for each in up.mails("gp") if each["In-Reply-To"] == mail["Message-ID"]]


def test_answered_and_handed_on_it_stays_protected(up: Running) -> None:
    """A reply and a forward from a program that knows nothing of S/MIME: encrypted and signed to everybody, or not sent
    at all."""
    first = written(up, HOSPITAL, subject="Avis")
    sent(up, first)
    original = next(each for each in up.raw_mails("hospital") if first["Message-ID"].encode() in each)
    reply = written(up, HOSPITAL, subject="Re: Avis", In_Reply_To=first["Message-ID"], References=first["Message-ID"])
    sent(up, reply)
    answer = arrived(up, "hospital", reply)
    assert answer["In-Reply-To"] == first["Message-ID"]
    handed_on = written(up, HOSPITAL, subject="Fwd: Avis")
    handed_on.add_attachment(original, maintype="application", subtype="octet-stream", filename="avis.eml")
    sent(up, handed_on)
    assert files(arrived(up, "hospital", handed_on)) == {"avis.eml": original}
    nobody = written(up, "sans.certificat@ch-bellevue.mssante.fr", subject="Re: Avis")
    sent(up, nobody, "NOTIFY=NEVER")
    (life,) = up.ask("ville", "trace", reference=nobody["Message-ID"])
    assert life["deliveries"][0]["state"] == "failed"
    assert "smime.no-encryption-certificate" in [step["code"] for step in life["deliveries"][0]["steps"]]


def msmtp(up: Running, tmp_path: Path, mail: EmailMessage) -> str:
    """What a real program shows its user."""
    if shutil.which("msmtp") is None:
        pytest.skip("msmtp is not installed")
    account, endpoint = up.account("gp"), up.endpoints["submission"]
    (tmp_path / "password").write_text(account["password"])
    configuration = tmp_path / "msmtprc"
    configuration.write_text(
        f"account default\nhost {endpoint['host']}\nport {endpoint['port']}\nauth plain\nuser {account['user']}\n"
        f'passwordeval "cat {tmp_path}/password"\ntls on\ntls_starttls on\ntls_trust_file {up.endpoints["ca_file"]}\n'
        f"from {account['address']}\n"
    )
    configuration.chmod(0o600)
    done = subprocess.run(
        ["msmtp", "-C", str(configuration), "-t"], input=mail.as_bytes(), capture_output=True, timeout=30, check=False
    )
    return "" if done.returncode == 0 else done.stderr.decode()


def test_the_program_shows_the_sentence(up: Running, tmp_path: Path) -> None:
    other = replace(reports.OTHER_PATIENT, local_id="990002")
    two = written(up, HOSPITAL, ("a.xml", reports.cda()), ("b.xml", reports.cda(patient=other)))
    assert "Envoyez un message par patient : celui-ci en nomme plusieurs." in msmtp(up, tmp_path, two)
    wrong = written(up, up.account("patient")["address"], ("a.xml", reports.cda()))
    assert "concerne un autre patient que le destinataire" in msmtp(up, tmp_path, wrong)
    mistyped = written(up, "cardiologie@ch-belevue.mssante.fr")
    assert f"Vouliez-vous ecrire a {HOSPITAL} (" in msmtp(up, tmp_path, mistyped)
    elsewhere = written(up, "eric.thomas@hopital.example")
    told = msmtp(up, tmp_path, elsewhere)
    assert "Vouliez-vous ecrire a thomas.eric@medecin.mssante.fr (" in told and "THOMAS" in told
    assert msmtp(up, tmp_path, written(up, HOSPITAL)) == ""
    up.wait_settled()
