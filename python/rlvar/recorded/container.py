"""Rollouts as trainers record them: what was sampled and what it earned, without scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double

Ids = NDArray[np.int64]
Marks = NDArray[np.bool_]
Prompt = str | list[dict[str, Any]]  # text, or chat messages


@dataclass(frozen=True, eq=False, repr=False)
class RecordedRollouts:
    """N rollouts of a language model without scores: what `read_recorded` returns.

    Fields whose length differs between rollouts are lists of N arrays: L_n tokens of prompt and response, T_n
    of them chosen by the policy and seen by the loss.

    Attributes
    ----------
    source : str
        The file.
    format : str
        Trainer that wrote the file, such as "NeMo-RL", or the kind of file.
    rewards : ndarray, shape (N,)
        Whole reward of each rollout.
    groups : ndarray of int, shape (N,), or None
        Number of the prompt of each; None where no two share one.
    ids : list of ndarray of int, shape (L_n,), or None
        Tokens of prompt and response.
    masks : list of ndarray of bool, shape (L_n,), or None
        Which of them the policy chose and the loss sees. Goes with `ids`.
    texts : list of (prompt, response), or None
        Where there are no tokens. A prompt is a string or a list of chat messages.
    token_rewards, behavior_logp : list of ndarray, shape (T_n,), or None
        Reward of each token, and its log-probability as the sampler recorded it.
    temperature : float or None
        Of sampling, where it was recorded.
    notes : tuple of str
        What a reader of results should know about the file.

    Raises
    ------
    ValueError, TypeError
        For rewards that are not finite, and rows that do not fit each other.
    """

    source: str
    format: str
    rewards: Double
    groups: NDArray[np.int64] | None = None
    ids: list[Ids] | None = None
    masks: list[Marks] | None = None
    texts: list[tuple[Prompt, str]] | None = None
    token_rewards: list[Double] | None = None
    behavior_logp: list[Double] | None = None
    temperature: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rewards = _check.floats("rewards", self.rewards).astype(np.float64)
        if rewards.ndim != 1 or not np.isfinite(rewards).all():
            raise ValueError("rewards must have one finite number for each rollout")
        object.__setattr__(self, "rewards", rewards)
        n = len(rewards)
        if self.groups is not None:
            object.__setattr__(self, "groups", _check.group_labels(self.groups, n))
        if (self.ids is None) != (self.masks is None):
            raise ValueError("ids and masks go together: pass both or neither")
        for name in ("ids", "masks", "texts", "token_rewards", "behavior_logp"):
            rows = getattr(self, name)
            if rows is not None and len(rows) != n:
                raise ValueError(f"{name} must have one row for each of {n} rollouts, got {len(rows)}")
        steps = [] if self.masks is None else self.lengths.tolist()
        for name in ("masks", "token_rewards", "behavior_logp"):
            rows = getattr(self, name)
            wanted = [len(row) for row in self.ids or []] if name == "masks" else steps
            for i, (row, count) in enumerate(zip(rows or [], wanted, strict=False)):
                if len(row) != count:
                    raise ValueError(f"{name}[{i}] must have {count} values, got {len(row)}")

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens that the policy chose, of each rollout (N,)."""
        if self.masks is None:
            raise ValueError(f"{self.source} has no tokens")
        return np.array([np.count_nonzero(mask) for mask in self.masks], np.int64)

    def tokenised(self, ids: list[Ids], masks: list[Marks], *notes: str) -> RecordedRollouts:
        """Return them with tokens in place of text."""
        return replace(self, ids=ids, masks=masks, texts=None, notes=(*self.notes, *notes))

    def __repr__(self) -> str:
        what = "tokens" if self.ids is not None else "text" if self.texts is not None else "rewards alone"
        groups = "" if self.groups is None else f", {len(np.unique(self.groups))} groups"
        return f"RecordedRollouts(N={len(self)}, {what}{groups}, {self.format})"


def padded(rows: Iterable[NDArray[Any]], width: int) -> NDArray[Any]:
    """Return rows (T_n,) as one array (N, width), 0 behind their ends."""
    every = list(rows)
    result = np.zeros((len(every), width), every[0].dtype if every else np.float64)
    for place, row in zip(result, every, strict=True):
        place[: len(row)] = row
    return result
