"""Receipts as they travel: delivery status notifications written and read, disposition notifications read.

A delivery status notification (DSN, RFC 3464) says what became of a message on its way; a message disposition
notification (MDN, RFC 8098), what its reader did with it. Both are a `multipart/report` (RFC 6522). What we write names
the recipient and the reason and returns nothing of the message but its Message-ID. What we read was written by anybody:
it is bounded, and bad input means that there is no notification.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from hashlib import sha256
from typing import Protocol

from mta.bounces import read_bounce
from mta.header import author_of
from mta.message import Origin
from mta.smtp.address import is_address
from mta.smtp.content import with_crlf
from smime.cms_read import Signed, read_cms
from smime.mime import MAX_HEADER_OCTETS, Entity, MimeError, parse_entity, split_multipart
from trust.der import DerError

MAX_STATUS_OCTETS = 256 * 1024
"""Of the machine-readable part; what is behind is not read."""
MAX_RECIPIENTS = 1000
MAX_VALUE = 500
"""Characters kept of one value."""

_MAX_DEPTH = 4
"""Signatures around a report."""
_DELIVERY_STATUS = frozenset(("message/delivery-status", "message/global-delivery-status"))
_DISPOSITION = frozenset(("message/disposition-notification", "message/global-disposition-notification"))
_RETURNED = frozenset(("message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers"))
_MAIL_SYSTEM = re.compile(r"(?:postmaster|mailer-daemon|microsoftexchange[0-9a-f]{32})@", re.IGNORECASE)
"""In whose name mail servers write their notifications. The first is reserved everywhere (RFC 5321 §4.5.1), and no
operator gives the others to a user."""
_SIGNATURE = re.compile(r"\bsignature=([a-z-]+)")
_SOUND = ("valid", "none")
"""A DSN need not be signed, the operator's certificate vouches for it; a signature that is wrong is a reason."""
_CMS = frozenset(("application/pkcs7-mime", "application/x-pkcs7-mime"))
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,250}>")
_SPACED_MESSAGE_ID = re.compile(r"< *([!-;=?-~]{1,250}) *>")
_BARE_MESSAGE_ID = re.compile(r"[!-;=?-~]{1,249}@[!-;=?-~]{1,249}")
_EMPTY_LINES = re.compile(rb"\r\n(?:[ \t]*\r\n)+")
_FIELD_LINE = re.compile(rb"[ \t]|[!-9;-~]+[ \t]*:")
_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")
_WORD = re.compile(r"[A-Za-z][A-Za-z-]{0,40}")
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_ERROR_CODE = re.compile(r"([0-9]{3})(?![0-9])")
_ERROR_IN_MODIFIER = re.compile(r"(?:error|failure)\s*:\s*(.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class RecipientStatus:
    """What became of a message for one recipient (RFC 3464 §2.3).

    An address of type `rfc822` or `unknown` stands without its type, any other as `type;address`.
    """

    final_recipient: str
    action: str
    """`failed`, `delayed`, `delivered`, `relayed` or `expanded`, lower case; empty when it cannot be read."""
    status: str
    """Enhanced status code (RFC 3463), empty when it cannot be read."""
    original_recipient: str = ""
    """ORCPT, decoded; empty when none was given."""
    diagnostic: str = ""
    """Diagnostic-Code with its type: `smtp; 550 5.1.1 no such mailbox`."""


@dataclass(frozen=True, slots=True)
class DeliveryNotification:
    """A DSN."""

    recipients: tuple[RecipientStatus, ...]
    """At least one."""
    original_envelope_id: str = ""
    """ENVID, decoded; empty when none was given."""
    original_message_id: str = ""
    """With angle brackets, from what was returned of the message; empty when it was not."""
    reporting_mta: str = ""
    """The name without its type."""


@dataclass(frozen=True, slots=True)
class DispositionNotification:
    """An MDN. Addresses as in `RecipientStatus`."""

    final_recipient: str
    disposition: str
    """`displayed`, `processed`, `deleted`, `dispatched` or what else was said, lower case."""
    original_recipient: str = ""
    original_message_id: str = ""
    """With angle brackets."""
    automatic: bool = False
    """Sent, or acted on, without the reader's doing (RFC 8098 §3.2.6.1)."""
    failed: bool = False
    """The disposition modifier says error or failure."""
    error_code: str = ""
    """Three digits (900-906 of the French profile), from the Error field or, as the profile's older text has it, from
    the Disposition field itself; empty when none."""
    error_text: str = ""
    """The whole of it: `902^Identifiant de patient inconnu`."""
    by_program: bool = False
    """Acted on without the reader's doing; a program that only reports by itself what its reader did is none."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a notification brings back of the message it is about."""

    content: bytes
    """The message, or the lines of its header; CRLF."""
    whole: bool = False


def xtext_decoded(value: str) -> str:
    """ENVID or ORCPT as a DSN repeats it (RFC 3461 §6.3); unchanged when decoding would give more than visible ASCII.

    A `+0D+0A` would otherwise write a field of its own into the receipt.
    """
    decoded = _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), value)
    return decoded if all(" " <= character <= "~" for character in decoded) else value


