"""Notifications of delivery from before RFC 3464: what qmail and its kin, and Exim when told to, still write as prose.

Both have a fixed shape (QSBMF, and Exim's X-Failed-Recipients with its own sentences), and only that is read: an
address that stands where the program puts one, the words under it, and the Message-ID of what came back below. Anything
else is a mail like any other. Bounded like the rest of `mta.notifications`, and believed from nobody else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from smime.mime import Entity, MimeError

MAX_OCTETS = 64 * 1024
"""Of the text that are read."""
MAX_RECIPIENTS = 100
MAX_WORDS = 500

_QMAIL = re.compile(r"Hi\. This is (?:the|an?) ")
"""QSBMF: the first words of the first paragraph."""
_QMAIL_BREAK = re.compile(r"---.*")
_QMAIL_RECIPIENT = re.compile(r"<([!-;=?-~]{1,254}@[!-;=?A-~]{1,254})>:")
_EXIM = re.compile(r"(?:A message that you(?:r e-mail system)? sent|This message was created automatically by mail)")
_EXIM_DELAY = re.compile(r"has not been delivered to one or more of its\s+recipients after more than")
_EXIM_BREAK = re.compile(r"------ This is a copy of")
_EXIM_RECIPIENT = re.compile(r"  ([!-9;=?-~]{1,254}@[!-9;=?A-~]{1,254}):?")
_MESSAGE_ID = re.compile(r"Message-ID:[ \t]*(?:\n[ \t]+)?(<[!-;=?-~]{1,250}>)", re.IGNORECASE)
_STATUS = re.compile(r"(?<![0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![0-9.])")
_REPLY = re.compile(r"(?<![0-9.])([45][0-9]{2})(?=[ -][0-9A-Za-z#])")


@dataclass(frozen=True, slots=True)
class Bounce:
    """Recipients with the action, the enhanced status (empty: not said) and the words; and the Message-ID that came
    back (empty: it did not)."""

    recipients: tuple[tuple[str, str, str, str], ...]
    message_id: str


def read_bounce(mail: Entity) -> Bounce | None:
    """None when it is no bounce of those shapes. Raises MimeError."""
    text = _text(mail)
    paragraphs = [each.strip("\n") for each in re.split(r"\n[ \t]*\n", text.lstrip("\n"))]
    if not paragraphs:
        return None
    if _QMAIL.match(paragraphs[0]):
        found, rest = _qmail(paragraphs[1:])
    elif mail.values("x-failed-recipients") or _EXIM_DELAY.search(text) is not None:
        found, rest = _exim(text)
    else:
        return None
    returned = _MESSAGE_ID.search(rest)
    return Bounce(tuple(found[:MAX_RECIPIENTS]), returned[1] if returned else "") if found else None


def _text(mail: Entity) -> str:
    if mail.content_type().media_type != "text/plain":
        raise MimeError("no plain text")
    return bytes(mail.decoded()[:MAX_OCTETS]).decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _qmail(paragraphs: list[str]) -> tuple[list[tuple[str, str, str, str]], str]:
    found: list[tuple[str, str, str, str]] = []
    for number, paragraph in enumerate(paragraphs):
        if _QMAIL_BREAK.match(paragraph):
            return found, "\n".join(paragraphs[number:])
        first, _, words = paragraph.partition("\n")
        address = _QMAIL_RECIPIENT.fullmatch(first.strip())
        if address is not None:
            found.append(_recipient(address[1], words, delayed=False))
    return found, ""


def _exim(text: str) -> tuple[list[tuple[str, str, str, str]], str]:
    broken = _EXIM_BREAK.search(text)
    said, rest = (text[: broken.start()], text[broken.start() :]) if broken else (text, text)
    delayed = _EXIM_DELAY.search(said) is not None
    if not delayed and _EXIM.search(said) is None:
        return [], ""
    found: list[tuple[str, list[str]]] = []
    for line in said.split("\n"):
        address = _EXIM_RECIPIENT.fullmatch(line.rstrip())
        if address is not None:
            found.append((address[1], []))
        elif found and line.startswith("    "):
            found[-1][1].append(line.strip())
    return [_recipient(address, "\n".join(words), delayed=delayed) for address, words in found], rest


def _recipient(address: str, words: str, *, delayed: bool) -> tuple[str, str, str, str]:
    words = " ".join(words.split())[:MAX_WORDS]
    shown = "".join(c if c.isprintable() else "?" for c in words)
    status = _STATUS.search(shown)
    reply = _REPLY.search(shown)
    action = "delayed" if delayed else "failed"
    kind = "smtp" if reply is not None else "x-local"
    code = status[1] if status else ("4.0.0" if delayed else "5.0.0")
    return address, action, code, f"{kind}; {shown}" if shown else ""
