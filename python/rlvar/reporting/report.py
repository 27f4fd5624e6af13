"""The report on some rollouts: which estimator is quieter, and where the variance comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlvar import _check, config
from rlvar._types import Aggregation, Importance
from rlvar.analysis.compare import compare_batches
from rlvar.analysis.comparison import Comparison
from rlvar.analysis.decompose import Decomposition, decompose_terms
from rlvar.analysis.headroom import BASELINES, BATCH, Headroom, headroom
from rlvar.analysis.on_policy import OnPolicyTest, test_scores
from rlvar.analysis.planning import Plan, plans_of
from rlvar.analysis.sampling import Sampling, sampling_of
from rlvar.reporting.findings import Concluded, Said
from rlvar.reporting.report_text import reach, report_text
from rlvar.reporting.text import about
from rlvar.reporting.verdict import verdict
from rlvar.reporting.words import long_name
from rlvar.reporting.writing import Paged, now
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Result
from rlvar.stats.resampling import Bootstrap
from rlvar.stats.shown import html_lines, html_list
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike, default_estimators, resolve
from rlvar.weights.estimators import estimator as make_estimator

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Report(Paged, Concluded):
    """What `rlvar report` prints: the answers on `rollouts`, which came from `source`.

    Attributes
    ----------
    source : str
        Where the rollouts came from.
    rollouts : Rollouts
    comparison : Comparison
        The estimators side by side.
    decompositions : dict of Decomposition
        Of each estimator by its name.
    on_policy : OnPolicyTest
    sampling : Sampling
        Copies, dead and filtered groups, rollouts that may share prompts.
    headroom : Headroom or None
        What a baseline would remove; None where no baseline leaves the mean alone.
    plans : dict of Plan
        Of as many rollouts, for each estimator whose groups say how its variance depends on their size.
    options : dict
        What was asked for.
    sha256 : dict of str
        The hash of each file that was read, by its name; empty where there was none.
    made, version : str
        When the report was made, in UTC, and by which version of rlvar.
    """

    source: str
    rollouts: Rollouts
    comparison: Comparison
    decompositions: dict[str, Decomposition]
    on_policy: OnPolicyTest
    sampling: Sampling
    headroom: Headroom | None
    plans: dict[str, Plan]
    options: dict[str, Any] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    made: str = ""
    version: str = config.version

    def _said(self) -> list[Said]:
        found = self.comparison, self.decompositions, self.headroom, self.on_policy, self.sampling
        return verdict(*found, self.plans, reach(self.rollouts))

    def _page(self) -> str:
        from rlvar.reporting.report_page import report_page

        return report_page(self)

    def to_dict(self, *, arrays: Sequence[str] = ()) -> dict[str, Any]:
        result = super().to_dict(arrays=arrays)
        for parts in result["decompositions"].values():  # those of the comparison are of all estimators
            del parts["signal"], parts["noise_scale"]
        return result

    to_dict.__doc__ = Result.to_dict.__doc__

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the estimators, as `Comparison.plot`; each of `decompositions` and `plans` has a plot too."""
        return self.comparison.plot(ax)

    def to_frame(self) -> Any:
        """Return a data frame with a row for each estimator, as `Comparison.to_frame`."""
        return self.comparison.to_frame()

    def _repr_html_(self) -> str:
        verdict, notes = html_list("Verdict", self.verdict), html_list("Notes", self.notes)
        return html_lines(about(self.source, self.rollouts)) + verdict + self.comparison.html_table() + notes

    def text(self, *, full: bool = False, colour: bool = False) -> str:
        """Return the report as a terminal shows it, in at most 80 columns: what ``print`` shows.

        Parameters
        ----------
        full : bool, default False
            Every table and chart too, some of which are wider.
        colour : bool, default False
            With the codes that make a terminal show colours.

        Returns
        -------
        str
        """
        return report_text(self, full=full, colour=colour)

    def __repr__(self) -> str:
        return self.text()


