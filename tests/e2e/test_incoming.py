"""A mail server of the house hands over by LMTP, and another operator's gateway says what it found out."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage
from email.utils import make_msgid

import pytest

from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]

LABORATORY = "resultats@labo-tilleuls.mssante.fr"


def test_the_house_server_s_mail_arrives_protected_and_its_author_proved(up: Running) -> None:
    doctor = up.account("gp")["address"]
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = LABORATORY, doctor, "De la maison"
    mail["Message-ID"] = make_msgid(domain="labo-tilleuls.mssante.fr")
    mail["Authentication-Results"] = "relais.forged.example; dkim=pass"
    mail.set_content("Bonjour\n")
    with smtplib.LMTP(str(up.state / "laboratoire" / "lmtp-in.sock"), local_hostname="mta.labo.example") as client:
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail(doctor, [doctor], mail.as_bytes())
        assert client.send_message(mail) == {}
    up.wait_settled()
    (arrived,) = [found for found in up.mails("gp") if found["Message-ID"] == mail["Message-ID"]]
    verdict, (results,) = arrived["X-Relais-Verdict"], arrived.get_all("Authentication-Results")
    assert "decrypted=yes; signature=valid" in verdict
    assert "author=operator" in verdict
    for word in ("dkim=pass header.d=labo-tilleuls.mssante.fr", "x-author=pass", "x-smime=pass"):
        assert word in " ".join(results.split())
    assert "forged" not in results
    assert any("with LMTP" in field for field in arrived.get_all("Received"))
