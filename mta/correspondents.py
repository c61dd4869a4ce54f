"""What correspondents can read, as their own signed mail says (RFC 8551 §2.5.2, §2.7.1).

Remembered from mail whose signature was valid and whose signer was the author, so that a correspondent who cannot read
AES-GCM is written to with what he can, as far as the partner's floor allows. An address is kept as a pseudonym: a
patient's may hold a health identity.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from sqlalchemy import Connection, insert, select, update

from mta.tables import correspondents
from trust.store.database import Database
from trust.vault import KeyVault

MAX_CAPABILITIES = 64
_FRESH_SECONDS = 86400.0
_LATELY_SECONDS = 5.0
"""What was read is used for so long: a thousand mails to one correspondent ask once. Another node's news waits."""
_MANY = 10_000


class Correspondents:
    """The newest capabilities of each address. Thread-safe."""

    def __init__(self, database: Database, vault: KeyVault) -> None:
        self._database = database
        self._pseudonym = lru_cache(maxsize=_MANY)(lambda address: vault.pseudonym("correspondent", address.lower()))
        self._lately: dict[str, tuple[float, tuple[str, float] | None]] = {}
        """By pseudonym what was read, and until when it is taken for true (monotonic)."""

    def remember(self, address: str, capabilities: Sequence[str], signed_at: datetime) -> None:
        """Keep what a mail signed at `signed_at` says, unless a later one is known. `capabilities`: dotted OIDs.

        Raises `StoreUnavailableError`.
        """
        name = self._pseudonym(address)
        listed, at = " ".join(capabilities[:MAX_CAPABILITIES]), signed_at.timestamp()

        def keep(connection: Connection) -> None:
            known = connection.scalar(select(correspondents.c.signed_at).where(correspondents.c.address == name))
            if known is None:
                connection.execute(insert(correspondents).values(address=name, capabilities=listed, signed_at=at))
            elif known < at:
                newer = update(correspondents).where(correspondents.c.address == name)
                connection.execute(newer.values(capabilities=listed, signed_at=at))

        known = self._read(name)
        # most mail says what the one before said: that is not worth a write each time
        if known is None or known[0] != listed or known[1] < at - _FRESH_SECONDS:
            self._database.transact(keep)
            self._lately.pop(name, None)

    def capabilities(self, address: str) -> tuple[str, ...] | None:
        """Dotted OIDs, the preferred first; None when nothing is known of this address."""
        name, now = self._pseudonym(address), time.monotonic()
        until, known = self._lately.get(name, (now, None))
        if until <= now:
            known = self._read(name)
            if len(self._lately) >= _MANY:
                self._lately.clear()
            self._lately[name] = now + _LATELY_SECONDS, known
        return None if known is None else tuple(known[0].split())

    def _read(self, name: str) -> tuple[str, float] | None:
        query = select(correspondents.c.capabilities, correspondents.c.signed_at)
        row = self._database.read(lambda c: c.execute(query.where(correspondents.c.address == name)).one_or_none())
        return None if row is None else (row.capabilities, row.signed_at)