def is_message_id(value: str) -> bool:
    """`<id>` that may be repeated in a header of ours: visible ASCII, no longer than a line."""
    return _MESSAGE_ID.fullmatch(value) is not None


# Writing


def compose_dsn(
    notification: DeliveryNotification,
    *,
    author: str,
    to: str,
    subject: str,
    text: str,
    message_id: str,
    date: float,
    arrival: float,
    retry_until: float | None = None,
    returned: Returned | None = None,
) -> bytes:
    """The whole message, CRLF, the same octets for the same arguments (RFC 3464, RFC 6522).

    `author` and `to` are plain addresses, `subject` is ASCII; `date`, `arrival` (of the original) and `retry_until` are
    UNIX times. Without `returned` the original's Message-ID is all that comes back. ASCII, unless the original is not.
    """
    boundary = "=_" + sha256(message_id.encode()).hexdigest()[:40]
    original = notification.original_message_id if is_message_id(notification.original_message_id) else ""
    header = [
        f"Date: {_date(date)}",
        f"From: {author}",
        f"To: {to}",
        f"Subject: {subject}",
        f"Message-ID: {message_id}",
        *((f"In-Reply-To: {original}", f"References: {original}") if original else ()),
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n boundary="{boundary}"',
    ]
    status = [f"Reporting-MTA: dns; {_ascii(notification.reporting_mta)}"]
    if notification.original_envelope_id:
        status.insert(0, f"Original-Envelope-Id: {_ascii(notification.original_envelope_id)}")
    status.append(f"Arrival-Date: {_date(arrival)}")
    for recipient in notification.recipients:
        status += ["", *_recipient_fields(recipient)]
        if retry_until is not None:
            status.append(f"Will-Retry-Until: {_date(retry_until)}")
    parts = [
        [
            "Content-Type: text/plain; charset=utf-8",
            "Content-Transfer-Encoding: quoted-printable",
            "",
            binascii.b2a_qp(with_crlf(text.encode()), istext=True).decode("ascii"),
        ],
        ["Content-Type: message/delivery-status", "", *status, ""],
    ]
    lines = [*header, ""]
    for part in parts:
        lines += [f"--{boundary}", *part]
    written = "\r\n".join([*lines, ""]).encode("ascii")
    if returned is None and original:
        returned = Returned(f"Message-ID: {original}\r\n".encode("ascii"))
    if returned is not None:
        if not returned.content.isascii():  # a part in 8bit makes the whole so (RFC 2045 §6.4)
            written = written.replace(
                b"MIME-Version: 1.0\r\n", b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: 8bit\r\n", 1
            )
        written += f"--{boundary}\r\n".encode("ascii") + _returned_part(returned) + b"\r\n"
    return written + f"--{boundary}--\r\n".encode("ascii")


def _returned_part(returned: Returned) -> bytes:
    """Under the name every client knows where it is ASCII, under its internationalised one where its header is not
    (RFC 6533 §4), which alone may be base64."""
    content = returned.content.removesuffix(b"\r\n")
    if (content.partition(b"\r\n\r\n")[0] if returned.whole else content).isascii():
        kind = b"message/rfc822" if returned.whole else b"text/rfc822-headers"
        encoding = b"" if content.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
        return b"Content-Type: " + kind + b"\r\n" + encoding + b"\r\n" + content
    kind = b"message/global" if returned.whole else b"message/global-headers"
    coded = with_crlf(base64.encodebytes(returned.content)).removesuffix(b"\r\n")
    return b"Content-Type: " + kind + b"\r\nContent-Transfer-Encoding: base64\r\n\r\n" + coded


def _recipient_fields(recipient: RecipientStatus) -> list[str]:
    fields = [
        f"Final-Recipient: {_typed(recipient.final_recipient)}",
        f"Action: {recipient.action}",
        f"Status: {recipient.status}",
    ]
    if recipient.original_recipient:
        fields.insert(0, f"Original-Recipient: {_typed(recipient.original_recipient)}")
    if recipient.diagnostic:
        fields.append(f"Diagnostic-Code: {_ascii(recipient.diagnostic)}")
    return fields


