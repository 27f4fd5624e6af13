"""Where the variance of a policy gradient comes from.

With the terms X[n,t] = w[n,t] S[n,t] and the gradient estimate g[n] = sum_t X[n,t],

    Var(g) = sum_t Var(X_t) + 2 sum_{i<j} Cov(X_i, X_j):

T variance terms and T(T-1)/2 covariance terms, each summed over the D coordinates. The totals,
the steps and the growth curve need one pass over the scores; only the covariance matrix itself
costs O(N D T^2), and it is computed when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar.estimate import Estimate, Moment, jackknife, to_json
from rlvar.growth import pooled, slope, stratified, upper_half
from rlvar.terms import Terms, autocorrelation

Double = NDArray[np.float64]


class _Source(NamedTuple):
    """What `decompose` was given, for what is computed on demand."""

    terms: Terms
    samples: _check.Samples
    weighted: bool  # whether by sample_weight
    normaliser: float  # of sums with the weights of `samples`


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
    growth_exponent_within : Estimate
        The same within strata of similar length, where raggedness does not flatten the curve, nor
        differences between long and short rollouts bend it. NaN if no `strata` were asked for, or none
        has more than one step to fit and some variance.
    growth_exponent_shift : Estimate
        `growth_exponent_within` less `growth_exponent`, paired: the same units are left out of both.
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
    growth_exponent_within: Estimate
    growth_exponent_shift: Estimate
    step_variance: Double
    growth: Double
    alive: NDArray[np.int64]
    mean: Double
    growth_range: tuple[int, int]
    effective_size: float
    _source: _Source = field(repr=False, compare=False)

    @cached_property
    def covariance(self) -> Double:
        terms, samples, _, normaliser = self._source
        return terms.covariance(samples.weight, normaliser)

    @cached_property
    def step_share(self) -> Double:
        terms, samples, _, normaliser = self._source
        total = normaliser * self.growth[-1]
        if total == 0:
            return np.full_like(self.growth, np.nan)
        share: Double = terms.with_gradient(samples.weight, self.mean) / total
        return share

    @cached_property
    def lag_profile(self) -> Double:
        terms, samples, _, normaliser = self._source
        return terms.lags(samples.weight, self.mean) / normaliser

    @cached_property
    def lag_correlation(self) -> Double:
        bound = autocorrelation(np.sqrt(self.step_variance))
        # Rounding of the transform, where the steps that far apart have no variance.
        bound[bound < 1e-12 * bound[0]] = 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio: Double = np.where(bound > 0, self.lag_profile / bound, np.nan)
        return ratio

    @property
    def strata_disagree(self) -> bool | None:
        """Whether the growth exponent within strata is another one, by its interval; None without that."""
        shift = self.growth_exponent_shift
        return None if math.isnan(shift.low) else not shift.low <= 0 <= shift.high

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
        if not np.isnan(self.growth_exponent_within.value):
            note = ", and so another one" if self.strata_disagree else ""
            lines.append(f"                  {self.growth_exponent_within}  within strata of length{note}")
        if self._source.weighted:
            lines.append(
                f"effective size    {self.effective_size:.4g} of {self._source.samples.rollouts} rollouts"
            )
        return "\n".join(lines)

    def to_dict(self, *, covariance: bool = False) -> dict[str, Any]:
        """Return the fields as JSON-ready values, the T x T matrix only if asked for."""
        estimates = [name for name in self.__dataclass_fields__ if isinstance(getattr(self, name), Estimate)]
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
    strata: int | None = None,
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
    strata : int, optional
        Number of strata of similar length (quantiles; equal lengths stay together, so there may be
        fewer) for `growth_exponent_within`. It takes one pass over the scores for each, and one more.
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

    In ragged data that slope mixes three things: how the variance grows, how many rollouts are left to
    add to it, and how the means of long and short rollouts differ; their lengths tell of their rewards.
    Within a stratum s of similar length,

    .. math:: V_s(k) = \frac{1}{N_s} \sum_{n \in s} |h_n(k) - \bar h_s(k)|^2, \qquad
              h_n(k) = \sum_{t \le k} X_{nt},

    about the stratum's own means, over the upper half of the steps that all of s reach, is free of
    padding and of differences between strata. The exponent within is the mean of the slopes of log V_s on
    log k, weighted by N_s: one exponent, a scale for each stratum. In its intervals the strata stay as they
    are. Strata whose rollouts do not all reach two steps, or without variance, are left out.

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
    n, t, _ = array.shape
    live = _check.steps((n, t), mask, lengths)
    terms = Terms(array, _check.weights(weights, (n, t), live), live, _check.threads(num_threads))
    samples, weighted = _check.samples(sample_weight, counts, n), sample_weight is not None
    source = _Source(terms, samples, weighted, samples.normaliser(ddof))
    level = _check.confidence(confidence)
    wanted = None if strata is None else _check.positive_integer("strata", strata)
    if weighted:
        units, p, normaliser = _check.units(groups, n), samples.weight, source.normaliser
    else:  # copies that are units are counted after the kernels
        units = _check.units(groups, n, samples.counts)
        p = None if units.counts is None else units.counts.astype(np.float64)
        normaliser = math.ldexp(source.normaliser, samples.exponent)

    mean = terms.mean(samples.weight)
    steps, growths, step_sums, growth_sums = terms.squares(p, mean, units)
    step_squares, growth_squares = units.total(steps), units.total(growths)
    if not (
        np.isfinite(mean).all() and np.isfinite(step_squares).all() and np.isfinite(growth_squares).all()
    ):
        _check.raise_not_finite(array, live)

    rollouts = samples.rollouts
    reached = terms.ends()[:, None] > np.arange(t)
    alive = reached.sum(axis=0) if samples.counts is None else samples.counts @ reached
    # The steps that at least half of the rollouts reach.
    first, last = growth_range = upper_half(max(1, int((2 * alive >= rollouts).sum())))
    values = _summaries(step_squares.sum(), growth_squares, normaliser, growth_range)
    left_out = np.full((4, 0), np.nan)
    intervals = not weighted and units.number >= 3 and rollouts - ddof > units.sizes.max()
    if intervals:
        _check.warn_few(units, grouped=groups is not None)
        # Leaving out unit u takes sum |y|^2 + |sum y|^2 / (N - size) over it from the squares about
        # the mean: those of the rest about their own mean are left.
        rest = rollouts - units.sizes
        step_losses = steps.sum(axis=1) + step_sums.sum(axis=1) / rest
        growths += growth_sums / rest[:, None]
        left_out = _summaries(
            step_squares.sum() - step_losses,
            np.subtract(growth_squares, growths, out=growths),
            (rest - ddof).astype(np.float64),
            growth_range,
        )
    each = np.ones(n) if samples.weight is None else samples.weight
    parts = [] if wanted is None else list(stratified(terms, p, units, each, growth_squares, wanted))
    within = pooled(parts, units)
    if not intervals:
        within = Moment(within.value, np.empty(0))
    total, variance, covariance, exponent, exponent_within, shift = (
        jackknife(float(value), others, level, positive=positive, copies=units.copies)
        for (value, others), positive in (
            *zip(zip(values, left_out, strict=True), (True, True, False, False), strict=True),
            (within, False),
            ((within.value - values[3], within.left_out - left_out[3]), False),
        )
    )
    return Decomposition(
        total_variance=total,
        variance_terms=variance,
        covariance_terms=covariance,
        growth_exponent=exponent,
        growth_exponent_within=exponent_within,
        growth_exponent_shift=shift,
        step_variance=step_squares / normaliser,
        growth=growth_squares / normaliser,
        alive=alive,
        mean=mean,
        growth_range=(first, last),
        effective_size=samples.effective_size,
        _source=source,
    )


def _summaries(
    step_squares: Double, growth_squares: Double, normaliser: float | Double, growth_range: tuple[int, int]
) -> Double:
    """Return total, variance terms, covariance terms and growth exponent.

    From sums of squares: of all steps (...), and of the running sums (..., T).
    """
    total = growth_squares[..., -1] / normaliser
    variance = step_squares / normaliser
    first, last = growth_range
    exponent = slope(growth_squares[..., first - 1 : last], first)
    return np.stack([total, variance, total - variance, exponent])
