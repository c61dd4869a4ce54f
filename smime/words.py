"""Header fields that say more than ASCII does: encoded words (RFC 2047) and parameters (RFC 2231).

Read, as mail clients show them, with none of what codecs raise at crooked ones. Written, for fields in raw UTF-8 or
Latin-1, as careless senders leave them in names of files and in mail they attach: no relay need carry those.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable

import pybase64

from smime.mime import Field, MimeError, parse_content_type

CHARSETS = frozenset(
    (
        "utf-8",
        "us-ascii",
        "koi8-r",
        *(f"iso-8859-{part}" for part in range(1, 17) if part != 12),
        *(f"windows-{page}" for page in range(1250, 1259)),
    )
)
"""Not whatever Python has a codec for: some raise, some take quadratic time."""

_WORD = re.compile(r"=\?([^?\s*]{1,40})(?:\*[^?\s]{0,40})?\?([bBqQ])\?([!->@-~ ]*)\?=")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
_BETWEEN = re.compile(r"(\?=)[ \t\r\n]+(?==\?)")


def decoded_words(text: str, *, guess: bool = False) -> str:
    """The text with its encoded words read, broken base64 as far as it goes. Those in a charset not read here stay as
    they are, or, to `guess`, are read as what such charsets have in common: ASCII."""
    if "=?" not in text:
        return text

    def decoded(word: re.Match[str]) -> str:
        charset = word[1].lower()
        if charset not in CHARSETS and not guess:
            return word[0]
        octets = binascii.a2b_qp(word[3], header=True) if word[2] in "qQ" else _base64(word[3])
        # UTF-7 is the one that can write all of ASCII in other ways, and may leave half of a character
        known = charset if charset in CHARSETS or charset == "utf-7" else "iso-8859-1"
        return octets.decode(known, "replace").encode("utf-8", "replace").decode("utf-8")

    return _WORD.sub(decoded, _BETWEEN.sub(r"\1", text))


def _base64(text: str) -> bytes:
    kept = _NOT_BASE64.sub("", text.partition("=")[0])
    if len(kept) % 4 == 1:
        kept = kept[:-1]
    return pybase64.b64decode(kept + "=" * (-len(kept) % 4))


# --- Writing ---------------------------------------------------------------------------------------------------------


_PARAMETRIC = ("content-type", "content-disposition")
_STRUCTURED = frozenset(
    f"{prefix}{name}" for prefix in ("", "resent-") for name in ("bcc", "cc", "from", "reply-to", "sender", "to")
) | frozenset(("disposition-notification-to", "mail-followup-to", "mail-reply-to", "return-receipt-to"))
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|<[^>]*+>|[ \t]++|[^ \t"<>(),;:]++|.')
_WORDS = re.compile(r"[ \t]++|[^ \t]++")
_ESCAPED = re.compile(r"\\(.)")
_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PIECE = 60
"""Characters of a parameter on one line."""
_WORD_OCTETS = 45
"""Octets in an encoded word, which may have 75 characters."""


def encoded_field(field: Field) -> bytes:
    """A field with raw UTF-8, or else Latin-1, as one in ASCII that reads the same. Raises MimeError where the
    standards have no way: in an address itself."""
    raw = field.raw.partition(b":")[2].replace(b"\r\n", b"").replace(b"\n", b"")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("iso-8859-1")  # keeps every octet, and is most often what was meant
    name = field.raw[: len(field.name)]
    if field.name in _PARAMETRIC:
        return name + b": " + _parameters(text) + b"\r\n"
    pattern = _TOKEN if field.name in _STRUCTURED else _WORDS
    return name + b":" + _encoded(pattern.findall(text)).encode("ascii") + b"\r\n"


def _encoded(tokens: Iterable[str]) -> str:
    """Words that are not ASCII, together with the blanks between them, as encoded words."""
    written: list[str] = []
    waiting = blank = ""
    for token in tokens:
        if token.isascii():
            if token.isspace() and waiting:
                blank = token
                continue
            written += [_words(waiting), blank, token]
            waiting = blank = ""
            continue
        if token.startswith("<") or (token[0] != '"' and "@" in token):
            raise MimeError("an address is not 7-bit")
        if token.startswith('"') and token.endswith('"'):
            token = _ESCAPED.sub(r"\1", token[1:-1])  # noqa: PLW2901
        waiting += blank + token
        blank = ""
    return "".join([*written, _words(waiting), blank])


def _words(text: str) -> str:
    words: list[str] = []
    octets = b""
    for character in text:
        one = character.encode("utf-8")
        if len(octets) + len(one) > _WORD_OCTETS:
            words.append(_word(octets))
            octets = b""
        octets += one
    return "\r\n ".join([*words, _word(octets)]) if octets else ""


def _word(octets: bytes) -> str:
    return f"=?utf-8?b?{pybase64.b64encode(octets).decode('ascii')}?="


def _parameters(text: str) -> bytes:
    parsed = parse_content_type(text)
    if not parsed.media_type.isascii() or (
        parsed.media_type.startswith("multipart/") and "boundary" not in parsed.parameters
    ):
        raise MimeError("a header field is not 7-bit")
    lines = [parsed.media_type]
    for name, value in parsed.parameters.items():
        if not name.isascii():
            raise MimeError("a header field is not 7-bit")
        if value.isascii():
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            lines.append(f'{name}="{quoted}"')
            continue
        units = [
            character if character in _SAFE else "".join(f"%{octet:02X}" for octet in character.encode("utf-8"))
            for character in value
        ]
        pieces = [""]
        for unit in units:
            if len(pieces[-1]) + len(unit) > _PIECE:
                pieces.append("")
            pieces[-1] += unit
        if len(pieces) == 1:
            lines.append(f"{name}*=utf-8''{pieces[0]}")
        else:
            first, *rest = pieces
            lines.append(f"{name}*0*=utf-8''{first}")
            lines += [f"{name}*{number}*={piece}" for number, piece in enumerate(rest, 1)]
    return ";\r\n ".join(lines).encode("ascii")
