"""The findings on some rollouts in plain sentences, each with its figure and its rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlvar.analysis.comparison import Comparison, ComparisonRow
from rlvar.analysis.decompose import Decomposition
from rlvar.analysis.headroom import BASELINES, OVER_TO_GO, Headroom
from rlvar.analysis.measured import part_of
from rlvar.analysis.on_policy import OnPolicyTest
from rlvar.analysis.planning import Plan
from rlvar.analysis.sampling import Sampling
from rlvar.reporting.findings import NOTE, Said, said
from rlvar.reporting.planning import plan_sentences
from rlvar.reporting.sampling import (
    is_reward_scaled,
    on_policy_sentence,
    reward_scaled_sentences,
    sampling_sentences,
)
from rlvar.reporting.words import (
    capital,
    interval,
    joined,
    long_name,
    percent,
    power_law,
    ratio_sentence,
    rounded,
    within,
)
from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import number
from rlvar.weights.importance import ImportanceRatios

# Growth with the length of rollouts takes lengths that differ by such a factor between quartiles.
_SPREAD = 1.5
# Estimators with one number a rollout.
_BY_ROLLOUT = {"single", "single-mean", "single-optimal", "rloo", "grpo", "dr-grpo", "reinforce++", "opo"}
_BY_ROLLOUT |= {"james-stein", "vl-norm"}
# So few rollouts say little.
_FEW = 10


def verdict(
    comparison: Comparison,
    decompositions: Mapping[str, Decomposition],
    room: Headroom | None,
    on_policy: OnPolicyTest,
    sampling: Sampling,
    plans: Mapping[str, Plan],
    steps: int,
) -> list[Said]:
    """Say which estimator is quieter, where its variance comes from, and what these rollouts do not show.

    `steps` is the number of them up to the last that any rollout reaches.
    """
    units = unit(comparison)
    if all(row.variance.value == row.signal.value == 0 for row in comparison):
        zero = "All gradient estimates are 0: no step is live, or all scores or all weights are 0."
        return [Said(zero, "estimators", 0), *said(sampling_sentences(sampling, None), "sampling", NOTE)]
    if comparison.units < 3:
        few = f"{comparison.units} {units} are too few to tell anything: there are no intervals."
        return [Said(few, "estimators", 0)]
    quietest = quietest_of(comparison)
    doubts = doubts_of(comparison, on_policy, sampling)
    rloo = comparison["rloo"].noise_scale if "rloo" in comparison else None
    alone = part_of(comparison.scores_of)
    puts = 0 if doubts else NOTE  # the rest in question, and then comes first
    sampled = said(sampling_sentences(sampling, rloo, alone), "sampling", puts)
    sampled += said(_stale(comparison, on_policy, sampling), "on-policy", puts)
    one_coordinate = decompositions[quietest].mean.shape[1] < 2
    same = [row.name for row in comparison if comparison.same_mean(row)]
    planned = [] if doubts else plan_sentences(plans, comparison.reference, same, long_name)
    scaled = [] if doubts else reward_scaled_sentences(comparison, long_name)
    batches = [] if doubts or one_coordinate else _batches(comparison[quietest])
    return [
        *(sampled if doubts else []),
        *_comparisons(comparison, doubts),
        *said(_unless_filtered(comparison, doubts, sampling), "sampling", NOTE),
        *said(scaled, "estimators", 2),
        *said([_of_part(sentence, alone) for sentence in planned], "plan", 1, 2, 5),
        *said(
            [_headroom_sentence(room, comparison.grouped)]
            if room is not None and comparison.units >= _FEW
            else [],
            "headroom",
            2,
        ),
        *_sources(comparison[quietest], decompositions[quietest], steps),
        *said([_of_part(sentence, alone) for sentence in _faint_signals(comparison)], "noise-scale", 3),
        *said([_of_part(sentence, alone) for sentence in batches], "noise-scale", 4),
        *said(comparison.notes, "table", NOTE),
        *([] if doubts else sampled),
    ]


def quietest_of(comparison: Comparison) -> str:
    """Name the estimator of least variance among those with the mean of the reference."""
    same = [row for row in comparison if comparison.same_mean(row)]
    return min(same or comparison, key=lambda row: row.variance.value).name


def unit(comparison: Comparison) -> str:
    return f"{comparison.unit}s"


def doubts_of(comparison: Comparison, on_policy: OnPolicyTest, sampling: Sampling) -> list[str]:
    """Say why a ratio of variances is not that of the rollouts needed, even where theory knows one mean."""
    ratios = next((row.importance for row in comparison if row.importance is not None), None)
    weighed = ratios is not None and ratios.importance != "none"
    doubts = []
    if comparison.policies_agree:
        weighed = False  # so that the scores are those of the policy that sampled
    if ratios is not None and not weighed and not comparison.policies_agree:
        doubts.append("another policy sampled these rollouts, so the means are biased")
    elif sampling.impossible:
        doubts.append("another policy sampled these rollouts, as their logp shows, so the means are biased")
    elif on_policy.positions and any(_of_steps(row) for row in comparison):
        doubts.append("these look like rows of positions, whose steps are not those of token scores")
    elif on_policy.on_policy is False and not weighed:
        doubts.append("the scores may not be those of the policy that sampled, and then the means are biased")
    if weighed and ratios is not None:
        if ratios.misses:
            doubts.append("the importance ratios do not average to 1")
        if ratios.effective_size < _FEW:
            doubts.append("the importance ratios leave too few rollouts")
    if sampling.filtered:
        doubts.append("the groups look as if they were kept by their outcome")
    if sampling.copied:
        doubts.append("some rollouts look like copies")
    elif sampling.grouped:
        doubts.append("rollouts may share prompts")
    return doubts


def _of_steps(row: ComparisonRow) -> bool:
    """Whether an estimator may have more than one number a rollout, so that it matters what a step is."""
    return not row.identical and row.name.partition(":")[0].partition("(")[0] not in _BY_ROLLOUT


def _unless_filtered(comparison: Comparison, doubts: Sequence[str], sampling: Sampling) -> list[str]:
    """Say what one mean of estimators rests on, where groups do not show whether they were filtered."""
    known = [row for row in comparison if row.name != comparison.reference and comparison.same_mean(row)]
    if doubts or not known or not sampling.binary or sampling.dead_groups or not sampling.groups:
        return []
    names = joined([long_name(row.name) for row in [*known, comparison[comparison.reference]]])
    return [
        f"The comparison of {names} assumes that no groups were dropped for their outcome: none of these "
        f"{sampling.groups:,} is dead, which may be chance."
    ]


def _comparisons(comparison: Comparison, doubts: Sequence[str]) -> list[Said]:
    """Say which estimator needs fewer rollouts; only how the variances compare where there are `doubts`."""
    units, reference = unit(comparison), comparison.reference
    others = [row for row in comparison if row.name != reference]
    known = [row for row in others if comparison.same_mean(row) or row.factor is not None]
    # The quietest first, and the reference under another name or times a number last.
    known.sort(key=lambda row: (row.ratio.low == row.ratio.high, row.ratio.value))
    ratios = [
        ratio_sentence(row, reference, None if doubts else units, identical=row.identical) for row in known
    ]
    new = sum(row.ratio.low != row.ratio.high for row in known)
    sentences = said(ratios[:new], "estimators", 1, 1, 5) + said(ratios[new:], "estimators", 5)
    if known and doubts:
        why = f"This does not say how many {units} each needs for the same precision: {'; '.join(doubts)}."
        sentences.append(Said(why, "estimators", 0))
    denied = [long_name(row.name) for row in others if row.unbiased and row.differs]
    if denied and comparison.reference_unbiased:
        differ = (
            f"On these rollouts {joined([*denied, long_name(reference)])} have different mean gradients, "
            "though in theory all are unbiased: look for rewards that depend on later actions, a discount, "
            "another policy, or a filter."
        )
        sentences.append(Said(differ, "table", 0))
    scaled = [] if doubts else [row for row in others if is_reward_scaled(row)]
    apart = [long_name(row.name) for row in others if row not in known and row not in scaled]
    if apart:
        one = len(apart) == 1
        does = "its variance ratio alone does" if one else "their variance ratios alone do"
        may = (
            f"{capital(joined(apart))} may estimate a different mean gradient than {long_name(reference)}, "
            f"so {does} not say how many {units} {'it needs' if one else 'they need'}."
        )
        sentences.append(Said(may, "estimators", NOTE if ratios else 1))
    return sentences


def _batches(row: ComparisonRow) -> list[str]:
    """Say what two batches differ by through chance alone, where the signal tells."""
    if not (row.signal.resolved and row.batch_noise.angle.resolved):
        return []
    noise = str(row.batch_noise)
    return [f"With {long_name(row.name)}, {noise[0].lower()}{noise[1:]}"]


def _of_part(sentence: str, part: str | None) -> str:
    """Name the part of the parameters that a signal or noise scale is of, if it is not all."""
    return sentence if part is None else f"For {part} alone: {sentence[:1].lower()}{sentence[1:]}"


def _headroom_sentence(room: Headroom, grouped: bool) -> str:
    """Say what reward-to-go removes, what a baseline adds to that, and how much the estimators in use do."""
    best, reference, share = long_name(room.best), long_name(room.reference), room.removable
    if not math.isfinite(share.value):  # the reference does not vary
        return f"No baseline has anything to remove from {reference}."
    with_to_go = not (math.isnan(room.reward_to_go.value) or within(room.reward_to_go, 0.0))
    on_top = with_to_go and not math.isnan(room.on_top.value)
    base, of = (name.partition(":")[0] for name in (room.best, room.reference))
    if base in OVER_TO_GO and of not in ("single", "multi"):
        best += " over returns-to-go"  # to which some of it may be due
    # Those of each group, such as RLOO's, can remove more.
    best += f"{', one for all groups' if grouped else ''}, cross-fitted,"
    before, whole = "", f"the variance of {reference}"
    if with_to_go:
        before = f"{_reward_to_go(room.reward_to_go, whole)}; {'' if on_top else 'without it '}"
    if on_top:
        share, whole = room.on_top, "what is left"
    ends = interval(share, percent=True)
    if share.low > 0:
        claim = f"{best} would remove {share.value:.1%} of {whole} ({ends})"
        claim += "".join(_in_batches(*each) for each in room.in_batches.items())
    else:
        does, of, part = ("remove", "of", share) if share.value >= 0 else ("add", "to", _negative(share))
        would = f"{best} would {does} {percent(part.value)} {of} it ({interval(part, percent=True)})"
        claim = f"no fitted baseline measurably reduces {whole}: {would}"
    parts = [
        f"{long_name(name)} {percent(part.value)} ({interval(part, percent=True)})"
        for name, part in room.removed.items()
        if name.partition(":")[0] not in (*BASELINES, *["multi"] * with_to_go)
        and 0 < part.high - part.low < 2  # 0: the reference itself
        and part.value > 0
    ]
    all_ = "both together" if on_top else "that reduction"
    achieved = f" Already achieved of {all_}: {', '.join(parts)}." if parts else ""
    return f"{capital(before + claim)}.{achieved}"


def _in_batches(size: int, share: Estimate) -> str:
    """Say what is left of a baseline's gain where it is fitted to few rollouts."""
    of_share = f"{round(share.value, 3) + 0.0:.1%} ({interval(share, percent=True)})"
    return f"; fitted to batches of {size} rollouts, {of_share}"


