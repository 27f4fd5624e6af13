"""A number with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rlvar._types import Double


class Moment(NamedTuple):
    """A value and what it becomes when each of the M units is left out, (M,), or (0,) if undefined."""

    value: float
    left_out: Double


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and confidence interval.

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
    """

    value: float
    stderr: float = math.nan
    low: float = math.nan
    high: float = math.nan
    confidence: float = 0.95

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values; what is not finite becomes None."""
        return {
            name: to_json(getattr(self, name)) for name in ("value", "stderr", "low", "high", "confidence")
        }


def to_json(value: Any) -> Any:
    """Turn numbers and arrays into JSON-ready values; what is not finite becomes None."""
    if isinstance(value, np.ndarray):
        return [to_json(item) for item in value.tolist()]
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def bounded(x: Estimate) -> str:
    """Show what rests on a signal: where that is not resolved, no value but how far it is bounded."""
    if x.low in (-1.0, 0.0) and x.high in (1.0, math.inf) and x.stderr != 0.0:
        return "not resolved"
    return f"above {x.low:.4g}" if x.high == math.inf else str(x)
