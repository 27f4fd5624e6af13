r"""The best prompts x completions for what may be spent, or the cheapest for a variance.

The mean gradient over P prompts with K completions each has the variance V(K) / P
(`rlvar.analysis.prompts`) and the cost P (c_p + K c_c). Beside the K_0 completions in use, which buy P_0
prompts for the same budget, an option has the

    gain = (V(K_0) / P_0) / (V(K) / P),

whose interval is Fieller's, of two variances from the same groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rlvar import _check
from rlvar.analysis.prompt_curves import Curve
from rlvar.analysis.prompts import (
    PromptComponents,
    batch_variance,
    components_of,
    prompt_components,
    why_not,
)
from rlvar.drawing.canvas import canvas
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate, Result, bounded, inverse
from rlvar.stats.frame import columns_of, frame
from rlvar.stats.intervals import correlation, fieller, ratio_of_variances
from rlvar.stats.shown import html_lines, html_table, measured
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_COMPLETIONS = 1 << 12  # that `plan` looks through
_SHOWN = 8  # options in the table
_SPENT = 0.95  # of a budget of rollouts, at the least, by an option where the completions in use leave a rest


@dataclass(frozen=True, eq=False, repr=False)
class PlanOption(Result):
    """P prompts with K completions each.

    Attributes
    ----------
    prompts, completions : int
        P and K.
    cost : float
        P (cost of a prompt + K times that of a completion), in the unit of those costs.
    variance : Estimate
        Variance of the batch's mean gradient, V(K) / P. An estimate that is not positive is left as it is,
        unbiased; the interval of one that is ends at 0.
    gain : Estimate
        With a budget, the variance of the shape in use for that budget, over this one's. With a target, the
        cost of the shape in use for one variance, over this one's. 1 for the shape in use itself. NaN without
        an interval where one of the variances is not positive by its estimate, and where that in use is 0.
    """

    prompts: int
    completions: int
    cost: float
    variance: Estimate
    gain: Estimate

    @property
    def shape(self) -> str:
        """P x K."""
        return f"{self.prompts:,} x {self.completions:,}"

    def __repr__(self) -> str:
        shape = f"{_count(self.prompts, 'prompt')} x {_count(self.completions, 'completion')}"
        variance, gain = _positive(self.variance), _known(self.gain)
        return f"{shape}, cost {self.cost:.6g}, variance {variance}, gain {gain}"


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """The best batch for a budget, or the cheapest that keeps the variance at or below a target.

    Attributes
    ----------
    prompts, completions, cost, variance, gain
        Those of the best option: see `PlanOption`. With a target, the upper end of the variance's interval is
        at most that.
    options : tuple of PlanOption
        All options that were considered, the best first.
    in_use : int
        Completions of a prompt in use.
    beside : bool
        Whether another estimator is in use: in a `Report` the reference, for those of its mean.
    budget, target : float or None
        As asked for: one of them.
    max_completions : int
        The largest number of completions that was considered.
    """

    prompts: int
    completions: int
    cost: float
    variance: Estimate
    gain: Estimate
    options: tuple[PlanOption, ...]
    in_use: int
    beside: bool
    budget: float | None
    target: float | None
    max_completions: int
    _most: int | None  # that the curve has

    def __repr__(self) -> str:
        best = f"{_count(self.prompts, 'prompt')} x {_count(self.completions, 'completion')}, "
        best += f"cost {self.cost:.6g}"
        lines = [best if self.budget is None else f"{best} of {self.budget:.6g}"]
        lines += self._of_budget() if self.target is None else self._of_target()
        return "\n".join([*lines, *self._notes()])

    def _repr_html_(self) -> str:
        head = ("prompts x completions", "cost", "variance", f"times {self._better} than now")
        rows = [
            (
                each.shape,
                f"{each.cost:.6g}",
                _positive(each.variance, measured),
                measured(each.gain, bounded=True),
            )
            for each in self.options[:_SHOWN]
        ]
        return html_table(head, rows) + html_lines([*self._more(), *self._notes()])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what the options have of the variance in use, 1 / `gain`, by their completions of a prompt.

        With a target it is of the cost in use. A band has the intervals; a dashed line marks what is in use.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default on a new figure.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            Without matplotlib: ``pip install 'rlvar[report]'``.
        """
        axes, palette = canvas(ax)
        from rlvar.drawing.plan import plan_curve

        completions = [each.completions for each in self.options]
        relative = [inverse(each.gain) for each in self.options]
        plan_curve(axes, [completions], [relative], in_use=self.in_use, palette=palette)
        if self.target is not None:
            axes.set_ylabel("cost over that in use")
        return axes

    def to_frame(self) -> Any:
        """Return a data frame with a row for each option, the best first: pandas', or polars' without it.

        Of each `Estimate` there are three columns, as "gain", "gain_low" and "gain_high".

        Raises
        ------
        ImportError
            Without pandas and polars.
        """
        return frame(columns_of(self.options, ("prompts", "completions", "cost", "variance", "gain")))

    @property
    def _better(self) -> str:
        return "quieter" if self.target is None else "cheaper"

    def _more(self) -> list[str]:
        more = len(self.options) - _SHOWN
        return [f"and {more} more options"] if more > 0 else []

    def _notes(self) -> list[str]:
        """Say what limits the plan."""
        if self._still:
            return ["The variance of what is in use is 0: no other shape can be quieter."]
        notes = []
        if self.target is None and not self.tells:
            notes.append("Too few groups for an interval: whether another shape is quieter is not known.")
        if self.target is not None and math.isnan(self.variance.high):
            notes.append("Too few groups for an interval: about half of such plans miss their target.")
        if self.completions == self._most:
            notes.append(
                f"More than {self._most} completions may be better, but the groups are too small to tell."
            )
        elif self.completions == self.max_completions:
            notes.append(f"More completions than max_completions = {self.max_completions} may be better.")
        return notes

    def _of_budget(self) -> list[str]:
        rows = [("", "variance", f"times {self._better} than now")]
        rows += [(each.shape, _positive(each.variance), _known(each.gain)) for each in self.options[:_SHOWN]]
        wide = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{a:>{wide[0]}}  {b:<{wide[1]}}  {c}".rstrip() for a, b, c in rows]
        return lines + self._more()

    @property
    def tells(self) -> bool:
        """Whether the gain of an option beside what is in use has an interval, if there is such an option."""
        now = None if self.beside else self.in_use
        gains = [each.gain for each in self.options if each.completions != now]
        return not gains or not all(math.isnan(gain.low) for gain in gains)

    @property
    def _still(self) -> bool:
        used = [each for each in self.options if each.completions == self.in_use]
        return self.budget is not None and any(each.variance.value == 0 for each in used)

    def _of_target(self) -> list[str]:
        lines = [f"variance {_positive(self.variance)}, target {self.target:.4g}"]
        if self.completions != self.in_use:
            lines.append(
                f"for the same variance {self.in_use} completions, as now, cost {bounded(self.gain)} "
                "times as much"
            )
        return lines


