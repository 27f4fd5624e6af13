"""The estimators that can be compared by name.

An estimator of the policy gradient is a choice of weights, g[n] = sum_t w[n,t] S[n,t]: each one here
is a function from rollouts to weights, a few lines over `returns`, `advantages` and `baselines`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from rlvar import _check
from rlvar._types import Double
from rlvar.rollouts import Rollouts
from rlvar.weights import advantages, baselines
from rlvar.weights.batch import Batch
from rlvar.weights.returns import gae


@dataclass(frozen=True)
class Estimator:
    """One of the estimators that `compare` knows by name.

    Attributes
    ----------
    name : str
        What `compare` and the command line call it.
    formula : str
        Its weights.
    needs : tuple of str
        What the rollouts must carry beside scores and rewards.
    unbiased : bool
        Whether the mean of its gradient estimate is that of "single" by theory, up to O(1/N) for
        means over the batch. Variances of estimators with other means do not compare by themselves.
    per_rollout : bool, default False
        Whether a rollout's weights depend on that rollout alone, so that the gradients of independent
        rollouts, such as the completions of one prompt, are independent. `prompt_components` needs it.
    """

    name: str
    formula: str
    needs: tuple[str, ...]
    unbiased: bool
    _weights: Callable[[Batch], Double] = field(repr=False)
    per_rollout: bool = False

    def weights(self, rollouts: Rollouts | Batch) -> Double:
        """Return its weights for some rollouts, shape (N,) or (N, T).

        Raises
        ------
        ValueError
            If the rollouts do not carry what it needs.
        """
        batch = rollouts if isinstance(rollouts, Batch) else Batch(rollouts)
        for need in self.needs:
            if getattr(batch.rollouts, need) is None:
                raise ValueError(f"it needs {need}, which the rollouts do not carry")
        return self._weights(batch)

    def __str__(self) -> str:
        needs = f"  needs {', '.join(self.needs)}" if self.needs else ""
        return f"{self.name:<14} {self.formula}{needs}"


def _to_go_less_mean(batch: Batch) -> Double:
    """G less its mean over the other rollouts that are alive at the step; G itself where there are none.

    With the rollout in the mean the gradient would shrink by 1 - 1/n at a step that n reach: more at late
    steps, so in another direction.
    """
    others = np.maximum(batch.live.sum(axis=0) - 1, 1)
    means = (batch.to_go.sum(axis=0) - batch.to_go) / others
    result: Double = np.where(batch.live, batch.to_go - means, 0.0)
    return result


def _step_rewards(rollouts: Rollouts) -> Double:
    """Rewards (N, T): a terminal reward lands on the last live step."""
    if rollouts.rewards.ndim == 2:
        return rollouts.rewards
    live = rollouts.live
    last = live.shape[1] - 1 - np.argmax(live[:, ::-1], axis=1)
    result = np.zeros(live.shape)
    result[np.arange(len(live)), last] = rollouts.rewards
    return result


def _gae(batch: Batch) -> Double:
    rollouts = batch.rollouts
    assert rollouts.values is not None  # `needs` has been checked
    result, _ = gae(
        _step_rewards(rollouts),
        rollouts.values,
        gamma=1.0,
        lam=0.95,
        mask=rollouts.mask,
        lengths=rollouts.lengths,
    )
    return result.astype(np.float64, copy=False)


def _rloo(batch: Batch) -> Double:
    assert batch.rollouts.groups is not None
    # A singleton's advantage of 0 would shrink the mean: it must not pass for unbiased.
    return advantages.rloo(batch.returns, batch.rollouts.groups, singleton="raise")


def _grpo(batch: Batch) -> Double:
    assert batch.rollouts.groups is not None
    return advantages.grpo(batch.returns, batch.rollouts.groups)


def _dr_grpo(batch: Batch) -> Double:
    assert batch.rollouts.groups is not None
    return advantages.grpo(batch.returns, batch.rollouts.groups, scale="none")


CATALOG = {
    estimator.name: estimator
    for estimator in (
        Estimator(
            "single",
            "R: every step by the whole return",
            (),
            True,
            lambda batch: batch.returns,
            per_rollout=True,
        ),
        Estimator(
            "multi",
            "G_t: each step by its return-to-go",
            (),
            True,
            lambda batch: batch.to_go,
            per_rollout=True,
        ),
        Estimator(
            "single-mean",
            "R less its mean over the batch",
            (),
            True,
            lambda batch: advantages.reinforce_pp(batch.returns),
        ),
        Estimator("multi-mean", "G_t less its mean over the others alive at t", (), True, _to_go_less_mean),
        Estimator("rloo", "R less the mean of the others in its group", ("groups",), True, _rloo),
        Estimator("grpo", "R less its group's mean, over its standard deviation", ("groups",), False, _grpo),
        Estimator("dr-grpo", "R less its group's mean", ("groups",), False, _dr_grpo),
        Estimator(
            "reinforce++",
            "R less its group's mean, or the batch's without groups, over the batch's deviation",
            (),
            False,
            lambda batch: advantages.reinforce_pp(batch.returns, batch.rollouts.groups, whiten=True),
        ),
        Estimator(
            "opo",
            "R less the mean weighted by length of its group, or of the batch, itself included",
            (),
            False,
            lambda batch: advantages.opo(batch.returns, batch.rollouts.live_steps, batch.rollouts.groups),
        ),
        # The other folds hold rollouts of other groups only, never the rollout itself: see `baselines`.
        Estimator(
            "opo-cross",
            "R less the mean weighted by length over the other folds",
            (),
            True,
            baselines.length_baseline,
        ),
        Estimator(
            "alpha",
            "R less the mean weighted by length^(2 alpha) over the other folds, alpha fitted to their scores",
            (),
            True,
            baselines.alpha_baseline,
        ),
        Estimator(
            "single-optimal",
            "R less E[R |s|^2] / E[|s|^2], s = sum S_t, over the other folds",
            (),
            True,
            baselines.single_optimal,
        ),
        Estimator(
            "multi-optimal",
            "G_t less E[S_t . g] / E[|S_t|^2], g = sum G_j S_j, over the other folds",
            (),
            True,
            baselines.multi_optimal,
        ),
        Estimator(
            "otb",
            "G_t less E[G_t W_t] / E[W_t], W_t = sum of |S_j|^2 up to t, over the other folds",
            (),
            True,
            baselines.token_baseline,
        ),
        Estimator(
            "gae",
            "generalised advantage, gamma 1, lambda 0.95, rows end in terminal states",
            ("values",),
            False,
            _gae,
            per_rollout=True,
        ),
    )
}


Estimators = Sequence[str | Estimator] | Mapping[str, ArrayLike | Callable[[Rollouts], ArrayLike]]


def estimator_weights(batch: Batch, estimators: Estimators, name: str) -> Double:
    """Return the weights (N, T) of one estimator, the caller's own or one known by name."""
    shape, live = batch.rollouts.shape[:2], batch.steps
    try:
        if isinstance(estimators, Mapping) and name in estimators:
            own = estimators[name]
            given = own(batch.rollouts) if callable(own) else own
            if given is None:
                raise TypeError("weights must be an array, got None")
            return _check.weights(given, shape, live)
        if name not in CATALOG:
            raise ValueError(f"it is none of {', '.join(CATALOG)}")
        return _check.weights(CATALOG[name].weights(batch), shape, live)
    except _check.NotFiniteError:
        raise
    except Exception as error:  # of a callable, anything
        if type(error) in (TypeError, ValueError):
            raise type(error)(f"estimator {name!r}: {error}") from error
        raise ValueError(f"estimator {name!r}: {type(error).__name__}: {error}") from error


def estimators() -> tuple[Estimator, ...]:
    """List the estimators that `compare` and the command line know by name.

    Returns
    -------
    tuple of Estimator
        Each with its name, its formula and what the rollouts must carry for it.

    See Also
    --------
    compare : puts them side by side.

    Examples
    --------
    >>> import rlvar
    >>> for estimator in rlvar.estimators()[:2]:
    ...     print(estimator)
    single         R: every step by the whole return
    multi          G_t: each step by its return-to-go
    """
    return tuple(CATALOG.values())
