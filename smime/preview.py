"""A message shown to staff (quarantine, portal): plain text and nothing else.

HTML can show one thing under one condition and another under another, load what tells the sender that it was read, and
run; none of it is shown. What is left is text without the characters that change how other text looks.
"""

from __future__ import annotations

import unicodedata

from smime.layers import MAX_DEPTH, parts_of
from smime.mime import Budget, Entity, MimeError, parse_entity
from smime.opening import Opened
from smime.verdict import DecryptionResult

MAX_CHARACTERS = 20_000
MAX_LINES = 2000
MAX_ENCODED_OCTETS = 1 << 18
"""Of the body of the part shown; the rest is not even decoded."""

_CHARSETS = {"us-ascii": "utf-8", "utf-8": "utf-8", "iso-8859-1": "latin-1"} | {
    name: name for name in ("iso-8859-15", "windows-1252")
}
_CUT = "\n[…]"


def plain_preview(opened: Opened) -> str:
    """The first text/plain part of what was opened, bounded, without control, direction and invisible characters.

    Empty when there is none, when it is an attachment or in a charset not read here, and when decryption failed. The
    text is as trustworthy as `opened.verdict` says; whoever puts it into HTML must escape it.
    """
    if opened.verdict.decryption is DecryptionResult.FAILED:
        return ""
    try:
        part = _first_text(opened.content)
        return "" if part is None else _sanitised(_text(part))
    except MimeError:
        return ""


def _first_text(content: memoryview) -> Entity | None:
    """Iterative, and through the first 1,000 parts at most."""
    budget = Budget()
    source = content.obj if isinstance(content.obj, bytes | bytearray) and len(content.obj) == len(content) else None
    waiting = [(parse_entity(bytes(content) if source is None else source), 0)]
    while waiting:
        entity, depth = waiting.pop()
        content_type = entity.content_type()
        kind = content_type.media_type
        if kind.startswith("multipart/") and depth < MAX_DEPTH:
            outer, ranges = parts_of(entity, content_type, budget)
            if kind == "multipart/signed":
                ranges = ranges[:1]
            waiting += [(parse_entity(outer.source, *part), depth + 1) for part in reversed(ranges)]
        elif kind == "text/plain" and not _is_attached(entity):
            return entity
    return None


def _is_attached(entity: Entity) -> bool:
    return any(value.lower().lstrip().startswith("attachment") for value in entity.values("content-disposition"))


def _text(part: Entity) -> str:
    charset = _CHARSETS.get(part.content_type().parameters.get("charset", "us-ascii").lower())
    if charset is None:
        return ""
    stop = min(part.stop, part.body_start + MAX_ENCODED_OCTETS)
    if stop < part.stop and part.transfer_encoding() == "base64":
        # whole groups only: padding missing at the cut would be an error
        body = b"".join(bytes(part.source[part.body_start : stop]).split())
        head = b"".join(field.raw for field in part.fields) + b"\r\n"
        part = parse_entity(head + body[: len(body) // 4 * 4])
    else:
        part = Entity(part.fields, part.source, part.start, part.body_start, stop)
    return bytes(part.decoded()).decode(charset, "replace")


def _sanitised(text: str) -> str:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n", MAX_LINES)
    whole = "\n".join(lines[:MAX_LINES])
    cut = len(lines) > MAX_LINES or len(whole) > MAX_CHARACTERS
    # Cc controls, Cf direction marks and zero widths, Co and Cs nothing to show, Zl and Zp line ends of another kind
    shown = "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in _UNSHOWN
        else "\N{REPLACEMENT CHARACTER}"
        for character in whole[:MAX_CHARACTERS]
    )
    return shown.rstrip() + _CUT if cut else shown


_UNSHOWN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
