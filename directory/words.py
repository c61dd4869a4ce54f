"""The words people and mailboxes are found by, and what somebody who types a few of them may mean.

Both sides go through the same folding, so that `Hélène LE GOFF, Saint-Étienne` is found by `legoff st etienne`: no
accents, no case, no punctuation, abbreviations written out, compound names apart and in one word.

slapd's own index of beginnings costs five times an equality index and stops at four characters. So the beginnings of a
word, of 3, 4, 6 and 9 characters, are values of their own: whatever is typed, slapd finds those who answer and few who
have to be looked at in vain. That bounds a search by what it finds, not by how frequent its words are. Every length
more would be some seven million values more in the nation's index, which is what a first load spends its time on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

LONGEST = 40
"""Characters of one word."""
MOST = 60
"""Words of one entry."""
KEY_LENGTHS = (3, 4, 6, 9)
"""Characters of the beginnings that are values of their own."""
_ABOUT_KEY = 5
MOST_ASKED = 8
"""Words of one question: what is typed after them only blurs."""

_WORD = re.compile(r"[0-9a-z]+")
_LETTERS = str.maketrans({"œ": "oe", "æ": "ae", "ø": "o", "đ": "d", "ł": "l", "ð": "d", "þ": "th", "ı": "i"})
"""Letters that no Unicode decomposition takes apart."""
_WRITTEN_OUT = {"st": "saint", "ste": "sainte", "sts": "saints", "stes": "saintes"}
_SILENT = frozenset(
    (
        *("a", "au", "aux", "d", "de", "des", "du", "en", "et", "l", "la", "le", "les", "ou", "par", "pour", "sur"),
        *("dr", "docteur", "docteure", "m", "mr", "mme", "mlle", "pr", "prof", "professeur", "professeure"),
    )
)
"""Words too frequent to tell anybody apart. In a name they still are part of the word they are joined to: `legoff`."""

_ENDINGS = (
    *(("logues", "log"), ("logue", "log"), ("logistes", "log"), ("logiste", "log"), ("iatres", "iatr")),
    *(("iatre", "iatr"), ("ieres", "ier"), ("iere", "ier"), ("iennes", "i"), ("ienne", "i"), ("iens", "i")),
    *(("ien", "i"), ("istes", ""), ("iste", ""), ("euses", "eu"), ("euse", "eu"), ("s", "")),
)
"""Endings of those who practise, and how what they practise begins: a `cardiologue` is filed under `Cardiologie`."""
_SHORTEST_STEM = 5
_MEANS = {
    "ch": ("hospitalier",),
    "chu": ("universitaire",),
    "gyneco": ("gynecolog",),
    "hopital": ("hospitalier",),
    "ide": ("infirmier",),
    "kine": ("kinesitherapeute",),
    "orl": ("oto",),
    "psy": ("psychiatr", "psycholog"),
}
"""What is said, and how the register's word for it begins."""


@dataclass(frozen=True, slots=True)
class AskedWord:
    """One word of a question. An entry answers it by one of `whole`, less well by a word with one of `beginnings`."""

    text: str
    whole: tuple[str, ...]
    """The word, and the compounds it makes with its neighbours."""
    beginnings: tuple[str, ...]
    """`whole`, and how the register's words for the same thing begin. At least 2 characters each."""


def fold(text: str) -> list[str]:
    """The words of a text in their order: ASCII letters and digits, lower case, at most `LONGEST` characters each."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
        text = "".join(character for character in decomposed if not unicodedata.combining(character))
    return [_WRITTEN_OUT.get(word, word)[:LONGEST] for word in _WORD.findall(text.casefold())]


def folded(text: str) -> str:
    """The text without its accents, in its own case: another spelling for address books, which compare accents."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text.replace("œ", "oe").replace("Œ", "OE"))
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def words_of(names: Iterable[str], others: Iterable[str]) -> tuple[bytes, ...]:
    """The words an entry is found by, each once, sorted: all of its `names`, compounds too, then of the `others`."""
    found: dict[bytes, None] = {}
    for text in names:
        found.update(_of_name(text))
    for text in others:
        found.update(_of_text(text))
    return tuple(sorted(list(found)[:MOST] if len(found) > MOST else found))


