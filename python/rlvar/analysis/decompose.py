"""Where the variance of a policy gradient comes from.

With the terms X[n,t] = w[n,t] S[n,t] and the gradient estimate g[n] = sum_t X[n,t],

    Var(g) = sum_t Var(X_t) + 2 sum_{i<j} Cov(X_i, X_j):

T variance terms and T(T-1)/2 covariance terms, each summed over the D coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double, Importance
from rlvar.analysis.growth import (
    NO_HORIZON,
    NO_STRATA,
    HorizonGrowth,
    LengthGrowth,
    has_horizon,
    horizon_growth,
    length_growth,
)
from rlvar.analysis.measured import part_of, scores_line
from rlvar.analysis.totals import totals
from rlvar.drawing.canvas import canvas
from rlvar.rollouts import Rollouts
from rlvar.stats import moments as unit_moments
from rlvar.stats.differences import difference
from rlvar.stats.estimate import Estimate, Moment, Result, bounded
from rlvar.stats.frame import frame
from rlvar.stats.inference import signal_and_noise_scale, signal_of
from rlvar.stats.intervals import jackknife
from rlvar.stats.shown import html_lines, html_table, measured, printable
from rlvar.terms.passes import Terms, autocorrelation
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike
from rlvar.weights.source import batch_of, estimator_of, groups_of, terms_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plotted = Literal["growth", "step_share", "covariance", "lag_profile"]


class _Source(NamedTuple):
    """What `decompose` was given, for what is computed on demand."""

    terms: Terms
    samples: _check.Samples
    weighted: bool  # whether by sample_weight
    normaliser: float  # of sums with the weights of `samples`
    ddof: int
    units: _check.Units
    grouped: bool
    variance: Moment
    weighed: tuple[Batch, Estimator] | None  # what the weights come from, if rollouts were given


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition(Result):
    """The variance of a policy gradient, taken apart.

    `covariance`, `step_share`, `lag_profile`, `horizon_exponent`, `length_exponent`, `signal` and
    `noise_scale` are computed when they are first asked for, from the scores and weights, which it keeps, and
    not copies: read them before those arrays are changed.

    Attributes
    ----------
    variance : Estimate
        Trace of Cov(g): the variance of one rollout's gradient estimate, in squared units of it.
    variance_terms, covariance_terms : Estimate
        Sum of the T variance terms, the diagonal of the covariance matrix, and twice that of the T(T-1)/2
        covariance terms: the two add up to the total.
    growth_exponent : Estimate
        How the terms add up along the sequence: slope of log V(k) on log k over the steps `growth_range`, for
        the first k terms of rollouts that go on to their end. 1 is linear growth, 2 quadratic; NaN if the
        range has one step only.
    horizon_exponent : Estimate
        How the variance grows with the horizon: the slope over the same steps, had the rollouts been cut
        after k steps, with the rewards up to there. For rollouts whose rewards come on the way, and the
        estimators "single", "multi", "single-mean", "multi-mean" and "rloo"; else NaN.
    length_exponent : Estimate
        How the variance grows with the length of rollouts, over quartiles of length (number of live steps, or
        of tokens where the rollouts count them apart), including all else that differs with length. NaN
        if all lengths are equal, and with `sample_weight`.
    signal : Estimate
        ``|E g|^2`` without the bias of a plug-in, ``|mean g|^2 - ddof V / N`` with the effective size for N;
        it can be negative. With `groups`, V / N is the variance of the mean of dependent rollouts, from whole
        groups.
    noise_scale : Estimate
        Number of rollouts in a batch at which the variance of its mean and the signal are equal: total
        variance over signal or, with `groups`, the noise scale of `compare` times the rollouts of a group,
        which are dependent. ``high`` is infinite where the signal's interval reaches zero.
    step_variance : ndarray, shape (T,)
        The variance terms one by one.
    step_share : ndarray, shape (T,)
        Which steps carry the variance: the row sums of C over the total, Cov(X_t, g) / V, where g is the
        whole gradient. They sum to 1; those of steps that reduce it are negative; NaN if V = 0.
    growth : ndarray, shape (T,)
        V(k) at index k - 1: variance of the sum of the first k terms.
    alive : ndarray of int, shape (T,)
        Number of rollouts that reach each step: what later values of the curves rest on.
    lag_profile, lag_correlation : ndarray, shape (T,)
        The sum over t of C[t, t+k] at index k; and that over the sum of sqrt(C[t, t] C[t+k, t+k]), between
        -1 and 1, 1 at lag 0; NaN where no step has any variance.
    mean : ndarray, shape (T, D)
        Mean of each term.
    covariance : ndarray, shape (T, T)
        As `rlvar.covariance`.
    growth_range : tuple of int
        First and last k (both included) of the fits of `growth_exponent` and `horizon_exponent`.
    effective_size : float
        Number of equally weighted rollouts with the same precision: (sum p)^2 / sum p^2, with
        `sample_weight` p (Kish 1965); without, the number of rollouts.
    """

    _also = ("step_share", "horizon_exponent", "length_exponent", "signal", "noise_scale")
    _large = ("mean", "lag_profile", "lag_correlation", "covariance")
    variance: Estimate
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
        return self.block_covariance(1)

    def block_covariance(self, block_size: int) -> Double:
        """Return the sums of `covariance` over blocks of so many steps, as `rlvar.covariance` does."""
        source, blocks = self._source, -(-len(self.growth) // block_size)
        result = np.empty((blocks, blocks))
        source.terms.covariance(source.samples.weight, source.normaliser, block_size, result)
        return result

    @cached_property
    @_check.quiet
    def step_share(self) -> Double:
        source = self._source
        total = source.normaliser * self.growth[-1]
        if total == 0:
            return np.full_like(self.growth, np.nan)
        return np.asarray(source.terms.with_gradient(source.samples.weight, self.mean) / total)

    @cached_property
    @_check.quiet
    def lag_profile(self) -> Double:
        source = self._source
        return source.terms.lags(source.samples.weight, self.mean) / source.normaliser

    @cached_property
    @_check.quiet
    def lag_correlation(self) -> Double:
        bound = autocorrelation(np.sqrt(self.step_variance))
        # Rounding of the transform, where the steps that far apart have no variance.
        bound[bound < 1e-12 * bound[0]] = 0.0
        return np.asarray(np.where(bound > 0, self.lag_profile / bound, np.nan))

    @property
    def signal(self) -> Estimate:
        return self._signals[0]

    @property
    def noise_scale(self) -> Estimate:
        return self._signals[1]

    @cached_property
    @_check.quiet
    def _signals(self) -> tuple[Estimate, Estimate]:
        source, units = self._source, self._source.units
        signal, variance, dimension = Moment(math.nan, np.empty(0)), source.variance, 1.0
        if source.weighted:
            taken = source.ddof * variance.value / self.effective_size
            signal = signal._replace(value=float(np.square(self.mean.sum(axis=0)).sum()) - taken)
        else:
            whole = (units.sizes.astype(np.float64), units) if source.grouped else ()
            ((own, _),) = unit_moments.products([unit_moments.Sample(source.terms.gradients, *whole)])
            signal = signal_of(own, source.ddof, grouped=source.grouped)
            variance, dimension = unit_moments.variance(own), unit_moments.dimension(own)
        total = source.variance
        if source.grouped and not source.weighted:
            # The rollouts of a group are dependent: the variance of a mean of N, times N.
            each = len(units.members) / len(units)
            total = Moment(each * variance.value, each * variance.left_out)
        level = self.variance.confidence
        return signal_and_noise_scale(signal, variance, total, dimension, level)

    @property
    def horizon_exponent(self) -> Estimate:
        return jackknife(*self.horizon_growth.exponent, self.variance.confidence)

    @cached_property
    def horizon_growth(self) -> HorizonGrowth:
        """The fit of `horizon_exponent`: the variance of rollouts cut at a few steps of `growth_range`."""
        source = self._source
        if source.weighed is None or not has_horizon(*source.weighed):
            return NO_HORIZON
        return horizon_growth(
            *source.weighed,
            source.terms,
            source.samples,
            source.normaliser,
            source.units,
            self.growth_range,
            leave_out=len(source.variance.left_out) > 0,
        )

    @property
    def length_exponent(self) -> Estimate:
        return jackknife(*self.length_growth.exponent, self.variance.confidence)

    @cached_property
    @_check.quiet
    def length_growth(self) -> LengthGrowth:
        """The fit of `length_exponent`, with the variance in each stratum of length."""
        source = self._source
        if source.weighted:
            return NO_STRATA
        lengths, tokens = source.terms.alive.sum(axis=1), None
        if source.weighed is not None and (tokens := source.weighed[0].rollouts.tokens) is not None:
            lengths = tokens
        found = length_growth(source.terms.gradients, lengths, source.units)
        return found if tokens is None else found._replace(measure="tokens")

    @property
    def covariance_share(self) -> float:
        """Covariance terms as a share of the total variance; negative if they reduce it."""
        total = self.variance.value
        return self.covariance_terms.value / total if total else float("nan")

    def plot(self, ax: Axes | None = None, *, of: Plotted = "growth") -> Axes:
        """Draw how the variance grows with the number of steps, or what it consists of.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; by default on a new figure.
        of : {"growth", "step_share", "covariance", "lag_profile"}, default "growth"
            What is drawn: `growth` on log axes, beside slopes of 1, 2 and 3, a broad line having the
            `growth_exponent`; the share of each step; the covariance of steps, or blocks of them, as a map;
            what pairs of steps add by their distance.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        ImportError
            Without matplotlib: ``pip install 'rlvar[report]'``.
        """
        _check.choice("of", of, Plotted)
        axes, palette = canvas(ax)
        from rlvar.drawing import covariance, growth, steps

        reached = max(1, np.count_nonzero(self.alive))  # steps
        if of == "growth":
            curve, fit = self.growth[:reached], self.growth_exponent
            growth.growth(axes, curve, exponent=fit, span=self.growth_range, palette=palette)
        elif of == "step_share":
            steps.step_share(axes, self.step_share[:reached], palette=palette)
        elif of == "covariance":
            blocks = self.block_covariance(steps.block_size(len(self.growth), covariance.MOST_BLOCKS))
            covariance.covariance_map(axes, blocks, steps=len(self.growth), palette=palette)
        else:
            steps.lag_profile(axes, self.lag_profile[:reached], palette=palette)
        return axes

    def to_frame(self) -> Any:
        """Return a data frame with a row for each step: pandas', or polars' where that alone is there.

        Row k has `step_variance` and `step_share` of step k, from 1, how many rollouts are `alive` there, and
        `growth`, the variance of the first k terms' sum.

        Raises
        ------
        ImportError
            Without pandas and polars.
        """
        columns = {name: getattr(self, name) for name in ("step_variance", "step_share", "growth", "alive")}
        return frame({"step": np.arange(1, len(self.growth) + 1), **columns})

    def _scores_of(self) -> tuple[str | None, int | None]:
        """Return what the scores are of, and the dimension of their sketch."""
        if self._source.weighed is None:
            return None, None
        rollouts = self._source.weighed[0].rollouts
        return rollouts.scores_of, rollouts.shape[2] if rollouts.sketched else None

    def _of_rollouts(self) -> str:
        """Say what the noise scale counts."""
        size, part = len(self._source.units.members) / len(self._source.units), part_of(self._scores_of()[0])
        of = f" rollouts, in groups of {size:.3g}" if self._source.grouped else " rollouts"
        alone = "" if part is None else f", for {printable(part)} alone"
        return of * (bounded(self.noise_scale) != "not resolved") + alone

    def __repr__(self) -> str:
        lines = [
            *filter(None, [scores_line(*self._scores_of())]),
            sources(self),
            f"signal            {self.signal}",
        ]
        lines.append(f"noise scale       {bounded(self.noise_scale)}{self._of_rollouts()}")
        if self._source.weighted:
            n = len(self._source.terms.weights)
            lines.append(f"effective size    {self.effective_size:.4g} of {n} rollouts")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        scale = measured(self.noise_scale, bounded=True)
        rows = [
            *((name, measured(x), of) for name, x, of in _parts(self)),
            ("signal", measured(self.signal), ""),
            ("noise scale", scale, self._of_rollouts().lstrip(", ")),
        ]
        head = ("quantity", f"value ({self.variance.confidence:.0%} interval)", "")
        return html_table(head, rows) + html_lines(filter(None, [scores_line(*self._scores_of())]))


def _possible(covariance: Estimate, most: float, steps: int) -> Estimate:
    """Cut an interval to what a covariance matrix allows: from -v to (T - 1) v of variance terms v."""
    ends = max(covariance.low, -most), min(covariance.high, (steps - 1) * most)
    if math.isnan(covariance.low) or not ends[0] <= covariance.value <= ends[1]:
        return covariance
    return replace(covariance, low=ends[0], high=ends[1])


def _parts(parts: Decomposition) -> Iterator[tuple[str, Estimate, str]]:
    """Yield where the variance comes from and how it grows: name, number and what it is of."""
    share = parts.covariance_share
    shares = [f"{each:.1%} of the total" if share == share else "" for each in (1 - share, share)]
    yield "variance", parts.variance, ""
    yield "variance terms", parts.variance_terms, shares[0]
    yield "covariance terms", parts.covariance_terms, shares[1]
    first, last = parts.growth_range
    strata = parts.length_growth
    ends = f"{strata.lengths[0]:.3g} to {strata.lengths[-1]:.3g}" if len(strata.lengths) else ""
    for name, of in {
        "growth": f"of the sum of the first k terms, k = {first} to {last}",
        "horizon": f"of rollouts cut after k steps, k = {first} to {last}",
        "length": f"over mean lengths {ends}" + " tokens" * (strata.measure == "tokens"),
    }.items():
        exponent = getattr(parts, f"{name}_exponent")
        if not np.isnan(exponent.value):
            yield f"{name} exponent", exponent, of


def sources(parts: Decomposition) -> str:
    """Return the lines on where the variance comes from and how it grows."""
    lines = [f"{name:<18}{value}  {of}".rstrip() for name, value, of in _parts(parts)]
    weighed = parts._source.weighed
    if weighed is not None and weighed[0].of_sequences:
        lines.append(
            "each rollout is a single step: covariance between its tokens is inside the variance term"
        )
    return "\n".join(lines)


def decompose(
    rollouts: Rollouts | ArrayLike,
    estimator: EstimatorLike | ArrayLike | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    sample_weight: ArrayLike | None = None,
    ddof: int = 1,
    importance: Importance = "none",
    truncate: float | None = None,
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> Decomposition:
    r"""Decompose the variance of a policy gradient into its step terms.

    .. math:: V = \sum_t C_{tt} + 2 \sum_{i<j} C_{ij}, \qquad
              V(k) = \sum_{i,j \le k} C_{ij}

    with :math:`C` as in `covariance`.

    Parameters
    ----------
    rollouts, estimator, lengths, mask, sample_weight, ddof, importance, truncate, num_threads
        As in `covariance`.
    groups : sequence of hashable, shape (N,), optional
        With scores: label (prompt) of each rollout; `Rollouts` hold their own. Rollouts of one group are
        dependent: intervals then leave out whole groups. The values stay those of N rollouts.
    confidence : float, default 0.95
        Nominal coverage of the intervals. They are NaN with `sample_weight` and for fewer than three
        units.

    Returns
    -------
    Decomposition

    Raises
    ------
    ValueError, TypeError
        As for `covariance`; also for fewer than two groups.

    Warns
    -----
    UserWarning
        For fewer than ten units.

    Notes
    -----
    The growth exponent is fitted over the upper half of the steps that at least half of the
    rollouts reach: T/2 to T without raggedness. Beyond, few rollouts are left to add variance, and
    the curve flattens under any law. Over the same steps the horizon exponent is the slope of the variance
    of the gradients of rollouts that are cut after k steps, for "single" and "multi"

    .. math:: R_k \sum_{t \le k} S_t, \qquad \sum_{j \le k} r_j \sum_{t \le j} S_t .

    The length exponent is the slope over strata s of

    .. math:: V_s = \frac{1}{N_s - 1} \sum_{n \in s} |g_n - \bar g_s|^2

    on the mean length. All slopes are on the log scale, by least squares; in the interval of the last the
    strata stay as they are. Two passes over the scores, O(N T D); one or two more for what is computed when
    it is asked for, and the O(N D T^2) of `covariance` only for the matrix. See ``docs/mathematics.md``.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> scores = rng.standard_normal((200, 8, 3))
    >>> result = rlvar.decompose(scores, scores.sum(axis=(1, 2)))
    >>> bool(np.isclose(result.step_share.sum(), 1))
    True

    An enumerated policy: exact, with no intervals.

    >>> p, score, reward = np.array([0.25, 0.75]), np.array([0.75, -0.25]), np.array([4.0, 0.0])
    >>> print(rlvar.decompose(score.reshape(2, 1, 1), reward, sample_weight=p, ddof=0))
    variance          1.688
    variance terms    1.688  100.0% of the total
    covariance terms  0  0.0% of the total
    signal            0.5625
    noise scale       3 rollouts
    effective size    1.6 of 2 rollouts
    """
    options: dict[str, Any] = {"lengths": lengths, "mask": mask, "importance": importance}
    options |= {"truncate": truncate, "threads": num_threads}
    labels, weighed = groups_of(rollouts, groups), None
    if isinstance(rollouts, Rollouts):
        weighed = (
            batch_of(rollouts, **options),
            estimator_of("multi" if estimator is None else estimator),
        )
        terms = weighed[0].terms(weighed[1])
    else:
        terms = terms_of(rollouts, estimator, **options)
    result = decompose_terms(terms, labels, sample_weight, ddof, confidence, weighed)
    if sample_weight is None:
        _check.warn_few(len(result._source.units), "rollout" if labels is None else "group")
    return result


@_check.quiet
def decompose_terms(
    terms: Terms,
    groups: Sequence[Hashable] | NDArray[Any] | None,
    sample_weight: ArrayLike | None = None,
    ddof: int = 1,
    confidence: float = 0.95,
    weighed: tuple[Batch, Estimator] | None = None,
) -> Decomposition:
    """Decompose the variance of terms that have been checked, `weighed` by the estimator of a batch."""
    n, t = terms.weights.shape
    samples, weighted = _check.samples(sample_weight, n), sample_weight is not None
    normaliser = samples.normaliser(ddof)
    level = _check.confidence(confidence)
    units, p = _check.units(groups, n), samples.weight

    alive = (terms.ends()[:, None] > np.arange(t)).sum(axis=0)
    terms = terms.counted(p)
    mean = terms.mean(p)
    squares = terms.squares(p, mean, units)
    step_squares, growth_squares = squares.steps.sum(axis=0), squares.growths.sum(axis=0)
    if not all(np.isfinite(each).all() for each in (mean, step_squares, growth_squares)):
        _check.raise_not_finite(terms.scores, terms.live)
    _check.refuse_underflow(step_squares.max(), lambda: terms.varies(p))

    # The upper half of the steps that at least half of the rollouts reach.
    last = max(1, int((2 * alive >= n).sum()))
    growth_range = (last + 1) // 2, last
    intervals = not weighted and len(units) >= 3 and n - ddof > units.sizes.max()
    found = totals(squares, units, normaliser, growth_range, ddof if intervals else None)
    return Decomposition(
        variance=jackknife(*found.variance, level, positive=True),
        variance_terms=jackknife(*found.variance_terms, level, positive=True),
        covariance_terms=_possible(
            difference(found.covariance_terms, found.above, found.below, level),
            jackknife(*found.variance_terms, level, positive=True).high,
            terms.scores.shape[1],
        ),
        growth_exponent=jackknife(*found.growth_exponent, level),
        step_variance=step_squares / normaliser,
        growth=growth_squares / normaliser,
        alive=alive,
        mean=mean,
        growth_range=growth_range,
        effective_size=samples.effective_size,
        _source=_Source(
            terms=terms,
            samples=samples,
            weighted=weighted,
            normaliser=normaliser,
            ddof=ddof,
            units=units,
            grouped=groups is not None,
            variance=found.variance,
            weighed=weighed,
        ),
    )
