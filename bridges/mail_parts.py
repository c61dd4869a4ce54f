"""A submitted mail taken apart and put together again: its leaves, and the same mail without some, in other words.

What is not changed keeps its octets. Nothing inside a signature, an encryption, a notification or a forwarded mail is
ever looked into here: those are somebody's finished words.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from smime.mime import Entity, MimeError, parse_content_type, parse_entity, split_multipart
from smime.words import CHARSETS, decoded_words

MAX_DEPTH, MAX_PARTS = 20, 1000
_FINISHED = frozenset({"multipart/signed", "multipart/encrypted", "multipart/report"})
_MAX_FIELD = 4096
_PLAIN = frozenset({"7bit", "8bit", "binary"})
_CHARSET_IN_HTML = re.compile(r"(<meta\b[^>]{0,200}?charset\s*=\s*[\"']?)[A-Za-z0-9._:-]+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One part that holds no others, or is not to be looked into."""

    entity: Entity
    kind: str
    """Media type in lower case; empty when unreadable."""
    name: str
    """File name as a client shows it, without folders; empty when there is none."""
    attached: bool
    """Its author attached it: it is no text of the mail."""
    drawn: bool = False
    """A page shows it, the logo of a signature for one: nobody attached it as a file."""

    @property
    def broken(self) -> bool:
        """A multipart whose parts are not clear; `loose_leaves` has what a lenient program shows of it."""
        return self.kind.startswith("multipart/") and self.kind not in _FINISHED


def leaves(entity: Entity, depth: int = 0, *, of_page: bool = False) -> Iterator[Leaf]:
    """In order; a structure that cannot be followed is a leaf. `of_page`: it stands in a multipart/related."""
    kind = media_type(entity)
    places = _inside(entity, kind) if depth < MAX_DEPTH else None
    if places is None:
        yield _leaf(entity, kind, of_page=of_page)
        return
    yield from _within(entity, places, depth, of_page=of_page or kind == "multipart/related")


def loose_leaves(leaf: Leaf) -> Iterator[Leaf]:
    """What lies between the delimiters of a broken multipart, however many are missing."""
    entity = leaf.entity
    try:
        boundary = entity.content_type().parameters.get("boundary", "").encode("ascii")
        if not boundary or entity.transfer_encoding() not in _PLAIN:
            return
    except (MimeError, UnicodeEncodeError):
        return
    delimiters = re.finditer(rb"^--" + re.escape(boundary) + rb"[^\n]*\n?", entity.body, re.MULTILINE)
    found = [(one.start(), one.end()) for one in islice(delimiters, MAX_PARTS)]
    starts = [entity.body_start + end for _, end in found]
    stops = [entity.body_start + start for start, _ in found[1:]] + [entity.stop]
    yield from _within(entity, list(zip(starts, stops, strict=False)), 1, of_page=False)


def _within(entity: Entity, places: Sequence[tuple[int, int]], depth: int, *, of_page: bool) -> Iterator[Leaf]:
    for start, stop in places:
        try:
            inner = parse_entity(entity.source, start, stop)
        except MimeError:
            continue
        yield from leaves(inner, depth + 1, of_page=of_page)


def rebuilt(entity: Entity, change: Callable[[Leaf], bytes | None], depth: int = 0) -> bytes | None:
    """The entity with each leaf as `change` returns it: its octets (`entity.whole` for no change), None to leave it
    out. None when nothing remains of it. Multiparts in which nothing changed keep their octets."""
    kind = media_type(entity)
    places = _inside(entity, kind) if depth < MAX_DEPTH else None
    if places is None:
        return change(_leaf(entity, kind))
    parts: list[bytes] = []
    changed = False
    for start, stop in places:
        before = bytes(memoryview(entity.source)[start:stop])
        try:
            after = rebuilt(parse_entity(entity.source, start, stop), change, depth + 1)
        except MimeError:
            after = before
        changed = changed or after != before
        if after is not None:
            parts.append(after)
    if not changed:
        return bytes(entity.whole)
    if not parts:
        return None
    boundary = entity.content_type().parameters["boundary"].encode("ascii")
    header = b"".join(field.raw for field in entity.fields)
    return header + b"\r\n" + multipart_body(boundary, parts)


def parts_of(entity: Entity) -> list[bytes] | None:
    """The parts of a multipart; None for a leaf."""
    places = _inside(entity, media_type(entity))
    return None if places is None else [bytes(memoryview(entity.source)[start:stop]) for start, stop in places]


def multipart_body(boundary: bytes, parts: Sequence[bytes]) -> bytes:
    """RFC 2046 §5.1.1; no part may hold the delimiter."""
    delimiter = b"--" + boundary
    return b"".join(delimiter + b"\r\n" + part + b"\r\n" for part in parts) + delimiter + b"--\r\n"


