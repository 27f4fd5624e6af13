"""Rollouts: a validated container."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Rollouts:
    """N rollouts of up to T steps, with scores in D coordinates.

    Parameters
    ----------
    scores : array_like, shape (N, T, D)
        Gradient of the log-probability of each step's action; float32 and float64 are kept without
        a copy. Memory-mapped arrays of another dtype are converted when `scores` is first asked for; streams
        convert them block by block.
    rewards : array_like, shape (N, T) or (N,)
        Reward of each step, or one terminal reward for each rollout, which its last live step earns.
        Kept as float64.
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
    score_squares : array_like, shape (N, T), optional
        Stand-in for the squared norm of each step's score, for the estimator "otb-verl". For a softmax policy
        that by its logits, from the probabilities p of all actions:
        ``1 - 2 * np.exp(logp) + np.square(p).sum(axis=-1)``; verl logs the last part as ``sum_pi_squared``,
        TRL its logarithm as ``log_sum_sq_probs``.
    terminated, truncated : array_like of bool, shape (N, T), optional
        Steps after which an episode is over, and steps after which it was cut short, as for
        `reward_to_go`. The next live step, if there is one, starts another episode.
    next_values : array_like, shape (N, T), optional
        Value of the state after each truncated step; read there only. Goes with `truncated`.
    bootstrap_value : array_like, shape (N,), optional
        Value of the state after the last live step of each rollout, unless that step is terminated or
        truncated; 0 by default.
    tokens : array_like of int, shape (N,), optional
        Number of tokens of each rollout, where a step is not one token: the scores of a whole sequence, added
        up, are (N, 1, D). It is what means over tokens and baselines and weights by length go by. At least
        one for each live step, and 0 where there is none.
    scores_of : str, optional
        What the scores are gradients with respect to, as "all 162,368 parameters of LlamaForCausalLM".
    sketched : bool, default False
        Whether the D coordinates are a random sketch of that: independent random directions, equally
        distributed, so that each gives an unbiased 1/D of every squared norm and inner product.

    Attributes
    ----------
    scores, rewards, lengths, mask, values, groups, logp, behavior_logp, score_squares, terminated, \
