"""The trust list in force: refreshed while the gateway runs, never replaced by a worse one without a human.

Doors and targets ask the keeper; it answers from the last list it accepted. A refresh reads the source, verifies the
document (signature, signer, path, dates) and then either takes it, or holds it because it went back in time or lost too
much, or refuses it; in the two last cases the list in use stays. A held list is taken only by a person who names its
digest, so that nobody accepts what they did not see.

The last good copy lies in the state directory, with what was accepted, when and by whom: a restart needs neither the
network nor the configured file. Order on disk: document, journal, then the record that names the document; a crash in
between repeats the acceptance, and never loses one that is in the journal's past.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import structlog

from trust.certificates import CertificateValidator
from trust.journal import JournalEntry
from trust.list_changes import ListChanges, Losses, hold_reasons
from trust.list_source import ListSource, ListUnavailableError
from trust.names import DistinguishedName
from trust.pki_catalogue import LIST_NOT_HELD, LIST_OLD, LIST_SIGNER, LIST_UNAVAILABLE
from trust.refusals import Refused
from trust.store.durable import make_private_directory, write_durably
from trust.trustlist import MAX_BYTES, TrustList

log = structlog.get_logger(__name__)

LIST_DIRECTORY = "trust-list"
"""Its usual name below a gateway's state directory."""
_RECORD = "record.json"
BY_REFRESH = "refresh"
"""Who accepted a list that needed no human."""


class RefreshOutcome(Enum):
    """What became of one look at the source."""

    ACCEPTED = "accepted"
    UNCHANGED = "unchanged"
    HELD = "held"
    REFUSED = "refused"
    """It does not verify; nobody can accept it."""
    UNAVAILABLE = "unavailable"


class KeptList(msgspec.Struct, frozen=True):
    """The accepted list, as the record on disk says it."""

    digest: str
    generated_at: datetime
    accepted_at: datetime
    accepted_by: str
    rows: int
    domains: int
    operators: int


class HeldList(msgspec.Struct, frozen=True):
    """A verified list that waits for a human."""

    digest: str
    generated_at: datetime
    held_at: datetime
    reasons: tuple[str, ...]
    rows: int
    counts: dict[str, int]


class LastLook(msgspec.Struct, frozen=True):
    """The last time the source was looked at."""

    at: datetime
    outcome: RefreshOutcome
    code: str = ""
    """Of the catalogue, when the source was refused or unavailable."""
    text: str = ""
    detail: str = ""


