"""The argument of the package on one page: `rlvar explain`.

Exact numbers are those of T tosses of a fair coin whose one parameter is the log-odds of heads:

    S_t = y_t - 1/2,  y_t = 1 for heads, 0 for tails.

All 2^T sequences, each with its probability, are the rollouts (`sample_weight`, ddof = 0): nothing is
sampled, and as all products are multiples of a power of 2, nothing is rounded. Measured numbers are those of
the embedded rollouts, as `rlvar report` has them.
"""

from __future__ import annotations

import math
import textwrap

import numpy as np

from rlvar import datasets
from rlvar._types import Double
from rlvar.analysis.compare import compare
from rlvar.analysis.decompose import Decomposition, decompose
from rlvar.reporting.report import Report, report
from rlvar.reporting.words import percent, power
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import inverse
from rlvar.stats.shown import measured, number
from rlvar.weights.returns import reward_to_go

_WIDTH = 80
_TABLE = (1, 2, 4, 8, 16)  # numbers of tosses; the last has 65,536 sequences
_TOSSES = 8  # of a single example
_ADVANCE = 20.0


def explain() -> str:
    """Return why policy gradients are noisy, on a page whose numbers are computed for it.

    Returns
    -------
    str
        Lines of at most 80 columns.

    Examples
    --------
    >>> from rlvar.reporting.explain import explain
    >>> print(explain().splitlines()[0])
    Why policy gradients are noisy, in numbers computed just now
    """
    cartpole, completions = report(datasets.cartpole()), datasets.arithmetic()
    return "\n\n".join(
        [
            _opening(cartpole.rollouts, completions),
            _sum_over_steps(cartpole),
            _one_reward_at_the_end(completions),
            _rewards_on_the_way(cartpole),
            _growth(cartpole),
            _baselines(completions),
            _what_next(),
        ]
    )


def _opening(cartpole: Rollouts, completions: Rollouts) -> str:
    return _block(
        "Why policy gradients are noisy, in numbers computed just now",
        "Exact numbers are of T tosses of a fair coin, with one parameter, the log-odds of heads: all 2^T "
        "sequences are summed, none is sampled. Measured ones, with 95% intervals, are of rollouts that "
        f"come with rlvar: {len(cartpole)} episodes of CartPole, and {len(completions)} completions of a "
        "small language model that adds numbers.",
    )


def _sum_over_steps(cartpole: Report) -> str:
    return _block(
        "1. A policy gradient is a sum over steps; its noise decides how many rollouts",
        "     g = w_1 S_1 + ... + w_T S_T,  S_t = gradient of log pi(action t)\n"
        "     single-step: w_t = R, the whole return\n"
        "     multi-step:  w_t = G_t, the rewards from step t on (reward-to-go)",
        "The mean of N rollouts has the variance V/N, V = E|g - E g|^2. Noise equals signal at "
        "N = V/|E g|^2, the noise scale: "
        f"{measured(cartpole.comparison['single'].noise_scale)} rollouts of CartPole with single-step.",
    )


def _one_reward_at_the_end(completions: Rollouts) -> str:
    paid, live = np.zeros(completions.live.shape), completions.live
    paid[np.arange(len(paid)), completions.live_steps - 1] = completions.rewards
    to_go = np.asarray(reward_to_go(paid, mask=live), np.float64)
    pairs = [_both(_last_pays(_TOSSES)), (_single(paid)[live], to_go[live])]
    apart = max(float(np.abs(single - multi).max()) for single, multi in pairs)
    coin = [_exact(weights).variance.value for weights in pairs[0]]
    model = [row.variance.value for row in compare(completions, ["single", "multi"], reference="single")]
    return _block(
        "2. With one reward at the end the two are the same, to the bit",
        "The rewards from any step on are then the whole return (without a discount): over all sequences "
        f"and completions the weights differ by {apart:g} at most. V is {coin[0]!r} and {coin[1]!r} if the "
        f"last of {_TOSSES} tosses pays 1 for heads, {model[0]!r} and {model[1]!r} for a prompt's mean over "
        "its completions, 1 for a right one.",
    )


