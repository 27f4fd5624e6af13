"""Sentences on how the rollouts were sampled: copies, missing groups, dead groups, filters, the policy."""

from __future__ import annotations

import math
from collections.abc import Callable

from rlvar.analysis.comparison import Comparison, ComparisonRow
from rlvar.analysis.on_policy import OnPolicyTest
from rlvar.analysis.sampling import Sampling, kept_noise_scale
from rlvar.stats.estimate import Estimate


def sampling_sentences(sampling: Sampling, rloo: Estimate | None, part: str | None = None) -> list[str]:
    """Say what speaks against independent rollouts, and what dead groups mean.

    `rloo` is the noise scale of RLOO in groups, if it was compared, maybe of a `part` of the parameters.
    """
    return [
        *_impossible(sampling),
        *_padded(sampling),
        *_repeated(sampling),
        *_ungrouped(sampling),
        *_dead(sampling, rloo, part),
    ]


def _impossible(sampling: Sampling) -> list[str]:
    if not (k := sampling.impossible):
        return []
    return [
        f"{k:,} {'step has' if k == 1 else 'steps have'} a logp of minus infinity: the policy that scores "
        f"them never takes {'this action' if k == 1 else 'these actions'}, so another one sampled, perhaps "
        "with another top-p, top-k or min-p. Without behavior_logp nothing weighs these rollouts, and the "
        "mean gradients are biased."
    ]


def _padded(sampling: Sampling) -> list[str]:
    if not (k := sampling.padded):
        return []
    return [
        f"In {k:,} of {sampling.rollouts:,} rollouts the scores of the last step are all 0, as those of "
        "padding are. If rollouts end earlier, pass lengths= or mask=: padding counts as steps here, in "
        "growth and exponents too."
    ]


def _repeated(sampling: Sampling) -> list[str]:
    k, n = sampling.repeated, sampling.rollouts
    if not k:
        return []
    count = f"{k:,} of {n:,} rollouts {'equals' if k == 1 else 'equal'} an earlier one in scores and rewards"
    if sampling.copied:
        what, remedy = "copies", "pass each rollout once"
        if sampling.groups is None:
            what, remedy = "copies, or share prompts", f"{remedy}, or groups="
        return [
            f"{count}, in a pattern that independent rollouts in random order do not have: unless they were "
            f"sorted, they are {what}. Signals, noise scales and intervals count them as independent here, "
            f"and are then wrong; {remedy}."
        ]
    return [
        f"{count}. A policy with few possible rollouts repeats some by chance; copies, as from several "
        "epochs or a replay buffer, would make signals and intervals wrong."
    ]


def _ungrouped(sampling: Sampling) -> list[str]:
    if not sampling.grouped:
        return []
    others = "independent rollouts in random order do not"
    why = f"In the order given, neighbours resemble each other in returns or gradients as {others}"
    if not sampling.neighbours:
        why = (
            f"{sampling.sharing:,} of {sampling.rollouts:,} share their {sampling.shared} with another one, "
        )
        why += f"in a pattern that {others} have"
    return [
        f"Do these rollouts share prompts? {why}. If they do, pass groups=: else rollouts of one prompt "
        "count as independent, and intervals are too narrow."
    ]


def _dead(sampling: Sampling, rloo: Estimate | None, part: str | None) -> list[str]:
    groups, dead = sampling.groups, sampling.dead_groups
    if sampling.filtered:
        return [
            f"None of the {groups:,} groups is dead, its rewards all equal, though their success rates make "
            "that improbable (below 1%): they seem to have been kept by their outcome, or their rewards to "
            "have been made within groups (ranks, pairs). Of groups that were kept, the mean gradient keeps "
            "its direction only with baselines from within the group, as RLOO's."
        ]
    if not dead or not groups:
        return []
    sentence = (
        f"{dead:,} of {groups:,} groups {'is' if dead == 1 else 'are'} dead: all their rewards are equal, so "
        "RLOO and GRPO learn nothing from them. Dropping them saves backward passes, but no rollouts"
    )
    if rloo is None or sampling.mixed is None or not rloo.resolved:
        return [f"{sentence}."]
    kept = kept_noise_scale(rloo, sampling.mixed)
    sentence += ":" if part is None else f": for {part} alone,"
    return [
        f"{sentence} the noise scale of RLOO is then {kept.value:.3g} groups that are kept, which takes "
        f"{kept.value / sampling.mixed:.3g} drawn; that of all groups is {rloo.value:.3g}, more by what the "
        "number of dead ones adds to the length of the gradient."
    ]


