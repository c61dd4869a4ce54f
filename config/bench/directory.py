"""`relais bench directory`: a nation loaded, kept in step, resolved and searched, on a private slapd.

Files of the wanted size are generated first, with those of the days after; that is not measured, nor is the making of
certificates. What is measured runs the product's own code in processes of its own, so that their memory is theirs, and
on the product's own slapd. Every figure stands beside a bar, or a peer or limit of the same run; what a bar was set for
at national size is not said to be met by less. Started as root, everything runs as user `relais`.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from config.bench import directory_asking as asking
from config.bench import directory_nation as nation
from config.bench import directory_work as work
from config.bench.child import BenchError
from config.bench.directory_server import BASE, Server, make_server_files
from config.bench.report import Bar, result, row
from config.ports import choose

Row = dict[str, Any]
Say = Callable[[str], None]
PARTS = ("load", "sync", "resolve", "search", "growth")
_NATIONAL = 2_200_000
"""From so many situations on a directory is the nation's."""


@dataclass(frozen=True, slots=True)
class Scale:
    situations: int
    small: int
    """Situations of the directory that growth is measured against."""
    loads: int
    """First loads, each beside slapadd's."""
    days: int
    """Days synchronised with nothing kept from the day before, and as many with it."""
    runs: int
    """Of look-ups and searches."""
    lookups: int
    """In one run."""
    searches: int
    """Of each kind in one run."""
    certificates: int
    """Mailboxes with one, as a gateway's own have; at most one mailbox in ten."""
    changed: float = 1.0
    """Percent of the persons, from one day to the next."""


SCALES = {
    "quick": Scale(20_000, 2_000, loads=3, days=1, runs=3, lookups=500, searches=40, certificates=1_000),
    "full": Scale(2_300_000, 100_000, loads=1, days=1, runs=5, lookups=5_000, searches=100, certificates=10_000),
}
BARS = {
    "first_load_s": Bar(480, None, at_most=True, from_n=_NATIONAL),
    "first_load_vs_slapadd": Bar(4, 2, "ratio", at_most=True),
    "first_load_peak_mb": Bar(1000, None, at_most=True, from_n=_NATIONAL),
    "daily_sync_s": Bar(180, 60, at_most=True, from_n=_NATIONAL),
    "daily_sync_kept_s": Bar(180, 60, at_most=True, from_n=_NATIONAL),
    "sync_peak_mb": Bar(600, None, at_most=True, from_n=_NATIONAL),
    "sync_writes_off": Bar(0, None, at_most=True),
    "sync_again_writes": Bar(0, None, at_most=True),
    "sync_growth": Bar(1.1, None, at_most=True),
    "resolve_cold_p99_ms": Bar(3, None, at_most=True),
    "resolve_disk_p99_ms": Bar(3, None, at_most=True),
    "resolve_cold_ps": Bar(5_000, 8_000),
    "resolve_growth": Bar(1.2, None, at_most=True),
    "search_p99_ms": Bar(50, 20, at_most=True),
    "search_worst_p99_ms": Bar(50, 20, at_most=True),
}


