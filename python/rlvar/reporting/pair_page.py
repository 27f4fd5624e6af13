"""The page of two sets of rollouts side by side: findings, each with its figure, and the tables below."""

from __future__ import annotations

from collections.abc import Sequence

from rlvar.reporting.html import Key, Picture, alternative, page
from rlvar.reporting.pair import PairReport, Table, basis, cells, tables
from rlvar.reporting.plots import dots
from rlvar.reporting.words import capital, long_name
from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import measured


def pair_page(report: PairReport) -> str:
    """Return the page of a report."""
    pictures = list(_pictures(report))
    where = {picture.anchor: f"Figure: {picture.title}" for picture in pictures}
    shown = [
        (each.text, each.figure, where[each.figure])
        if each.figure in where
        else (each.text, "table", "Table")
        for each in report.findings
        if each.kind == "verdict"
    ]
    return page(
        "pair.html",
        report=report,
        pair=report.pair,
        findings=shown,
        pictures=pictures,
        tables=[_table(each, report.pair.names) for each in tables(report.pair, full=True)],
        basis=basis(report.pair),
        sets=[
            (name, source.split("\n"), each)
            for name, source, each in zip(report.pair.names, report.sources, report.reports, strict=True)
        ],
    )


def _table(table: Table, names: tuple[str, str]) -> tuple[str, list[str], list[tuple[str, ...]]]:
    """Return a table's title, head and rows."""
    first = "Estimator" if table.last == "ratio" else "Mean of a rollout"
    head = [first, *names, f"{capital(table.last)}, second to first"]
    return table.title, head, [cells(row, table.bounded) for row in table.rows]


def _pictures(report: PairReport) -> list[Picture]:
    pair = report.pair
    a, b = pair.names
    labels = [long_name(row.name) for row in pair]
    over = _ratios(
        "batches",
        "Batch for as much signal as noise",
        f"How many times as large a batch {b} needs as {a}; left of the line {b} needs the smaller one.",
        labels,
        [row.noise_scale_ratio for row in pair],
        "ratio of noise scales, second over first",
        signals=True,
    )
    keys = [Key(a, 0), Key(b, 1)]
    rows = [(label, i, row.noise_scale[i]) for label, row in zip(labels, pair, strict=True) for i in (0, 1)]
    told = [f"{label}, {pair.names[i]} {measured(x, bounded=True)}" for label, i, x in rows]
    svg = dots(
        "scales",
        alternative("Noise scales", told),
        [label if not i else "" for label, i, _ in rows],
        [x for *_, x in rows],
        "noise scale (rollouts)",
        line=None,
        signals=True,
        looks=[i for _, i, _ in rows],
    )
    aid = "A batch of so many rollouts has as much signal as noise; an arrow is an end that is not known."
    noise = Picture("scales", "Noise scales", aid, svg, tuple(keys))
    pictures = [over, noise]
    if pair.coordinates != "different":
        aid = f"Variance of the batch's gradient, times its rollouts: right of the line {b} is noisier. "
        aid += "By itself it sets no batch."
        ratios = [row.ratio for row in pair]
        pictures.append(
            _ratios("variance", "Variance", aid, labels, ratios, "ratio of variances, second over first")
        )
    return pictures


def _ratios(
    anchor: str,
    title: str,
    aid: str,
    labels: Sequence[str],
    ratios: Sequence[Estimate],
    xlabel: str,
    *,
    signals: bool = False,
) -> Picture:
    told = [f"{label} {measured(x, bounded=signals)}" for label, x in zip(labels, ratios, strict=True)]
    svg = dots(anchor, alternative(capital(xlabel), told), labels, ratios, xlabel, signals=signals)
    return Picture(anchor, title, aid, svg)
