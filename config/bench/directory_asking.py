"""Rows of `relais bench directory`: mailboxes resolved by address, and people searched for, on a running slapd.

Ours and python-ldap alone work in turns on the same server, over TLS and as the same identity, each on addresses of its
own: what slapd sends and python-ldap reads is the limit nobody in Python gets below. Times go by the clock.
"""

from __future__ import annotations

import random
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ldap as python_ldap
from ldap.filter import filter_format

from config.bench.child import BenchError
from config.bench.directory_nation import lines
from config.bench.directory_server import BASE, Server
from config.bench.report import percentile, row
from directory.reading import READ_ATTRIBUTES
from directory.search import PAGE

Row = dict[str, Any]
ldap: Any = python_ldap
"""python-ldap has no type annotations."""

BARE = "python-ldap alone: search_ext_s of (mail=ADDRESS) for the same attributes, same slapd, TLS and identity"
_TURN = 50
"""Look-ups of one, then of the other."""


@dataclass(slots=True)
class Asked:
    """What one contestant took for its look-ups."""

    seconds: list[float] = field(default_factory=list)
    """Each."""
    elapsed: float = 0.0
    """By the clock, all of them."""
    processor: float = 0.0
    """Of the thread that asked: slapd's is not in it."""

    def do(self, work: Callable[[Any], object], questions: Sequence[Any]) -> None:
        clock = time.perf_counter
        began, used = clock(), time.thread_time()
        for question in questions:
            before = clock()
            work(question)
            self.seconds.append(clock() - before)
        self.elapsed += clock() - began
        self.processor += time.thread_time() - used

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.elapsed

    def milliseconds(self, percent: float) -> float:
        return 1000 * percentile(self.seconds, percent)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Of mailboxes in the directory, in no order, those with a certificate of their own and those without."""

    certified: tuple[str, ...]
    plain: tuple[str, ...]

    def take(self, count: int, turn: int) -> tuple[list[str], list[str]]:
        """`count` for either contestant, every second with a certificate. Nobody is asked about twice while `turn`
        grows, unless there are not enough."""
        per_list = -(-count // 2)
        chosen = []
        for pool in (self.certified or self.plain, self.plain):
            first = 2 * turn * per_list
            chosen.append([pool[(first + number) % len(pool)] for number in range(2 * per_list)])
        mixed = [address for pair in zip(*chosen, strict=True) for address in pair]
        ours, theirs = mixed[0::4] + mixed[1::4], mixed[2::4] + mixed[3::4]
        shuffle = random.Random(turn).shuffle  # noqa: S311 - only an order
        shuffle(ours)
        shuffle(theirs)
        return ours[:count], theirs[:count]


def addresses(mssante: Path, certified: Sequence[str]) -> Addresses:
    """From the file that was loaded, and who got a certificate."""
    own = set(certified)
    plain = list(dict.fromkeys(line.split("|", 2)[1] for line in lines(mssante)))
    plain = [address for address in plain if address not in own]
    random.Random(2).shuffle(plain)  # noqa: S311 - only an order
    return Addresses(tuple(certified), tuple(plain))


def lookups(server: Server, asked: Addresses, count: int, turn: int) -> tuple[Asked, Asked]:
    """`count` mailboxes resolved by us, and as many searched for by python-ldap, in turns."""
    mine, others = Asked(), Asked()
    ours, theirs = asked.take(count, turn)
    with server.directory() as directory, server.bare() as bare:

        def resolve(address: str) -> None:
            found = directory.resolve(address)
            if found is None or found.address != address:
                raise BenchError("a mailbox of the directory was not found")

        def search(address: str) -> None:
            filter_text = filter_format("(mail=%s)", [address])  # type: ignore[no-untyped-call]
            if not bare.search_ext_s(BASE, ldap.SCOPE_SUBTREE, filter_text, READ_ATTRIBUTES):
                raise BenchError("python-ldap did not find a mailbox of the directory")

        # connecting is not measured
        directory.check()
        bare.whoami_s()
        for first in range(0, count, _TURN):
            mine.do(resolve, ours[first : first + _TURN])
            others.do(search, theirs[first : first + _TURN])
    return mine, others


def resolving(server: Server, asked: Addresses, count: int, runs: int) -> list[Row]:
    """With slapd's pages on the disk alone, then as they come into memory."""
    turns = []
    for turn in range(runs):
        server.start_cold()
        turns.append(lookups(server, asked, count, turn))
    rows = _latencies("resolve_disk", turns, count)
    lookups(server, asked, count, runs)
    turns = [lookups(server, asked, count, runs + 1 + turn) for turn in range(runs)]
    ours, theirs = [mine for mine, _ in turns], [other for _, other in turns]
    rows += [
        row(
            "resolve_cold_ps",
            [each.rate for each in ours],
            "/s on one thread",
            count,
            reference=BARE,
            reference_values=[each.rate for each in theirs],
        ),
        row(
            "resolve_cold_cpu_us",
            [1e6 * each.processor / count for each in ours],
            "us of processor time of the asking thread",
            count,
            reference=BARE,
            reference_values=[1e6 * each.processor / count for each in theirs],
        ),
        *_latencies("resolve_cold", turns, count),
    ]
    return [*rows, _unknown(server, count, runs)]


