"""A batch of one's own training loop, checked: rows of tokens, rewards, groups.

Rows without a reward (NaN, or None) are left out, as TRL leaves them out of its statistics; so is a row that
is then alone in its group: with nothing to compare it to, its advantage is 0. Tokens are aligned left, and
numbers of tokens are indexed by the response's tokens t = 0, 1, ...: so the rows of several processes fit
together, however each of them was padded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
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
    lost: frozenset[Hashable] = frozenset()  # labels of rows that are left out
    asked: int = 0  # rows before some were left out

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
        """Check a trainer's batch; None in `by_token` is left out, and one number per rollout is allowed."""
        if np.shape(input_ids)[:1] == (0,):
            nothing = np.zeros((0, 1), bool)
            return cls(nothing.astype(np.int64), nothing, nothing, np.zeros(0), None, {})
        tokens = Tokens.of(input_ids, attention_mask, response_mask)
        n, length = tokens.ids.shape
        response = np.zeros((n, length), bool)
        rows, steps = np.nonzero(tokens.live)
        response[rows, tokens.places[rows, steps]] = True
        earned = _check.floats("rewards", rewards, missing=True).astype(np.float64)
        if earned.ndim != 1:
            earned = tokens.by_step("rewards", earned)
        elif len(earned) != n:
            raise ValueError(f"rewards must have shape (N,) = ({n},), or one per token, got {earned.shape}")
        whole = cls(
            tokens.ids,
            np.arange(length) < tokens.lengths[:, None],
            response,
            earned,
            None if groups is None else _labels(groups, n),
            {name: _by_step(tokens, name, given) for name, given in by_token.items() if given is not None},
            asked=n,
        )
        missing = np.atleast_1d(np.isnan(earned).reshape(n, -1).any(axis=1))
        if not missing.any():
            return whole
        lost = frozenset(compress(whole.groups or (), missing))
        return replace(whole[np.flatnonzero(~missing)], lost=lost)

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """Put the rows of several processes one after the other."""
        given = {number: part for number, part in enumerate(parts) if len(part)}
        if not given:
            return parts[0]
        first, *_ = some = list(given.values())
        for number, part in given.items():
            if part._has != first._has:
                raise ValueError(
                    f"all processes must pass the same: process {next(iter(given))} passes "
                    f"{', '.join(first._has)}, and process {number} {', '.join(part._has)}"
                )
        _same_prompts(given)

        def rows(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
            width = max(array.shape[1] for array in arrays)
            return np.concatenate([np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in arrays])

        by_token = {name: rows([part.by_token[name] for part in some]) for name in first.by_token}
        rewards = [part.rewards for part in some]
        return cls(
            rows([part.ids for part in some]),
            rows([part.attended for part in some]),
            rows([part.response for part in some]),
            np.concatenate(rewards) if first.rewards.ndim == 1 else rows(rewards),
            None if first.groups is None else [label for part in some for label in part.groups or ()],
            by_token,
            frozenset[Hashable]().union(*(part.lost for part in parts)),
            sum(part.asked for part in parts),
        )

    @property
    def left_alone(self) -> NDArray[np.bool_]:
        """Which rows (n,) have lost all others of their group."""
        if self.groups is None:
            return np.zeros(len(self), bool)
        count = Counter(self.groups)
        return np.array([count[label] == 1 and label in self.lost for label in self.groups], bool)

    @property
    def _has(self) -> list[str]:
        """What was passed with it."""
        rewards = "one reward a rollout" if self.rewards.ndim == 1 else "one reward a token"
        return [rewards, *["groups"] * (self.groups is not None), *self.by_token]

    def prompt(self, row: int) -> bytes:
        """Return the tokens before the first of the response."""
        return self.ids[row, : int(self.response[row].argmax())].tobytes()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: NDArray[np.int64]) -> Batch:
        """Return some rows."""
        response = self.response[rows]
        steps = int(np.count_nonzero(response, axis=1).max(initial=0))
        return Batch(
            self.ids[rows],
            self.attended[rows],
            response,
            self.rewards[rows] if self.rewards.ndim == 1 else self.rewards[rows, :steps],
            None if self.groups is None else [self.groups[row] for row in rows],
            {name: array[rows, :steps] for name, array in self.by_token.items()},
            self.lost,
            self.asked,
        )

    def in_use(self, batch: int | None) -> int | None:
        """Return how many of the rollouts of a batch in use count, where as many as here are left out."""
        return None if batch is None else max(1, round(batch * len(self) / self.asked))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of response tokens of each row."""
        counts: NDArray[np.int64] = np.count_nonzero(self.response, axis=1)
        return counts

    def check(self) -> None:
        """Raise where there is nothing to measure."""
        if len(self) < 2:
            raise ValueError(f"rewards must have numbers for at least 2 rollouts, got {len(self)}")
        if not self.response.any():
            raise ValueError("response_mask marks no token")

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


def _same_prompts(parts: Mapping[int, Batch]) -> None:
    """Raise for a label that several processes use for different prompts."""
    seen: dict[Hashable, dict[int, set[bytes]]] = {}
    for number, part in parts.items():
        for row, label in enumerate(part.groups or ()):
            if part.response[row].any():
                seen.setdefault(label, {}).setdefault(number, set()).add(part.prompt(row))
    for label, prompts in seen.items():
        (first, known), *others = prompts.items()
        for number, more in others:
            if known.isdisjoint(more):
                raise ValueError(
                    f"groups must give different prompts different labels, on all processes: {label!r} "
                    f"stands for different prompts on processes {first} and {number}; make labels such as "
                    "(rank, label)"
                )
            known |= more
