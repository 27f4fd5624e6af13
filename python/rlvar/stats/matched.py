r"""Two quantities of two sets of units, some of which are in both: how uncertain the two are together.

Of U_a units, M_a and M_b among them, the jackknife's variance of x_a is (U_a - 1) / U_a sum_u d_u^2, with the
deviations d_u of the values with unit u left out. Units in one set alone change nothing in the other. So with
all M units of either set, and

    e_u = f d_u,   f^2 = (U_a - 1) / U_a * M / (M - 1)   for the units of a, and 0 for the others,

the jackknife of M units gives x_a the variance it has, and a difference x_b - x_a the sum of both less twice
the covariance that the shared units show. With no shared unit that is the sum of the two variances (the
skewness is right as well), with all units shared it is the paired jackknife to the bit. No unit is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlvar.stats.estimate import Moment


class Matched(NamedTuple):
    """Where the units of two sets are among all units of either."""

    places: tuple[NDArray[np.int64], NDArray[np.int64]]  # (U_a,), (U_b,)
    units: int  # M

    @classmethod
    def of(cls, a: Sequence[Hashable], b: Sequence[Hashable]) -> Matched:
        """Match units by their labels, those of a set all different."""
        known = {label: i for i, label in enumerate(a)}
        places = [known.setdefault(label, len(known)) for label in b]
        return cls((np.arange(len(a)), np.array(places, np.int64)), len(known))

    @classmethod
    def none(cls, a: int, b: int) -> Matched:
        """Return sets of different units."""
        return cls((np.arange(a), np.arange(a, a + b)), a + b)

    @property
    def shared(self) -> int:
        """Units in both sets."""
        return sum(map(len, self.places)) - self.units

    def spread(self, moments: tuple[Moment, Moment]) -> tuple[Moment, Moment]:
        """Return quantities of the two sets with each of all M units left out."""
        if not all(len(each.left_out) for each in moments):  # so few units that there is no interval
            a, b = (Moment(each.value, np.empty(0)) for each in moments)
        else:
            a, b = (self._spread(*each) for each in zip(moments, self.places, strict=True))
        return a, b

    def _spread(self, moment: Moment, place: NDArray[np.int64]) -> Moment:
        value, left_out = moment
        u, m = len(place), self.units
        if u == m:
            result = np.empty(m)
            result[place] = left_out
            return Moment(value, result)
        centre = float(left_out.mean())
        result = np.full(m, centre)
        result[place] += math.sqrt((u - 1) / u * (m / (m - 1))) * (left_out - centre)
        return Moment(value, result)