def _latencies(name: str, turns: Sequence[tuple[Asked, Asked]], count: int) -> list[Row]:
    return [
        row(
            f"{name}_p{percent}_ms",
            [mine.milliseconds(percent) for mine, _ in turns],
            "ms",
            count,
            reference=BARE,
            reference_values=[other.milliseconds(percent) for _, other in turns],
        )
        for percent in (99, 50)
    ]


def _unknown(server: Server, count: int, runs: int) -> Row:
    """Addresses that nobody has."""
    taken = []
    with server.directory() as directory:

        def resolve(address: str) -> None:
            if directory.resolve(address) is not None:
                raise BenchError("a mailbox was found that is not there")

        directory.check()
        for turn in range(runs):
            asked = Asked()
            asked.do(resolve, [f"nobody.{turn}.{number}@demo-{number % 50}.mssante.fr" for number in range(count)])
            taken.append(asked.milliseconds(99))
    return row("resolve_unknown_p99_ms", taken, "ms", count)


def growing(small: Server, large: Server, asked: tuple[Addresses, Addresses], count: int, runs: int) -> float:
    """Time of the median look-up in the large directory over that in the small one, measured in turns."""
    medians: tuple[list[float], list[float]] = ([], [])
    for turn in range(runs + 1):
        for server, own, taken in zip((small, large), asked, medians, strict=True):
            mine, _ = lookups(server, own, count, turn)
            if turn:  # the first brings the data into memory
                taken.append(mine.milliseconds(50))
    return min(medians[1]) / min(medians[0])


@dataclass(frozen=True, slots=True)
class Questions:
    """What is typed, by kind."""

    realistic: dict[str, list[str]]
    """What people ask for who look for somebody."""
    worst: dict[str, list[str]]
    """What has very many answers, or none."""
    names: list[str]
    """Family names alone, for python-ldap."""


def questions(mssante: Path, count: int) -> Questions:
    """Up to `count` of each kind, made of what the file says: its frequent names, towns and professions are found by
    counting."""
    chance = random.Random(3)  # noqa: S311 - the same questions every time
    people = [line.split("|") for line in lines(mssante) if line.startswith("PER|")]
    frequent = [name for name, _ in Counter(fields[9] for fields in people).most_common(20)]
    towns = [town for town, _ in Counter(_town(fields) for fields in people).most_common(20)]
    professions = [name for name, _ in Counter(fields[14] for fields in people).most_common()]
    skills = [name for name, _ in Counter(fields[16] for fields in people if fields[16]).most_common()]
    some = chance.sample(people, min(count, len(people)))
    accented = [fields for fields in people if not (fields[9] + fields[10]).isascii()]
    compound = [fields for fields in people if "-" in fields[9] or " " in fields[9]]

    def draw(candidates: Sequence[list[str]]) -> list[list[str]]:
        return chance.sample(candidates, min(count, len(candidates)))

    realistic = {
        "person": [f"{fields[10]} {fields[9]}" for fields in some],
        "name_profession_town": [f"{fields[9]} {fields[14][:6]} {_town(fields)}" for fields in some],
        "accents": [f"{fields[10]} {fields[9]}" for fields in draw(accented)]
        + [_bare(f"{fields[10]} {fields[9]}") for fields in draw(accented)],
        "compound": [fields[9].replace("-", " ") for fields in draw(compound)]
        + [fields[9].replace(" ", "").replace("-", "") for fields in draw(compound)],
        "cut_short": [f"{fields[9][:5]} {fields[10][:3]}" for fields in draw(people)],
        "initial": [f"{fields[10][:1]} {fields[9]} {_town(fields)}" for fields in draw(people)],
        "address": [fields[1].partition("@")[0] + "@" for fields in draw(people)],
        "identifier": [fields[3] for fields in draw(people)],
    }
    worst = {
        "frequent_name_big_town": [f"{name} {town}" for name in frequent[:5] for town in towns[:5]],
        "frequent_name": frequent,
        "profession": [*professions, *skills, "cardio", "kiné", "docteur"],
        "profession_big_town": [f"{name} {town}" for name in professions for town in towns[:5]],
        "town": towns,
        "beginnings": sorted({f"{fields[9][:3]} {_town(fields)[:3]}" for fields in draw(people)}),
        "nothing_found": [f"{_reversed(fields[9])} {_town(fields)}" for fields in draw(people)],
    }
    return Questions(realistic, worst, [fields[9] for fields in some])


