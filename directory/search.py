"""Searching for people: from a few words typed by hand to mailboxes, the best ones first.

slapd finds by the words it has indexed (`directory.words`), at most `WINDOW` entries for each of three questions, from
the narrowest to the widest; ranking is done here, by the fields in which the words were found. Whoever is on the red
list is never found, nor are patients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ldap as python_ldap
from ldap.filter import escape_filter_chars

from directory import schema
from directory.pool import Pool, left
from directory.records import MailboxKind
from directory.words import LONG_KEY, SHORT_KEY, AskedWord, asked, fold, initials

ldap: Any = python_ldap

WINDOW = 200
"""Mailboxes one question to slapd may bring. More are there than anybody reads: another word is what helps."""
PAGE = 20
LONGEST_TEXT = 200
"""Characters of a question; the rest is left aside."""

_ATTRIBUTES = (
    *("mail", "TypeBAL", "displayName", "sn", "givenName", "profession", "description", "o", "ou", "l", "postalCode"),
    *("IdNat", "IdNatStruct"),
)
_NAME, _WHAT, _TOWN, _PLACE = 8, 4, 3, 2
"""What a word is worth that was found in the name, the profession or service, the town, the structure."""


@dataclass(frozen=True, slots=True)
class FoundMailbox:
    """One mailbox as a list of results shows it. Texts as the directory has them, empty when it says nothing."""

    address: str
    kind: MailboxKind
    name: str
    profession: str = ""
    """`Médecin - Cardiologie et maladies vasculaires`; of a team its service."""
    organisation: str = ""
    postal_code: str = ""
    town: str = ""
    id_nat: str = ""
    structure: str = ""
    score: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of results."""

    found: tuple[FoundMailbox, ...]
    page: int
    """1 is the first."""
    total: int
    """Mailboxes on all pages."""
    more: bool
    """The directory has others that answer as well: one more word would tell them apart."""


def search(pool: Pool, base: str, text: str, page: int = 1, size: int = PAGE) -> SearchPage:
    """The mailboxes that answer all words of `text`: name, profession, specialty, town, structure, in any order.

    Case, accents and punctuation play no part; words may be cut short (`cardio`), from 3 letters on. With an `@` the
    text is the beginning of an address; digits alone are a national identifier or a postal code. `page` and `size` of
    at least 1; nothing is found by a text without a word of two letters. Raises `DirectoryUnavailableError`.
    """
    text = text[:LONGEST_TEXT].strip()
    words = asked(text)
    filters = [_address(text)] if "@" in text else _filters(words)
    if not filters:
        return SearchPage((), max(page, 1), 0, False)

    def work(connection: Any, deadline: float) -> tuple[dict[str, Mapping[str, Sequence[bytes]]], bool]:
        return _ask(connection, deadline, base, filters)

    (entries, more), _ = pool.read(work)
    letters = initials(text)
    mailboxes = [found for values in entries.values() if (found := _mailbox(values, words, letters)) is not None]
    mailboxes.sort(key=lambda one: (-one.score, _in_one(one.name), one.town, one.address))
    first = (max(page, 1) - 1) * max(size, 1)
    return SearchPage(tuple(mailboxes[first : first + max(size, 1)]), max(page, 1), len(mailboxes), more)


def _ask(
    connection: Any, deadline: float, base: str, filters: Sequence[str]
) -> tuple[dict[str, Mapping[str, Sequence[bytes]]], bool]:
    """What the questions find, by DN, until `WINDOW` are together; and whether there is more."""
    found: dict[str, Mapping[str, Sequence[bytes]]] = {}
    more = False
    for text in filters:
        message = connection.search_ext(base, ldap.SCOPE_SUBTREE, text, _ATTRIBUTES, sizelimit=WINDOW)
        try:
            kind = None
            while kind != ldap.RES_SEARCH_RESULT:
                kind, results = connection.result(message, 0, left(deadline))
                found.update((dn, values) for dn, values in results if dn is not None)
        except ldap.SIZELIMIT_EXCEEDED:
            more = True
        if len(found) >= WINDOW:
            return found, True
    return found, more


