"""In step with the register: its files read, joined, compared with what the directory holds, the difference written.

One run: look for the newest files; read them all once, judging them; meanwhile another process reads the directory;
compare; judge the difference; write additions, changes, removals. Nothing is written before everything was judged. A
run that is killed leaves a directory that is partly up to date and a report that says `running`: the next run compares
again and writes what is left. Nothing is remembered about the directory between runs, because it may have been
restored, or changed by somebody else: it is asked.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

import msgspec

from directory.administration import (
    AdministrationError,
    Administrator,
    AdministratorOptions,
    StoppedError,
    Written,
)
from directory.differences import Plan, Protection, plan
from directory.guards import FINAL, Limits, judge_difference, judge_files, published_at, settled_before
from directory.holdings import read
from directory.joining import Joiner
from directory.national import Examination, NationalFiles, examine, find
from directory.packed import ExtractionError
from directory.runs import FileReport, Hold, RejectedLineReport, RunReport, RunReports
from directory.wanting import write_wanted
from trust.store.durable import make_private_directory

Progress = Callable[[str, int, int], None]
"""(step, done, of how many; 0 when that is not known). Steps: `files`, `entries`, `directory`, `compare`, `write`."""


_FEW = 10


class BusyError(Exception):
    """Another synchronisation of the same folder is under way."""


@dataclass(frozen=True, slots=True)
class SynchronisationOptions:
    """What to keep in step, and within which limits."""

    administrator: AdministratorOptions
    folder: Path
    """For reports, for what a run writes down meanwhile, and for what it keeps for the next: about 4 kB per person."""
    own_domains: Collection[str] = ()
    """Domains of the house: their mailboxes are never removed because the register has them no more. Lower case."""
    limits: Limits = field(default_factory=Limits)
    keep_reports: int = 400
    apart: bool = True
    """Read the directory in a process of its own; False: in a thread, which is sooner done with a small one."""


class Synchronisation:
    """Runs, one at a time per folder, also between processes."""

    def __init__(self, options: SynchronisationOptions) -> None:
        self._options = options
        self.reports = RunReports(options.folder / "runs", options.keep_reports)

    def run(
        self,
        paths: Iterable[Path],
        *,
        accept: Collection[str] = (),
        dry: bool = False,
        progress: Progress = lambda step, done, of: None,
        stop: Event | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> RunReport:
        """Bring the directory in step with the newest files among `paths` (files or folders).

        `accept`: reasons to hold (`directory.guards.ACCEPTABLE`) that are accepted this once. `dry`: compare and
        report, write nothing. Once `stop` is set the run ends at the next entry, `interrupted`. What goes wrong is in
        the report. Raises `BusyError`; OSError when the folder cannot be written.
        """
        make_private_directory(self._options.folder)
        with _alone(self._options.folder / "lock"), _scratch(self._options.folder / "work") as work, _no_collections():
            return _Run(self._options, self.reports, work, frozenset(accept), dry, progress, stop or Event(), now).go(
                list(paths)
            )


@dataclass(slots=True)
class _Run:
    options: SynchronisationOptions
    reports: RunReports
    work: Path
    accept: frozenset[str]
    dry: bool
    progress: Progress
    stop: Event
    now: Callable[[], datetime]
    began: float = field(default_factory=time.monotonic)

    def go(self, paths: list[Path]) -> RunReport:
        report = msgspec.structs.replace(self.reports.begin(self.now()), accepted=sorted(self.accept))
        self.reports.write(report)
        written = Written()
        try:
            report = self._judged(report, paths, written)
        except StoppedError:
            report = self._ended(report, "interrupted", written, error="the process was to end")
        except AdministrationError as error:
            report = self._ended(report, "interrupted", written, error=str(error))
        except OSError as error:
            shutil.rmtree(self.work, ignore_errors=True)  # the disk may be full of it, and the report needs room
            self._ended(report, "interrupted", written, error=f"{error.strerror or type(error).__name__}")
            raise
        return report

    def _judged(self, report: RunReport, paths: list[Path], written: Written) -> RunReport:
        try:
            files = find(paths)
        except ExtractionError as error:
            return self._ended(report, "held", written, holds=[Hold("unreadable", str(error))])
        except FileNotFoundError as error:
            return self._ended(report, "held", written, holds=[Hold("unreadable", f"{error.filename} does not exist")])
        reading = read(self.options.administrator, self.work / "held", self.options.apart)
        try:
            examination = self._examine(files)
            report = self._with_files(report, examination)
            holds = list(judge_files(examination, self.reports.newest_first(), self.now(), self.options.limits))
            if self._holding(holds):
                return self._ended(report, "held", written, holds=holds)
            managed = write_wanted(
                self.work / "lines",
                self.work / "wanted",
                self.options.administrator.base,
                self.options.folder / "kept",
                lambda done: self._seen("entries", done),
            )
            shutil.rmtree(self.work / "lines")
            while not reading.wait(0.2):
                self._seen("directory", reading.entries)
            held = reading.result()
        finally:
            reading.cancel()
        self.progress("compare", 0, 0)
        made = plan(
            self.work / "held", self.work / "wanted", self.work / "plan", managed, self._protection(examination)
        )
        report = _with_plan(report, made, held)
        holds += judge_difference(made, held, self.reports.newest_first(), self.options.limits)
        report = msgspec.structs.replace(report, holds=holds)
        if self._holding(holds):
            return self._ended(report, "held", written)
        if self.dry:
            return self._ended(report, "planned", written)
        self.reports.write(report)
        try:
            self._write(made, written)
        except (AdministrationError, StoppedError) as error:
            return self._ended(report, "interrupted", written, error=str(error) or "the process was to end")
        if written.refused["NO_SUCH_OBJECT"] > max(_FEW, made.writes / 100):
            return self._ended(report, "interrupted", written, error="the directory lost entries meanwhile")
        return self._ended(report, "applied", written)

    def _examine(self, files: NationalFiles) -> Examination:
        with Joiner(self.work / "lines") as joiner:
            return examine(files, joiner.take, lambda lines: self._seen("files", lines))

    def _seen(self, step: str, done: int) -> None:
        self.progress(step, done, 0)
        if self.stop.is_set():
            raise StoppedError

    def _write(self, made: Plan, written: Written) -> None:
        administrator = Administrator(self.options.administrator, self.stop)
        try:
            if made.added:
                administrator.make_base()
            administrator.apply(made, written, lambda done: self.progress("write", done, made.writes))
        finally:
            administrator.close()

    def _protection(self, examination: Examination) -> Protection:
        return Protection(
            frozenset(examination.addresses),
            frozenset(examination.identifiers),
            frozenset(self.options.own_domains),
            settled_before(examination.files["mssante"].published),
        )

    def _holding(self, holds: list[Hold]) -> bool:
        return any(hold.reason in FINAL or hold.reason not in self.accept for hold in holds)

    def _with_files(self, report: RunReport, examination: Examination) -> RunReport:
        described = {
            kind: FileReport(
                name=facts.name,
                published=facts.published,
                rows=facts.rows,
                rejected=dict(facts.rejected),
                lines=[RejectedLineReport(row.number, row.reason) for row in facts.examples],
            )
            for kind, facts in examination.files.items()
        }
        moment = published_at(described["mssante"].published) if "mssante" in described else None
        return msgspec.structs.replace(
            report,
            files=described,
            repeated_lines=examination.repeated,
            conflicting_lines=examination.conflicts,
            conflicts=examination.conflict_lines,
            silent_days=max(0, (self.now() - moment).days) if moment else 0,
        )

    def _ended(self, report: RunReport, outcome: str, written: Written, **more: object) -> RunReport:
        ended = msgspec.structs.replace(
            report,
            outcome=outcome,
            ended=self.now().astimezone(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self.began, 3),
            added=written.added,
            changed=written.changed,
            removed=written.removed,
            refused=dict(written.refused),
            refused_entries=written.refused_examples,
            **more,
        )
        self.reports.write(ended)
        return ended


def _with_plan(report: RunReport, made: Plan, held: int) -> RunReport:
    return msgspec.structs.replace(
        report,
        held_before=held,
        national_before=dict(made.held),
        to_add=made.added,
        to_change=made.changed,
        to_remove=made.removed,
        unchanged=made.unchanged,
        frozen=made.frozen,
        local=made.local,
        kept=made.kept,
        kept_entries=made.kept_examples,
        refreshed=made.refreshed,
        handed_over=made.handed_over,
        handed_over_entries=made.handed_over_examples,
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"another synchronisation uses {path.parent}") from None
    else:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Millions of short-lived rows hold no cycles: looking for some is a fifth of the work."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards; what a killed run left in it goes first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
