"""What one trust list changes compared with another, and when that is too much to be believed without a human.

A signed list can still be wrong: an old one served again, an export that stopped half-way. Both would silence
establishments at once, or bring back an operator who was removed, so such a list is held and the one in use stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trust.names import DistinguishedName
from trust.trustlist import TrustList

HOLD_LOSS_PERCENT = 10
"""A list that lost this share of its rows, or more, waits for a human."""
MAX_NAMED = 20
"""How many domains and names each a summary spells out."""


@dataclass(frozen=True, slots=True)
class ListChanges:
    """From one list to the next; a row is one domain with one operator, however often it is written."""

    rows_before: int
    rows_added: tuple[tuple[str, DistinguishedName], ...]
    rows_removed: tuple[tuple[str, DistinguishedName], ...]
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
        """Bounded: counts, then the first `MAX_NAMED` domains and operators of each kind."""
        details = {name: str(count) for name, count in self.counts().items()}
        named: tuple[tuple[str, Iterable[object]], ...] = (
            ("first_domains_added", self.domains_added),
            ("first_domains_removed", self.domains_removed),
            ("first_operators_added", self.operators_added),
            ("first_operators_removed", self.operators_removed),
        )
        for name, values in named:
            first = [str(value)[:300] for value in list(values)[:MAX_NAMED]]
            if first:
                details[name] = "\n".join(first)
        return details


def hold_reasons(
    before: TrustList | None, floor: datetime | None, after: TrustList, changes: ListChanges
) -> tuple[str, ...]:
    """Why `after` must wait for a human, one sentence each; empty when it may be used.

    `floor` is the date of the last list accepted, which is known even where its copy is lost.
    """
    reasons = []
    if floor is not None and after.generated_at < floor:
        reasons.append(f"it is dated {after.generated_at.isoformat()}, before the accepted list of {floor.isoformat()}")
    lost = len(changes.rows_removed)
    if before is not None and lost and lost * 100 >= changes.rows_before * HOLD_LOSS_PERCENT:
        reasons.append(f"it lacks {lost} of the {changes.rows_before} rows of the list in use")
    return tuple(reasons)


def _rows(pairs: Iterable[tuple[str, DistinguishedName]]) -> tuple[tuple[str, DistinguishedName], ...]:
    return tuple(sorted(pairs, key=lambda pair: (pair[0], str(pair[1]))))
