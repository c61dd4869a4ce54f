"""What a mail that arrived carries for its reader: the documents in it, read; its own words; its files' names.

Everything here was written by a stranger. Only what the screen stage opens is opened, and read within bounds of its
own. What cannot be read is left out, for the mail itself is filed as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from html import unescape

from bridges import refusals, xdm_refusals
from bridges.cda import MAX_DOCUMENT_BYTES, read_cda
from bridges.report import Document
from bridges.screening import Holds, Leaf, leaves
from bridges.summary import RankedResults, ranked
from bridges.xdm import XdmLimits, read_xdm
from trust.refusals import Refused

TITLE = "Avis de la passerelle"
"""How a notice of ours begins (`bridges.arriving.words`)."""
_MAX_WORDS = 1_000_000
"""Octets of one text that are looked at for an imitation."""
_MAX_TEXT = 200_000
"""Octets kept of the mail's own words."""
_MAX_TEXTS = 8 * _MAX_WORDS
"""Of all texts of a mail together."""
_BEFORE = 40
"""Signs before the title that still make it a heading."""
_BLANKS, _INVISIBLE = "\t\u00a0\u202f\u2007\u2003\u2002", "\u200b\u200c\u200d\u2060\ufeff\u00ad"
_INLINE = frozenset({"a", "b", "big", "em", "font", "i", "small", "span", "strong", "sub", "sup", "u", "wbr"})
"""HTML elements that begin no line."""
_WIDE = re.compile(r"utf-7|utf-(?:16|32)(?:[bl]e)?")
"""Charsets in which ASCII is not written as such."""
_WITHDRAWN = "D"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is read of one mail at most."""

    documents: int = 20
    document_bytes: int = 10 * 1024 * 1024
    """A larger one is an image in XML."""
    total_bytes: int = 60 * 1024 * 1024
    """Of all documents and archives together."""


OURS = Bounds(500, MAX_DOCUMENT_BYTES, 400 * 1024 * 1024)
"""Of what our own people and systems send."""


@dataclass(frozen=True)
class Read:
    """One document in force, and its results by urgency."""

    document: Document

    @cached_property
    def ranks(self) -> RankedResults:
        return ranked(self.document.results)


@dataclass(frozen=True, slots=True)
class Carried:
    """One mail's content."""

    read: tuple[Read, ...] = ()
    """The documents in force: what its author withdraws by this mail is left out."""
    withdrawn: bool = False
    """A document is withdrawn by this mail."""
    left_out: bool = False
    """There are documents too large or too many to be read."""
    text: str = ""
    """The first words that are shown; empty when there are none."""
    imitated: bool = False
    """Some text of it looks like a notice of ours."""
    imitated_outside: bool = False
    """... and not only in a message that it forwards or returns."""
    names: Mapping[str, str] = field(default_factory=dict)
    """File names by position of the part."""
    forwarded: frozenset[str] = frozenset()
    """Positions of the parts that belong to a message inside."""

    @property
    def documents(self) -> tuple[Document, ...]:
        return tuple(each.document for each in self.read)

    @property
    def critical(self) -> bool:
        """The sender marked a result as critical (HH, LL, AA)."""
        return any(each.ranks.critical for each in self.read)

    @property
    def abnormal(self) -> bool:
        return any(each.ranks.abnormal for each in self.read)


def look(content: bytes, bounds: Bounds | None = None) -> Carried:
    """Read a mail (CRLF) that the screen stage has let pass. Never raises on bad input."""
    reading = _Reading(bounds or Bounds())
    names: dict[str, str] = {}
    forwarded: set[str] = set()
    text, imitated, outside, words_left = "", False, False, _MAX_TEXTS
    for leaf in leaves(content):
        if leaf.name:
            names[leaf.position] = leaf.name
        if leaf.forwarded:
            forwarded.add(leaf.position)
        if leaf.kind in ("text/plain", "text/html"):
            words = _words(leaf, min(_MAX_WORDS, words_left))
            words_left -= len(words)
            if not text and leaf.kind == "text/plain" and not leaf.name:
                text = words[:_MAX_TEXT]
            if imitates(_without_markup(words) if leaf.kind == "text/html" else words):
                imitated = True
                outside |= not leaf.forwarded
        reading.leaf(leaf)
    return Carried(
        tuple(reading.found), reading.withdrawn, reading.left_out, text, imitated, outside, names, frozenset(forwarded)
    )


