"""Flags and folders for arriving mail, as Sieve scripts for Dovecot or any other server of RFC 5228.

LMTP cannot flag what it hands over; Sieve can (RFC 5232). The scripts go by two header fields that only this gateway
writes: the open stage takes every field named `X-Relais-...` out of what comes from outside, also out of what was
encrypted. `FLAGS` runs before a mailbox's own script and only adds flags, which stay with the mail wherever that
script puts it; `FILING` runs after, and only for what that script left in the INBOX. Keywords and folders are a closed
list: no sender can name one.
"""

from __future__ import annotations

from enum import Enum

MARKS_FIELD = "X-Relais-Marks"
FOLDER_FIELD = "X-Relais-Folder"


class Mark(Enum):
    """What is worth an IMAP keyword. The value stands in the header."""

    CRITICAL = "critical"
    ABNORMAL = "abnormal"
    LABORATORY = "laboratory"
    IMAGING = "imaging"
    LETTER = "letter"
    PRESCRIPTION = "prescription"
    VERIFIED = "verified"
    DOUBTFUL = "doubtful"
    """Signed, and the signature is not verified."""
    DANGER = "danger"
    """Something in it cannot be opened safely."""


KEYWORDS = {
    Mark.CRITICAL: "$Critique",
    Mark.ABNORMAL: "$Anormal",
    Mark.LABORATORY: "$Biologie",
    Mark.IMAGING: "$Imagerie",
    Mark.LETTER: "$Courrier",
    Mark.PRESCRIPTION: "$Ordonnance",
    Mark.VERIFIED: "$SignatureVerifiee",
    Mark.DOUBTFUL: "$SignatureDouteuse",
    Mark.DANGER: "$PieceDangereuse",
}
"""IMAP keywords, as mail programs show them."""


class Folder(Enum):
    """Where mail is filed by type; ASCII, so that every client spells it alike."""

    LABORATORY = "Biologie"
    IMAGING = "Imagerie"
    LETTER = "Courriers"
    PRESCRIPTION = "Ordonnances"


def _flags() -> str:
    lines = ['require ["imap4flags"];']
    for mark, keyword in KEYWORDS.items():
        flags = f'["\\\\Flagged", "{keyword}"]' if mark is Mark.CRITICAL else f'"{keyword}"'
        lines.append(f'if header :contains "{MARKS_FIELD}" "{mark.value}" {{ addflag {flags}; }}')
    return "\n".join(lines) + "\n"


def _filing() -> str:
    lines = ['require ["fileinto", "mailbox", "imap4flags"];']
    for number, folder in enumerate(Folder):
        word = "elsif" if number else "if"
        lines.append(f'{word} header :is "{FOLDER_FIELD}" "{folder.value}" {{ fileinto :create "{folder.value}"; }}')
    return "\n".join(lines) + "\n"


FLAGS = _flags()
"""A `sieve_before` script."""
FILING = _filing()
"""A `sieve_after` script."""
