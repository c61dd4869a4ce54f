"""MIME sliced, never re-serialised: a signature covers the bytes as they came, so nothing here rewrites what it reads.

Entities are positions in the message, header fields keep their raw bytes, multiparts are split with
`bytes.find` (RFC 2046 §5.1). What Relais itself is about to sign is the exception, see `smime.canonical`.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import pybase64

MAX_HEADER_OCTETS = 1 << 20
MAX_FIELDS = 1000
MAX_PARTS = 1000
MAX_PARAMETER_OCTETS = 1 << 16
"""Of a Content-Type or Content-Disposition value as a whole."""
MAX_WORDS = 1000
"""Tokens, separators, blanks and comments in such a value."""
MAX_SECTIONS = 100
"""Continuations of one parameter (RFC 2231 §3)."""

Buffer = bytes | bytearray | memoryview

_BLANK = " \t\r\n"
_TOKEN_END = re.compile(r'[()<>@,;:\\"/\[\]?= \t\r\n]')
_QUOTED_END = re.compile(r'["\\]')
_COMMENT_MARK = re.compile(r"[()\\]")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NAME_OCTETS = bytes(range(33, 127))


class MimeError(ValueError):
    """The bytes are not MIME as RFC 2045 and RFC 2046 have it, or exceed a limit. The text never quotes the content."""


@dataclass(frozen=True, slots=True)
class Field:
    """One header field."""

    name: str
    """Lower case."""
    raw: bytes
    """Name, colon, folded value and the line end, as received."""

    @property
    def value(self) -> str:
        """The unfolded body of the field; octets that are not UTF-8 become U+FFFD (RFC 5322 §2.2.3, RFC 6532)."""
        value = self.raw.partition(b":")[2]
        return value.replace(b"\r\n", b"").replace(b"\n", b"").decode("utf-8", "replace").strip(" \t")

    @property
    def is_obsolete(self) -> bool:
        """White space before the colon (RFC 5322 §4.5): some readers take such a line for the end of the header."""
        return self.raw[len(self.name) : len(self.name) + 1] != b":"


@dataclass(frozen=True, slots=True)
class ContentType:
    """A Content-Type field understood (RFC 2045 §5.1), parameters decoded after RFC 2231. Shared: not to be changed."""

    media_type: str
    """Lower case, `type/subtype`."""
    parameters: dict[str, str]
    """Names in lower case; the first of two with the same name wins."""
    is_plain: bool = True
    """Written so that every reader takes it apart alike: after the type nothing but `name=token` and `name="text"`.
    Many take unquoted specials for the end of a value, or give up at the first crooked parameter."""


@dataclass(frozen=True, slots=True)
class Entity:
    """Header fields and body of one MIME entity; the body stays where it is in the bytes it was read from."""

    fields: tuple[Field, ...]
    source: bytes | bytearray
    start: int
    """Where the entity begins in `source`, its header included."""
    body_start: int
    stop: int
    """Where the entity ends in `source`."""

    @property
    def whole(self) -> memoryview:
        """Header and body, byte for byte."""
        return memoryview(self.source)[self.start : self.stop]

    @property
    def body(self) -> memoryview:
        return memoryview(self.source)[self.body_start : self.stop]

    def values(self, name: str) -> list[str]:
        """Unfolded bodies of all fields of that name (lower case), in order."""
        return [field.value for field in self.fields if field.name == name]

    def content_type(self) -> ContentType:
        """The Content-Type, `text/plain` when absent (RFC 2045 §5.2).

        Raises MimeError when it is unreadable, or when there are several: two readers might then disagree on what the
        message is; the same goes for control characters.
        """
        values = self.values("content-type")
        if len(values) > 1:
            raise MimeError("several Content-Type fields")
        _refuse_controls(values)
        return parse_content_type(values[0]) if values else ContentType("text/plain", {})

    def transfer_encoding(self) -> str:
        """Lower case; `7bit` when absent (RFC 2045 §6.1). Raises MimeError when there are several."""
        values = self.values("content-transfer-encoding")
        if len(values) > 1:
            raise MimeError("several Content-Transfer-Encoding fields")
        _refuse_controls(values)
        return values[0].partition("(")[0].strip().lower() if values else "7bit"

    def decoded(self) -> Buffer:
        """The body without its transfer encoding; junk between base64 characters is skipped (RFC 2045 §6.8).

        Raises MimeError when the encoding is broken or unknown.
        """
        encoding = self.transfer_encoding()
        if encoding in ("7bit", "8bit", "binary"):
            return self.body
        if encoding == "base64":
            try:
                return pybase64.b64decode_as_bytearray(self.body)
            except ValueError:
                raise MimeError("base64") from None
        if encoding == "quoted-printable":
            return binascii.a2b_qp(self.body)
        raise MimeError("unknown transfer encoding")


def parse_entity(source: bytes | bytearray, start: int = 0, stop: int | None = None) -> Entity:
    """Read the entity at `source[start:stop]`: header and body are split at the first empty line.

    Without an empty line everything is header. Header lines may end with LF alone, as some senders encrypt them.
    Raises MimeError when the header exceeds its limits or a line is no field.
    """
    stop = len(source) if stop is None else stop
    end, body = _header_end(source, start, min(stop, start + MAX_HEADER_OCTETS + 4))
    if end - start > MAX_HEADER_OCTETS:
        raise MimeError("header too large")
    fields: list[Field] = []
    lines: list[bytes] = []
    for line in _lines(bytes(source[start:end])):
        if lines and line[:1] not in (b" ", b"\t"):
            fields.append(_field(lines))
            lines = []
            if len(fields) == MAX_FIELDS:
                raise MimeError("too many header fields")
        lines.append(line)
    if lines:
        fields.append(_field(lines))
    return Entity(tuple(fields), source, start, body, stop)


def _refuse_controls(values: list[str]) -> None:
    """Readers cut fields at different control characters, or drop such fields whole."""
    if any(_CONTROL.search(value) for value in values):
        raise MimeError("control character")


def _lines(header: bytes) -> list[bytes]:
    """Lines with their ends, split at LF only: `bytes.splitlines` would also split at a lone CR."""
    lines = [line + b"\n" for line in header.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _header_end(source: bytes | bytearray, start: int, limit: int) -> tuple[int, int]:
    """Where the header ends (its last line end included) and where the body begins."""
    if source.startswith(b"\r\n", start, limit):
        return start, start + 2
    if source.startswith(b"\n", start, limit):
        return start, start + 1
    crlf = source.find(b"\r\n\r\n", start, limit)
    lf = source.find(b"\n\n", start, limit if crlf < 0 else crlf)
    if lf >= 0:
        return lf + 1, lf + 2
    return (crlf + 2, crlf + 4) if crlf >= 0 else (limit, limit)


def _field(lines: list[bytes]) -> Field:
    name, colon, _ = lines[0].partition(b":")
    name = name.rstrip(b" \t")  # obsolete, still met (RFC 5322 §4.5)
    if not colon or not name or name.translate(None, _NAME_OCTETS):
        raise MimeError("a header line is no field")
    return Field(name.decode("ascii").lower(), lines[0] if len(lines) == 1 else b"".join(lines))


# --- Content-Type ----------------------------------------------------------------------------------------------------


def parse_content_type(value: str) -> ContentType:
    """Parse an unfolded Content-Type or Content-Disposition value; parameters that cannot be read are left out.

    So is a boundary that readers may read differently, and thus differ on what the parts are: given twice, after
    RFC 2231, in pieces, with escapes, or beside comments. Raises MimeError when not even a type is there, or when
    there is more than anybody writes.
    """
    return _known_type(value) if len(value) <= _MAX_KNOWN else _parse_type(value)


_MAX_KNOWN = 200
"""Characters of values that are remembered: most mail says the same few things."""


def _parse_type(value: str) -> ContentType:
    words = _words(value)
    first, *rest = [_trimmed(group) for group in _split(words, ";")]
    media_type = "".join(first).lower()  # blanks inside stay in: what is not plainly a type is none that we know
    if not media_type:
        raise MimeError("empty content type")
    parameters: dict[str, str] = {}
    boundaries = 0
    is_plain = _is_plain(words, rest) and "\\" not in value
    for group in rest:
        name, equals, text = (*(word for word in group if word not in _BLANKS), "", "", "")[:3]
        boundaries += name.lower().partition("*")[0] == "boundary"
        if equals != "=" or not text:
            continue
        pieces = _trimmed(group[group.index("=") + 1 :])
        plain = len(pieces) == 1 or not any(piece in _BLANKS or piece.startswith('"') for piece in pieces)
        text = "".join(piece for piece in pieces if piece not in _BLANKS)
        text = text[1:] if text.startswith('"') else text
        if name.lower() == "boundary" and not (plain and text == text.strip()):
            boundaries += 1
        parameters.setdefault(name.lower(), text)
    decoded = _decode_rfc2231(parameters)
    if boundaries > 1 or "(" in words or "\\" in value or "boundary" not in parameters:
        decoded.pop("boundary", None)
    return ContentType(media_type, decoded, is_plain)


_SPECIALS = frozenset('()<>@,;:\\"/[]?=')


def _is_token(word: str) -> bool:
    return word.isascii() and word.isprintable() and word[0] not in _SPECIALS and word != " "


def _is_plain(words: list[str], parameters: list[list[str]]) -> bool:
    """Whether the type is followed by parameters exactly as RFC 2045 §5.1 has them; one semicolon at the end is met
    often and harms nobody."""
    kind = _trimmed(words[: words.index(";")] if ";" in words else words)
    if len(kind) != 3 or kind[1] != "/" or not (_is_token(kind[0]) and _is_token(kind[2])):
        return False
    if parameters and not parameters[-1]:
        parameters = parameters[:-1]
    return all(
        len(group) == 3 and _is_token(group[0]) and group[1] == "=" and (group[2][0] == '"' or _is_token(group[2]))
        for group in parameters
    )


_known_type = lru_cache(maxsize=256)(_parse_type)

_BLANKS = frozenset(" (")
"""How `_words` marks white space and comments."""


def _words(value: str) -> list[str]:
    """Tokens, special characters, quoted strings marked by a leading quote, and a mark for each blank or comment."""
    words: list[str] = []
    position, size = 0, len(value)
    if size > MAX_PARAMETER_OCTETS:
        raise MimeError("field too long")
    while position < size:
        character = value[position]
        if character == '"':
            text, position = quoted_text(value, position)
            words.append('"' + text)
        elif character == "(":
            position = skip_comment(value, position)
            words.append("(")
        elif character in _BLANK:
            position += 1
            if words[-1:] != [" "]:
                words.append(" ")
        elif end := _TOKEN_END.search(value, position):
            words.append(value[position : max(end.start(), position + 1)])
            position = max(end.start(), position + 1)
        else:
            words.append(value[position:])
            position = size
        if len(words) > MAX_WORDS:
            raise MimeError("too many parameters")
    return words


def _split(words: list[str], separator: str) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    for word in words:
        if word == separator:
            groups.append([])
        else:
            groups[-1].append(word)
    return groups


def _trimmed(words: list[str]) -> list[str]:
    """Without white space and comments at both ends."""
    kept = [index for index, word in enumerate(words) if word not in _BLANKS]
    return words[kept[0] : kept[-1] + 1] if kept else []


def quoted_text(value: str, start: int) -> tuple[str, int]:
    """The text of a quoted string that opens at `start`, and the position behind it (RFC 5322 §3.2.4)."""
    pieces: list[str] = []
    position = start + 1
    while mark := _QUOTED_END.search(value, position):
        pieces.append(value[position : mark.start()])
        position = mark.end()
        if mark[0] == '"':
            return "".join(pieces), position
        pieces.append(value[position : position + 1])
        position += 1
    raise MimeError("unterminated quoted string")


def skip_comment(value: str, start: int) -> int:
    """The position behind a comment, which may hold others (RFC 5322 §3.2.2)."""
    depth, position = 0, start
    while mark := _COMMENT_MARK.search(value, position):
        position = mark.end() + (mark[0] == "\\")
        depth += (mark[0] == "(") - (mark[0] == ")")
        if depth == 0:
            return position
    raise MimeError("unterminated comment")


_CHARSETS = frozenset(("", "utf-8", "us-ascii", "iso-8859-1", "iso-8859-15", "windows-1252"))
"""Not whatever Python has a codec for: some raise, some take quadratic time."""


def _decode_rfc2231(parameters: dict[str, str]) -> dict[str, str]:
    """Join continuations (`name*0`, `name*1*`) and decode `charset'language'%xx` values (RFC 2231 §3, §4)."""
    decoded: dict[str, str] = {}
    for name, value in parameters.items():
        base, star, section = name.partition("*")
        if not star:
            decoded[base] = value
        if section not in ("0", "0*") and name != f"{base}*":
            continue
        charset = "utf-8"
        pieces: list[bytes] = []
        for piece in [name, *_continuations(parameters, base)] if section else [name]:
            text = parameters[piece]
            if piece is name and name.endswith("*"):
                charset, _, text = text.partition("'")
                text = text.partition("'")[2]
            pieces.append(unquote_to_bytes(text) if piece.endswith("*") else text.encode("utf-8", "replace"))
        if charset.lower() in _CHARSETS:
            decoded.setdefault(base, b"".join(pieces).decode(charset or "utf-8", "replace"))
    return decoded


def _continuations(parameters: dict[str, str], base: str) -> list[str]:
    """Names of the sections after the first, in order, until one is missing."""
    names: list[str] = []
    while True:
        if len(names) == MAX_SECTIONS:
            raise MimeError("too many continuations")
        section = f"{base}*{len(names) + 1}"
        if section not in parameters:
            section += "*"
            if section not in parameters:
                return names
        names.append(section)


# --- Multipart -------------------------------------------------------------------------------------------------------


class Budget:
    """What may still be spent on taking a message's multiparts apart: without it, parts inside parts whose boundaries
    begin alike would be looked at again and again."""

    __slots__ = ("_whole", "misses", "parts")

    def __init__(self, parts: int = MAX_PARTS, misses: int = 300_000) -> None:
        self.parts = parts
        self.misses = misses
        """Delimiters that turn out to be none: longer ones, or inside a line."""
        self._whole = self

    def few(self, parts: int) -> Budget:
        """For looking at one multipart that must not have more parts than that; of misses there are no more."""
        budget = Budget(parts)
        budget._whole = self._whole
        return budget

    def spend_part(self) -> None:
        self.parts -= 1
        if self.parts < 0:
            raise MimeError("too many parts")

    def spend_miss(self) -> None:
        self._whole.misses -= 1
        if self._whole.misses < 0:
            raise MimeError("too many delimiters of another kind")


def split_multipart(
    entity: Entity, boundary: str, budget: Budget | None = None, *, strict: bool = False
) -> list[tuple[int, int]]:
    """Where the body parts between the delimiters begin and end in `entity.source` (RFC 2046 §5.1.1).

    The CRLF before a delimiter belongs to the delimiter. Preamble and epilogue are dropped. Raises MimeError when the
    boundary is not one, when the closing delimiter is missing or when `budget` (1,000 parts) is spent; and when a
    lenient reader would split elsewhere: at a delimiter on a line with a bare CR or LF, with endless padding, or, in
    preamble and epilogue, with more text behind. If `strict`, with more text behind anywhere: RFC 2046 §5.1.2 lets
    readers take a line that only begins like a delimiter for one, and some do.
    """
    if not 0 < len(boundary) <= 70 or not boundary.isascii():
        raise MimeError("boundary")
    budget = budget or Budget()
    source, stop = entity.source, entity.stop
    delimiter = b"--" + boundary.encode("ascii")
    parts: list[tuple[int, int]] = []
    part_start = -1
    closed = False
    position = entity.body_start
    while (found := source.find(delimiter, position, stop)) >= 0:
        position = found + len(delimiter)
        if found > entity.body_start and source[found - 2 : found] != b"\r\n":
            if source[found - 1] in b"\r\n":
                raise MimeError("ambiguous delimiter")
            budget.spend_miss()
            continue
        # 80 octets are enough to see a closing mark and padding
        rest, line_end, _ = bytes(source[position : min(position + 80, stop)]).partition(b"\r\n")
        closing = rest.startswith(b"--")
        padding = rest[2 if closing else 0 :].lstrip(b" \t")
        if padding or closed or not (line_end or position + len(rest) == stop):
            if strict or part_start < 0 or closed or padding[:1] in (b"", b"\r", b"\n"):
                raise MimeError("ambiguous delimiter")
            budget.spend_miss()  # a longer boundary that begins like ours
            continue
        if part_start >= 0:
            parts.append((part_start, max(found - 2, part_start)))
            budget.spend_part()
        closed = closing
        position += len(rest)  # the CRLF that ends this line may also begin the next delimiter: an empty part
        part_start = position + 2
    if not closed:
        raise MimeError("no closing delimiter")
    return parts


# --- Messages --------------------------------------------------------------------------------------------------------


def split_message(message: bytes) -> tuple[bytes, bytes]:
    """A message (RFC 5322) as its own header fields and its MIME entity: the Content-* fields with the body.

    MIME-Version stays with the message. `join_message` is the reverse. Raises MimeError.
    """
    entity = parse_entity(message)
    outer = b"".join(field.raw for field in entity.fields if not field.name.startswith("content-"))
    inner = [field.raw for field in entity.fields if field.name.startswith("content-")]
    return outer, b"".join([*inner, b"\r\n", entity.body])


def join_message(outer: bytes, entity: bytes) -> bytes:
    """A message from header fields without Content-* (each with its CRLF) and a MIME entity; adds MIME-Version if
    missing."""
    version = b"" if b"\nmime-version:" in b"\n" + outer.lower() else b"MIME-Version: 1.0\r\n"
    return b"".join((outer, version, entity))