def _positive(variance: Estimate, shown: Callable[[Estimate], str] = str) -> str:
    """Show a variance; of an estimate that is not positive, how large it may be."""
    if variance.value > 0 or variance.interval == (0.0, 0.0):
        return shown(variance)
    return "not known" if math.isnan(variance.high) else f"at most {max(variance.high, 0.0):.4g}"


def _known(gain: Estimate) -> str:
    return "not known" if math.isnan(gain.value) and math.isnan(gain.low) else bounded(gain)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def plan(
    what: Rollouts | PromptComponents,
    estimator: EstimatorLike | None = None,
    *,
    budget: float | None = None,
    target: float | None = None,
    cost_prompt: float = 0.0,
    cost_completion: float = 1.0,
    max_completions: int = 256,
    confidence: float | None = None,
    num_threads: int | None = None,
) -> Plan:
    r"""Find the best prompts x completions for what may be spent, or the cheapest for a variance.

    Parameters
    ----------
    what : Rollouts or PromptComponents
        Rollouts with groups, the prompts; or how the variance depends on prompts and completions, by
        `prompt_components`, which has options that are not here.
    estimator : str or Estimator, optional
        The estimator in use, as in `prompt_components`, "single" by default. Components have theirs.
    budget : float, optional
        What a batch may cost. The options are for each K as many prompts as can be paid. With the default
        costs it is a number of rollouts, and they are all of its factorisations if the completions in use are
        among them, else those that spend at least 95 % of it, and what is in use.
    target : float, optional
        Largest variance that the batch's mean gradient may have, in squared units of the gradient: for a
        signal-to-noise ratio of 1 the signal ``|E g|^2``. Exactly one of `budget` and `target` is needed.
    cost_prompt, cost_completion : float, default 0 and 1
        Cost of a prompt (its prefill, its place in the data) and of one completion, in any unit, such as
        tokens.
    max_completions : int, default 256
        Largest number of completions of one prompt, at most 4096. With a budget those in use are an option
        even if they are more.
    confidence : float, optional
        Nominal coverage of the intervals: 0.95, or that of the components.
    num_threads : int, optional
        As in `prompt_components`.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        For a budget that pays for no rollout, or none that the estimator can use, a target that is not
        positive or out of reach of float64, a negative cost, two costs of 0, `max_completions` out of range,
        and as `prompt_components`.

    Notes
    -----
    With a budget the plan leaves the completions in use only for options whose gain is above 1 by its whole
    interval. Of these the best is the one with the lowest upper end of its variance: no extreme is chosen
    that the rollouts do not support, and the option of the lowest estimate may be another one. So it stays
    with what is in use where there are no intervals (fewer than three groups) or the gradient does not vary.
    A budget that pays for no prompt with the completions in use has the option of the lowest upper end.

    With a target the cost is to be least while the upper end of the interval of V(K) / P is at most the
    target: with intervals of 95 % the true variance is above it in 0 to 8 % of plans, 3 % on average
    (``python studies/plans.py``). A plan by the estimate alone would miss in half of them. Of equal costs the
    one with the lower upper end is taken.

    Every K up to 64 is tried, then those in steps of 3 %. By the two-term V the best K is, for real numbers,
    K^2 = (within / between) (cost_prompt / cost_completion), for any budget or target: without a
    cost of prompts it is 1. The fewer groups, the nearer is a plan to the K in use, where V is known best.
    One prompt is an option too, but its batch no longer shows the variance between prompts.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> prompts = np.repeat(np.arange(50), 8)
    >>> rewards = 2 * rng.standard_normal(50)[prompts] + rng.standard_normal(400)
    >>> rollouts = rlvar.Rollouts(np.ones((400, 1, 1)), rewards, groups=prompts)
    >>> best = rlvar.plan(rollouts, "single", budget=64)
    >>> best.prompts, best.completions, best.gain.low > 1
    (64, 1, True)
    >>> rlvar.plan(rollouts, target=0.01, cost_prompt=16).completions  # 2 for real numbers
    2
    """
    if isinstance(what, Rollouts):
        level = 0.95 if confidence is None else confidence
        chosen = "single" if estimator is None else estimator
        parts = prompt_components(what, chosen, confidence=level, num_threads=num_threads)
    elif isinstance(what, PromptComponents):
        if estimator is not None:
            raise ValueError(f"estimator goes with Rollouts; these components are of {what.estimator!r}")
        parts = what
    else:
        raise TypeError(f"what must be a Rollouts or a PromptComponents, got {type(what).__name__}")
    return plan_curve(
        parts._curve,
        in_use=parts.completions,
        confidence=parts.variance.confidence if confidence is None else _check.confidence(confidence),
        budget=budget,
        target=target,
        cost_prompt=cost_prompt,
        cost_completion=cost_completion,
        max_completions=max_completions,
    )


