"""The findings on a monitored run in plain sentences, each with its numbers and what it is about.

Three to six of them: the noise scale beside the batch, the alternatives, the shape of the batch, the policy
that sampled, growth with length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlvar.reporting.planning import plan_sentences
from rlvar.reporting.run_parts import Run, RunPart, in_one_unit
from rlvar.reporting.words import capital, interval, joined, long_name, power_law, ratio_sentence, within
from rlvar.stats.estimate import Estimate, inverse
from rlvar.stats.shown import number
from rlvar.stats.unpaired import unpaired_ratio

# A sentence, the kind of figure that it is about, and the title of the part that it is of.
Said = tuple[str, str, str]
_MOST = 6
_ALONE = 2  # so many alternatives have a sentence each


def sentences(parts: Sequence[RunPart], *, short: bool = False) -> list[Said]:
    """Say what the parts of one run tell; in `short` of the batch and the policy alone."""
    return list(_sentences(parts, short))[:_MOST]


def _sentences(parts: Sequence[RunPart], short: bool) -> Iterator[Said]:
    seen = [part for part in parts if part.rows]
    if not seen:
        what = (
            "No training step" if not any(part.steps for part in parts) else "No step with two or more units"
        )
        yield f"{what} has been seen yet.", "table", parts[0].title
        return
    tested = max((part for part in seen if _tested(part)), key=lambda part: part.steps, default=None)
    alarm = tested is not None and tested.on_policy.on_policy is False
    if tested is not None and alarm:  # what puts the rest in question comes first
        yield _of_part(_alarm(tested), tested), "on-policy", tested.title
    if seen[0].in_use is not None:
        yield _of_part(_noise(seen[0]), seen[0]), "noise-scale", seen[0].title
    if short:
        return
    for text, part in _alternatives(seen, alarm):
        yield _of_part(text, part), "ratios", part.title
    planned = _first(seen, lambda part: None if part.plan is None else _widest(part.plan))
    if planned is not None:
        for text in _shape(planned):
            yield _of_part(text, planned), "plan", planned.title
    if tested is not None and not alarm:
        yield _of_part(_consistent(tested), tested), "on-policy", tested.title
    grown = _first(seen, lambda part: part.growth)
    if grown is not None and grown.growth is not None and not math.isnan(grown.growth.low):
        grows = f"The variance of the sum of the first k steps' terms of {_reference(grown)} grows"
        yield _of_part(power_law(grows, "k", grown.growth, ""), grown), "growth", grown.title


def of_two(first: Run, second: Run) -> Iterator[Said]:
    """Say how the noise scales of two runs compare, of the first part that both have."""
    for a in first.parts:
        for b in second.parts:
            if a.title == b.title and a.in_use is not None and b.in_use is not None:
                yield _of_part(_noisier(first.name, a, second.name, b), a), "noise-scale", a.title
                return
    why = "were not measured on the same parameters, so their noise scales do not compare"
    yield f"{first.name} and {second.name} {why}.", "table", first.parts[0].title


def _first(parts: Sequence[RunPart], what: Callable[[RunPart], Estimate | None]) -> RunPart | None:
    """Return the first part that tells an estimate with an interval, or at least an estimate."""
    told = [(part, estimate) for part in parts if (estimate := what(part)) is not None]
    sure = [part for part, estimate in told if not math.isnan(estimate.low)]
    return next(iter(sure or [part for part, _ in told]), None)


def _of_part(sentence: str, part: RunPart) -> str:
    """Name the part of the parameters that a sentence is of, if it is not all."""
    if part.part is None:
        return sentence
    name = sentence[1:2].isupper() or sentence[1:2] == "."  # RLOO
    return f"For {part.part} alone: {sentence if name else sentence[:1].lower() + sentence[1:]}"


def _reference(part: RunPart) -> str:
    return long_name(part.reference)


def _over(part: RunPart) -> str:
    """Say which steps the numbers are pooled from."""
    if part.window is None:
        return f"over {part.steps:,} monitored steps, the last of which count most"
    if part.pooled < min(part.steps, part.window):
        many = part.pooled > 1
        return f"over {part.pooled:,} monitored step{'s' * many} of two or more {part.unit}s"
    if part.steps <= part.window:
        return f"over all {part.steps:,} monitored steps" if part.steps > 1 else "in one step"
    return f"over the last {part.window:,} monitored steps"


def _noise(part: RunPart) -> str:
    """Say the noise scale of the estimator in use, and how the batch compares."""
    row, name, units = part.in_use, _reference(part), f"{part.unit}s"
    scale, share, over = row.noise_scale, part.noise_over_signal, _over(part)
    if row.variance.value == row.signal.value == 0:
        return f"All gradient estimates of {name} are 0 {over}: no weight or no score is other than 0."
    if math.isnan(row.variance.low):
        found = "has no interval"
        if scale.value > 0 and math.isfinite(scale.value):
            found = f"appears to be {number(scale.value)} {units}, but that has no interval"
        steps = "One step is" if part.pooled == 1 else f"{part.pooled:,} steps are"
        return f"{steps} too few to resolve the signal: the noise scale of {name} {found}."
    batch = f"in a batch of {number(part.batch_units)} {units}"
    if not scale.resolved:
        sentence = f"The signal of {name} is not resolved {over}: its interval includes zero, so its noise "
        sentence += "scale has no upper bound"
        if scale.low > 0:
            sentence += f" ({scale.confidence:.0%} interval from {number(scale.low)} {units})"
        if share is not None and share.low > 1:
            sentence += f"; {batch} the variance of the gradient is at least {number(share.low)} times the "
            sentence += "square of its mean"
        return f"{sentence}."
    sentence = f"The noise scale of {name} is {number(scale.value)} {units} ({interval(scale)}) {over}"
    if share is None:
        return f"{sentence}."
    sides = {"noise dominates": share.low > 1, "signal dominates": share.high < 1, "neither dominates": True}
    return (
        f"{sentence}; {batch} the variance of the gradient is {number(share.value)} times the square of its "
        f"mean ({interval(share)}): {next(side for side, holds in sides.items() if holds)}."
    )


def _alternatives(parts: Sequence[RunPart], alarm: bool) -> Iterator[tuple[str, RunPart]]:
    """Say how the other estimators compare with that in use; several of a kind share a sentence."""
    chosen: dict[str, tuple[Any, RunPart]] = {}
    for part in parts:
        for row in part.rows:
            if row.name == part.reference:
                continue
            before = chosen.get(row.name)
            if before is None or (math.isnan(before[0].ratio.low) and not math.isnan(row.ratio.low)):
                chosen[row.name] = row, part
    kinds: dict[tuple[str, str], list[tuple[Any, RunPart]]] = {}
    for row, part in chosen.values():
        known, resolved = row.factor is not None, row.noise_scale_ratio.resolved
        kind = "variance" if alarm or not (known or resolved) else "precision" if known else "signal"
        kinds.setdefault((part.title, kind), []).append((row, part))
    for (_, kind), found in kinds.items():
        part = found[0][1]
        if len(found) == 1 or len(chosen) <= _ALONE:
            yield from ((_one(row, part, kind, alarm), part) for row, _ in found)
        else:
            yield _several([row for row, _ in found], part, kind, alarm), part


def _one(row: Any, part: RunPart, kind: str, alarm: bool) -> str:
    this, that, units = long_name(row.name), _reference(part), f"{part.unit}s"
    same = row.ratio.low == row.ratio.high == 1
    if kind == "precision":
        return ratio_sentence(row, part.reference, units, identical=same)
    if kind == "signal":
        means = "their mean gradients may differ"
        if row.differs and row.unbiased and part.in_use is not None and part.in_use.unbiased:
            means = "their mean gradients differ, though in theory both are unbiased: look for rewards that "
            means += "depend on later actions, a discount, another policy, or a filter"
        return _by_signal(this, that, row.noise_scale_ratio, units, means)
    if row.factor is not None:
        return ratio_sentence(row, part.reference, None, identical=same)
    if not math.isfinite(row.ratio.value):
        still = that if row.variance.value > 0 else this
        return f"The variance of {this} cannot be compared with that of {that}: {still} does not vary."
    claim = (
        f"The variance of {this} is {number(row.ratio.value)} times that of {that} ({interval(row.ratio)})"
    )
    if alarm:
        return f"{claim}."
    return (
        f"{claim}, but the two may estimate different mean gradients and the signals are not resolved, so "
        f"this does not say how many {units} {this} needs."
    )


def _by_signal(this: str, that: str, ratio: Estimate, units: str, means: str) -> str:
    """Say how many times as many units the noisier needs, each for a mean gradient of its own."""
    purpose = "for the same signal-to-noise ratio"
    if ratio.value < 1:
        this, that = that, this
        ratio = inverse(ratio)
    times = f"{number(ratio.value)} times as many {units} as {that} {purpose}"
    if within(ratio, 1.0):
        ends = f"{ratio.confidence:.0%} interval {ratio.low:.4f} to {ratio.high:.4f}"
        return f"{capital(this)} and {that} need as many {units} {purpose}, to within 1% ({ends}); {means}."
    if ratio.low > 1:
        return f"{capital(this)} needs {times} ({interval(ratio)}); {means}."
    but = f"the interval includes 1 ({interval(ratio)})"
    return f"Inconclusive: {this} appears to need {times}, but {but}; {means}."


def _several(rows: Sequence[Any], part: RunPart, kind: str, alarm: bool) -> str:
    that, units = _reference(part), f"{part.unit}s"
    scaled = kind == "signal"
    ratios = [row.noise_scale_ratio if scaled or _longer(row, kind) else row.ratio for row in rows]
    each = joined(
        [
            f"{long_name(row.name)} {number(x.value)} ({interval(x)})"
            for row, x in sorted(zip(rows, ratios, strict=True), key=lambda pair: pair[1].value)
        ]
    )
    if kind == "precision":
        return f"Compared with the {units} that {that} needs for the same precision: {each}."
    if scaled:
        return (
            f"Compared with the {units} that {that} needs for the same signal-to-noise ratio: {each}; their "
            "mean gradients may differ."
        )
    why = (
        ""
        if alarm
        else (
            f"; their mean gradients may differ and the signals are not resolved, so this does not say how "
            f"many {units} they need"
        )
    )
    return f"Compared with the variance of {that}: {each}{why}."


def _longer(row: Any, kind: str) -> bool:
    return kind == "precision" and row.factor != 1


def _shape(part: RunPart) -> list[str]:
    """Say what other prompts x completions would do with the rollouts in use, if that has an interval."""
    plan, that = part.plan, part.reference
    sentences = plan_sentences({that: plan}, that, [that], long_name)
    others = [each for each in plan.options if each.completions != plan.in_use]
    if sentences and sentences[0].endswith("by the estimates.") and others:
        following = max(others, key=lambda option: option.gain.value)
        times = inverse(following.gain)
        sentences[0] = (
            f"{sentences[0][:-1]}; {_as(following)} would have {number(times.value)} times its variance "
            f"({interval(times)})."
        )
    return sentences


def _widest(plan: Any) -> Estimate:
    """Return the gain of another shape than that in use, if there is one."""
    gains: list[Estimate] = [each.gain for each in plan.options if each.completions != plan.in_use]
    return next(iter(gains), Estimate(1.0, 0.0, 1.0, 1.0))


def _as(option: Any) -> str:
    prompts, completions = option.prompts, option.completions
    return f"{prompts} prompt{'s' * (prompts != 1)} x {completions} completion{'s' * (completions != 1)}"


def _tested(part: RunPart) -> bool:
    return part.on_policy is not None and part.on_policy.on_policy is not None and bool(_statistics(part))


def _statistics(part: RunPart) -> dict[str, Estimate]:
    test = part.on_policy
    found = {"correlation between steps": test.ratio, "squared mean score": test.mean_score}
    return {name: x for name, x in found.items() if math.isfinite(x.low) and math.isfinite(x.high)}


def _consistent(part: RunPart) -> str:
    told = [f"{name} {number(x.value)} ({interval(x)})" for name, x in _statistics(part).items()]
    return (
        f"The scores are consistent with on-policy sampling over the whole run: {joined(told)} of their "
        "variance (expected on policy: 0)."
    )


def _alarm(part: RunPart) -> str:
    test = part.on_policy
    found = {name: x for name, x in _statistics(part).items() if x.low > 0} or _statistics(part)
    told = joined([f"{name} {number(x.value)} ({interval(x)})" for name, x in found.items()])
    since = "" if test.since is None else f" since step {test.since:,}"
    return (
        f"The scores do not look like those of the policy that sampled{since}: {told} of their variance "
        "(expected on policy: 0). Possible causes: sampling from another policy or temperature (top-p, a "
        "stale copy, another inference engine), or filtering by outcome. The mean gradients may then be "
        "biased, and no ratio says how many rollouts an estimator needs."
    )


def _noisier(one: str, a: RunPart, two: str, b: RunPart) -> str:
    """Say which of two runs has the larger noise scale."""
    of = f" of {_reference(a)}"
    if a.reference != b.reference:
        one, two, of = f"{one} ({_reference(a)})", f"{two} ({_reference(b)})", ""
    found = in_one_unit(a, b)
    if found is None:
        counts = f"counts {a.unit}s in {one} and {b.unit}s in {two}"
        return f"The noise scale{of} {counts}, so the two do not compare."
    x, y, units = found
    ratio = unpaired_ratio(x, y)
    if not ratio.resolved or math.isnan(ratio.low):
        faint = [name for name, each in ((one, x), (two, y)) if not each.resolved or math.isnan(each.low)]
        return f"The noise scales{of} cannot be compared: the signal is not resolved in {joined(faint)}."
    if (x.value, x.low, x.high) == (y.value, y.low, y.high):
        same = f"the same in {one} and {two}"
        return f"The noise scale{of} is {same}: {number(x.value)} {units} ({interval(x)})."
    if ratio.value < 1:
        one, two, x, y, ratio = two, one, y, x, inverse(ratio)
    values = f"{number(x.value)} against {number(y.value)} {units}"
    if ratio.low > 1:
        times = f"{number(ratio.value)} times that in {two}: {values} ({interval(ratio)})"
        return f"The noise scale{of} in {one} is {times}."
    return (
        f"Inconclusive: the noise scale{of} in {one} appears to be {number(ratio.value)} times that in "
        f"{two}, {values}, but the interval includes 1 ({interval(ratio)})."
    )
