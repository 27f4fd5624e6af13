"""The report on some rollouts: which estimator is quieter, and where the variance comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rlvar.analysis.compare import Comparison, compare
from rlvar.analysis.decompose import Decomposition, decompose
from rlvar.analysis.headroom import BASELINES, Headroom, headroom
from rlvar.analysis.on_policy import OnPolicyTest, on_policy_test
from rlvar.reporting.text import chart, indent, rollouts_line, wrapped
from rlvar.reporting.verdict import long_name, quietest_of, unit, verdict
from rlvar.rollouts import Rollouts
from rlvar.stats.resampling import Bootstrap
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import estimator_weights

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
        return verdict(
            self.comparison, self.decompositions, self.headroom, self.on_policy, _reach(self.rollouts)
        )

    def __str__(self) -> str:
        confidence = f"{self.comparison.confidence:.0%}"
        units = f"{self.comparison.units} {unit(self.comparison)}"
        blocks = [
            rollouts_line(self.source, self.rollouts),
            f"Estimators ({confidence} intervals: {self.comparison.interval} over {units})\n"
            + indent(str(self.comparison)),
        ]
        if self.rollouts.groups is not None:
            what = "group" if self.comparison.aggregation == "token-mean" else "group's mean"
            blocks[-1] += (
                f"\n  A {what} is the unit here, its rollouts being dependent; below it is the rollout."
            )
        if self.comparison.aggregation == "token-mean":
            blocks[-1] += "\n  Below, gradients are sums over tokens, not divided by their number."
        for names, parts in self._distinct():
            same = "".join(f" ({long_name(name)} is the same)" for name in names[1:])
            title = f"Where the variance of {long_name(names[0])} comes from{same}"
            blocks.append(f"{title}\n{indent(str(parts))}")
        blocks.append("Verdict\n" + "\n".join(map(wrapped, self.verdict)))
        for names, parts in self._distinct():
            drawn = {self.comparison.reference, quietest_of(self.comparison)} & set(names)
            if drawn and parts.total_variance.value > 0:
                blocks.append(chart(names[0], parts.growth[: _reach(self.rollouts)]))
        return "\n\n".join(blocks)

    def _distinct(self) -> list[tuple[list[str], Decomposition]]:
        """Return each decomposition once, with the names of the estimators that it is of."""
        names: dict[int, list[str]] = {}
        for name, parts in self.decompositions.items():
            names.setdefault(id(parts), []).append(name)
        return [(each, self.decompositions[each[0]]) for each in names.values()]

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
    interval: Literal["jackknife"] | Bootstrap = "jackknife",
    progress: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Compare the estimators, decompose the variance of each, and call `progress` on the way."""
    if not estimators:
        raise ValueError("estimators must name at least one estimator")
    progress(f"comparing {len(estimators)} estimators")
    everything = compare(
        rollouts,
        [*estimators, *BASELINES],
        ratio=ratio,
        truncate=truncate,
        aggregation=aggregation,
        interval=interval,
    )
    comparison = everything.only(list(dict.fromkeys(estimators)))
    batch = Batch.of(rollouts, ratio=ratio, truncate=truncate, aggregation=aggregation)
    mask, lengths, groups = rollouts.mask, rollouts.lengths, rollouts.groups
    strata = _STRATA if len(np.unique(rollouts.live_steps)) > 1 else None
    decompositions: dict[str, Decomposition] = {}
    for row in comparison:
        if row.identical and everything.reference in decompositions:
            decompositions[row.name] = decompositions[everything.reference]
            continue
        progress(f"decomposing the variance of {long_name(row.name)}")
        weights = estimator_weights(batch, estimators, row.name) * batch.step_factors
        decompositions[row.name] = decompose(
            rollouts.scores,
            weights,
            mask=mask,
            lengths=lengths,
            groups=groups,
            strata=strata,
        )
    progress("testing whether the rollouts are on policy")
    on_policy = on_policy_test(rollouts.scores, mask=mask, lengths=lengths, groups=groups)
    room = headroom(everything) if everything.reference_unbiased else None
    return Report(source, rollouts, comparison, decompositions, on_policy, room)


def _reach(rollouts: Rollouts) -> int:
    """Return the number of steps up to the last that any rollout reaches, at least 1."""
    live = rollouts.live.any(axis=0)
    return int(np.flatnonzero(live)[-1]) + 1 if live.any() else 1
