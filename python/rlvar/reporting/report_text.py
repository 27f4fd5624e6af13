"""The report on a terminal: the verdict, one table, how the variance grows, and where to look for more.

`Report.text` is this. Variances in the table are relative to that of the reference, with a known factor
between the mean gradients divided out; where means may differ, noise scales rank (`Comparison.ranked`).
"""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

import numpy as np

from rlvar.analysis.comparison import Comparison, ComparisonRow, side_by_side
from rlvar.analysis.decompose import Decomposition, sources
from rlvar.reporting.planning import plan_table
from rlvar.reporting.text import chart, clipped, painted, rollouts_lines, sparklines, table, titled, wrapped
from rlvar.reporting.verdict import quietest_of, unit
from rlvar.reporting.words import long_name
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import measured, printable

if TYPE_CHECKING:
    from rlvar.reporting.report import Report

_REFERENCE = 12  # columns of its name in the head of the table
_MORE = [
    ("every table and chart", "--full", "print(report.text(full=True))"),
    ("a page with pictures", "--html OUT", "report.to_html(path)"),
    ("every number", "--json OUT", "report.to_dict()"),
    ("why gradients are noisy", "rlvar explain", ""),
]


def report_text(report: Report, *, full: bool, colour: bool) -> str:
    """Return the report as the terminal shows it."""
    comparison = report.comparison
    blocks = [
        rollouts_lines(report.source, report.rollouts),
        titled("Verdict", report.verdict, colour),
        *([titled("Notes", report.notes, colour)] if report.notes else []),
        _estimators(comparison, colour),
    ]
    drawn = {name: curve for name, curve in _growth(report).items() if len(curve) > 1}
    if drawn and not full:
        steps = max(map(len, drawn.values()))
        title = f"Growth of the variance with the steps summed, 1 to {steps:,}"
        blocks.append([painted(title, "bold", colour), *sparklines(drawn)])
    if full:
        blocks += [[block] for block in _everything(report)]
    ways = table(("More", "command", "Python"), _MORE[full:])
    blocks.append([painted(ways[0].strip(), "bold", colour), *ways[1:]])
    return "\n\n".join("\n".join(block) for block in blocks)


def comparable(comparison: Comparison, row: ComparisonRow) -> bool:
    """Whether the variance of a row, with a known factor divided out, says how many rollouts it needs."""
    return row.name == comparison.reference or row.factor is not None or comparison.same_mean(row)


def relative(row: ComparisonRow) -> Estimate:
    """Return a variance over that of the reference, with a known factor between their means divided out."""
    return row.ratio if row.factor in (None, 1.0) else row.noise_scale_ratio


def _estimators(comparison: Comparison, colour: bool) -> list[str]:
    reference, rows = comparison.reference, comparison.ranked
    apart = [row for row in rows if not comparable(comparison, row)]
    scaled = [row for row in rows if row.factor not in (None, 1.0)]
    level, units = f"{comparison.confidence:.0%}", f"{comparison.units:,} {unit(comparison)}"
    head = (
        "estimator",
        f"variance / {clipped(printable(reference), _REFERENCE)}",
        f"noise scale ({unit(comparison)})",
    )
    marks = ["*" * (row in apart) + "+" * (row in scaled) for row in rows]
    cells = [(row.name + mark, *_cells(row, reference)) for row, mark in zip(rows, marks, strict=True)]
    styles = ["dim" if row in apart else _certainty(relative(row)) for row in rows]
    lines = [
        painted("Estimators, the quietest first", "bold", colour),
        *table(head, cells, styles=styles, colour=colour),
        wrapped(f"{level} intervals in brackets: {comparison.interval} over {units}.{_settings(comparison)}"),
    ]
    if apart:
        lines.append(
            wrapped(
                f"* may have another mean gradient than {reference}: go by the noise scale, as the order "
                "does, not by the variance."
            )
        )
    if scaled:
        lines.append(
            wrapped(
                f"+ has a known multiple of the mean gradient of {reference}: its square is divided out of "
                "the variance."
            )
        )
    return lines


