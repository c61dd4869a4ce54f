"""SMTP and LMTP replies, read without any I/O (RFC 5321 §4.2, RFC 2033, RFC 2034).

What a partner says is foreign text: lengths are bounded, and what is kept of it is printable ASCII without addresses,
for a patient's address is an identity and replies end up in traces and receipts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MAX_LINE = 2048
"""Octets of one reply line; RFC 5321 §4.5.3.1.5 allows 512, servers send more."""
MAX_LINES = 128

_LINE = re.compile(rb"([2-5][0-9]{2})(?:([ -])(.*))?", re.DOTALL)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")
_WORD = r"[^\s<>()\[\]:;,\"]"
_ADDRESS = re.compile(rf"(?<!{_WORD}){_WORD}+@{_WORD}+")
"""From the beginning of a word only: tried at each of its characters, a long word without @ takes quadratic time."""
_NUMBER = re.compile(r"[0-9][0-9A-Z ]{11,}[0-9A-Z]")


class ReplyError(Exception):
    """The peer does not speak SMTP: the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete reply."""

    code: int
    lines: tuple[str, ...]
    """Text of each line after the code, undecodable octets as `?`."""

    @property
    def permanent(self) -> bool:
        return self.code >= 500

    @property
    def words(self) -> str:
        """Code and text on one line, safe to keep: printable ASCII, at most 300 characters, addresses removed."""
        text = scrub(" ".join(self.lines))
        return f"{self.code} {text}".strip()[:300]

    @property
    def enhanced(self) -> str:
        """Enhanced status code of the first line (RFC 3463), empty when none."""
        match = _ENHANCED.match(self.lines[0]) if self.lines else None
        return match[1] if match else ""


def scrub(text: str) -> str:
    """Printable ASCII; addresses and long numbers (a health identity has 13 or 15 digits) become marks."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return _NUMBER.sub("<number>", _ADDRESS.sub("<address>", plain))


class ReplyReader:
    """Cuts a stream of octets into replies. A pure state machine: feed it, take what it returns."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._code = 0
        self._lines: list[str] = []

    @property
    def empty(self) -> bool:
        """Nothing begun: no octet of a further reply has come."""
        return not self._buffer and not self._lines

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are complete now. Raises `ReplyError` on anything that is not a reply."""
        return list(self.read(data))

    def read(self, data: bytes) -> Iterator[Reply]:
        """The same one by one: what came whole is told before `ReplyError` is raised for what follows it. Nothing more
        is read after that."""
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            reply = self._line(line)
            if reply is not None:
                yield reply
        if len(self._buffer) > MAX_LINE:
            raise ReplyError("reply line too long")

    def _line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line) if len(line) <= MAX_LINE else None
        if match is None:
            raise ReplyError("not an SMTP reply")
        code = int(match[1])
        if self._lines and code != self._code:
            raise ReplyError("reply code changed within a reply")
        self._code = code
        self._lines.append((match[3] or b"").decode("ascii", "replace").replace("\ufffd", "?"))
        if len(self._lines) > MAX_LINES:
            raise ReplyError("reply too long")
        if match[2] == b"-":
            return None
        reply = Reply(code, tuple(self._lines))
        self._lines = []
        return reply


def capabilities(ehlo: Reply) -> Mapping[str, str]:
    """EHLO keywords in upper case and their parameters (RFC 5321 §4.1.1.1); the first line is the greeting."""
    found: dict[str, str] = {}
    for line in ehlo.lines[1:]:
        keyword, _, parameters = line.strip().partition(" ")
        found[keyword.upper()] = parameters.strip()
    return found
