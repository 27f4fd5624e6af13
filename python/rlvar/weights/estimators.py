"""The estimators that can be compared by name.

An estimator of the policy gradient is a choice of weights, g[n] = sum_t w[n,t] S[n,t]: each one here
is a function from rollouts to weights, a few lines over `returns`, `advantages` and `baselines`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double, Float, Scale
from rlvar.rollouts import Rollouts
from rlvar.weights import advantages, baselines
from rlvar.weights.batch import Batch
from rlvar.weights.james_stein import james_stein
from rlvar.weights.length_weights import length_weights
from rlvar.weights.otb_verl import otb_verl
from rlvar.weights.returns import gae, n_step_returns, vtrace


@dataclass(frozen=True, repr=False)
class Estimator:
    """An estimator with its parameters, as `estimator` makes it: equal to others by value.

    Attributes
    ----------
    base, name : str
        Its name without parameters, and its name in results: "gae", "gae(lam=0.9)".
    changed : tuple of (str, value)
        The parameters that differ from their defaults.
    parameters : dict
        All its parameters.
    formula : str
        Its weights.
    needs : tuple of str
        What the rollouts must have beside scores and rewards.
    unbiased : bool or None
        Whether by theory its gradient estimate has the mean of "single", up to O(1/N) for means over the
        batch; never with a gamma below 1. None for weights of your own.
    per_rollout : bool or None
        Whether a rollout's weights depend on that rollout alone, as `prompt_components` needs. None for
        weights of your own.
    """

    base: str
    changed: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.base not in _TABLE:
            raise ValueError(f"unknown estimator {self.base!r}; choose from {', '.join(_TABLE)}")
        defaults, given = self._entry.parameters, dict(self.changed)
        for key in given:
            if key not in defaults:
                known = ", ".join(defaults) or "none"
                raise TypeError(f"estimator {self.base!r} has no parameter {key!r}; it has {known}")
        values = {key: _CHECKS[key](key, value) for key, value in {**defaults, **given}.items()}
        changed = tuple((key, value) for key, value in values.items() if value != defaults[key])
        object.__setattr__(self, "changed", changed)

    @property
    def name(self) -> str:
        values = ", ".join(f"{key}={value!r}" for key, value in self.changed)
        return f"{self.base}({values})" if values else self.base

    @property
    def parameters(self) -> dict[str, Any]:
        return {**self._entry.parameters, **dict(self.changed)}

    @property
    def formula(self) -> str:
        return self._entry.formula

    @property
    def needs(self) -> tuple[str, ...]:
        return self._entry.needs

    @property
    def unbiased(self) -> bool | None:
        return self._entry.unbiased and self.parameters.get("gamma", 1.0) == 1.0

    @property
    def per_rollout(self) -> bool | None:
        return self._entry.per_rollout

    @property
    def _entry(self) -> _Entry:
        return _TABLE[self.base]

    def weights(self, rollouts: Rollouts | Batch) -> Double:
        """Return its weights for some rollouts, shape (N, T), read-only if one number per rollout.

        Errors, such as for what the rollouts lack, name the estimator.
        """
        batch = rollouts if isinstance(rollouts, Batch) else Batch(rollouts)
        if batch.of_sequences and (self.base in _OF_STEPS or self.parameters.get("gamma", 1.0) != 1.0):
            raise ValueError(
                f"estimator {self.name!r} needs token scores: it weighs the tokens of a rollout differently, "
                "but here a rollout is a single step"
            )
        needed = {name: getattr(batch.rollouts, name) for name in self.needs}
        for name, array in needed.items():
            if array is None:
                raise ValueError(f"estimator {self.name!r} needs {name}: pass {name}= to Rollouts")
        try:
            found = self._entry.weights(batch, **needed, **self.parameters)
            return _check.weights(found, batch.rollouts.shape[:2], batch.steps)
        except (_check.NotFiniteError, MemoryError):
            raise
        except Exception as error:  # of a callable, anything
            if type(error) in (TypeError, ValueError):
                raise type(error)(f"estimator {self.name!r}: {error}") from error
            raise ValueError(f"estimator {self.name!r}: {type(error).__name__}: {error}") from error

    def __repr__(self) -> str:
        known = ", ".join(f"{key}={value!r}" for key, value in self.parameters.items())
        needs = f"needs {', '.join(self.needs)}" if self.needs else ""
        return "  ".join(filter(None, (f"{self.base:<14} {self.formula}", known, needs)))


@dataclass(frozen=True)
class OwnEstimator(Estimator):
    """Weights of the caller's own under a name: an array (N,) or (N, T), or a function of rollouts to one.

    Of packed rollouts those of steps may be packed too.
    """

    given: ArrayLike | Callable[[Rollouts], ArrayLike] = 1.0

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        if self.base in _TABLE or not self.base:
            raise ValueError(
                f"weights of your own need a name that no estimator of rlvar has, got {self.base!r}"
            )
        if self.given is None:
            raise TypeError(f"estimator {self.base!r}: weights must be an array or a function, got None")

    @property
    def _entry(self) -> _Entry:
        # Only the caller knows whether it is unbiased.
        return _Entry(self._given, "weights of your own", unbiased=None, per_rollout=None)

    def _given(self, batch: Batch) -> ArrayLike:
        given = self.given(batch.rollouts) if callable(self.given) else self.given
        if isinstance(packed := batch.rollouts.stored_scores, _check.Packed):
            given = _check.unpacked_or_whole("weights", given, packed.lengths)
        return _check.floats("weights", given)


#: What a user may pass for one estimator.
EstimatorLike = Union[str, Estimator, "tuple[str, ArrayLike | Callable[[Rollouts], ArrayLike]]"]


def resolve(
    estimators: EstimatorLike | Sequence[EstimatorLike], argument: str = "estimators"
) -> list[Estimator]:
    """Return what the caller named as estimators of different names, at least one.

    A name, an `Estimator` or a pair ``("mine", weights)`` with an array (N,) or (N, T) or a function from
    Rollouts to one, or a sequence that mixes them. Errors call it `argument`.
    """
    several = isinstance(estimators, (list, tuple)) and not _is_pair(estimators)
    found = [_resolve(each, argument) for each in (estimators if several else [estimators])]  # type: ignore[union-attr]
    if not found:
        raise ValueError(f"{argument} must name at least one estimator")
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{argument} must have different names, got {name!r} twice")
    return found


def default_estimators(batch: Batch) -> list[Estimator]:
    """Return what is compared by default: the estimators that these rollouts can tell apart.

    "single"; "multi" where it differs, not with one reward at the end; what takes groups of two or more;
    without those "single-mean", if "multi" does not differ.
    """
    names = ["single"] if batch.one_reward else ["single", "multi"]
    sizes = np.bincount(batch.rollouts.groups) if batch.rollouts.groups is not None else np.zeros(0, int)
    if len(sizes) > 1 and sizes.min() > 1 and not batch.several.any():
        names += ["rloo", "grpo", "dr-grpo"]
    elif batch.one_reward and not batch.several.any():
        names += ["single-mean"]
    return [estimator(name) for name in names]


def _is_pair(value: object) -> bool:
    """Whether it is a name with weights, and no sequence of two estimators."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    return pair and not isinstance(value[1], (str, Estimator)) and not _is_pair(value[1])  # type: ignore[index]


