"""The heads leave the machine: into an append-only file, to syslog, wherever the operator wants to find them again.

A head is kept before it is published, and a destination is called served only after it took it. Killed in between, the
next start publishes again; whoever compares heads does not mind one twice. A destination that cannot be reached delays
only itself, is tried again, and is named until it answers.

A file knows best what it holds: when a head near its end is not one of this database, an older database was put back,
or the file is another's; when it holds none of ours any more, somebody emptied it or put it aside. Both are said, and
the first for as long as the process lives and the file's end tells it: publishing goes on meanwhile, and what was found
does not become untrue by that.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, insert, select, update

from trust.checkpoints import Checkpoints
from trust.kept_heads import Checkpoint, checkpoints_numbered
from trust.signed_heads import MAX_LINE, SignedHead, parse_head, parse_line
from trust.store.database import Database
from trust.store.durable import sync_directory
from trust.syslog import SyslogAddress, SyslogHeader
from trust.tables import journal_publications

_AT_ONCE = 100
_LOOKED_AT = MAX_LINE
"""Octets at the end of a file that are looked at."""
_HEADS_LOOKED_AT = 200
"""Lines of them."""
_PRIORITY = 10 * 8 + 5
"""Facility 10 (security and authorisation), severity notice."""


class Destination(Protocol):
    """Somewhere heads are published. Used by one thread at a time."""

    @property
    def name(self) -> str:
        """What people call it; also what its progress is kept under."""
        ...

    def newest(self, journal: str) -> list[SignedHead] | None:
        """The newest heads of that journal it holds, oldest first; None when it cannot tell. Raises OSError."""
        ...

    def publish(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Durable, as far as the destination knows, when this returns. Raises OSError."""
        ...