class _Costs(NamedTuple):
    prompt: float
    completion: float

    def of(self, k: int) -> float:
        """Cost of a prompt with its completions."""
        return self.prompt + k * self.completion


@_check.quiet
def plan_curve(
    curve: Curve,
    *,
    in_use: int,
    confidence: float,
    budget: float | None = None,
    target: float | None = None,
    cost_prompt: float = 0.0,
    cost_completion: float = 1.0,
    max_completions: int = 256,
    now: Curve | None = None,
) -> Plan:
    """`plan` from a curve V(K) alone, with the completions `in_use`.

    `now` is the curve of the estimator in use, where it is another one of the same mean and groups.
    """
    costs = _Costs(
        _check.non_negative_number("cost_prompt", cost_prompt),
        _check.non_negative_number("cost_completion", cost_completion),
    )
    if costs.prompt == costs.completion == 0:
        raise ValueError("cost_prompt and cost_completion must not both be 0")
    if (budget is None) == (target is None):
        raise ValueError(f"pass one of budget and target, got {'neither' if budget is None else 'both'}")
    most = _check.positive_integer("max_completions", max_completions, curve.least)
    if most > _MOST_COMPLETIONS:
        raise ValueError(f"max_completions must be at most {_MOST_COMPLETIONS}, got {most}")
    if budget is not None:
        budget = _check.positive_number("budget", budget)
        options = _for_budget(curve, now or curve, in_use, confidence, budget, costs, most)
    else:
        target = _check.positive_number("target", target)
        options = _for_target(curve, now or curve, in_use, confidence, target, costs, most)
    best = options[0]
    return Plan(
        prompts=best.prompts,
        completions=best.completions,
        cost=best.cost,
        variance=best.variance,
        gain=best.gain,
        options=tuple(options),
        in_use=in_use,
        beside=now is not None,
        budget=budget,
        target=target,
        max_completions=most,
        _most=curve.most,
    )