def _resolve(value: Any, argument: str) -> Estimator:
    if isinstance(value, Estimator):
        return value
    if isinstance(value, str):
        return estimator(value)
    if not _is_pair(value):
        got = type(value).__name__
        raise TypeError(f"{argument} must be names, estimators or pairs ('mine', weights), got {got}")
    return OwnEstimator(value[0], given=value[1])


def estimator(name: str, **parameters: Any) -> Estimator:
    """Return an estimator by name, with parameters.

    Parameters
    ----------
    name : str
        One of those that `estimators` lists.
    **parameters
        Those that differ from the defaults: `gamma` of estimators with returns-to-go; `lam` of "gae"; `n` of
        "n-step"; `lam`, `rho_clip` and `c_clip` of "vtrace" (see `rlvar.vtrace`); `scale` and `eps` of "grpo"
        (see `rlvar.grpo`); `alpha` of "vl-norm" (see `rlvar.length_weights`); `batch_size` of
        "single-optimal", "multi-optimal" and "otb": how many rollouts a baseline is fitted to, by default
        all.

    Returns
    -------
    Estimator
        Usable in place of a name; equal by value; can be pickled.

    Raises
    ------
    ValueError, TypeError
        For an unknown name or parameter, or a value outside its range.

    Examples
    --------
    >>> import rlvar
    >>> rlvar.estimator("gae", gamma=0.99, lam=0.9).name
    'gae(gamma=0.99, lam=0.9)'
    """
    return Estimator(name, tuple(parameters.items()))


