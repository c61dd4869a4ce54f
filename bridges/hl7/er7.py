"""ER7, the `|^~\\&` encoding of HL7 v2: a lazy reader over the received bytes, and the escaping rules.

Ours because the libraries either drop the pre-adopted PRT segments (the recipients) or copy every field. Here a
message is the received bytes plus an index of its segments; a part is decoded when somebody asks for its text, so a
40 MB document in OBX-5 is never copied. HL7 v2.5 §2.5-2.8 and the tolerances official French samples need.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from bridges.report import Finding

CHARSETS = {
    "ASCII": "ascii",
    "8859/1": "latin-1",
    "8859/15": "iso8859-15",
    "UNICODE": "utf-8",
    "UNICODE UTF-8": "utf-8",
    "UTF-8": "utf-8",
}
"""MSH-18 (table 0211) to codec, for the values French partners send."""

DEFAULT_MAX_SEGMENTS = 10_000
MAX_FIELDS = 256
MAX_REPETITIONS = 1_000
MAX_BROKEN_RUNS = 10_000
"""What follows is not looked at: a message made of separators must not cost more memory than its bytes. No segment of
the standard has a hundred fields. More undecodable places than this is a wrong character set, not a slip."""
_CHUNK = 65_536
_BOM = b"\xef\xbb\xbf"
_SEGMENT_START = re.compile(rb"[A-Z][A-Z0-9]{2}")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_SMALL_TILDE = (b"\xcb\x9c", b"\x98")
"""U+02DC in UTF-8 and cp1252: a word processor's `~`, met in official MSH-2 while the data uses the real one."""


@dataclass(frozen=True, slots=True)
class Separators:
    """MSH-1 and MSH-2. Always ASCII, so that no multi-byte character can contain one."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"

    @property
    def encoding_characters(self) -> str:
        """MSH-2."""
        return self.component + self.repetition + self.escape + self.subcomponent


STANDARD_SEPARATORS = Separators()


@dataclass(frozen=True, slots=True)
class Er7Error:
    """Why bytes are not one readable message."""

    kind: str
    """`too-large`, `no-header`, `bad-separators`, `several-messages`, `too-many-segments`, `charset-unknown` or
    `charset-broken`."""
    location: str = ""
    """HL7 ERR-2 form, `MSH^1^18`."""


class Part:
    """A field, repetition, component or sub-component: a span of the message. Empty when the sender omitted it.

    Numbers count from 1 as in the standard.
    """

    __slots__ = ("_end", "_message", "_start")

    def __init__(self, message: Er7Message, start: int, end: int) -> None:
        self._message = message
        self._start = start
        self._end = end

    def __bool__(self) -> bool:
        return self._end > self._start

    def __len__(self) -> int:
        """Size in bytes."""
        return self._end - self._start

    @property
    def view(self) -> memoryview:
        """The bytes as received, without a copy."""
        return memoryview(self._message.data)[self._start : self._end]

    @property
    def raw(self) -> bytes:
        """The bytes as received, copied."""
        return self._message.data[self._start : self._end]

    @property
    def is_null(self) -> bool:
        """True for `""`, an explicit deletion, which is not the same as empty (HL7 v2.5 §2.5.3)."""
        return len(self) == 2 and self.raw == b'""'

    @property
    def text(self) -> str:
        """Decoded and unescaped, white space around it removed; empty when null."""
        if not self or self.is_null:
            return ""
        message = self._message
        return unescape(message.decode(self.raw), message.separators, message.charset).strip()

    def repetitions(self) -> list[Part]:
        """The repetitions of a field, `MAX_REPETITIONS` at most; none when it is empty."""
        return list(islice(self._split(self._message.separators.repetition), MAX_REPETITIONS)) if self else []

    def component(self, number: int) -> Part:
        """Component of the field's first repetition."""
        first = self._nth(self._message.separators.repetition, 1)
        return first._nth(self._message.separators.component, number)

    def subcomponent(self, number: int) -> Part:
        """Sub-component of a component."""
        return self._nth(self._message.separators.subcomponent, number)

    def _split(self, separator: str) -> Iterator[Part]:
        mark, start = separator.encode("ascii"), self._start
        while (stop := self._message.data.find(mark, start, self._end)) >= 0:
            yield Part(self._message, start, stop)
            start = stop + 1
        yield Part(self._message, start, self._end)

    def _nth(self, separator: str, number: int) -> Part:
        for position, part in enumerate(self._split(separator), start=1):
            if position == number:
                return part
        return Part(self._message, self._end, self._end)