def imitates(text: str) -> bool:
    """Whether words of the sender's look like a notice of ours. Words quoted with `>` do as well: only the first notice
    counts. Linear, whatever the text."""
    for blank in _BLANKS:
        text = text.replace(blank, " ")
    for nothing in _INVISIBLE:
        text = text.replace(nothing, "")
    while "  " in text:
        text = text.replace("  ", " ")
    folded, title = text.replace("\r", "\n").lower(), TITLE.lower()
    at = folded.find(title)
    while at >= 0:
        line = folded.rfind("\n", max(0, at - _BEFORE - 1), at)
        short = line >= 0 or at <= _BEFORE
        if short and not any(sign.isalnum() for sign in folded[line + 1 : at]):
            return True
        at = folded.find(title, at + len(title))
    return False


class _Reading:
    """The documents of one mail, within bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._room = bounds.total_bytes
        self._known: set[bytes] = set()
        self.found: list[Read] = []
        self.withdrawn = False
        self.left_out = False

    def leaf(self, leaf: Leaf) -> None:
        for data, gone in self._documents(leaf):
            self.withdrawn |= gone
            digest = sha256(data).digest()
            if gone or digest in self._known:
                continue
            if len(self._known) == self._bounds.documents or len(data) > self._room:  # tried, not read: both cost
                self.left_out = True
                continue
            self._known.add(digest)
            self._room -= len(data)
            document = read_cda(data, max_bytes=self._bounds.document_bytes)
            if not isinstance(document, Refused):
                self.found.append(Read(document))
            elif document.refusal is refusals.DOCUMENT_TOO_LARGE:
                self.left_out = True

    def _documents(self, leaf: Leaf) -> Iterator[tuple[bytes, bool]]:
        """The XML files in a part, and whether each is withdrawn."""
        if leaf.holds is Holds.XML:
            yield bytes(leaf.data), False
        elif leaf.holds is Holds.ARCHIVE and leaf.name.startswith("ihe_xdm"):
            if self._room <= 0:
                self.left_out = True
                return
            limits = XdmLimits()
            read = read_xdm(bytes(leaf.data), replace(limits, total_bytes=min(limits.total_bytes, self._room)))
            if isinstance(read, Refused):
                self.left_out |= read.refusal is xdm_refusals.XDM_TOO_LARGE
                return
            for one in read.documents:
                if one.name.lower().endswith(".xml"):
                    yield one.content, one.action.upper() == _WITHDRAWN
                else:
                    self._room -= len(one.content)


def _words(leaf: Leaf, limit: int) -> str:
    data = bytes(leaf.data[:limit])
    if _WIDE.fullmatch(leaf.charset):
        return data.decode(leaf.charset, "replace")
    try:
        whole = len(data) == len(leaf.data)
        return data.decode(
            "utf-8" if leaf.charset in ("utf-8", "us-ascii") else "latin-1", "strict" if whole else "ignore"
        )
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _without_markup(html: str) -> str:
    """Roughly what is shown, each block on a line of its own."""
    pieces = []
    for number, piece in enumerate(html.replace("\r", " ").replace("\n", " ").split("<")):
        tag, closed, text = piece.partition(">")
        if not number or not closed:
            pieces.append(piece)
            continue
        name = tag[:20].lstrip("/").split(" ", 1)[0].rstrip("/").lower()
        pieces.append(text if name in _INLINE else "\n" + text)
    return unescape("".join(pieces))
