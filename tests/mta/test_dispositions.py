"""Reading receipts that leave: the legal dialect, none about a receipt, none that asks for one."""

from __future__ import annotations

import pytest

from mta.dispositions import DispositionStage, is_receipt, without_asking
from mta.message import Message, Origin, Phase
from mta.notifications import DispositionNotification, parse_notification
from smime.mime import parse_entity
from trust.refusals import Refused

from .test_notifications import MDN, UNKNOWN_PATIENT, report

MODE = "automatic-action/MDN-sent-automatically"
LEGAL = f"Disposition: {MODE}; processed/error\r\nError: {UNKNOWN_PATIENT}\r\n"
OLD = MDN + f"Disposition: {MODE};\n processed/Error: {UNKNOWN_PATIENT}\n"


def message(content: bytes, **more: object) -> Message:
    values: dict[str, object] = {"origin": Origin.SUBMISSION, "sender": ""} | more
    return Message(
        message_id="<m@x>", spool_id="s", delivery_id="d", recipient="labo@op1.example", content=content,
        content_type="message/rfc822", accepted_at=0.0, **values,  # type: ignore[arg-type]
    )  # fmt: skip


async def written(content: bytes) -> bytes:
    found = await DispositionStage().apply(message(content), Phase.ENRICH)
    assert isinstance(found, Message)
    return found.content


async def test_the_older_dialect_becomes_the_legal_one() -> None:
    old = report("disposition-notification", OLD)
    new = await written(old)
    assert LEGAL.encode() in new
    assert b"processed/Error:" not in new
    assert parse_notification(new) == parse_notification(old)
    assert await written(new) == new


@pytest.mark.parametrize(
    "fields",
    [
        "Disposition: manual-action/MDN-sent-manually; displayed\n",
        f"Disposition: {MODE}; processed/error\nError: {UNKNOWN_PATIENT}\n",
        f"Disposition: {MODE}; processed\n",
    ],
)
async def test_the_legal_one_is_not_touched(fields: str) -> None:
    content = report("disposition-notification", MDN + fields)
    assert await written(content) == content


async def test_an_error_that_is_said_twice_is_said_once() -> None:
    new = await written(report("disposition-notification", OLD + "Error: 902^x\n"))
    assert new.count(b"Error:") == 1
    assert b"; processed/error\r\n" in new


async def test_a_receipt_asks_for_none() -> None:
    content = report("disposition-notification", MDN + "Disposition: a/b; displayed\n")
    new = await written(b"Disposition-Notification-To: me@op1.example\r\n" + content)
    assert new == content


@pytest.mark.parametrize(
    "about",
    [
        "Content-Type: multipart/report; report-type=disposition-notification; boundary=x\nMessage-ID: <1@x>\n",
        "Content-Type: multipart/report; report-type=delivery-status; boundary=x\n",
        "Auto-Submitted: auto-replied (vacation)\n",
    ],
)
async def test_no_receipt_about_a_receipt(about: str) -> None:
    content = report("disposition-notification", MDN + "Disposition: a/b; displayed\n", returned=about)
    found = await DispositionStage().apply(message(content), Phase.ENRICH)
    assert isinstance(found, Refused)
    assert found.refusal.code == "mta.notice-about-notice"


@pytest.mark.parametrize(
    ("more", "phase"),
    [({"origin": Origin.OPERATOR}, Phase.ENRICH), ({"origin": Origin.MLLP}, Phase.ENRICH), ({}, Phase.OPEN)],
)
async def test_nothing_else_is_looked_at(more: dict[str, object], phase: Phase) -> None:
    one = message(report("disposition-notification", OLD), **more)
    assert await DispositionStage().apply(one, phase) is one


@pytest.mark.parametrize("content", [b"From: a@b.example\r\n\r\nx\r\n", b"no header", b""])
async def test_what_is_no_receipt_passes(content: bytes) -> None:
    assert await written(content) == content