def _negative(x: Estimate) -> Estimate:
    return Estimate(-x.value, x.stderr, -x.high, -x.low, x.confidence)


def _reward_to_go(share: Estimate, whole: str) -> str:
    """Say how much of the variance of single-step reward-to-go removes, or adds."""
    if share.high < 0:
        added = _negative(share)
        return f"reward-to-go adds {added.value:.1%} to {whole} ({interval(added, percent=True)})"
    ends = interval(share, percent=True)
    if share.low > 0:
        return f"reward-to-go removes {share.value:.1%} of {whole} ({ends})"
    return f"whether reward-to-go reduces {whole} is not resolved: by {percent(share.value)} ({ends})"


def _sources(row: ComparisonRow, parts: Decomposition, steps: int) -> list[Said]:
    """Say where the variance of one estimator comes from and how it grows."""
    name = long_name(row.name)
    if not (row.variance.value > 0 and parts.variance.value > 0):
        return [Said(f"The gradient estimate of {name} does not vary over these rollouts.", "table", 2)]
    sentences = [_covariance_sentence(row.name, parts, steps)] if steps > 1 else []
    return [*said(sentences, "covariance", 3), *_growth(name, parts)]


def _growth(name: str, parts: Decomposition) -> list[Said]:
    """Say how the variance grows, by the curve that comes closest to "with length" for these rollouts."""
    first, last = parts.growth_range
    reached = f" over k from {first} to {last}, which at least half of the rollouts reach"
    if not math.isnan(parts.horizon_exponent.value):
        grows = f"If rollouts were cut after k steps, the variance of {name} would grow"
        return [Said(power_law(grows, "k", parts.horizon_exponent, reached), "growth", 2)]
    if lengths_differ(parts):
        strata = parts.length_growth
        ends = f"{strata.lengths[0]:.3g} to {strata.lengths[-1]:.3g}"
        grows = (
            f"From quartile to quartile of length, on average {ends} {strata.measure}, the variance of "
            f"{name} grows"
        )
        beside = "; long rollouts may differ from short ones in more than their length"
        return [Said(power_law(grows, "length", parts.length_exponent, beside), "length", 2)]
    if not math.isnan(parts.growth_exponent.value):
        grows = (
            f"In rollouts of full length, the variance of the sum of the first k steps' terms of {name} grows"
        )
        return [Said(power_law(grows, "k", parts.growth_exponent, reached), "growth", 2)]
    return []


