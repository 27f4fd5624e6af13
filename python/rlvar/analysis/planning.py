"""The cheapest prompts x completions for a variance of the mean gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rlvar import _check
from rlvar.analysis.prompts import PromptComponents
from rlvar.stats.estimate import Estimate, Result, bounded
from rlvar.stats.intervals import correlation, fieller

_MOST_COMPLETIONS = 1 << 12  # that `plan` looks through


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """The cheapest batch that keeps the variance of the mean gradient at or below the target.

    Attributes
    ----------
    prompts, completions : int
        P prompts with K completions each.
    cost : float
        P (cost of a prompt + K times that of a completion), in the unit of those costs.
    variance : Estimate
        Variance of the batch's mean gradient. The upper end of its interval is at most the target.
    gain : Estimate
        For the same variance, the cost with the completions in use over that with these: how many times the
        cost is saved. 1 where K is that in use.
    target, max_completions
        As asked for.
    components : PromptComponents
        What it was planned from.
    """

    prompts: int
    completions: int
    cost: float
    variance: Estimate
    gain: Estimate
    target: float
    max_completions: int
    components: PromptComponents

    def __repr__(self) -> str:
        parts, most = self.components, self.components._curve.most
        lines = [
            f"{_count(self.prompts, 'prompt')} x {_count(self.completions, 'completion')}, "
            f"cost {self.cost:.6g}",
            f"variance {_positive(self.variance)}, target {self.target:.4g}",
        ]
        if self.completions != parts.completions:
            lines.append(
                f"for the same variance {parts.completions} completions, as now, cost {bounded(self.gain)} "
                "times as much"
            )
        if math.isnan(self.variance.high):
            lines.append("There is no interval: about half of such plans miss their target.")
        if self.completions == most:
            lines.append(f"More than {most} completions may be cheaper: no group tells.")
        elif self.completions == self.max_completions:
            lines.append(f"More completions than max_completions = {self.max_completions} may be cheaper.")
        return "\n".join(lines)


def _positive(variance: Estimate) -> str:
    """Show a variance; of an estimate that is not positive, how large it may be."""
    return str(variance) if variance.value > 0 else f"at most {variance.high:.4g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@_check.quiet
def plan(
    components: PromptComponents,
    target: float,
    *,
    cost_prompt: float,
    cost_completion: float,
    max_completions: int = 256,
) -> Plan:
    r"""Find the cheapest prompts x completions for a variance of the mean gradient.

    Parameters
    ----------
    components : PromptComponents
        How the variance of the estimator in use depends on the number of prompts and completions.
    target : float
        Largest variance that the batch's mean gradient may have, in squared units of the gradient: for a
        signal-to-noise ratio of 1 the signal |E g|^2.
    cost_prompt, cost_completion : float
        Cost of a prompt (its prefill, its place in the data) and of one completion, in any unit, such as
        tokens.
    max_completions : int, default 256
        Largest number of completions of one prompt, at most 4096.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError, TypeError
        For a target that is not positive or out of reach of float64, a negative cost, two costs of 0,
        or `max_completions` out of range.

    Notes
    -----
    The cost P (cost_prompt + K cost_completion) is to be least while the upper end of the interval of
    V(K) / P is at most the target: with intervals of 95 % the true variance is above it in 0 to 8 % of plans,
    3 % on average (``python studies/plans.py``). A plan by the estimate alone would miss in half of them.
    Every K up to 64 is tried, then those in steps of 3 %, with the smallest P. Of equal costs the one with
    the lower upper end is taken.

    By the two-term V the best K is, for real numbers, K^2 = (within / between) (cost_prompt /
    cost_completion), whatever the target. The fewer groups, the nearer is a plan to the K in use, where V is
    known best.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> prompts = np.repeat(np.arange(50), 8)
    >>> rewards = 2 * rng.standard_normal(50)[prompts] + rng.standard_normal(400)
    >>> rollouts = rlvar.Rollouts(np.ones((400, 1, 1)), rewards, groups=prompts)
    >>> parts = rlvar.prompt_components(rollouts)
    >>> best = rlvar.plan(parts, 0.01, cost_prompt=16, cost_completion=1)  # K = 2 for real numbers
    >>> best.completions, best.variance.high <= 0.01, best.gain.low > 1
    (2, True, True)
    """
    if not isinstance(components, PromptComponents):
        raise TypeError(f"components must be a PromptComponents, got {type(components).__name__}")
    wanted = _check.positive_number("target", target)
    each_prompt = _check.non_negative_number("cost_prompt", cost_prompt)
    each_completion = _check.non_negative_number("cost_completion", cost_completion)
    if each_prompt == each_completion == 0:
        raise ValueError("cost_prompt and cost_completion must not both be 0")
    most = _check.positive_integer("max_completions", max_completions, components._curve.least)
    if most > _MOST_COMPLETIONS:
        raise ValueError(f"max_completions must be at most {_MOST_COMPLETIONS}, got {most}")

    # What each K costs at the least, by its estimate: the upper end of its interval is above that.
    by_estimate = []
    for k in filter(components._curve.has, _candidates(components._curve.least, most)):
        of_one = each_prompt + k * each_completion
        by_estimate.append((_prompts(components._curve.at(k).value, wanted) * of_one, k, of_one))
    found: list[tuple[float, float, int, int]] = []  # cost, upper end, prompts, completions
    for least, k, of_one in sorted(by_estimate):
        if found and least > min(found)[0]:
            break
        high = _upper(components.batch_variance(1, k))
        p = _prompts(high, wanted)
        if p < math.inf:
            found.append((p * of_one, high / p, int(p), k))
    if not found:
        raise ValueError(f"target must be within reach of 2^53 prompts, got {target!r}")
    cost, _, prompts, completions = min(found)
    return Plan(
        prompts=prompts,
        completions=completions,
        cost=cost,
        variance=components.batch_variance(prompts, completions),
        gain=_gain(components, completions, each_prompt, each_completion),
        target=wanted,
        max_completions=most,
        components=components,
    )


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
    return variance.value if math.isnan(variance.high) else variance.high


def _gain(parts: PromptComponents, k: int, cost_prompt: float, cost_completion: float) -> Estimate:
    """Cost at the completions in use, for a variance, over that at k."""
    curve, in_use, level = parts._curve, parts.completions, parts.variance.confidence
    if k == in_use:
        return Estimate(1.0, 0.0, 1.0, 1.0, level)
    now, then = curve.interval(in_use, level), curve.interval(k, level)
    found = fieller(now, then, correlation(curve.at(in_use).left_out, curve.at(k).left_out))
    factor = (cost_prompt + in_use * cost_completion) / (cost_prompt + k * cost_completion)
    low, high = found.low * factor, found.high * factor
    return Estimate(found.value * factor, found.stderr * factor, low, high, level, found.resolved)
