"""The report on some rollouts: which estimator is quieter, and where the variance comes from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar.baseline_headroom import BASELINES, Headroom, headroom
from rlvar.comparison import Comparison, ComparisonRow, compare, estimator_weights
from rlvar.estimate import Estimate
from rlvar.gradients import Batch
from rlvar.onpolicy import OnPolicyTest, on_policy_test
from rlvar.rollouts import Rollouts
from rlvar.units import TOP
from rlvar.variance import Decomposition, decompose

_LONG_NAMES = {
    "single": "single-step",
    "multi": "multi-step",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dr-grpo": "Dr. GRPO",
    "reinforce++": "REINFORCE++",
    "opo": "OPO",
    "gae": "GAE",
    "single-optimal": "the best constant baseline (single-optimal)",
    "multi-optimal": "a baseline for each step (multi-optimal)",
    "otb": "token baselines (OTB)",
}
# So few rollouts say little.
_FEW = 10
_BARS = " ▁▂▃▄▅▆▇█"
_CHART_WIDTH, _CHART_HEIGHT = 64, 6
_STRATA = 4  # of similar length, where lengths differ


@dataclass(frozen=True)
class Report:
    """What `rlvar report` prints.

    Attributes
    ----------
    source : str
        Where the rollouts came from.
    rollouts : Rollouts
    comparison : Comparison
    decompositions : dict of str to Decomposition
        One for each estimator compared.
    on_policy : OnPolicyTest
    headroom : Headroom or None
        None where no baseline leaves the mean alone.
    """

    source: str
    rollouts: Rollouts
    comparison: Comparison
    decompositions: dict[str, Decomposition]
    on_policy: OnPolicyTest
    headroom: Headroom | None

    @property
    def verdict(self) -> list[str]:
        """The findings in plain sentences, each with its numbers."""
        reference, grouped = self.comparison.reference, self.comparison.grouped
        others = [row for row in self.comparison if row.name != reference]
        apart = [row for row in others if not self.comparison.same_mean(row)]
        sentences = [_ratio_sentence(row, reference, grouped) for row in others if row not in apart]
        if apart:
            names = " and ".join(
                [", ".join(_long(row.name) for row in apart[:-1]), _long(apart[-1].name)][len(apart) == 1 :]
            )
            sentences.append(
                f"The mean gradient of {names} is not that of {_long(reference)}, or not known to be: the "
                f"ratio of variances says nothing by itself about the {_unit(grouped)} needed."
            )
        quietest = self._quietest()
        parts = self.decompositions[quietest]
        return [
            *sentences,
            *([] if self.headroom is None else [_headroom_sentence(self.headroom, grouped)]),
            *_source_sentences(quietest, parts, _reach(self.rollouts)),
            *_doubts(self.comparison, self.on_policy),
        ]

    def _quietest(self) -> str:
        """Name the estimator of least variance among those with the policy gradient's mean."""
        same = [row for row in self.comparison if self.comparison.same_mean(row)]
        comparable = same or list(self.comparison)
        return min(comparable, key=lambda row: row.variance.value).name

    def __str__(self) -> str:
        confidence = f"{self.comparison.confidence:.0%}"
        units = f"{self.comparison.units} {_unit(self.comparison.grouped)}"
        blocks = [
            _rollouts_line(self.source, self.rollouts),
            f"Estimators ({confidence} intervals: {self.comparison.interval} over {units})\n"
            + _indent(str(self.comparison)),
        ]
        if self.rollouts.groups is not None:
            unit = "group" if self.comparison.aggregation == "token-mean" else "group's mean"
            blocks[-1] += (
                f"\n  A {unit} is the unit here, its rollouts being dependent; below it is the rollout."
            )
        if self.comparison.aggregation == "token-mean":
            blocks[-1] += "\n  Below, gradients are sums over tokens, not divided by their number."
        for name, decomposition in self.decompositions.items():
            blocks.append(f"Where the variance of {_long(name)} comes from\n" + _indent(str(decomposition)))
        blocks.append("Verdict\n" + _indent("\n".join(self.verdict)))
        for name, decomposition in self.decompositions.items():
            drawn = name in (self.comparison.reference, self._quietest())
            if drawn and decomposition.total_variance.value > 0:
                blocks.append(_chart(name, decomposition.growth[: _reach(self.rollouts)]))
        return "\n\n".join(blocks)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        n, t, d = self.rollouts.shape
        return {
            "source": self.source,
            "rollouts": {"N": n, "T": t, "D": d, "lengths": self.rollouts.live_steps.tolist()},
            "comparison": self.comparison.to_dict(),
            "decompositions": {name: item.to_dict() for name, item in self.decompositions.items()},
            "on_policy": self.on_policy.to_dict(),
            "headroom": None if self.headroom is None else self.headroom.to_dict(),
            "verdict": self.verdict,
        }


