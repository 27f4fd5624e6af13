"""The bootstrap: moments of unit gradients in resamples of whole units.

With counts c_u of the units drawn, all that it needs of the D coordinates is c G, where G (U, U) are the
inner products of the deviations: O(U min(U, D)) a resample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from rlvar import _check, _core
from rlvar._check import quiet
from rlvar._types import Double
from rlvar.stats.moments import Products


@dataclass(frozen=True)
class Bootstrap:
    """Intervals by the bootstrap: whole units (rollouts, or groups) are drawn with replacement.

    Parameters
    ----------
    resamples : int, default 2000
        How many resamples are drawn, at least 100.
    seed : int, default 0
        The same seed gives the same bits.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.compare(rlvar.datasets.cartpole(), interval=rlvar.Bootstrap(500, seed=1)).interval
    'bootstrap'
    """

    resamples: int = 2000
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        number = _check.positive_integer("resamples", self.resamples)
        if number < 100:
            raise ValueError(f"resamples must be at least 100, got {number}")
        object.__setattr__(self, "resamples", number)
        object.__setattr__(self, "seed", _check.positive_integer("seed", self.seed, 0))


def drawn(interval: Literal["jackknife"] | Bootstrap) -> Bootstrap | None:
    """Check an interval: the bootstrap asked for, or None for the jackknife."""
    if isinstance(interval, Bootstrap):
        return interval
    if interval != "jackknife":
        raise ValueError(f"interval must be 'jackknife' or an rlvar.Bootstrap, got {interval!r}")
    return None


def resample_counts(units: int, resamples: int, seed: int | np.random.Generator) -> Double:
    """How often each unit is drawn in each resample (B, U), with replacement."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(units, np.full(units, 1 / units), size=resamples).astype(np.float64)


def draws(units: int, bootstrap: Bootstrap) -> Iterator[tuple[slice, Double]]:
    """Yield `resample_counts` a few resamples at a time, 8 MiB, with which of the resamples they are."""
    rng = np.random.default_rng(bootstrap.seed)
    step = max(1, (1 << 20) // units)
    for start in range(0, bootstrap.resamples, step):
        part = slice(start, min(start + step, bootstrap.resamples))
        yield part, resample_counts(units, part.stop - part.start, rng)


def _product(a: Double, b: Double, threads: int | None = None) -> Double:
    result = np.zeros((len(a), b.shape[1]))
    _core.add_matmul(a, b, result, threads)
    return result


def _dot(a: Double, b: Double) -> Double:
    return np.asarray(np.einsum("bu,bu->b", a, b))


@dataclass(frozen=True, eq=False)
class Resampled:
    """Two samples a and b in B resamples of their units, drawn `counts` (B, U) times each."""

    products: Products
    counts: Double
    threads: int | None = None

    @cached_property
    def _drawn(self) -> tuple[Double, Double, Double, Double]:
        """Sums over what is drawn, (B,) each: of s, of s^2, and of the products' diagonal and linear part."""
        p, s = self.products, self.products.sizes.relative
        columns = np.stack([s, s * s, p.diagonal, p.linear], axis=1)
        size, squares, diagonal, linear = _product(self.counts, columns, self.threads).T
        return size, squares, diagonal, linear

    @cached_property
    def _sized(self) -> Double:
        return self.counts if self.products.sizes.even else self.counts * self.products.sizes.relative

    def _times_gram(self, coefficients: Double) -> Double:
        for matrix in self.products.gram:
            coefficients = _product(coefficients, matrix, self.threads)
        return coefficients

    @cached_property
    def _moved(self) -> Double:
        """Sum over what is drawn of y_a, times each y_b (B, U)."""
        return self._times_gram(self.counts)

    @cached_property
    def _moved_by_size(self) -> Double:
        """The same of s y_a."""
        return self._moved if self.products.sizes.even else self._times_gram(self._sized)

    @cached_property
    @quiet
    def covariance(self) -> Double:
        """Return sum y_a . y_b / (U - 1) of what is drawn, about its own mean (B,)."""
        size, squares, diagonal, _ = self._drawn  # units of size 0 alone may be drawn
        u = len(self.products.diagonal)
        both = _dot(self._moved, self._sized) + _dot(self._moved_by_size, self.counts)
        total = diagonal + squares * (_dot(self._moved, self.counts) / size**2) - both / size
        return np.asarray(total * (u / size) ** 2 / (u - 1))

    @property
    def variance(self) -> Double:
        """The variance in each resample (B,): it estimates V (U - 1) / U."""
        return np.asarray(np.maximum(self.covariance, 0.0))

    @property
    @quiet
    def signal(self) -> Double:
        """An estimate of the (cross) signal X in each resample (B,).

        What a resample is drawn from has the signal m_a . m_b = X + C / U: C / U is taken off.
        """
        p, (size, _, _, linear) = self.products, self._drawn
        u = len(p.diagonal)
        means = p.means + linear / size + _dot(self._moved, self.counts) / size**2
        return np.asarray(means - self.covariance / u - float(p.diagonal.sum()) / (u * (u - 1)))

    @cached_property
    @quiet
    def influence(self) -> Double:
        """The derivative of log V in each resample by the share of each unit (B, U), of a sample with itself.

        With e_u = y_u - s_u shift, K = sum e^2 and M = sum s e over what is drawn:
        |e_u|^2 U / K - 1 - 2 (s_u / size - 1) - 2 e_u . M / (size K), with the mean size of what is drawn.
        """
        p, s, (total, squares, _, _) = self.products, self.products.sizes.relative, self._drawn
        u, size, squares = len(s), (total / len(s))[:, None], squares[:, None]
        along = self._moved / total[:, None]  # shift . y_u
        shift = (_dot(self._moved, self.counts) / total**2)[:, None]  # |shift|^2
        e = p.diagonal - 2 * along * s + shift * (s * s)
        k = _dot(self.counts, e)[:, None]
        inward = (_dot(self._moved, self._sized) / total)[:, None] - squares * shift  # shift . M
        moved = self._moved_by_size - squares * along - inward * s
        return np.asarray(e * (u / k) - 1 - 2 * (s / size - 1) - moved * (2 / (size * k)))


@quiet
def log_stderr(counts: Double, influence: Double) -> Double:
    """Standard errors (B,) of log V*, or of log (V_a* / V_b*) from the difference of influences."""
    u = counts.sum(axis=1)
    return np.asarray(np.sqrt(_dot(counts, np.square(influence)) / (u * (u - 1))))