def lengths_differ(parts: Decomposition) -> bool:
    """Whether rollouts differ in length by enough to tell how the variance grows with it."""
    lengths = parts.length_growth.lengths
    return not math.isnan(parts.length_exponent.value) and bool(lengths[-1] >= _SPREAD * lengths[0])


def _covariance_sentence(name: str, parts: Decomposition, steps: int) -> str:
    """Say how much of the variance is covariance between steps, or that it cannot be told from none."""
    name, covariance, total = long_name(name), parts.covariance_terms, parts.variance.value
    if not (covariance.resolved or math.isnan(covariance.low)):
        claim = f"The covariance between steps of {name} is not distinguishable from zero"
    elif covariance.value >= 0:
        claim = f"{parts.covariance_share:.0%} of the variance of {name} is covariance between steps"
    else:
        cancelled = f"cancels {-covariance.value / parts.variance_terms.value:.0%} of the variance terms"
        claim = f"Covariance between steps is negative in {name} and {cancelled}"
    return (
        f"{claim}: {number(covariance.value)} ({interval(covariance)}) against {number(total)} in total "
        f"({steps * (steps - 1) // 2:,} covariance terms, {steps:,} variance terms)."
    )


def _faint_signals(comparison: Comparison) -> list[str]:
    """Say which signals cannot be told from none, and how many rollouts would tell."""
    units = unit(comparison)
    varying = [row for row in _distinct(comparison) if row.variance.value > 0]
    faint = [row for row in varying if not (row.signal.resolved or math.isnan(row.signal.low))]
    if not faint:
        return []
    names = joined([long_name(row.name) for row in faint])
    what = (
        f"signal of {names}: its interval includes zero, so its noise scale has no upper bound"
        if len(faint) == 1
        else f"signals of {names}: their intervals include zero, so their noise scales have no upper bound"
    )
    sentence = f"{comparison.units:,} {units} are too few to resolve the {what}."
    needed: dict[Estimate, str] = {}
    for row in faint:
        signal, resolved = row.signal, row.units_to_resolve
        if signal.value > 1e-12 * (signal.value - signal.low):  # else it is rounding
            # Rows with one signal need as many.
            needed[resolved] = (
                f"about {rounded(resolved.value)} {units} would resolve it in half of the cases; a smaller "
                "signal takes more"
            )
    if len(needed) == 1:
        (claim,) = needed.values()
        sentence += f" If the estimate is right, {claim}."
    return [sentence]


