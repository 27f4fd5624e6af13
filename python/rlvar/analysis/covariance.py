"""The T x T covariance of the step terms of a policy gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core
from rlvar._types import Double, Importance
from rlvar.rollouts import Rollouts
from rlvar.terms.passes import Terms
from rlvar.weights.estimators import EstimatorLike, resolve
from rlvar.weights.source import batch_of, refuse_estimator, terms_of


def covariance(
    rollouts: Rollouts | ArrayLike,
    estimator: EstimatorLike | list[EstimatorLike] | ArrayLike | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ddof: int = 1,
    importance: Importance = "none",
    truncate: float | None = None,
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
    rollouts : Rollouts, or array_like of shape (N, T, D)
        The rollouts; or their scores alone, the gradient of the log-probability of each step's action in D
        coordinates. float32 and float64, read-only and memory-mapped arrays too, are used without a copy if
        the last axis is contiguous.
    estimator : str, Estimator or pair, or array_like of shape (N, T), (N,) or (E, N, T), optional
        With rollouts: a name out of `estimators`, "multi" by default, an `Estimator`, or a pair
        ``("mine", weights)``; a list of E of them gives E results. With scores: the weights that multiply
        them, ones by default. Where D is large several estimators share most of the work.
    lengths : array_like of int, shape (N,), optional
        With scores: live steps are the first ``lengths[n]``.
    mask : array_like of bool, shape (N, T), optional
        With scores: live steps, where there are gaps; not together with `lengths`. What lies on other steps
        is never read, and their terms are 0.
    sample_weight : array_like, shape (N,), optional
        Reliability or probability weight of each rollout, as ``aweights`` of `numpy.cov`. With the
        probabilities of an enumerated policy and ``ddof=0`` the result is exact.
    ddof : int, default 1
        Delta degrees of freedom: sums of squares are divided by v1 - ddof v2 / v1 with v1 = sum(p) and
        v2 = sum(p^2), as in `numpy.cov`; without weights, by N - ddof.
    importance, truncate
        With rollouts: importance ratios in the weights, as in `compare`.
    block_size : int, default 1
        Sum so many consecutive terms first: entries are those of blocks of steps. The sum of all entries
        stays the total variance, and the cost falls by about ``block_size**2``.
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
    ValueError, TypeError
        For wrong shapes or dtypes, fewer than 2 rollouts, no steps or coordinates, lengths outside 0..T, or
        a score or weight of a live step that is not finite (the first is named).

    Notes
    -----
    Costs D·L·(L+1) floating-point operations for a rollout of length L; padding is never multiplied.
    Terms are centred before anything is squared; products of float32 scores then run in float32 over
    short panels and are summed in float64, with an error of a few 1e-7 of the largest diagonal entry;
    up to 3e-6 if the scores take few distinct values, so that roundings repeat. Memory beside the result and
    weights in float64 is below 64 MiB and two matrices of its size. Rollouts of weight 0 are not read. Ctrl-C
    stops the computation within a fraction of a second.

    See Also
    --------
    CovarianceAccumulator : in micro-batches, for data larger than memory or spread over processes.
    decompose : totals and growth without the matrix.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> scores = np.array([[[1.0], [0.0]], [[-1.0], [2.0]], [[0.0], [-2.0]]])
    >>> rlvar.covariance(scores, [2.0, 2.0, 2.0])
    array([[ 4., -4.],
           [-4., 16.]])
    """
    options = {"lengths": lengths, "mask": mask, "importance": importance, "truncate": truncate}
    if isinstance(rollouts, Rollouts):
        batch = batch_of(rollouts, **options, threads=num_threads)  # type: ignore[arg-type]
        each = [batch.terms(one) for one in resolve("multi" if estimator is None else estimator)]  # type: ignore[arg-type]
        several = len(each) > 1 or isinstance(estimator, list)
    else:
        weights = None if estimator is None else refuse_estimator(estimator)  # type: ignore[arg-type]
        several = weights is not None and weights.ndim == 3
        terms = terms_of(rollouts, None if several else weights, **options, threads=num_threads)  # type: ignore[arg-type]
        sets = _check.weight_sets(weights, terms.weights.shape, terms.live) if several else [terms.weights]  # type: ignore[arg-type]
        each = [replace(terms, weights=w) for w in sets]
    n, t, d = each[0].scores.shape
    samples = _check.samples(sample_weight, n)
    p, normaliser = samples.weight, samples.normaliser(ddof)
    each = [terms.counted(p) for terms in each]
    block = min(_check.positive_integer("block_size", block_size), t)
    blocks = -(-t // block)
    shape = (len(each), blocks, blocks) if several else (blocks, blocks)
    if out is not None:
        _check.out_array(out, shape, np.dtype(np.float64))
    result = np.empty(shape)
    matrices = result.reshape(-1, blocks, blocks)
    if block == 1 and d + 20 * len(each) < len(each) * d:
        # One product of a rollout's scores, weighted E times, is less work than E products: one set's
        # share of it costs what some 20 coordinates cost in the product itself.
        _covariances(each, samples, normaliser, matrices)
    else:
        for terms, matrix in zip(each, matrices, strict=True):
            terms.covariance(p, normaliser, block, matrix)
    for terms, matrix in zip(each, matrices, strict=True):
        if not np.isfinite(matrix.diagonal()).all():
            _check.raise_not_finite(terms.scores, terms.live)
        _check.refuse_underflow(matrix.diagonal().max(), partial(terms.varies, p))
    if out is None:
        return result
    out[...] = result
    return out


def _covariances(each: list[Terms], samples: _check.Samples, normaliser: float, matrices: Double) -> None:
    """Compute the covariances (E, T, T) of terms that differ in their weights from shared products.

    Their means come off afterwards, sum p X X^T - (sum p) m m^T. Where that would cost digits, mean
    far above spread, a set is computed by itself.
    """
    tolerated = 4.0 if each[0].scores.dtype == np.float32 else 100.0
    each[0].shared_moments(np.stack([terms.weights for terms in each]), samples.weight, matrices)
    for own, matrix in zip(each, matrices, strict=True):
        before = matrix.diagonal().copy()
        _core.add_product(own.mean(samples.weight), -samples.v1, matrix, own.threads)
        if (before <= tolerated * matrix.diagonal()).all():
            matrix /= normaliser
        else:
            own.covariance(samples.weight, normaliser, 1, matrix)
