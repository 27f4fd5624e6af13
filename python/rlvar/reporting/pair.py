"""The report on two sets of rollouts side by side: what ``rlvar report A B`` prints.

The command calls

    report_pair(a, b, estimators, names=(A, B), sources=(line, line), paired=None | True | False,
                importance=..., truncate=..., aggregation=..., progress=show) -> PairReport

with the rollouts of two files, and shows `.text(full=, colour=)`, `.verdict`, `.to_dict()` or
`.to_html(path)`, as of a `Report`. Numbers of either set are those of its own report, which `reports` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlvar._types import Aggregation, Importance
from rlvar.analysis.compare_rollouts import RolloutsComparison, beside, check_pair, of_set
from rlvar.config import version
from rlvar.reporting.findings import Concluded, Said
from rlvar.reporting.pair_verdict import pair_verdict
from rlvar.reporting.report import Report, report
from rlvar.reporting.text import WIDTH, clipped, painted, rollouts_lines, table, titled, wrapped
from rlvar.reporting.writing import Paged, now
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import columns, html_lines, html_list, html_table, measured, printable
from rlvar.weights.estimators import EstimatorLike, resolve

_NAME = 18  # columns of the name of a set in the head of a table


@dataclass(frozen=True, repr=False)
class PairReport(Paged, Concluded):
    """Two sets of rollouts side by side, with the report on each; ratios are second over first.

    Attributes
    ----------
    pair : RolloutsComparison
        The two side by side.
    reports : (Report, Report)
        The report on each.
    sources : (str, str)
        Where the two came from.
    made : str
        When, in UTC.
    version : str
        That of rlvar.
    verdict, notes : list of str
        The main findings in at most six sentences, and what limits them.
    """

    pair: RolloutsComparison
    reports: tuple[Report, Report]
    sources: tuple[str, str]
    made: str
    version: str = version

    def _said(self) -> list[Said]:
        return pair_verdict(self.pair, self.reports)

    def text(self, *, full: bool = False, colour: bool = False) -> str:
        """Return the report as a terminal shows it, in at most 80 columns: what ``print`` shows.

        Parameters
        ----------
        full : bool, default False
            Signals too, and the whole report on each of the two, parts of which are wider.
        colour : bool, default False
            With the codes that make a terminal show colours.

        Returns
        -------
        str
        """
        blocks = []
        for name, source, each in zip(self.pair.names, self.sources, self.reports, strict=True):
            label = source if source.startswith(name) else f"{name}, {source}"
            blocks += rollouts_lines(label, each.rollouts)
        text = [blocks, titled("Verdict", self.verdict, colour)]
        if self.notes:
            text.append(titled("Notes", self.notes, colour))
        text += _shown(self.pair, full, colour)
        if full:
            for name, each in zip(self.pair.names, self.reports, strict=True):
                title = painted(wrapped(f"The report on {name}", indent=0), "bold", colour)
                text.append([f"{title}\n\n{each.text(full=True, colour=colour)}"])
        return "\n\n".join("\n".join(block) for block in text)

    def _page(self) -> str:
        from rlvar.reporting.pair_page import pair_page

        return pair_page(self)

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        shown = [html_list("Verdict", self.verdict)]
        for each in tables(self.pair, full=False):
            rows = [cells(row, each.bounded) for row in each.rows]
            shown.append(html_table((each.title, *self.pair.names, each.last), rows))
        return "".join([*shown, html_lines([basis(self.pair)]), html_list("Notes", self.notes)])


def report_pair(
    a: Rollouts,
    b: Rollouts,
    estimators: EstimatorLike | Sequence[EstimatorLike] | None = None,
    *,
    names: tuple[str, str] = ("A", "B"),
    paired: bool | None = None,
    importance: Importance = "none",
    truncate: float | None = None,
    aggregation: Aggregation = "sum",
    confidence: float = 0.95,
    num_threads: int | None = None,
    sources: tuple[str, str] | None = None,
    progress: Callable[[str], object] | None = None,
) -> PairReport:
    """Report on two sets of rollouts side by side: two checkpoints, two temperatures, two models.

    It is what ``rlvar report A B`` prints: `compare_rollouts`, with the `report` on each.

    Parameters
    ----------
    a, b, estimators, names, paired, importance, truncate, aggregation, confidence, num_threads
        As in `compare_rollouts`.
    sources : (str, str), optional
        Where the two came from: the first lines. By default their names.
    progress : callable, optional
        A function of the name of each stage, called before it starts.

    Returns
    -------
    PairReport
        ``print(report)`` shows it; ``report.verdict`` has the findings in sentences.

    Raises
    ------
    ValueError, TypeError
        As `compare_rollouts`.

    Examples
    --------
    >>> import rlvar
    >>> whole = rlvar.datasets.cartpole()
    >>> found = rlvar.report_pair(whole[:100], whole[100:], names=("before", "after"))
    >>> print(found.verdict[-1])  # doctest: +NORMALIZE_WHITESPACE
    The mean rewards are not distinguishable: 50.5 in after and 51.8 in before, a difference of -1.34
    (95% interval -9.7 to 7.02).
    """
    made = now()
    names = check_pair(a, b, names, paired)
    asked = None if estimators is None else resolve(estimators)
    sources = names if sources is None else sources
    show = progress or (lambda stage: None)
    reports = []
    for rollouts, name, source in zip((a, b), names, sources, strict=True):
        with of_set(name):
            reports.append(
                report(
                    rollouts,
                    asked,
                    importance=importance,
                    truncate=truncate,
                    aggregation=aggregation,
                    confidence=confidence,
                    num_threads=num_threads,
                    source=source,
                    progress=lambda stage, name=name: show(f"{name}: {stage}"),  # type: ignore[misc]
                )
            )
    found = reports[0].comparison, reports[1].comparison
    pair = beside(a, b, found, names=names, paired=paired)
    return PairReport(pair, (reports[0], reports[1]), sources, made)


@dataclass(frozen=True)
class Table:
    """Estimates of both sets, and their ratio or difference, by row."""

    title: str
    last: str  # "ratio" or "difference", second to first
    rows: tuple[tuple[str, tuple[Estimate, Estimate], Estimate], ...]
    bounded: bool  # whether they rest on signals


def tables(pair: RolloutsComparison, *, full: bool) -> list[Table]:
    """Return what is shown of a pair; signals only in `full`."""
    found = [
        Table(
            "Noise scale: rollouts in a batch with as much signal as noise",
            "ratio",
            tuple((row.name, row.noise_scale, row.noise_scale_ratio) for row in pair),
            True,
        ),
        Table(
            "Variance of the batch's gradient, times its rollouts",
            "ratio",
            tuple((row.name, row.variance, row.ratio) for row in pair),
            False,
        ),
    ]
    if full:
        signals = tuple((row.name, row.signal, row.signal_ratio) for row in pair)
        found.append(Table("Signal: squared norm of the mean gradient", "ratio", signals, True))
    means = (
        ("mean reward", pair.reward, pair.reward_difference),
        ("mean length", pair.length, pair.length_difference),
    )
    return [*found, Table("Rewards and lengths", "difference", means, False)]


def basis(pair: RolloutsComparison) -> str:
    """Say what the intervals are made of."""
    over = " and ".join(f"{n:,} {unit}s" for n, unit in zip(pair.units, pair.unit, strict=True))
    both = f", {pair.shared:,} of them in both" if pair.paired else ""
    return f"{pair.confidence:.0%} intervals in brackets: jackknife over {over}{both}."


def _shown(pair: RolloutsComparison, full: bool, colour: bool) -> list[list[str]]:
    """Return the tables as text, those that are too wide with fewer intervals."""
    a, b = (clipped(printable(name), _NAME) for name in pair.names)
    brief = columns(a) + columns(b) < _NAME
    shown = []
    for each in tables(pair, full=full):
        sign = "/" if each.last == "ratio" else "-"
        head = "", a, b, f"{b} {sign} {a}" if brief else f"{each.last}, 2nd {sign} 1st"
        for short in (False, True):
            lines = table(head, [cells(row, each.bounded, short) for row in each.rows])
            if max(map(columns, lines)) <= WIDTH:
                break
        shown.append([painted(each.title, "bold", colour), *lines])
    shown[-1].append(wrapped(basis(pair)))
    return shown


def cells(
    row: tuple[str, tuple[Estimate, Estimate], Estimate], bounded: bool, short: bool = False
) -> tuple[str, ...]:
    """Return a row as text; in `short` the two have no interval where they need none."""
    name, both, last = row
    plain = [short and (x.resolved or not bounded) for x in both]
    each = [Estimate(x.value) if alone else x for x, alone in zip(both, plain, strict=True)]
    return (name, *(measured(x, bounded=bounded) for x in (*each, last)))