def _stale(comparison: Comparison, on_policy: OnPolicyTest, sampling: Sampling) -> list[str]:
    """Say whether the rollouts are those of the policy, and what their ratios leave of them."""
    known = [row.importance for row in comparison if row.importance is not None]
    stale = [ratios for ratios in known[:1] if not (ratios.close or comparison.policies_agree)]
    sentences = [sentence for ratios in stale for sentence in _of_ratios(ratios, share=comparison.bias_share)]
    # Rollouts that ratios weigh need not be those of the policy that scores them.
    weighed = any(ratios.importance != "none" for ratios in stale)
    spoken = on_policy.on_policy is False or on_policy.positions
    if not weighed and (spoken or (on_policy.on_policy and not sentences)):
        sentences.append(on_policy_sentence(on_policy, sampling, stale=bool(stale)))
    if known and comparison.policies_agree and not known[0].close:
        sentences.append(_agree(known[0], comparison.bias_share))
    return sentences


def _agree(ratios: ImportanceRatios, share: float) -> str:
    kind = ratios.importance
    instead = "no ratios" if kind == "none" else f"{kind} ratios instead of those of whole sequences"
    return (
        f"The recorded log-probabilities differ from the model's by {ratios.gap:.2g} on average, as those of "
        f"an inference engine may. With {instead}, the bias this makes is at most {percent(share)} of the "
        "standard error of the mean gradients, so these rollouts count as on policy."
    )


