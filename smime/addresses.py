"""Who a message says it is from, read strictly: what a signature's certificate is compared with.

Mail clients differ on crooked From fields, and attackers live in the difference (two addresses, an address as display
name, quotes that never close). What is not plainly a list of mailboxes after RFC 5322 §3.4 is unreadable, and an
unreadable sender matches no certificate.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

from smime.mime import Entity, MimeError, quoted_text, skip_comment
from smime.words import decoded_words

MAX_MAILBOXES = 100
MAX_FIELD = 1 << 16
MAX_ADDRESS = 512
"""Characters; RFC 5321 §4.5.3.1 allows 320."""

_ATEXT = frozenset(string.ascii_letters + string.digits + "!#$%&'*+-/=?^_`{|}~.")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PHRASE_SPECIALS = frozenset('<>()[]:;@\\,"')


class AddressError(ValueError):
    """The field is not a plain list of mailboxes."""


def from_addresses(entity: Entity, name: str = "from") -> tuple[str, ...]:
    """The addr-specs of all From fields (or of another originator field), in order, each once.

    Local parts as written, domains in lower case, international domains as A-labels (RFC 5890). Raises AddressError
    when a field is not a plain mailbox list.
    """
    found: list[str] = []
    for value in entity.values(name):
        found += parse_mailboxes(value)
    return tuple(dict.fromkeys(found))


def parse_mailboxes(value: str) -> list[str]:
    """The addr-specs of an unfolded mailbox-list (RFC 5322 §3.4; groups and obsolete routes are refused)."""
    return [address for _, address in _named_mailboxes(value)]


def imitated(entity: Entity, addresses: Iterable[str]) -> bool:
    """Whether a display name of From, as readers decode it, or a comment, which some show as one, holds an address that
    is none of `addresses`: clients that show names alone would show that one."""
    known = {address.lower() for address in addresses}
    for value in entity.values("from"):
        comments: list[str] = []
        try:
            names = [name for name, _ in _named_mailboxes(value, comments)]
        except AddressError:
            continue
        for name in (*names, *comments):
            # full-width commercial at signs and the like
            text = unicodedata.normalize("NFKC", decoded_words(name, guess=True))
            if "@" in text and text.strip(" \t<>\"'()").lower() not in known:
                return True
    return False


def _named_mailboxes(value: str, comments: list[str] | None = None) -> list[tuple[str, str]]:
    """Display name, without quotes, and addr-spec of each mailbox; `comments` takes what stands in parentheses. Raises
    AddressError."""
    if len(value) > MAX_FIELD:
        raise AddressError("too long")
    if _CONTROL.search(value):
        raise AddressError("control character")
    try:
        boxes = _mailboxes(value, [] if comments is None else comments)
    except MimeError as problem:
        raise AddressError(str(problem)) from None
    return [(" ".join(word.removeprefix('"') for word in words[:-1]), _mailbox(words)) for words in boxes]


def normalised(address: str) -> str:
    """An addr-spec with its domain in lower case, as A-labels. Raises AddressError when it is none."""
    local, at, domain = address.rpartition("@")
    if not at or not local or not domain or len(address) > MAX_ADDRESS:
        raise AddressError("no address")
    return f"{local}@{_a_labels(domain) if not domain.isascii() else domain.lower()}"


def _a_labels(domain: str) -> str:
    """A domain as A-labels (RFC 5890 §2.3.2.1).

    Raises AddressError when the way back leads to another one: the mapping of IDNA 2003 takes sharp s, full-width
    letters and unusual dots for other characters than the reader sees.
    """
    shown = unicodedata.normalize("NFC", domain).lower()
    try:
        encoded = shown.encode("idna")
        if encoded.decode("idna") != shown:
            raise AddressError("domain")
    except UnicodeError:
        raise AddressError("domain") from None
    return encoded.decode("ascii").lower()


def matches(address: str, addresses: Iterable[str]) -> bool:
    """Whether `address` is one of `addresses`: local part exactly, domain without regard to case (RFC 5280 §7.5)."""
    return any(address == _normalised_or_empty(other) for other in addresses)


def _normalised_or_empty(address: str) -> str:
    try:
        return normalised(address)
    except AddressError:
        return ""


def _mailboxes(value: str, comments: list[str]) -> list[list[str]]:
    """Words of each mailbox: quoted strings keep a leading quote, `<...>` is one word, comments are put aside."""
    boxes: list[list[str]] = [[]]
    position = 0
    while position < len(value):
        character = value[position]
        if character in " \t":
            position += 1
        elif character == "(":
            start, position = position, skip_comment(value, position)
            comments.append(value[start + 1 : position - 1])
        elif character == '"':
            text, position = quoted_text(value, position)
            if value[position : position + 1] == "@":  # a quoted local part; no certificate vouches for one
                raise AddressError("quoted local part")
            boxes[-1].append('"' + text)
        elif character == ",":
            boxes.append([])
            position += 1
            if len(boxes) > MAX_MAILBOXES:
                raise AddressError("too many mailboxes")
        elif character == "<":
            end = value.find(">", position)
            if end < 0:
                raise AddressError("unclosed angle bracket")
            boxes[-1].append(value[position : end + 1])
            position = end + 1
        else:
            start = position
            while position < len(value) and value[position] not in ' \t(",<':
                position += 1
            boxes[-1].append(value[start:position])
    return boxes


def _mailbox(words: list[str]) -> str:
    """`addr-spec`, or a display name and `<addr-spec>` with nothing behind."""
    if not words:
        raise AddressError("empty mailbox")
    *phrase, last = words
    if last.startswith("<"):
        for word in phrase:
            if not word.startswith('"') and _PHRASE_SPECIALS & set(word):
                raise AddressError("special character in a display name")
        return _addr_spec(last[1:-1].strip(" \t"))
    if phrase or last.startswith('"'):
        raise AddressError("words without an address")
    return _addr_spec(last)


def _addr_spec(text: str) -> str:
    local, _, domain = text.rpartition("@")
    for part in (local, domain):
        if not part or part.startswith(".") or part.endswith(".") or ".." in part:
            raise AddressError("dots")
        if not all(character in _ATEXT or (ord(character) > 127 and character.isprintable()) for character in part):
            raise AddressError("character in an address")
    if "\ufffd" in text or "=?" in text:  # octets that are no text, and encoded words, which have no place here
        raise AddressError("encoded address")
    return normalised(text)
