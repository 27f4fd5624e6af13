"""What other prompts x completions would do with as many rollouts: a table, and sentences.

Both say V(K) / P over the variance of what is in use, the other way round than `PlanOption.gain`, whose
interval it has. What is in use is the reference with the groups as they are; an estimator of another mean is
beside itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from rlvar.analysis.planning import Plan, PlanOption
from rlvar.stats.estimate import Estimate
from rlvar.stats.shown import aligned, printable

_ROWS = 10  # of the table, beside what is in use and the best
_WORTH = 1.05  # a gain below is not worth a word


def plan_table(plans: Mapping[str, Plan], reference: str) -> str:
    """Show the shapes of as many rollouts, for the estimators that are planned for the same number."""
    title, rows = plan_rows(plans, reference)
    return "\n".join([printable(title), *(f"  {line}" for line in aligned(rows))])


def plan_rows(plans: Mapping[str, Plan], reference: str) -> tuple[str, list[list[str]]]:
    """Return the title, the head and the rows of that table."""
    first = plans.get(reference, next(iter(plans.values())))
    shown = planned(plans, reference)
    shapes = {each.completions: each.prompts for plan in shown.values() for each in plan.options}
    kept = set(sorted(shapes)[:: -(-len(shapes) // _ROWS)])
    kept |= {k for plan in shown.values() for k in (plan.in_use, plan.completions)} & set(shapes)
    own = [
        name for name, each in shown.items() if reference in plans and name != reference and not each.beside
    ]
    rows = [["prompts x completions", *(f"{name}, to itself" if name in own else name for name in shown)]]
    for k in sorted(kept):
        now = "  now" if k == first.in_use else ""
        rows.append([f"{shapes[k]:,} x {k:,}{now}", *(_cell(each, k) for each in shown.values())])
    over = f"that of {reference} now" if reference in plans else "that of each estimator now"
    level = first.gain.confidence
    return f"Variance of the mean gradient of {_rollouts(first)}, over {over} ({level:.0%} intervals)", rows


def planned(plans: Mapping[str, Plan], reference: str) -> dict[str, Plan]:
    """Return the plans for as many rollouts as that of the reference, or as the first."""
    first = plans.get(reference, next(iter(plans.values())))
    return {name: each for name, each in plans.items() if each.budget == first.budget}


def plan_sentences(
    plans: Mapping[str, Plan], reference: str, same_mean: Collection[str], names: Callable[[str], str]
) -> list[str]:
    """Say what another shape of as many rollouts would do, for the reference and beside it."""
    told = {name: each for name, each in plans.items() if not math.isnan(each.gain.low)}
    sentences = []
    if reference in told:
        plan = told[reference]
        using = f"{_now(plan)} with {names(reference)}"
        sentences.append(_of_reference(plan, using))
        beside = [name for name, each in told.items() if each.beside and each.gain.low > 1.0]
        best = max(beside, key=lambda name: told[name].gain.low, default=reference)
        if told[best].gain.value > _WORTH * plan.gain.value:
            claim = _times(told[best].gain, f" the variance of {using}")
            sentences.append(f"With {names(best)}, {_shape(told[best])} would have {claim}.")
    for name, each in told.items():
        if name != reference and not each.beside and each.gain.low > 1.0:
            units = "" if name in same_mean else ", in units of its own mean gradient"
            claim = _times(each.gain, f" the variance of {_now(each)}{units}")
            start = "With" if sentences else f"For the same {_rollouts(each)} with"
            sentences.append(f"{start} {names(name)}, {_shape(each)} would have {claim}.")
    return sentences


def _of_reference(plan: Plan, using: str) -> str:
    same = f"For the same {_rollouts(plan)}"
    if plan.gain.low > 1.0:
        return f"{same}, {_shape(plan)} would have {_times(plan.gain, f' the variance of {using}')}."
    gains = [each.gain for each in plan.options]
    if all(gain.value <= _WORTH and math.isfinite(gain.high) for gain in gains):
        return f"{same}, no other number of completions is much quieter than {using}, by the estimates."
    open_ = f"{same}, whether another number of completions would be quieter than {using} is not resolved"
    bounded = [each for each in plan.options if each.gain.value > _WORTH and math.isfinite(each.gain.high)]
    if not bounded:
        return f"{open_}."
    likely = min(bounded, key=lambda option: option.variance.high)
    return f"{open_}: {_shape(likely)} appear to have {_times(likely.gain, ' the variance')}."


def _shape(option: Plan | PlanOption) -> str:
    prompts = f"{option.prompts:,} prompt{'' if option.prompts == 1 else 's'}"
    return f"{prompts} x {option.completions:,} completion{'' if option.completions == 1 else 's'}"


def _now(plan: Plan) -> str:
    assert plan.budget is not None
    return f"{round(plan.budget / plan.in_use):,} x {plan.in_use:,}"


def _rollouts(plan: Plan) -> str:
    return f"{plan.budget:,.0f} rollouts"


def _times(gain: Estimate, what: str) -> str:
    """Say by what a variance is multiplied where it is so many times less."""
    value, low, high = (f"{1 / x:.2g}" if x else "inf" for x in (gain.value, gain.high, gain.low))
    if gain.value <= 0 or math.isinf(gain.high):
        return f"at most {high} times{what}"
    return f"{value} times{what} ({gain.confidence:.0%} interval {low} to {high})"


def _cell(plan: Plan, k: int) -> str:
    option = next((each for each in plan.options if each.completions == k), None)
    if option is None:
        return "-"
    gain = option.gain
    if k == plan.in_use and not plan.beside:
        return "1"
    if math.isnan(gain.low) or not gain.low > 0:
        return "not resolved"
    if gain.value <= 0 or math.isinf(gain.high):
        return f"below {1 / gain.low:.3g}"
    return f"{1 / gain.value:.3g} ({1 / gain.high:.3g} to {1 / gain.low:.3g})"
