"""What sentences are made of: names, numbers and intervals in words, and which estimator needs more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from rlvar.stats.estimate import Estimate, inverse
from rlvar.stats.shown import number

_LONG_NAMES = {
    "single": "single-step",
    "multi": "multi-step",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dr-grpo": "Dr. GRPO",
    "reinforce++": "REINFORCE++",
    "opo": "OPO",
    "gae": "GAE",
    "single-mean": "single-step with a mean baseline",
    "multi-mean": "multi-step with a mean baseline",
    "single-optimal": "the best constant baseline (single-optimal)",
    "multi-optimal": "a baseline for each step (multi-optimal)",
    "otb": "token baselines (OTB)",
    "otb-verl": "verl's token baselines",
    "james-stein": "the James-Stein baseline",
    "vl-norm": "VL Norm",
}


def long_name(name: str) -> str:
    """Return what a sentence calls an estimator."""
    base, bracket, parameters = name.partition("(")
    return _LONG_NAMES.get(base, base) + bracket + parameters


class Compared(Protocol):
    """What a row of a comparison tells of an estimator beside the reference."""

    @property
    def name(self) -> str: ...
    @property
    def ratio(self) -> Estimate: ...
    @property
    def noise_scale_ratio(self) -> Estimate: ...
    @property
    def factor(self) -> float | None: ...


def ratio_sentence(row: Compared, reference: str, units: str | None, *, identical: bool = False) -> str:
    """Say how many times as many units the noisier of two estimators needs; without units, its variance."""
    this, that, factor = long_name(row.name), long_name(reference), row.factor
    if math.isnan(row.ratio.value):
        return f"{capital(this)} and {that} cannot be compared: neither varies over these rollouts."
    if identical:
        return (
            f"{capital(this)} and {that} are the same estimator on these rollouts: the variances are equal."
        )
    if math.isinf(row.ratio.value):
        return f"{capital(that)} does not vary over these rollouts; {this} does."
    if row.ratio.value == 0.0:
        return f"{capital(this)} does not vary over these rollouts; {that} does."
    scaled = units is not None and factor is not None and factor != 1.0
    ratio = row.noise_scale_ratio if scaled else row.ratio
    times = "that" if factor is None or number(factor) == "1" else f"{number(factor)} times that"
    length = f"The mean gradient of {this} is {times} of {that} here" if scaled else ""
    if scaled and ratio.low == ratio.high:  # the same gradient, longer
        return f"{length}, and so is its noise: both need as many {units} for the same precision."
    if ratio.value < 1.0:
        this, that = that, this
        ratio = inverse(ratio)
    ends = interval(ratio)
    if within(ratio, 1.0):
        tie = "have the same variance" if units is None else f"need as many {units} for the same precision"
        claim = f"{this} and {that} {tie}, to within 1%"
        ends = f"{ratio.confidence:.0%} interval {ratio.low:.4f} to {ratio.high:.4f}"
    else:
        noun, verb, seems = (this, "needs", "appears to need")
        times = f"{number(ratio.value)} times as many {units} as {that} for the same precision"
        if units is None:
            noun, verb, seems = f"the variance of {this}", "is", "appears to be"
            times = f"{number(ratio.value)} times that of {that}"
        claim = f"{noun} {verb} {times}"
        if not ratio.low > 1.0:
            but = "that has no interval" if math.isnan(ratio.low) else f"the interval includes 1 ({ends})"
            claim, ends = f"inconclusive: {noun} {seems} {times}, but {but}", ""
    sentence = f"{length}; that divided out, {claim}" if scaled else capital(claim)
    return f"{sentence} ({ends})." if ends else f"{sentence}."


def power_law(grows: str, size: str, exponent: Estimate, over: str) -> str:
    """Say the power of a size as which something grows, or that it may be linear and quadratic."""
    resolved = exponent.low > 1 or exponent.high < 2
    as_ = f"as {size}^" if resolved else f"as a power of {size} that is not resolved, "
    return f"{grows} {as_}{power(exponent.value)} ({interval(exponent)}; 1 is linear, 2 quadratic){over}."


def interval(estimate: Estimate, *, percent: bool = False) -> str:
    """Return the ends of an interval with its confidence."""
    if math.isnan(estimate.low):
        return "no interval"
    ends = estimate.low, estimate.high
    low, high = (f"{round(end, 3) + 0.0:,.1%}" if percent else number(end) for end in ends)
    return f"{estimate.confidence:.0%} interval {low} to {high}"


def percent(share: float) -> str:
    """Whole percents, of which 0 has no sign."""
    return f"{round(share, 2) + 0.0:.0%}"


def power(exponent: float) -> str:
    """Two decimals, of which 0 has no sign."""
    return f"{round(exponent, 2) + 0.0:.2f}"


def rounded(count: float) -> str:
    """Two significant digits of a large number."""
    digits = max(0, math.floor(math.log10(count)) - 1) if math.isfinite(count) else 0
    return f"{math.ceil(count / 10**digits) * 10**digits:,}" if count < 1e15 else f"{count:.2g}"


def within(estimate: Estimate, value: float) -> bool:
    """Whether an interval lies within 1 % of 1 on either side of a value."""
    return value - 0.01 <= estimate.low <= estimate.high <= value + 0.01


def joined(names: Sequence[str]) -> str:
    """Return names as one list: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]][len(names) == 1 :])


def capital(sentence: str) -> str:
    """Return a sentence with a capital letter."""
    return sentence[:1].upper() + sentence[1:]
