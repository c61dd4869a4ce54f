"""How guessing is stopped without giving a stranger the power to lock a doctor out.

Wrong passwords are counted twice: for an account *and* the network they come from, and for the account over all
networks that are not familiar. A network is familiar to an account when its right password came from there lately.

- From one network, `max_failures` wrong passwords in a row lock that account for that network for `lock_seconds`, then
  twice as long each time, up to `longest_seconds`.
- From a familiar network the same wrong password counts once: a telephone that keeps trying the old one locks nobody.
- From all other networks together, `account_failures` wrong passwords lock the account for them; it drains at
  `account_failures` a day. The same wrong password from the same network counts once here. A familiar network is never
  locked by what others do.

So an attacker may try `account_failures` passwords at once and then as many a day, however many networks they own;
meanwhile a doctor gets in from practice and home, with an application password, a certificate or a token from anywhere,
and is refused only with the main password in a network where it was not used lately. Whoever sits in a familiar network
can lock the main password for that network, and guess there `max_failures` times, then ever more rarely.

A locked door says so to the right password too, which must not be found out meanwhile. What is kept of a wrong password
is a keyed digest of its argon2id output, as costly to search as the real hash; a repeated one takes the same work and
gets the same answer.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, select, update

from trust.tables import identities, login_sources

DIGEST_BYTES = 16
REMEMBERED = 8
"""Wrong passwords known again, for an account and network."""
_DAY = 86400.0
_MAX_SOURCES = 512
"""Networks remembered of one account; the account is locked for new ones long before."""


@dataclass(frozen=True, slots=True)
class LockoutOptions:
    max_failures: int = 5
    lock_seconds: float = 900.0
    """Also how long after a wrong password the next one still counts as in a row."""
    longest_seconds: float = _DAY
    account_failures: int = 50
    familiar_seconds: float = 30 * _DAY


class Judgement(Enum):
    RIGHT = "right"
    WRONG = "wrong"
    LOCKED = "locked"
    """It was locked already."""
    LOCKS = "locks"
    """Wrong, and from now on locked for this network."""
    LOCKS_ACCOUNT = "locks-account"
    """Wrong, and from now on locked for all networks that are not familiar."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One password, tried."""

    identity_id: str
    source: str
    """The network as the database knows it; empty when nobody knows where it came from, which is never familiar."""
    matches: bool
    digest: bytes
    """Of the password, `DIGEST_BYTES` long."""


