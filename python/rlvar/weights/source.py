"""The input of a verb, rollouts and an estimator or scores and weights, made into terms."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Float, Importance
from rlvar.rollouts import Rollouts
from rlvar.terms.passes import Terms
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator, EstimatorLike, resolve


def estimator_of(choice: EstimatorLike | ArrayLike, argument: str = "estimator") -> Estimator:
    """Return the one estimator that is meant by a name, an estimator or a pair ("mine", weights)."""
    (estimator,) = resolve([choice], argument)  # type: ignore[list-item]
    return estimator


def batch_of(
    rollouts: Rollouts,
    *,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    importance: Importance = "none",
    truncate: float | None = None,
    threads: int | None = None,
) -> Batch:
    """Return the batch of some rollouts, which say themselves which steps are live."""
    for name, value in (("lengths", lengths), ("mask", mask)):
        if value is not None:
            raise TypeError(f"{name} goes with scores; pass it to Rollouts instead")
    return Batch.of(rollouts, importance=importance, truncate=truncate, threads=threads)


def refuse_estimator(weights: EstimatorLike | ArrayLike) -> Float:
    """Return the weights that go with scores; an estimator needs rollouts."""
    name = weights[0] if isinstance(weights, tuple) and weights else weights
    if isinstance(name, (str, Estimator)):
        name = name if isinstance(name, str) else name.name
        raise TypeError(f"estimator {name!r} needs Rollouts, got scores: pass weights (N, T) or (N,)")
    return _check.floats("weights", weights)  # type: ignore[arg-type]


def terms_of(
    rollouts: Rollouts | ArrayLike,
    estimator: EstimatorLike | ArrayLike | None,
    *,
    lengths: ArrayLike | None,
    mask: ArrayLike | None,
    importance: Importance = "none",
    truncate: float | None = None,
    threads: int | None = None,
    least: int = 2,
) -> Terms:
    """Return the terms of rollouts and an estimator, or of at least so many scores (N, T, D) and weights."""
    if isinstance(rollouts, Rollouts):
        batch = batch_of(
            rollouts, lengths=lengths, mask=mask, importance=importance, truncate=truncate, threads=threads
        )
        return batch.terms(estimator_of("multi" if estimator is None else estimator))
    for name, given in (("importance", importance != "none"), ("truncate", truncate is not None)):
        if given:
            raise TypeError(f"{name} needs Rollouts with logp and behavior_logp, got scores")
    weights = None if estimator is None else refuse_estimator(estimator)
    return Terms.of(rollouts, weights, lengths, mask, threads, least)


def groups_of(
    rollouts: Rollouts | ArrayLike, groups: Sequence[Hashable] | NDArray[Any] | None
) -> Sequence[Hashable] | NDArray[Any] | None:
    """Return the groups of rollouts, or those given with scores."""
    if not isinstance(rollouts, Rollouts):
        return groups
    if groups is not None:
        raise TypeError("groups goes with scores; pass it to Rollouts instead")
    return rollouts.groups
