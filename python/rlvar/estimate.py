"""A number with its uncertainty, and the jackknife that supplies it.

The jackknife leaves out one independent unit at a time. From M leave-one-out values x_u,

    stderr^2 = (M - 1) / M * sum_u (x_u - mean x)^2        (Tukey 1958; Efron & Stein 1981)

and the interval is value +- t * stderr with Student's t of M - 1 degrees of freedom. Quantities
that are positive by nature (variances and their ratios) get their interval on the log scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


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


@lru_cache(maxsize=64)
def student_t_quantile(probability: float, dof: int) -> float:
    """Quantile of Student's t with `dof` degrees of freedom, for probability >= 1/2.

    With x = sqrt(dof) tan(a), P(|t| <= x) is the integral of cos(u)^(dof-1) over [0, a] divided by
    that over [0, pi/2]: a smooth integrand, so Gauss-Legendre quadrature and bisection suffice.
    """
    nodes, node_weights = np.polynomial.legendre.leggauss(128)
    # The integrand falls off like exp(-dof u^2 / 2): beyond `cut` it is below rounding.
    cut = min(math.pi / 2, 9.0 / math.sqrt(dof))

    def area(a: float) -> float:
        u = 0.5 * a * (nodes + 1.0)
        return 0.5 * a * float(node_weights @ np.cos(u) ** (dof - 1))

    target = (2.0 * probability - 1.0) * area(cut)
    low, high = 0.0, cut
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if area(middle) < target else (low, middle)
    return math.sqrt(dof) * math.tan(0.5 * (low + high))


def jackknife(value: float, left_out: Double, confidence: float, *, positive: bool = False) -> Estimate:
    """Turn a value and its leave-one-out values (M,) into an `Estimate`.

    With `positive`, the interval is made on the log scale, if all values are positive.
    """
    m = len(left_out)
    if m < 2 or not (math.isfinite(value) and np.isfinite(left_out).all()):
        return Estimate(value, confidence=confidence)
    t = student_t_quantile(0.5 + 0.5 * confidence, m - 1)

    def spread(x: Double) -> float:
        # About the first value, so that equal values give exactly 0; scaled, so that no square is
        # out of range.
        d = x - x[0]
        scale = float(np.abs(d).max())
        d = d / (scale or 1.0)
        return scale * math.sqrt((m - 1) / m * float(np.square(d - d.mean()).sum()))

    stderr = spread(left_out)
    if positive and value > 0 and (left_out > 0).all():
        factor = math.exp(min(t * spread(np.log(left_out)), 700.0))
        return Estimate(value, stderr, value / factor, value * factor, confidence)
    return Estimate(value, stderr, value - t * stderr, value + t * stderr, confidence)
