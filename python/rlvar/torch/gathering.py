"""One batch of which each process of torch.distributed has some rows, measured by all of them together.

Each process scores its own rows; of whole-model gradients, each computes those of every P-th unit of all.
What each has found is gathered on all, in the order of the ranks, so all of them know what one process would.

All of it goes through `Processes.together`: each process says first whether its own part failed, so an error
on one is an error on all, and none waits for another that has given up.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.rollouts import Rollouts
from rlvar.torch.batch import Batch
from rlvar.torch.gradients import UnitGradients
from rlvar.torch.inputs import Tokens
from rlvar.torch.language import TokenScores
from rlvar.torch.unit_weights import weights_of
from rlvar.weights.estimators import EstimatorLike

T = TypeVar("T")

_AT_ONCE = 1 << 24  # bytes of each process that pass at a time; with NCCL, through the memory of its device


@dataclass(frozen=True)
class Processes:
    """More than one process."""

    group: dist.ProcessGroup | None  # None for the default one
    count: int
    rank: int

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> Processes | None:
        """Return those of a group, or None where this process is alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        count, rank = dist.get_world_size(group), dist.get_rank(group)
        if rank < 0:
            raise ValueError("process_group must be one that this process is in")
        return cls(group, count, rank) if count > 1 else None

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do something on each process and return what all have found, or raise on all what one raises."""
        error, found = None, b""
        try:
            found = pickle.dumps(work())
        except Exception as raised:
            error = raised
        told = None if error is None else f"{type(error).__name__}: {error}"
        every: list[Any] = [None] * self.count
        dist.all_gather_object(every, (told, found), self.group)
        if error is not None:
            raise error
        for rank, (failure, _) in enumerate(every):
            if failure is not None:
                raise RuntimeError(f"process {rank} could not measure its part of the batch: {failure}")
        return [pickle.loads(each) for _, each in every]

    def rows(self, work: Callable[[], NDArray[Any] | None]) -> NDArray[Any]:
        """Return the rows (R, ...) of all processes, of which each computes some, or none."""
        mine: NDArray[Any] = np.zeros((0, 1))

        def start() -> tuple[int, int]:
            nonlocal mine
            if (found := work()) is not None:
                mine = found
            return len(mine), mine.nbytes // max(1, len(mine))

        sizes = self.together(start)
        at_once = max(1, _AT_ONCE // max(1, *(size for _, size in sizes)))
        pieces: list[list[NDArray[Any]]] = [[] for _ in sizes]
        for first in range(0, max(count for count, _ in sizes), at_once):
            some = self.together(lambda first=first: mine[first : first + at_once])  # type: ignore[misc]
            for kept, piece in zip(pieces, some, strict=True):
                kept.append(piece)
        return np.concatenate([each for kept in pieces for each in kept if len(each)])


def rollouts_of_all(
    processes: Processes, mine: Batch, whole: Batch, score: Callable[[Batch], TokenScores]
) -> Rollouts:
    """Score the rows of this process; return the rollouts of all."""
    known: tuple[str, bool] | None = None
    of_tokens: list[Double] = []

    def scores() -> NDArray[Any] | None:
        nonlocal known
        if not mine.response.any():
            return None
        scored = score(mine)
        live = scored.live
        known = scored.scores_of, scored.sketch is not None
        of_tokens.extend([scored.logp[live], scored.score_squares[live]])
        return scored.scores[live]

    gathered = processes.rows(scores)
    logp, score_squares = processes.rows(lambda: np.stack(of_tokens, axis=1) if of_tokens else None).T
    scores_of, sketched = next(each for each in processes.together(lambda: known) if each is not None)
    return Rollouts.packed(
        gathered,
        whole.lengths,
        whole.rewards,
        groups=whole.groups,
        logp=logp,
        score_squares=score_squares,
        scores_of=scores_of,
        sketched=sketched,
        **whole.by_token,
    )


def gradients_of_all(
    processes: Processes,
    mine: Batch,
    whole: Batch,
    weights: Sequence[EstimatorLike],
    by_token: dict[str, Double],
    log_probs: Callable[[Batch], TokenScores],
    gradients: Callable[[Batch, dict[str, Double]], UnitGradients],
) -> UnitGradients:
    """Compute the gradients of every P-th unit; return those of all.

    `log_probs` makes the log-probabilities of some rows, for estimators that need them; `gradients` the
    gradients of the units of some rows, by their weights.
    """
    tokens = Tokens.of(*whole.tokens)

    def scored(needed: bool) -> TokenScores:
        logp, squares = np.zeros((2, *tokens.live.shape))
        if needed:

            def some() -> NDArray[Any] | None:
                if not mine.response.any():
                    return None
                found = log_probs(mine)
                return np.stack([found.logp[found.live], found.log_sum_squares[found.live]], axis=1)

            logp[tokens.live], squares[tokens.live] = processes.rows(some).T
        return TokenScores.unscored(tokens, logp, squares)

    named, unbiased = weights_of(weights, tokens, scored, whole.rewards, {"groups": whole.groups, **by_token})
    n = len(whole)
    labels = np.arange(n) if whole.groups is None else _check.group_labels(whole.groups, n)
    sizes = np.bincount(labels)
    with_tokens = np.flatnonzero(np.bincount(labels, tokens.counts))
    shares = [with_tokens[rank :: processes.count] for rank in range(processes.count)]
    known: UnitGradients | None = None

    def of_share() -> NDArray[Any] | None:
        nonlocal known
        rows = np.flatnonzero(np.isin(labels, shares[processes.rank]))
        if not len(rows):
            return None
        steps = int(tokens.counts[rows].max())
        known = gradients(whole[rows], {name: array[rows, :steps] for name, array in named.items()})
        return np.stack([known[name] for name in named], axis=1)

    found = processes.rows(of_share)  # (units with tokens, E, D)
    result = np.zeros((len(named), len(sizes), found.shape[2]))
    result[:, np.concatenate(shares)] = found.transpose(1, 0, 2)
    facts = processes.together(
        lambda: None if known is None else (known.scores_of, known.sketch, known.passes)
    )
    (scores_of, sketch, _), *_ = some = [each for each in facts if each is not None]
    passes = {what: sum(each[what] for _, _, each in some) for what in some[0][2]}
    return UnitGradients(sizes, scores_of, sketch, unbiased, passes, dict(zip(named, result, strict=True)))
