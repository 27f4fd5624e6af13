"""The on-policy test over a whole run, with one chance of a false alarm in all.

Under the policy that sampled them each step's off-diagonal sum and the products of different units'
summed scores have mean 0 given all that came before (`rlvar.analysis.on_policy`). Divided by the trace of a
rollout in the steps before, which is known when the step is sampled, they keep that mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlvar.analysis.steps import StepRecord
from rlvar.stats.estimate import Estimate, Result
from rlvar.stats.sequential import MeanZero

_FOLLOWS = 0.1  # how fast the trace in the steps before follows


@dataclass(frozen=True, repr=False)
class RunOnPolicyTest(Result):
    """Whether scores behave like those of the sampling policy, over all steps of a run.

    Attributes
    ----------
    ratio, mean_score : Estimate
        As in `OnPolicyTest`, as means over the steps so far: 0 on policy. Their intervals hold at all times
        at once, however often they are looked at.
    on_policy : bool or None
        False from the step `since` on, where an interval of the two was above 0; the chance of that on
        policy, ever, is at most 1 - confidence. None before there is an interval.
    since : int or None
        The step of the alarm.
    steps, rollouts : int
        Number of steps and rollouts behind it.
    """

    _also = ("unseen_share",)
    ratio: Estimate
    mean_score: Estimate
    on_policy: bool | None
    since: int | None
    steps: int
    rollouts: int

    @property
    def unseen_share(self) -> float:
        """Share of the trace that an unseen action must have to explain the alarm, as in `OnPolicyTest`."""
        lows = self.ratio.low, self.mean_score.low * self.rollouts / 3
        least = max((low for low in lows if low > 0), default=0.0)
        return least / (1 + least)

    def __repr__(self) -> str:
        verdict = {
            True: f"consistent with on-policy sampling over {self.steps} steps",
            False: f"since step {self.since} the scores do not average to 0 given the past, though the "
            "sampling policy's would",
            None: "no verdict yet, because there is no interval",
        }[self.on_policy]
        return "\n".join(
            [
                f"ratio         {self.ratio}  (0 on policy)",
                f"mean score    {self.mean_score}  (0 on policy)",
                verdict,
            ]
        )


@dataclass(frozen=True)
class PolicyWatch:
    """Both sequences, and the trace of a rollout in the steps before."""

    confidence: float
    trace: float = math.nan
    rollouts: int = 0
    steps: int = 0
    since: int | None = None
    ratio: MeanZero = field(default_factory=MeanZero)
    mean_score: MeanZero = field(default_factory=MeanZero)

    @property
    def _level(self) -> float:
        return (1 - self.confidence) / 2

    def add(self, record: StepRecord) -> PolicyWatch:
        """Return the watch with one more step."""
        found = record.sampled
        if found is None or not found.trace > 0:
            return self
        n, trace = record.rollouts, found.trace / record.rollouts
        if math.isnan(self.trace):
            return replace(self, trace=trace, rollouts=n)
        ratio, mean_score = self.ratio.add(found.off_diagonal / n / self.trace), self.mean_score
        pairs = record.gradients.size**2 - record.gradients.square
        if record.gradients.units > 1:
            mean_score = mean_score.add(found.pairs / pairs / self.trace)
        following = replace(
            self,
            trace=self.trace + _FOLLOWS * (trace - self.trace),
            rollouts=self.rollouts + n,
            steps=self.steps + 1,
            ratio=ratio,
            mean_score=mean_score,
        )
        if self.since is None and any(each.passes(self._level) for each in (ratio, mean_score)):
            return replace(following, since=record.step)
        return following

    def join(self, later: PolicyWatch) -> PolicyWatch:
        """Return the watch that goes on with later steps."""
        if math.isnan(self.trace):
            return later
        if math.isnan(later.trace):
            return self
        alarms = [each.since for each in (self, later) if each.since is not None]
        return PolicyWatch(
            self.confidence,
            later.trace,
            self.rollouts + later.rollouts,
            self.steps + later.steps,
            min(alarms, default=None),
            self.ratio.join(later.ratio),
            self.mean_score.join(later.mean_score),
        )

    def to_state(self) -> dict[str, Any]:
        """Return it as numbers, lists and dicts."""
        return asdict(self)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> PolicyWatch:
        """Return the watch that `to_state` came from."""
        both = {name: MeanZero.of_state(state[name]) for name in ("ratio", "mean_score")}
        return cls(**{**state, **both})

    @property
    def result(self) -> RunOnPolicyTest:
        ratio, mean_score = (
            each.estimate(self._level, self.confidence) for each in (self.ratio, self.mean_score)
        )
        known = self.mean_score.count > 0
        on_policy = False if self.since is not None else True if known else None
        return RunOnPolicyTest(ratio, mean_score, on_policy, self.since, self.steps, self.rollouts)