def plans_of(
    batch: Batch, estimators: Sequence[Estimator], reference: str, same_mean: Collection[str], level: float
) -> dict[str, Plan]:
    """Plan the rollouts of a batch anew, for each estimator whose V(K) its groups tell, by name.

    What is in use is the reference with these groups: for those of the same mean, the others are beside
    themselves. "dr-grpo" is planned as "rloo" is.
    """
    groups = batch.rollouts.groups
    if groups is None or batch.aggregation == "token-mean":  # lengths of others in the group count there
        return {}
    known = {each.name: each for each in estimators if why_not(each, groups) is None}
    if "rloo" in known:
        known.pop("dr-grpo", None)
    parts = {name: components_of(batch, each, level) for name, each in known.items()}
    in_use, plans = parts.get(reference), {}
    for name, each in parts.items():
        curve, k = each._curve, each.completions
        if not each.variance.value > 0:
            continue
        beside = in_use is not None and name in same_mean and np.array_equal(each.sizes, in_use.sizes)
        now = in_use._curve if in_use is not None and beside and name != reference else None
        count = len(np.unique(groups)) * k
        plans[name] = plan_curve(curve, in_use=k, confidence=level, budget=count, now=now)
    return plans


def _for_budget(
    curve: Curve, now: Curve, in_use: int, level: float, budget: float, costs: _Costs, most: int
) -> list[PlanOption]:
    """Return what a budget buys, the best first."""
    shapes = _shapes(curve, budget, costs, most, in_use)
    if not shapes:
        raise ValueError(
            f"budget must pay for a prompt with {_count(curve.least, 'completion')}, "
            f"which {'cost' if curve.least > 1 else 'costs'} {costs.of(curve.least):g}, got {budget!r}"
        )
    prompts = shapes.get(in_use, budget / costs.of(in_use))
    options = [_option(curve, now, in_use, p, k, costs, p / prompts, level) for k, p in shapes.items()]
    return sorted(options, key=preference(options, in_use if now is curve else None))


def preference(options: Sequence[PlanOption], in_use: int | None) -> Callable[[PlanOption], tuple[Any, ...]]:
    """Return a key that sorts options: those whose gain is resolved, what is in use, the others.

    Each by the upper end of their variance. An estimate that is not positive says nothing of how small a
    variance is, and comes last.
    """

    def key(option: PlanOption) -> tuple[Any, ...]:
        positive = option.variance.value > 0
        surely, now = positive and option.gain.low > 1.0, option.completions == in_use
        return not surely, not now, not positive, _upper(option.variance), option.completions

    return key