def _inside(entity: Entity, kind: str) -> list[tuple[int, int]] | None:
    """Where the parts are; None for a leaf."""
    if not kind.startswith("multipart/") or kind in _FINISHED:
        return None
    try:
        if entity.transfer_encoding() not in _PLAIN:
            return None
        return split_multipart(entity, entity.content_type().parameters.get("boundary", ""))[:MAX_PARTS]
    except MimeError:
        return None


def media_type(entity: Entity) -> str:
    """Lower case; empty when it is unreadable."""
    if any(one.name == "content-type" and len(one.raw) > _MAX_FIELD for one in entity.fields):
        return ""
    try:
        return entity.content_type().media_type
    except MimeError:
        return ""


def _leaf(entity: Entity, kind: str, *, of_page: bool = False) -> Leaf:
    disposition = next(iter(entity.values("content-disposition")), "")
    name = ""
    for value, parameter in ((disposition, "filename"), (next(iter(entity.values("content-type")), ""), "name")):
        if not value or len(value) > _MAX_FIELD:
            continue
        try:
            name = parse_content_type(value).parameters.get(parameter, "")
        except MimeError:
            continue
        if name:
            break
    name = decoded_words(name).replace("\\", "/").rpartition("/")[2].strip()
    placed = disposition.strip().lower()
    attached = bool(name) or placed.startswith("attachment")
    drawn = of_page and (bool(entity.values("content-id")) or placed.startswith("inline"))
    return Leaf(entity, kind, name, attached, drawn)


def data_of(leaf: Leaf) -> bytes | None:
    """Its content without transfer encoding; None when that is broken."""
    try:
        return bytes(leaf.entity.decoded())
    except MimeError:
        return None


# --- Text ------------------------------------------------------------------------------------------------------------


def is_text(leaf: Leaf) -> bool:
    """Whether it is text of the mail itself."""
    return leaf.kind in ("text/plain", "text/html") and not leaf.attached


def text_of(leaf: Leaf) -> str | None:
    """What a reader sees; None when the charset is none that is read here, or the octets are not in it: what would
    have to be guessed at is left to the reader's program."""
    data = data_of(leaf)
    if data is None:
        return None
    try:
        charset = leaf.entity.content_type().parameters.get("charset", "us-ascii").strip().lower()
    except MimeError:
        return None
    if charset in ("us-ascii", "ascii"):  # careless programs declare nothing and write what Windows has
        tries: tuple[str, ...] = ("utf-8", "windows-1252")
    elif charset == "iso-8859-1":  # as browsers do: what is written is the larger set
        tries = ("windows-1252",)
    else:
        tries = (charset,) if charset in CHARSETS or charset == "utf8" else ()
    for each in tries:
        try:
            return data.decode(each)
        except UnicodeDecodeError:
            continue
    return None


def says_utf8(leaf: Leaf) -> bool:
    """Whether charset and octets agree on UTF-8 or ASCII (ECO.2.2.3)."""
    data = data_of(leaf)
    try:
        charset = leaf.entity.content_type().parameters.get("charset", "us-ascii").strip().lower()
    except MimeError:
        return True
    if data is None:
        return True
    if charset in ("us-ascii", "ascii"):
        return data.isascii()
    if charset != "utf-8":
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def in_utf8(leaf: Leaf, text: str) -> bytes:
    """The leaf with other text, in UTF-8 and quoted-printable; its other fields and parameters stay."""
    if leaf.kind == "text/html":
        text = _CHARSET_IN_HTML.sub(r"\g<1>utf-8", text)
    replaced = ("content-type", "content-transfer-encoding", "content-md5", "content-length")
    kept = b"".join(field.raw for field in leaf.entity.fields if field.name not in replaced)
    if kept and not kept.endswith(b"\n"):  # a part that is nothing but a header without its last line end
        kept += b"\r\n"
    parameters = {"charset": "utf-8"}
    try:
        given = leaf.entity.content_type().parameters
        parameters |= {name: value for name, value in given.items() if name in ("format", "delsp")}
    except MimeError:
        pass
    kind = "; ".join([leaf.kind or "text/plain", *(f"{name}={value}" for name, value in parameters.items())])
    if not kind.isascii() or not kind.isprintable():
        kind = f"{leaf.kind or 'text/plain'}; charset=utf-8"
    head = f"Content-Type: {kind}\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    return kept + head.encode("ascii") + quoted_printable(text)


def quoted_printable(text: str) -> bytes:
    """RFC 2045 §6.7 in CRLF lines, on which no line begins with a dash, a dot or `From `: none is a delimiter, or
    rewritten on the way."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace")
    encoded = b"\n" + binascii.b2a_qp(lines, quotetabs=False, istext=True)
    encoded = encoded.replace(b"\n-", b"\n=2D").replace(b"\n.", b"\n=2E").replace(b"\nFrom ", b"\n=46rom ")
    return encoded[1:].replace(b"\n", b"\r\n")
