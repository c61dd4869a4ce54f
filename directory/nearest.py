"""The trusted address somebody probably meant who wrote one outside the trust space.

Two questions, both bounded: is the domain a misspelt one of the trust list, and does the directory know one person of
that name? Only one answer is an answer: between two colleagues of the same name nobody chooses for the author. Patients
and those on the red list are never proposed by name, for the directory's search does not find them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from directory.pool import DirectoryUnavailableError
from directory.search import FoundMailbox, SearchPage
from directory.words import fold

_FARTHEST = 2
"""Letters that may be wrong in a domain."""
_SHORTEST = 6
"""Letters of a domain below which two wrong ones make another word."""
_AT_ONCE = 2
"""Searches for who mistypes; the directory has other work."""
_MAX_LOCAL, _MAX_DOMAIN = 64, 253


@dataclass(frozen=True, slots=True)
class Nearest:
    """Who was probably meant."""

    address: str
    who: str = ""
    """Name, profession and town as the directory has them: the author sees whether it is whom he meant. Empty for a
    patient."""


class NearestTrusted:
    """Thread-safe; blocks as long as one search of the directory does. Never raises for want of a directory."""

    def __init__(
        self,
        domains: Callable[[], Collection[str]],
        search: Callable[[str], SearchPage],
        patient_domains: Collection[str] = (),
    ) -> None:
        """`domains`: those of the trust list in force, and our own, lower case. `search` is
        `directory.resolve.Directory.search`."""
        self._domains = domains
        self._search = search
        self._patient_domains = frozenset(patient_domains)
        self._places = threading.BoundedSemaphore(_AT_ONCE)

    def of(self, address: str) -> Nearest | None:
        """The one address that was probably meant; None when there is none, or more than one."""
        local, _, domain = address.lower().rpartition("@")
        if not 0 < len(local) <= _MAX_LOCAL or not 0 < len(domain) <= _MAX_DOMAIN or not address.isascii():
            return None
        if not self._places.acquire(blocking=False):
            return None
        try:
            return self._of_domain(local, domain) or self._of_name(local)
        except DirectoryUnavailableError:
            return None
        finally:
            self._places.release()

    def _of_domain(self, local: str, domain: str) -> Nearest | None:
        near = _near(domain, self._domains())
        if len(near) == 1 and near[0] in self._patient_domains:
            return Nearest(f"{local}@{near[0]}")  # whose address is the matricule: the directory does not list patients
        addresses = [f"{local}@{each}" for each in near[:3]]
        known = [one for each in addresses for one in self._search(each).found if one.address == each]
        return _nearest(known[0]) if len({one.address for one in known}) == 1 else None

    def _of_name(self, local: str) -> Nearest | None:
        """`jeanne.martin`: a first and a last name, or a team's words, all of which one mailbox has."""
        words = [word for word in fold(local) if len(word) > 1 and word.isalpha()]
        if len(words) < 2:
            return None
        page = self._search(" ".join(words[:6]))
        # who has no mailbox counts: a colleague of the same name is not the one who was meant
        named = [each for each in page.found if _is_named(each, words)]
        one = len(named) == 1 or len({each.id_nat or each.address for each in named}) == 1
        return _nearest(named[0]) if named and one and named[0].address and not page.more else None


def _nearest(found: FoundMailbox) -> Nearest:
    return Nearest(found.address, ", ".join(each for each in (found.name, found.profession, found.town) if each))


def _is_named(found: FoundMailbox, words: list[str]) -> bool:
    """All words are whole words of its name: a search finds also what begins so, and towns."""
    return set(words) <= set(fold(found.name))


def _near(domain: str, domains: Collection[str]) -> tuple[str, ...]:
    """Those at the smallest distance, if it is small."""
    farthest = _FARTHEST if len(domain) >= _SHORTEST else 1
    letters = Counter(domain)
    best: list[str] = []
    for each in domains:
        if abs(len(each) - len(domain)) > farthest:
            continue
        other = Counter(each)
        if sum((letters - other).values()) > farthest or sum((other - letters).values()) > farthest:
            continue
        distance = _distance(domain, each, farthest)
        if distance < farthest:
            farthest, best = distance, [each]
        elif distance == farthest:
            best.append(each)
    return tuple(sorted(best))


def _distance(one: str, other: str, limit: int) -> int:
    """Letters to add, leave out, change or swap with their neighbour; `limit` + 1 for more."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, start=1):
        earlier, before, row = before, row, [i]
        for j, right in enumerate(other, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, earlier[j - 2] + 1)
            row.append(cost)
        if min(row) > limit:
            return limit + 1
    return row[-1]
