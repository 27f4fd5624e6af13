"""Where the variance of a policy gradient comes from.

With the terms X[n,t] = w[n,t] S[n,t] and the gradient estimate g[n] = sum_t X[n,t],

    Var(g) = sum_t Var(X_t) + 2 sum_{i<j} Cov(X_i, X_j):

T variance terms and T(T-1)/2 covariance terms, each summed over the D coordinates. The totals,
the steps and the growth curve need one pass over the scores; only the covariance matrix itself
costs O(N D T^2), and it is computed when it is asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core
from rlvar.estimate import Estimate, jackknife, to_json

Double = NDArray[np.float64]


@dataclass(frozen=True)
class _Source:
    """The checked arguments of `decompose`, for what is computed on demand."""

    scores: NDArray[Any]
    weights: Double
    live: _check.Steps
    samples: _check.Samples
    weighted: bool  # whether by sample_weight
    ddof: int
    threads: int | None

    @property
    def normaliser(self) -> float:
        """What sums with the weights of `samples` are divided by."""
        return self.samples.normaliser(self.ddof)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The variance of a policy gradient, taken apart.

    It keeps the scores and weights, not copies of them, for what is computed when it is first
    asked for: read `covariance`, `step_share` and `lag_profile` before those arrays are changed.

    Attributes
    ----------
    total_variance : Estimate
        Trace of Cov(g): the variance of one rollout's gradient estimate, in squared units of it.
    variance_terms : Estimate
        Sum of the T variance terms, the diagonal of the covariance matrix.
    covariance_terms : Estimate
        Twice the sum of the T(T-1)/2 covariance terms; the two add up to the total.
    growth_exponent : Estimate
        Slope of log V(k) on log k over the steps `growth_range`: 1 is linear growth, 2 quadratic;
        NaN if that holds one step only.
    step_variance : ndarray, shape (T,)
        The variance terms one by one.
    step_share : ndarray, shape (T,)
        Which steps carry the variance: the row sums of C over the total, Cov(X_t, g) / V, where g is the
        whole gradient. They sum to 1; those of steps that reduce it are negative; NaN if V = 0. Computed
        when first asked for, in two passes over the scores.
    growth : ndarray, shape (T,)
        V(k) at index k - 1: variance of the sum of the first k terms.
    alive : ndarray of int, shape (T,)
        Number of rollouts, copies among them, that reach each step: what later values of the curves rest on.
    lag_profile : ndarray, shape (T,)
        ``lag_profile[k]`` is the sum over t of C[t, t+k]; computed when first asked for.
    lag_correlation : ndarray, shape (T,)
        ``lag_profile[k]`` over the sum of sqrt(C[t, t] C[t+k, t+k]): between -1 and 1, 1 at lag 0;
        NaN where no step has any variance.
    mean : ndarray, shape (T, D)
        Mean of each term.
    covariance : ndarray, shape (T, T)
        The covariance matrix; computed when first asked for.
    growth_range : tuple of int
        First and last k (both included) of the fit of `growth_exponent`.
    effective_size : float
        Number of equally weighted rollouts that are as many: (sum p)^2 / sum p^2 over all copies, with
        `sample_weight` p (Kish 1965); without, the number of rollouts.
    """

    total_variance: Estimate
    variance_terms: Estimate
    covariance_terms: Estimate
    growth_exponent: Estimate
    step_variance: Double
    growth: Double
    alive: NDArray[np.int64]
    mean: Double
    growth_range: tuple[int, int]
    effective_size: float
    _source: _Source = field(repr=False, compare=False)

    @cached_property
    def covariance(self) -> Double:
        s, t = self._source, len(self.step_variance)
        matrix = np.empty((t, t))
        _core.comoments(
            *(s.scores, s.weights, *s.live, s.samples.weight, 1, s.normaliser, matrix, None, None, s.threads)
        )
        return matrix

    @cached_property
    def step_share(self) -> Double:
        return _step_share(self._source, self.mean, self.growth[-1])

    @cached_property
    def lag_profile(self) -> Double:
        return _lag_profile(self._source, self.mean)

    @cached_property
    def lag_correlation(self) -> Double:
        deviation = np.sqrt(self.step_variance)
        size = _transform_size(len(deviation))
        spectrum = np.fft.rfft(deviation, size)
        bound = np.fft.irfft(spectrum.real**2 + spectrum.imag**2, size)[: len(deviation)]
        # Rounding of the transform, where the steps that far apart have no variance.
        bound[bound < 1e-12 * bound[0]] = 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio: Double = np.where(bound > 0, self.lag_profile / bound, np.nan)
        return ratio

    @property
    def covariance_share(self) -> float:
        """Covariance terms as a share of the total variance; negative if they reduce it."""
        total = self.total_variance.value
        return self.covariance_terms.value / total if total else float("nan")

    def __str__(self) -> str:
        share = self.covariance_share
        shares = (
            ("", "")
            if np.isnan(share)
            else (f"  {1 - share:.1%} of the total", f"  {share:.1%} of the total")
        )
        lines = [
            f"total variance    {self.total_variance}",
            f"variance terms    {self.variance_terms}{shares[0]}",
            f"covariance terms  {self.covariance_terms}{shares[1]}",
        ]
        if not np.isnan(self.growth_exponent.value):
            first, last = self.growth_range
            lines.append(f"growth exponent   {self.growth_exponent}  over steps {first} to {last}")
        if self._source.weighted:
            lines.append(
                f"effective size    {self.effective_size:.4g} of {self._source.samples.rollouts} rollouts"
            )
        return "\n".join(lines)

    def to_dict(self, *, covariance: bool = False) -> dict[str, Any]:
        """Return the fields as JSON-ready values, the T x T matrix only if asked for."""
        estimates = ("total_variance", "variance_terms", "covariance_terms", "growth_exponent")
        arrays = [
            "step_variance",
            "step_share",
            "growth",
            "alive",
            "lag_profile",
            "lag_correlation",
            "mean",
        ] + ["covariance"] * covariance
        return {
            **{name: getattr(self, name).to_dict() for name in estimates},
            **{name: to_json(getattr(self, name)) for name in arrays},
            "growth_range": list(self.growth_range),
            "effective_size": self.effective_size,
        }


