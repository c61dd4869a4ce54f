"""When a publication is not believed: what has to be true of the files, and of the difference they would make.

Each guard gives the reason it holds, never an exception. A person may accept a reason for one run; a file that cannot
be read is nobody's to accept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from directory.differences import Plan
from directory.national import Examination
from directory.runs import Hold, RunReport

FINAL = frozenset({"unreadable", "empty"})
"""Reasons that nobody can accept: there is nothing to apply."""
ACCEPTABLE = ("truncated", "garbled", "stale", "future", "missing", "conflicts", "loss", "upheaval", "emptied")

_FILE_BEHIND = timedelta(hours=3)
_FEW_LINES = 10
_FEW_LEAVING = 2
"""What is never too much, however small the directory: one person who leaves takes a mailbox along."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a publication may differ from what is expected."""

    loss_percent: float = 5.0
    """Of the national entries, of those of each kind, and of the mail domains, that may leave in one run."""
    change_percent: float = 50.0
    """Of the national entries that may change in one run."""
    rejected_percent: float = 1.0
    """Of the lines of one file that may be unusable."""
    conflicts: int = 500
    """Addresses given to two holders; more, and the whole file is held, not only they."""
    oldest_days: float = 30.0
    """How long ago a file may have been published."""
    refill: int = 20_000
    """Entries that may be written online into a directory that was full before: one by one takes long, and until the
    last is there, mailboxes that exist are answered to be unknown, and their mail goes back."""


def published_at(text: str) -> datetime | None:
    """The moment in the name of a file; taken for UTC, which is right to two hours."""
    try:
        return datetime.strptime(text, "%Y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError:
        return None


def settled_before(text: str) -> str:
    """What the FHIR API said later than this (`YYYYMMDDhhmm`, UTC) is newer than a file published at `text`.

    The name of a file is in local time, and what it holds is older than its name. Empty when it does not say.
    """
    moment = published_at(text)
    return (moment - _FILE_BEHIND).strftime("%Y%m%d%H%M") if moment else ""


def judge_files(
    examination: Examination, earlier: Iterable[RunReport], now: datetime, limits: Limits
) -> Iterator[Hold]:
    """Why these files are held, before they are compared with anything."""
    if examination.unreadable:
        yield Hold("unreadable", examination.unreadable)
        return
    last = last_files(earlier)
    for kind, facts in examination.files.items():
        lines = facts.rows + sum(facts.rejected.values())
        if not facts.rows:
            yield Hold("empty", f"{facts.name} ({kind}) has no usable line")
            continue
        if facts.rejected["truncated"]:
            yield Hold("truncated", f"{facts.name} ({kind}) ends in the middle of a line")
        unusable = sum(facts.rejected.values())
        if unusable > max(_FEW_LINES, lines * limits.rejected_percent / 100) or unusable > facts.rows:
            yield Hold("garbled", f"{unusable} of {lines} lines of {facts.name} ({kind}) are unusable")
        moment = published_at(facts.published)
        if moment is None:
            continue
        if (age := (now - moment).total_seconds() / 86_400) > limits.oldest_days:
            yield Hold("stale", f"{facts.name} ({kind}) was published {age:.0f} days ago")
        elif age < -1:
            yield Hold("future", f"{facts.name} ({kind}) is dated in the future")
        if facts.published < last.get(kind, ""):
            yield Hold("stale", f"{facts.name} ({kind}) is older than the one applied before, of {last[kind]}")
    for kind in last:
        if kind not in examination.files:
            yield Hold("missing", f"there is no {kind} file, and there was one before")
    if examination.conflicts > limits.conflicts:
        yield Hold("conflicts", f"{examination.conflicts} lines give an address to another holder than a line before")


def judge_difference(plan: Plan, held: int, earlier: Iterable[RunReport], limits: Limits) -> Iterator[Hold]:
    """Why this difference is not applied. `held`: entries of all kinds in the directory, its branches included."""
    total = sum(plan.held.values())
    if held == 0 and plan.added > limits.refill and any(report.outcome == "applied" for report in earlier):
        yield Hold("emptied", f"the directory is empty and was not; a first load writes {plan.added} entries at once")
    if plan.removed > max(_FEW_LEAVING, total * limits.loss_percent / 100):
        yield Hold("loss", f"{plan.removed} of {total} entries would be removed")
    else:
        yield from _kinds(plan.held, plan.leaving, limits.loss_percent)
    domains = len(plan.domains_held)
    if (lost := len(plan.domains_held - plan.domains_staying)) > max(_FEW_LINES, domains * limits.loss_percent / 100):
        yield Hold("loss", f"{lost} of {domains} mail domains would lose their last mailbox")
    if plan.changed > max(_FEW_LINES, total * limits.change_percent / 100):
        yield Hold("upheaval", f"{plan.changed} of {total} entries would be changed")


def last_files(earlier: Iterable[RunReport]) -> dict[str, str]:
    """By kind of file, when the newest one was published of which anything was written."""
    newest: dict[str, str] = {}
    for report in earlier:
        if report.outcome in ("applied", "interrupted", "running") and not report.holds:
            for kind, file in report.files.items():
                newest[kind] = max(newest.get(kind, ""), file.published)
    return newest


def _kinds(held: Counter[str], leaving: Mapping[str, int], percent: float) -> Iterator[Hold]:
    """Each kind on its own; of fewer than ten, only the loss of all is one."""
    for kind, count in leaving.items():
        most = max(_FEW_LEAVING, held[kind] * percent / 100) if held[kind] >= _FEW_LINES else held[kind] - 1
        if count > max(_FEW_LEAVING, most):
            yield Hold("loss", f"{count} of {held[kind]} entries of kind {kind} would be removed")
