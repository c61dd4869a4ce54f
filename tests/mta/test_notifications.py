"""Receipts written and read: as the RFCs show them, as others write them, and as nobody should."""

from __future__ import annotations

import base64
import email
import email.policy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mta.notifications import (
    MAX_RECIPIENTS,
    DeliveryNotification,
    DispositionNotification,
    RecipientStatus,
    compose_dsn,
    parse_notification,
    xtext_decoded,
)
from tests.smime.craft import pkcs7_mime, signed_data
from tests.smime.people import person

PATIENT = "279035121518989@patient.mssante.test"
NOTIFICATION = DeliveryNotification(
    (RecipientStatus(PATIENT, "failed", "5.1.1", "ancien@op2.example", "smtp; 550 5.1.1 unknown"),),
    original_envelope_id="0189abcdef",
    original_message_id="<1@op1.example>",
    reporting_mta="gate.op1.example",
)


def composed(notification: DeliveryNotification = NOTIFICATION, text: str = "Échec.\n") -> bytes:
    return compose_dsn(
        notification,
        author="postmaster@op1.example",
        to="labo@op1.example",
        subject="Message non remis",
        text=text,
        message_id="<dsn.1@op1.example>",
        date=1_800_000_000.9,
        arrival=1_799_999_000.0,
    )


def report(kind: str, status: str, *more: str, returned: str = "") -> bytes:
    """A report as another program writes it."""
    parts = ["Content-Type: text/plain\n\nFor the human.\n", f"Content-Type: message/{kind}\n\n{status}"]
    parts += [f"Content-Type: text/rfc822-headers\n\n{returned}"] if returned else []
    body = "".join(f"--b1\n{part}\n" for part in (*parts, *more)) + "--b1--\n"
    head = f"From: a@b.example\nMIME-Version: 1.0\nContent-Type: multipart/report; report-type={kind}; boundary=b1\n\n"
    return (head + body).replace("\n", "\r\n").encode()


def test_what_is_composed_is_read_alike_by_an_independent_reader() -> None:
    content = composed(text="Échec de remise à " + PATIENT + ".\n" + "x" * 2000 + "\n")
    assert content == composed(text="Échec de remise à " + PATIENT + ".\n" + "x" * 2000 + "\n")
    assert content.isascii()
    assert max(len(line) for line in content.split(b"\r\n")) <= 998
    assert content.count(b"\n") == content.count(b"\r\n")
    mail = email.message_from_bytes(content, policy=email.policy.default)
    assert not mail.defects
    assert (mail.get_content_type(), mail.get_param("report-type")) == ("multipart/report", "delivery-status")
    assert (mail["Auto-Submitted"], mail["In-Reply-To"]) == ("auto-replied", "<1@op1.example>")
    text, status, returned = mail.iter_parts()
    assert text.get_content().startswith("Échec de remise")
    assert returned.get_content_type() == "text/rfc822-headers"
    per_message, per_recipient = status.get_payload()
    assert per_message["Reporting-MTA"] == "dns; gate.op1.example"
    assert per_message["Original-Envelope-Id"] == "0189abcdef"
    assert per_recipient["Final-Recipient"] == f"rfc822; {PATIENT}"
    assert per_recipient["Action"] == "failed"


def test_there_and_back() -> None:
    assert parse_notification(composed()) == NOTIFICATION


def test_a_recipient_need_not_be_an_address() -> None:
    found = parse_notification(composed(DeliveryNotification((RecipientStatus("279035121518989", "failed", "5.1.3"),))))
    assert isinstance(found, DeliveryNotification)
    assert found.recipients[0].final_recipient == "279035121518989"
    assert b"unknown; 279035121518989" in composed(
        DeliveryNotification((RecipientStatus("279035121518989", "failed", "5.1.3"),))
    )


_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@given(_TEXT, _TEXT, _TEXT, _TEXT)
@example("a\r\nAction: delivered\r\n\r\nx", "e\r\n\r\n", "m\r\n--b", "d\nX: y")
def test_no_value_writes_a_field_of_its_own(recipient: str, envelope: str, message_id: str, diagnostic: str) -> None:
    status = RecipientStatus(recipient or "-", "failed", "5.0.0", recipient, diagnostic)
    content = composed(DeliveryNotification((status,), envelope, f"<{message_id}>", "gate.op1.example"))
    found = parse_notification(content)
    if found is None:
        assert not recipient.strip(" ;<>") or ";" in recipient
        return
    assert isinstance(found, DeliveryNotification)
    (only,) = found.recipients
    assert (only.action, only.status) == ("failed", "5.0.0")
    assert content.count(b"\r\nAction: ") == 1
    assert content.isascii()