class Segment:
    """One segment. `sequence` counts the segments of the same name from 1, as ERR-2.2 does."""

    __slots__ = ("_bounds", "_end", "_message", "_start", "name", "sequence")

    def __init__(self, message: Er7Message, name: str, sequence: int, start: int, end: int) -> None:
        self.name = name
        self.sequence = sequence
        self._message = message
        self._start = start
        self._end = end
        self._bounds: list[int] | None = None

    @property
    def raw(self) -> bytes:
        return self._message.data[self._start : self._end]

    def field(self, number: int) -> Part:
        """Field by its number in the standard; MSH-1 is the separator itself."""
        if self._bounds is None:
            mark, position = self._message.separators.field.encode("ascii"), self._start
            self._bounds = []
            while len(self._bounds) <= MAX_FIELDS:
                if (position := self._message.data.find(mark, position, self._end)) < 0:
                    break
                self._bounds.append(position)
                position += 1
            self._bounds.append(self._end)
        if self.name == "MSH":
            if number == 1:
                return Part(self._message, self._start + 3, self._start + 4)
            number -= 1
        if not 1 <= number < len(self._bounds):
            return Part(self._message, self._end, self._end)
        return Part(self._message, self._bounds[number - 1] + 1, self._bounds[number])

    def at(self, field: int, *deeper: int) -> str:
        """This position as HL7 ERR-2: `OBX^2^5`."""
        return "^".join(str(step) for step in (self.name, self.sequence, field, *deeper))


class Er7Message:
    """One message: the received bytes and where its segments are. Made by `parse`; read-only afterwards."""

    __slots__ = ("_segments", "charset", "data", "findings", "separators")

    def __init__(self, data: bytes, separators: Separators) -> None:
        self.data = data
        self.separators = separators
        self.charset = "ascii"
        self.findings: tuple[Finding, ...] = ()
        self._segments: list[Segment] = []

    @property
    def header(self) -> Segment:
        """MSH."""
        return self._segments[0]

    def segments(self, name: str = "") -> list[Segment]:
        """All segments, or those of one name, in order. Unknown ones are kept."""
        return [s for s in self._segments if not name or s.name == name]

    def serialise(self) -> bytes:
        """The message byte for byte as received."""
        return self.data

    def decode(self, raw: bytes) -> str:
        """Bytes to text in the declared character set; a run of bytes that is not valid in it is read as cp1252.

        `parse` has checked that one of the two always works and left a `charset-fallback` finding.
        """
        try:
            return _strict(raw, self.charset)
        except UnicodeDecodeError:
            pieces, position = [], 0
            for run in _HIGH_BYTES.finditer(raw):
                pieces.append(raw[position : run.start()].decode("ascii"))
                try:
                    pieces.append(_strict(run.group(), self.charset))
                except UnicodeDecodeError:
                    pieces.append(run.group().decode("cp1252"))
                position = run.end()
            pieces.append(raw[position:].decode("ascii"))
            return "".join(pieces)