def _typed(address: str) -> str:
    """With its type: a recipient who could not be reached need not have had an address."""
    if is_address(address):
        return f"rfc822; {address}"
    return _ascii(address) if ";" in address else f"unknown; {_ascii(address) or 'none'}"


def _date(at: float) -> str:
    return format_datetime(datetime.fromtimestamp(int(at), UTC))


def _ascii(text: str) -> str:
    return "".join(character if " " <= character <= "~" else "?" for character in text)[:MAX_VALUE]


# Reading


class Mail(Protocol):
    """What is asked of the mail that brings a receipt: a `mta.message.Message` or a `mta.delivery.KeptDelivery`."""

    @property
    def origin(self) -> Origin: ...

    @property
    def sender(self) -> str: ...

    @property
    def recipient(self) -> str: ...

    @property
    def peer(self) -> str: ...

    @property
    def facts(self) -> Mapping[str, str]: ...


def by_mail_system(mail: Mail, header: Entity, *, collected: bool = False) -> bool:
    """Whether another operator's mail server wrote this, which can know what became of a mail: a DSN from anybody else
    is not believed. Whether that operator answers for the recipient's domain remains to be asked.

    `header` is the mail's own. An operator's users may submit a forged DSN with a null reverse-path too (RFC 8098 §3),
    but in no name than their own. `collected`: an operator whose mailbox we collect has seen to that, too.
    """
    origins = (Origin.OPERATOR, Origin.COLLECTED) if collected else (Origin.OPERATOR,)
    by_operator = mail.origin in origins and not mail.sender and found_signature(mail) in _SOUND
    return by_operator and _MAIL_SYSTEM.match(author_of(header) or "") is not None


def found_signature(mail: Mail) -> str:
    """What the open stage found: `valid`, `none` or what is wrong with it; empty when it did not look."""
    found = _SIGNATURE.search(mail.facts.get("verdict", ""))
    return found[1] if found else ""


def parse_notification(message: bytes) -> DeliveryNotification | DispositionNotification | None:
    """What a receipt says, None when the message is none. Looks inside signatures; never raises.

    The signature is not judged here: the open stage has written its verdict on top of the message.
    """
    try:
        header = parse_entity(with_crlf(message))
        report = _report(header)
        return _prose(header) if report is None else _notification(report, header)
    except MimeError:
        return None


def returned_header(message: bytes) -> Entity | None:
    """Of the message a report brings back, as far as it does; never raises."""
    try:
        for kind, part in _report(parse_entity(with_crlf(message))) or ():
            if kind in _RETURNED:
                return parse_entity(bytes(part.decoded()[: MAX_HEADER_OCTETS + 4]))
    except MimeError:
        pass
    return None


def _prose(mail: Entity) -> DeliveryNotification | None:
    """Of a program older than RFC 3464; only mail systems are read, whose name stands in From. Raises MimeError."""
    if _MAIL_SYSTEM.match(author_of(mail) or "") is None:
        return None
    bounce = read_bounce(mail)
    if bounce is None:
        return None
    recipients = tuple(
        RecipientStatus(address, action, status, diagnostic=words)
        for address, action, status, words in bounce.recipients
    )
    return DeliveryNotification(recipients, original_message_id=bounce.message_id)


def _report(entity: Entity) -> list[tuple[str, Entity]] | None:
    """The parts of the `multipart/report` and their types. Raises MimeError."""
    for _ in range(_MAX_DEPTH):
        kind = entity.content_type()
        if kind.media_type in _CMS:
            entity = _signed_content(entity)
            continue
        if kind.media_type not in ("multipart/report", "multipart/signed"):
            return None
        parts = split_multipart(entity, kind.parameters.get("boundary", ""))
        if kind.media_type == "multipart/report":
            # the human's text, the machine's, and what came back: nothing behind
            return list(_readable(entity, parts[:3]))
        if not parts:
            return None
        entity = parse_entity(entity.source, *parts[0])
    return None


def _readable(entity: Entity, parts: list[tuple[int, int]]) -> Iterator[tuple[str, Entity]]:
    """The profile's own example has words without a header for its human part: they must not hide the other parts."""
    for start, stop in parts:
        with contextlib.suppress(MimeError):
            part = parse_entity(entity.source, start, stop)
            yield part.content_type().media_type, part


def _signed_content(entity: Entity) -> Entity:
    """What an opaque signature (RFC 8551 §3.5.2) is around. Raises MimeError."""
    try:
        cms = read_cms(entity.decoded())
    except DerError:
        raise MimeError("no CMS") from None
    if not isinstance(cms, Signed) or cms.content is None:
        raise MimeError("no signed content")
    return parse_entity(with_crlf(b"".join(cms.content)))


