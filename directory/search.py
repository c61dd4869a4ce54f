"""Searching for people: from a few words typed by hand to mailboxes, the best ones first.

slapd finds by the words it has indexed (`directory.words`), at most `WINDOW` entries for each of a few questions;
ranking is done here, by the fields in which the words were found. Professionals without a
mailbox come after: one has to know that writing to them will not do. Whoever is on the red list is never found, nor
are patients.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ldap as python_ldap
from ldap.filter import escape_filter_chars

from directory import schema
from directory.identifiers import id_nats
from directory.pool import Pool, left
from directory.records import MailboxKind
from directory.situations import Situation, parse_situation
from directory.words import AskedWord, about_key, asked, fold, initials, key_of, name_key

ldap: Any = python_ldap

WINDOW = 100
"""Mailboxes one question to slapd may bring. More are there than anybody reads: another word is what helps."""
PERSONS = 30
"""Professionals without a mailbox one question may bring."""
SEARCH_SECONDS = 1
"""So long slapd may look for one question; what it has found by then is the answer, and that there may be more."""
PAGE = 20
LONGEST_TEXT = 200
"""Characters of a question; the rest is left aside."""

_IDENTIFIER = re.compile(r"[0-9]{1,2}[0-9ab][0-9]{7,}")
"""Nine characters and more; of Corsica's structures the second, or with a type digit the third, is a letter."""
_Entries = dict[str, Mapping[str, Sequence[bytes]]]
_MAILBOX_ATTRIBUTES = (
    *("mail", "TypeBAL", "displayName", "sn", "givenName", "profession", "description", "o", "ou", "l", "postalCode"),
    *("IdNat", "IdNatStruct"),
)
_SKILLS = "LibelleSavoirFaire"
_PERSON_ATTRIBUTES = (
    *("IdNat", "NomExercice", "PrenomExercice", "CiviliteExercice", "LibelleProfession", _SKILLS),
    "Situation",
)
_NAME, _WHAT, _TOWN, _PLACE = 8, 4, 3, 2
"""What a word is worth that was found in the name, the profession or service, the town, the structure."""


@dataclass(frozen=True, slots=True)
class FoundMailbox:
    """One result as a list shows it. Texts as the directory has them, empty when it says nothing."""

    address: str
    """Empty: a professional of whom no mailbox is known."""
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
    """Results on all pages."""
    more: bool
    """The directory may have others that answer as well: one more word would tell them apart."""


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    """The filter."""
    attributes: tuple[str, ...]
    limit: int


def search(pool: Pool, base: str, text: str, page: int = 1, size: int = PAGE) -> SearchPage:
    """Who answers all words of `text`: name, profession, specialty, town, structure, in any order.

    Case, accents and punctuation play no part; words may be cut short (`cardio`), from 3 letters on. With an `@` the
    text is the beginning of an address; digits alone are a national identifier or a postal code. A professional without
    a mailbox is found by name; profession and town may stand beside it. `page` and `size` of at least 1; nothing is
    found by a text without a word of two letters. Raises `DirectoryUnavailableError`.
    """
    text = text[:LONGEST_TEXT].strip()
    words = asked(text)
    groups = [[_mailboxes(_address(text))]] if "@" in text else _questions(words)
    if not groups:
        return SearchPage((), max(page, 1), 0, False)

    letters = initials(text)

    def work(connection: Any, deadline: float) -> tuple[list[FoundMailbox], bool]:
        entries, more = _ask(connection, deadline, base, groups)
        results = [found for values in entries.values() if (found := _result(values, words, letters)) is not None]
        persons = [each.id_nat for each in results if not each.address]
        holders = _holders(connection, deadline, base, persons) if persons else frozenset[str]()
        return [each for each in results if each.address or each.id_nat not in holders], more

    (results, more), _ = pool.read(work)
    results.sort(key=lambda one: (-one.score, not one.address, _in_one(one.name), one.town, one.address, one.id_nat))
    first = (max(page, 1) - 1) * max(size, 1)
    return SearchPage(tuple(results[first : first + max(size, 1)]), max(page, 1), len(results), more)