def parse(data: bytes, *, max_bytes: int, max_segments: int = DEFAULT_MAX_SEGMENTS) -> Er7Message | Er7Error:
    """Index one message. Never raises on what a partner sent.

    Accepts CR, LF or CRLF segment ends, a byte order mark, blank lines, four or five encoding characters (v2.7 adds
    `#`), and lines broken inside a field: what does not start like a segment continues the one before
    (`broken-segment`). An undeclared character set is UTF-8 when the bytes are valid UTF-8, else cp1252; what declares
    8859 but is valid UTF-8 throughout was written in UTF-8 (`charset-is-utf-8`).
    """
    if len(data) > max_bytes:
        return Er7Error("too-large")
    start = len(_BOM) if data.startswith(_BOM) else 0
    while data[start : start + 1] in (b"\r", b"\n", b" "):
        start += 1
    if data[start : start + 3] != b"MSH" or len(data) < start + 8:
        return Er7Error("no-header")
    findings: list[Finding] = []
    separators = _separators(data, start, findings)
    if separators is None:
        return Er7Error("bad-separators", "MSH^1^2")
    message = Er7Message(data, separators)
    error = _index(message, start, max_segments, findings) or _choose_charset(message, findings)
    if error is not None:
        return error
    message.findings = tuple(findings)
    return message


def _separators(data: bytes, start: int, findings: list[Finding]) -> Separators | None:
    mark = data[start + 3 : start + 4]
    stop = data.find(mark, start + 4, start + 16)
    if stop < 0:
        return None
    encoding = data[start + 4 : stop]
    for wrong in _SMALL_TILDE:
        if wrong in encoding:
            encoding = encoding.replace(wrong, b"~")
            findings.append(Finding("separator-small-tilde", "MSH-2"))
    characters = mark + encoding
    if len(characters) not in (5, 6) or len(set(characters)) != len(characters):
        return None
    if any(not 0x20 < c < 0x7F or chr(c).isalnum() for c in characters):
        return None
    return Separators(*(chr(c) for c in characters[:5]))


