r"""How much the gradients of two batches differ, by chance alone.

A batch of U independent units has a gradient m = mu + e with Cov e = Sigma / U. With the squared signal
s = |mu|^2, V = tr Sigma, B = E |m|^2 = s + V / U and normal e, as the errors of means of many units are,

    Var |m|^2 = 4 mu' Sigma mu / U + 2 tr Sigma^2 / U^2
    E cos(m_1, m_2) = |E (m / |m|)|^2 = s / B (1 + 3/4 Var |m|^2 / B^2) - 2 mu' Sigma mu / (U B^2) + ... ,

of two independent batches, to second order in e: s / (s + V / U) where the noise has many directions. The
change in norm is the root mean square of |m_1| - |m_2| over that of |m|. With |m|^2 taken for a gamma
variable of these moments, of shape k = B^2 / Var |m|^2, it is sqrt(2 (1 - h)) with
h = (Gamma(k + 1/2) / Gamma(k))^2 / k; to first order sqrt(Var |m|^2 / 2) / B.

All of it depends on three numbers: U over the noise scale V / s; the effective dimension V^2 / tr Sigma^2;
and the share of the noise that lies along the mean, mu' Sigma mu / (s V), at most 1 / sqrt(dimension).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from rlvar import _check
from rlvar.stats.estimate import Estimate, Result
from rlvar.stats.moments import Products


@dataclass(frozen=True, repr=False)
class BatchNoise(Result):
    """How much the gradients of two batches of this size differ, by chance alone; prints as a sentence.

    Attributes
    ----------
    units : int
        Independent units (rollouts, or groups) in each batch.
    angle : Estimate
        Between the gradients of two batches, in degrees: that whose cosine is the expected one. 90 without
        any signal, and as high as that where the signal is not resolved.
    norm_change : float
        Root mean square of the difference between the two norms, over that of the norm itself. It has no
        interval: it rests on moments of the noise that few units estimate poorly.
    unit : str
        What they are: "rollout", "group" or, of gradients already at hand, "unit".
    """

    units: int
    angle: Estimate
    norm_change: float
    unit: str
    _noise_scale: Estimate = field(repr=False)
    _dimension: float = field(repr=False)
    _along: float = field(repr=False)

    def at(self, units: int) -> BatchNoise:
        """Return the same for batches of another number of units."""
        units = _check.positive_integer("units", units)
        return batch_noise(self._noise_scale, self._dimension, self._along, units, self.unit)

    def __repr__(self) -> str:
        if math.isnan(self.angle.value):
            return "The gradient of every batch is 0."
        what = f"Two batches of {self.units:,} independent {self.unit}s differ by"
        angle, norm = self.angle, f"about {self.norm_change:.0%} in gradient norm"
        if math.isnan(angle.low):
            return f"{what} {norm} and {angle.value:.0f} degrees in direction, by chance alone."
        level = f"{angle.confidence:.0%} interval {angle.low:.0f} to {angle.high:.0f}"
        if not angle.resolved:
            return (
                f"{what} {norm} and by {angle.low:.0f} degrees or more in direction, by chance alone: their "
                "signal is not resolved."
            )
        return f"{what} {norm} and {angle.value:.0f} degrees in direction ({level}), by chance alone."


def share_along(p: Products, variance: float, signal: float, dimension: float) -> float:
    """Estimate mu' Sigma mu / (s V) of a sample's products with itself.

    The plug-in m' Sigma m is too large by tr Sigma^2 / U. Where the mean shows no direction, it is what a
    direction has on average, each counted by its own variance: 1 / dimension.
    """
    u = len(p.linear)
    if not variance > 0:
        return 0.0
    plug_in = float(np.square(p.linear / (2 * variance)).sum()) / (u - 1)
    of_noise = math.sqrt(2 / dimension) / u  # the signal that noise shows, as all here over the variance
    along = max(plug_in - 1 / (dimension * u), 0.0) + of_noise / dimension
    return min(along / (max(signal / variance, 0.0) + of_noise), 1 / math.sqrt(dimension))


def batch_noise(noise_scale: Estimate, dimension: float, along: float, units: int, unit: str) -> BatchNoise:
    """Return how much two batches of `units` units differ.

    The angle's interval is that of the noise scale: `dimension` and the share of noise `along` the mean, at
    most 1 / sqrt(dimension), are taken for known.
    """
    ends = noise_scale.value, noise_scale.low, noise_scale.high
    value, least, most = (_signal_ratio(units, n) for n in ends)
    angle = Estimate(_angle(value, dimension, along), confidence=noise_scale.confidence)
    if not math.isnan(noise_scale.low):
        low, high = _angle(least, dimension, along), _angle(most, dimension, along)
        angle = replace(angle, low=low, high=high, resolved=noise_scale.resolved)
    norm = _norm_change(_spread(value, dimension, along))
    return BatchNoise(units, angle, norm, unit, noise_scale, dimension, along)


def _signal_ratio(units: int, noise_scale: float) -> float:
    """Return s U / V; 0 for a signal that is not there."""
    return math.inf if noise_scale == 0 else units / noise_scale if not noise_scale < 0 else 0.0


def _spread(ratio: float, dimension: float, along: float) -> float:
    """Return Var |m|^2 / B^2."""
    if not math.isfinite(ratio):
        return 0.0 if ratio > 0 else math.nan
    return (4 * along * ratio + 2 / dimension) / (1 + ratio) ** 2


def _angle(ratio: float, dimension: float, along: float) -> float:
    if not math.isfinite(ratio):
        return 0.0 if ratio > 0 else math.nan
    of_norm = 1 + 0.75 * _spread(ratio, dimension, along)
    cosine = ratio / (1 + ratio) * of_norm - 2 * along * ratio / (1 + ratio) ** 2
    return math.degrees(math.acos(min(1.0, max(0.0, cosine))))


def _norm_change(spread: float) -> float:
    if spread < 1e-4:  # h = 1 - 1 / (4 k) + ..., which the difference below would lose
        return math.sqrt(spread / 2)
    if math.isnan(spread):
        return math.nan
    k = 1 / spread
    return math.sqrt(2 * -math.expm1(2 * (math.lgamma(k + 0.5) - math.lgamma(k)) - math.log(k)))
