"""Rollouts one after the other, without padding: scores (M, D) that the kernels take for (N, T, D).

Step t of rollout n is row starts[n] + t, for t < lengths[n]; there are no others, and no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    def _between(self, rollouts: slice) -> Packed:
        starts, lengths = self.starts[rollouts], self.lengths[rollouts]
        first = int(starts[0]) if len(starts) else 0
        last = int(starts[-1] + lengths[-1]) if len(starts) else 0
        rows, before = self.rows[first:last], self.before + first
        return replace(self, rows=rows, starts=starts - first, lengths=lengths, before=before)


Scores = Float | Packed