def _ask(connection: Any, deadline: float, base: str, groups: Sequence[Sequence[_Question]]) -> tuple[_Entries, bool]:
    """What the groups of questions find, by DN, until `WINDOW` are together; and whether there may be more.

    The widest question comes first and mostly brings all there is. When there is more than its limit, the narrower ones
    see to it that the best are among what is found.
    """
    found: _Entries = {}
    more = False
    for widest, *narrower in groups:
        entries, whole = _answers(connection, deadline, base, widest)
        found |= entries
        if not whole:
            more = True
            best = 0
            for question in narrower:
                entries, _ = _answers(connection, deadline, base, question)
                found |= entries
                best += len(entries)
                if best >= question.limit:
                    break
        if len(found) >= WINDOW:
            return found, True
    return found, more


def _answers(connection: Any, deadline: float, base: str, question: _Question) -> tuple[_Entries, bool]:
    """What one question finds, and whether that is all."""
    found: _Entries = {}
    message = connection.search_ext(
        base, ldap.SCOPE_SUBTREE, question.text, question.attributes, timeout=SEARCH_SECONDS, sizelimit=question.limit
    )
    try:
        kind = None
        while kind != ldap.RES_SEARCH_RESULT:
            kind, results = connection.result(message, 0, left(deadline))
            found.update((dn, values) for dn, values in results if dn is not None)
    except (ldap.SIZELIMIT_EXCEEDED, ldap.TIMELIMIT_EXCEEDED):
        return found, False
    return found, True


def _holders(connection: Any, deadline: float, base: str, persons: Iterable[str]) -> frozenset[str]:
    """Those of the professionals (IdNat_PP) who have a mailbox, be it one on the red list."""
    part = f"(&{_equals('TypeBAL', MailboxKind.PER.value)}{_any(_equals('IdNat', each) for each in persons)})"
    message = connection.search_ext(base, ldap.SCOPE_SUBTREE, part, ("IdNat",))
    _, results, *_ = connection.result3(message, 1, left(deadline))
    return frozenset(
        value.decode("utf-8", "replace") for _, values in results for each in values.values() for value in each
    )


def _questions(words: Sequence[AskedWord]) -> list[list[_Question]]:
    """Mailboxes: words begin so; a name is a whole word and all words are whole; all words are whole. Then persons."""
    if not words:
        return []
    every_word = "".join(_whole(schema.WORDS, word) for word in words)
    names = "".join(_equals("sn", text) + _equals("givenName", text) for word in words for text in word.whole)
    every_beginning = "".join(_beginning(word) for word in words)
    groups = [[_mailboxes(_listed(part)) for part in (every_beginning, f"(|{names}){every_word}", every_word)]]
    identifier = "".join(word.text for word in words)
    persons = _persons(words)
    if _IDENTIFIER.fullmatch(identifier):
        attributes = ("IdNat", "IdentifiantPP", "IdNatStruct", "IdentifiantPM")
        known = f"(mail=*){_any(_equals(name, identifier) for name in attributes)}"
        groups.insert(0, [_mailboxes(_listed(known))])
        persons = [f"(&(NomExercice=*){_any(_equals('IdNat', each) for each in id_nats(identifier))})"]
    if persons:
        groups.append([_Question(part, _PERSON_ATTRIBUTES, PERSONS) for part in persons])
    return groups


def _mailboxes(text: str) -> _Question:
    return _Question(text, _MAILBOX_ATTRIBUTES, WINDOW)


def _persons(words: Sequence[AskedWord]) -> list[str]:
    """Persons of whom one word begins the name: names are rare, professions are not. Cut short, then whole words."""
    names = [text for word in words for text in word.whole if not text.isdigit()]
    if not names:
        return []
    named = _with_a_key(_name_beginning(text) for text in names)
    begun = "".join(_person_beginning(word) for word in words)
    whole = "".join(_person_whole(word) for word in words)
    return [f"(&{named}{begun})", f"(&{named}{whole})"]


def _person_beginning(word: AskedWord) -> str:
    """By the keys of names and of other words; apart from them the words, for those keys do not say all."""
    keys = (key for text in word.beginnings for key in (_name_beginning(text), about_key(text)))
    return _with_a_key(keys) + _any(_begun(schema.PERSON_WORDS, text) for text in word.beginnings)


def _person_whole(word: AskedWord) -> str:
    keys = (key for text in word.whole for key in (name_key(text), about_key(text)))
    return _with_a_key(keys) + _whole(schema.PERSON_WORDS, word)


