"""What two sets of rollouts, side by side, say in plain sentences, each with its figure and its rank.

Noise scales compare the batches that two policies need; variances alone do not, as the mean gradients differ.
"""

from __future__ import annotations

import math

from rlvar.analysis.compare_rollouts import RolloutsComparison, RolloutsComparisonRow
from rlvar.analysis.measured import part_note, part_of
from rlvar.reporting.findings import NOTE, Said, said
from rlvar.reporting.report import Report
from rlvar.reporting.verdict import doubts_of
from rlvar.reporting.words import capital, interval, joined, long_name, within
from rlvar.stats.estimate import Estimate, inverse
from rlvar.stats.shown import measured, number


def pair_verdict(pair: RolloutsComparison, reports: tuple[Report, Report]) -> list[Said]:
    """Say which needs the larger batch, which is noisier, and how rewards and lengths compare."""
    a, b = pair.names
    if pair.identical:
        same = f"{a} and {b} are the same rollouts, to the bit: every ratio is 1 and every difference 0."
        return [Said(same, "batches", 0)]
    first, part = pair[pair.reference], part_of(reports[0].rollouts.scores_of)
    return [
        *said(_doubts(pair, reports), "table", 0),
        Said(_of_part(_batches(first, pair), part), "batches", 1),
        *said([_of_part(each, part) for each in _others(first, pair)], "batches", 4),
        *said([_of_part(each, part) for each in _variance(first, pair)], "variance", 2),
        *_rewards(pair, "steps" if reports[0].rollouts.tokens is None else "tokens"),
        *said([pair.pairing, *pair.notes], "table", NOTE),
        *said(_dead(pair, reports), "table", NOTE),
        *said([] if part is None else [part_note(part)], "table", NOTE),
    ]


def _doubts(pair: RolloutsComparison, reports: tuple[Report, Report]) -> list[str]:
    """Say what puts the numbers of either set in question."""
    found = []
    for name, each in zip(pair.names, reports, strict=True):
        doubts = doubts_of(each.comparison, each.on_policy, each.sampling)
        if doubts:
            found.append(f"in {name} {'; '.join(doubts)}")
    if not found:
        return []
    return [f"The numbers may not be those of the policies: {'. '.join(map(capital, found))}."]


def _batches(row: RolloutsComparisonRow, pair: RolloutsComparison) -> str:
    """Say which needs the larger batch for as much signal as noise."""
    (a, b), (of_a, of_b), ratio = pair.names, row.noise_scale, row.noise_scale_ratio
    with_ = f"with {long_name(row.name)}"
    still = [name for name, each in zip(pair.names, row.variance, strict=True) if not each.value > 0]
    if still:
        return f"The gradient estimate of {joined(still)} does not vary {with_}."
    scales = f"the noise scale is {_scale(of_b)} rollouts in {b} and {_scale(of_a)} in {a}"
    faint = [name for name, each in zip(pair.names, row.signal, strict=True) if not each.resolved]
    if faint and not math.isnan(of_a.low) and not math.isnan(of_b.low):
        whose = f"either {a} or {b}" if len(faint) == 2 else faint[0]
        text = f"{capital(with_)}, these rollouts do not resolve the signal of {whose}"
        if len(faint) == 2:
            text += ", so it remains open which needs the larger batch"
        elif ratio.low > 1:
            text += (
                f", so {b} needs at least {number(ratio.low)} times as large a batch as {a} ({_level(ratio)})"
            )
        elif ratio.high < 1:
            least = number(1 / ratio.high)
            text += f", so {a} needs at least {least} times as large a batch as {b} ({_level(ratio)})"
        else:
            text += ", so it remains open which needs the larger batch"
        return f"{text}: {scales}."
    if math.isnan(ratio.value):
        return f"{capital(with_)}, noise scales do not compare: {scales}."
    larger, smaller = (b, a) if ratio.value >= 1 else (a, b)
    ratio = ratio if ratio.value >= 1 else inverse(ratio)
    times = f"{number(ratio.value)} times as large a batch as {smaller} for as much signal as noise"
    if within(ratio, 1.0):
        ends = f"{ratio.confidence:.0%} interval of the ratio {ratio.low:.4f} to {ratio.high:.4f}"
        return f"{capital(with_)}, {a} and {b} need the same batch to within 1% ({ends}): {scales}."
    if ratio.low > 1:
        return f"{capital(with_)}, {larger} needs {times} ({interval(ratio)}): {scales}."
    return f"Inconclusive: {with_}, {larger} appears to need {times}, but {_but(ratio)}; {scales}."


