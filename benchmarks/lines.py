"""A row of the table with what its cells say."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from plan import Plan, Planned
from rows import Row


@dataclass(frozen=True)
class Line:
    """A row with what was measured.

    Attributes:
        results: of the cells that are finished.
    """

    row: Row
    planned: Planned
    results: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def values(self, metric: str) -> list[float]:
        """One for each seed."""
        return [result["values"][metric] for result in self.results if metric in result["values"]]

    def mean(self, metric: str) -> float | None:
        """Over the seeds."""
        found = self.values(metric)
        return statistics.mean(found) if found else None

    def spread(self, metric: str) -> float:
        """Half the distance from the smallest to the largest seed."""
        found = self.values(metric)
        return (max(found) - min(found)) / 2 if found else 0.0

    @property
    def whole(self) -> bool:
        """Whether every seed is there: an order of rows that lack some is none."""
        return bool(self.results) and len(self.results) == len(self.planned.test)

    def least(self, key: str) -> float | None:
        """Of the seeds, of what stands beside the metrics."""
        return min((result[key] for result in self.results if result.get(key)), default=None)


def lines_of(plan: Plan) -> dict[str, Line]:
    """Every row that a table has, with its results."""
    found = {}
    for row in plan.rows.values():
        if row.kind != "model":
            planned = plan.of(row)
            results = [result for cell in planned.test if (result := cell.read(plan.out)) is not None]
            found[row.name] = Line(row, planned, results)
    return found