def _town(fields: Sequence[str]) -> str:
    """Of a mailbox's line: what follows the postal code in L6LIGNEACHEMINEMENT."""
    return fields[27].removeprefix(fields[28]).strip().title()


def _bare(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


def _reversed(name: str) -> str:
    """A word that no name is."""
    return f"q{_bare(name)[::-1]}q".replace(" ", "").replace("-", "")


def searching(server: Server, asked: Questions, count: int, runs: int) -> list[Row]:
    """First pages, each kind `count` times a run; kinds in turns, and python-ldap among them."""
    kinds = {kind: texts for kind, texts in (asked.realistic | asked.worst).items() if texts}
    taken: dict[str, list[Asked]] = {kind: [] for kind in (*kinds, "bare")}
    with ExitStack() as stack:
        directory = stack.enter_context(server.directory())
        bare = stack.enter_context(server.bare())
        directory.check()
        bare.whoami_s()

        def search(question: tuple[str, str]) -> None:
            kind, text = question
            found = len(directory.search(text).found)
            if (kind in asked.realistic and not found) or (kind == "nothing_found" and found):
                raise BenchError(f"a search of the kind {kind} found {found} mailboxes")

        def ldap_search(name: str) -> None:
            try:
                filter_text = filter_format("(&(sn=%s)(objectClass=mssanteBAL))", [name])  # type: ignore[no-untyped-call]
                bare.search_ext_s(BASE, ldap.SCOPE_SUBTREE, filter_text, sizelimit=PAGE)
            except ldap.SIZELIMIT_EXCEEDED:
                pass

        for run in range(runs):
            for each in taken.values():
                each.append(Asked())
            for number in range(count):
                for kind, texts in kinds.items():
                    taken[kind][-1].do(search, [(kind, texts[(run * count + number) % len(texts)])])
                taken["bare"][-1].do(ldap_search, [asked.names[(run * count + number) % len(asked.names)]])
    return _search_rows(asked, taken, count, runs)


def _search_rows(asked: Questions, taken: dict[str, list[Asked]], count: int, runs: int) -> list[Row]:
    reference = f"python-ldap alone: (sn=NAME) of such people, {PAGE} entries at most, not ranked"

    def together(kinds: Sequence[str], run: int) -> Asked:
        return Asked([seconds for kind in kinds for seconds in taken[kind][run].seconds])

    realistic = [kind for kind in asked.realistic if kind in taken]
    rows = [
        row(
            f"search_p{percent}_ms",
            [together(realistic, run).milliseconds(percent) for run in range(runs)],
            "ms, first page, what people type",
            count * len(realistic),
            reference=reference,
            reference_values=[each.milliseconds(percent) for each in taken["bare"]],
        )
        for percent in (99, 50)
    ]
    by_kind = {kind: [each.milliseconds(99) for each in each_run] for kind, each_run in taken.items() if kind != "bare"}
    slowest = max(by_kind, key=lambda kind: sorted(by_kind[kind])[runs // 2])
    rows.append(row("search_worst_p99_ms", by_kind[slowest], f"ms, first page, kind {slowest}", count))
    for kind, values in by_kind.items():
        rows.append(row(f"search_{kind}_p99_ms", values, "ms", count))
        rows.append(row(f"search_{kind}_p50_ms", [each.milliseconds(50) for each in taken[kind]], "ms", count))
    return rows