def make_report(
    rollouts: Rollouts,
    estimators: Sequence[str] = ("single", "multi"),
    *,
    source: str = "rollouts",
    ratio: str = "none",
    truncate: float | None = None,
    aggregation: str = "sum",
    interval: str = "jackknife",
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Compare the estimators, decompose the variance of each, and call `progress` on the way."""
    progress(f"comparing {len(estimators)} estimators")
    everything = compare(
        rollouts,
        [*estimators, *BASELINES],
        ratio=ratio,
        truncate=truncate,
        aggregation=aggregation,
        interval=interval,
        seed=seed,
    )
    comparison = everything.only(list(dict.fromkeys(estimators)))
    batch = Batch.of(rollouts, ratio=ratio, truncate=truncate, aggregation=aggregation)
    mask, lengths, groups = rollouts.mask, rollouts.lengths, rollouts.groups
    strata = _STRATA if len(np.unique(rollouts.live_steps)) > 1 else None
    decompositions = {}
    for row in comparison:
        progress(f"decomposing the variance of {_long(row.name)}")
        weights = estimator_weights(batch, estimators, row.name) * batch.step_factors
        decompositions[row.name] = decompose(
            rollouts.scores,
            weights,
            mask=mask,
            lengths=lengths,
            groups=groups,
            strata=strata,
            interval=interval,
            seed=seed,
        )
    progress("testing whether the rollouts are on policy")
    on_policy = on_policy_test(rollouts.scores, mask=mask, lengths=lengths, groups=groups)
    room = headroom(everything) if everything.reference_unbiased else None
    return Report(source, rollouts, comparison, decompositions, on_policy, room)


def _doubts(comparison: Comparison, on_policy: OnPolicyTest) -> list[str]:
    """Say what these rollouts cannot tell, and where the numbers above are not to be trusted."""
    units, sentences = _unit(comparison.grouped), []
    faint = [row for row in comparison if row.signal.low <= 0]
    if faint:
        names = ", ".join(_long(row.name) for row in faint)
        sentences.append(
            f"The signal of {names} is not resolved with these {comparison.units} {units}: its interval "
            "reaches zero, and the noise scale has no upper end."
        )
        needed = [_resolving(row, comparison.units) for row in faint if row.signal.value > 0]
        if needed and max(needed) > comparison.units:
            sentences[-1] += (
                f" If it is what it seems, about {_number(max(needed))} {units} would resolve it."
            )
    heavy = [row for row in comparison if row.heavy_tailed]
    if heavy:
        shares = " and ".join(f"{row.largest_share:.0%} for {_long(row.name)}" for row in heavy)
        count = max(1, math.ceil(TOP * comparison.units))
        few = f"{count} of {comparison.units} {units} carries" if count == 1 else f"{count} {units} carry"
        # One outlier in both estimators leaves their ratio known; one whose weight stands for many does not.
        weighted = any(row.importance is not None and row.importance.ratio != "none" for row in heavy)
        what = "variances and of their ratios" if weighted else "variances"
        sentences.append(
            f"Heavy tails: {few} much of the variance, {shares}. Intervals of {what} may be far too narrow."
        )
    for ratios in dict.fromkeys(row.importance for row in comparison if row.importance is not None):
        rollouts, size = len(ratios.values), ratios.effective_size
        if size < rollouts / 2:
            trust = (
                "no number or interval can be trusted" if size < _FEW else "intervals may be far too narrow"
            )
            sentences.append(
                f"The {ratios.ratio} ratios leave an effective sample size of {size:.1f} of {rollouts} "
                f"rollouts, the others hardly count: {trust}."
            )
        if ratios.misses:
            sentences.append(
                f"The mean of the {ratios.ratio} ratios is {ratios.mean} and should be 1: the rollouts lack "
                "what the new policy favours, or the log-probabilities are not those of these policies."
            )
    if on_policy.on_policy is False:
        found = {
            "ratio": f"scores of different steps are correlated, {on_policy.ratio} of their variance",
            "mean_score": f"the square of their mean is {on_policy.mean_score} of their variance",
        }
        sentences.append(
            "These rollouts were not sampled from the policy that scored them: "
            f"{', and '.join(found[name] for name in on_policy.against)}, which is 0 on policy. Look for "
            "another temperature, top-p, a stale policy or another inference engine."
        )
    return sentences


def _resolving(row: ComparisonRow, units: int) -> float:
    """Units at which the interval of a signal of this size would leave zero: its width goes as 1/sqrt."""
    return units * ((row.signal.value - row.signal.low) / row.signal.value) ** 2


def _long(name: str) -> str:
    return _LONG_NAMES.get(name, name)


def _start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _interval(estimate: Estimate, *, percent: bool = False) -> str:
    if math.isnan(estimate.low):
        return "no interval: too few units"
    low, high = (f"{end:.1%}" if percent else _number(end) for end in (estimate.low, estimate.high))
    return f"{estimate.confidence:.0%} interval {low} to {high}"


def _reach(rollouts: Rollouts) -> int:
    """Return the number of steps up to the last that any rollout reaches, at least 1."""
    live = rollouts.live.any(axis=0)
    return int(np.flatnonzero(live)[-1]) + 1 if live.any() else 1


def _rollouts_line(source: str, rollouts: Rollouts) -> str:
    n, t, d = rollouts.shape
    counts = rollouts.live_steps
    measure = "lengths" if rollouts.mask is None else "live steps"
    ignored = 0 if rollouts.rewards.ndim == 1 else np.count_nonzero(rollouts.rewards[~rollouts.live])
    note = f"\n  {ignored} non-zero rewards lie on steps that are not live and are ignored" if ignored else ""
    rewards = "one terminal reward each" if rollouts.rewards.ndim == 1 else "a reward for each step"
    groups = "" if rollouts.groups is None else f", in {len(np.unique(rollouts.groups))} groups"
    return (
        f"Rollouts: {source}\n"
        f"  N = {n} rollouts{groups}, T = {t} steps, D = {d} coordinates, {rewards}\n"
        f"  {measure} {counts.min()} to {counts.max()}, median {np.median(counts):g}, "
        f"mean {counts.mean():.1f}{note}"
    )


def _unit(grouped: bool) -> str:
    return "groups" if grouped else "rollouts"


def _ratio_sentence(row: ComparisonRow, reference: str, grouped: bool) -> str:
    """Say how many times as many rollouts the noisier of two estimators with one mean needs."""
    ratio, this, that = row.ratio, _long(row.name), _long(reference)
    if math.isnan(ratio.value):
        return f"{_start(this)} and {that} cannot be compared: neither varies over these rollouts."
    if math.isinf(ratio.value):
        return f"{_start(that)} does not vary over these rollouts; {this} does."
    if ratio.value == ratio.low == ratio.high == 1.0:
        return f"{_start(this)} and {that} are the same estimator on these rollouts: the variances are equal."
    if ratio.value == 0.0:
        return f"{_start(this)} does not vary over these rollouts; {that} does."
    if ratio.value < 1.0:
        this, that = that, this
        most = 1 / ratio.low if ratio.low else math.inf
        ratio = Estimate(1 / ratio.value, math.nan, 1 / ratio.high, most, ratio.confidence)
    claim = (
        f"{this} needs {_number(ratio.value)} times as many {_unit(grouped)} as {that} for the same precision"
    )
    if ratio.low <= 1.0:
        return f"These rollouts do not settle it: {claim}, but the interval holds 1 ({_interval(ratio)})."
    return f"{_start(claim)} ({_interval(ratio)})."


def _headroom_sentence(room: Headroom, grouped: bool) -> str:
    """Say how much a baseline could remove, and how much of that the estimators in use do."""
    share, best, reference = room.removable, _long(room.best), _long(room.reference)
    if not math.isfinite(share.value):  # the reference does not vary
        return f"No baseline has anything to remove from {reference}."
    # Those of each group, such as RLOO's, can remove more.
    common = ", one for all groups," if grouped else ""
    if not share.low > 0:
        return (
            f"No baseline fitted to the scores is known to help: {best}{common} would remove "
            f"{share.value:.0%} of the variance of {reference} ({_interval(share, percent=True)})."
        )
    parts = [
        f"{_long(name)} {part.value:.0%} ({_interval(part, percent=True)})"
        for name, part in room.removed.items()
        if name not in BASELINES
    ]
    removed = f" Of that are removed: by {', by '.join(parts)}." if parts else ""
    return (
        f"{_start(best)}{common or ','} cross-fitted, would remove {share.value:.1%} of the variance of "
        f"{reference} ({_interval(share, percent=True)}).{removed}"
    )


def _source_sentences(name: str, parts: Decomposition, steps: int) -> list[str]:
    """Say where the variance of one estimator comes from and how it grows."""
    if not parts.total_variance.value > 0:
        return [f"The gradient estimate of {_long(name)} does not vary over these rollouts."]
    sentences = []
    if steps > 1:
        sentences.append(_covariance_sentence(name, parts, steps))
    exponent = parts.growth_exponent
    if not math.isnan(exponent.value):
        first, last = parts.growth_range
        sentences.append(
            f"The variance of {_long(name)} grows as length^{exponent.value:.2f} ({_interval(exponent)}; "
            "1 is linear, 2 quadratic) "
            f"over steps {first} to {last}, which at least half of the rollouts reach."
        )
    if parts.strata_disagree:
        within = parts.growth_exponent_within
        sentences.append(
            f"Among rollouts of similar length it grows as length^{within.value:.2f} ({_interval(within)}): "
            "the two disagree, so it is the lengths that bend the curve: they tell of rewards and of who has "
            "ended."
        )
    return sentences


def _covariance_sentence(name: str, parts: Decomposition, steps: int) -> str:
    """Say how much of the variance is covariance between steps, or that it cannot be told from none."""
    pairs = f"{steps * (steps - 1) // 2:,} covariance terms, {steps:,} variance terms"
    covariance, total = parts.covariance_terms, parts.total_variance.value
    interval = _interval(covariance)
    if not (covariance.low > 0 or covariance.high < 0 or math.isnan(covariance.low)):
        return (
            f"Covariance between steps in {_long(name)} cannot be told from none: "
            f"{_number(covariance.value)} ({interval}) against {_number(total)} in total ({pairs})."
        )
    if covariance.value >= 0:
        share = f"{parts.covariance_share:.0%} of the variance of {_long(name)} is covariance between steps"
    else:
        share = (
            f"Covariance between steps is negative in {_long(name)} and cancels "
            f"{-covariance.value / parts.variance_terms.value:.0%} of the variance terms"
        )
    return f"{share}: {_number(covariance.value)} ({interval}) against {_number(total)} in total ({pairs})."


def _chart(name: str, growth: NDArray[np.float64]) -> str:
    """Draw the growth curve: the share of the variance that the first k steps have."""
    steps = len(growth)
    width = min(_CHART_WIDTH, steps)
    columns = growth[np.ceil(np.arange(1, width + 1) * steps / width).astype(int) - 1]
    top = float(growth.max())
    eighths = np.rint(columns / top * _CHART_HEIGHT * 8).astype(int)
    lines = [f"Growth of the variance of {_long(name)} with the number of steps summed"]
    for row in reversed(range(_CHART_HEIGHT)):
        bar = "".join(_BARS[min(8, max(0, e - 8 * row))] for e in eighths)
        label = f"{top:.3g}" if row == _CHART_HEIGHT - 1 else ""
        lines.append(f"  {label:>9} │{bar}".rstrip())
    lines.append(f"  {'0':>9} └" + "─" * width)
    lines.append(" " * 13 + "1" + f"{steps} steps".rjust(max(width - 1, len(str(steps)) + 9)))
    return "\n".join(lines)
