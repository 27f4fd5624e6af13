"""The report on a monitored run: what its steps tell of the noise, alone or beside another run's.

A run has a part for each monitor: one of all parameters, one of the final norm, and so on. A finding on
estimators comes from all parameters where they tell, else from a part by its name; a noise scale comes from
all parameters whenever they were measured, for those of parts are of another size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rlvar import config
from rlvar.analysis.measured import part_note
from rlvar.analysis.table import estimators_html
from rlvar.reporting import run_verdict
from rlvar.reporting.run_parts import Run, RunPart, Watched, in_one_unit, parts_of
from rlvar.reporting.text import clipped, table, wrapped
from rlvar.reporting.words import capital
from rlvar.reporting.writing import Paged, now
from rlvar.stats.estimate import Estimate, Result
from rlvar.stats.shown import html_lines, html_list, measured, printable
from rlvar.stats.unpaired import unpaired_ratio


@dataclass(frozen=True, eq=False, repr=False)
class Finding(Result):
    """A sentence, and the figure that it is about: its kind and the title of the part it is of."""

    text: str
    figure: str
    part: str
    run: str | None = None  # of two


@dataclass(frozen=True, eq=False, repr=False)
class RunReport(Paged, Result):
    """What `Monitor.report` gives: ``print`` shows sentences and tables, `to_html` writes the page.

    Attributes
    ----------
    runs : tuple of Run
        One run, or two.
    made : str
        When the report was made, in UTC.
    version : str
        Of rlvar.
    findings : tuple of Finding
        The sentences with what they are about.
    noise_scale_ratios : dict of Estimate
        Of two runs, the noise scale of the first over that of the second, for each part that both have.
    """

    _also = ("verdict", "noise_scale_ratios")
    runs: tuple[Run, ...]
    made: str
    version: str = field(default=config.version)

    @property
    def verdict(self) -> list[str]:
        """The findings in plain sentences, each with its numbers."""
        return [each.text for each in self.findings]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(printable(text), figure, part, run) for text, figure, part, run in self._sentences()
        )

    def _sentences(self) -> Iterator[tuple[str, str, str, str | None]]:
        if len(self.runs) == 1:
            for text, figure, part in run_verdict.sentences(self.runs[0].parts):
                yield text, figure, part, None
            return
        for text, figure, part in run_verdict.of_two(*self.runs):
            yield text, figure, part, None
        for run in self.runs:
            for text, figure, part in run_verdict.sentences(run.parts, short=True):
                yield f"{run.name}: {text}", figure, part, run.name

    @property
    def noise_scale_ratios(self) -> dict[str, Estimate]:
        if len(self.runs) < 2:
            return {}
        pairs = [(a, b) for a in self.runs[0].parts for b in self.runs[1].parts if a.title == b.title]
        found = {a.title: in_one_unit(a, b) for a, b in pairs}
        return {title: unpaired_ratio(*pair[:2]) for title, pair in found.items() if pair is not None}

    def __repr__(self) -> str:
        blocks = ["Verdict\n" + "\n".join(map(wrapped, self.verdict))]
        blocks += ["\n".join([printable(title), *_lines(part)]) for title, part in self._parts()]
        return "\n\n".join(blocks)

    def _repr_html_(self) -> str:
        shown = html_list("Verdict", self.verdict)
        for title, part in self._parts():
            rows = estimators_html(part.rows, part.reference, part.unit) if part.rows else ""
            shown += html_lines([title]) + rows + html_lines(basis(part))
        return shown

    def _parts(self) -> Iterator[tuple[str, RunPart]]:
        """Yield each part with its title."""
        for run in self.runs:
            for part in run.parts:
                yield capital(part.title) if len(self.runs) == 1 else f"{run.name}, {part.title}", part

    def _page(self) -> str:
        from rlvar.reporting.run_page import run_page

        return run_page(self)


def run_report(
    monitor: Watched | Sequence[Watched],
    other: Watched | Sequence[Watched] | None = None,
    *,
    names: Sequence[str] = ("this run", "the other"),
) -> RunReport:
    """Report on a run that monitors have watched, maybe beside another run.

    Parameters
    ----------
    monitor : Monitor or sequence of Monitor
        Those of the run: several are of one part of the parameters each.
    other : Monitor or sequence of Monitor, optional
        Those of another run, which is set beside it.
    names : sequence of str, default ("this run", "the other")
        What to call the two; the first alone where there is no other.

    Returns
    -------
    RunReport

    Raises
    ------
    ValueError, TypeError
        For what is no monitor, two monitors of one part, confidences that differ, or names that are not
        one for each run.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> monitor = rlvar.Monitor(["rloo", "single"])
    >>> for step in range(20):  # the training loop
    ...     scores = rng.standard_normal((64, 1, 100))
    ...     rewards = (scores[:, 0, 0] + rng.standard_normal(64) > 0).astype(float)
    ...     monitor.update(rlvar.Rollouts(scores, rewards, groups=np.arange(64) // 8))
    >>> report = monitor.report()  # report.to_html("run.html") is the page
    >>> print(report.verdict[1])  # doctest: +NORMALIZE_WHITESPACE
    Single-step needs 1.74 times as many groups as RLOO for the same precision
    (95% interval 1.62 to 1.87).
    """
    runs = [("monitor", monitor)] if other is None else [("monitor", monitor), ("other", other)]
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be strings, one for each run, got {names!r}")
    if len(names) < len(runs) or len(set(names[: len(runs)])) < len(runs):
        raise ValueError(f"names must be {len(runs)} that differ, got {list(names)!r}")
    made = now()
    found = tuple(Run(name, parts_of(*each)) for name, each in zip(names, runs, strict=False))
    if len({part.confidence for run in found for part in run.parts}) > 1:
        raise ValueError(f"{' and '.join(name for name, _ in runs)} must have one confidence")
    return RunReport(found, made)


def _lines(part: RunPart) -> list[str]:
    """Return the table of a part, and what it was computed from."""
    if not part.rows:
        return ["  no step seen yet"]
    head = ("estimator", f"variance / {clipped(part.reference, 12)}", f"noise scale ({part.unit}s)")
    lines = [(row.name, measured(row.ratio), measured(row.noise_scale, bounded=True)) for row in part.ranked]
    return [*table(head, lines), *map(wrapped, basis(part))]


def basis(part: RunPart) -> list[str]:
    """Say what the numbers of a part were computed from."""
    if part.window is None:
        pooled = f"pooled with weights of 1, {part.decay:g}, ... back in time"
    elif part.pooled < min(part.steps, part.window):
        pooled = f"of which {part.pooled:,}, with two or more {part.unit}s, are pooled"
    elif part.steps > part.window:
        pooled = f"of which the last {part.window:,} are pooled"
    else:
        pooled = "all pooled"
    of = "" if part.scores_of is None else f" Scores: {part.scores_of}."
    lines = [
        f"{part.steps:,} monitored steps, {pooled}; {part.units:.4g} {part.unit}s a step, "
        f"{part.batch_units:.4g} in a batch. {part.confidence:.0%} intervals, from pairs of neighbouring "
        f"steps.{of}"
    ]
    if part.part is not None:
        lines.append(part_note(part.part))
    return [printable(line) for line in lines]
