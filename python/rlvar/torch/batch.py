"""A training batch as a loop of one's own has it, checked: rows of tokens, rewards, groups.

Rows without a reward (NaN, or None) are left out, as TRL leaves them out of its statistics. Tokens are
aligned left, and numbers a token are counted by the response's tokens t = 0, 1, ...: then the rows of several
processes fit together, however each of them was padded.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.torch.inputs import Tokens


@dataclass(frozen=True)
class Batch:
    """n rows that have a reward."""

    ids: NDArray[np.int64]  # (n, L)
    attended: NDArray[np.bool_]  # (n, L)
    response: NDArray[np.bool_]  # (n, L)
    rewards: Double  # (n,), or (n, T)
    groups: list[Hashable] | None  # n labels
    by_token: dict[str, Double]  # (n, T)

    @classmethod
    def of(
        cls,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None,
        response_mask: ArrayLike,
        rewards: ArrayLike,
        groups: Sequence[Hashable] | NDArray[Any] | None,
        by_token: Mapping[str, ArrayLike | None],
    ) -> Batch:
        """Check what a trainer has; `by_token` may hold None, which is left out, and one number a rollout."""
        tokens = Tokens.of(input_ids, attention_mask, response_mask)
        n, length = tokens.ids.shape
        response = np.zeros((n, length), bool)
        rows, steps = np.nonzero(tokens.live)
        response[rows, tokens.places[rows, steps]] = True
        earned = _check.floats("rewards", rewards, missing=True).astype(np.float64)
        if earned.ndim != 1:
            earned = tokens.by_step("rewards", earned)
        elif len(earned) != n:
            raise ValueError(f"rewards must have shape (N,) = ({n},), or one a token, got {earned.shape}")
        whole = cls(
            tokens.ids,
            np.arange(length) < tokens.lengths[:, None],
            response,
            earned,
            None if groups is None else _labels(groups, n),
            {name: _by_step(tokens, name, given) for name, given in by_token.items() if given is not None},
        )
        missing = np.isnan(earned) if earned.ndim == 1 else np.isnan(earned).any(axis=1)
        return whole[np.flatnonzero(~missing)] if missing.any() else whole

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: NDArray[np.int64]) -> Batch:
        """Return some rows."""
        response = self.response[rows]
        steps = int(response.sum(axis=1).max(initial=0))
        return Batch(
            self.ids[rows],
            self.attended[rows],
            response,
            self.rewards[rows] if self.rewards.ndim == 1 else self.rewards[rows, :steps],
            None if self.groups is None else [self.groups[row] for row in rows],
            {name: array[rows, :steps] for name, array in self.by_token.items()},
        )

    @property
    def tokens(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """What `token_scores` and the like take."""
        return self.ids, self.attended, self.response


def _labels(groups: Sequence[Hashable] | NDArray[Any], n: int) -> list[Hashable]:
    _check.group_labels(groups, n)
    every = groups.tolist() if hasattr(groups, "tolist") else groups
    return [each.item() if hasattr(each, "item") else each for each in every]


def _by_step(tokens: Tokens, name: str, given: ArrayLike) -> Double:
    array = _check.floats(name, given).astype(np.float64)
    if array.ndim == 1 and len(array) == len(tokens.counts):
        array = np.where(tokens.live, array[:, None], 0.0)
    return tokens.by_step(name, array)
