"""What every synchronisation did, kept as one small file each, and shown.

A report exists from the moment a run begins: one that says `running` while nobody runs is of a run that was killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from trust.store.durable import make_private_directory, write_durably

Outcome = Literal["running", "applied", "held", "interrupted", "planned"]
"""`planned`: compared only, on demand. `interrupted`: some of it is written; the next run writes the rest."""


class Hold(msgspec.Struct, frozen=True):
    """One reason to leave the directory as it is."""

    reason: str
    """`unreadable`, `empty`, `truncated`, `garbled`, `stale`, `future`, `missing`, `conflicts`, `loss`, `upheaval`,
    `emptied`."""
    text: str
    """One sentence for the person who decides."""


class RejectedLineReport(msgspec.Struct, frozen=True):
    line: int
    reason: str


class FileReport(msgspec.Struct, frozen=True):
    name: str
    published: str = ""
    """`YYYYMMDDhhmm`, from the file's name; empty when that does not say."""
    rows: int = 0
    rejected: dict[str, int] = {}
    """Lines left aside, by reason."""
    lines: list[RejectedLineReport] = []
    """The first thousand of them."""


class RunReport(msgspec.Struct, frozen=True):
    """One run. Numbers are entries unless said otherwise."""

    id: str
    """`20260902T040000.123456Z`, when it began."""
    outcome: Outcome
    ended: str = ""
    seconds: float = 0.0
    files: dict[str, FileReport] = {}
    """By kind: `mssante`, `practice`, `skills`, `diplomas`."""
    holds: list[Hold] = []
    accepted: list[str] = []
    """Reasons to hold that somebody accepted for this run."""
    error: str = ""
    """Why it was interrupted."""
    held_before: int = 0
    """What the directory held, national or not."""
    national_before: dict[str, int] = {}
    """National entries in it, by kind: `PER`, `ORG`, `APP`, `CAB`, `personnes`, `etablissements`."""
    to_add: int = 0
    to_change: int = 0
    to_remove: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    refused: dict[str, int] = {}
    """Entries the directory refused, by what it said."""
    refused_entries: list[tuple[str, str]] = []
    repeated_lines: int = 0
    conflicting_lines: int = 0
    """Lines that give an address to another holder than a line before: neither is believed."""
    conflicts: list[tuple[int, int]] = []
    """Line numbers of the first thousand: the line before, and the other."""
    frozen: int = 0
    """Left as they are because the files are not clear about them."""
    local: int = 0
    """Entries of the overlay that the register also has: left as they are."""
    kept: int = 0
    """No longer in the register, and kept because the overlay wrote into them or for their domain."""
    kept_entries: list[str] = []
    refreshed: int = 0
    """Left as they are because the FHIR API was asked about them later than the file was published."""
    handed_over: int = 0
    """Mailboxes with another holder than before that hold something of the overlay's: left as they are, for a person to
    remove what is the former holder's."""
    handed_over_entries: list[str] = []
    silent_days: int = 0
    """Days since the newest MSSanté file was published."""


class RunReports:
    """The reports in one folder."""

    def __init__(self, folder: Path, keep: int = 400) -> None:
        """`keep`: how many are kept; the last applied one always is."""
        self._folder = folder
        self._keep = keep

    def begin(self, now: datetime) -> RunReport:
        """The report of a run that begins now, not written yet."""
        known = self._names()
        while (name := now.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")) in known:
            now += timedelta(microseconds=1)
        return RunReport(id=name, outcome="running")

    def write(self, report: RunReport) -> None:
        """Durably, in place of an earlier one of the same run. Raises OSError."""
        make_private_directory(self._folder)
        write_durably(self._folder / f"{report.id}.json", msgspec.json.format(msgspec.json.encode(report), indent=1))
        names = sorted(self._names(), reverse=True)
        if len(names) > self._keep:
            applied = self.last_applied()
            for name in names[self._keep :]:
                if applied is None or name != applied.id:
                    (self._folder / f"{name}.json").unlink(missing_ok=True)

    def read(self, name: str) -> RunReport | None:
        """None when there is no such report, or it cannot be read."""
        if name not in self._names():
            return None
        try:
            return msgspec.json.decode((self._folder / f"{name}.json").read_bytes(), type=RunReport)
        except (OSError, msgspec.DecodeError):
            return None

    def newest_first(self) -> Iterator[RunReport]:
        for name in sorted(self._names(), reverse=True):
            report = self.read(name)
            if report is not None:
                yield report

    def last_applied(self) -> RunReport | None:
        return next((report for report in self.newest_first() if report.outcome == "applied"), None)

    def _names(self) -> set[str]:
        return {path.stem for path in self._folder.glob("*.json")} if self._folder.is_dir() else set()
