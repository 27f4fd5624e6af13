"""The T x T covariance of step terms whose scores are outer products, S = a (x) b, which are never formed."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core
from rlvar._types import Double, Float


def covariance_factored(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    lengths: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ddof: int = 1,
    block_size: int = 1,
    num_threads: int | None = None,
    out: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    r"""Covariance between step terms whose scores are outer products, summed over coordinates.

    .. math:: C_{ij} = \sum_{kl} \mathrm{Cov}_n(w_{ni} a_{nik} b_{nil},\; w_{nj} a_{njk} b_{njl})

    What `covariance` gives for the scores ``a[..., :, None] * b[..., None, :]`` of p q coordinates, without
    forming them. The gradient of any linear layer is such a product at each step where it is used: `a` is the
    gradient of its output, `b` its input. For the output head of a language model, `a` is the one-hot vector
    of the token minus the probabilities, over the temperature, and `b` the last hidden state.

    Parameters
    ----------
    a : array_like, shape (N, T, p)
        Left factors. float32 and float64 are used without a copy if the last axis is contiguous and `b` has
        the same dtype.
    b : array_like, shape (N, T, q)
        Right factors.
    weights : array_like, shape (N, T) or (N,), optional
        What multiplies the scores, ones by default.
    lengths : array_like of int, shape (N,), optional
        Live steps are the first ``lengths[n]``.
    mask : array_like of bool, shape (N, T), optional
        Live steps, where there are gaps; not together with `lengths`. What lies on other steps is never read,
        and their terms are 0.
    sample_weight, ddof
        As in `covariance`.
    block_size : int, default 1
        Entries are those of blocks of so many consecutive steps. The cost stays that of single steps.
    num_threads : int, optional
        Threads to use, by default what ``OMP_NUM_THREADS`` or the machine says. The result is bit-identical
        for any number.
    out : ndarray, float64, optional
        Where the result goes, of its shape. It is untouched if an error is raised.

    Returns
    -------
    ndarray, shape (B, B), float64
        B = ceil(T / block_size), so T by default. Symmetric and positive semi-definite (up to rounding), in
        squared units of the terms.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, fewer than 2 rollouts, no steps or coordinates, lengths outside 0..T, or a
        number of a live step that is not finite (the first is named).

    Notes
    -----
    Costs (p + q) L (L + 1) floating-point operations for a rollout of length L, and p q (T (T + 1) + 2 N T)
    for the mean, in place of p q L (L + 1) a rollout. Products of float32 factors run in float32 over short
    panels and are summed in float64, with an error of some 1e-7, at most 3e-6, of the diagonal entries of the
    row and the column. A mean far above the spread costs no digits: steps that have one are centred before
    anything is squared, which makes their part of the work up to four times as large. Memory beside the
    result holds the factors of a few rollouts and 24 bytes for each step of each rollout; with `block_size`
    or centred steps, a matrix of T x T, or at most 2 T x 2 T, too. Rollouts of weight 0 are not read. Ctrl-C
    stops the computation within a fraction of a second.

    See Also
    --------
    covariance : of scores that are not outer products.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> a = np.array([[[1.0, -1.0]], [[-2.0, 2.0]], [[1.0, -1.0]]])
    >>> b = np.array([[[3.0, 4.0]], [[3.0, 4.0]], [[0.0, 5.0]]])
    >>> rlvar.covariance_factored(a, b)
    array([[146.66666667]])
    >>> scores = (a[..., :, None] * b[..., None, :]).reshape(3, 1, 4)
    >>> rlvar.covariance(scores)
    array([[146.66666667]])
    """
    left, right = _check.scores(a, name="a", width="p"), _check.scores(b, name="b", width="q")
    if right.shape[:2] != left.shape[:2]:
        wanted = f"(N, T, q) = ({left.shape[0]}, {left.shape[1]}, q) as a has it"
        raise ValueError(f"b must have shape {wanted}, got {right.shape}")
    dtype = np.result_type(left, right)
    left, right = (x.astype(dtype, copy=False) for x in (left, right))
    n, t, _ = left.shape
    live = _check.steps((n, t), lengths=lengths, mask=mask)
    w = _check.weights(weights, (n, t), live)
    threads = _check.threads(num_threads)
    samples = _check.samples(sample_weight, n)
    p, normaliser = samples.weight, samples.normaliser(ddof)
    if p is not None and not p.all():
        live = live.among(p > 0, t)
    block = min(_check.positive_integer("block_size", block_size), t)
    blocks = -(-t // block)
    if out is not None:
        _check.out_array(out, (blocks, blocks), np.dtype(np.float64))

    def compute(w: Double) -> Double:
        result = np.empty((blocks, blocks))
        terms = _core.Terms(left, w, *live, p)
        _core.covariance_factored(terms, right, block, normaliser, result, threads)
        return result

    result = compute(w)
    if not np.isfinite(result.diagonal()).all():
        _check.finite_scores(left, live, name="a")
        _check.raise_not_finite(right, live, name="b")
    # Where equal terms are centred, rounding may leave 1e-33 of their squares.
    _check.refuse_underflow(
        result.diagonal().max(), lambda: compute(_rescaled(w, left, right, live)).diagonal().max() > 1e-28
    )
    if out is None:
        return result
    out[...] = result
    return out


@_check.quiet
def _rescaled(weights: Double, a: Float, b: Float, live: _check.Steps) -> Double:
    """Return the weights times a power of two that takes the largest term to the order of 1."""
    alive = live.live(weights.shape)
    w = np.where(alive, weights, 0.0)
    largest = (np.where(alive, np.abs(x).max(axis=2), 0.0) for x in (a, b))
    exponents = sum(np.frexp(x.astype(np.float64))[1] for x in (w, *largest))
    return np.asarray(np.ldexp(w, -exponents[w != 0].max(initial=-2000)))
