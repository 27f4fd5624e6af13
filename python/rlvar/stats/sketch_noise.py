r"""The uncertainty that a sketch of the scores adds to that of sampling.

Given the rollouts, the k coordinates of a sketch are independent random directions, equally distributed.
Variances and signals are sums over them, V = sum_d V_d, of which each part is an unbiased k-th. So the
jackknife over coordinates gives the standard error that the directions alone make,

    stderr(V)^2 = k / (k - 1) sum_d (V_d - V / k)^2 ,

and, with one coordinate left out of both sums, that of a ratio of variances or of a noise scale. All fall as
1 / sqrt(k). Weights that are fitted to the scores are taken as they are. The buckets of a count sketch share
out the coordinates: of those the jackknife is an upper bound.

Directions that are not orthogonal mix what lies along others into each:

    E tr Sigma_k^2 = tr Sigma^2 + V^2 / k,  E (mu' Sigma mu)_k = mu' Sigma mu + |mu|^2 V / k ,

both up to relative terms of order 1 / k: the effective dimension of the noise, and its share along the
mean, are those of the whole gradient once that is taken off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlvar._check import quiet
from rlvar._types import Double
from rlvar.stats.estimate import Result
from rlvar.stats.intervals import jackknife
from rlvar.stats.moments import Sample, column_parts, without_each


@dataclass(frozen=True)
class SketchNoise(Result):
    """What the random directions of a sketch add to the uncertainty of a `ComparisonRow`.

    Standard errors beside those of sampling, which alone the intervals cover: the squares of the two add up
    to that of both, or a little more. Four times as many directions halve them.

    Attributes
    ----------
    coordinates : int
        Number k of directions.
    variance, ratio, signal, noise_scale : float
        Standard errors of the estimates of these names, over sketches of this size of the same rollouts. That
        of the noise scale is NaN where the signal is not resolved.
    """

    coordinates: int
    variance: float
    ratio: float
    signal: float
    noise_scale: float


@quiet
def sketch_noise(
    samples: Sequence[Sample], means: Sequence[tuple[int, float]], reference: int
) -> list[SketchNoise]:
    """Return it for each of some samples of k coordinates.

    The signal of sample i is that of sample ``means[i][0]`` times the square of ``means[i][1]``.
    """
    k = samples[0].dimension
    whole = np.divide(k, k - 1)  # from the others' sum to all
    parts = [_by_coordinate(each) for each in samples]
    variances, signals = ([without_each(each[j]) for each in parts] for j in (0, 1))

    def stderr(left_out: Double) -> float:
        return jackknife(1.0, left_out, 0.95).stderr

    results = []
    for variance, (quietest, scale) in zip(variances, means, strict=True):
        signal = signals[quietest] * scale**2
        found = (
            variance * whole,
            variance / variances[reference],
            signal * whole,
            variance / signal,
        )
        results.append(SketchNoise(k, *map(stderr, found)))
    return results


def _by_coordinate(sample: Sample) -> tuple[Double, Double]:
    """Return the parts of the variance and of the signal that each coordinate makes (k,)."""
    u, k = len(sample.sizes.given), sample.dimension
    variance, squares = np.empty((2, k))
    for part in column_parts(u, k):
        mean, y = sample.centred(sample.columns(part))
        variance[part] = np.einsum("ud,ud->d", y, y) / (u - 1)
        squares[part] = np.square(mean)
    return variance, squares - variance / u


def of_the_whole(dimension: float, along: float, k: int) -> tuple[float, float]:
    """Return the effective dimension of the noise and its share along the mean, from those of a sketch."""
    inverse = max(1 / dimension - 1 / k, 0.0)
    share = min(max(along - 1 / k, 0.0), math.sqrt(inverse))
    return (1 / inverse if inverse else math.inf), share