@pytest.mark.parametrize(
    ("value", "decoded"),
    [("a+2Bb+3D", "a+b="), ("plain", "plain"), ("a+0D+0AAction: x", "a+0D+0AAction: x"), ("a+E9", "a+E9"), ("", "")],
)
def test_xtext(value: str, decoded: str) -> None:
    assert xtext_decoded(value) == decoded


def test_postfix_style_with_several_recipients() -> None:
    status = (
        "Reporting-MTA: dns; mx.op2.example\nX-Postfix-Queue-ID: 4ABC\nOriginal-Envelope-Id: E1\n"
        "Arrival-Date: Fri, 20 Nov 2026 10:00:00 +0100 (CET)\n\n"
        "Final-Recipient: rfc822; a@op2.example\nOriginal-Recipient: rfc822;a.b@op2.example\nAction: Delivered\n"
        "Status: 2.0.0\nDiagnostic-Code: smtp; 250 2.0.0\n    saved\n\n"
        "garbage without a colon\n\n"
        "Final-Recipient: RFC822;<b@op2.example>\nAction: failed (really)\nStatus: 5.1.1 (bad)\n\n"
        "Final-Recipient: x400; /G=B/S=C/\nAction: ???\nStatus: 9.9\n"
    )
    found = parse_notification(
        report("delivery-status", status, returned="Subject: x\nMessage-ID:\n <9@op1.example>\n")
    )
    assert found == DeliveryNotification(
        (
            RecipientStatus("a@op2.example", "delivered", "2.0.0", "a.b@op2.example", "smtp; 250 2.0.0    saved"),
            RecipientStatus("b@op2.example", "failed", "5.1.1"),
            RecipientStatus("x400;/G=B/S=C/", "", ""),
        ),
        original_envelope_id="E1",
        original_message_id="<9@op1.example>",
        reporting_mta="mx.op2.example",
    )


MDN = (
    "Reporting-UA: medecin.example; Logiciel 3\nOriginal-Recipient: rfc822;bal@op2.example\n"
    "Final-Recipient: rfc822;medecin@op2.example\nOriginal-Message-ID: <1@op1.example>\n"
)
READ = DispositionNotification(
    "medecin@op2.example", "displayed", "bal@op2.example", "<1@op1.example>", automatic=False
)
AUTOMATIC = "Disposition: automatic-action/MDN-sent-automatically; "
UNKNOWN_PATIENT = "902^Identifiant de patient inconnu^2.16.840.1"


@pytest.mark.parametrize(
    ("fields", "disposition", "automatic", "failed", "code", "text"),
    [
        ("Disposition: manual-action/MDN-sent-manually; displayed\n", "displayed", False, False, "", ""),
        (AUTOMATIC + "processed\n", "processed", True, False, "", ""),
        # RFC 8098, as the profile has it now
        (AUTOMATIC + f"processed/error\nError: {UNKNOWN_PATIENT}\n", "processed", True, True, "902", UNKNOWN_PATIENT),
        # as its older text has it, which RFC 8098 forbids
        (AUTOMATIC + f"processed/Error: {UNKNOWN_PATIENT}\n", "processed", True, True, "902", UNKNOWN_PATIENT),
        (AUTOMATIC + f"processed / Error : {UNKNOWN_PATIENT}\n", "processed", True, True, "902", UNKNOWN_PATIENT),
        (
            AUTOMATIC + "\n processed/error,warning\nError: 12345 no code\n",
            "processed",
            True,
            True,
            "",
            "12345 no code",
        ),
        ("Disposition: displayed\n", "displayed", False, False, "", ""),
        (AUTOMATIC + "Deleted\n", "deleted", True, False, "", ""),
        (AUTOMATIC + "processed\nWarning: 902^x\n", "processed", True, False, "", ""),
    ],
)
@pytest.mark.parametrize("group_apart", [False, True])
def test_dispositions_in_both_dialects(
    fields: str, disposition: str, automatic: bool, failed: bool, code: str, text: str, group_apart: bool
) -> None:
    status = f"Reporting-UA: x\n\n{MDN}{fields}" if group_apart else MDN + fields
    found = parse_notification(report("disposition-notification", status))
    assert found == DispositionNotification(
        "medecin@op2.example",
        disposition,
        "bal@op2.example",
        "<1@op1.example>",
        automatic,
        failed,
        code,
        text,
        by_program=automatic,
    )


def test_the_message_that_came_back_tells_its_id() -> None:
    status = "Final-Recipient: rfc822;medecin@op2.example\nDisposition: manual-action/MDN-sent-manually; displayed\n"
    original = "Content-Type: message/rfc822\n\nMessage-ID: <7@op1.example>\nSubject: x\n\n--b2\nbody\n"
    found = parse_notification(report("disposition-notification", status, original))
    assert isinstance(found, DispositionNotification)
    assert found.original_message_id == "<7@op1.example>"