def _single_mean(batch: Batch) -> Double:
    """R minus the mean of the others: with the rollout itself in it the gradient would shrink by 1 - 1/N."""
    r = batch.returns
    result: Double = r - (r.sum() - r) / (len(r) - 1)
    return result


def _multi_mean(batch: Batch, gamma: float = 1.0) -> Double:
    """G minus its mean over the other rollouts that are alive at the step; G itself where there are none.

    With the rollout in the mean the gradient would shrink by 1 - 1/n at a step that n reach: more at late
    steps, so in another direction.
    """
    to_go = batch.to_go(gamma)
    others = np.maximum(batch.live.sum(axis=0) - 1, 1)
    return np.where(batch.live, to_go - (to_go.sum(axis=0) - to_go) / others, 0.0)


def _gae(batch: Batch, values: Double, gamma: float = 1.0, lam: float = 0.95) -> Float:
    return gae(batch.step_rewards, values, gamma, lam, **batch.tails)[0]


def _n_step(batch: Batch, values: Double, n: int = 5, gamma: float = 1.0) -> Float:
    returns = n_step_returns(batch.step_rewards, values, n, gamma, **batch.tails)
    return np.where(batch.live, returns - values, 0.0)


def _vtrace(
    batch: Batch,
    values: Double,
    logp: Double,
    behavior_logp: Double,
    gamma: float = 1.0,
    lam: float = 1.0,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> Float:
    if batch.importance is not None and batch.importance.importance != "none":
        raise ValueError("it has importance ratios already; use importance='none'")
    with np.errstate(all="ignore"):  # what is not live is not read
        ratios = np.minimum(np.exp(logp - behavior_logp), max(rho_clip, c_clip))
    options = {"rho_clip": rho_clip, "c_clip": c_clip, **batch.tails}
    return vtrace(batch.step_rewards, values, ratios, gamma, lam, **options)[1]


def _rloo(batch: Batch, groups: NDArray[np.int64]) -> Double:
    # A singleton's advantage of 0 would shrink the mean: it must not pass for unbiased.
    alone = (np.bincount(groups) == 1)[groups] & (batch.rollouts.live_steps > 0)
    return advantages.rloo(batch.returns, groups, singleton="raise" if alone.any() else "zero")


def _grpo(batch: Batch, groups: NDArray[np.int64], scale: Scale = "group", eps: float = 1e-6) -> Double:
    return advantages.grpo(batch.returns, groups, scale=scale, eps=eps)


def _vl_norm(batch: Batch, groups: NDArray[np.int64], alpha: float = 1.0) -> Double:
    return _rloo(batch, groups) * length_weights(batch.rollouts.token_counts, alpha)


class _Entry(NamedTuple):
    """What is behind a name."""

    weights: Callable[..., ArrayLike]  # of a Batch, what it needs and the parameters
    formula: str
    needs: tuple[str, ...] = ()
    unbiased: bool | None = True
    per_rollout: bool | None = False

    @property
    def parameters(self) -> dict[str, Any]:
        """Its parameters with their defaults, as the function of the weights has them."""
        parameters = list(inspect.signature(self.weights).parameters.values())
        return {each.name: each.default for each in parameters[1 + len(self.needs) :]}


#: The check of each parameter's values.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "gamma": _check.discount,
    "lam": _check.discount,
    "n": _check.positive_integer,
    "rho_clip": _check.bound,
    "c_clip": _check.bound,
    "scale": lambda name, value: _check.choice(name, value, Scale),
    "eps": _check.non_negative_number,
    "alpha": _check.positive_number,
    "batch_size": lambda name, value: None if value is None else _check.positive_integer(name, value),
}

