"""The CRLs that are held, and what they say together about one certificate (RFC 5280 §6.3.3).

A CRL answers for a certificate when its issuer and the distribution point say so on both sides, when it is for that
kind of certificate, and when its signer may speak for the certificate's issuer. Deltas are laid over their base, CRLs
for some reasons are added up until all reasons are covered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import TypeVar

from trust.revocation import RevocationState, RevocationStatus
from trust.revocation.crl import HOLD, REMOVED, SKEW, TOLERANCE, Crl, Entry
from trust.revocation.naming import ALL_REASONS, NameKey, Point

MAX_HELD = 4096

_COMPROMISED = frozenset({"keyCompromise", "cACompromise", "aACompromise"})

_K = TypeVar("_K")

MaySpeak = Callable[[Crl], bool]
"""Whether a CRL's signer is the certificate's issuer or someone it answers to."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a CRL has to answer for."""

    serial: int
    issuer: NameKey
    authority: bool
    """The certificate is a CA's."""
    not_after: datetime
    points: tuple[Point, ...]
    at: datetime


class Holdings:
    """CRLs by where they came from and by issuer. Thread-safe; readers see whole tuples and take no lock."""

    def __init__(self, max_octets: int = 1 << 31) -> None:
        """`max_octets` of memory for all of them; what was renewed longest ago goes first."""
        self._max_octets = max_octets
        self._by_url: dict[str, tuple[Crl, ...]] = {}
        self._by_issuer: dict[NameKey, tuple[Crl, ...]] = {}
        self._deltas: dict[NameKey, tuple[Crl, ...]] = {}
        self._lock = Lock()

    def all(self) -> list[tuple[str, Crl]]:
        """Every CRL with its URL."""
        with self._lock:
            return [(url, crl) for url, crls in self._by_url.items() for crl in crls]

    def add(self, url: str, crl: Crl) -> Crl:
        """Hold a CRL, in place of an older one of the same scope from there. Returns the one that is held now: an
        older CRL than that is not put in its place."""
        with self._lock:
            held = next((each for each in self._by_url.get(url, ()) if _same_series(each, crl)), None)
            if held is not None and _is_newer(held, crl):
                return held
            if held is not None:
                self._drop(url, held)
            self._make_room(crl.octets)
            # re-inserted, so that the first is always the one renewed longest ago
            self._by_url[url] = (*self._by_url.pop(url, ()), crl)
            shelf = self._shelf(crl)
            shelf[crl.issuer] = (*shelf.get(crl.issuer, ()), crl)
            return crl

    def holds(self, url: str) -> bool:
        """Whether a CRL from there is held."""
        return url in self._by_url

    def _make_room(self, octets: int) -> None:
        held = [(url, crl) for url, crls in self._by_url.items() for crl in crls]
        taken = sum(crl.octets for _, crl in held) + octets
        for count, (url, crl) in enumerate(held):
            if taken <= self._max_octets and len(held) - count < MAX_HELD:
                return
            taken -= crl.octets
            self._drop(url, crl)

    def _drop(self, url: str, crl: Crl) -> None:
        _without(self._by_url, url, crl)
        _without(self._shelf(crl), crl.issuer, crl)

    def _shelf(self, crl: Crl) -> dict[NameKey, tuple[Crl, ...]]:
        return self._by_issuer if crl.base is None else self._deltas

    def ask(self, question: Question, may_speak: MaySpeak, now: datetime) -> RevocationStatus:
        """What the CRLs say: REVOKED, GOOD, STALE when what says good has ended, or UNKNOWN."""
        published = self._weigh(question, may_speak, now, self._published(question))
        if published.state is RevocationState.REVOKED:
            return published
        others = self._by_name(question)
        if published.state is RevocationState.GOOD:
            # a list that was replayed, or is late at this certificate's own point, hides nothing that is known
            since = published.as_of
            newer = [pair for pair in others if since is not None and pair[1].this_update > since]
            if not newer:
                return published
            held = self._weigh(question, may_speak, now, newer)
            return held if held.state is RevocationState.REVOKED else published
        held = self._weigh(question, may_speak, now, others)
        unknown = held.state is RevocationState.UNKNOWN
        return published if unknown and published.state is RevocationState.STALE else held

    def _weigh(
        self, question: Question, may_speak: MaySpeak, now: datetime, candidates: Iterable[tuple[Point, Crl]]
    ) -> RevocationStatus:
        """What some complete CRLs with their deltas say, newest first."""
        covered: frozenset[int] = frozenset()
        used: list[Crl] = []
        why = "no CRL is held for it"
        for point, crl in sorted(candidates, key=lambda pair: pair[1].this_update, reverse=True):
            wrong = _out_of_scope(crl, point, question)
            if not wrong and not may_speak(crl):
                wrong = "its signer does not answer to the issuer"
            if not wrong and crl.this_update > now + SKEW:
                wrong = "its thisUpdate is in the future"
            if wrong:
                why = f"CRL not used: {wrong}"
                continue
            reasons = crl.scope.reasons & point.reasons
            if reasons <= covered:
                continue
            newest, entry = self._look(crl, question, may_speak, now)
            if entry is not None:
                return _revoked(entry, newest, question.at)
            covered |= reasons
            used.append(newest)
        if covered != ALL_REASONS:
            return RevocationStatus(RevocationState.UNKNOWN, detail="CRLs for some reasons only" if used else why)
        return _unlisted(used, question)

    def _published(self, question: Question) -> list[tuple[Point, Crl]]:
        """Complete CRLs from the certificate's own points."""
        return [
            (point, crl)
            for point in question.points
            for url in point.urls
            for crl in self._by_url.get(url, ())
            if crl.base is None
        ]

    def _by_name(self, question: Question) -> list[tuple[Point, Crl]]:
        """Complete CRLs of those who may issue one, wherever they came from (§6.3.3, last paragraph)."""
        anywhere = Point(frozenset({question.issuer}), (), ALL_REASONS, frozenset())
        return [
            (point, crl)
            for point in (*question.points, anywhere)
            for name in point.issuers or (question.issuer,)
            for crl in self._by_issuer.get(name, ())
            if crl.base is None
        ]

    def _look(self, base: Crl, question: Question, may_speak: MaySpeak, now: datetime) -> tuple[Crl, Entry | None]:
        """The entry in a base CRL as its newest delta changes it, and which of both was decisive (§5.2.4)."""
        decisive, entry = base, base.find(question.serial, question.issuer)
        deltas = [
            crl
            for crl in self._deltas.get(base.issuer, ())
            if _extends(crl, base) and crl.this_update <= now + SKEW and may_speak(crl)
        ]
        if deltas:
            delta = max(deltas, key=lambda crl: crl.this_update)
            changed = delta.find(question.serial, question.issuer)
            if changed is not None:
                decisive, entry = delta, changed
            elif _ends(delta) > _ends(base):
                decisive = delta
        return decisive, None if entry is not None and entry.reason == REMOVED else entry


