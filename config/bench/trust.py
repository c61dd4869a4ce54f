"""`relais bench trust`: what believing costs, beside other validators, and what proving costs, beside the bare store.

Rows the project has set a bar for say so: `compared` is what is held against `bar` and `goal` and in which direction,
`met` and `goal_met` whether this run reached them. Nothing is asserted. All keys, certificates and CRLs are synthetic
and made before the time runs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.bench import hostile, journal, lists, validating
from config.bench.report import Bar, result

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    validating: validating.Scale
    hostile: hostile.Scale
    lists: lists.Scale
    journal: journal.Scale


SCALES = {
    "quick": Scale(
        validating.Scale(runs=3, turns=4, leaves=100, few=10, entries=100_000),
        hostile.Scale(runs=5),
        lists.Scale(runs=3, sizes=(1_000, 100_000, 200_000), lookups=20_000, checks=300),
        journal.SCALES["quick"],
    ),
    "full": Scale(
        validating.Scale(runs=7, turns=10, leaves=200, few=20, entries=1_000_000),
        hostile.Scale(runs=15),
        lists.Scale(runs=5, sizes=(1_000, 100_000, 1_000_000), lookups=100_000, checks=1_000),
        journal.SCALES["full"],
    ),
}


BARS = {
    "validate_revoked_checked_vs_cryptography": Bar(0.4, 0.8, "ratio"),
    "validate_vs_pyhanko": Bar(1.5, 3, "ratio"),
    "pathological_same_subject_50_ms": Bar(20, 5, at_most=True),
    "crl_load_eps": Bar(400_000, 1_000_000),
    # a list of a thousand fits into the processor's caches, one of a million does not: that much is not growth
    "crl_lookup_growth": Bar(2, None, at_most=True),
    "journal_append_eps": Bar(10_000, 20_000),
    "journal_verify_eps": Bar(200_000, None),
}


def trust(scale: str) -> Row:
    """Measure at `quick` or `full` scale. Raises `BenchError` when something is judged wrongly."""
    return measure(scale, SCALES[scale])


def measure(name: str, scale: Scale) -> Row:
    """See `trust`."""
    rows = validating.validating(scale.validating)
    rows += hostile.hostile(scale.hostile)
    with tempfile.TemporaryDirectory(prefix="relais-bench-") as place:
        rows += lists.lists(scale.lists, Path(place))
    rows += journal.measure(scale.journal)
    return result("trust", name, [BARS[row["id"]].judge(row) if row["id"] in BARS else row for row in rows])
