"""Weights of tokens (N, T) before any score is known: the caller's own, or those of estimators by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlvar import _check
from rlvar._types import Double
from rlvar.torch.inputs import Tokens
from rlvar.torch.language import TokenScores
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import EstimatorLike, OwnEstimator, resolve

#: Estimators whose weights are fitted to scores.
FITTED = ("single-optimal", "multi-optimal", "otb")
#: What comes with the log-probabilities of the policy.
_PROBABILITIES = {"logp", "behavior_logp", "score_squares"}


def weights_of(
    given: Mapping[str, ArrayLike] | EstimatorLike | Sequence[EstimatorLike],
    tokens: Tokens,
    scored: Callable[[bool], TokenScores],
    rewards: ArrayLike | None,
    others: Mapping[str, Any],
) -> tuple[dict[str, Double], tuple[str, ...]]:
    """Return weights (N, T) by name, 0 where no token is, and the names of what is unbiased by theory.

    `scored` makes what `rewards` and `others` make rollouts of, with log-probabilities if they are needed.
    """

    @cache
    def batch(needed: bool) -> Batch:
        return Batch(scored(needed).rollouts(rewards, **others))  # type: ignore[arg-type]

    if isinstance(given, Mapping):
        if not given:
            raise ValueError("weights must name at least one estimator")
        if rewards is not None:
            raise TypeError("rewards goes with estimators by name: leave it out where weights are given")
        own = {
            _check.text("weights", name): _own(f"weights[{name!r}]", each, tokens)
            for name, each in given.items()
        }
        return own, ()
    found, unbiased = {}, []
    for each in resolve(given, "weights"):
        if each.base in FITTED:
            raise ValueError(
                f"estimator {each.name!r} is fitted to scores: it needs sequence_scores or token_scores"
            )
        its_own = each.given if isinstance(each, OwnEstimator) else None
        if its_own is not None and not callable(its_own):
            found[each.name] = _own(f"weights of {each.name!r}", its_own, tokens)
            continue
        if rewards is None:
            raise ValueError(f"estimator {each.name!r} needs rewards: pass rewards=")
        weights = each.weights(batch(its_own is not None or not _PROBABILITIES.isdisjoint(each.needs)))
        found[each.name] = np.where(tokens.live, weights, 0.0)
        if each.unbiased:
            unbiased.append(each.name)
    return found, tuple(unbiased)


def _own(name: str, value: ArrayLike, tokens: Tokens) -> Double:
    """Check the caller's weights: (N,), or one per token."""
    array = _check.floats(name, value).astype(np.float64)
    if array.ndim == 1:
        if len(array) != len(tokens.counts):
            raise ValueError(f"{name} must have shape (N,) = ({len(tokens.counts)},), got {array.shape}")
        array = np.broadcast_to(array[:, None], tokens.live.shape)
    else:
        array = tokens.by_step(name, array)
    _check.finite(name, array, _check.Steps(tokens.counts, None))
    return np.where(tokens.live, array, 0.0)