def _rewards_on_the_way(cartpole: Report) -> str:
    heads = _tosses(_TOSSES)
    single, multi = _both(heads)
    v, v_multi, v_past = (_exact(weights).variance.value for weights in (single, multi, single - multi))
    advance = heads.copy()
    advance[:, 0] += _ADVANCE
    advance[:, -1] -= _ADVANCE
    v_same, v_worse = (_exact(weights).variance.value for weights in _both(advance))
    tokens = compare(datasets.arithmetic(rewards="token"), ["single", "multi"], reference="single")
    return _block(
        "3. With rewards on the way single-step is noisier, as a rule",
        "No action changes what was paid before it: E[r_k S_t] = 0 for k < t. Past rewards leave the mean "
        f"alone and add noise. If each of {_TOSSES} tosses pays 1 for heads,",
        "     V(single) = V(multi) + V(past) + 2 Cov(multi, past)\n"
        f"     {v:<9g} = {v_multi:<8g} + {v_past:<7g} + {v - v_multi - v_past:g}",
        f"and single-step needs {number(v / v_multi)} times the rollouts (3 as T grows). CartPole: "
        f"{measured(inverse(cartpole.comparison['multi'].ratio))} times, but few episodes decide that. "
        "Completions with a reward for each right token: "
        f"{measured(inverse(tokens['multi'].ratio))}. The rule needs a covariance that is not too negative: "
        f"let the first toss pay {_ADVANCE:g} more and the last one take them back. Each return is as "
        f"before, and multi-step has {number(v_worse / v_same)} times the variance of single-step. Measure.",
    )


