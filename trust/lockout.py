"""How guessing is stopped without giving a stranger the power to lock a doctor out.

Wrong passwords are counted twice: for an account *and* the network they come from, and for the account over all
networks that are not familiar. A network is familiar to an account when its right password came from there lately, and
makes its neighbourhood (IPv4 /16, IPv6 /32: about one access provider in one region) known.

- From one network, `max_failures` wrong passwords in a row lock that account for that network for `lock_seconds`, then
  twice as long each time, up to `longest_seconds`.
- From a familiar network the same wrong password counts once: a telephone that keeps trying the old one locks nobody.
- From all other networks together, `account_failures` wrong passwords lock the account for them; it drains at
  `account_failures` a day. The same wrong password from the same network counts once here. A familiar network is never
  locked by what others do. The networks of a known neighbourhood have such a measure of their own, each neighbourhood
  apart: a doctor's telephone changes its network all day and stays with one provider, and what a stranger's machines do
  all over the world must not lock it out.

So an attacker may try `account_failures` passwords at once and then as many a day, however many networks they own, and
as many again in each neighbourhood the doctor logs in from; meanwhile a doctor gets in from practice and home, with an
application password, a certificate or a token from anywhere, and is refused only with the main password where neither
the network nor its neighbours are known. Whoever sits in a familiar network can lock the main password for that
network, and guess there `max_failures` times, then ever more rarely.

A locked door says so to the right password too, which must not be found out meanwhile. What is kept of a wrong password
is a keyed digest of its argon2id output, as costly to search as the real hash; a repeated one takes the same work and
gets the same answer. A clock that was once wrong locks nobody for longer than the longest lock.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from trust.tables import identities, login_sources

DIGEST_BYTES = 16
REMEMBERED = 8
"""Wrong passwords known again, for an account and network."""
_DAY = 86400.0
_MAX_SOURCES = 512
"""Networks and neighbourhoods remembered of one account; it is locked for new ones long before."""
_NEIGHBOURHOOD = "n"
"""First character of a neighbourhood's name in the database, where a network's is all hexadecimal."""


@dataclass(frozen=True, slots=True)
class LockoutOptions:
    max_failures: int = 5
    lock_seconds: float = 900.0
    """Also how long after a wrong password the next one still counts as in a row."""
    longest_seconds: float = _DAY
    account_failures: int = 50
    network_failures: int = 300
    """An hour, from one network over all accounts it is not familiar to: see `trust.spraying`."""
    familiar_seconds: float = 30 * _DAY


class Judgement(Enum):
    RIGHT = "right"
    WRONG = "wrong"
    LOCKED = "locked"
    """It was locked already."""
    LOCKS = "locks"
    """Wrong, and from now on locked for this network."""
    LOCKS_NEIGHBOURHOOD = "locks-neighbourhood"
    """Wrong, and from now on locked for all networks of this neighbourhood that are not familiar."""
    LOCKS_ACCOUNT = "locks-account"
    """Wrong, and from now on locked for all networks that are not familiar."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One password, tried."""

    identity_id: str
    source: str
    """The network as the database knows it; empty when nobody knows where it came from, which is never familiar."""
    neighbourhood: str
    """As `neighbourhood_name` makes it; empty as `source` is."""
    matches: bool
    digest: bytes
    """Of the password, `DIGEST_BYTES` long."""


def network_of(address: str) -> str:
    """The network a client's address stands for: /24 of IPv4, /56 of IPv6; empty when it is no address."""
    return _prefix_of(address, 24, 56)


def neighbourhood_of(address: str) -> str:
    """The networks near a client's address: /16 of IPv4, /32 of IPv6; empty when it is no address."""
    return _prefix_of(address, 16, 32)


def neighbourhood_name(pseudonym: str) -> str:
    """As the database knows it; `pseudonym` is 64 hexadecimal digits."""
    return _NEIGHBOURHOOD + pseudonym[len(_NEIGHBOURHOOD) :]


def is_network(source: str) -> bool:
    """Whether a row of `login_sources` is about a network, and not a neighbourhood."""
    return not source.startswith(_NEIGHBOURHOOD)


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
    row = _row_of(connection, attempt.identity_id, attempt.source)
    familiar = bool(attempt.source) and row is not None and is_familiar(row.good_at, options, now)
    neighbours = None if familiar else _known_neighbours(connection, attempt, options, now)
    shared = account if neighbours is None else neighbours
    if row is not None and _is_locked(row.locked_until, options, now):
        return Judgement.LOCKED
    if not familiar and _is_locked(shared.locked_until, options, now):
        return Judgement.LOCKED
    if attempt.matches:
        _note_right(connection, row, attempt, now)
        return Judgement.RIGHT
    known = row is not None and now - row.failed_at <= _DAY and attempt.digest in _digests(row.wrong)
    if familiar and known:
        return Judgement.WRONG
    locks = _count_for_source(connection, row, attempt, options, now)
    if familiar or known:
        return Judgement.LOCKS if locks else Judgement.WRONG
    values = _poured(shared, options, now)
    if neighbours is None:
        connection.execute(update(identities).where(identities.c.id == account.id).values(**values))
    else:
        _change(connection, attempt.identity_id, attempt.neighbourhood, values)
    if "locked_until" in values:
        return Judgement.LOCKS_ACCOUNT if neighbours is None else Judgement.LOCKS_NEIGHBOURHOOD
    return Judgement.LOCKS if locks else Judgement.WRONG


