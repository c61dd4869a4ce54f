"""Values of a sending system made safe for a reader's eyes and for file names.

HL7 and CDA values may hold line breaks, control characters, bidirectional overrides or lone surrogates. What goes into
a header, a summary, a PDF or a file name passes through here first.
"""

from __future__ import annotations

import re
import unicodedata

_LIGATURES = str.maketrans({"œ": "oe", "Œ": "OE", "æ": "ae", "Æ": "AE", "ß": "ss", "ø": "o", "Ø": "O", "’": "'"})
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Unicode categories nobody reads: controls, formats (bidi overrides), surrogates, private and unassigned."""
_TS = re.compile(r"(\d{4})(\d{2})?(\d{2})?(\d{2})?(\d{2})?")


def one_line(value: str, limit: int = 0) -> str:
    """The visible characters of `value` on one line, spaces collapsed; cut to `limit` characters when positive."""
    spaced = "".join(" " if c.isspace() else "" if unicodedata.category(c) in _UNSEEN else c for c in value)
    line = unicodedata.normalize("NFC", " ".join(spaced.split()))
    return line[: limit - 1].rstrip() + "…" if 0 < limit < len(line) else line


def paragraphs(value: str) -> str:
    """The visible text of `value`, its line breaks kept as LF, never more than one empty line in a row."""
    lines = []
    for line in value.splitlines():
        kept = "".join(c if c == " " or unicodedata.category(c) not in _UNSEEN else "" for c in line.expandtabs(4))
        lines.append(unicodedata.normalize("NFC", kept).rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def ascii_name(value: str) -> str:
    """A name in ASCII letters, digits, spaces, hyphens and apostrophes: accents removed, the rest left out."""
    folded = unicodedata.normalize("NFKD", value.translate(_LIGATURES))
    kept = "".join(c for c in folded if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^A-Za-z0-9' -]", " ", kept).split())


def file_part(value: str, limit: int = 40) -> str:
    """One part of a file name: ASCII letters, digits and hyphens only, at most `limit` characters."""
    return re.sub(r"[^A-Za-z0-9]+", "-", ascii_name(value))[:limit].strip("-")


def french_date(ts: str, *, with_time: bool = False) -> str:
    """`28/03/1979` for an HL7 TS, which need not be a calendar date; ` à 09:30` added when asked for and given."""
    match = _TS.match(ts.strip())
    if match is None:
        return one_line(ts, 30)
    year, month, day, hour, minute = match.groups()
    date = "/".join(part for part in (day, month, year) if part)
    return f"{date} à {hour}:{minute}" if with_time and minute else date