def _of_ratios(ratios: ImportanceRatios, share: float) -> list[str]:
    rollouts, size, kind = len(ratios.values), ratios.effective_size, ratios.importance
    if kind == "none":
        most = "" if math.isnan(share) else f", by up to {percent(share)} of their standard error"
        return [
            "behavior_logp shows that another policy sampled these rollouts; without importance ratios the "
            f"mean gradients are biased{most}. Sequence ratios would leave an effective sample size of "
            f"{ratios.sequence_size:.1f} of {rollouts:,}."
        ]
    sentences = []
    if size < 0.75 * rollouts:  # below, intervals miss more often (docs/promises.md)
        trust = "Do not trust any number here" if size < _FEW else "Intervals may be far too narrow"
        sentences.append(
            f"With {kind} ratios the effective sample size is {size:.1f} of {rollouts:,} rollouts. {trust}."
        )
    if ratios.misses and not ratios.consistent and max(ratios.mean.value, ratios.step_mean.value) < 1:
        missed = f"about {percent(1 - ratios.mean.value)} of the policy's probability"
        sentences.append(
            f"The {kind} ratios average to {ratios.mean}; with a sampler that can draw all that the policy "
            "can, they would average to 1. "
            f"Either {missed} lies on {'actions' if kind == 'token' else 'rollouts'} that "
            "were never or hardly ever sampled, as with top-p, top-k or min-p, or the log-probabilities "
            "belong to other policies. No estimator is then unbiased."
        )
    elif ratios.misses:
        sentences.append(
            f"The mean of the {kind} ratios is {ratios.mean} and should be 1: either the rollouts miss "
            "actions that the new policy prefers, or the log-probabilities belong to other policies."
        )
    return sentences


def _distinct(comparison: Comparison) -> list[ComparisonRow]:
    """Leave out what is the reference under another name."""
    reference = comparison.reference
    return [
        row for row in comparison if not row.identical or row.name == reference or reference not in comparison
    ]