def _notification(
    parts: list[tuple[str, Entity]], header: Entity
) -> DeliveryNotification | DispositionNotification | None:
    message_id = next((_returned_message_id(part) for kind, part in parts if kind in _RETURNED), "")
    for kind, part in parts:
        if kind in _DELIVERY_STATUS:
            return _delivery(_groups(part), message_id)
        if kind in _DISPOSITION:
            # some mail clients name what they answer only as in any answer
            return _disposition(_groups(part), message_id or _message_id(header, "in-reply-to"))
    return None


def _returned_message_id(part: Entity) -> str:
    """Message-ID of the message, or of its header, that came back; empty when it cannot be read."""
    try:
        header = parse_entity(bytes(part.decoded()[: MAX_HEADER_OCTETS + 4]))
    except MimeError:
        return ""
    return _message_id(header)


def _groups(part: Entity) -> list[Entity]:
    """Groups of fields between empty lines (RFC 3464 §2.1), without lines that are no field: some servers break the
    other server's words into lines of their own."""
    groups: list[Entity] = []
    for block in _EMPTY_LINES.split(with_crlf(bytes(part.decoded()[:MAX_STATUS_OCTETS]))):
        fields = [line for line in block.split(b"\r\n") if _FIELD_LINE.match(line)]
        if not fields:
            continue
        try:
            groups.append(parse_entity(b"\r\n".join([*fields, b""])))
        except MimeError:
            continue
        if len(groups) > MAX_RECIPIENTS:
            break
    return groups


def _delivery(groups: list[Entity], message_id: str) -> DeliveryNotification | None:
    recipients = tuple(
        RecipientStatus(
            final_recipient=_address(group, "final-recipient"),
            action=_first(_WORD, _value(group, "action")).lower(),
            status=_first(_STATUS, _value(group, "status")),
            original_recipient=_address(group, "original-recipient"),
            diagnostic=_value(group, "diagnostic-code"),
        )
        for group in groups
        if _address(group, "final-recipient")
    )
    if not recipients:
        return None
    return DeliveryNotification(
        recipients,
        original_envelope_id=_value(groups[0], "original-envelope-id"),
        original_message_id=message_id,
        reporting_mta=_value(groups[0], "reporting-mta").partition(";")[2].strip(),
    )


def _disposition(groups: list[Entity], message_id: str) -> DispositionNotification | None:
    group = next((group for group in groups if _value(group, "disposition")), None)
    if group is None:
        return None
    mode, semicolon, said = _value(group, "disposition").partition(";")
    kind, _, modifier = (said if semicolon else mode).partition("/")
    disposition = _first(_WORD, kind.strip()).lower()
    if not disposition:
        return None
    modifiers = {word.partition(":")[0].strip().lower() for word in modifier.split(",")}
    inside = _ERROR_IN_MODIFIER.search(modifier)
    error = _value(group, "error") or _value(group, "failure") or (inside[1].strip() if inside else "")
    code = _ERROR_CODE.match(error)
    return DispositionNotification(
        final_recipient=_address(group, "final-recipient"),
        disposition=disposition,
        original_recipient=_address(group, "original-recipient"),
        original_message_id=_message_id(group, "original-message-id") or message_id,
        automatic=bool(semicolon) and "automatic" in mode.lower(),
        by_program=bool(semicolon) and mode.strip().lower().startswith("automatic-action"),
        failed=bool(modifiers & {"error", "failure"}) or disposition == "failed",
        error_code=code[1] if code else "",
        error_text=error,
    )


def _value(group: Entity, name: str) -> str:
    """The first field of that name, printable and bounded; empty when there is none."""
    value = next(iter(group.values(name)), "")[:MAX_VALUE].replace("\t", " ")  # fields are folded with either
    return "".join(character if character.isprintable() else "?" for character in value).strip()


def _address(group: Entity, name: str) -> str:
    value = _value(group, name)
    kind, semicolon, address = (part.strip() for part in value.partition(";"))
    if semicolon and kind.lower() not in ("rfc822", "utf-8", "unknown"):
        return f"{kind};{address}"
    address = address if semicolon else kind
    return address[1:-1] if address.startswith("<") and address.endswith(">") else address


def _message_id(group: Entity, name: str = "message-id") -> str:
    """The first identifier in that field, also with blanks inside its brackets or without any."""
    value = _value(group, name)
    found = _SPACED_MESSAGE_ID.search(value)
    if found is not None:
        return f"<{found[1]}>"
    return f"<{value}>" if _BARE_MESSAGE_ID.fullmatch(value) else ""


def _first(pattern: re.Pattern[str], value: str) -> str:
    match = pattern.match(value)
    return match[0] if match else ""
