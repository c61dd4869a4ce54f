"""The JSON object every benchmark prints, and the machine it was measured on."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

VERSION = 1


def row(
    identifier: str,
    values: Sequence[float],
    unit: str,
    n: int,
    *,
    reference: str | None = None,
    reference_values: Sequence[float] = (),
) -> dict[str, Any]:
    """One figure: the median of its runs, `values` one a run; `n` is the size of one run.

    `spread` is (largest - smallest) / median of the runs. `ratio` is value / reference_value, medians both.
    """
    value = statistics.median(values)
    reference_value = statistics.median(reference_values) if reference_values else None
    return {
        "id": identifier,
        "value": _rounded(value),
        "unit": unit,
        "n": n,
        "runs": len(values),
        "spread": _rounded((max(values) - min(values)) / value) if value else 0.0,
        "reference": reference,
        "reference_value": None if reference_value is None else _rounded(reference_value),
        "ratio": _rounded(value / reference_value) if reference_value else None,
    }


@dataclass(frozen=True, slots=True)
class Bar:
    """What a row is held against."""

    bar: float
    goal: float | None
    what: Literal["value", "ratio"] = "value"
    at_most: bool = False
    from_n: int = 0
    """The bar is set for this size: a smaller run shows it, and does not say that it was met."""

    def judge(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with `compared`, `bar`, `goal`, and whether they were met: None for what was not measured."""
        large = (row.get("n") or 0) >= self.from_n
        measured = row[self.what] if large else None
        return {
            **row,
            "compared": f"{self.what} {'<=' if self.at_most else '>='}",
            "bar": self.bar,
            "goal": self.goal,
            "met": self._met(measured, self.bar),
            "goal_met": self._met(measured, self.goal),
            **({"bar_from_n": self.from_n} if self.from_n else {}),
        }

    def _met(self, measured: float | None, wanted: float | None) -> bool | None:
        if measured is None or wanted is None:
            return None
        return measured <= wanted if self.at_most else measured >= wanted


def result(bench: str, scale: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The whole object."""
    return {"bench": bench, "version": VERSION, "machine": machine(), "scale": scale, "rows": list(rows)}


def machine() -> dict[str, Any]:
    """What it was measured on; `load` tells whether the machine was doing something else as well (1, 5, 15 minutes)."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of the values do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -int(-len(ranked) * percent // 100) - 1)]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _rounded(value: float) -> float:
    """Four significant digits: more would claim a precision no run has."""
    return float(f"{value:.4g}")
