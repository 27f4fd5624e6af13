"""Rollouts: a validated container, and the files it is read from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check

_KEYS = ("scores", "rewards", "lengths", "mask", "values", "groups", "logp", "behavior_logp")


@dataclass(frozen=True, eq=False, init=False)
class Rollouts:
    """N rollouts of up to T steps, with scores in D coordinates.

    Parameters
    ----------
    scores : array_like, shape (N, T, D)
        Gradient of the log-probability of each step's action; float32 and float64 are kept without
        a copy, memory-mapped arrays too.
    rewards : array_like, shape (N, T) or (N,)
        Reward of each step, or one terminal reward for each rollout. Kept as float64.
    lengths : array_like of int, shape (N,), optional
        Number of live steps of each rollout.
    mask : array_like of bool, shape (N, T), optional
        Live steps, where there are gaps. Not together with `lengths`.
    values : array_like, shape (N, T), optional
        Value of each step's state, for estimators with a learned baseline.
    groups : sequence of hashable, shape (N,), optional
        Label (prompt) of each rollout. Rollouts with equal labels are dependent.
    logp, behavior_logp : array_like, shape (N, T), optional
        Log-probability of each step's action under the policy that is differentiated, whose scores
        these are, and under the one that sampled it: see `importance_ratios`.

    Attributes
    ----------
    scores, rewards, lengths, mask, values, groups, logp, behavior_logp
        As given, as arrays; None where not given. `groups` are numbered by first appearance.
    live : ndarray of bool, shape (N, T)
        Which steps are live.
    live_steps : ndarray, shape (N,)
        Number of live steps of each rollout.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, fewer than 2 rollouts, lengths outside 0..T, or a reward, value or
        log-probability of a live step that is not finite. Scores are searched for NaN when they are used.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rlvar.Rollouts(np.zeros((4, 7, 2)), np.ones((4, 7)), lengths=[7, 3, 2, 5])
    Rollouts(N=4, T=7, D=2, lengths 2 to 7)
    """

    scores: NDArray[Any]
    rewards: NDArray[np.float64]
    lengths: NDArray[np.int64] | None
    mask: NDArray[np.bool_] | None
    values: NDArray[np.float64] | None
    groups: NDArray[np.int64] | None
    logp: NDArray[np.float64] | None
    behavior_logp: NDArray[np.float64] | None

    def __init__(
        self,
        scores: ArrayLike,
        rewards: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        values: ArrayLike | None = None,
        groups: Sequence[Hashable] | NDArray[Any] | None = None,
        logp: ArrayLike | None = None,
        behavior_logp: ArrayLike | None = None,
    ) -> None:
        array = _check.scores(scores)
        shape = array.shape[:2]
        live = _check.steps(shape, mask, lengths)
        checked_rewards = _check.floats("rewards", rewards).astype(np.float64, copy=False)
        _check.weights(checked_rewards, shape, live, "rewards")
        labels = None if groups is None else _check.group_labels(groups, shape[0])
        fields = {
            "scores": array,
            "rewards": checked_rewards,
            "lengths": live.lengths,
            "mask": None if live.mask is None else live.mask.view(np.bool_),
            "values": _by_step("values", values, shape, live),
            "groups": labels,
            "logp": _by_step("logp", logp, shape, live),
            "behavior_logp": _by_step("behavior_logp", behavior_logp, shape, live),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        n, t, d = self.scores.shape
        return n, t, d

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which steps are live, shape (N, T)."""
        shape = self.scores.shape[:2]
        return _check.steps(shape, self.mask, self.lengths).live(shape)

    @property
    def live_steps(self) -> NDArray[np.int64]:
        """Number of live steps of each rollout, shape (N,)."""
        counts: NDArray[np.int64] = np.count_nonzero(self.live, axis=1)
        return counts

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        n, t, d = self.shape
        counts = self.live_steps
        groups = "" if self.groups is None else f", {len(np.unique(self.groups))} groups"
        return f"Rollouts(N={n}, T={t}, D={d}, lengths {counts.min()} to {counts.max()}{groups})"


def _by_step(
    name: str, value: ArrayLike | None, shape: tuple[int, int], live: _check.Steps
) -> NDArray[np.float64] | None:
    """Return an optional array (N, T) as float64, finite where live."""
    if value is None:
        return None
    array = _check.floats(name, value).astype(np.float64, copy=False)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape (N, T) = {shape}, got {array.shape}")
    _check.finite(name, array, live)
    return array