def _lines(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Spans between CR and LF, blank ones left out; each byte is looked at once per terminator."""
    size, cr, lf = len(data), -1, -1
    while start < size:
        if cr < start:
            cr = data.find(b"\r", start)
            cr = size if cr < 0 else cr
        if lf < start:
            lf = data.find(b"\n", start)
            lf = size if lf < 0 else lf
        stop = min(cr, lf)
        if stop > start:
            yield start, stop
        start = stop + 1


def _index(message: Er7Message, start: int, max_segments: int, findings: list[Finding]) -> Er7Error | None:
    data, mark = message.data, message.separators.field.encode("ascii")
    counts: dict[str, int] = {}
    last: Segment | None = None
    for begin, end in _lines(data, start):
        head = data[begin : begin + 4]
        if not _SEGMENT_START.match(head) or (end - begin > 3 and head[3:] != mark):
            if data[begin:end].strip(b" \t\x00\x1a"):
                if last is not message._segments[-1]:
                    last = message._segments[-1]
                    findings.append(Finding("broken-segment", f"{last.name}-{last.sequence}"))
                last._end = end
        else:
            name = head[:3].decode("ascii")
            if name == "MSH" and counts:
                return Er7Error("several-messages", "MSH^2")
            if len(message._segments) >= max_segments:
                return Er7Error("too-many-segments", f"{name}^{counts.get(name, 0) + 1}")
            counts[name] = counts.get(name, 0) + 1
            message._segments.append(Segment(message, name, counts[name], begin, end))
    return None


def _choose_charset(message: Er7Message, findings: list[Finding]) -> Er7Error | None:
    data = message.data
    declared = message.header.field(18).raw.decode("latin-1").upper().replace(message.separators.repetition, " ")
    names = declared.split()
    codec = CHARSETS.get(" ".join(names)) or ("utf-8" if names and set(names) <= {"UNICODE", "UTF-8"} else None)
    if names and codec is None:
        return Er7Error("charset-unknown", "MSH^1^18")
    body = len(_BOM) if data.startswith(_BOM) else 0
    if data.isascii():
        message.charset = codec or "ascii"
        return None
    if codec is None:
        findings.append(Finding("charset-undeclared", "MSH-18"))
        codec = "cp1252" if _broken_runs(data, body, "utf-8") else "utf-8"
    elif codec in ("latin-1", "iso8859-15") and not _broken_runs(data, body, "utf-8"):
        # No French text in 8859 looks like UTF-8 in every accent: reading it as declared would spoil each name.
        findings.append(Finding("charset-is-utf-8", "MSH-18"))
        codec = "utf-8"
    message.charset = codec
    broken = _broken_runs(data, body, codec)
    for position, run in broken:
        try:
            run.decode("cp1252")
        except UnicodeDecodeError:
            return Er7Error("charset-broken", _segment_at(message, position).replace("-", "^"))
    if len(broken) > MAX_BROKEN_RUNS:
        return Er7Error("charset-broken", "MSH^1^18")
    for where in dict.fromkeys(_segment_at(message, position) for position, _ in broken):
        findings.append(Finding("charset-fallback", where))
    return None


def _broken_runs(data: bytes, start: int, codec: str) -> list[tuple[int, bytes]]:
    """Runs of non-ASCII bytes that are not valid in `codec`, a little over `MAX_BROKEN_RUNS` at most.

    A character never straddles the end of a run. Whole chunks are tried first: nearly all are ASCII or valid.
    """
    broken: list[tuple[int, bytes]] = []
    position, size = start, len(data)
    while position < size and len(broken) <= MAX_BROKEN_RUNS:
        end = min(position + _CHUNK, size)
        if straddling := _HIGH_BYTES.match(data, end):
            end = straddling.end()
        try:
            _strict(data[position:end], codec)
        except UnicodeDecodeError:
            for run in _HIGH_BYTES.finditer(data, position, end):
                try:
                    _strict(run.group(), codec)
                except UnicodeDecodeError:
                    if run.group() not in _SMALL_TILDE:
                        broken.append((run.start(), run.group()))
        position = end
    return broken


def _segment_at(message: Er7Message, position: int) -> str:
    for segment in message.segments():
        if position < segment._end:
            return f"{segment.name}-{segment.sequence}"
    return "MSH-1"


def _strict(raw: bytes, codec: str) -> str:
    if raw.isascii():
        return raw.decode("ascii")
    text = raw.decode(codec)
    # 0x80-0x9F are control characters in ISO 8859: a sender that writes them means cp1252 quotes, dashes and euros.
    if codec in ("latin-1", "iso8859-15") and any("\x80" <= c <= "\x9f" for c in text):
        raise UnicodeDecodeError(codec, raw, 0, len(raw), "C1 control characters")
    return text


def unescape(text: str, separators: Separators = STANDARD_SEPARATORS, charset: str = "utf-8") -> str:
    """Resolve escape sequences (HL7 v2.5 §2.7); unknown, local and multi-byte switching ones stay as they are."""
    mark = separators.escape
    if mark not in text:
        return text
    letters = {
        "F": separators.field,
        "S": separators.component,
        "T": separators.subcomponent,
        "R": separators.repetition,
        "E": mark,
        "H": "",
        "N": "",
        ".br": "\n",
        ".ce": "\n",
        ".fi": "",
        ".nf": "",
    }

    def resolve(match: re.Match[str]) -> str:
        code = match.group(1)
        if code in letters:
            return letters[code]
        if re.fullmatch(r"X([0-9A-Fa-f]{2})+", code):
            try:
                return bytes.fromhex(code[1:]).decode(charset)
            except UnicodeDecodeError:
                return match.group()
        if skip := re.fullmatch(r"\.sp\+?(\d{0,2})", code):
            return "\n" * int(skip.group(1) or 1)
        if re.fullmatch(r"\.(in|ti|sk)[+-]?\d{0,2}", code):
            return ""
        return match.group()

    quoted = re.escape(mark)
    return re.sub(f"{quoted}([^{quoted}]{{1,64}}){quoted}", resolve, text)


def escape(text: str, separators: Separators = STANDARD_SEPARATORS) -> str:
    """Text made safe inside a field; line ends become `.br`, other control characters disappear."""
    letters = {
        separators.escape: "E",
        separators.field: "F",
        separators.component: "S",
        separators.subcomponent: "T",
        separators.repetition: "R",
        "\n": ".br",
    }
    mark = separators.escape
    out = []
    for character in text.replace("\r\n", "\n").replace("\r", "\n"):
        if character in letters:
            out.append(mark + letters[character] + mark)
        elif character >= " " and character != "\x7f":
            out.append(character)
    return "".join(out)
