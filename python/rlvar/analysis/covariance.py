"""The T x T covariance of the step terms of a policy gradient."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core
from rlvar._types import Double, Float


def covariance(
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ddof: int = 1,
    block_size: int = 1,
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
    weights : array_like, shape (N, T), (N,) or (E, N, T), optional
        What the estimator multiplies each score by, ones by default. With E sets of weights, of E
        estimators, there are E results; where D is large they share most of the work.
    mask : array_like of bool, shape (N, T), optional
        Live steps; terms of other steps are 0, and what lies there is never read.
    lengths : array_like of int, shape (N,), optional
        Live steps are the first ``lengths[n]``. Not together with `mask`.
    sample_weight : array_like, shape (N,), optional
        Reliability or probability weight of each rollout, as ``aweights`` of `numpy.cov`. With
        the probabilities of an enumerated policy and ``ddof=0`` the result is the exact covariance.
    ddof : int, default 1
        Delta degrees of freedom: sums of squares are divided by v1 - ddof v2 / v1 with v1 = sum(p) and
        v2 = sum(p^2), as in `numpy.cov`; without weights, by N - ddof.
    block_size : int, default 1
        Sum so many consecutive terms first: entry (i, j) is then that of blocks of steps. The sum
        of all entries stays the total variance, and the cost falls by about ``block_size**2``.
    num_threads : int, optional
        Threads to use, by default what ``OMP_NUM_THREADS`` or the machine says. The result is
        bit-identical for any number.
    out : ndarray, float64, optional
        Where the result goes, of its shape. It is untouched if an error is raised.

    Returns
    -------
    ndarray, shape (B, B) or (E, B, B), float64
        B = ceil(T / block_size), so T by default. Symmetric and positive semi-definite (up to
        rounding), in squared units of the terms.

    Raises
    ------
    ValueError
        For wrong shapes, fewer than 2 rollouts, no steps or coordinates, lengths outside 0..T, or
        a score or weight of a live step that is not finite (the first is named).
    TypeError
        For dtypes that are not real numbers.

    Notes
    -----
    Costs D·L·(L+1) floating-point operations for a rollout of length L; padding is never multiplied.
    Terms are centred before anything is squared; products of float32 scores then run in float32 over
    short panels and are summed in float64, with an error of a few 1e-7 of the largest diagonal entry;
    up to 3e-6 if the scores take few distinct values, so that roundings repeat. Memory beside the
    result, and beside copies of weights in float64, is below 64 MiB and two matrices of its size, for
    any number of threads. A NaN in a live step is an error whatever its weight. Ctrl-C stops the
    computation within a fraction of a second.

    See Also
    --------
    CovarianceAccumulator : in micro-batches, for data larger than memory or spread over processes.
    decompose : totals and growth without the matrix.

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
    several = np.ndim(weights) >= 3  # type: ignore[arg-type]
    w = (_check.weight_sets if several else _check.weights)(weights, (n, t), live)  # type: ignore[arg-type]
    samples = _check.samples(sample_weight, n)
    p, normaliser = samples.weight, samples.normaliser(ddof)
    block = min(_check.positive_integer("block_size", block_size), t)
    threads = _check.threads(num_threads)
    shape = (*w.shape[:-2], -(-t // block), -(-t // block))
    if out is not None:
        _check.out_array(out, shape, np.dtype(np.float64))
    result = np.empty(shape)
    matrices = result if several else result[None]
    if several and block == 1 and _sharing_pays(len(w), array.shape[2]):
        _covariances(array, w, live, samples, normaliser, matrices, threads)
    else:
        for one, matrix in zip(w if several else w[None], matrices, strict=True):
            terms = _core.Terms(array, one, *live, p)
            _core.covariance(terms, block, normaliser, matrix, None, None, threads)
    for matrix in matrices:
        if not np.isfinite(matrix.diagonal()).all():
            _check.raise_not_finite(array, live)
    if out is None:
        return result
    out[...] = result
    return out


def _sharing_pays(sets: int, coordinates: int) -> bool:
    """Whether one product of a rollout's scores, weighted E times, is less work than E products.

    One set's share of a product costs what some 20 coordinates cost in the product itself.
    """
    return coordinates + 20 * sets < sets * coordinates


def _covariances(
    scores: Float,
    weights: Double,
    live: _check.Steps,
    samples: _check.Samples,
    normaliser: float,
    matrices: Double,
    threads: int | None,
) -> None:
    """Compute the covariances (E, T, T) of E sets of weights (E, N, T) from shared products.

    Their means come off afterwards, sum p X X^T - (sum p) m m^T. Where that would cost digits, mean
    far above spread, a set is computed by itself.
    """
    tolerated = 4.0 if scores.dtype == np.float32 else 100.0
    mean = np.empty(scores.shape[1:])
    terms = _core.Terms(scores, None, *live, samples.weight)
    _core.shared_moments(terms, weights, matrices, threads)
    for w, matrix in zip(weights, matrices, strict=True):
        before = matrix.diagonal().max()
        terms = terms._replace(weights=w)
        _core.means(terms, mean, threads)
        _core.add_product(mean, -samples.v1, matrix, threads)
        if before <= tolerated * matrix.diagonal().max():
            matrix /= normaliser
        else:
            _core.covariance(terms, 1, normaliser, matrix, None, None, threads)