# Of the baselines the other folds hold rollouts of other groups only, never the rollout itself.
_TABLE = {
    "single": _Entry(
        Batch.episode_returns, "R: every step by the whole return of its episode", per_rollout=True
    ),
    "multi": _Entry(Batch.to_go, "G_t: each step by its return-to-go", per_rollout=True),
    "single-mean": _Entry(_single_mean, "R minus its mean over the others"),
    "multi-mean": _Entry(_multi_mean, "G_t minus its mean over the others alive at t"),
    "rloo": _Entry(_rloo, "R minus the mean of the others in its group", ("groups",)),
    "grpo": _Entry(
        _grpo, "R minus its group's mean, over its standard deviation", ("groups",), unbiased=False
    ),
    "dr-grpo": _Entry(
        lambda batch, groups: _grpo(batch, groups, "none"), "R minus its group's mean", ("groups",), False
    ),
    "reinforce++": _Entry(
        lambda batch: advantages.whiten(advantages.reinforce_pp(batch.returns, batch.rollouts.groups)),
        "R minus its group's mean, or the batch's without groups, over the batch's deviation",
        unbiased=False,
    ),
    "opo": _Entry(
        lambda batch: advantages.opo(batch.returns, batch.rollouts.token_counts, batch.rollouts.groups),
        "R minus the mean weighted by length of its group, or of the batch, itself included",
        unbiased=False,
    ),
    "single-optimal": _Entry(
        baselines.single_optimal, "R minus E[R |s|^2] / E[|s|^2], s = sum S_t, over the other folds"
    ),
    "multi-optimal": _Entry(
        baselines.multi_optimal,
        "G_t minus E[S_t . g] / E[|S_t|^2], g = sum G_j S_j, within the range of G_t, over the other folds",
    ),
    "otb": _Entry(
        baselines.token_baseline,
        "G_t minus E[G_t W_t] / E[W_t], W_t = sum of |S_j|^2 up to t, over the other folds",
    ),
    "otb-verl": _Entry(
        otb_verl,
        "G_t minus sum G_t W_t / sum W_t over its group, W_t = sum of score_squares up to t",
        ("groups", "score_squares"),
        unbiased=False,
    ),
    "james-stein": _Entry(
        lambda batch, groups: james_stein(batch.returns, groups),
        "R minus the mean of the others in its group, shrunk to the mean of the other groups",
        ("groups",),
    ),
    "vl-norm": _Entry(
        _vl_norm, "that of rloo times length^-alpha, over the mean of that power", ("groups",), unbiased=False
    ),
    "gae": _Entry(_gae, "generalised advantage", ("values",), unbiased=False, per_rollout=True),
    "n-step": _Entry(_n_step, "n-step return minus V_t", ("values",), unbiased=False, per_rollout=True),
    "vtrace": _Entry(
        _vtrace, "V-trace advantage", ("values", "logp", "behavior_logp"), unbiased=False, per_rollout=True
    ),
}


#: What would be another estimator where one step holds all tokens of a rollout, and "multi" is "single".
_OF_STEPS = ("multi-mean", "multi-optimal", "otb", "otb-verl", "gae", "n-step", "vtrace")


def estimators() -> tuple[Estimator, ...]:
    """List the estimators that are known by name, with their parameters.

    Returns
    -------
    tuple of Estimator
        Each with its name, its formula, its parameters and what the rollouts must have for it.

    Examples
    --------
    >>> import rlvar
    >>> for each in rlvar.estimators()[:2]:
    ...     print(each)
    single         R: every step by the whole return of its episode  gamma=1.0
    multi          G_t: each step by its return-to-go  gamma=1.0
    """
    return tuple(map(Estimator, _TABLE))
