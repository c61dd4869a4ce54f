"""What a mail that arrived carries for its reader: the documents in it, read; its own words; its files' names.

Everything here was written by a stranger and has passed the screen stage. What cannot be read is left out, for the mail
itself is filed as it came.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from bridges.cda import read_cda
from bridges.report import Document
from bridges.screening import Leaf, ScreenLimits, leaves
from bridges.summary import ranked
from bridges.xdm import XdmLimits, read_xdm
from smime.mime import MimeError
from trust.refusals import Refused

MAX_DOCUMENTS = 20
"""Of one mail, that are summarised."""
MAX_DOCUMENT_BYTES = 10 * 1024 * 1024
"""Of one document that is summarised; a larger one is an image in XML."""
MAX_TEXT = 200_000
"""Octets of the mail's own words that are looked at."""
_XML_TYPES = frozenset({"text/xml", "application/xml", "application/hl7-cda+xml"})
_WITHDRAWN = "D"


@dataclass(frozen=True, slots=True)
class Carried:
    """One mail's content."""

    documents: tuple[Document, ...] = ()
    """Those in force: what its author withdraws by this mail is left out."""
    withdrawn: bool = False
    """A document is withdrawn by this mail."""
    text: str = ""
    """The first words that are shown; empty when there are none."""
    names: Mapping[str, str] = field(default_factory=dict)
    """File names by position of the part."""

    @property
    def critical(self) -> bool:
        """The sender marked a result as critical (HH, LL, AA)."""
        return any(ranked(document.results).critical for document in self.documents)

    @property
    def abnormal(self) -> bool:
        return any(ranked(document.results).abnormal for document in self.documents)


def look(content: bytes, limits: ScreenLimits | None = None) -> Carried:
    """Read a mail (CRLF). Never raises on bad input."""
    found: list[Document] = []
    known: set[bytes] = set()
    names: dict[str, str] = {}
    text, withdrawn = "", False
    for leaf in leaves(content, limits):
        if leaf.name:
            names[leaf.position] = leaf.name
        if not text and leaf.kind == "text/plain" and not leaf.name:
            text = _words(leaf)
            continue
        for data, gone in _documents(leaf):
            withdrawn |= gone
            digest = sha256(data).digest()
            if gone or digest in known or len(found) >= MAX_DOCUMENTS:
                continue
            known.add(digest)
            document = read_cda(data, max_bytes=MAX_DOCUMENT_BYTES)
            if not isinstance(document, Refused):
                found.append(document)
    return Carried(tuple(found), withdrawn, text, names)


def _documents(leaf: Leaf) -> Iterator[tuple[bytes, bool]]:
    """The XML files in a part, and whether each is withdrawn."""
    try:
        if leaf.name.startswith("ihe_xdm") and leaf.name.endswith(".zip"):
            read = read_xdm(bytes(leaf.entity.decoded()), XdmLimits())
            if not isinstance(read, Refused):
                for one in read.documents:
                    if one.name.lower().endswith(".xml"):
                        yield one.content, one.action.upper() == _WITHDRAWN
        elif leaf.kind in _XML_TYPES or leaf.name.endswith(".xml"):
            yield bytes(leaf.entity.decoded()), False
    except MimeError:
        return


def _words(leaf: Leaf) -> str:
    try:
        data = bytes(leaf.entity.decoded()[:MAX_TEXT])
        charset = leaf.entity.content_type().parameters.get("charset", "utf-8").lower()
    except MimeError:
        return ""
    try:
        return data.decode("utf-8" if charset in ("utf-8", "us-ascii") else "latin-1")
    except UnicodeDecodeError:
        return data.decode("latin-1")