def test_what_counts_as_a_receipt() -> None:
    for header, expected in (
        (b"Auto-Submitted: no\r\n\r\n", False),
        (b"Auto-Submitted: auto-generated\r\n\r\n", True),
        (b"Content-Type: multipart/report; boundary=b\r\n\r\n", True),
        (b"Subject: x\r\n\r\n", False),
    ):
        assert is_receipt(parse_entity(header)) is expected


def test_asking_is_left_out_whole() -> None:
    content = b"A: 1\r\nDisposition-Notification-To:\r\n a@b\r\nB: 2\r\ndisposition-notification-to: c\r\n\r\nx\r\n"
    assert without_asking(content) == b"A: 1\r\nB: 2\r\n\r\nx\r\n"


def test_both_dialects_are_read() -> None:
    for content in (
        report("disposition-notification", OLD),
        report("disposition-notification", MDN + LEGAL.replace("\r", "")),
    ):
        found = parse_notification(content)
        assert isinstance(found, DispositionNotification)
        assert (found.failed, found.error_code, found.automatic) == (True, "902", True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # no mode at all, which the older text shows too
        ("Disposition: processed/Error: 902^x", "Disposition: manual-action/MDN-sent-manually; processed/error"),
        ("Disposition: displayed", "Disposition: manual-action/MDN-sent-manually; displayed"),
        # a second modifier before the error
        (f"Disposition: {MODE}; processed/warning,Error: 902^x", f"Disposition: {MODE}; processed/error"),
        (f"Disposition: {MODE}; processed/Failure: 902^x", f"Disposition: {MODE}; processed/error"),
        # who acted and who sent are two things, both kept
        (
            "Disposition: Manual-Action/MDN-sent-automatically; processed/error: 902^x",
            "Disposition: manual-action/MDN-sent-automatically; processed/error",
        ),
    ],
)
@pytest.mark.parametrize("sender", ["", "medecin@op1.example"])
async def test_every_illegal_form_and_whoever_its_client_says_sent_it(old: str, new: str, sender: str) -> None:
    content = report("disposition-notification", MDN + old + "\n")
    found = await DispositionStage().apply(message(content, sender=sender), Phase.ENRICH)
    assert isinstance(found, Message)
    assert new.encode() + b"\r\n" in found.content
    assert found.content.count(b"902^x") == old.count("902^x")
    before, after = parse_notification(content), parse_notification(found.content)
    assert isinstance(before, DispositionNotification)
    assert isinstance(after, DispositionNotification)
    assert (after.failed, after.error_code) == (before.failed, before.error_code)


async def test_no_receipt_about_a_receipt_whoever_its_client_says_sent_it() -> None:
    about = "Content-Type: multipart/report; report-type=disposition-notification; boundary=x\n"
    content = report("disposition-notification", MDN + "Disposition: a/b; displayed\n", returned=about)
    found = await DispositionStage().apply(message(content, sender="a@op1.example"), Phase.ENRICH)
    assert isinstance(found, Refused)


async def test_what_a_laboratory_sends_by_itself_and_asks_about_may_be_answered() -> None:
    about = "Auto-Submitted: auto-generated\nDisposition-Notification-To: labo@op2.example\nMessage-ID: <1@x>\n"
    content = report("disposition-notification", MDN + f"Disposition: {MODE}; processed\n", returned=about)
    assert await written(content) == content


async def test_a_mail_that_only_quotes_a_receipt_keeps_its_wish() -> None:
    content = b"Disposition-Notification-To: me@op1.example\r\nContent-Type: multipart/mixed; boundary=m\r\n\r\n"
    content += b"--m\r\nContent-Type: message/rfc822\r\n\r\n" + report(
        "disposition-notification", MDN + "Disposition: a/b; displayed\n"
    )
    content += b"\r\n--m--\r\n"
    found = await DispositionStage().apply(message(content, sender="me@op1.example"), Phase.ENRICH)
    assert isinstance(found, Message)
    assert found.content == content