def _others(first: RolloutsComparisonRow, pair: RolloutsComparison) -> list[str]:
    """Say what the same ratio is with other estimators, if it is another number."""
    shown: list[RolloutsComparisonRow] = [first]
    for row in pair:
        known = any(_close(row.noise_scale_ratio, each.noise_scale_ratio) for each in shown)
        if row.noise_scale_ratio.resolved and not known:
            shown.append(row)
    several = [f"{measured(row.noise_scale_ratio)} with {long_name(row.name)}" for row in shown[1:]]
    if not several:
        return []
    a, b = pair.names
    return [f"The ratio of noise scales, {b} over {a}, is {joined(several)} ({_level(first.ratio)})."]


def _variance(row: RolloutsComparisonRow, pair: RolloutsComparison) -> list[str]:
    """Say which gradient is noisier, and that this alone decides no batch."""
    (a, b), ratio = pair.names, row.ratio
    if math.isnan(ratio.value) or not 0 < ratio.value < math.inf:
        return []
    noisier, other = (b, a) if ratio.value >= 1 else (a, b)
    ratio = ratio if ratio.value >= 1 else inverse(ratio)
    times = f"{number(ratio.value)} times that of {other}"
    what = f"variance of the batch's gradient with {long_name(row.name)}, times its rollouts,"
    if within(ratio, 1.0):
        claim = f"The {what} is the same in {a} and {b} to within 1%"
    elif ratio.low > 1:
        claim = f"The {what} is in {noisier} {times} ({interval(ratio)})"
    else:
        claim = f"Inconclusive: the {what} appears to be in {noisier} {times}, but {_but(ratio)}"
    lengths = ""
    if row.signal_ratio.resolved:
        lengths = f": the squared norm of that of {b} is {measured(row.signal_ratio)} times that of {a}"
    return [
        f"{claim}. By itself this does not say which needs more rollouts, as the mean gradients may "
        f"differ{lengths}."
    ]


def _rewards(pair: RolloutsComparison, measure: str) -> list[Said]:
    """Say how the mean rewards differ, and the mean lengths if they surely do."""
    a, b = pair.names
    of_a, of_b = pair.reward
    gain = pair.reward_difference
    means = f"{number(of_b.value)} in {b} and {number(of_a.value)} in {a}"
    if gain.low == gain.high == 0:
        text = f"The mean reward of a rollout is {number(of_a.value)} in both."
    elif gain.resolved:
        than = "higher" if gain.value > 0 else "lower"
        size = _size(gain)
        by = f"{number(size.value)} {than} than that of {a} ({interval(size)})"
        text = f"The mean reward of {b} is {by}: {means}."
    else:
        text = f"The mean rewards are not distinguishable: {means}, a difference of {_signed(gain)}."
    sentences = [Said(text, "table", 3)]
    longer = pair.length_difference
    if longer.resolved and longer.low != longer.high:
        size, than = _size(longer), "longer" if longer.value > 0 else "shorter"
        by = f"{number(size.value)} {measure} {than} on average ({interval(size)})"
        lengths = [number(each.value) for each in (pair.length[1], pair.length[0])]
        text = f"Rollouts of {b} are {by}: {lengths[0]} against {lengths[1]}."
        sentences.append(Said(text, "table", 5))
    return sentences


def _dead(pair: RolloutsComparison, reports: tuple[Report, Report]) -> list[str]:
    """Say how many groups have no gradient, where any has none."""
    counts = [(each.sampling.dead_groups, each.sampling.groups) for each in reports]
    if not any(dead for dead, _ in counts):
        return []
    shares = [
        f"{dead:,} of {groups:,} in {name}"
        for name, (dead, groups) in zip(pair.names, counts, strict=True)
        if dead is not None and groups
    ]
    return [f"Groups whose rewards are all equal, and so leave no gradient by group: {joined(shares)}."]


def _scale(x: Estimate) -> str:
    return measured(x, bounded=True)


def _level(x: Estimate) -> str:
    return f"{x.confidence:.0%} confidence"


def _but(ratio: Estimate) -> str:
    if math.isnan(ratio.low):
        return "there is no interval"
    return f"the interval includes 1 ({interval(ratio)})"


def _signed(x: Estimate) -> str:
    return f"{number(x.value)} ({interval(x)})"


def _size(x: Estimate) -> Estimate:
    """Return a difference without its sign."""
    return x if x.value >= 0 else Estimate(-x.value, x.stderr, -x.high, -x.low, x.confidence)


def _close(x: Estimate, y: Estimate) -> bool:
    """Whether two estimates read the same."""
    return measured(x) == measured(y)


def _of_part(sentence: str, part: str | None) -> str:
    return sentence if part is None else f"For {part} alone: {sentence[:1].lower()}{sentence[1:]}"