def _settings(comparison: Comparison) -> str:
    """Name what is not as usual."""
    ratios = {row.importance.importance for row in comparison if row.importance is not None} - {"none"}
    aggregation = comparison.aggregation
    return "".join(
        [
            *(f" Importance ratios: {each}." for each in sorted(ratios)),
            *([f" Aggregation: {aggregation}."] if aggregation not in (None, "sum") else []),
            *([" Coordinates are scaled."] if comparison.scaled else []),
        ]
    )


def _cells(row: ComparisonRow, reference: str) -> tuple[str, str]:
    ratio = relative(row)
    known = row.name == reference or ratio.low == ratio.high
    shown = measured(Estimate(ratio.value)) if known else measured(ratio)
    return shown, measured(row.noise_scale, bounded=True)


def _certainty(ratio: Estimate) -> str:
    """Green for what is surely quieter than the reference, yellow for what is surely noisier."""
    return "green" if ratio.high < 1 else "yellow" if ratio.low > 1 else "plain"


def _growth(report: Report) -> dict[str, np.ndarray]:
    """Return the growth curves that are drawn: of the reference and of the quietest estimator."""
    comparison = report.comparison
    drawn = {comparison.reference, quietest_of(comparison)}
    return {
        names[0]: parts.growth[: reach(report.rollouts)]
        for names, parts in distinct(report)
        if drawn & set(names) and parts.variance.value > 0
    }


def _everything(report: Report) -> list[str]:
    """Return what `text` has more if it is asked for all: every table, and charts of the growth."""
    comparison, tokens = report.comparison, report.comparison.aggregation == "token-mean"
    intervals = f"{comparison.confidence:.0%} intervals: {comparison.interval}"
    lines = [
        f"Estimators ({intervals} over {comparison.units} {unit(comparison)})",
        indent(side_by_side(comparison), "  "),
    ]
    if comparison.units < len(report.rollouts):
        means = "groups" if tokens else "group means"
        lines.append(
            wrapped(
                f"This table uses {means}, because rollouts of a group are dependent; the sections below use "
                "single rollouts."
            )
        )
    at_the_end = report.rollouts.rewards.ndim == 1 and report.rollouts.shape[1] > 1
    if at_the_end and "single" in comparison and "multi" not in comparison:
        lines.append("  With one reward at the end, multi-step is single-step.")
    if tokens:
        lines.append("  Below, gradients are sums over tokens, not divided by their number.")
    blocks = ["\n".join(lines)]
    for names, parts in distinct(report):
        same = "".join(f" ({long_name(name)}{_times(comparison, name)})" for name in names[1:])
        title = f"Where the variance of {long_name(names[0])} comes from{same}"
        blocks.append(f"{wrapped(title, indent=0)}\n{indent(sources(parts), '  ')}")
    if report.plans:
        blocks.append(plan_table(report.plans, comparison.reference))
    return blocks + [chart(name, curve) for name, curve in _growth(report).items()]


def distinct(report: Report) -> list[tuple[list[str], Decomposition]]:
    """Return each decomposition once, with the names of those that it is of, but for a factor."""
    names: dict[str, list[str]] = {}
    reference = report.comparison.reference
    for row in report.comparison:
        like = reference if _proportional(row) and reference in report.comparison else row.name
        names.setdefault(like, []).append(row.name)
    ordered = ([like, *[name for name in each if name != like]] for like, each in names.items())
    return [(each, report.decompositions[each[0]]) for each in ordered]


def _times(comparison: Comparison, name: str) -> str:
    row = comparison[name]
    return " is the same" if row.identical else f": {row.ratio.value:.4g} times these variances"


def _proportional(row: ComparisonRow) -> bool:
    """Whether the gradients of an estimator are those of the reference, but for a factor."""
    return row.identical or (row.factor is not None and row.ratio.low == row.ratio.high)


def reach(rollouts: Rollouts) -> int:
    """Return the number of steps up to the last that any rollout reaches, at least 1."""
    live = rollouts.live.any(axis=0)
    return int(np.flatnonzero(live)[-1]) + 1 if live.any() else 1
