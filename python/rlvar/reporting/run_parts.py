"""What the monitors of a run tell, at the time of a report: a part of the parameters each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlvar.analysis.measured import part_of
from rlvar.analysis.table import ranked
from rlvar.stats.estimate import Estimate, Result


class Watched(Protocol):
    """What a report takes from a monitor."""

    @property
    def steps(self) -> int: ...
    @property
    def pooled(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def decay(self) -> float | None: ...
    @property
    def confidence(self) -> float: ...
    @property
    def reference(self) -> str | None: ...
    @property
    def scores_of(self) -> str | None: ...
    @property
    def unit(self) -> str: ...
    @property
    def units(self) -> float: ...
    @property
    def batch_units(self) -> float: ...
    @property
    def rows(self) -> Sequence[Any]: ...
    @property
    def in_use(self) -> Any: ...
    @property
    def on_policy(self) -> Any: ...
    @property
    def growth(self) -> Estimate | None: ...
    @property
    def history(self) -> Sequence[Mapping[str, float]]: ...
    def plan(self) -> Any: ...


@dataclass(frozen=True, eq=False, repr=False)
class RunPart(Result):
    """What one monitor of a run tells, at the time of the report.

    Attributes
    ----------
    scores_of, unit, units, batch_units, steps, pooled, window, decay, confidence, reference, rows, in_use,
    on_policy, growth
        As those of `Monitor`.
    noise_over_signal : Estimate or None
        The noise scale of the reference over the units of a batch: the variance of a step's gradient over the
        square of its mean.
    plan : Plan or None
        `Monitor.plan` for the rollouts in use.
    history : tuple of dict
        The metrics over the steps; `to_dict` leaves them out unless asked for.
    """

    _large = ("history",)
    _also = ("noise_over_signal",)
    scores_of: str | None
    unit: str
    units: float
    batch_units: float
    steps: int
    pooled: int
    window: int | None
    decay: float | None
    confidence: float
    reference: str
    rows: tuple[Any, ...]
    in_use: Any
    on_policy: Any
    plan: Any
    growth: Estimate | None
    history: tuple[dict[str, float], ...]

    @classmethod
    def of(cls, monitor: Watched) -> RunPart:
        """Take from a monitor what it tells now."""
        seen = monitor.steps > 0
        return cls(
            scores_of=monitor.scores_of,
            unit=monitor.unit,
            units=monitor.units if seen else 0.0,
            batch_units=monitor.batch_units if seen else math.nan,
            steps=monitor.steps,
            pooled=monitor.pooled if seen else 0,
            window=monitor.window,
            decay=monitor.decay,
            confidence=monitor.confidence,
            reference=monitor.reference or "",
            rows=tuple(monitor.rows) if seen else (),
            in_use=monitor.in_use if seen else None,
            on_policy=monitor.on_policy if seen else None,
            plan=monitor.plan() if seen else None,
            growth=monitor.growth if seen else None,
            history=tuple(dict(each) for each in monitor.history),
        )

    @property
    def part(self) -> str | None:
        """The part of the parameters; None of all, or where it is not known."""
        return part_of(self.scores_of)

    @property
    def title(self) -> str:
        return self.part or ("the scores given" if self.scores_of is None else "all parameters")

    @property
    def rollouts_per_unit(self) -> int | None:
        """Rollouts of a unit, where that is known."""
        return 1 if self.unit == "rollout" else None if self.plan is None else self.plan.in_use

    @property
    def noise_over_signal(self) -> Estimate | None:
        if self.in_use is None or not self.batch_units > 0:
            return None
        return _times(self.in_use.noise_scale, 1 / self.batch_units)

    @property
    def ranked(self) -> tuple[Any, ...]:
        """The rows, the quietest first; where that is not resolved, last."""
        return tuple(ranked(self.rows))


def in_one_unit(a: RunPart, b: RunPart) -> tuple[Estimate, Estimate, str] | None:
    """Return the noise scales of two in a unit that they share, and that; None where there is none."""
    if a.in_use is None or b.in_use is None:
        return None
    x, y, sizes = a.in_use.noise_scale, b.in_use.noise_scale, (a.rollouts_per_unit, b.rollouts_per_unit)
    if a.unit == b.unit and sizes[0] == sizes[1]:
        return x, y, f"{a.unit}s"
    if sizes[0] is None or sizes[1] is None:
        return None
    return _times(x, sizes[0]), _times(y, sizes[1]), "rollouts"


def _times(x: Estimate, factor: float) -> Estimate:
    value, stderr, low, high = (each * factor for each in (x.value, x.stderr, x.low, x.high))
    return Estimate(value, stderr, low, high, x.confidence, x.resolved)


@dataclass(frozen=True, eq=False, repr=False)
class Run(Result):
    """One run by its name, with a part for each of its monitors, all parameters first."""

    name: str
    parts: tuple[RunPart, ...]


def parts_of(argument: str, monitors: Watched | Sequence[Watched]) -> tuple[RunPart, ...]:
    """Take what the monitors of a run tell, those of all parameters first."""
    several: list[Any] = list(monitors) if isinstance(monitors, (list, tuple)) else [monitors]
    if not several:
        raise ValueError(f"{argument} must be at least one monitor, got none")
    for each in several:
        if not hasattr(each, "history"):
            raise TypeError(f"{argument} must be a Monitor or several, got {type(each).__name__}")
    parts = sorted((RunPart.of(each) for each in several), key=lambda part: part.part is not None)
    titles = [part.title for part in parts]
    for title in titles:
        if titles.count(title) > 1:
            raise ValueError(f"{argument} has two monitors of {title}; pass one for each part")
    return tuple(parts)
