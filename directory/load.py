"""The first load: the national files and the local overlay joined into the entries of an empty directory.

Streams, whatever the size of the files (`directory.joining`). What stays in memory is a set of addresses.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Collection, Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from directory import schema
from directory.entries import from_recipient
from directory.guards import FINAL, Limits, judge_files
from directory.joining import Joiner, national_entries
from directory.ldif import LdifEntry
from directory.national import Examination, NationalFiles, examine
from directory.packed import ExtractionError
from directory.records import Recipient
from directory.register import structure_id_nat
from directory.runs import Hold
from directory.wanting import keeping

__all__ = ["HeldFilesError", "LoadReport", "entries", "judged", "structure_id_nat"]


class HeldFilesError(Exception):
    """A person has to look at these files first; the report says why."""


@dataclass(slots=True)
class LoadReport:
    """What happened to the lines of the files, filled while `entries` is read."""

    mailboxes: int = 0
    """National mailboxes that became entries."""
    duplicates: int = 0
    """Lines whose address another line of the same holder already had."""
    conflicts: int = 0
    """Lines that give an address to another holder than a line before: neither is believed."""
    overlaid: int = 0
    """National mailboxes that received certificates of the overlay."""
    situations: int = 0
    """Lines of the practice file that were read."""
    others: int = 0
    """Professionals and structures that became entries."""
    examination: Examination | None = None
    """All that the files say of themselves; there before the first entry is."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected lines by file and reason: `mssante.encoding`, `practice.columns`."""
    holds: tuple[Hold, ...] = ()
    """What speaks against these files, accepted or not (`judged`)."""


def entries(
    mssante: Path,
    practice: Path | None,
    base: str,
    overlay: Iterable[Recipient] = (),
    report: LoadReport | None = None,
    *,
    skills: Path | None = None,
    diplomas: Path | None = None,
    scratch: Path | None = None,
    published: tuple[tuple[str, str], ...] = (),
    kept: Path | None = None,
) -> Generator[LdifEntry, None, None]:
    """The directory's entries, each DN once, none the parent of another.

    Every mailbox of `mssante`, completed from the situations in `practice`; every professional and structure that
    `practice` names, with what `skills` and `diplomas` say of them; the mailboxes of the local `overlay`. An overlay
    mailbox whose address the register also has only adds its certificates, marked as local: the identity stays the
    register's. `scratch` is a folder with room for twice the files; None: the system's for temporary files.
    `kept` is where the first synchronisation finds what was made here (`kept` in its folder); None: nowhere. Raises
    `ExtractionError` when a file cannot be read at all, OSError when the scratch is full.
    """
    report = report if report is not None else LoadReport()
    local = {recipient.address.lower(): recipient for recipient in overlay}
    with tempfile.TemporaryDirectory(prefix="relais-join-", dir=scratch) as folder, ExitStack() as stack:
        with Joiner(Path(folder)) as joiner:
            found = examine(NationalFiles(mssante, practice, skills, diplomas, published), joiner.take)
        if found.unreadable:
            raise ExtractionError(found.unreadable)
        report.examination = found
        report.duplicates = found.repeated
        report.conflicts = found.conflicts
        report.situations = found.files["practice"].rows if "practice" in found.files else 0
        for kind, facts in found.files.items():
            report.rejected.update({f"{kind}.{reason}": count for reason, count in facts.rejected.items()})
        keep = stack.enter_context(keeping(kept, base)) if kept is not None else lambda *_: None
        for entry in national_entries(Path(folder), base, found.addresses | found.identifiers, found.twins, keep):
            if "mail" not in entry.attributes:
                report.others += 1
                yield entry
                continue
            report.mailboxes += 1
            recipient = local.pop(entry.attributes["mail"][0].decode("ascii"), None)
            if recipient is None:
                yield entry
            else:
                report.overlaid += 1
                yield _overlaid(entry, from_recipient(recipient, base))
    for recipient in local.values():
        yield from_recipient(recipient, base)


def judged(
    files: NationalFiles,
    base: str,
    report: LoadReport,
    *,
    limits: Limits,
    accept: Collection[str],
    now: datetime,
    scratch: Path | None = None,
    kept: Path | None = None,
) -> Generator[LdifEntry, None, None]:
    """As `entries`, of files that nothing speaks against but what is in `accept` (`directory.guards`).

    Raises `HeldFilesError` before the first entry, and what `entries` raises.
    """
    made = entries(
        files.mssante,
        files.practice,
        base,
        report=report,
        skills=files.skills,
        diplomas=files.diplomas,
        scratch=scratch,
        published=files.published,
        kept=kept,
    )
    with closing(made):
        first = next(made, None)
        assert report.examination is not None  # noqa: S101 - looked at before the first entry
        report.holds = tuple(judge_files(report.examination, (), now, limits))
        if first is None or any(hold.reason in FINAL or hold.reason not in accept for hold in report.holds):
            raise HeldFilesError
        yield first
        yield from made


def _overlaid(national: LdifEntry, local: LdifEntry) -> LdifEntry:
    """The register's entry with the overlay's certificates."""
    certificates = local.attributes.get(schema.CERTIFICATE)
    if certificates is None:
        return national
    added = {schema.CERTIFICATE: certificates, schema.LOCAL_ATTRIBUTES: (b"userCertificate",)}
    return LdifEntry(national.dn, dict(national.attributes) | added)
