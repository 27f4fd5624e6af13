"""The T x T covariance of the step terms of a policy gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core


def covariance(
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ddof: int = 1,
    num_threads: int | None = None,
    out: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    r"""Covariance between the step terms of a policy gradient, summed over coordinates.

    .. math:: C_{ij} = \sum_d \mathrm{Cov}_n(w_{ni} S_{nid},\; w_{nj} S_{njd})

    The sum of all entries is the total variance of the gradient estimate
    :math:`g_n = \sum_t w_{nt} S_{nt}`; the diagonal holds the T variance terms, the rest the
    T(T-1)/2 covariance terms, each twice.

    Parameters
    ----------
    scores : array_like, shape (N, T, D)
        Gradient of the log-probability of each step's action, in D coordinates. float32 and
        float64 are used without a copy if the last axis is contiguous; read-only and memory-mapped
        arrays too.
    weights : array_like, shape (N, T) or (N,), optional
        What the estimator multiplies each score by, ones by default.
    mask : array_like of bool, shape (N, T), optional
        Live steps; terms of other steps are 0, and what lies there is never read.
    lengths : array_like of int, shape (N,), optional
        Live steps are the first ``lengths[n]``. Not together with `mask`.
    sample_weight : array_like, shape (N,), optional
        Reliability or probability weight of each rollout, as ``aweights`` of `numpy.cov`. With
        the probabilities of an enumerated policy and ``ddof=0`` the result is the exact covariance.
    ddof : int, default 1
        Delta degrees of freedom.
    num_threads : int, optional
        Threads to use, by default what ``OMP_NUM_THREADS`` or the machine says. The result is
        bit-identical for any number.
    out : ndarray, shape (T, T), float64, optional
        Where the result goes. It is untouched if an error is raised.

    Returns
    -------
    ndarray, shape (T, T), float64
        Symmetric and positive semi-definite (up to rounding), in squared units of the terms.

    Raises
    ------
    ValueError
        For wrong shapes, fewer than 2 rollouts, no steps or coordinates, lengths outside 0..T, or
        a score or weight of a live step that is not finite (the first is named).
    TypeError
        For dtypes that are not real numbers.

    Notes
    -----
    Costs N·D·T·(T+1) floating-point operations. Terms are centred in float64 before anything is
    squared; products of float32 scores then run in float32 over short panels and are summed in
    float64, with an error near 1e-7 of the largest diagonal entry.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> scores = np.array([[[1.0], [0.0]], [[-1.0], [2.0]], [[0.0], [-2.0]]])
    >>> rlvar.covariance(scores, weights=[2.0, 2.0, 2.0])
    array([[ 4., -4.],
           [-4., 16.]])
    """
    array = _check.scores(scores)
    n, t, _ = array.shape
    live = _check.steps((n, t), mask, lengths)
    w = _check.weights(weights, (n, t), live)
    p = _check.sample_weight(sample_weight, n)
    normaliser = _check.normaliser(p, n, ddof)
    threads = _check.threads(num_threads)
    if out is not None:
        _check.out_array(out, (t, t), np.dtype(np.float64))
    result = np.empty((t, t))
    _core.comoments(array, w, *live, p, 1, result, None, None, threads)
    _core.symmetric(result, normaliser, threads)
    if not np.isfinite(result.diagonal()).all():
        _check.raise_not_finite(array, live)
    if out is None:
        return result
    out[...] = result
    return out
