"""What one trust list changes compared with another, and when that is too much to be believed without a human.

A signed list can still be wrong: an old one served again, an export that stopped half-way. Both would silence
establishments at once, or bring back an operator who was removed, so such a list is held and the one in use stays. Nor
may a tenth go in small steps: what was lost within a week counts together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import islice
from typing import Any

import msgspec

from trust.names import DistinguishedName
from trust.trustlist import TrustList

HOLD_LOSS_PERCENT = 10
"""A list that lost this share of its rows, or more, waits for a human."""
LOSS_WINDOW = timedelta(days=7)
"""How long rows that were lost without a human count together with those lost next."""
MAX_NAMED = 20
"""How many domains and names each a summary spells out."""
MAX_NAMED_ROWS = 100
"""How many rows each a summary spells out."""

_Rows = tuple[tuple[str, DistinguishedName], ...]


class Losses(msgspec.Struct, frozen=True):
    """What lists that needed no human took away, since the first of them."""

    since: datetime
    rows_before: int
    """Rows in use then."""
    rows_lost: int

    def lasts(self, now: datetime) -> bool:
        return now - self.since < LOSS_WINDOW


@dataclass(frozen=True, slots=True)
class ListChanges:
    """From one list to the next; a row is one domain with one operator, however often it is written."""

    rows_before: int
    rows_added: _Rows
    rows_removed: _Rows
    domains_added: tuple[str, ...]
    domains_removed: tuple[str, ...]
    operators_added: tuple[DistinguishedName, ...]
    operators_removed: tuple[DistinguishedName, ...]

    @classmethod
    def between(cls, before: TrustList | None, after: TrustList) -> ListChanges:
        """All sorted. Without `before` everything is new."""
        old = set(before.pairs) if before else set()
        new = set(after.pairs)
        old_domains = before.domains if before else frozenset()
        old_operators = before.operators if before else frozenset()
        return cls(
            len(old),
            _rows(new - old),
            _rows(old - new),
            tuple(sorted(after.domains - old_domains)),
            tuple(sorted(old_domains - after.domains)),
            tuple(sorted(after.operators - old_operators, key=str)),
            tuple(sorted(old_operators - after.operators, key=str)),
        )

    @property
    def empty(self) -> bool:
        return not self.rows_added and not self.rows_removed

    def counts(self) -> dict[str, int]:
        return {
            "rows_added": len(self.rows_added),
            "rows_removed": len(self.rows_removed),
            "domains_added": len(self.domains_added),
            "domains_removed": len(self.domains_removed),
            "operators_added": len(self.operators_added),
            "operators_removed": len(self.operators_removed),
        }

    def as_dict(self, most: int) -> dict[str, Any]:
        """For people and scripts: the counts, and at most `most` of each kind spelt out."""
        return {
            "rows_before": self.rows_before,
            "counts": self.counts(),
            "domains_added": list(self.domains_added[:most]),
            "domains_removed": list(self.domains_removed[:most]),
            "operators_added": [str(name) for name in self.operators_added[:most]],
            "operators_removed": [str(name) for name in self.operators_removed[:most]],
            "rows_added": [[domain, str(name)] for domain, name in self.rows_added[:most]],
            "rows_removed": [[domain, str(name)] for domain, name in self.rows_removed[:most]],
        }

    def journal_details(self) -> dict[str, str]:
        """Bounded: counts, the first domains, operators and rows of each kind, and the digest of all rows.

        Rows are spelt out besides domains: one that passes from an operator to another changes no list of names.
        """
        details = {name: str(count) for name, count in self.counts().items()}
        signed = [
            *((f"+{domain}: {name}") for domain, name in self.rows_added),
            *((f"-{domain}: {name}") for domain, name in self.rows_removed),
        ]
        details["rows_sha256"] = sha256("\n".join(signed).encode()).hexdigest()
        named: tuple[tuple[str, Iterable[object], int], ...] = (
            ("first_domains_added", self.domains_added, MAX_NAMED),
            ("first_domains_removed", self.domains_removed, MAX_NAMED),
            ("first_operators_added", self.operators_added, MAX_NAMED),
            ("first_operators_removed", self.operators_removed, MAX_NAMED),
            ("first_rows_removed", (f"{domain}: {name}" for domain, name in self.rows_removed), MAX_NAMED_ROWS),
            ("first_rows_added", (f"{domain}: {name}" for domain, name in self.rows_added), MAX_NAMED_ROWS),
        )
        for name, values, most in named:
            first = [str(value)[:300] for value in islice(values, most)]
            if first:
                details[name] = "\n".join(first)
        return details

    def losses(self, before: Losses | None, now: datetime) -> Losses | None:
        """What is lost once these changes are made too; None while nothing is."""
        lost = len(self.rows_removed)
        if before is not None and before.lasts(now):
            return msgspec.structs.replace(before, rows_lost=before.rows_lost + lost)
        return Losses(now, self.rows_before, lost) if lost else None


def hold_reasons(
    before: TrustList | None,
    floor: datetime | None,
    after: TrustList,
    changes: ListChanges,
    losses: Losses | None,
    now: datetime,
) -> tuple[str, ...]:
    """Why `after` must wait for a human, one sentence each; empty when it may be used.

    `floor` is the date of the last list accepted, which is known even where its copy is lost; `losses` what lists
    accepted since a human last decided took away.
    """
    reasons = []
    dated = after.generated_at.isoformat()
    if floor is not None and after.generated_at < floor:
        reasons.append(f"it is dated {dated}, before the accepted list of {floor.isoformat()}")
    elif before is not None and after.generated_at == before.generated_at and not changes.empty:
        reasons.append(f"it has the date of the list in use, {dated}, and says something else")
    lost = len(changes.rows_removed)
    together = changes.losses(losses, now)
    if before is None or not lost or together is None:
        return tuple(reasons)
    if _is_much(lost, changes.rows_before):
        reasons.append(f"it lacks {lost} of the {changes.rows_before} rows of the list in use")
    elif _is_much(together.rows_lost, together.rows_before):
        reasons.append(
            f"with it {together.rows_lost} of the {together.rows_before} rows of {together.since:%Y-%m-%d %H:%M} are "
            "lost, in small steps"
        )
    return tuple(reasons)


def _is_much(lost: int, of: int) -> bool:
    return lost * 100 >= of * HOLD_LOSS_PERCENT


def _rows(pairs: Iterable[tuple[str, DistinguishedName]]) -> _Rows:
    return tuple(sorted(pairs, key=lambda pair: (pair[0], str(pair[1]))))