class HeadFile:
    """One line a head, appended and synced; made with mode 0644, for it holds nothing secret.

    On a medium that is not this machine's, or at least with `chattr +a`, it is what `relais journal verify --heads`
    compares with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def newest(self, journal: str) -> list[SignedHead]:
        try:
            with self._path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(end - _LOOKED_AT, 0))
                lines = file.read(_LOOKED_AT).split(b"\n")
        except FileNotFoundError:
            return []
        found: list[SignedHead] = []
        for line in lines[-_HEADS_LOOKED_AT:]:
            signed = parse_line(line.decode("ascii", "replace"))
            head = parse_head(signed.text) if signed else None
            if signed is not None and head is not None and head.journal == journal:
                found.append(signed)
        return found

    def publish(self, checkpoints: Sequence[Checkpoint]) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o644)
        try:
            end = os.fstat(descriptor).st_size
            # Killed in the middle of a line: it stays, harmless, on a line of its own.
            broken = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
            data = b"\n" * broken + b"".join(each.signed.line().encode() + b"\n" for each in checkpoints)
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if end == 0:
            sync_directory(self._path.parent)


class HeadSyslog:
    """One message a head, as its line."""

    def __init__(self, address: SyslogAddress, host: str) -> None:
        self._address = address
        self._header = SyslogHeader(_PRIORITY, host, "relais", "journal-head")
        self.name = address.url

    def newest(self, journal: str) -> None:
        return None

    def publish(self, checkpoints: Sequence[Checkpoint]) -> None:
        now = datetime.now(UTC)
        self._address.send(self._header.frame(each.signed.line().encode(), now) for each in checkpoints)


@dataclass(frozen=True, slots=True)
class PublisherOptions:
    checkpoint_seconds: float = 60.0
    """At most this long after something happened it is covered by a signed head."""
    idle_seconds: float = 3600.0
    """A head this often even when nothing happened: silence means that publishing has stopped."""


class Publisher:
    """Makes checkpoints when they are due and brings them to every destination. One per process; thread-safe."""

    def __init__(
        self,
        database: Database,
        checkpoints: Checkpoints,
        destinations: Sequence[Destination],
        name: str,
        node: str,
        options: PublisherOptions | None = None,
    ) -> None:
        """`name` is the journal's, `node` this machine's: each node serves its own destinations."""
        self._database = database
        self._checkpoints = checkpoints
        self._destinations = tuple(destinations)
        self._name = name
        self._node = node
        self._options = options or PublisherOptions()
        self._turning = threading.Lock()
        self._last_made: datetime | None = None
        self._strange: dict[str, str] = {}
        """By destination: the first head found there that this database does not have, in a sentence."""
        self.problems: tuple[str, ...] = ()
        """What the last turn could not do, a sentence each."""

    def turn(self, now: datetime | None = None, *, closing: bool = False) -> tuple[str, ...]:
        """Make a checkpoint if anything happened, publish what is not published; the problems, a sentence each.

        Call it every `checkpoint_seconds`. Raises what the database raises; a destination's failure is a problem.
        `closing` makes no head for the sake of silence alone.
        """
        with self._turning:
            moment = now or datetime.now(UTC)
            idle = self._last_made is None or abs(moment - self._last_made) >= timedelta(
                seconds=self._options.idle_seconds
            )
            made = self._checkpoints.make(even_if_idle=idle and not closing, at=now)
            if made.checkpoint is not None:
                self._last_made = moment
            problems = list(made.problems)
            for destination in self._destinations:
                try:
                    problems += self._serve(destination)
                except OSError as error:
                    problems.append(f"heads do not reach {destination.name}: {error}")
            self.problems = tuple(problems)
            return self.problems

    def published(self) -> int:
        """The number of the last head that every destination has taken, as far as we know; without one, the last."""
        numbers = [
            self._database.read(functools.partial(_progress, key=self._key(each))) for each in self._destinations
        ]
        return min(numbers, default=self._checkpoints.last_number())

    def _key(self, destination: Destination) -> str:
        return hashlib.sha256(f"{self._node}\0{destination.name}".encode()).hexdigest()

    def _serve(self, destination: Destination) -> list[str]:
        key = self._key(destination)
        known = self._database.read(lambda connection: _progress(connection, key))
        done = min(known, self._checkpoints.last_number())
        problems = []
        newest = destination.newest(self._name)
        if newest:
            done = self._compare(destination.name, newest) or done
        elif newest is not None and done:
            done -= 1  # it begins again with the last head, which covers all before
            problems.append(f"{destination.name} held no head any more, {known} were published: was it put aside?")
        while batch := self._checkpoints.after(done, _AT_ONCE):
            destination.publish(batch)
            done = batch[-1].number
        if done != known:
            self._database.transact(lambda connection: _set_progress(connection, key, done))
        if destination.name in self._strange:
            problems.append(self._strange[destination.name])
        return problems

    def _compare(self, destination: str, newest: Sequence[SignedHead]) -> int:
        """The number of the last of these heads that is one of ours, 0 for none; remembers the first that is not."""
        heads = [(head, signed) for signed in newest if (head := parse_head(signed.text)) is not None]
        numbers = sorted({head.number for head, _ in heads})
        ours = self._database.read(lambda connection: checkpoints_numbered(connection, numbers))
        last = 0
        for head, signed in heads:
            kept = ours.get(head.number)
            known = kept is not None and kept.signed.text == signed.text
            last = head.number if known else last
            if not known:
                self._strange.setdefault(
                    destination,
                    f"{destination} holds head {head.number} of {head.at}, which this database does not have: "
                    "an older database was put back, or the file belongs to another journal",
                )
        return last


def _progress(connection: Connection, key: str) -> int:
    row = connection.execute(
        select(journal_publications.c.number).where(journal_publications.c.destination == key)
    ).one_or_none()
    return row.number if row else 0


def _set_progress(connection: Connection, key: str, number: int) -> None:
    changed = connection.execute(
        update(journal_publications).where(journal_publications.c.destination == key).values(number=number)
    )
    if not changed.rowcount:
        connection.execute(insert(journal_publications).values(destination=key, number=number))