def _without(shelf: dict[_K, tuple[Crl, ...]], key: _K, crl: Crl) -> None:
    left = tuple(held for held in shelf.get(key, ()) if held is not crl)
    if left:
        shelf[key] = left
    else:
        shelf.pop(key, None)


def _ends(crl: Crl) -> datetime:
    # one without nextUpdate promises nothing: it is stale at once
    return crl.next_update or crl.this_update


def _same_series(one: Crl, other: Crl) -> bool:
    return (
        one.issuer == other.issuer
        and one.scope == other.scope
        and (one.base is None) == (other.base is None)
        and one.signer.public_key() == other.signer.public_key()
    )


def _is_newer(held: Crl, crl: Crl) -> bool:
    """Whether the one that is held is the newer one, by its number (§5.2.3) or its date.

    An authority that was set up anew may count from one again: its lists are taken once the one that is held has ended,
    or its revocations would stay unknown for ever.
    """
    if held.number is not None and crl.number is not None and held.number != crl.number:
        return held.number > crl.number and crl.this_update <= _ends(held)
    return held.this_update > crl.this_update


def _extends(delta: Crl, base: Crl) -> bool:
    """Whether a delta may be laid over a complete CRL (§5.2.4, §6.3.3 (c))."""
    if delta.base is None or base.number is None or delta.number is None or delta.scope != base.scope:
        return False
    return (
        delta.signer.public_key() == base.signer.public_key()
        and delta.base <= base.number
        and base.number <= delta.number
    )


def _out_of_scope(crl: Crl, point: Point, question: Question) -> str:
    """Why a CRL does not answer for a certificate published at `point` (§6.3.3 (b)); empty when it does."""
    scope = crl.scope
    if point.issuers:
        if crl.issuer not in point.issuers or not scope.indirect:
            return "it is not by the CRL issuer the certificate names"
    elif crl.issuer != question.issuer:
        return "it is by another issuer"
    if scope.names:
        wanted = point.names or point.issuers
        if not wanted & scope.names:
            return "it is for another distribution point"
    if scope.attribute:
        return "it is for attribute certificates"
    if question.authority and scope.user:
        return "it is for end entities"
    if not question.authority and scope.authority:
        return "it is for authorities"
    return ""


def is_revoked_at(reason: str, revoked_at: datetime | None, invalid_since: datetime | None, at: datetime) -> bool:
    """Whether a revoked certificate was so at a moment in the past.

    From invalidityDate on where it is known; otherwise from revocationDate on, except that a compromised key is not
    trusted for any time before, since nobody knows when the compromise began.
    """
    if invalid_since is not None:
        return at + TOLERANCE >= (invalid_since if revoked_at is None else min(invalid_since, revoked_at))
    if reason in _COMPROMISED or revoked_at is None:
        return True
    return at + TOLERANCE >= revoked_at


def _revoked(entry: Entry, crl: Crl, at: datetime) -> RevocationStatus:
    # at the latest when it was listed: a date to come is a clock or a time zone set wrong
    revoked_at = None if entry.revoked_at is None else min(entry.revoked_at, crl.this_update)
    good = not is_revoked_at(entry.reason, revoked_at, entry.invalid_since, at)
    return RevocationStatus(
        RevocationState.GOOD if good else RevocationState.REVOKED,
        "crl",
        "" if good else entry.reason,
        revoked_at,
        entry.invalid_since,
        crl.this_update,
        crl.next_update,
        "revoked later" if good else "on hold" if entry.reason == HOLD else "",
    )


def _unlisted(used: Sequence[Crl], question: Question) -> RevocationStatus:
    for crl in used:
        keeps = crl.expired_since is not None and crl.expired_since <= question.not_after
        if question.not_after < crl.this_update and not keeps:
            # expired certificates leave the list (§3.3), so absence says nothing any more
            return RevocationStatus(
                RevocationState.UNKNOWN, detail="the certificate had expired when the CRL was issued"
            )
    weakest = min(used, key=_ends)
    fresh = question.at <= _ends(weakest) + TOLERANCE
    return RevocationStatus(
        RevocationState.GOOD if fresh else RevocationState.STALE,
        "crl",
        as_of=weakest.this_update,
        next_update=_ends(weakest),
        detail="" if fresh else "the CRL has ended" if weakest.next_update else "the CRL has no nextUpdate",
    )
