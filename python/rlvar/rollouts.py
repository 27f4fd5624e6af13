"""Rollouts: a validated container."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double, Float


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
        it is the squared norm of the gradient by the logits, from the probabilities p of all actions:
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
        up, are (N, 1, D). Means over tokens, and baselines and weights by length, use these numbers. At least
        one for each live step, and 0 where there is none.
    scores_of : str, optional
        What the scores are gradients with respect to, such as "all 162,368 parameters of LlamaForCausalLM". A
        name that does not start with "all" stands for a part: reports say so beside noise scales.
    sketched : bool, default False
        Whether the D coordinates are a random sketch of it: independent random directions, equally
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
    A truncated step adds its next value to its reward: mean gradients are then those of the policy if the
    values are exact, and in any case the same for all unbiased estimators.

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
    _labels: tuple[Hashable, ...]  # what each number of `groups` was called

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
        if isinstance(scores, _check.Packed):
            array, shape = scores.rows, scores.shape[:2]
        else:
            array = _kept(scores, _check.scores, 3)
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
        numbers, labels = (None, ()) if groups is None else _check.named_groups(groups, shape[0])
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
                "groups": numbers,
                "_labels": labels,
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

    @classmethod
    def packed(
        cls,
        scores: ArrayLike,
        lengths: ArrayLike,
        rewards: ArrayLike,
        *,
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
    ) -> Rollouts:
        """Make rollouts that are stored one after the other, without padding.

        Every result equals that of the padded rollouts, to the bit. The scores are never padded, neither on
        disk nor in memory nor in a kernel. Rewards, weights and the like, one number per step, are padded in
        memory.

        Parameters
        ----------
        scores : array_like, shape (sum of lengths, D)
            Scores of the first rollout's steps, then of the second's, and so on; else as in `Rollouts`.
        lengths : array_like of int, shape (N,)
            Number of steps of each rollout.
        rewards : array_like, shape (sum of lengths,) or (N,)
            Reward of each step, or one terminal reward for each rollout.
        values, logp, behavior_logp, score_squares, terminated, truncated, next_values
            As in `Rollouts`, but of shape (sum of lengths,). Arrays (N, T), padded, are taken too.
        groups, bootstrap_value, tokens, scores_of, sketched
            As in `Rollouts`.

        Returns
        -------
        Rollouts
            Their `scores` are those given, (sum of lengths, D), and T is the largest length.

        Raises
        ------
        ValueError, TypeError
            As for `Rollouts`; also for lengths that do not add up to the rows of the scores, and for rewards
            that may be of steps or of rollouts because there are as many of both.

        Examples
        --------
        >>> import numpy as np, rlvar
        >>> lengths = [7, 3, 2, 5]
        >>> rlvar.Rollouts.packed(np.zeros((17, 2)), lengths, np.ones(17))
        Rollouts(N=4, T=7, D=2, lengths 2 to 7, packed)
        """
        rows = _kept(scores, _check.packed_scores, 2)
        counts = _check.packed_lengths(lengths, len(rows))
        by_step = {
            "values": values,
            "logp": logp,
            "behavior_logp": behavior_logp,
            "score_squares": score_squares,
            "terminated": terminated,
            "truncated": truncated,
            "next_values": next_values,
        }
        padded: dict[str, Any] = {
            name: _check.unpacked(name, value, counts, anything=name == "next_values")
            for name, value in by_step.items()
            if value is not None
        }
        return cls(
            _check.Packed.of(rows, counts),  # type: ignore[arg-type]
            _check.unpacked_or_whole("rewards", rewards, counts),
            lengths=counts,
            groups=groups,
            bootstrap_value=bootstrap_value,
            tokens=tokens,
            scores_of=scores_of,
            sketched=sketched,
            **padded,
        )

    def padded(self) -> Rollouts:
        """Return the same rollouts with scores (N, T, D), 0 where no step is."""
        if self._stored.ndim == 3:
            return self
        scores = np.zeros(self.shape, self.scores.dtype)
        scores[self.live] = self.scores
        return Rollouts(scores, **self._options())._called_as(self)

    def _options(self) -> dict[str, Any]:
        """Return what they were made of but the scores, their groups as numbers."""
        return {name: value for name, value in self.__getstate__().items() if name[0] != "_"}

    def _called_as(self, whole: Rollouts) -> Rollouts:
        """Give groups, whose labels are numbers of those of `whole`, the labels they have there."""
        labels = dict[Hashable, Hashable](enumerate(whole._labels))
        object.__setattr__(self, "_labels", tuple(labels[number] for number in self._labels))
        return self

    @property
    def group_labels(self) -> tuple[Hashable, ...]:
        """What each number of `groups` was called when they were given; empty without groups."""
        return self._labels

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
        n, t, d = self.stored_scores.shape
        return n, t, d

    @cached_property
    def scores(self) -> NDArray[Any]:
        """Scores (N, T, D); (sum of lengths, D) if packed."""
        return _check.scores(self._stored) if self._stored.ndim == 3 else _check.packed_scores(self._stored)

    @cached_property
    def kernel_scores(self) -> _check.Scores:
        """Scores for the kernels."""
        return self._laid_out(self.scores)

    @cached_property
    def stored_scores(self) -> _check.Scores:
        """The same not converted, if they are mapped."""
        return self._laid_out(self._stored)

    def _laid_out(self, scores: NDArray[Any]) -> _check.Scores:
        if scores.ndim == 3:
            return scores
        assert self.lengths is not None
        return _check.Packed.of(scores, self.lengths)

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
        return len(self.rewards)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> Rollouts:
        """Return some of the rollouts, by a slice or an array of indices or booleans."""
        rows = _check.rows(rows)
        some: dict[str, Any] = {
            name: x[rows] if isinstance(x, np.ndarray) else x for name, x in self._options().items()
        }
        if self._stored.ndim == 3:
            return Rollouts(self._stored[rows], **some)._called_as(self)
        lengths = some.pop("lengths")
        longest = max(1, lengths.max(initial=0))
        some = {name: x[:, :longest] if np.ndim(x) == 2 else x for name, x in some.items() if name != "mask"}
        return Rollouts.packed(self._rows(rows), lengths, **some)._called_as(self)

    def _rows(self, rollouts: slice | Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Return the packed scores of some rollouts, without a copy if they lie side by side."""
        packed, (which,) = self.stored_scores, [np.arange(len(self))[rollouts]]
        assert isinstance(packed, _check.Packed)
        if len(which) and (np.diff(which) == 1).all():
            side_by_side: _check.Packed = packed[which[0] : which[-1] + 1]
            return side_by_side.rows
        parts = [packed.rows[packed.starts[n] : packed.starts[n] + packed.lengths[n]] for n in which]
        return np.concatenate(parts) if parts else packed.rows[:0]

    def __repr__(self) -> str:
        n, t, d = self.shape
        measures = {"lengths": self.live_steps, "tokens": self.tokens}
        counts = [f", {name} {x.min()} to {x.max()}" for name, x in measures.items() if x is not None]
        groups = "" if self.groups is None else f", {len(np.unique(self.groups))} groups"
        packed = ", packed" * (self._stored.ndim == 2)
        return f"Rollouts(N={n}, T={t}, D={d}{''.join(counts)}{groups}{packed})"


def _kept(scores: ArrayLike, check: Callable[[ArrayLike], Float], axes: int) -> NDArray[Any]:
    """Return checked scores; those that are mapped and of another dtype as they are, to be converted."""
    if isinstance(scores, np.memmap) and scores.ndim == axes:
        first = scores[:2]
        if not np.may_share_memory(check(first), first):
            return np.asarray(scores)
    return check(scores)


def _locked(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _marks(flags: NDArray[np.uint8] | None) -> NDArray[np.bool_] | None:
    return None if flags is None else flags.view(np.bool_)