def is_familiar_source(
    connection: Connection, identity_id: str, source: str, options: LockoutOptions, now: float
) -> bool:
    """Whether the network of that name is familiar to the identity."""
    row = _row_of(connection, identity_id, source)
    return bool(source) and row is not None and is_familiar(row.good_at, options, now)


def release(connection: Connection, identity_id: str) -> None:
    """Forget every wrong password and every lock; networks stay familiar."""
    connection.execute(update(identities).where(identities.c.id == identity_id).values(failures=0, locked_until=0.0))
    connection.execute(
        update(login_sources)
        .where(login_sources.c.identity_id == identity_id)
        .values(failures=0, locked_until=0.0, locks=0, wrong=b"")
    )


def _is_locked(until: float, options: LockoutOptions, now: float) -> bool:
    return now < until <= now + max(options.longest_seconds, _DAY / options.account_failures)


def _known_neighbours(connection: Connection, attempt: Attempt, options: LockoutOptions, now: float) -> Row[Any] | None:
    """What is counted for the neighbourhood the attempt comes from, when the identity has a familiar network there."""
    row = _row_of(connection, attempt.identity_id, attempt.neighbourhood) if attempt.neighbourhood else None
    return row if row is not None and is_familiar(row.good_at, options, now) else None


def _note_right(connection: Connection, row: Row[Any] | None, attempt: Attempt, now: float) -> None:
    """Writes once a day at most while all goes well: a commit costs a disk sync."""
    news = bool(attempt.source) and (row is None or now - row.good_at >= _DAY)
    if row is not None and (row.failures or row.locks or row.wrong or news):
        good = {"good_at": now} if attempt.source else {}
        _change(connection, attempt.identity_id, attempt.source, {"failures": 0, "locks": 0, "wrong": b"", **good})
    elif news:
        _insert(connection, attempt.identity_id, attempt.source, {"good_at": now})
    if news and attempt.neighbourhood:
        if _row_of(connection, attempt.identity_id, attempt.neighbourhood) is None:
            _insert(connection, attempt.identity_id, attempt.neighbourhood, {"good_at": now})
        else:
            _change(connection, attempt.identity_id, attempt.neighbourhood, {"good_at": now})


def _count_for_source(
    connection: Connection, row: Row[Any] | None, attempt: Attempt, options: LockoutOptions, now: float
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
        _insert(connection, attempt.identity_id, attempt.source, values)
    else:
        _change(connection, attempt.identity_id, attempt.source, values)
    return locked


def _poured(shared: Row[Any], options: LockoutOptions, now: float) -> dict[str, Any]:
    """One wrong password more in a bucket that drains: its new values, `locked_until` among them when it is full."""
    pause = _DAY / options.account_failures
    drained = max(0, int((now - shared.failed_at) / pause))
    failures = max(0, shared.failures - drained)
    since = shared.failed_at + drained * pause if failures else now
    failures += 1
    values: dict[str, Any] = {"failures": failures, "failed_at": min(since, now)}
    if failures >= options.account_failures:
        values["locked_until"] = now + pause
    return values


def _row_of(connection: Connection, identity_id: str, source: str) -> Row[Any] | None:
    return connection.execute(select(login_sources).where(*_key(identity_id, source))).first()


def _change(connection: Connection, identity_id: str, source: str, values: dict[str, Any]) -> None:
    connection.execute(update(login_sources).where(*_key(identity_id, source)).values(**values))


def _key(identity_id: str, source: str) -> tuple[ColumnElement[bool], ...]:
    return login_sources.c.identity_id == identity_id, login_sources.c.source == source


def _insert(connection: Connection, identity_id: str, source: str, values: dict[str, Any]) -> None:
    theirs = login_sources.c.identity_id == identity_id
    kept = connection.scalars(
        select(login_sources.c.source)
        .where(theirs)
        .order_by(login_sources.c.good_at.desc(), login_sources.c.failed_at.desc())
        .offset(_MAX_SOURCES - 1)
    ).all()
    if kept:
        connection.execute(delete(login_sources).where(theirs, login_sources.c.source.in_(kept)))
    empty = {"failures": 0, "failed_at": 0.0, "locked_until": 0.0, "locks": 0, "wrong": b"", "good_at": 0.0}
    row = {"identity_id": identity_id, "source": source} | empty | values
    connection.execute(insert(login_sources).values(**row))


def _prefix_of(address: str, bits4: int, bits6: int) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, bits6), strict=False))
        parsed = parsed.ipv4_mapped
    return str(ipaddress.ip_network((parsed, bits4), strict=False))


def _digests(stored: bytes) -> list[bytes]:
    return [stored[start : start + DIGEST_BYTES] for start in range(0, len(stored), DIGEST_BYTES)]