class ListRecord(msgspec.Struct, frozen=True):
    """All the state directory keeps beside the documents."""

    kept: KeptList | None = None
    held: HeldList | None = None
    last: LastLook | None = None
    losses: Losses | None = None
    """Rows that went since a human last decided, within the last days."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """The result of one look at the source, or of an acceptance."""

    outcome: RefreshOutcome
    refused: Refused | None = None
    changes: ListChanges | None = None


def read_record(directory: Path) -> ListRecord | None:
    """What is recorded there, for whoever examines a state from outside; None when nothing readable is."""
    try:
        return msgspec.json.decode((directory / _RECORD).read_bytes(), type=ListRecord)
    except (OSError, msgspec.DecodeError):
        return None


class ListKeeper:
    """One gateway's trust list. Thread-safe; refreshing blocks, asking never does. Make it with `open`."""

    def __init__(
        self,
        directory: Path,
        source: ListSource,
        validator: CertificateValidator,
        signer: DistinguishedName,
        journal: Callable[[JournalEntry], object],
        clock: Callable[[], datetime],
        floor: datetime | None,
    ) -> None:
        self._directory = directory
        self._source = source
        self._validator = validator
        self._signer = signer
        self._journal = journal
        self._clock = clock
        self._looking = Lock()
        """Held from the source to the judgement: two looks at once would judge what the slower one brought last."""
        self._lock = Lock()
        """Of all below; never held while the network is waited for, so that nobody's decision waits for it."""
        self._record = read_record(directory) or ListRecord()
        kept = self._record.kept
        self._floor = kept.generated_at if kept else floor
        self._current: TrustList | None = None
        last = self._record.last
        self._told = f"{last.code} {last.detail}" if last else ""

    @classmethod
    def open(
        cls,
        directory: Path,
        source: ListSource,
        validator: CertificateValidator,
        signer: DistinguishedName,
        journal: Callable[[JournalEntry], object],
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        floor: datetime | None = None,
    ) -> ListKeeper | Refused:
        """The last good copy, refreshed once; or why there is no list to work with.

        `signer` is the subject the list's signer must have. `journal` writes one entry durably and may raise, and then
        nothing is accepted. `floor` is the date of a list accepted before there were copies. A record that cannot be
        read is not taken for a first start: with it the measure of "back in time" would be gone. Raises OSError when
        the state directory cannot be written.
        """
        make_private_directory(directory)
        if (directory / _RECORD).exists() and read_record(directory) is None:
            why = f"{directory / _RECORD} cannot be read: restore it, or remove {directory} to begin anew"
            return Refused(LIST_UNAVAILABLE, why)
        for unfinished in directory.glob(".*.tmp"):  # of a process that was killed while it wrote
            unfinished.unlink(missing_ok=True)
        keeper = cls(directory, source, validator, signer, journal, clock, floor)
        keeper._load_kept()
        first = keeper.refresh()
        if keeper._current is None:
            return first.refused or Refused(LIST_OLD)
        return keeper

    @property
    def current(self) -> TrustList:
        """The list in force: take it once and ask it everything about one decision."""
        assert self._current is not None  # noqa: S101 - `open` gives nobody a keeper without a list
        return self._current

    def operators_of(self, domain: str) -> frozenset[DistinguishedName]:
        return self.current.operators_of(domain)

    def is_trusted(self, domain: str) -> bool:
        return self.current.is_trusted(domain)

    def is_operator(self, name: DistinguishedName) -> bool:
        return self.current.is_operator(name)

    @property
    def record(self) -> ListRecord:
        """What is accepted, held, and was last seen."""
        return self._record

    def refresh(self) -> Refresh:
        """Look at the source once. Raises what `journal` raises, and OSError; the list in use stays then."""
        with self._looking:
            try:
                xml: bytes | Refused = self._source()
            except ListUnavailableError as error:
                xml = Refused(LIST_UNAVAILABLE, str(error))
            with self._lock:
                return self._found(xml, self._clock())

    def accept(self, digest: str, by: str) -> Refresh | Refused:
        """Take the held list of exactly this digest into use, once it still verifies; `by` says who decided."""
        with self._lock:
            now = self._clock()
            loaded = self._held(digest, now)
            if isinstance(loaded, Refused):
                return loaded
            changes = ListChanges.between(self._current, loaded)
            self._take(loaded, None, changes, None, now, by)
            return Refresh(RefreshOutcome.ACCEPTED, None, changes)

    def held_changes(self) -> tuple[HeldList, ListChanges] | Refused:
        """What taking the held list would change."""
        with self._lock:
            held = self._record.held
            loaded = self._held(held.digest, self._clock()) if held else None
            if held is None or loaded is None:
                return Refused(LIST_NOT_HELD, "none is held")
            if isinstance(loaded, Refused):
                return loaded
            return held, ListChanges.between(self._current, loaded)

    def describe(self) -> dict[str, Any]:
        """The list in force, the held one and the last look, as JSON can hold them."""
        current, record = self.current, self._record
        signer = current.judge_signer(self._validator, self._clock())
        return {
            "in_use": {
                **msgspec.to_builtins(record.kept),
                "unreadable": list(current.unreadable[:20]),
                "unreadable_count": len(current.unreadable),
                "signer": str(self._signer),
                "signer_not_after": current.signer.not_valid_after_utc.isoformat(),
                "signer_believed": signer.ok,
                "signer_detail": "" if signer.ok else f"{signer.rule}: {signer.detail}",
            },
            "held": msgspec.to_builtins(record.held),
            "last_look": msgspec.to_builtins(record.last),
        }

    # Below, the lock is held.

    def _load_kept(self) -> None:
        """The copy is verified as on the day it was accepted: its signer's certificate may have ended since.

        Nor does a restart without network and without what was known of revocation take it away.
        """
        kept = self._record.kept
        if kept is None:
            return
        loaded = self._load_document(kept.digest, kept.accepted_at, kept=True)
        if isinstance(loaded, Refused):
            log.error("trust.list.kept-copy-lost", code=loaded.refusal.code, detail=loaded.detail)
        else:
            self._current = loaded

    def _load_document(self, digest: str, at: datetime, *, kept: bool = False) -> TrustList | Refused:
        try:
            with self._document(digest).open("rb") as file:
                xml = file.read(MAX_BYTES + 1)
        except OSError as error:
            return Refused(LIST_UNAVAILABLE, f"{self._document(digest).name}: {error.strerror}")
        if sha256(xml).hexdigest() != digest:
            return Refused(LIST_UNAVAILABLE, f"{self._document(digest).name} was altered")
        return TrustList.load(xml, self._validator, at, signer=self._signer, kept=kept)

    def _held(self, digest: str, now: datetime) -> TrustList | Refused:
        held = self._record.held
        if held is None or held.digest != digest.strip().lower():
            return Refused(LIST_NOT_HELD, "" if held else "none is held")
        return self._load_document(held.digest, now)

    def _found(self, xml: bytes | Refused, now: datetime) -> Refresh:
        """What becomes of what the source has."""
        if isinstance(xml, Refused):
            return self._failed(now, RefreshOutcome.UNAVAILABLE, xml)
        current = self._current
        if current is not None and sha256(xml).hexdigest() == current.digest:
            verdict = current.judge_signer(self._validator, now)
            if not verdict.ok:
                refused = Refused(LIST_SIGNER, f"{verdict.rule}: {verdict.detail}")
                return self._failed(now, RefreshOutcome.REFUSED, refused)
            # whatever was held has been withdrawn at its source
            last = LastLook(now, RefreshOutcome.UNCHANGED)
            self._write(msgspec.structs.replace(self._record, held=None, last=last))
            self._told = ""
            return Refresh(RefreshOutcome.UNCHANGED)
        loaded = TrustList.load(xml, self._validator, now, signer=self._signer)
        if isinstance(loaded, Refused):
            return self._failed(now, RefreshOutcome.REFUSED, loaded)
        changes = ListChanges.between(current, loaded)
        losses = self._record.losses
        reasons = hold_reasons(current, self._floor, loaded, changes, losses, now)
        if not reasons:
            self._take(loaded, xml, changes, changes.losses(losses, now), now, BY_REFRESH)
            return Refresh(RefreshOutcome.ACCEPTED, None, changes)
        if current is None:
            refused = Refused(LIST_OLD, "; ".join(reasons))
            return self._failed(now, RefreshOutcome.REFUSED, refused)
        self._hold(loaded, xml, changes, reasons, now)
        return Refresh(RefreshOutcome.HELD, None, changes)

    def _take(
        self,
        loaded: TrustList,
        xml: bytes | None,
        changes: ListChanges,
        losses: Losses | None,
        now: datetime,
        by: str,
    ) -> None:
        if xml is not None:
            write_durably(self._document(loaded.digest), xml)
        held = self._record.held
        details = changes.journal_details() | {"generated_at": loaded.generated_at.isoformat()}
        if self._current is not None:
            details["replaces"] = self._current.digest
        reason = "; ".join(held.reasons) if held and held.digest == loaded.digest else ""
        self._journal(JournalEntry(by, "trust.list.accepted", "done", "", loaded.digest, reason, "", details))
        kept = KeptList(
            loaded.digest, loaded.generated_at, now, by, loaded.rows, len(loaded.domains), len(loaded.operators)
        )
        self._write(ListRecord(kept, None, LastLook(now, RefreshOutcome.ACCEPTED), losses))
        self._current, self._floor, self._told = loaded, loaded.generated_at, ""
        log.info("trust.list.accepted", digest=loaded.digest, by=by, rows=loaded.rows, **changes.counts())

    def _hold(
        self, loaded: TrustList, xml: bytes, changes: ListChanges, reasons: tuple[str, ...], now: datetime
    ) -> None:
        held = self._record.held
        if held is None or held.digest != loaded.digest:
            write_durably(self._document(loaded.digest), xml)
            details = changes.journal_details() | {"generated_at": loaded.generated_at.isoformat()}
            self._journal(
                JournalEntry(BY_REFRESH, "trust.list.held", "held", "", loaded.digest, "; ".join(reasons), "", details)
            )
            log.error("trust.list.held", digest=loaded.digest, reasons=reasons)
            held = HeldList(loaded.digest, loaded.generated_at, now, reasons, loaded.rows, changes.counts())
        else:
            held = msgspec.structs.replace(held, reasons=reasons, counts=changes.counts())
        self._write(msgspec.structs.replace(self._record, held=held, last=LastLook(now, RefreshOutcome.HELD)))

    def _failed(self, now: datetime, outcome: RefreshOutcome, refused: Refused) -> Refresh:
        """The list in use and a held one stay. Journaled once, not at every look."""
        told = f"{refused.refusal.code} {refused.detail}"
        if told != self._told and outcome is RefreshOutcome.REFUSED:
            details = {"code": refused.refusal.code, "detail": refused.detail[:300]}
            self._journal(JournalEntry(BY_REFRESH, "trust.list.refused", "refused", details=details))
        self._told = told
        log.warning("trust.list.not-refreshed", code=refused.refusal.code, detail=refused.detail)
        last = LastLook(now, outcome, refused.refusal.code, refused.refusal.text, refused.detail)
        self._write(msgspec.structs.replace(self._record, last=last))
        return Refresh(outcome, refused)

    def _document(self, digest: str) -> Path:
        return self._directory / f"{digest}.xml"

    def _write(self, record: ListRecord) -> None:
        """The record, then away with documents it no longer names."""
        write_durably(self._directory / _RECORD, msgspec.json.encode(record))
        self._record = record
        named = {self._document(each.digest) for each in (record.kept, record.held) if each}
        for path in self._directory.glob("*.xml"):
            if path not in named:
                with contextlib.suppress(OSError):
                    path.unlink()
