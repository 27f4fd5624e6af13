"""The terms X[n,t] = w[n,t] S[n,t] of rollouts, which are never stored, and passes over them.

With the mean m (T, D) of the terms and y[n,t] = X[n,t] - m[t], every variance and covariance of steps is
a sum over rollouts, of weight p, of products of their y. Each method is one or two passes over the scores,
O(N T D); only `Terms.covariance` costs O(N D T^2).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core
from rlvar._types import Double


class Gradients(NamedTuple):
    """Gradients (N, D) of rollouts: a number each, if there is one, times a base that estimators share."""

    constant: Double | None  # (N,)
    base: Double  # (N, D)

    def whole(self, coordinates: slice = slice(None)) -> Double:
        """Return the gradients, or some coordinates of them."""
        base = self.base[:, coordinates]
        return base if self.constant is None else self.constant[:, None] * base


class Squares(NamedTuple):
    """Squares of each unit's deviations y, at each step (U, T)."""

    steps: Double  # sum over its rollouts of p |y|^2
    growths: Double  # the same of the running sums of y
    step_sums: Double  # |sum of y|^2 over its rollouts
    growth_sums: Double


@dataclass(frozen=True, eq=False)
class Terms:
    """Checked scores (N, T, D), padded or packed, and weights (N, T), and which of them are live.

    Everywhere p (N,) are weights of rollouts, ones by default.
    """

    scores: _check.Scores
    weights: Double
    live: _check.Steps
    threads: int | None
    known: Gradients | None = None  # the gradients, where a pass has given them already

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        weights: ArrayLike | None,
        lengths: ArrayLike | None,
        mask: ArrayLike | None,
        threads: int | None,
        rollouts: int = 2,
    ) -> Terms:
        """Check arrays of the caller's: at least so many `rollouts`."""
        array = _check.scores(scores, rollouts)
        shape = array.shape[:2]
        live = _check.steps(shape, lengths=lengths, mask=mask)
        return cls(array, _check.weights(weights, shape, live), live, _check.threads(threads))

    def _of(self, p: Double | None) -> _core.Terms:
        return for_kernels(self.scores, self.weights, self.live, p)

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Live steps (N, T)."""
        return self.live.live(self.weights.shape)

    def counted(self, p: Double | None) -> Terms:
        """Return the same without steps in rollouts of weight 0: what they hold is not read."""
        if p is None or p.all():
            return self
        return replace(self, live=self.live.among(p > 0, self.weights.shape[1]), known=None)

    def ends(self) -> NDArray[np.int64]:
        """One past the last live step of each rollout (N,)."""
        return _check.row_ends(self.alive)

    def mean(self, p: Double | None) -> Double:
        """Mean of each term (T, D)."""
        result = np.empty(self.scores.shape[1:])
        _core.means(self._of(p), result, self.threads)
        return result

    @cached_property
    def gradients(self) -> Gradients:
        """Gradient estimate of each rollout, the sum of its terms (N, D)."""
        if self.known is not None:
            return self.known
        result = np.empty((len(self.scores), self.scores.shape[2]))
        weights = np.ascontiguousarray(self.weights[None])
        _core.gradients(self._of(None), weights, result[None], self.threads)
        return Gradients(None, result)

    def gradients_of(self, weights: Double, coordinates: slice) -> Double:
        """Some coordinates of the gradients (E, N, d) of E sets of weights (E, N, T) in place of its own."""
        scores = self.scores[:, :, coordinates]
        result = np.empty((len(weights), len(scores), scores.shape[2]))
        _core.gradients(for_kernels(scores, None, self.live), weights, result, self.threads)
        return result

    def covariance(
        self,
        p: Double | None,
        divisor: float,
        block: int,
        out: Double,
        mean: Double | None = None,
        tail: Double | None = None,
    ) -> None:
        """Covariance matrix (B, B) of blocks of steps: sums of products of deviations over `divisor`.

        And their means (B, D), in two parts, if asked for.
        """
        _core.covariance(self._of(p), block, divisor, out, mean, tail, self.threads)

    def shared_moments(self, weights: Double, p: Double | None, out: Double) -> None:
        """Sums of products of terms (E, T, T), means not taken off, of E sets of weights (E, N, T)."""
        _core.shared_moments(self._of(p), weights, out, self.threads)

    def squares(self, p: Double | None, mean: Double, units: _check.Units) -> Squares:
        """Squares of each unit about `mean`; 0 where rounding of the mean is all that there is."""
        shape = (len(units), len(mean))
        steps, growths = np.empty(shape), np.empty(shape)
        # Of a unit of one rollout, the squared sums are its squares.
        step_sums, growth_sums = steps, growths
        wanted: tuple[Double | None, Double | None] = (None, None)
        if len(units) < len(units.members):
            wanted = step_sums, growth_sums = np.empty(shape), np.empty(shape)
        _core.unit_squares(
            *(self._of(p), mean, units.members, units.offsets, steps, growths, *wanted, self.threads)
        )
        weight = len(units.members) if p is None else p.sum()
        with np.errstate(all="ignore"):
            norms = np.sqrt(np.einsum("td,td->t", mean, mean))
            norms *= 4 * np.finfo(np.float64).eps * np.sqrt(weight)
            norms[~np.isfinite(norms)] = 0.0
            for arrays, rounding in (((steps, step_sums), norms), ((growths, growth_sums), np.cumsum(norms))):
                still = arrays[0].sum(axis=0) < np.square(rounding)
                for array in arrays:
                    array[:, still] = 0.0
        return Squares(steps, growths, step_sums, growth_sums)

    @cached_property
    def rescaled(self) -> Terms:
        """The same times a power of two, so that squares are in range."""
        w = np.where(self.alive, self.weights, 0.0)
        of_weights = np.frexp(np.abs(w).max())[1]
        rows = (np.abs(s[live]).max(initial=0) for s, live in zip(self.scores, self.alive, strict=True))
        of_scores = np.frexp(np.float64(max(rows)))[1]
        return replace(self, weights=np.ldexp(np.ldexp(w, -of_weights), -of_scores), known=None)

    def varies(self, p: Double | None) -> bool:
        """Whether any term varies, however small."""
        terms = self.rescaled
        squares = terms.squares(p, terms.mean(p), _check.units(None, len(self.scores))).steps
        return bool(np.isfinite(squares).all() and squares.any())

    def moves(self) -> bool:
        """Whether any gradient is not 0, however small."""
        return bool(self.rescaled.gradients.base.any())

    def second_moments(self) -> tuple[Double, Double]:
        """Return |X[n,t]|^2 (N, T) and |sum_t X[n,t]|^2 (N,): squares and running sums about mean 0."""
        zero, single = np.zeros(self.scores.shape[1:]), _check.units(None, len(self.scores))
        found = self.squares(None, zero, single)
        return found.steps, found.growths[:, -1].copy()

    def projections(self, vectors: Double) -> Double:
        """X[n,t] . v[n] (N, T) for vectors (N, D); 0 where not live."""
        result = np.empty(self.weights.shape)
        _core.projections(self._of(None), vectors, result, self.threads)
        result *= np.where(self.alive, self.weights, 0.0)
        return result

    def with_gradient(self, p: Double | None, mean: Double) -> Double:
        """Sum over rollouts of p y[t] . (sum of all y), for each step (T,): row sums of the covariance."""
        p = np.ones(len(self.scores)) if p is None else p
        v = self.gradients.whole() - mean.sum(axis=0)
        # The p v sum to 0 up to rounding, which a mean far above the spread would show.
        whole = np.einsum("n,nd->d", p, v)  # not by BLAS: no number of threads may change bits
        return np.asarray(np.einsum("n,nt->t", p, self.projections(v)) - np.einsum("td,d->t", mean, whole))

    def lags(self, p: Double | None, mean: Double) -> Double:
        """Sum over rollouts and t of p y[t] . y[t+k], for all k (T,), from the sum of all power spectra."""
        t, d = self.scores.shape[1:]
        chunk = max(1, (1 << 18) // t)  # coordinates at a time: at most 16 MiB of spectra
        power: Any = 0.0
        for i, (scores, live) in enumerate(zip(self.scores, self.alive[:, :, None], strict=True)):
            w = np.where(live, self.weights[i, :, None], 0.0)
            for part in (slice(start, start + chunk) for start in range(0, d, chunk)):
                y = np.where(live, scores[:, part], 0.0) * w - mean[:, part]
                power = power + (1.0 if p is None else p[i]) * _power(y)
        return _lagged(power, t)


def for_kernels(
    scores: _check.Scores, weights: Double | None, live: _check.Steps, p: Double | None = None
) -> _core.Terms:
    """Return what the kernels take: scores of rollouts, padded or packed, and weights (N, T) of steps."""
    if isinstance(scores, _check.Packed):
        return _core.Terms(scores.rows, weights, *live, p, (scores.starts, scores.steps))
    return _core.Terms(scores, weights, *live, p)


def autocorrelation(x: Double) -> Double:
    """Sum over t of x[t] x[t+k], for all k (T,)."""
    return _lagged(_power(x[:, None]), len(x))


def _power(x: Double) -> Double:
    """Power spectrum, summed over series (T, d), padded with T zeros: none comes round to its start."""
    spectrum = np.fft.rfft(x, 1 << (2 * len(x) - 1).bit_length(), axis=0)
    return np.asarray((spectrum.real**2 + spectrum.imag**2).sum(axis=1))


def _lagged(power: Double, steps: int) -> Double:
    """Autocorrelation at lags 0 to T - 1, the inverse transform of the power spectrum."""
    return np.asarray(np.fft.irfft(power)[:steps])