def _growth(cartpole: Report) -> str:
    all_heads = _tosses(_TOSSES).prod(axis=1)
    shared, own = _exact(all_heads), _exact(all_heads, shared=False)
    half, whole = (_exact(_single(_last_pays(steps))).noise_scale.value for steps in (_TOSSES // 2, _TOSSES))
    parts = cartpole.decompositions
    horizons = [measured(parts[name].horizon_exponent) for name in ("single", "multi")]
    first, last = parts["multi"].growth_range
    cancelled = -parts["multi"].covariance_terms.value / parts["multi"].variance_terms.value
    return _block(
        "4. Where V comes from, and how it grows with length",
        "     V = sum_t Var(w_t S_t) + 2 sum_(i<j) Cov(w_i S_i, w_j S_j)",
        "T variance terms and T(T-1)/2 covariance terms, in both. If each head pays 1 (growth as T^b since "
        "the line above):",
        _growth_table(),
        "The weights are sums of rewards and grow too, so both tend to T^3: length does that, the "
        f"formulation sets the factor. CartPole, had it been cut after k = {first} to {last} steps: "
        f"k^{horizons[0]} and k^{horizons[1]}.",
        "There are more covariance terms, but their size and sign decide. If a sequence pays 1 only where "
        f"all {_TOSSES} tosses are heads, they are equal, add up to "
        f"{number(shared.covariance_terms.value / shared.variance_terms.value)} times the variance terms, "
        f"and V of the first k terms is as k^{number(shared.growth_exponent.value)}. With a parameter for "
        f"each toss they are {number(own.covariance_terms.value)}, and it is as "
        f"k^{number(own.growth_exponent.value)}. In CartPole they cancel {percent(cancelled)} of the "
        "variance terms of multi-step.",
        "One reward at the end, from 0 to 1, cannot do worse than linear: V <= E|S_1|^2 + ... + E|S_T|^2. If "
        f"the last toss pays, the noise scale is {half:g} at T = {_TOSSES // 2} and {whole:g} at "
        f"T = {_TOSSES}.",
    )


def _growth_table() -> str:
    """Variance terms, covariance terms, V and exponent of both if each head pays 1."""
    heads = f"{'variance':>11}{'covariance':>12}{'V':>8}{'b':>6}"
    lines = [f"{'single-step':>24}{'multi-step':>36}", f"  T{heads * 2}"]
    before = [math.nan, math.nan]
    for steps in _TABLE:
        line = f"{steps:3d}"
        for i, weights in enumerate(_both(_tosses(steps))):
            parts = _exact(weights)
            v = parts.variance.value
            b = "" if math.isnan(before[i]) else power(math.log2(v / before[i]))
            line += f"{parts.variance_terms.value:11g}{parts.covariance_terms.value:12g}{v:8g}{b:>6}"
            before[i] = v
        lines.append(line.rstrip())
    return "\n".join(lines)


def _baselines(completions: Rollouts) -> str:
    plain = _both(_tosses(_TOSSES))
    (single, single_mean), (multi, multi_mean) = (
        (_exact(weights).variance.value, _exact(weights - weights.mean(axis=0)).variance.value)
        for weights in plain
    )
    scores = np.where(completions.live[:, :, None], completions.scores, 0.0).sum(axis=1)
    norms = np.square(scores).sum(axis=1)
    best = float((completions.rewards * norms).sum() / norms.sum())
    rloo = inverse(compare(completions, ["single", "rloo"])["single"].ratio)
    return _block(
        "5. A baseline helps if it is the right one",
        "A constant leaves the mean alone, as E[S_t] = 0. Minus the mean weight of a step, V of "
        f"{_TOSSES} tosses that pay for heads falls from {single:g} to {single_mean:g}, of multi-step from "
        f"{multi:g} to {multi_mean:g}. But the best for single-step is E[R|s|^2]/E|s|^2, "
        f"s = S_1 + ... + S_T: {best:.2f} for the completions, of which "
        f"{percent(completions.rewards.mean())} are right. RLOO, whose baseline is the mean of a "
        f"prompt's other completions, needs {measured(rloo)} times the prompts that no baseline needs there.",
    )


def _what_next() -> str:
    return (
        "6. What about your rollouts?\n"
        "     rlvar report FILE                           factor, interval, growth\n"
        "     rlvar report FILE --html OUT                the same, with pictures\n"
        "     rlvar report FILE --model MODEL             of what a trainer wrote\n"
        "     rlvar report FILE --estimators single,rloo  does a baseline help?\n"
        "     rlvar report --dataset arithmetic           prompts against completions"
    )


def _tosses(steps: int) -> Double:
    """All sequences (2^T, T), 1 for heads."""
    sequences = (np.arange(2**steps)[:, None] >> np.arange(steps)) & 1
    return np.asarray(sequences, np.float64)


def _last_pays(steps: int) -> Double:
    """Rewards (2^T, T) of 1 for heads in the last toss."""
    return np.where(np.arange(steps) == steps - 1, _tosses(steps), 0.0)


def _single(rewards: Double) -> Double:
    """Weights (N, T) of single-step."""
    return np.repeat(rewards.sum(axis=1, keepdims=True), rewards.shape[1], axis=1)


def _both(rewards: Double) -> tuple[Double, Double]:
    """Weights (N, T) of single- and multi-step."""
    return _single(rewards), np.asarray(reward_to_go(rewards), np.float64)


def _exact(weights: Double, *, shared: bool = True) -> Decomposition:
    """Decompose weights (2^T, T) or (2^T,) times the scores, in one parameter or one for each toss."""
    n = len(weights)
    steps = n.bit_length() - 1
    scores = _tosses(steps)[:, :, None] - 0.5
    scores = scores if shared else scores * np.eye(steps)
    return decompose(scores, weights, sample_weight=np.full(n, 1.0 / n), ddof=0)


def _block(title: str, *parts: str) -> str:
    """Put paragraphs below a title; what is indented already stays as it is."""
    filled = [
        part
        if part.startswith("   ")
        else textwrap.fill(part, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        for part in parts
    ]
    return "\n".join([title, *filled])