def report(
    rollouts: Rollouts,
    estimators: EstimatorLike | Sequence[EstimatorLike] | None = None,
    *,
    reference: str | Estimator | None = None,
    importance: Importance = "none",
    truncate: float | None = None,
    aggregation: Aggregation = "sum",
    interval: Literal["jackknife"] | Bootstrap = "jackknife",
    confidence: float = 0.95,
    num_threads: int | None = None,
    source: str = "rollouts",
    sha256: Mapping[str, str] | None = None,
    progress: Callable[[str], object] | None = None,
) -> Report:
    """Compare estimators on some rollouts and say where the variance of each comes from.

    It is what ``rlvar report`` prints: `compare` with the cross-fitted baselines beside the estimators,
    `headroom`, `decompose` of each estimator and `on_policy_test`, which share their passes over the scores.
    Unbiased estimators share the signal of the quietest, those baselines included: noise scales can differ a
    little from those of `compare` with fewer estimators.

    Parameters
    ----------
    rollouts, estimators, reference, importance, truncate, aggregation, interval, confidence, num_threads
        As in `compare`. The intervals of the decompositions are always the jackknife's.
    source : str, default "rollouts"
        Where the rollouts came from: the first line of the report.
    sha256 : mapping of str to str, optional
        Checksums of the files that held them (`rlvar.files.checksums`), which the page and the JSON repeat.
    progress : callable, optional
        A function of the name of each stage, called before it starts.

    Returns
    -------
    Report
        ``print(report)`` shows it; ``report.verdict`` has the findings in sentences.

    Raises
    ------
    ValueError, TypeError
        As `compare`, and so are warnings.

    Examples
    --------
    >>> import rlvar
    >>> print(rlvar.report(rlvar.datasets.cartpole()).verdict[0])  # doctest: +NORMALIZE_WHITESPACE
    Single-step needs 5.05 times as many rollouts as multi-step for the same precision
    (95% interval 1.86 to 10.2).
    """
    show = progress or (lambda stage: None)
    batch = Batch.of(
        rollouts, importance=importance, truncate=truncate, aggregation=aggregation, threads=num_threads
    )
    asked = default_estimators(batch) if estimators is None else resolve(estimators)
    names = [each.name for each in asked]
    show(f"comparing {len(asked)} estimators")
    # One constant for the rollout takes one return for it, and one for each step takes the steps.
    known = BASELINES if not batch.several.any() else [name for name in BASELINES if name != "single-optimal"]
    known = ["single-optimal"] if batch.of_sequences else known
    # What a baseline over returns-to-go removes is due to those first.
    with_to_go = [] if batch.one_reward else ["multi"]
    beside = [make_estimator(name) for name in (*with_to_go, *known)]
    if 2 * len(rollouts) >= 3 * BATCH:  # else these are about one batch
        beside += [make_estimator(name, batch_size=BATCH) for name in known]
    beside = [each for each in beside if each.name not in names]
    everything = compare_batches(
        {importance: batch},
        [*asked, *beside],
        reference,
        aggregation,
        interval,
        confidence,
    )
    comparison = everything.only(names)
    decompositions: dict[str, Decomposition] = {}
    for row, estimator in zip(comparison, asked, strict=True):
        if row.identical and everything.reference in decompositions:
            decompositions[row.name] = decompositions[everything.reference]
            continue
        show(f"decomposing the variance of {long_name(row.name)}")
        decompositions[row.name] = decompose_terms(
            batch.terms(estimator), rollouts.groups, confidence=confidence, weighed=(batch, estimator)
        )
    show("testing whether the rollouts are on policy")
    on_policy = test_scores(batch, confidence)
    sampling = sampling_of(batch)
    # Baselines that are common to groups have another mean where groups were filtered.
    fair = everything.reference_unbiased and not sampling.filtered
    fair = fair and not any(row.unbiased and row.differs for row in everything)
    room = headroom(everything) if fair else None
    plans: dict[str, Plan] = {}
    completions = not batch.several.any()  # of a prompt is what has one return
    if completions and comparison.units >= 3 and not (sampling.filtered or sampling.copied):
        show("planning prompts and completions")
        same = [row.name for row in comparison if comparison.same_mean(row)]
        plans = plans_of(batch, asked, comparison.reference, same, comparison.confidence)
    _check.warn_few(comparison.units, comparison.unit)
    options = {
        "estimators": names,
        "reference": comparison.reference,
        "importance": importance,
        "truncate": truncate,
        "aggregation": aggregation,
        "interval": interval if isinstance(interval, str) else repr(interval),
        "confidence": comparison.confidence,
    }
    made = now()
    found = rollouts, comparison, decompositions, on_policy, sampling, room, plans
    return Report(source, *found, options, dict(sha256 or {}), made)
