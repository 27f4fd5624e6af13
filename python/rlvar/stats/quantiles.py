"""Quantiles of Student's t and of F, by quadrature: numpy has none."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from rlvar._types import Double


@lru_cache(maxsize=1)
def _legendre() -> tuple[Double, Double]:
    """128 nodes and weights on [-1, 1], by Newton's steps to the roots of the Legendre polynomial.

    numpy's own come from LAPACK, whose bits may depend on threads.
    """
    n = 128
    x = np.cos(np.pi * (np.arange(n, 0, -1) - 0.25) / (n + 0.5))
    for _ in range(6):
        below, p = np.ones(n), x
        for k in range(2, n + 1):
            below, p = p, ((2 * k - 1) * x * p - (k - 1) * below) / k
        slope = n * (x * p - below) / (x * x - 1)
        x = x - p / slope
    return x, 2 / ((1 - x * x) * slope**2)


def _integral(function: Callable[[Double], Double], low: float, high: float) -> float:
    nodes, node_weights = _legendre()
    half = 0.5 * (high - low)
    return half * float((node_weights * function(low + half * (nodes + 1.0))).sum())


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, dof: float) -> float:
    """Quantile of Student's t with `dof` >= 2 degrees of freedom, or 1, for probability >= 1/2.

    With x = sqrt(dof) tan(a), P(|t| <= x) is the integral of cos(u)^(dof-1) over [0, a] divided by that over
    [0, pi/2], which is concave in a: Newton's steps from 0 rise to the root and never pass it.
    """
    # The integrand falls off like exp(-dof u^2 / 2): beyond `cut` it is below rounding.
    cut = min(math.pi / 2, 9.0 / math.sqrt(dof))

    def area(a: float) -> float:
        return _integral(lambda u: np.cos(u) ** (dof - 1), 0.0, a)

    target = (2.0 * probability - 1.0) * area(cut)
    a = 0.0
    for _ in range(200):
        step = (target - area(a)) / math.cos(a) ** (dof - 1)
        a = min(a + step, cut)
        if step <= 1e-15 * a:
            break
    return math.sqrt(dof) * math.tan(a)


@lru_cache(maxsize=256)
def f_quantile(probability: float, dof: float, error_dof: float) -> float:
    """Quantile of F, the ratio of two mean squares with `dof` and `error_dof` degrees of freedom, >= 1.

    Fisher's (1924) z = log(F) / 2 has the density exp(a z) / (a e^(2z) + b)^((a + b) / 2), with the two
    degrees of freedom a and b, up to a factor: smooth, log-concave, largest at 0 and below rounding
    outside of `ends`. So Gauss-Legendre quadrature suffices, and Newton's steps on the logarithm of the
    upper tail, which is concave, come down to the root after the first.
    """
    half = 0.5 * (dof + error_dof)
    width = 9.0 * math.sqrt(0.5 / dof + 0.5 / error_dof)
    ends = -width - 40.0 / dof, width + 40.0 / error_dof

    def density(z: Any) -> Any:
        return np.exp(dof * z - half * np.log((dof * np.exp(2 * z) + error_dof) / (dof + error_dof)))

    total = _integral(density, ends[0], 0.0) + _integral(density, 0.0, ends[1])
    z = 0.0
    for _ in range(200):
        tail = _integral(density, z, ends[1])
        step = math.log(tail / (total * (1.0 - probability))) * tail / float(density(z))
        z = min(max(z + step, ends[0]), 0.5 * (z + ends[1]))
        if abs(step) <= 1e-12:
            break
    return math.exp(2.0 * z)