def network_of(address: str) -> str:
    """The network a client's address stands for: /24 of IPv4, /56 of IPv6; empty when it is no address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, 56), strict=False))
        parsed = parsed.ipv4_mapped
    return str(ipaddress.ip_network((parsed, 24), strict=False))


def is_familiar(good_at: float, options: LockoutOptions, now: float) -> bool:
    """Whether a network is, where the right password was said last at `good_at`, 0 for never."""
    return good_at > 0 and now - good_at <= options.familiar_seconds


def judge(connection: Connection, attempt: Attempt, options: LockoutOptions, now: float) -> Judgement | None:
    """Count one attempt, in the one writer's order: of any number of parallel guesses no more are answered than the
    limits say. None when the identity is no more."""
    account = connection.execute(
        select(identities).where(identities.c.id == attempt.identity_id).with_for_update()
    ).first()
    if account is None:
        return None
    mine = and_(login_sources.c.identity_id == attempt.identity_id, login_sources.c.source == attempt.source)
    row = connection.execute(select(login_sources).where(mine)).first()
    familiar = bool(attempt.source) and row is not None and is_familiar(row.good_at, options, now)
    if row is not None and now < row.locked_until:
        return Judgement.LOCKED
    if not familiar and now < account.locked_until:
        return Judgement.LOCKED
    if attempt.matches:
        _note_right(connection, mine, row, attempt, now)
        return Judgement.RIGHT
    known = row is not None and now - row.failed_at <= _DAY and attempt.digest in _digests(row.wrong)
    if familiar and known:
        return Judgement.WRONG
    locks = _count_for_source(connection, mine, row, attempt, options, now)
    if not familiar and not known and _count_for_account(connection, account, options, now):
        return Judgement.LOCKS_ACCOUNT
    return Judgement.LOCKS if locks else Judgement.WRONG


def release(connection: Connection, identity_id: str) -> None:
    """Forget every wrong password and every lock; networks stay familiar."""
    connection.execute(update(identities).where(identities.c.id == identity_id).values(failures=0, locked_until=0.0))
    connection.execute(
        update(login_sources)
        .where(login_sources.c.identity_id == identity_id)
        .values(failures=0, locked_until=0.0, locks=0, wrong=b"")
    )


def _note_right(connection: Connection, mine: Any, row: Row[Any] | None, attempt: Attempt, now: float) -> None:
    """Writes once a day at most while all goes well: a commit costs a disk sync."""
    if row is not None:
        if row.failures or row.locks or row.wrong or (attempt.source and now - row.good_at >= _DAY):
            good = now if attempt.source else row.good_at
            connection.execute(update(login_sources).where(mine).values(failures=0, locks=0, wrong=b"", good_at=good))
    elif attempt.source:
        _insert(connection, attempt, {"good_at": now}, now)


def _count_for_source(
    connection: Connection, mine: Any, row: Row[Any] | None, attempt: Attempt, options: LockoutOptions, now: float
) -> bool:
    """Whether this attempt locks the account for its network."""
    failures, locks, wrong = 1, 0, b""
    if row is not None:
        if now - row.failed_at <= options.lock_seconds:
            failures = row.failures + 1
        if now - max(row.failed_at, row.locked_until) <= options.longest_seconds:
            locks, wrong = row.locks, row.wrong
    others = [each for each in _digests(wrong) if each != attempt.digest]
    values: dict[str, Any] = {
        "failures": failures,
        "failed_at": now,
        "locks": locks,
        "wrong": b"".join([attempt.digest, *others][:REMEMBERED]),
    }
    locked: bool = failures >= options.max_failures
    if locked:
        pause = min(options.lock_seconds * 2.0 ** min(locks, 32), options.longest_seconds)
        values |= {"failures": 0, "locks": locks + 1, "locked_until": now + pause}
    if row is None:
        _insert(connection, attempt, values, now)
    else:
        connection.execute(update(login_sources).where(mine).values(**values))
    return locked


def _count_for_account(connection: Connection, account: Row[Any], options: LockoutOptions, now: float) -> bool:
    """Whether this attempt locks the account for every network that is not familiar: a bucket that drains."""
    pause = _DAY / options.account_failures
    drained = max(0, int((now - account.failed_at) / pause))
    failures = max(0, account.failures - drained)
    since = account.failed_at + drained * pause if failures else now
    failures += 1
    values: dict[str, Any] = {"failures": failures, "failed_at": since}
    locks: bool = failures >= options.account_failures
    if locks:
        values["locked_until"] = now + pause
    connection.execute(update(identities).where(identities.c.id == account.id).values(**values))
    return locks


def _insert(connection: Connection, attempt: Attempt, values: dict[str, Any], now: float) -> None:
    theirs = login_sources.c.identity_id == attempt.identity_id
    kept = connection.scalars(
        select(login_sources.c.source)
        .where(theirs)
        .order_by(login_sources.c.good_at.desc(), login_sources.c.failed_at.desc())
        .offset(_MAX_SOURCES - 1)
    ).all()
    if kept:
        connection.execute(delete(login_sources).where(theirs, login_sources.c.source.in_(kept)))
    empty = {"failures": 0, "failed_at": 0.0, "locked_until": 0.0, "locks": 0, "wrong": b"", "good_at": 0.0}
    row = {"identity_id": attempt.identity_id, "source": attempt.source} | empty | values
    connection.execute(insert(login_sources).values(**row))


def _digests(stored: bytes) -> list[bytes]:
    return [stored[start : start + DIGEST_BYTES] for start in range(0, len(stored), DIGEST_BYTES)]
