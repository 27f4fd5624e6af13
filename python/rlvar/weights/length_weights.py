r"""Weights that let long rollouts count less: powers of the length, of mean 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rlvar import _check
from rlvar._types import Double


@_check.quiet
def length_weights(lengths: ArrayLike, alpha: float = 1.0) -> Double:
    r"""Weights of rollouts by their lengths, as VL Norm (Delta L Normalization) has them.

    .. math:: x_i = L_i^{-\alpha} \Big/ \frac{1}{N} \sum_j L_j^{-\alpha}

    Any advantages times these are the advantages of VL Norm.

    Parameters
    ----------
    lengths : array_like, shape (N,)
        Number of live steps of each rollout. One without any has weight 0, and is not among the N.
    alpha : float, default 1.0
        How much lengths count, positive. The paper has 1 for the least variance, and 0.75 for its
        experiments with mathematics.

    Returns
    -------
    ndarray, shape (N,), float64

    Raises
    ------
    ValueError, TypeError
        For lengths that are negative or not finite, or an `alpha` that is not positive.

    Notes
    -----
    If all rollouts had gradients :math:`g_i` of one mean, at any length, each mean with weights
    that sum to 1 would be unbiased, and with :math:`\operatorname{Var} g_i \propto L_i` that with
    :math:`\alpha = 1` the quietest: weights of least variance go as one over the variance. But actions decide
    how long a rollout is, so that the mean of :math:`g_i` given :math:`L_i` is another for each length, and
    the weighted mean points elsewhere: look at noise scale and alignment in `compare`. How the variance grows
    with the length of rollouts is measured by `decompose`.

    With :math:`\alpha = 1` it is the sequence mean, ``aggregation="sequence-mean"``, up to a factor.

    References
    ----------
    He et al., "VL Norm" (2025), first "Delta L Normalization", arXiv 2509.07558, and its code, which has
    these weights on the advantages of GRPO.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.length_weights([1, 2, 4])
    array([1.71428571, 0.85714286, 0.42857143])
    """
    given = _check.doubles("lengths", lengths)
    if given.ndim != 1:
        raise ValueError(f"lengths must have shape (N,), got {given.shape}")
    given = _check.non_negative("lengths", given, len(given))
    alpha = _check.positive_number("alpha", alpha)
    live = given > 0
    # Relative to the shortest: the largest power is 1.
    shortest = given[live].min() if live.any() else 1.0
    powers = np.where(live, np.exp(-alpha * np.log(np.where(live, given, 1.0) / shortest)), 0.0)
    weights: Double = powers * (live.sum() / max(powers.sum(), 1.0))
    return weights
