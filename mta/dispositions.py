"""Reading receipts as we let them leave (RFC 8098): in the legal dialect, never about a receipt or asked for by one.

The software of our own people writes them. The profile's older text puts the error into the Disposition field, which
RFC 8098 forbids: such a receipt is written anew in the form every reader knows, before it is signed. What it says is
not changed.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

from mta import refusals
from mta.header import is_automatic
from mta.message import Message, Origin, Phase
from mta.notifications import DispositionNotification, parse_notification, returned_header
from mta.smtp.content import with_crlf
from smime.mime import Entity, MimeError, parse_entity, split_multipart
from trust.refusals import Refused

ASKING = "disposition-notification-to"
_LOOKED_INTO = 256 * 1024
_PLAIN = ("7bit", "8bit", "binary")
_DISPOSITION = re.compile(rb"^disposition[ \t]*:[^\r\n]*(?:\r\n[ \t][^\r\n]*)*(?:\r\n|$)", re.IGNORECASE | re.MULTILINE)
_MODE = re.compile(rb"(manual|automatic)-action\s*/\s*MDN-sent-(manually|automatically)", re.IGNORECASE)
_ERROR = re.compile(rb"^(?:error|failure)[ \t]*:", re.IGNORECASE | re.MULTILINE)


def is_receipt(header: Entity) -> bool:
    """A notification of any kind, or what a program sent by itself (RFC 3834 §5) without asking for a receipt: what a
    laboratory's software sends is automatic too, and wants to know whether it was read."""
    try:
        kind = header.content_type().media_type
    except MimeError:
        return False
    return kind == "multipart/report" or (is_automatic(header) and not header.values(ASKING))


def could_be_disposition(content: bytes) -> bool:
    """Whether it is worth looking into a mail that has a sender: a receipt should have none (RFC 8098 §2.1), but mail
    clients submit theirs like any other mail. Cheap, for most mail is none."""
    return b"message/disposition-notification" in content[:_LOOKED_INTO].lower()


def _fields(mdn: DispositionNotification, old: bytes) -> list[str]:
    """Disposition and Error, as RFC 8098 §3.2.6 and §3.2.7 want them; in the mode the old field had, if any."""
    mode = "automatic-action/MDN-sent-automatically" if mdn.automatic else "manual-action/MDN-sent-manually"
    if (said := _MODE.search(old)) is not None:
        mode = f"{said[1].decode('ascii').lower()}-action/MDN-sent-{said[2].decode('ascii').lower()}"
    fields = [f"Disposition: {mode}; {mdn.disposition}{'/error' if mdn.failed else ''}"]
    if mdn.failed and mdn.error_text:
        fields.append("Error: " + "".join(c if " " <= c <= "~" else "?" for c in mdn.error_text))
    return fields


class DispositionStage:
    """A `mta.message.Stage` for ENRICH: looks at the receipts our own people submit."""

    async def apply(self, message: Message, phase: Phase) -> Message | Refused:
        """See `mta.message.Stage`."""
        if phase is not Phase.ENRICH or message.origin not in (Origin.SUBMISSION, Origin.LMTP):
            return message
        if message.sender and not could_be_disposition(message.content):
            return message
        return await asyncio.to_thread(_legal, message)


def _legal(message: Message) -> Message | Refused:
    content = with_crlf(message.content)
    mdn = parse_notification(content)
    if not isinstance(mdn, DispositionNotification):
        return message
    about = returned_header(content)
    if about is not None and is_receipt(about):
        return Refused(refusals.NOTICE_ABOUT_NOTICE)
    return replace(message, content=_rewritten(without_asking(content), mdn))


def without_asking(content: bytes) -> bytes:
    """The same mail, asking for no receipt (RFC 8098 §2.1: a receipt must not). Raises MimeError without a header."""
    header = parse_entity(content)
    if not header.values(ASKING):
        return content
    kept = b"".join(field.raw for field in header.fields if field.name != ASKING)
    return kept + b"\r\n" + bytes(header.body)


def _rewritten(content: bytes, mdn: DispositionNotification) -> bytes:
    """With the disposition in its legal form; untouched where it has it, or is inside a signature or an encoding."""
    try:
        report = parse_entity(content)
        kind = report.content_type()
        places = split_multipart(report, kind.parameters.get("boundary", ""))
        if kind.media_type != "multipart/report":
            return content
        for start, stop in places[1:2]:
            part = parse_entity(content, start, stop)
            if part.transfer_encoding() not in _PLAIN:
                return content
            fields = bytes(part.body)
            old = _DISPOSITION.search(fields)
            if old is None or not _illegal(old[0].partition(b":")[2], mdn):
                return content
            written = _fields(mdn, old[0])
            if _ERROR.search(fields) is not None:
                del written[1:]
            legal = fields[: old.start()] + ("\r\n".join(written) + "\r\n").encode("ascii") + fields[old.end() :]
            return content[: part.body_start] + legal + content[part.stop :]
    except MimeError:
        pass
    return content


def _illegal(value: bytes, mdn: DispositionNotification) -> bool:
    """An error's words inside the field, or no mode before the type (RFC 8098 §3.2.6)."""
    return (mdn.failed and b":" in value) or b";" not in value