def on_policy_sentence(test: OnPolicyTest, sampling: Sampling, *, stale: bool) -> str:
    """Say whether the scores are those of the policy that sampled; `stale` if behavior_logp denies it."""
    if test.positions:
        return _positions(test, sampling)
    if not test.against:
        fine = "The scores are consistent with on-policy sampling"
        if not test.mean_score.high > 0:
            return f"{fine}."
        if test.mean_score.high > 1:
            return f"{fine}, but these rollouts are too few to exclude much else."
        most = _share(test.mean_score.high)
        return f"{fine}; a mean score whose square is up to {most} of their variance is not excluded."
    found = {
        "ratio": f"scores of different steps are correlated, {test.ratio} of their variance",
        "mean_score": f"the square of their mean is {test.mean_score} of their variance",
    }
    against = ", and ".join(found[name] for name in test.against)
    start = f"The scores do not average to 0 given the past, though the sampling policy's would: {against}"
    if stale:
        return f"{start}; behavior_logp agrees that another policy sampled."
    causes = [
        "sampling from another policy or temperature (top-p, a stale copy, another inference engine)",
        "filtering by outcome" + (", as the groups show" if sampling.filtered else ""),
    ]
    if sampling.repeated:
        causes.append(f"repeated rollouts ({sampling.repeated:,} here)")
    if "ratio" in test.against:
        causes.append("rows of one backward pass in place of token scores")
    rare = "an action too rare to appear here often enough, which would have "
    rare += f"{_share(test.unseen_share)} or more of the variance"
    return f"{start}. Possible causes: {', '.join(causes)}, or {rare}."


def _positions(test: OnPolicyTest, sampling: Sampling) -> str:
    others = ["one score given to several steps", "rollouts of several policies", "filtering by outcome"]
    if sampling.repeated:
        others.append(f"repeated rollouts ({sampling.repeated:,} here)")
    return (
        "These look like rows of one backward pass (contributions of positions), not token scores: steps "
        f"correlate, {test.ratio} of their variance, while their sum over a rollout is consistent with a "
        "mean of 0. Totals, and ratios of estimators with one number a rollout, hold. What is said of steps, "
        "as of reward-to-go, token baselines, covariance and growth, is true of these rows, not of token "
        "scores: see rlvar.torch.token_scores. "
        f"Other possible causes: {', '.join(others)}."
    )


def is_reward_scaled(row: ComparisonRow) -> bool:
    """Whether an estimator of another mean compares by the scale that the rewards give."""
    ratio = row.reward_scaled_ratio
    return ratio is not None and math.isfinite(ratio.value) and not math.isnan(ratio.low)


def reward_scaled_sentences(comparison: Comparison, names: Callable[[str], str]) -> list[str]:
    """Say how many groups estimators of another length need, by the scale that the rewards give."""
    found, that = [], names(comparison.reference)
    for row in filter(is_reward_scaled, comparison):
        ratio, bracket = row.reward_scaled_ratio, row.reward_scaled_bracket
        assert ratio is not None
        one = ratio.low <= 1.0 <= ratio.high
        ends = f"{ratio.confidence:.0%} interval {ratio.low:.2f} to {ratio.high:.2f}"
        ends += ", which includes 1" if one else ""
        if bracket is not None and bracket[1] / bracket[0] > 1.01 * ratio.high / ratio.low:
            ends += "; assuming only that no prompt opposes the mean gradient, "
            ends += f"{bracket[0]:.2f} to {bracket[1]:.2f}"
        found.append(
            f"{names(row.name)} may estimate a different mean gradient than {that}. Scaled by the rewards, "
            f"it {'appears to need' if one else 'needs'} {ratio.value:.2f} times as many groups for the same "
            "precision, if the gradient of each prompt along the mean gradient is proportional to the "
            f"variance of its rewards ({ends})."
        )
    return found


def _share(x: float) -> str:
    return f"{100 * x:.2g}%" if x < 0.995 else f"{100 * x:,.0f}%"