def _shapes(curve: Curve, budget: float, costs: _Costs, most: int, in_use: int) -> dict[int, int]:
    """Return the prompts that a budget pays for each number of completions, if at least one."""
    tried = {k for k in _candidates(curve.least, most) if curve.has(k)}
    rollouts, least = round(budget / costs.completion) if costs.prompt == 0 else 0, 0.0
    if rollouts and rollouts * costs.completion == budget:  # all of it can be spent
        tried = {k for k in range(1, most + 1) if curve.has(k)}
        if rollouts % in_use == 0:
            tried = {k for k in tried if rollouts % k == 0}
        else:  # of as many prompts the most completions
            tried = {k for k in tried if k + 1 not in tried or rollouts // k > rollouts // (k + 1)}
        least = _SPENT * rollouts
    paid = {k: budget / costs.of(k) * (1 + 1e-12) for k in sorted(tried | {in_use})}
    shapes = {k: int(p) for k, p in paid.items() if 1 <= p < 2.0**53}
    return {k: p for k, p in shapes.items() if k == in_use or k * p >= least}


def _option(
    curve: Curve, now: Curve, in_use: int, p: int, k: int, costs: _Costs, factor: float, level: float
) -> PlanOption:
    variance = batch_variance(curve, p, k, level)
    if variance.value > 0 > variance.low:
        variance = replace(variance, low=0.0)
    return PlanOption(p, k, p * costs.of(k), variance, _gain(curve, now, in_use, k, factor, level))


def _for_target(
    curve: Curve, now: Curve, in_use: int, level: float, target: float, costs: _Costs, most: int
) -> list[PlanOption]:
    """Return batches with a variance of at most the target, the cheapest first."""
    # What each K costs at the least, by its estimate: the upper end of its interval is above that.
    by_estimate = []
    tried = {*_candidates(curve.least, most), *([in_use] if in_use <= most else [])}
    for k in filter(curve.has, sorted(tried)):
        by_estimate.append((_prompts(curve.at(k).value, target) * costs.of(k), k))
    found: list[tuple[float, float, int, int]] = []  # cost, upper end, prompts, completions
    for least, k in sorted(by_estimate):
        if found and least > min(found)[0]:
            break
        high = _upper(curve.interval(k, level))
        p = _prompts(high, target)
        if p < math.inf:
            found.append((p * costs.of(k), high / p, int(p), k))
    if not found:
        raise ValueError(f"target must be within reach of 2^53 prompts, got {target!r}")
    return [
        _option(curve, now, in_use, p, k, costs, costs.of(in_use) / costs.of(k), level)
        for _, _, p, k in sorted(found)
    ]


def _candidates(least: int, most: int) -> Iterator[int]:
    """All numbers up to 64, then in steps of 3 %: between two of them V hardly changes."""
    while least < most:
        yield least
        least = max(least + 1, round(1.03 * least)) if least >= 64 else least + 1
    yield most


def _prompts(variance: float, target: float) -> float:
    """Return how many prompts divide a variance enough; rounding must not cost one if it is met exactly."""
    count = max(variance / target * (1 - 1e-12), 1.0)
    return math.ceil(count) if count < 2.0**53 else math.inf  # of NaN too


def _upper(variance: Estimate) -> float:
    """Return how large it may be: not known of an estimate below 0 without an interval."""
    if not math.isnan(variance.high):
        return variance.high
    return variance.value if variance.value >= 0 else math.inf


def _gain(curve: Curve, now: Curve, in_use: int, k: int, factor: float, level: float) -> Estimate:
    """Return V in use over V at k, times a factor."""
    if now is curve and k == in_use:
        return Estimate(1.0, 0.0, 1.0, 1.0, level)
    above, below = now.at(in_use), curve.at(k)
    if max(in_use / now.pivot, k / curve.pivot) <= 1.0:
        found = ratio_of_variances(above, below, level)
    else:  # a V is a difference there
        ends = now.interval(in_use, level), curve.interval(k, level)
        found = fieller(*ends, correlation(above.left_out, below.left_out))
    if above.value == 0 or (math.isnan(found.low) and not (above.value > 0 and below.value > 0)):
        return Estimate(math.nan, confidence=level)
    low, high = found.low * factor, found.high * factor
    return Estimate(found.value * factor, found.stderr * factor, low, high, level, found.resolved)
