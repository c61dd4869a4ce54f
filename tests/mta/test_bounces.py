"""Notifications of delivery as other mail systems write them: reports in all dialects, and prose from before them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.bounces import MAX_RECIPIENTS
from mta.notifications import DeliveryNotification, RecipientStatus, parse_notification

HEAD = (
    "From: MAILER-DAEMON@mx.op2.example\nTo: labo@op1.example\nSubject: failure notice\n"
    "Date: Fri, 20 Nov 2026 10:00:00 +0100\n\n"
)
QMAIL = (
    HEAD
    + """\
Hi. This is the qmail-send program at mx.op2.example.
I'm afraid I wasn't able to deliver your message to the following addresses.
This is a permanent error; I've given up. Sorry it didn't work out.

<dr.noir@op2.example>:
Sorry, no mailbox here by that name. (#5.1.1)

<dr.rouge@op2.example>:
192.0.2.7 does not like recipient.
Remote host said: 550-no such user
550 really
Giving up on 192.0.2.7.

--- Below this line is a copy of the message.

Return-Path: <labo@op1.example>
Received: (qmail 4711 invoked by uid 89); 20 Nov 2026 09:59:59 -0000
Message-ID:
 <77@op1.example>
Subject: x

<not.a.recipient@op2.example>:
hello
"""
)
EXIM = """\
From: Mail Delivery System <Mailer-Daemon@mx.op2.example>
To: labo@op1.example
X-Failed-Recipients: dr.noir@op2.example,
  dr.rouge@op2.example
Auto-Submitted: auto-replied
Subject: Mail delivery failed: returning message to sender

This message was created automatically by mail delivery software.

A message that you sent could not be delivered to one or more of its
recipients. This is a permanent error. The following address(es) failed:

  dr.noir@op2.example
    host mail.op2.example [192.0.2.7]
    SMTP error from remote mail server after RCPT TO:<dr.noir@op2.example>:
    550 5.1.1 unknown user
  dr.rouge@op2.example
    mailbox is full: retry timeout exceeded

------ This is a copy of the message, including all the headers. ------

Return-path: <labo@op1.example>
Message-ID: <77@op1.example>
Subject: x

  other@op2.example
    no
"""
EXIM_WARNING = """\
From: Mail Delivery System <Mailer-Daemon@mx.op2.example>
Subject: Warning: message 1abcde-000001-AB delayed 24 hours

This message was created automatically by mail delivery software.
A message that you sent has not been delivered to one or more of its
recipients after more than 24 hours on the queue on mx.op2.example.

The message identifier is:     1abcde-000001-AB
The subject of the message is: x

The address to which the message has not yet been delivered is:

  dr.noir@op2.example
    Delay reason: Connection timed out

No action is required on your part.
"""


def read(written: str) -> DeliveryNotification | None:
    found = parse_notification(written.replace("\n", "\r\n").encode())
    assert found == parse_notification(written.encode()), "whatever the line ends"
    assert found is None or isinstance(found, DeliveryNotification)
    return found


def test_qmail() -> None:
    assert read(QMAIL) == DeliveryNotification(
        (
            RecipientStatus(
                "dr.noir@op2.example", "failed", "5.1.1", diagnostic="x-local; Sorry, no mailbox here by that name. (#5.1.1)"  # noqa: E501
            ),
            RecipientStatus(
                "dr.rouge@op2.example", "failed", "5.0.0",
                diagnostic="smtp; 192.0.2.7 does not like recipient. Remote host said: 550-no such user 550 really Giving "  # noqa: E501
                "up on 192.0.2.7.",
            ),
        ),
        original_message_id="<77@op1.example>",
    )  # fmt: skip


def test_exim() -> None:
    found = read(EXIM)
    assert found is not None
    assert found.original_message_id == "<77@op1.example>"
    assert [(each.final_recipient, each.action, each.status) for each in found.recipients] == [
        ("dr.noir@op2.example", "failed", "5.1.1"),
        ("dr.rouge@op2.example", "failed", "5.0.0"),
    ]
    assert found.recipients[0].diagnostic.endswith("550 5.1.1 unknown user")
    warning = read(EXIM_WARNING)
    assert warning is not None
    assert [(each.final_recipient, each.action, each.status) for each in warning.recipients] == [
        ("dr.noir@op2.example", "delayed", "4.0.0")
    ]


@pytest.mark.parametrize(
    "written",
    [
        QMAIL.replace("MAILER-DAEMON@", "somebody@"),
        QMAIL.replace("Hi. This is the", "Hello, this is"),
        EXIM.replace("X-Failed-Recipients", "X-Other"),
        EXIM.replace("A message that you sent", "Something").replace("This message was created", "Nothing"),
        QMAIL.replace("Subject:", "Content-Type: text/html\nSubject:"),
        HEAD + "Hi. This is the qmail-send program.\n\nNo address.\n",
        HEAD,
    ],
)
def test_prose_of_another_shape_is_a_mail_like_any_other(written: str) -> None:
    assert read(written) is None


def test_bounded() -> None:
    many = "Hi. This is the qmail-send program.\n\n" + "".join(f"<a{n}@b.example>:\nno\n\n" for n in range(5000))
    found = read(HEAD + many)
    assert found is not None
    assert len(found.recipients) == MAX_RECIPIENTS
    long = read(HEAD + "Hi. This is the x.\n\n<a@b.example>:\n" + "x " * 100_000)
    assert long is not None
    assert len(long.recipients[0].diagnostic) < 600


@given(
    st.sampled_from((QMAIL, EXIM)), st.lists(st.tuples(st.integers(0, 900), st.integers(0, 60), st.text(max_size=20)))
)
def test_never_raises(written: str, edits: list[tuple[int, int, str]]) -> None:
    for at, cut, put in edits:
        written = written[:at] + put + written[at + cut :]
    found = parse_notification(written.encode("utf-8", "surrogatepass"))
    if isinstance(found, DeliveryNotification):
        assert all(each.final_recipient.isprintable() and each.diagnostic.isprintable() for each in found.recipients)


EXCHANGE = """\
From: <postmaster@op2.onmicrosoft.example>
To: labo@op1.example
Subject: Undeliverable: x
In-Reply-To: <77@op1.example>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="b98e2f1e-1d3c"
Content-Language: fr-FR
X-MS-Exchange-Message-Is-Ndr:

--b98e2f1e-1d3c
Content-Type: multipart/alternative; differences=Content-Type;
\tboundary="aa11"

--aa11
Content-Type: text/plain; charset="utf-8"
Content-Transfer-Encoding: base64

Vm90cmUgbWVzc2FnZQ==

--aa11
Content-Type: text/html; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

<html>=C3=A9chec</html>

--aa11--

--b98e2f1e-1d3c
Content-Type: message/delivery-status

Reporting-MTA: dns;PR0P264MB0001.FRAP264.PROD.OUTLOOK.example
Received-From-MTA: dns;gate.op1.example
Arrival-Date: Fri, 20 Nov 2026 09:00:00 +0000

Final-Recipient: rfc822;dr.noir@op2.example
Action: failed
Status: 5.1.10
Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient dr.noir@op2.example not found by SMTP
 address lookup

Original-Recipient: rfc822;Rouge@op2.example
Final-Recipient: rfc822;rouge@inside.op2.example
Action: Delayed
Status: 4.4.7
Remote-MTA: dns;inside.op2.example
Will-Retry-Until: Sat, 21 Nov 2026 09:00:00 +0000
X-Display-Name: Docteur Rouge

--b98e2f1e-1d3c
Content-Type: message/rfc822

Received: from gate.op1.example
Message-ID: <77@op1.example>
Subject: x

body
--b98e2f1e-1d3c--
"""
POSTFIX = """\
From: MAILER-DAEMON@mx.op2.example (Mail Delivery System)
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="4ABC.1/mx.op2.example"
Content-Transfer-Encoding: 8bit

This is a MIME-encapsulated message.

--4ABC.1/mx.op2.example
Content-Description: Notification
Content-Type: text/plain; charset=utf-8

This is the mail system at host mx.op2.example.

--4ABC.1/mx.op2.example
Content-Description: Delivery report
Content-Type: message/global-delivery-status
Content-Transfer-Encoding: 8bit

Reporting-MTA: dns; mx.op2.example
X-Postfix-Queue-ID: 4ABC
X-Postfix-Sender: rfc822; labo@op1.example
Original-Envelope-Id: 0189abcdef
Arrival-Date: Fri, 20 Nov 2026 10:00:00 +0100 (CET)

Final-Recipient: rfc822; dr.noir@op2.example
Original-Recipient: rfc822;dr.noir@op2.example
Action: failed
Status: 5.7.1
Remote-MTA: dns; filtre.op2.example
Diagnostic-Code: smtp; 550 5.7.1 refus\u00e9 par la politique

--4ABC.1/mx.op2.example
Content-Description: Undelivered Message Headers
Content-Type: text/rfc822-headers
Content-Transfer-Encoding: 8bit

Return-Path: <labo@op1.example>
Message-ID: <77@op1.example>

--4ABC.1/mx.op2.example--
"""


@pytest.mark.parametrize(
    ("written", "envelope", "said"),
    [
        (
            EXCHANGE,
            "",
            [("dr.noir@op2.example", "", "failed", "5.1.10"),
             ("rouge@inside.op2.example", "Rouge@op2.example", "delayed", "4.4.7")],
        ),
        (POSTFIX, "0189abcdef", [("dr.noir@op2.example", "dr.noir@op2.example", "failed", "5.7.1")]),
    ],
)  # fmt: skip
def test_reports(written: str, envelope: str, said: list[tuple[str, str, str, str]]) -> None:
    found = read(written)
    assert found is not None
    assert (found.original_envelope_id, found.original_message_id) == (envelope, "<77@op1.example>")
    assert [(r.final_recipient, r.original_recipient, r.action, r.status) for r in found.recipients] == said