truncated, next_values, bootstrap_value, tokens
        As given, as arrays; None where not given. `groups` are numbered by first appearance. All but
        `scores` are read-only copies.
    scores_of, sketched
        As given.
    live : ndarray of bool, shape (N, T)
        Which steps are live.
    live_steps : ndarray, shape (N,)
        Number of live steps of each rollout.
    token_counts : ndarray, shape (N,)
        Number of tokens of each rollout: `tokens`, or else `live_steps`.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or dtypes, fewer than 2 rollouts, lengths outside 0..T, fewer tokens than live steps,
        `truncated` without `next_values` or the reverse, or a number of a live step that is read but not
        finite. Scores are searched for NaN when they are used.

    Notes
    -----
    A truncated step adds its next value to its reward: mean gradients are then those of the policy as far as
    the values are exact, and the same for all unbiased estimators.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rlvar.Rollouts(np.zeros((4, 7, 2)), np.ones((4, 7)), lengths=[7, 3, 2, 5])
    Rollouts(N=4, T=7, D=2, lengths 2 to 7)
    """

    rewards: Double
    lengths: NDArray[np.int64] | None
    mask: NDArray[np.bool_] | None
    values: Double | None
    groups: NDArray[np.int64] | None
    logp: Double | None
    behavior_logp: Double | None
    score_squares: Double | None
    terminated: NDArray[np.bool_] | None
    truncated: NDArray[np.bool_] | None
    next_values: Double | None
    bootstrap_value: Double | None
    tokens: NDArray[np.int64] | None
    scores_of: str | None
    sketched: bool
    _stored: NDArray[Any]  # the scores, not converted if they are mapped

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
        score_squares: ArrayLike | None = None,
        terminated: ArrayLike | None = None,
        truncated: ArrayLike | None = None,
        next_values: ArrayLike | None = None,
        bootstrap_value: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
        scores_of: str | None = None,
        sketched: bool = False,
    ) -> None:
        first = scores[:2] if isinstance(scores, np.memmap) and scores.ndim == 3 else None
        if first is not None and not np.may_share_memory(_check.scores(first), first):
            array = np.asarray(scores)  # to be converted
        else:
            array = _check.scores(scores)
        shape = array.shape[:2]
        steps = _check.steps(shape, lengths=lengths, mask=mask)
        by_step = {
            "values": values,
            "logp": logp,
            "behavior_logp": behavior_logp,
            "score_squares": score_squares,
        }
        given = {name: value for name, value in by_step.items() if value is not None}
        # An array of the right shape comes first: errors name the others.
        arrays = {"scores": np.broadcast_to(0.0, shape), **given}
        ends = terminated, truncated, next_values, bootstrap_value
        scan = _check.scan(arrays, 1.0, steps.lengths, steps.mask, ends, -1)
        scan.raise_not_finite()
        checked_rewards = _check.doubles("rewards", rewards, shape, shape[:1])
        _check.finite("rewards", checked_rewards, steps, shape)
        self.__setstate__(
            {
                **dict.fromkeys(by_step),
                **dict(zip(given, scan.arrays[1:], strict=True)),
                "_stored": array,
                "rewards": checked_rewards,
                "lengths": steps.lengths,
                "mask": _marks(steps.mask),
                "groups": None if groups is None else _check.group_labels(groups, shape[0]),
                "terminated": _marks(scan.terminated),
                "truncated": _marks(scan.truncated),
                "next_values": scan.next_values,
                "bootstrap_value": scan.bootstrap,
                "tokens": None
                if tokens is None
                else _check.token_counts(tokens, steps.live(shape).sum(axis=1)),
                "scores_of": None if scores_of is None else _check.text("scores_of", scores_of),
                "sketched": _check.boolean("sketched", sketched),
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if isinstance(value, np.ndarray) and name != "_stored":
                value = _locked(value.copy())
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, T, D)."""
        n, t, d = self._stored.shape
        return n, t, d

    @cached_property
    def scores(self) -> NDArray[Any]:
        """Scores (N, T, D)."""
        return _check.scores(self._stored)

    @cached_property
    def steps(self) -> _check.Steps:
        """Which steps are live, for the kernels."""
        return _check.Steps(self.lengths, None if self.mask is None else self.mask.view(np.uint8))

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """Which steps are live, shape (N, T)."""
        return _locked(self.steps.live(self.shape[:2]))

    @cached_property
    def live_steps(self) -> NDArray[np.int64]:
        """Number of live steps of each rollout, shape (N,)."""
        return _locked(np.count_nonzero(self.live, axis=1))

    @property
    def token_counts(self) -> NDArray[np.int64]:
        """Number of tokens of each rollout, shape (N,)."""
        return self.live_steps if self.tokens is None else self.tokens

    def to_dict(self) -> dict[str, Any]:
        """Return their shape and lengths, and what their scores are, as JSON-ready values."""
        return {
            **dict(zip("NTD", self.shape, strict=True)),
            "lengths": self.live_steps.tolist(),
            "tokens": self.token_counts.tolist(),
            "scores_of": self.scores_of,
            "sketched": self.sketched,
        }

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> Rollouts:
        """Return some of the rollouts, by a slice or an array of indices or booleans."""
        if not isinstance(rows, slice) and np.ndim(rows) == 0:
            raise TypeError(f"rollouts must be indexed by a slice or an array, got {type(rows).__name__}")
        state = self.__getstate__()
        some: dict[str, Any] = {
            name: x[rows] if isinstance(x, np.ndarray) else x for name, x in state.items()
        }
        return Rollouts(some.pop("_stored"), **some)

    def __repr__(self) -> str:
        n, t, d = self.shape
        measures = {"lengths": self.live_steps, "tokens": self.tokens}
        counts = [f", {name} {x.min()} to {x.max()}" for name, x in measures.items() if x is not None]
        groups = "" if self.groups is None else f", {len(np.unique(self.groups))} groups"
        return f"Rollouts(N={n}, T={t}, D={d}{''.join(counts)}{groups})"


def _locked(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _marks(flags: NDArray[np.uint8] | None) -> NDArray[np.bool_] | None:
    return None if flags is None else flags.view(np.bool_)
