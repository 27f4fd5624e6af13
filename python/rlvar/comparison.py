"""Estimators of the policy gradient side by side, on the same rollouts.

An estimator is a choice of weights: g[n] = sum_t w[n,t] S[n,t]. Everything here is computed from
these gradients (N, D), which one pass over the scores gives for all estimators at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar import units as moments
from rlvar.catalog import CATALOG, Estimator
from rlvar.estimate import (
    Estimate,
    alignment,
    correlation,
    fieller,
    jackknife,
    noise_scale_ratio,
    signal_interval,
    to_json,
)
from rlvar.gradients import gradients
from rlvar.rollouts import Rollouts

Double = NDArray[np.float64]
Estimators = Sequence[str | Estimator] | Mapping[str, ArrayLike | Callable[[Rollouts], ArrayLike]]


def estimator_weights(rollouts: Rollouts, estimators: Estimators, name: str) -> Double:
    """Return the weights (N, T) of one estimator, the caller's own or one known by name."""
    live = _check.steps(rollouts.shape[:2], rollouts.mask, rollouts.lengths)
    try:
        if isinstance(estimators, Mapping) and name in estimators:
            own = estimators[name]
            given = own(rollouts) if callable(own) else own
            if given is None:
                raise TypeError("weights must be an array, got None")
            return _check.weights(given, rollouts.shape[:2], live)
        if name not in CATALOG:
            raise ValueError(f"it is none of {', '.join(CATALOG)}")
        return _check.weights(CATALOG[name].weights(rollouts), rollouts.shape[:2], live)
    except Exception as error:  # of a callable, anything
        if type(error) in (TypeError, ValueError):
            raise type(error)(f"estimator {name!r}: {error}") from error
        raise ValueError(f"estimator {name!r}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class ComparisonRow:
    """One estimator in a `Comparison`.

    Attributes
    ----------
    name : str
        Name of the estimator.
    variance : Estimate
        Variance of one rollout's gradient estimate, summed over coordinates; with groups, of the
        mean of one group's rollouts.
    ratio : Estimate
        Variance over that of the reference estimator, from the same rollouts. For two unbiased
        estimators it is also the ratio of the rollouts needed for the same precision.
    signal : Estimate
        Unbiased estimate of the squared norm of the mean gradient; it can be negative.
    noise_scale : Estimate
        Variance over signal: the number of rollouts (groups) in a batch at which the two are equal
        (McCandlish et al. 2018). ``high`` is infinite where the signal's interval reaches zero.
    noise_scale_ratio : Estimate
        Noise scale over that of the reference estimator, from the same rollouts: what to go by where
        means differ. Undefined, from 0 to infinity, where a signal is not resolved.
    alignment : Estimate
        Cosine between its mean gradient and the reference's, without the bias of a plug-in;
        from -1 to 1 where a signal is not resolved.
    largest_share : float
        Share of the variance that the largest 1 % of the units carry, at least one unit. Above a
        fifth, the intervals of the variance and of its ratio cannot be trusted.
    unbiased : bool or None
        Whether its mean is that of "single" by theory (see `estimators`); None for weights of the
        caller's own.
    """

    name: str
    variance: Estimate
    ratio: Estimate
    signal: Estimate
    noise_scale: Estimate
    noise_scale_ratio: Estimate
    alignment: Estimate
    largest_share: float
    unbiased: bool | None

    @property
    def heavy_tailed(self) -> bool:
        """Whether so few units carry so much of the variance that its interval cannot be trusted."""
        return self.largest_share > moments.HEAVY

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        keys = ("variance", "ratio", "signal", "noise_scale", "noise_scale_ratio", "alignment")
        estimates = {key: getattr(self, key).to_dict() for key in keys}
        return {
            "name": self.name,
            **estimates,
            "largest_share": to_json(self.largest_share),
            "unbiased": self.unbiased,
        }


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
    grouped : bool
        Whether the units are groups.
    """

    rows: tuple[ComparisonRow, ...]
    reference: str
    confidence: float
    units: int
    grouped: bool

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
        unit = "variance of a group's mean" if self.grouped else "variance of one rollout"
        head = ("estimator", unit, f"ratio to {self.reference}", "signal |E g|^2", "noise scale")
        rows = [
            (row.name, str(row.variance), str(row.ratio), str(row.signal), str(row.noise_scale))
            for row in self
        ]
        text = _table([head, *rows])
        if any(row.unbiased is not True and row.name != self.reference for row in self):
            # Variances alone do not compare then: the quietest is the one of the lowest noise scale.
            ranked = sorted(self, key=lambda row: _order(row.noise_scale.value))
            columns = ("by noise scale", f"ratio to {self.reference}", f"alignment with {self.reference}")
            lines = [(row.name, str(row.noise_scale_ratio), str(row.alignment)) for row in ranked]
            text += "\nTheir means differ, so they rank by noise scale\n" + _table([columns, *lines])
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {
            "rows": [row.to_dict() for row in self],
            "reference": self.reference,
            "confidence": self.confidence,
            "units": self.units,
            "grouped": self.grouped,
        }


def compare(
    rollouts: Rollouts,
    estimators: Estimators = ("single", "multi"),
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
    estimators : sequence of str, or mapping, default ("single", "multi")
        Names out of `estimators`, or what it lists; or ``{name: weights}`` with weights of the
        caller's own, (N,) or (N, T), or a function from the rollouts to them.
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
    ValueError, TypeError
        For an unknown estimator or one whose needs the rollouts do not meet, weights of a wrong
        shape or not finite, a function of the caller's that raises (the estimator is named, the error
        is the cause), scores that are not finite, or fewer than two groups.

    Notes
    -----
    The unit is the rollout or, with groups, the group: its gradient :math:`g_u` is the mean over its
    rollouts, so that their dependence, and that of weights which use the others' rewards, is inside.
    With U units,

    .. math::

        \hat V = \frac{1}{U - 1} \sum_u |g_u - \bar g|^2, \qquad
        \widehat{|E g|^2} = |\bar g|^2 - \hat V / U .

    Intervals come from the jackknife that leaves out one unit at a time, with Satterthwaite's degrees
    of freedom; that of a ratio is paired, both variances leaving out the same unit, and is made on the
    log scale. That of the noise scale :math:`\hat V / \widehat{|E g|^2}` is Fieller's. ``python
    bench/calibration.py`` shows how often they cover. Baselines that the estimators fit, and means over the
    whole batch ("single-mean", "multi-mean"), tie all units together; that effect, of order 1/U, is left
    out.

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
    own = set(estimators) if isinstance(estimators, Mapping) else set()
    asked = list(dict.fromkeys(item.name if isinstance(item, Estimator) else item for item in estimators))
    names = list(dict.fromkeys([*asked, reference]))
    level = _check.confidence(confidence)
    units = _check.units(rollouts.groups, len(rollouts))
    threads = _check.threads(num_threads)
    weights = np.stack([estimator_weights(rollouts, estimators, name) for name in names])
    means = {
        name: units.sums(g) / units.sizes[:, None]
        for name, g in zip(names, gradients(rollouts, weights, threads), strict=True)
    }
    both = {name: _Moments(g, level) for name, g in means.items()}
    rows = [
        _row(
            name,
            (means[name], both[name]),
            (means[reference], both[reference]),
            level,
            CATALOG[name].unbiased if name not in own else None,
        )
        for name in asked
    ]
    return Comparison(tuple(rows), reference, level, len(units), rollouts.groups is not None)


class _Moments:
    """Variance and signal of units' gradients, with intervals."""

    def __init__(self, g: Double, confidence: float) -> None:
        self.variances, self.signals = moments.variance(g), moments.signal(g)
        self.variance = jackknife(*self.variances, confidence, positive=True)
        self.signal = signal_interval(self.signals, self.variances, g.shape[1], confidence)

    @property
    def resolved(self) -> bool:
        return self.signal.low > 0


def _row(
    name: str,
    estimator: tuple[Double, _Moments],
    reference: tuple[Double, _Moments],
    confidence: float,
    unbiased: bool | None,
) -> ComparisonRow:
    """Compare one estimator's unit gradients (U, D) and their moments with the reference's."""
    (g, own), (base_g, base) = estimator, reference
    with np.errstate(all="ignore"):  # 0 / 0 is NaN, an undefined ratio
        ratios = [np.asarray(a) / b for a, b in zip(own.variances, base.variances, strict=True)]
    resolved = own.resolved and base.resolved
    correlated = 0.0
    if len(own.variances.left_out) >= 2:
        correlated = correlation(own.variances.left_out, own.signals.left_out)
    return ComparisonRow(
        name=name,
        variance=own.variance,
        ratio=jackknife(float(ratios[0]), ratios[1], confidence, positive=True),
        signal=own.signal,
        noise_scale=fieller(own.variance, own.signal, correlated),
        noise_scale_ratio=noise_scale_ratio(
            own.variances, own.signals, base.variances, base.signals, resolved=resolved, confidence=confidence
        ),
        alignment=alignment(
            moments.cross_signal(g, base_g),
            own.signals,
            base.signals,
            resolved=resolved,
            confidence=confidence,
        ),
        largest_share=moments.largest_share(g, moments.TOP),
        unbiased=unbiased,
    )


def _table(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _order(noise_scale: float) -> float:
    """Sort key: a noise scale that is negative or undefined, for want of a signal, comes last."""
    return noise_scale if noise_scale >= 0 else float("inf")
