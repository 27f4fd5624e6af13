"""Rollouts one after the other, without padding: scores (M, D) that the kernels take for (N, T, D).

Step t of rollout n is row starts[n] + t, for t < lengths[n]; there are no others, and no mask. M is the sum
of the lengths, and other arrays of steps come as (M,).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar._check.arrays import _integers, _plain, _shape_error, finite, floats, refuse, scores
from rlvar._types import Float


@dataclass(frozen=True, eq=False)
class Packed:
    """What of scores (N, T, D) is live; indexed as these are, as far as that is needed."""

    rows: NDArray[Any]  # (M, D)
    starts: NDArray[np.int64]  # (N,)
    lengths: NDArray[np.int64]  # (N,)
    steps: int  # T
    before: int = 0  # rows of the caller's before these

    @classmethod
    def of(cls, rows: NDArray[Any], lengths: NDArray[np.int64]) -> Packed:
        """Take rows (M, D) for those of rollouts of some lengths (N,), which add up to M."""
        return cls(rows, np.cumsum(lengths) - lengths, lengths, max(1, int(lengths.max())))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        return len(self.lengths), self.steps, self.rows.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows.dtype

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """Give scores[n] (T, D), 0 where not live; of arrays [n, t] or [n, t, :d]; [n0:n1]; [:, :, d0:d1]."""
        if isinstance(index, slice):
            return self._between(index)
        if not isinstance(index, tuple):
            start, length = self.starts[index], self.lengths[index]
            padded = np.zeros((self.steps, self.rows.shape[1]), self.dtype)
            padded[:length] = self.rows[start : start + length]
            return padded
        n, t, *coordinates = index
        if isinstance(n, slice):
            return replace(self, rows=self.rows[:, coordinates[0]])
        # Any row stands for a step of a rollout that has none.
        return self.rows[(np.clip(self.starts[n] + t, 0, len(self.rows) - 1), *coordinates)]

    def row(self, n: int, t: int) -> int:
        """Return where the caller has step t of rollout n."""
        return int(self.before + self.starts[n] + t)

    def _between(self, rollouts: slice) -> Packed:
        starts, lengths = self.starts[rollouts], self.lengths[rollouts]
        first = int(starts[0]) if len(starts) else 0
        last = int(starts[-1] + lengths[-1]) if len(starts) else 0
        rows, before = self.rows[first:last], self.before + first
        return replace(self, rows=rows, starts=starts - first, lengths=lengths, before=before)


Scores = Float | Packed


def kernel_scores(value: Scores | NDArray[Any]) -> Scores:
    """Return scores of any number of rollouts, padded or packed, as the kernels take them."""
    if isinstance(value, Packed):
        return replace(value, rows=packed_scores(value.rows))
    return scores(value, rollouts=0)


def packed_scores(value: ArrayLike) -> Float:
    """Return scores (M, D) with a contiguous last axis, D >= 1."""
    array = floats("scores", value)
    if array.ndim != 2:
        raise _shape_error("scores", "(sum of lengths, D)", array.shape)
    if array.shape[1] < 1:
        raise ValueError(f"scores must have D >= 1 coordinates, got shape {array.shape}")
    if array.shape[1] > 1 and array.strides[1] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def packed_lengths(value: ArrayLike, rows: int) -> NDArray[np.int64]:
    """Return lengths (N,), N >= 2, which add up to the number of rows."""
    shape = _plain("lengths", value).shape
    if len(shape) != 1:
        raise _shape_error("lengths", "(N,)", shape)
    if shape[0] < 2:
        raise ValueError(f"lengths must have at least N = 2 rollouts, got {shape[0]}")
    counts = _integers("lengths", value, shape[0])
    refuse("lengths", counts, counts < 0, "not be negative")
    total = sum(counts.tolist())
    if total != rows:
        raise ValueError(f"lengths must add up to the number of rows of scores, {rows}, got {total}")
    return counts.astype(np.int64)


def unpacked(
    name: str, value: ArrayLike, lengths: NDArray[np.int64], *, anything: bool = False
) -> NDArray[Any]:
    """Return an array of steps, one of (M,) as (N, T) with 0 elsewhere; finite, if not `anything` goes."""
    array = _plain(name, value)
    if array.ndim != 1:
        return array
    rows, shape = int(lengths.sum()), (len(lengths), max(1, int(lengths.max())))
    if array.shape != (rows,):
        raise _shape_error(name, f"(sum of lengths,) = ({rows},) or (N, T) = {shape}", array.shape)
    if array.dtype.kind != "b":
        array = floats(name, array)
        if not anything:
            finite(name, array)
    result = np.zeros(shape, array.dtype)
    result[np.arange(shape[1]) < lengths[:, None]] = array
    return result


def unpacked_or_whole(name: str, value: ArrayLike, lengths: NDArray[np.int64]) -> NDArray[Any]:
    """Return an array of steps, as `unpacked`, or one number per rollout (N,)."""
    array, n, rows = _plain(name, value), len(lengths), int(lengths.sum())
    if array.shape == (n,) and n == rows and (lengths != 1).any():
        raise ValueError(
            f"{name} of shape ({n},) may be one per rollout or one per step, because there are as many "
            f"steps as rollouts; pass {name} per step as (N, T)"
        )
    if array.shape != (n,) and array.ndim == 1 and array.shape != (rows,):
        raise _shape_error(name, f"(N,) = ({n},) or (sum of lengths,) = ({rows},)", array.shape)
    return array if array.shape == (n,) else unpacked(name, array, lengths)
