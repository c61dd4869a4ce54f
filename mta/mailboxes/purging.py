"""What is deleted when the retention of a closed mailbox has ended: its mail, and with it whatever opens its mail.

Its row stays, so that its address is never given to somebody else and senders go on being told why. Exchanges of
patients in which nobody has written for as long as a message is remembered at all are forgotten too. Each machine looks
at the mail it has itself; the journal is told once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection

from mta.mailboxes.exchanges import Exchanges
from mta.mailboxes.registry import Entry, Registry
from mta.retention import DAY, Batch
from trust.journal import Journal, JournalEntry
from trust.store.database import Database

_GOING = ".purged"
"""What a home is called while it goes: never again a mailbox, however the deletion ends."""


@dataclass(frozen=True, slots=True)
class MailboxPeriods:
    """Seconds."""

    closed: float = 365 * DAY
    """Since a mailbox was closed."""
    exchange: float = 730 * DAY
    """Since a professional's last mail in a patient's exchange."""


class MailboxPurge:
    """As `mta.retention.Retention`: synchronous, one thread at a time, raises what the database and the disk raise, and
    asked again goes on where it was."""

    def __init__(
        self,
        registry: Registry,
        exchanges: Exchanges,
        database: Database,
        journal: Journal,
        home_of: Callable[[str], Path | None],
        periods: MailboxPeriods,
        *,
        forget: Sequence[Callable[[str], object]] = (),
        clock: Callable[[], float] = time.time,
        batch: int = 100,
    ) -> None:
        """`home_of`: where the mail of an address is on this machine. `forget`: what else to do, before its mail goes,
        for an address that is purged (end its sessions, destroy its key); done again when it was interrupted."""
        self._registry = registry
        self._exchanges = exchanges
        self._database = database
        self._journal = journal
        self._home_of = home_of
        self._periods = periods
        self._forget = tuple(forget)
        self._clock = clock
        self._batch = batch
        self._steps = self._round()

    def turn(self) -> Batch:
        """See `mta.retention.Retention.turn`."""
        try:
            purged = next(self._steps)
        except StopIteration:
            self._steps = self._round()
            return Batch(0, more=False)
        except BaseException:
            self._steps = self._round()
            raise
        return Batch(purged, more=True)

    def _round(self) -> Iterator[int]:
        now, after = self._clock(), ""
        while over := self._closed(now - self._periods.closed, after):
            yield sum(self._purge(each) for each in over)
            after = over[-1].id
        while forgotten := self._exchanges.purge(now - self._periods.exchange, self._batch):
            yield forgotten

    def _closed(self, before: float, after: str) -> list[Entry]:
        return self._database.read(
            lambda connection: self._registry.closed_before(connection, before, self._batch, after)
        )

    def _purge(self, entry: Entry) -> int:
        """Whether there was something. It is marked first: from then on it cannot be opened again."""
        home = self._home_of(entry.record.address)
        there = home is not None and (home.exists() or _going(home).exists())
        if entry.purged_at is not None and not there:
            return 0
        if not self._database.transact(lambda connection: self._mark(connection, entry)):
            return 0
        for each in self._forget:
            each(entry.record.address)
        if home is not None:
            _remove(home)
        return 1

    def _mark(self, connection: Connection, entry: Entry) -> bool:
        """False when it was opened again meanwhile."""
        if self._registry.mark_purged(connection, entry, self._clock()):
            note = JournalEntry("mailboxes", "mailbox.purged", "done", object_id=entry.id, purpose="retention")
            self._journal.append(connection, note)
        return self._registry.still_closed(connection, entry)


def _remove(home: Path) -> None:
    """Under another name first: a deletion that is interrupted leaves no half of a mailbox."""
    going = _going(home)
    if home.exists():
        if going.exists():
            shutil.rmtree(going)
        home.rename(going)
    if going.exists():
        shutil.rmtree(going)


def _going(home: Path) -> Path:
    return home.with_name(home.name + _GOING)