def _filters(words: Sequence[AskedWord]) -> list[str]:
    """From the narrowest to the widest: a name is a whole word, all words are whole, words begin so.

    Several words narrow each other down: for them the one in the middle adds nothing.
    """
    if not words:
        return []
    every_word = "".join(_whole(word) for word in words)
    names = "".join(_equals("sn", text) + _equals("givenName", text) for word in words for text in word.whole)
    every_beginning = "".join(_beginning(word) for word in words)
    parts = [f"(|{names}){every_word}", *([every_word] if len(words) == 1 else []), every_beginning]
    identifier = "".join(word.text for word in words)
    if identifier.isdigit() and len(identifier) >= 9:
        parts.insert(
            0,
            f"(|{_equals('IdNat', identifier)}{_equals('IdentifiantPP', identifier)}"
            f"{_equals('IdNatStruct', identifier)}{_equals('IdentifiantPM', identifier)})",
        )
    return [_listed(part) for part in dict.fromkeys(parts)]


def _listed(part: str) -> str:
    """Only mailboxes anybody may see."""
    return f"(&{part}(objectClass=mssanteBAL)(!(listeRouge=TRUE))(!(TypeBAL={MailboxKind.PATIENT.value})))"


def _address(text: str) -> str:
    return _listed(f"(mail={_escaped(text.lower())}*)")


def _whole(word: AskedWord) -> str:
    """The keys find, the words themselves are compared. Apart: slapd intersects the keys of all words first."""
    keys = _any(_equals(schema.WORD_KEYS, text[:LONG_KEY]) for text in word.whole)
    return keys + _any(_equals(schema.WORDS, text) for text in word.whole)


def _beginning(word: AskedWord) -> str:
    keys, texts = [], []
    for text in word.beginnings:
        begun = len(text) >= SHORT_KEY
        keys.append(_equals(schema.WORD_KEYS, text[: LONG_KEY if len(text) >= LONG_KEY else SHORT_KEY]))
        texts.append(f"({schema.WORDS}={_escaped(text)}{'*' if begun else ''})")
    return _any(keys) + _any(texts)


def _any(parts: Iterable[str]) -> str:
    unlike = list(dict.fromkeys(parts))
    return unlike[0] if len(unlike) == 1 else f"(|{''.join(unlike)})"


def _equals(attribute: str, value: str) -> str:
    return f"({attribute}={_escaped(value)})"


def _escaped(value: str) -> str:
    """The value cannot break out of a filter (RFC 4515 §3)."""
    escaped: str = escape_filter_chars(value)  # type: ignore[no-untyped-call]
    return escaped


@lru_cache(maxsize=1 << 14)
def _words(text: str) -> frozenset[str]:
    return frozenset(fold(text))


@lru_cache(maxsize=1 << 12)
def _in_one(text: str) -> str:
    return "".join(fold(text))


def _mailbox(
    values: Mapping[str, Sequence[bytes]], words: Sequence[AskedWord], letters: frozenset[str]
) -> FoundMailbox | None:
    def text(name: str) -> str:
        held = values.get(name, ())
        return held[0].decode("utf-8", "replace") if held else ""

    try:
        kind = MailboxKind(text("TypeBAL").upper())
    except ValueError:
        return None
    person = kind is MailboxKind.PER
    names = _words(f"{text('givenName')} {text('sn')}" if person else text("displayName"))
    fields = (
        (_NAME, names | {_in_one(text("sn")), _in_one(text("givenName"))} if person else names),
        (_WHAT, _words(text("description"))),
        (_TOWN, _words(f"{text('l')} {text('postalCode')}")),
        (_PLACE, _words(f"{text('o')} {text('ou')}")),
    )
    return FoundMailbox(
        address=text("mail").lower(),
        kind=kind,
        name=text("displayName"),
        profession=text("description"),
        organisation=text("o"),
        postal_code=text("postalCode"),
        town=text("l"),
        id_nat=text("IdNat"),
        structure=text("IdNatStruct"),
        score=sum(_score(word, fields) for word in words) + sum(2 for name in names if name[:1] in letters),
    )


def _score(word: AskedWord, fields: Sequence[tuple[int, frozenset[str]]]) -> int:
    """Twice the worth of the best field that has the word whole, once if one begins so; 1 for a situation's word."""
    best = 1
    for worth, held in fields:
        if 2 * worth > best and not held.isdisjoint(word.whole):
            best = 2 * worth
        elif worth > best and any(each.startswith(word.beginnings) for each in held):
            best = worth
    return best
