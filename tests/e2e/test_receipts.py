"""The sender knows: whether it arrived, was read, or why not; by mail, by HL7, and in the trace."""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from email.utils import make_msgid
from pathlib import Path

import pytest

from bridges.hl7 import er7
from tests.e2e.test_command_line import relais
from tests.e2e.test_road import IMPOSSIBLE, NO_RECORD, digest_of, mails_about, oru
from tests.support.private import until
from tests.support.reports import DOCTOR as TO_DOCTOR
from tests.support.reports import Flags
from tests.support.running import Running

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("up")]


def acknowledgements(up: Running, control_id: str) -> dict[str, list[str]]:
    """Business acknowledgements the laboratory's system got about one report: `ZAM^Z02` and so on, Y or N each."""
    found: dict[str, list[str]] = {}
    for file in sorted(Path(up.endpoints["receiver"]["folder"]).glob("*.hl7")):
        parsed = er7.parse(file.read_bytes(), max_bytes=1 << 20)
        assert not isinstance(parsed, er7.Er7Error)
        first = parsed.segments("OBX")[0]
        if first.field(4).text == control_id:
            event = parsed.header.field(9).component(2).text
            found.setdefault(event, []).append(first.field(5).component(1).text)
    return found


def wait_for(up: Running, control_id: str, event: str, count: int = 1) -> list[str]:
    until(lambda: len(acknowledgements(up, control_id).get(event, [])) >= count, 30, f"{count} {event}")
    return acknowledgements(up, control_id)[event]


def notifications(up: Running, role: str, original: str) -> list[EmailMessage]:
    """Delivery notifications in a mailbox whose text names this Message-ID or envelope id."""
    return [
        mail
        for mail in up.mails(role)
        if any(part.get_content_type() == "message/delivery-status" for part in mail.walk()) and original in str(mail)
    ]


def test_arrival_is_told_by_mail_and_by_hl7(up: Running) -> None:
    message = oru("RECEIPT-1")
    up.accepted(message)
    assert wait_for(up, "RECEIPT-1", "Z02") == ["Y"]
    assert wait_for(up, "RECEIPT-1", "Z01") == ["Y"]
    (life,) = up.ask("laboratoire", "trace", reference="RECEIPT-1")
    until(lambda: len(notifications(up, "laboratory", life["spool_id"])) == 1, 30, "the notification by mail")
    (mail,) = notifications(up, "laboratory", life["spool_id"])
    assert "signature=valid" in mail["X-Relais-Verdict"]
    assert "ESSAI" not in str(mail), "no patient in a notification"


def test_failure_is_told_by_mail_and_by_hl7(up: Running) -> None:
    message = oru("RECEIPT-2", recipients=(TO_DOCTOR, IMPOSSIBLE["unknown recipient"]), flags=NO_RECORD)
    up.accepted(message)
    assert sorted(wait_for(up, "RECEIPT-2", "Z02", 2)) == ["N", "Y"]
    (life,) = up.ask("laboratoire", "trace", reference="RECEIPT-2")
    until(lambda: len(notifications(up, "laboratory", life["spool_id"])) == 2, 30, "both notifications")


def test_nothing_is_told_that_was_not_asked_for(up: Running) -> None:
    up.accepted(oru("RECEIPT-3", flags=Flags(ack_reception=False)))
    up.accepted(oru("RECEIPT-4"))
    wait_for(up, "RECEIPT-4", "Z02")
    up.wait_settled()
    assert acknowledgements(up, "RECEIPT-3") == {}


THUNDERBIRD = """\
Content-Type: multipart/report; report-type=disposition-notification; boundary="mdn"

--mdn
Content-Type: text/plain; charset=UTF-8
Content-Transfer-Encoding: 8bit

Le message a été affiché.
--mdn
Content-Type: message/disposition-notification; name="MDNPart2.txt"
Content-Disposition: inline

Final-Recipient: rfc822;{address}
Original-Message-ID: {original}
Disposition: manual-action/MDN-sent-manually; displayed

--mdn--
"""
OUTLOOK = """\
In-Reply-To: {original}
Content-Type: multipart/report; boundary="_000_";
\treport-type=disposition-notification

--_000_
Content-Type: text/html; charset="iso-8859-1"
Content-Transfer-Encoding: quoted-printable

<p>Lu=A0: r=E9sultats</p>
--_000_
Content-Type: message/disposition-notification

Final-recipient: RFC822; {address}
Disposition: automatic-action/MDN-sent-automatically;
\tdisplayed

--_000_--
"""


def submit(up: Running, role: str, to: str, content: str, sender: str | None = None) -> None:
    """As a mail client of that account does, with a null reverse-path when `sender` is empty."""
    account = up.account(role)
    head = f"From: {account['address']}\nTo: {to}\nMessage-ID: {make_msgid()}\nSubject: Lu\nMIME-Version: 1.0\n"
    with smtplib.SMTP("127.0.0.1", up.endpoints["submission"]["port"], timeout=20) as client:
        client.starttls(context=ssl.create_default_context(cafile=up.endpoints["ca_file"]))
        client.login(account["user"], account["password"])
        octets = (head + content).replace("\n", "\r\n").encode()
        client.sendmail(account["address"] if sender is None else sender, [to], octets)


@pytest.mark.parametrize(
    ("control_id", "receipt", "sender"), [("RECEIPT-5", THUNDERBIRD, None), ("RECEIPT-6", OUTLOOK, "")]
)
def test_reading_is_told_when_the_client_returns_the_receipt(
    up: Running, control_id: str, receipt: str, sender: str | None
) -> None:
    message = oru(control_id, flags=Flags(ack_reading=True))
    up.accepted(message)
    up.wait_settled()
    (report,) = mails_about(up, "gp", digest_of(message))
    to = report["Disposition-Notification-To"]
    address = up.account("gp")["address"]
    submit(up, "gp", to, receipt.format(address=address, original=report["Message-ID"]), sender)
    assert wait_for(up, control_id, "Z03") == ["Y"]


def test_trace_shows_every_step_of_both_messages_of_a_reused_identifier(up: Running) -> None:
    up.accepted(oru("TRACED-1", "one"))
    up.accepted(oru("TRACED-1", "two", recipients=(TO_DOCTOR, IMPOSSIBLE["untrusted domain"])))
    up.wait_settled()
    shown = relais("trace", "TRACED-1", state=up.state)
    assert shown.returncode == 0, shown.stderr
    text = shown.stdout.decode()
    assert text.count("MSH-10 TRACED-1") == 2
    assert "directory.domain-untrusted" in text
    assert "used this identifier before" in text
    (first, _) = up.ask("laboratoire", "trace", reference="TRACED-1")
    mail = next(each for each in first["deliveries"] if each["target"] == "smtp")
    kinds = [step["step"] for step in mail["steps"]]
    assert kinds[:3] == ["attempt", "prepare", "delivered"]
    by_message_id = relais("trace", mail["message_id"], state=up.state)
    assert by_message_id.stdout.decode().count("message ") >= 2, "found at both operators"
    assert relais("trace", "NO-SUCH", state=up.state).returncode == 1
