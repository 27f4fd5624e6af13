r"""Gradients from their inner products: rows L with K = L L', in the coordinates of some of them.

All that a comparison needs of gradients are inner products, which no rotation changes. A Gram matrix K (n, n)
of rank r is that of n rows in r coordinates, by Cholesky's factorisation with pivots,

    l_j = (K[:, p] - L[:, :j] L[p, :j]') / sqrt(K[p, p] - |L[p, :j]|^2) ,

p the row of which most is left. It ends where only rounding is, O(n^2 r), or where K is no Gram matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rlvar import _core
from rlvar._check import quiet
from rlvar._types import Double

_PANEL = 64  # rows of L that are taken off K together
_SAME = 2.0**-20  # relative: as in `moments`


@quiet
def rows_of(
    grams: Mapping[tuple[str, str], Double], names: Sequence[str], eps: float, threads: int | None
) -> dict[str, Double]:
    """Return gradients (U, r) of some names with these inner products (U, U).

    Pairs that are missing are taken to be orthogonal; `eps` is the relative precision. Raises ValueError if
    no gradients have them.
    """
    like = {name: _proportional(grams, name, names[:i]) for i, name in enumerate(names)}
    roots = [name for name, found in like.items() if found is None]
    u = len(grams[names[0], names[0]])
    # In units in which the longest gradient of each name is 1.
    units = {name: math.sqrt(float(np.abs(grams[name, name]).max())) or 1.0 for name in roots}
    blocks = np.zeros((len(roots), u, len(roots), u))
    for i, a in enumerate(roots):
        for j, b in enumerate(roots):
            if (a, b) in grams:
                blocks[i, :, j] = grams[a, b] / units[a] / units[b]
    joint = blocks.reshape(len(roots) * u, -1)
    factor = _factor(joint, 4 * len(joint) * eps, threads)
    missed = np.abs(joint)
    if not missed.max() <= 32 * len(joint) * eps:
        row, column = (roots[int(k) // u] for k in np.unravel_index(int(missed.argmax()), missed.shape))
        what = repr(row if row == column else (row, column))
        raise ValueError(
            f"gradients[{what}] must be inner products, with the others a positive semi-definite matrix; "
            f"{missed.max():.2g} of a squared length is wrong (pass products made in float32 as float32)"
        )
    rows = {name: part * units[name] for name, part in zip(roots, np.split(factor, len(roots)), strict=True)}
    for name, found in like.items():
        if found is not None:
            rows[name] = rows[found[0]] * found[1]
    return rows


def _proportional(
    grams: Mapping[tuple[str, str], Double], name: str, earlier: Sequence[str]
) -> tuple[str, float] | None:
    """Return the first of the earlier names whose gradients these are a number times, and that number."""
    own = grams[name, name]
    for other in earlier if own.any() else ():
        if (name, other) in grams:
            a, cross, b = (float(np.trace(k)) for k in (own, grams[name, other], grams[other, other]))
            f = cross / b if b else 0.0
            f = 1.0 if abs(f - 1.0) < _SAME else f
            apart, length = abs(a - 2 * f * cross + f * f * b), np.abs(own - f * f * grams[other, other])
            if apart <= _SAME**2 * a and length.max() <= _SAME * np.abs(own).max():
                return other, f
    return None


def _factor(rest: Double, rounding: float, threads: int | None) -> Double:
    """Return L (n, r) with L L' = K, whose diagonal is at most 1; what is left of K takes its place."""
    left, found = np.diagonal(rest).copy(), np.empty((0, len(rest)))
    while left.max() > rounding:
        panel = np.empty((_PANEL, len(rest)))
        for j, row in enumerate(panel):
            p = int(left.argmax())
            if left[p] <= rounding:
                panel = panel[:j]
                break
            row[:] = (rest[p] - np.einsum("jn,j->n", panel[:j], panel[:j, p])) / math.sqrt(left[p])
            left -= np.square(row)
            left[p] = 0.0
        _core.add_matmul(np.ascontiguousarray(-panel.T), panel, rest, threads)
        found = np.concatenate([found, panel])
    return np.ascontiguousarray(found.T)
