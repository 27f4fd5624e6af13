"""Estimators of the policy gradient side by side, on the same rollouts.

An estimator is a choice of weights: g[n] = sum_t w[n,t] S[n,t]. Everything here is computed from
these gradients (N, D), which one pass over the scores gives for all estimators at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar import _check, _core
from rlvar.estimate import Estimate, jackknife
from rlvar.returns import reward_to_go
from rlvar.rollouts import Rollouts

Double = NDArray[np.float64]


def _single(rollouts: Rollouts) -> Double:
    """Weight every step by the whole return R[n]: the sequence is one action."""
    if rollouts.rewards.ndim == 1:
        return rollouts.rewards
    totals: Double = np.where(rollouts.live, rollouts.rewards, 0.0).sum(axis=1)
    return totals


def _multi(rollouts: Rollouts) -> Double:
    """Weight each step by its return-to-go G[n,t]."""
    if rollouts.rewards.ndim == 1:
        return rollouts.rewards  # one terminal reward: G[n,t] = R[n]
    to_go: Double = reward_to_go(rollouts.rewards, mask=rollouts.mask, lengths=rollouts.lengths)
    return to_go


#: Estimators by name: rollouts to weights, (N,) or (N, T).
ESTIMATORS: dict[str, Callable[[Rollouts], Double]] = {"single": _single, "multi": _multi}


def estimator_weights(rollouts: Rollouts, name: str) -> Double:
    """Return the weights (N,) or (N, T) of the estimator called `name`."""
    if name not in ESTIMATORS:
        raise ValueError(f"estimators must be among {', '.join(ESTIMATORS)}, got {name!r}")
    return ESTIMATORS[name](rollouts)


@dataclass(frozen=True)
class ComparisonRow:
    """One estimator in a `Comparison`.

    Attributes
    ----------
    name : str
        Name of the estimator.
    variance : Estimate
        Variance of one rollout's gradient estimate, summed over coordinates.
    ratio : Estimate
        Variance over that of the reference estimator, from the same rollouts. With equal means it
        is also the ratio of the rollouts needed for the same precision.
    signal : Estimate
        Unbiased estimate of the squared norm of the mean gradient; it can be negative.
    """

    name: str
    variance: Estimate
    ratio: Estimate
    signal: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        estimates = {key: getattr(self, key).to_dict() for key in ("variance", "ratio", "signal")}
        return {"name": self.name, **estimates}


@dataclass(frozen=True)
class Comparison:
    """Estimators side by side: iterate over the rows, or index by an estimator's name.

    Attributes
    ----------
    rows : tuple of ComparisonRow
        One row an estimator, in the order asked for.
    reference : str
        Name of the estimator whose variance is the denominator of each ratio.
    confidence : float
        Nominal coverage of the intervals.
    units : int
        Number of independent units (rollouts, or groups if given) behind the intervals.
    """

    rows: tuple[ComparisonRow, ...]
    reference: str
    confidence: float
    units: int

    def __getitem__(self, name: str) -> ComparisonRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r} was not compared; these were: {', '.join(row.name for row in self)}")

    def __iter__(self) -> Iterator[ComparisonRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return any(row.name == name for row in self.rows)

    def __str__(self) -> str:
        head = ("estimator", "variance of one rollout", f"ratio to {self.reference}", "signal |E g|^2")
        table = [head] + [(row.name, str(row.variance), str(row.ratio), str(row.signal)) for row in self]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "rows": [row.to_dict() for row in self],
            "reference": self.reference,
            "confidence": self.confidence,
            "units": self.units,
        }


def compare(
    rollouts: Rollouts,
    estimators: Sequence[str] = ("single", "multi"),
    *,
    reference: str = "single",
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> Comparison:
    r"""Compare estimators of the policy gradient on the same rollouts.

    Parameters
    ----------
    rollouts : Rollouts
        The rollouts. Without groups they are independent; with groups only the groups are.
    estimators : sequence of str, default ("single", "multi")
        ``"single"`` weights every step by the whole return, ``"multi"`` by its return-to-go. Both
        are unbiased, so the one with less variance needs fewer rollouts.
    reference : str, default "single"
        The estimator whose variance is the denominator of each ratio.
    confidence : float, default 0.95
        Nominal coverage of the intervals.
    num_threads : int, optional
        Threads to use, by default what ``OMP_NUM_THREADS`` or the machine says.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        For an unknown estimator, scores that are not finite, or fewer than two groups.

    Notes
    -----
    Over pairs of rollouts of different units (rollouts, or groups), with P such ordered pairs,

    .. math::

        \hat V = \tfrac{1}{2P} \sum_{n,m} |g_n - g_m|^2, \qquad
        \widehat{|E g|^2} = \tfrac{1}{P} \sum_{n,m} g_n \cdot g_m .

    Without groups these are the sample variance (ddof 1) and :math:`|\bar g|^2 - \hat V / N`. With
    groups the dependence inside a group biases neither, which the sample variance would be.
    Intervals come from the jackknife that leaves out one unit at a time; that of a ratio is paired,
    both variances leaving out the same unit, and is made on the log scale.

    Examples
    --------
    >>> import rlvar
    >>> result = rlvar.compare(rlvar.datasets.cartpole())
    >>> result["multi"].ratio.high < 1  # reward-to-go is quieter, beyond doubt
    True
    """
    if not isinstance(rollouts, Rollouts):
        raise TypeError(f"rollouts must be a Rollouts, got {type(rollouts).__name__}")
    if isinstance(estimators, str):
        raise TypeError(f"estimators must be a sequence of names, got the string {estimators!r}")
    if not estimators:
        raise ValueError("estimators must name at least one estimator")
    names = list(dict.fromkeys([*estimators, reference]))
    level = _check.confidence(confidence)
    units = _check.units(rollouts.groups, len(rollouts))
    gradients = _gradients(rollouts, names, _check.threads(num_threads))

    values, left_out = {}, {}
    for name, g in zip(names, gradients, strict=True):
        values[name], left_out[name] = _moments(g, units)
    rows = []
    for name in dict.fromkeys(estimators):
        (variance, signal), (variances, signals) = values[name], left_out[name]
        base, bases = values[reference][0], left_out[reference][0]
        with np.errstate(all="ignore"):  # 0 / 0 is NaN, an undefined ratio
            ratio, ratios = np.float64(variance) / base, variances / bases
        rows.append(
            ComparisonRow(
                name,
                jackknife(variance, variances, level, positive=True),
                jackknife(float(ratio), ratios, level, positive=True),
                jackknife(signal, signals, level),
            )
        )
    return Comparison(tuple(rows), reference, level, len(units))


def _gradients(rollouts: Rollouts, names: list[str], threads: int | None) -> Double:
    """Return the gradients (E, N, D) of the named estimators, in one pass over the scores."""
    n, t, d = rollouts.shape
    weights = np.empty((len(names), n, t))
    for row, name in zip(weights, names, strict=True):
        w = estimator_weights(rollouts, name)
        row[...] = w[:, None] if w.ndim == 1 else w
    live = _check.steps((n, t), rollouts.mask, rollouts.lengths)
    result = np.empty((len(names), n, d))
    _core.gradients(rollouts.scores, weights, *live, result, threads)
    # Their squares must be finite too.
    if not np.abs(result).max() < 1e150:
        _check.raise_not_finite(rollouts.scores, live)
    return result


def _moments(g: Double, units: _check.Units) -> tuple[tuple[float, float], tuple[Double, Double]]:
    """Return variance and signal of gradients (N, D), and both with each unit left out (U,).

    Sums over the ordered pairs of rollouts of different units, P = N^2 - sum_u N_u^2 of them:
        sum |g_n - g_m|^2 / 2 = N Q - sum_u N_u Q_u - |Y|^2 + sum_u |Y_u|^2
        sum g_n . g_m         = |S|^2 - sum_u |S_u|^2
    with Q_u = sum |y|^2, Y_u = sum y and S_u = sum g over unit u, where y are the gradients less
    their mean (the first sum does not change, and keeps its digits), and Q, Y, S the totals. Each
    term is a sum over units, so leaving one out is a subtraction.
    """
    sizes = units.sizes.astype(np.float64)
    y = g - g.mean(axis=0)
    squares, centred, plain = units.sums(np.square(y).sum(axis=1)), units.sums(y), units.sums(g)
    centred_squares, plain_squares = np.square(centred).sum(axis=1), np.square(plain).sum(axis=1)

    def variance_and_signal(
        n: Any, q: Any, nq: Any, yy: Any, uyy: Any, ss: Any, uss: Any, nn: Any
    ) -> tuple[Any, Any]:
        pairs = n * n - nn
        return (n * q - nq - yy + uyy) / pairs, (ss - uss) / pairs

    n, q, nq = sizes.sum(), squares.sum(), (sizes * squares).sum()
    uyy, uss, nn = centred_squares.sum(), plain_squares.sum(), np.square(sizes).sum()
    total_y, total_s = centred.sum(axis=0), plain.sum(axis=0)
    yy, ss = total_y @ total_y, total_s @ total_s
    whole = variance_and_signal(n, q, nq, yy, uyy, ss, uss, nn)
    if len(units) < 3:  # one unit left is no pair
        none = np.empty(0)
        return (float(whole[0]), float(whole[1])), (none, none)
    without = variance_and_signal(
        n - sizes,
        q - squares,
        nq - sizes * squares,
        np.square(total_y - centred).sum(axis=1),
        uyy - centred_squares,
        np.square(total_s - plain).sum(axis=1),
        uss - plain_squares,
        nn - np.square(sizes),
    )
    return (float(whole[0]), float(whole[1])), without