def _name_beginning(text: str) -> str:
    """The key of persons whose name has a word that begins so; of what has no key, one that is so."""
    return key_of(text) or name_key(text)


def _with_a_key(keys: Iterable[str]) -> str:
    return _any(_equals(schema.PERSON_WORD_KEYS, key) for key in keys)


def _listed(part: str) -> str:
    """Only mailboxes anybody may see."""
    return f"(&{part}(!(listeRouge=TRUE))(!(TypeBAL={MailboxKind.PATIENT.value})))"


def _address(text: str) -> str:
    return _listed(f"(mail={_escaped(text.lower())}*)")


def _whole(attribute: str, word: AskedWord) -> str:
    return _any(_equals(attribute, text) for text in word.whole)


def _beginning(word: AskedWord) -> str:
    return _any(_with_a_word(text) for text in word.beginnings)


def _with_a_word(text: str) -> str:
    """Mailboxes with a word that begins so; by its key, and where that is shorter than the text by the word too."""
    key = key_of(text)
    if key == text:
        return _equals(schema.WORD_KEYS, key)
    begun = _begun(schema.WORDS, text)
    return f"(&{_equals(schema.WORD_KEYS, key)}{begun})" if key else begun


def _begun(attribute: str, text: str) -> str:
    return f"({attribute}={_escaped(text)}{'*' if key_of(text) else ''})"


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


def _result(
    values: Mapping[str, Sequence[bytes]], words: Sequence[AskedWord], letters: frozenset[str]
) -> FoundMailbox | None:
    def text(name: str) -> str:
        held = values.get(name, ())
        return held[0].decode("utf-8", "replace") if held else ""

    if "mail" not in values:
        return _person(values, text, words, letters)
    try:
        kind = MailboxKind(text("TypeBAL").upper())
    except ValueError:
        return None
    person = kind is MailboxKind.PER
    names = _names(text("givenName"), text("sn")) if person else _words(text("displayName"))
    fields = (
        (_NAME, names),
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
        score=_scored(words, fields, letters),
    )


def _person(
    values: Mapping[str, Sequence[bytes]],
    text: Callable[[str], str],
    words: Sequence[AskedWord],
    letters: frozenset[str],
) -> FoundMailbox:
    """A professional without a mailbox, in the situation that answers best."""
    labels = (b" ".join(values.get(name, ())).decode("utf-8", "replace") for name in ("LibelleProfession", _SKILLS))
    what = " ".join(labels)
    situations = [parse_situation(value.decode("utf-8", "replace")) for value in values.get("Situation", ())]

    def scored(situation: Situation) -> int:
        fields = (
            (_NAME, _names(text("PrenomExercice"), text("NomExercice"))),
            (_WHAT, _words(what)),
            (_TOWN, _words(f"{situation.town} {situation.postal_code}")),
            (_PLACE, _words(situation.organisation)),
        )
        return _scored(words, fields, letters)

    score, _, situation = max((scored(each), -place, each) for place, each in enumerate(situations or (Situation(),)))
    family, given = text("NomExercice"), text("PrenomExercice")
    return FoundMailbox(
        address="",
        kind=MailboxKind.PER,
        name=" ".join(filter(None, (text("CiviliteExercice"), given, family))),
        profession=" - ".join(filter(None, (text("LibelleProfession"), text(_SKILLS)))),
        organisation=situation.organisation,
        postal_code=situation.postal_code,
        town=situation.town,
        id_nat=text("IdNat"),
        structure=situation.structure,
        score=score,
    )


def _names(given: str, family: str) -> frozenset[str]:
    return _words(f"{given} {family}") | {_in_one(family), _in_one(given)}


def _scored(words: Sequence[AskedWord], fields: Sequence[tuple[int, frozenset[str]]], letters: frozenset[str]) -> int:
    return sum(_score(word, fields) for word in words) + sum(2 for name in fields[0][1] if name[:1] in letters)


def _score(word: AskedWord, fields: Sequence[tuple[int, frozenset[str]]]) -> int:
    """Twice the worth of the best field that has the word whole, once if one begins so; 1 for a situation's word."""
    best = 1
    for worth, held in fields:
        if 2 * worth > best and not held.isdisjoint(word.whole):
            best = 2 * worth
        elif worth > best and any(each.startswith(word.beginnings) for each in held):
            best = worth
    return best
