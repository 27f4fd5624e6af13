"""Estimators side by side, best first, for a notebook and for a data frame.

The best needs the fewest rollouts for the same precision. Where the mean gradients are known to agree, but
for a factor, it has the least variance, that factor divided out; else the least noise scale. Both are
`noise_scale_ratio`, and estimators come last where that is not resolved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeVar

from rlvar.stats.estimate import Estimate
from rlvar.stats.frame import columns_of
from rlvar.stats.shown import html_table, measured

_NUMBERS = ("variance", "ratio", "signal", "noise_scale", "noise_scale_ratio", "alignment")


class EstimatorRow(Protocol):
    """What the rows of a comparison and of a monitor have."""

    @property
    def name(self) -> str: ...
    @property
    def variance(self) -> Estimate: ...
    @property
    def ratio(self) -> Estimate: ...
    @property
    def signal(self) -> Estimate: ...
    @property
    def noise_scale(self) -> Estimate: ...
    @property
    def noise_scale_ratio(self) -> Estimate: ...
    @property
    def alignment(self) -> Estimate: ...
    @property
    def factor(self) -> float | None: ...


Row = TypeVar("Row", bound=EstimatorRow)


def ranked(rows: Iterable[Row]) -> list[Row]:
    """Return estimators the quietest first, and last those whose place is not resolved."""

    def place(row: Row) -> tuple[bool, float]:
        ratio = row.noise_scale_ratio
        told = (ratio.resolved or math.isnan(ratio.low)) and ratio.value >= 0
        return not told, float(f"{ratio.value:.9g}") if told else 0.0  # rounding makes no order

    return sorted(rows, key=place)


def estimators_html(rows: Sequence[EstimatorRow], reference: str, unit: str) -> str:
    """Return the table of estimators; where means may differ, with their alignment."""
    return html_table(*estimators_table(ranked(rows), reference, unit))


def estimators_table(
    rows: Sequence[EstimatorRow], reference: str, unit: str
) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of that table."""
    differ = any(row.factor is None for row in rows)
    scaled = any(row.factor != 1.0 for row in rows)
    head = ["estimator", f"variance, ratio to {reference}", f"noise scale ({unit}s)"]
    head += [f"noise scale, ratio to {reference}"] * scaled + ["variance", "signal"] + ["alignment"] * differ
    body = []
    for row in rows:
        cells = [row.name, measured(row.ratio), measured(row.noise_scale, bounded=True)]
        cells += [measured(row.noise_scale_ratio, bounded=True)] * scaled
        cells += [measured(row.variance), measured(row.signal)]
        body.append(cells + [measured(row.alignment, bounded=True, most=1)] * differ)
    return head, body


def estimator_columns(rows: Sequence[Any], *more: str) -> dict[str, list[Any]]:
    """Return columns for a data frame, a row an estimator."""
    columns = columns_of(rows, ("name", *_NUMBERS, *more))
    return {"estimator": columns.pop("name"), **columns}
