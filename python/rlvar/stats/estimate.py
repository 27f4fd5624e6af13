"""A number with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rlvar._types import Double


class Moment(NamedTuple):
    """A value and what it becomes when each of the M units is left out, (M,), or (0,) if undefined."""

    value: float
    left_out: Double


class Result:
    """What a question is answered with: a frozen dataclass, whose repr is its table."""

    _also: ClassVar[tuple[str, ...]] = ()  # properties that belong to the fields
    _large: ClassVar[tuple[str, ...]] = ()  # what is large or takes long, only if asked for

    def to_dict(self, *, arrays: Sequence[str] = ()) -> dict[str, Any]:
        """Return the fields as JSON-ready values; what is not finite becomes None.

        Of the large arrays, which the class names, only those that are asked for.
        """
        for name in arrays:
            if name not in self._large:
                raise ValueError(f"arrays must be among {', '.join(self._large) or 'none'}, got {name!r}")
        names = [*self.__dataclass_fields__, *self._also]  # type: ignore[attr-defined]
        shown = [name for name in names if name[0] != "_" and name not in self._large]
        return {name: to_json(getattr(self, name)) for name in (*shown, *arrays)}


@dataclass(frozen=True, repr=False)
class Estimate(Result):
    """A value with its standard error and confidence interval; `float` gives the value.

    Attributes
    ----------
    value : float
        Point estimate.
    stderr : float
        Standard error; NaN where none is defined, as for an enumerated policy.
    low, high : float
        Ends of the interval; NaN where none is defined.
    confidence : float
        Nominal coverage of the interval, such as 0.95.
    resolved : bool
        Whether the data determine it: False without an interval, where what can be 0 or negative (a signal, a
        variance between prompts) may be 0 by its interval, and for what rests on such a signal (a noise
        scale, the ratio of two, an alignment). By default, whether the interval excludes 0.
    """

    value: float
    stderr: float = math.nan
    low: float = math.nan
    high: float = math.nan
    confidence: float = 0.95
    resolved: bool = None  # type: ignore[assignment]  # None until the instance is made

    def __post_init__(self) -> None:
        resolved = self.low > 0 or self.high < 0 if self.resolved is None else self.resolved
        object.__setattr__(self, "resolved", bool(resolved))

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.low, self.high

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def to_json(value: Any) -> Any:
    """Turn results, numbers and arrays into JSON-ready values; what is not finite becomes None."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def inverse(ratio: Estimate) -> Estimate:
    """Return the ratio the other way round; it has no upper end where this one reaches 0."""
    low = 1 / ratio.high if ratio.high else math.inf
    high = math.inf if ratio.low <= 0 else 1 / ratio.low
    return Estimate(1 / ratio.value if ratio.value else math.inf, math.nan, low, high, ratio.confidence)


def bounded(x: Estimate) -> str:
    """Show what rests on a signal: where that is not resolved, no value but how far it is bounded."""
    if x.high == math.inf and x.low > 0:
        return f"above {x.low:.4g}"
    return str(x) if x.resolved or math.isnan(x.low) else "not resolved"