@lru_cache(maxsize=1 << 16)
def keys_of(word: bytes) -> tuple[bytes, ...]:
    """The beginnings of a word. None is a number: nobody knows the half of one."""
    if word.isdigit():
        return ()
    beginnings = (word[:length] for length in KEY_LENGTHS if length <= len(word))
    return tuple(beginning for beginning in beginnings if not beginning.isdigit())


def all_keys(words: Iterable[bytes]) -> tuple[bytes, ...]:
    """The keys of all these words, each once, sorted."""
    found: set[bytes] = set()
    for word in words:
        found.update(keys_of(word))
    return tuple(sorted(found))


def key_of(text: str) -> str:
    """The longest key that whoever has a word beginning with `text` has; empty when no key says it: of numbers, and of
    less than 3 characters, whole words alone are known."""
    if len(text) < KEY_LENGTHS[0] or text.isdigit():
        return ""
    key = text[: max(length for length in KEY_LENGTHS if length <= len(text))]
    return "" if key.isdigit() else key


def name_key(word: str) -> str:
    """What a person has who has that whole word in his name."""
    return f"{word}="


def about_key(word: str) -> str:
    """What a person has of a word that is no name: its first 5 characters, marked to tell it from a name."""
    return f"{word[:_ABOUT_KEY]}."


def person_keys(names: Iterable[bytes], others: Iterable[bytes]) -> tuple[bytes, ...]:
    """What a person is found by: beginnings and whole of the words of his name, and one key of each other word. There
    are two million persons: their words themselves have no index."""
    names = tuple(names)
    whole = {name_key(word.decode("ascii")).encode("ascii") for word in names}
    about = {about_key(word.decode("ascii")).encode("ascii") for word in others}
    return tuple(sorted({*all_keys(names), *whole, *about}))


def asked(text: str) -> list[AskedWord]:
    """What a question asks for: every word of it that tells anybody apart.

    Single letters are left aside, silent words too unless there is nothing else; empty when nothing is left.
    """
    words = fold(text)[: 2 * MOST_ASKED]
    long = [(position, word) for position, word in enumerate(words) if len(word) > 1]
    telling = [pair for pair in long if pair[1] not in _SILENT] or long
    found = []
    for position, word in telling[:MOST_ASKED]:
        compounds = [
            (words[first] + words[first + 1])[:LONGEST]
            for first in (position - 1, position)
            # A longer word has the compound's key for its own: asking for it would find all who have that word
            if first >= 0 and first + 1 < len(words) and len(words[first]) < KEY_LENGTHS[-1]
        ]
        whole = tuple(dict.fromkeys((word, *compounds)))
        found.append(AskedWord(word, whole, tuple(dict.fromkeys((*whole, *_MEANS.get(word, ()), *_stem(word))))))
    return found


def initials(text: str) -> frozenset[str]:
    """The single letters of a question: `j` in `j dupont`. They rank, they do not choose."""
    return frozenset(word for word in fold(text) if len(word) == 1)


@lru_cache(maxsize=1 << 14)  # half a million people share some ten thousand names, towns and specialties
def _of_name(text: str) -> dict[bytes, None]:
    words = fold(text)
    telling = [word for word in words if len(word) > 1 and word not in _SILENT]
    return {word.encode("ascii"): None for word in (*(telling or words), *_compounds(words))}


@lru_cache(maxsize=1 << 16)
def _of_text(text: str) -> dict[bytes, None]:
    return {word.encode("ascii"): None for word in fold(text) if len(word) > 1 and word not in _SILENT}


def _compounds(words: list[str]) -> list[str]:
    """Neighbours in one word, and all of them: `jeanbaptiste`, `delatour`."""
    if len(words) < 2:
        return []
    pairs = [(first + second)[:LONGEST] for first, second in pairwise(words)]
    return [*pairs, "".join(words)[:LONGEST]]


def _stem(word: str) -> tuple[str, ...]:
    for ending, kept in _ENDINGS:
        if word.endswith(ending):
            stem = word.removesuffix(ending) + kept
            return (stem,) if len(stem) >= _SHORTEST_STEM else ()
    return ()
