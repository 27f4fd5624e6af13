"""The findings on some rollouts in plain sentences, each with its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlvar.analysis.compare import Comparison, ComparisonRow
from rlvar.analysis.decompose import Decomposition
from rlvar.analysis.headroom import BASELINES, Headroom
from rlvar.analysis.on_policy import OnPolicyTest
from rlvar.analysis.sampling import Sampling
from rlvar.reporting.sampling import on_policy_sentence, reward_scaled_sentences, sampling_sentences
from rlvar.stats.estimate import Estimate
from rlvar.stats.moments import TOP
from rlvar.weights.importance import ImportanceRatios

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


def verdict(
    comparison: Comparison,
    decompositions: Mapping[str, Decomposition],
    room: Headroom | None,
    on_policy: OnPolicyTest,
    sampling: Sampling,
    steps: int,
) -> list[str]:
    """Say which estimator is quieter, where its variance comes from, and what cannot be told.

    `steps` is the number of them up to the last that any rollout reaches.
    """
    units = unit(comparison)
    if all(row.variance.value == row.signal.value == 0 for row in comparison):
        return ["All gradient estimates are 0: no step is live, or all scores or all weights are 0."]
    if comparison.units < 3:
        return [f"{comparison.units} {units} are too few to tell anything: there are no intervals."]
    quietest = quietest_of(comparison)
    return [
        *_comparisons(comparison),
        *reward_scaled_sentences(comparison, long_name),
        *([] if room is None else [_headroom_sentence(room, comparison.grouped)]),
        *_sources(comparison[quietest], decompositions[quietest], steps),
        *_faint_signals(comparison),
        *_heavy_tails(comparison),
        *sampling_sentences(sampling, comparison["rloo"].noise_scale if "rloo" in comparison else None),
        *_stale(comparison, on_policy, sampling),
    ]


def quietest_of(comparison: Comparison) -> str:
    """Name the estimator of least variance among those with the mean of the reference."""
    same = [row for row in comparison if comparison.same_mean(row)]
    return min(same or comparison, key=lambda row: row.variance.value).name


def long_name(name: str) -> str:
    return _LONG_NAMES.get(name, name)


def unit(comparison: Comparison) -> str:
    return "groups" if comparison.grouped else "rollouts"


def _comparisons(comparison: Comparison) -> list[str]:
    units, reference = unit(comparison), comparison.reference
    others = [row for row in comparison if row.name != reference]
    sentences = [_ratio_sentence(row, reference, units) for row in others if comparison.same_mean(row)]
    apart = [long_name(row.name) for row in others if not comparison.same_mean(row)]
    if apart:
        sentences.append(
            f"The mean gradient of {_list(apart)} is not that of {long_name(reference)}, or not "
            f"known to be: the ratio of variances says nothing by itself about the {units} needed."
        )
    return sentences


def _ratio_sentence(row: ComparisonRow, reference: str, units: str) -> str:
    """Say how many times as many rollouts the noisier of two estimators with one mean needs."""
    ratio, this, that = row.ratio, long_name(row.name), long_name(reference)
    if math.isnan(ratio.value):
        return f"{_start(this)} and {that} cannot be compared: neither varies over these rollouts."
    if math.isinf(ratio.value):
        return f"{_start(that)} does not vary over these rollouts; {this} does."
    if row.identical:
        return f"{_start(this)} and {that} are the same estimator on these rollouts: the variances are equal."
    if ratio.value == 0.0:
        return f"{_start(this)} does not vary over these rollouts; {that} does."
    if ratio.value < 1.0:
        this, that = that, this
        most = 1 / ratio.low if ratio.low else math.inf
        ratio = Estimate(1 / ratio.value, math.nan, 1 / ratio.high, most, ratio.confidence)
    claim = f"{this} needs {_number(ratio.value)} times as many {units} as {that} for the same precision"
    if math.isnan(ratio.low):
        return f"These rollouts do not settle it: {claim}, but that has no interval."
    if ratio.low <= 1.0:
        return f"These rollouts do not settle it: {claim}, but the interval holds 1 ({_interval(ratio)})."
    return f"{_start(claim)} ({_interval(ratio)})."


def _headroom_sentence(room: Headroom, grouped: bool) -> str:
    """Say how much a baseline could remove, and how much of that the estimators in use do."""
    share, best, reference = room.removable, long_name(room.best), long_name(room.reference)
    if not math.isfinite(share.value):  # the reference does not vary
        return f"No baseline has anything to remove from {reference}."
    # Those of each group, such as RLOO's, can remove more.
    common = ", one for all groups," if grouped else ""
    if not share.low > 0:
        return (
            f"No baseline fitted to the scores is known to help: {best}{common} would remove "
            f"{_percent(share.value)} of the variance of {reference} ({_interval(share, percent=True)})."
        )
    parts = [
        f"{long_name(name)} {_percent(part.value)} ({_interval(part, percent=True)})"
        for name, part in room.removed.items()
        if name not in BASELINES and 0 < part.high - part.low < 2  # 0: the reference itself
    ]
    removed = f" Of that are removed: by {', by '.join(parts)}." if parts else ""
    return (
        f"{_start(best)}{common or ','} cross-fitted, would remove {share.value:.1%} of the variance of "
        f"{reference} ({_interval(share, percent=True)}).{removed}"
    )


def _sources(row: ComparisonRow, parts: Decomposition, steps: int) -> list[str]:
    """Say where the variance of one estimator comes from and how it grows."""
    name = long_name(row.name)
    if not (row.variance.value > 0 and parts.variance.value > 0):
        return [f"The gradient estimate of {name} does not vary over these rollouts."]
    sentences = [_covariance_sentence(row.name, parts, steps)] if steps > 1 else []
    along, growth, (first, last) = parts.growth_exponent, parts.length_growth, parts.growth_range
    scale = "1 is linear, 2 quadratic"
    if not math.isnan(growth.exponent.value):
        exponent = parts.length_exponent
        sentences.append(
            f"From quartile to quartile of length, on average {growth.shortest:.3g} to {growth.longest:.3g} "
            f"steps, the variance of {name} grows as length^{_power(exponent.value)} ({_interval(exponent)}; "
            f"{scale}); long rollouts may differ from short ones in more than their length."
        )
    if not math.isnan(along.value):
        sentences.append(
            f"Along the sequence the sum of the first k terms of {name} has a variance that grows as "
            f"k^{_power(along.value)} ({_interval(along)}; {scale}) over steps {first} to {last}, which at "
            "least half of the rollouts reach."
        )
    return sentences


def _covariance_sentence(name: str, parts: Decomposition, steps: int) -> str:
    """Say how much of the variance is covariance between steps, or that it cannot be told from none."""
    name, covariance, total = long_name(name), parts.covariance_terms, parts.variance.value
    if not (covariance.resolved or math.isnan(covariance.low)):
        claim = f"Covariance between steps in {name} cannot be told from none"
    elif covariance.value >= 0:
        claim = f"{parts.covariance_share:.0%} of the variance of {name} is covariance between steps"
    else:
        cancelled = f"cancels {-covariance.value / parts.variance_terms.value:.0%} of the variance terms"
        claim = f"Covariance between steps is negative in {name} and {cancelled}"
    return (
        f"{claim}: {_number(covariance.value)} ({_interval(covariance)}) against {_number(total)} in total "
        f"({steps * (steps - 1) // 2:,} covariance terms, {steps:,} variance terms)."
    )


def _faint_signals(comparison: Comparison) -> list[str]:
    """Say which signals cannot be told from none, and how many rollouts would tell."""
    units = unit(comparison)
    varying = [row for row in _distinct(comparison) if row.variance.value > 0]
    faint = [row for row in varying if not (row.signal.resolved or math.isnan(row.signal.low))]
    if not faint:
        return []
    names = _list([long_name(row.name) for row in faint])
    if len(faint) == 1:
        subject, reach, scales = f"signal of {names} is", "its interval reaches", "noise scale has"
    else:
        subject, reach, scales = f"signals of {names} are", "their intervals reach", "noise scales have"
    sentence = (
        f"The {subject} not resolved with these {comparison.units:,} {units}: {reach} zero, and the {scales} "
        "no upper end."
    )
    needed = {}
    for row in faint:
        signal, below = row.signal.value, row.signal.value - row.signal.low
        if signal > 1e-12 * below:  # else it is rounding
            # Where an interval of this size would leave zero: its width goes as 1/sqrt.
            count = _round(comparison.units * (below / signal) ** 2)
            needed[long_name(row.name)] = f"{count} {units}"
    if len(faint) == len(needed) == 1:
        (count,) = needed.values()
        sentence += f" At the size that it seems to have, about {count} would resolve it."
    elif needed:
        each = _list([f"{count} for {name}" for name, count in needed.items()])
        sentence += f" At the sizes that they seem to have, it would take about {each}."
    return [sentence]


def _heavy_tails(comparison: Comparison) -> list[str]:
    heavy = [row for row in _distinct(comparison) if row.heavy_tailed]
    if not heavy:
        return []
    units = unit(comparison)
    shares = _list([f"{row.top_share:.0%} for {long_name(row.name)}" for row in heavy])
    count = max(1, math.ceil(TOP * comparison.units))
    few = f"{count} of {comparison.units} {units} carries" if count == 1 else f"{count} {units} carry"
    # One outlier in both estimators leaves their ratio known; one whose weight stands for many does not.
    weighted = any(row.importance is not None and row.importance.importance != "none" for row in heavy)
    what = "variances and of their ratios" if weighted else "variances"
    return [f"Heavy tails: {few} much of the variance, {shares}. Intervals of {what} may be far too narrow."]


def _stale(comparison: Comparison, on_policy: OnPolicyTest, sampling: Sampling) -> list[str]:
    """Say whether the rollouts are those of the policy, and what their ratios leave of them."""
    known = [row.importance for row in comparison if row.importance is not None]
    stale = [ratios for ratios in known[:1] if not ratios.close]
    sentences = [sentence for ratios in stale for sentence in _of_ratios(ratios)]
    if on_policy.on_policy is False or (on_policy.on_policy and not sentences):
        sentences.append(on_policy_sentence(on_policy, sampling, stale=bool(stale)))
    return sentences


def _of_ratios(ratios: ImportanceRatios) -> list[str]:
    rollouts, size, kind = len(ratios.values), ratios.effective_size, ratios.importance
    if kind == "none":
        return [
            "Another policy sampled these rollouts, as behavior_logp says, and no ratios weigh them: the "
            "means are biased. Sequence ratios would leave an effective sample size of "
            f"{ratios.sequence_size:.1f} of {rollouts:,}."
        ]
    sentences = []
    if size < rollouts / 2:
        trust = "no number or interval can be trusted" if size < _FEW else "intervals may be far too narrow"
        sentences.append(
            f"The {kind} ratios leave an effective sample size of {size:.1f} of {rollouts:,} rollouts, the "
            f"others hardly count: {trust}."
        )
    if ratios.misses:
        sentences.append(
            f"The mean of the {kind} ratios is {ratios.mean} and should be 1: the rollouts lack what the new "
            "policy favours, or the log-probabilities are not those of these policies."
        )
    return sentences


def _distinct(comparison: Comparison) -> list[ComparisonRow]:
    """Leave out what is the reference under another name."""
    reference = comparison.reference
    return [
        row for row in comparison if not row.identical or row.name == reference or reference not in comparison
    ]


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]][len(names) == 1 :])


def _start(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def _power(exponent: float) -> str:
    """Two decimals, of which 0 has no sign."""
    return f"{round(exponent, 2) + 0.0:.2f}"


def _percent(share: float) -> str:
    """Whole percents, of which 0 has no sign."""
    return f"{round(share, 2) + 0.0:.0%}"


def _round(count: float) -> str:
    """Two significant digits of a large number."""
    digits = max(0, math.floor(math.log10(count)) - 1) if math.isfinite(count) else 0
    return f"{math.ceil(count / 10**digits) * 10**digits:,}" if count < 1e15 else f"{count:.2g}"


def _interval(estimate: Estimate, *, percent: bool = False) -> str:
    if math.isnan(estimate.low):
        return "no interval"
    ends = estimate.low, estimate.high
    low, high = (f"{round(end, 3) + 0.0:,.1%}" if percent else _number(end) for end in ends)
    return f"{estimate.confidence:.0%} interval {low} to {high}"
