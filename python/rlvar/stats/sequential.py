r"""A test that may be looked at after every step: does z_1, z_2, ... have mean 0 given the past?

With S = sum z and Q = sum z^2 over n steps, exp(x S - x^2 Q / 2) is a supermartingale for every x if each z
is symmetric given the past (de la Pena 1999), and to third order in x > 0 if it is skewed to the right, as
exp(y - y^2 / 2) = 1 + y - y^3 / 3 + O(y^4). Mixed over x, half normal with variance 1 / rho, it is

    M = 2 sqrt(rho / (Q + rho)) exp(S^2 / 2 (Q + rho)) Phi(S / sqrt(Q + rho)),

which by Ville's inequality ever passes 1 / alpha with probability at most alpha, after however many steps
(Robbins 1970; Howard et al. 2021). rho, about the Q at which the test is sharpest, is a few times z^2 of the
first steps, which are not counted then. The interval of a mean holds every m whose z - m is not rejected, to
either side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlvar.stats.estimate import Estimate

BURN_IN = 4  # steps that are not zero
_SHARPEST = 30.0  # steps


@dataclass(frozen=True)
class MeanZero:
    """Sums of z over the steps so far."""

    first: tuple[float, ...] = ()  # z^2 of the first steps
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    zeros: int = 0

    def add(self, z: float) -> MeanZero:
        """Return the sequence with one more z, known to have mean 0 by theory given those before."""
        if z == 0 and not self.count:
            return replace(self, zeros=self.zeros + 1)
        if len(self.first) < BURN_IN:
            return replace(self, first=(*self.first, z * z))
        return replace(self, count=self.count + 1, total=self.total + z, squares=self.squares + z * z)

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> MeanZero:
        """Return it from its fields."""
        return cls(**{**state, "first": tuple(state["first"])})

    def join(self, later: MeanZero) -> MeanZero:
        """Return the sequence that goes on with another one's counted steps."""
        first = self.first if len(self.first) == BURN_IN else later.first
        count, zeros = self.count + later.count, self.zeros + later.zeros
        return MeanZero(first, count, self.total + later.total, self.squares + later.squares, zeros)

    @property
    def rho(self) -> float:
        return _SHARPEST * sum(self.first) / max(len(self.first), 1)

    def passes(self, level: float, mean: float = 0.0, sign: float = 1.0) -> bool:
        """Whether the mean is above `mean` beyond doubt, or with the sign -1 below it."""
        total = sign * (self.total - self.count * mean)
        if not (self.count and total > 0):
            return False
        squares = self.squares - 2 * mean * self.total + self.count * mean * mean
        whole = max(squares, 0.0) + self.rho
        log = 0.5 * (math.log(self.rho) - math.log(whole)) + 0.5 * total / whole * total
        log += math.log1p(math.erf(total / math.sqrt(2 * whole)))  # 2 Phi
        return log >= -math.log(level)

    def estimate(self, level: float, confidence: float) -> Estimate:
        """Return the mean of z with an interval that holds at all times, each end but with `level`."""
        if not self.count:
            value = 0.0 if self.zeros else math.nan
            return Estimate(value, confidence=confidence)
        value = self.total / self.count
        spread = max(self.squares - self.total * value, 0.0)
        stderr = math.sqrt(spread / self.count / max(self.count - 1, 1))
        low, high = (self._end(level, value, sign) for sign in (1.0, -1.0))
        return Estimate(value, stderr, low, high, confidence)

    def _end(self, level: float, value: float, sign: float) -> float:
        """Return where `passes` begins, away from the mean."""
        unit = math.sqrt(self.squares / self.count) or 1.0
        near, far = 0.0, unit / 64
        while not self.passes(level, value - sign * far, sign):
            near, far = far, 2 * far
            if far > unit * 2.0**30:
                return -sign * math.inf
        for _ in range(60):
            middle = (near + far) / 2
            near, far = (near, middle) if self.passes(level, value - sign * middle, sign) else (middle, far)
        return value - sign * near