def test_inside_signatures() -> None:
    inner = report("disposition-notification", MDN + "Disposition: manual-action/MDN-sent-manually; displayed\n")
    head, _, body = inner.partition(b"\r\n\r\n")
    entity = head[head.index(b"Content-Type:") :] + b"\r\n\r\n" + body
    for n in range(6):
        found = parse_notification(b"From: a@b.example\r\n" + entity)
        assert found == (READ if n < 4 else None)
        boundary = b"s%d" % n
        entity = (
            b"Content-Type: multipart/signed; micalg=sha-256; boundary=" + boundary + b"\r\n\r\n--" + boundary
            + b"\r\n" + entity + b"\r\n--" + boundary
            + b"\r\nContent-Type: application/pkcs7-signature\r\n\r\nx\r\n--" + boundary + b"--\r\n"
        )  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"no header",
        b"From: a@b.example\r\n\r\nhello\r\n",
        b"Content-Type: multipart/report\r\n\r\n",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b--\r\n",
        b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b--\r\n",
        report("delivery-status", ""),
        report("delivery-status", "Reporting-MTA: dns; x\n"),
        report("disposition-notification", ""),
        report("disposition-notification", "Disposition: ;;;\n"),
        report("feedback-report", "Feedback-Type: abuse\n"),
        report("delivery-status", "\x00: x\n\n\nFinal-Recipient:\n"),
    ],
)
def test_what_is_no_notification(message: bytes) -> None:
    assert parse_notification(message) is None


def test_bounded() -> None:
    many = "Reporting-MTA: dns; x\n" + "\nFinal-Recipient: rfc822;a@b.example\nAction: failed\n" * 5000
    found = parse_notification(report("delivery-status", many))
    assert isinstance(found, DeliveryNotification)
    assert len(found.recipients) == MAX_RECIPIENTS
    long = MDN + AUTOMATIC + "processed/error\nError: 902^" + "x" * 100_000 + "\n"
    said = parse_notification(report("disposition-notification", long))
    assert isinstance(said, DispositionNotification)
    assert (said.error_code, len(said.error_text)) == ("902", 500)


_SEEDS = (composed(), report("disposition-notification", MDN + AUTOMATIC + "processed/Error: 902^x\n"))


@given(st.binary(max_size=400))
def test_never_raises_on_anything(message: bytes) -> None:
    parse_notification(message)


@given(st.sampled_from(_SEEDS), st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 40), st.binary(max_size=30))))
def test_never_raises_on_broken_notifications(message: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for at, cut, put in edits:
        message = message[:at] + put + message[at + cut :]
    found = parse_notification(message)
    if isinstance(found, DeliveryNotification):
        assert all(
            status.final_recipient.isprintable() and status.diagnostic.isprintable() for status in found.recipients
        )
    if isinstance(found, DispositionNotification):
        assert found.disposition
        assert found.error_text.isprintable()


# As others write them


THUNDERBIRD = """\
Message-ID: <c0ffee@op2.example>
In-Reply-To: <1@op1.example>
From: Docteur Gris <medecin@op2.example>
Subject: =?UTF-8?Q?Accus=C3=A9_de_r=C3=A9ception?=
MIME-Version: 1.0
Content-Type: multipart/report; report-type=disposition-notification;
\tboundary="mdn0123456789abcdef"
References: <1@op1.example>

--mdn0123456789abcdef
Content-Type: text/plain; charset=UTF-8
Content-Transfer-Encoding: 8bit

Ceci est un accusé de réception.

--mdn0123456789abcdef
Content-Type: message/disposition-notification; name="MDNPart2.txt"
Content-Disposition: inline
Content-Transfer-Encoding: 7bit

Reporting-UA: poste.op2.example; Mozilla/5.0 Thunderbird/128.4
Final-Recipient: rfc822;medecin@op2.example
Original-Message-ID: <1@op1.example>
Disposition: manual-action/MDN-sent-manually; displayed

--mdn0123456789abcdef
Content-Type: text/rfc822-headers; name="MDNPart3.txt"
Content-Transfer-Encoding: 7bit
Content-Disposition: inline

Message-ID: <1@op1.example>
Subject: x

--mdn0123456789abcdef--
"""
EXCHANGE = """\
From: "Gris, Docteur" <medecin@op2.example>
To: labo@op1.example
Subject: Lu : x
In-Reply-To: <1@op1.example>
Content-Type: multipart/report;
\tboundary="_000_AB12_";
\treport-type=disposition-notification
MIME-Version: 1.0

--_000_AB12_
Content-Type: multipart/alternative; boundary="_002_AB12_"

--_002_AB12_
Content-Type: text/plain; charset="us-ascii"

Lu
--_002_AB12_
Content-Type: text/html; charset="us-ascii"

<p>Lu</p>
--_002_AB12_--

--_000_AB12_
Content-Type: message/disposition-notification

Reporting-UA: serveur; Microsoft Exchange Server
Final-recipient: RFC822; Medecin@op2.example
Disposition: automatic-action/MDN-sent-automatically;
\tdisplayed
X-MSExch-Correlation-Key: AbC/dE==
X-Display-Name: Docteur Gris

--_000_AB12_--
"""


@pytest.mark.parametrize(
    ("written", "automatic", "recipient"),
    [(THUNDERBIRD, False, "medecin@op2.example"), (EXCHANGE, True, "Medecin@op2.example")],
)
def test_what_mail_clients_return(written: str, automatic: bool, recipient: str) -> None:
    for ends in ("\n", "\r\n"):
        found = parse_notification(written.replace("\n", ends).encode())
        assert found == DispositionNotification(
            recipient, "displayed", original_message_id="<1@op1.example>", automatic=automatic, by_program=automatic
        )


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("Original-Message-ID:\n <1@op1.example>\n", "<1@op1.example>"),
        ("Original-Message-ID: (yours) <1@op1.example>\n", "<1@op1.example>"),
        ("Original-Message-ID: 1@op1.example\n", "<1@op1.example>"),
        ("Original-Message-ID: < 1@op1.example >\n", "<1@op1.example>"),
        ("Original-Message-ID: not one\n", ""),
        ("Original-Message-ID:\n", ""),
        ("", ""),
    ],
)
def test_how_the_original_is_named(field: str, expected: str) -> None:
    status = f"Final-Recipient: rfc822;medecin@op2.example\n{field}Disposition: a/b; displayed\n"
    found = parse_notification(report("disposition-notification", status))
    assert isinstance(found, DispositionNotification)
    assert found.original_message_id == expected