def decompose(
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    counts: ArrayLike | None = None,
    ddof: int = 1,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> Decomposition:
    r"""Decompose the variance of a policy gradient into its step terms.

    .. math:: V = \sum_t C_{tt} + 2 \sum_{i<j} C_{ij}, \qquad
              V(k) = \sum_{i,j \le k} C_{ij}

    with :math:`C` as in `covariance`.

    Parameters
    ----------
    scores, weights, mask, lengths, sample_weight, counts, ddof, num_threads
        As in `covariance`. With `counts`, everything is what the repeated rollouts give, intervals too:
        they leave out one copy at a time, or a group with all its copies.
    groups : sequence of hashable, shape (N,), optional
        Label (prompt) of each rollout. Rollouts of one group are dependent: intervals then leave
        out whole groups. The values stay those of N rollouts.
    confidence : float, default 0.95
        Nominal coverage of the intervals. They come from the jackknife over rollouts or groups,
        and are NaN with `sample_weight` and for fewer than three units.

    Returns
    -------
    Decomposition

    Raises
    ------
    ValueError, TypeError
        As `covariance`; also for fewer than two groups.

    Warns
    -----
    UserWarning
        For intervals from fewer than ten units.

    Notes
    -----
    The growth exponent is fitted over the upper half of the steps that at least half of the
    rollouts reach: T/2 to T without raggedness. Beyond, few rollouts are left to add variance, and
    the curve flattens whatever the law. Two passes over the scores, O(N T D); the covariance matrix is not
    computed unless ``result.covariance`` is read.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> scores = rng.standard_normal((200, 8, 3))
    >>> result = rlvar.decompose(scores, scores.sum(axis=(1, 2)))
    >>> total = result.variance_terms.value + result.covariance_terms.value
    >>> bool(np.isclose(total, result.total_variance.value))
    True
    """
    array = _check.scores(scores)
    n, t, d = array.shape
    live = _check.steps((n, t), mask, lengths)
    w = _check.weights(weights, (n, t), live)
    samples = _check.samples(sample_weight, counts, n)
    source = _Source(array, w, live, samples, sample_weight is not None, ddof, _check.threads(num_threads))
    normaliser = source.normaliser
    level = _check.confidence(confidence)
    if sample_weight is not None:
        units, p = _check.units(groups, n), samples.weight
    else:  # copies that are units are counted after the kernels
        units = _check.units(groups, n, samples.counts)
        p = None if units.counts is None else units.counts.astype(np.float64)
        normaliser = math.ldexp(normaliser, samples.exponent)

    mean = np.empty((t, d))
    _core.means(array, w, *live, samples.weight, mean, source.threads)
    squares = _unit_squares(source, p, mean, units)
    step_squares, growth_squares = units.total(squares.steps), units.total(squares.growths)
    if not (
        np.isfinite(mean).all() and np.isfinite(step_squares).all() and np.isfinite(growth_squares).all()
    ):
        _check.raise_not_finite(array, live)

    rollouts = samples.rollouts
    reached = _ends(live, (n, t))[:, None] > np.arange(t)
    alive = reached.sum(axis=0) if samples.counts is None else samples.counts @ reached
    first, last = growth_range = _growth_range(alive, rollouts)
    values = _summaries(step_squares.sum(), growth_squares.copy(), normaliser, growth_range)
    left_out = np.full((4, 0), np.nan)
    if sample_weight is None and units.number >= 3 and rollouts - ddof > units.sizes.max():
        _check.warn_few(units, grouped=groups is not None)
        # Leaving out unit u takes sum |y|^2 + |sum y|^2 / (N - size) over it from the squares about
        # the mean: those of the rest about their own mean are left.
        steps, growths, step_sums, growth_sums = squares
        rest = rollouts - units.sizes
        step_losses = steps.sum(axis=1) + step_sums.sum(axis=1) / rest
        growths += growth_sums / rest[:, None]
        left_out = _summaries(
            step_squares.sum() - step_losses,
            np.subtract(growth_squares, growths, out=growths),
            (rest - ddof).astype(np.float64),
            growth_range,
        )
    total, variance, covariance, exponent = (
        jackknife(float(value), others, level, positive=positive, copies=units.copies)
        for value, others, positive in zip(values, left_out, (True, True, False, False), strict=True)
    )
    return Decomposition(
        total_variance=total,
        variance_terms=variance,
        covariance_terms=covariance,
        growth_exponent=exponent,
        step_variance=step_squares / normaliser,
        growth=growth_squares / normaliser,
        alive=alive,
        mean=mean,
        growth_range=(first, last),
        effective_size=samples.effective_size,
        _source=source,
    )


class _Squares(NamedTuple):
    """Of the deviations y of the terms of each unit from the mean, at each step (U, T)."""

    steps: Double  # sum over its rollouts of p |y|^2
    growths: Double  # the same of the running sums of y
    step_sums: Double  # |sum of y|^2, copies counted
    growth_sums: Double


def _unit_squares(s: _Source, p: Double | None, mean: Double, units: _check.Units) -> _Squares:
    """Return the squares of each unit about `mean` (T, D); rollouts count p (N,)."""
    shape = (len(units), mean.shape[0])
    steps, growths = np.empty(shape), np.empty(shape)
    # Of a unit of one rollout, the squared sums are its squares.
    step_sums, growth_sums = steps, growths
    wanted: tuple[Double | None, Double | None] = (None, None)
    if units.counts is not None:
        step_sums, growth_sums = _sums_of_copies(s, mean, units, units.counts)
    elif len(units) < len(units.members):
        wanted = step_sums, growth_sums = np.empty(shape), np.empty(shape)
    _core.unit_squares(
        *(s.scores, s.weights, *s.live, p, mean, units.members, units.offsets),
        *(steps, growths, *wanted, s.threads),
    )
    return _Squares(steps, growths, step_sums, growth_sums)


def _sums_of_copies(
    s: _Source, mean: Double, units: _check.Units, counts: NDArray[np.int64]
) -> tuple[Double, Double]:
    """Return |sum c y|^2 of the steps and of the running sums (U, T): kernels sum over members once."""
    steps, growths = np.empty((2, len(units), mean.shape[0]))
    own = np.empty_like(mean)
    for u, (start, stop) in enumerate(itertools.pairwise(units.offsets)):
        rows = units.members[start:stop]
        c = counts[rows].astype(np.float64)
        _core.means(s.scores[rows], s.weights[rows], *s.live.rows(rows), c, own, s.threads)
        y = c.sum() * (own - mean)
        steps[u] = np.square(y).sum(axis=1)
        growths[u] = np.square(np.cumsum(y, axis=0)).sum(axis=1)
    return steps, growths


def _ends(live: _check.Steps, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Return one past the last live step of each rollout (N,)."""
    if live.mask is None:
        return np.full(shape[0], shape[1]) if live.lengths is None else live.lengths
    alive = live.live(shape)
    ends: NDArray[np.int64] = np.where(alive.any(axis=1), shape[1] - np.argmax(alive[:, ::-1], axis=1), 0)
    return ends


def _growth_range(alive: NDArray[np.int64], rollouts: int) -> tuple[int, int]:
    """Return the upper half of the steps that at least half of the rollouts reach."""
    last = max(1, int((2 * alive >= rollouts).sum()))
    return (last + 1) // 2, last


def _summaries(
    step_squares: Double, growth_squares: Double, normaliser: float | Double, growth_range: tuple[int, int]
) -> Double:
    """Return total, variance terms, covariance terms and growth exponent.

    From sums of squares: of all steps (...), and of the running sums (..., T), which are overwritten.
    """
    total = growth_squares[..., -1] / normaliser
    variance = step_squares / normaliser
    first, last = growth_range
    log_k = np.log(np.arange(first, last + 1))
    log_k -= log_k.mean()
    growth = growth_squares[..., first - 1 : last]
    if last == first or not (growth > 0).all():
        exponent = np.full_like(total, np.nan)
    else:
        exponent = np.log(growth, out=growth) @ log_k / (log_k @ log_k)
    return np.stack([total, variance, total - variance, exponent])


def _gradients(s: _Source) -> Double:
    """Return the gradient estimate of each rollout (N, D)."""
    result = np.empty((len(s.scores), s.scores.shape[2]))
    _core.gradients(s.scores, np.ascontiguousarray(s.weights[None]), *s.live, result[None], s.threads)
    return result


def _step_share(s: _Source, mean: Double, total: float) -> Double:
    """Row sums of C over the total: sum_n p_n (X_n[t] - mean[t]) . (g_n - mean of g) over that of all t."""
    n, t, _ = s.scores.shape
    p = np.ones(n) if s.samples.weight is None else s.samples.weight
    v = _gradients(s) - mean.sum(axis=0)
    projected = np.empty((n, t))
    _core.projections(s.scores, *s.live, v, projected, s.threads)
    projected *= np.where(s.live.live((n, t)), s.weights, 0.0)
    # The p v sum to 0 but for rounding, which a mean far above the spread would show.
    covariance = p @ projected - mean @ (p @ v)
    share: Double = covariance / (s.normaliser * total) if total else np.full(t, np.nan)
    return share


def _transform_size(steps: int) -> int:
    """Return a size of which the circular autocorrelation of `steps` numbers is the linear one."""
    return 1 << (2 * steps - 1).bit_length()


def _lag_profile(s: _Source, mean: Double) -> Double:
    """Sum of C[t, t+k] over t, for all k, by FFT: autocorrelation of each centred series.

    Padded with T zeros a series' circular autocorrelation is its linear one, the inverse transform
    of its power spectrum; the spectra of all rollouts and coordinates are summed before that.
    """
    n, t, d = s.scores.shape
    size = _transform_size(t)
    chunk = max(1, (1 << 20) // size)  # coordinates at a time: 16 MiB of spectra
    alive = s.live.live((n, t))
    power = np.zeros(size // 2 + 1)
    for i in range(n):
        w = np.where(alive[i], s.weights[i], 0.0)[:, None]
        p = 1.0 if s.samples.weight is None else float(s.samples.weight[i])
        for d0 in range(0, d, chunk):
            rows = np.where(alive[i][:, None], s.scores[i, :, d0 : d0 + chunk], 0.0)
            spectrum = np.fft.rfft(rows * w - mean[:, d0 : d0 + chunk], size, axis=0)
            power += p * (spectrum.real**2 + spectrum.imag**2).sum(axis=1)
    result: Double = np.fft.irfft(power, size)[:t] / s.normaliser
    return result