def directory(
    scale: str,
    situations: int | None = None,
    only: Collection[str] = PARTS,
    below: Path | None = None,
    say: Say = lambda _: None,
) -> Row:
    """Measure at `quick` or `full` scale, or with so many `situations`. Raises `BenchError` when an answer is wrong.

    `only`: some of `PARTS`. `below`: an existing folder for all data, default the system's for temporary files. As
    root, this process becomes user `relais` for good.
    """
    chosen = SCALES[scale]
    if situations is not None:
        chosen = replace(chosen, situations=situations, small=max(situations // 10, 100))
    return measure(scale, chosen, only, below, say)


def measure(name: str, scale: Scale, only: Collection[str], below: Path | None, say: Say) -> Row:
    """See `directory`."""
    from config import privileges

    place = Path(tempfile.mkdtemp(prefix="relais-bench-", dir=below))
    try:
        privileges.drop(place)
        with ExitStack() as stack:
            bench = _Bench(place, scale, frozenset(only), say, stack)
            rows = bench.rows()
        return {
            **result(
                "directory", name, [BARS[each["id"]].judge(each) if each["id"] in BARS else each for each in rows]
            ),
            "sizes": bench.sizes,
            "seconds": bench.seconds,
        }
    except privileges.PrivilegeError as error:
        raise BenchError(str(error)) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass(slots=True)
class _Nation:
    """One size: its files by day, its slapd, and what became of both."""

    folder: Path
    situations: int
    days: int
    server: Server
    certified: list[str] = field(default_factory=list)
    loads: list[work.Done] = field(default_factory=list)
    load_seconds: list[float] = field(default_factory=list)

    def day(self, number: int) -> Path:
        return self.folder / f"day{number}"

    @property
    def mssante(self) -> Path:
        return nation.files_of(self.day(0))["mssante"]


class _Bench:
    def __init__(self, place: Path, scale: Scale, only: frozenset[str], say: Say, stack: ExitStack) -> None:
        self._place = place
        self._scale = scale
        self._only = only
        self._say = say
        self._stack = stack
        self.sizes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        """By part, what was prepared included."""
        make_server_files(place)
        self._ports = choose(("large", "small", "alone"), place / "ports.json", {})

    def rows(self) -> list[Row]:
        scale = self._scale
        days = 2 * scale.days if "sync" in self._only else 1 if "growth" in self._only else 0
        large = self._nation("large", scale.situations, days)
        small = self._nation("small", scale.small, 1) if "growth" in self._only else None
        rows: list[Row] = self._timed("load", lambda: self._load(large))
        if small is not None:
            self._timed("load_small", lambda: self._first_load(small))
        if "resolve" in self._only:
            rows += self._timed("resolve", lambda: self._resolve(large))
        if small is not None:
            rows += self._timed("resolve_growth", lambda: self._resolve_growth(small, large))
        if "search" in self._only:
            rows += self._timed("search", lambda: self._search(large))
        synchronised: list[float] = []
        if "sync" in self._only or small is not None:
            made, synchronised = self._timed("sync", lambda: self._sync(large))
            rows += made if "sync" in self._only else []
        if small is not None:
            rows += self._timed("sync_small", lambda: self._sync_growth(small, large, synchronised))
        return rows

    def _timed(self, part: str, measured: Callable[[], Any]) -> Any:
        self._say(f"{part} ...")
        began = time.monotonic()
        try:
            return measured()
        finally:
            self.seconds[part] = round(time.monotonic() - began, 1)

    def _nation(self, name: str, situations: int, days: int) -> _Nation:
        """Its files, and who gets a certificate."""
        folder = self._place / name
        folder.mkdir()
        server = Server(folder / "slapd", self._place, self._ports[name])
        made = _Nation(folder, situations, days, server)
        self._stack.callback(server.stop)

        def prepare() -> None:
            folders = [made.day(day) for day in range(days + 1)]
            work.run("generate", folders=folders, situations=situations, changed=self._scale.changed)
            made.certified += nation.certify(folders, self._scale.certificates, folder / "certificates")

        self._timed(f"prepare_{name}", prepare)
        return made

    def _asked(self, of: _Nation) -> dict[str, Any]:
        return {
            "files": of.day(0),
            "certificates": of.folder / "certificates",
            "scratch": of.folder,
            "base": BASE,
            "place": self._place,
            "port": of.server.port,
        }

    def _first_load(self, of: _Nation) -> None:
        """From files to a slapd that answers; what was there before goes."""
        of.server.stop()
        shutil.rmtree(of.server.state, ignore_errors=True)
        began = time.monotonic()
        done = work.run("load", state=of.server.state, **self._asked(of))
        of.server.start()
        with of.server.directory() as serving:
            if serving.resolve(of.certified[0]) is None:
                raise BenchError("a mailbox of the files is not in the directory that was loaded from them")
        of.load_seconds.append(time.monotonic() - began)
        of.loads.append(done)

    def _load(self, large: _Nation) -> list[Row]:
        if "load" not in self._only:
            self._first_load(large)
            self._count(large)
            return []
        ldif = self._place / "nation.ldif"
        self._say("load: the LDIF file for slapadd")
        work.run("ldif", target=ldif, **self._asked(large))
        alone = []
        for _ in range(self._scale.loads):
            alone.append(self._slapadd(ldif))
            self._first_load(large)
        ldif.unlink()
        self._count(large)
        n = self._scale.situations
        seconds = large.load_seconds
        return [
            row("first_load_s", seconds, "s from files to a slapd that answers", n),
            row(
                "first_load_vs_slapadd",
                seconds,
                "s; here less is better",
                n,
                reference="slapadd -q alone of the same entries in one LDIF file, same configuration",
                reference_values=alone,
            ),
            row("first_load_peak_mb", [each.peak_mb for each in large.loads], "MB (10**6), our process alone", n),
            row(
                "first_load_with_children_peak_mb",
                [each.with_children_peak_mb for each in large.loads],
                "MB (10**6), with slapadd and the pages of the database it maps",
                n,
            ),
            row("directory_mb", [large.server.octets / 1e6], "MB (10**6) on the disk", n),
        ]

    def _slapadd(self, ldif: Path) -> float:
        """Seconds of `slapadd -q` alone."""
        state = self._place / "alone"
        server = Server(state, self._place, self._ports["alone"])
        try:
            slapd = server.slapd
            slapd.prepare()
            command = [slapd.command()[0], "-T", "add", "-q", "-f", str(state / "slapd.conf"), "-b", BASE]
            began = time.monotonic()
            done = subprocess.run([*command, "-l", str(ldif)], check=False, capture_output=True)
            seconds = time.monotonic() - began
            if done.returncode:
                raise BenchError("slapadd refused the entries that the first load gives it")
            return seconds
        finally:
            shutil.rmtree(state, ignore_errors=True)

    def _count(self, of: _Nation) -> None:
        files = {kind: sum(1 for _ in nation.lines(path)) for kind, path in nation.files_of(of.day(0)).items()}
        known = set()
        for line in nation.lines(of.mssante):
            known.add(line.split("|", 2)[1].rpartition("@")[2])
        self.sizes = {
            "situations": files["practice"],
            "mailboxes": files["mssante"],
            "domains": len(known),
            "certificates": len(of.certified),
            "entries": of.loads[-1].answer["entries"],
        }

    def _resolve(self, large: _Nation) -> list[Row]:
        scale = self._scale
        asked = asking.addresses(large.mssante, large.certified)
        return asking.resolving(large.server, asked, scale.lookups, scale.runs)

    def _resolve_growth(self, small: _Nation, large: _Nation) -> list[Row]:
        scale = self._scale
        asked = tuple(asking.addresses(each.mssante, each.certified) for each in (small, large))
        value = asking.growing(small.server, large.server, (asked[0], asked[1]), scale.lookups, scale.runs)
        unit = f"times the median look-up among {scale.small:,} situations"
        return [row("resolve_growth", [value], unit, scale.situations)]

    def _search(self, large: _Nation) -> list[Row]:
        scale = self._scale
        asked = asking.questions(large.mssante, scale.searches * scale.runs)
        return asking.searching(large.server, asked, scale.searches, scale.runs)

    def _sync(self, of: _Nation) -> tuple[list[Row], list[float]]:
        """Each day's files in turn, odd days with nothing kept from the day before; then the last ones again. The rows,
        and the seconds of the odd days."""
        days = [self._synchronised(of, day) for day in range(1, of.days + 1)]
        fresh, usual = days[0::2], days[1::2]
        if not usual:  # asked for growth alone
            return [], [each.done.seconds for each in fresh]
        before = of.server.writes()
        again = self._work_on(of, of.days)
        written = of.server.writes() - before
        n = self._scale.situations
        changes = work.run("changes", folders=[of.day(day) for day in range(of.days + 1)]).answer["changes"]
        off = max(abs(day.writes - expected) for day, expected in zip(days, changes, strict=True))
        rows = [
            row("daily_sync_s", [each.done.seconds for each in fresh], "s, the first day after a first load", n),
            row("daily_sync_kept_s", [each.done.seconds for each in usual], "s, a day after such a day", n),
            row("sync_again_s", [again.seconds], "s, the same files again", n),
            row(
                "sync_peak_mb",
                [each.done.with_children_peak_mb for each in days],
                "MB (10**6), with the process that reads the directory",
                n,
            ),
            row("sync_alone_peak_mb", [each.done.peak_mb for each in days], "MB (10**6), without its children", n),
            row(
                "sync_writes",
                [each.writes for each in days],
                "operations that slapd's monitor counted",
                n,
                reference="entries that differ between the days' files, by their lines",
                reference_values=changes,
            ),
            row("sync_writes_off", [off], "operations too many or too few, worst day", n),
            row("sync_again_writes", [written], "operations, the same files again", n),
        ]
        return rows, [each.done.seconds for each in fresh]

    def _synchronised(self, of: _Nation, day: int) -> _Day:
        if day % 2:
            shutil.rmtree(of.folder / "sync" / "kept", ignore_errors=True)
        before = of.server.writes()
        done = self._work_on(of, day)
        return _Day(done, of.server.writes() - before)

    def _work_on(self, of: _Nation, day: int) -> work.Done:
        done = work.run(
            "sync",
            files=of.day(day),
            folder=of.folder / "sync",
            uri=of.server.slapd.ldaps_uri,
            bind_dn=of.server.slapd.admin_dn,
            ca=of.server.ca,
            now=nation.shift(nation.files_of(of.day(day))["mssante"].stem.rpartition("_")[2], 2),
        )
        report = done.answer["report"]
        if report["outcome"] != "applied" or report["refused"]:
            holds = ", ".join(hold["reason"] for hold in report["holds"])
            raise BenchError(f"a synchronisation was {report['outcome']}: {holds} {report['error']}".strip())
        return done

    def _sync_growth(self, small: _Nation, large: _Nation, seconds: Sequence[float]) -> list[Row]:
        _, taken = self._sync(small)
        sizes = [sum(1 for _ in nation.lines(nation.files_of(each.day(0))["practice"])) for each in (small, large)]
        exponent = math.log(min(seconds) / min(taken)) / math.log(sizes[1] / sizes[0])
        unit = f"exponent of time over size, from {sizes[0]:,} situations on (1 is linear)"
        return [row("sync_growth", [exponent], unit, self._scale.situations)]


@dataclass(frozen=True, slots=True)
class _Day:
    done: work.Done
    writes: int
    """Operations."""