def test_internationalised_reports() -> None:
    """RFC 6533: other types, other address type, eight bits; one in base64, as a server between has made it."""
    status = (
        "Reporting-MTA: dns; mx.op2.example\n\nOriginal-Recipient: utf-8;médecin@op2.example\n"
        "Final-Recipient: utf-8; medecin@op2.example\nAction: failed\nStatus: 5.1.1\n"
        "Diagnostic-Code: smtp; 550 boîte inconnue\n"
    )
    expected = RecipientStatus(
        "medecin@op2.example", "failed", "5.1.1", "médecin@op2.example", "smtp; 550 boîte inconnue"
    )
    encoded = b"status\r\nContent-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(status.encode()) + b"\r\n"
    plain = report("global-delivery-status", status)
    for content in (plain, plain.replace(b"status\r\n\r\n" + status.replace("\n", "\r\n").encode(), encoded)):
        found = parse_notification(content)
        assert isinstance(found, DeliveryNotification)
        assert found.recipients == (expected,)


def test_a_server_that_breaks_lines_and_groups() -> None:
    status = (
        "Reporting-MTA: dns; mx.op2.example\nOriginal-Envelope-Id: E1\n \t\n"
        "Final-Recipient: rfc822; a@op2.example\nAction: failed\nStatus: 5.1.1\n"
        "Diagnostic-Code: smtp; 550-5.1.1 The mailbox\n550 5.1.1 does not exist: sorry\nLast-Attempt-Date: x\n"
        "\n\n\nFinal-Recipient: rfc822; b@op2.example\nAction: delivered\n"
    )
    found = parse_notification(report("delivery-status", status))
    assert isinstance(found, DeliveryNotification)
    assert found.original_envelope_id == "E1"
    assert [(each.final_recipient, each.action, each.status) for each in found.recipients] == [
        ("a@op2.example", "failed", "5.1.1"),
        ("b@op2.example", "delivered", ""),
    ]


def test_a_part_that_cannot_be_read_hides_no_other() -> None:
    content = report("disposition-notification", MDN + AUTOMATIC + "processed/error\nError: 902^x\n")
    for broken in (b"Le document n'a pas", b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n"):
        found = parse_notification(content.replace(b"Content-Type: text/plain\r\n\r\n", broken))
        assert isinstance(found, DispositionNotification)
        assert found.error_code == "902"


def test_inside_an_opaque_signature() -> None:
    inner = report("disposition-notification", MDN + "Disposition: manual-action/MDN-sent-manually; displayed\n")
    entity = inner[inner.index(b"Content-Type:") :]
    opaque = pkcs7_mime(signed_data(entity, person("a@b.example"), attached=entity), "signed-data")
    assert parse_notification(b"From: a@b.example\r\n" + opaque) == READ
    detached = pkcs7_mime(signed_data(entity, person("a@b.example")), "signed-data")
    for broken in (detached, opaque[:-400], pkcs7_mime(b"\x30\x03abc", "signed-data")):
        assert parse_notification(b"From: a@b.example\r\n" + broken) is None
