"""Scores of small policies, step by step: S_t = gradient of log pi(action_t | observation_t), all parameters.

The policy gives the log-probability of one action given one observation; `torch.func` differentiates it for
many steps at once, `vmap(grad)`, in chunks that fit a memory budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Distribution
from torch.func import functional_call, grad_and_value, vmap

from rlvar import _check
from rlvar._types import Double, Float
from rlvar.rollouts import Rollouts
from rlvar.torch.inputs import described, name_of, named, still, unwrapped
from rlvar.torch.sketch import Sketch

Module = torch.nn.Module
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class StepScores:
    """Scores of the steps of N rollouts, as `per_step_scores` finds them.

    Attributes
    ----------
    scores : ndarray, shape (N, T, D), or (sum of lengths, D) for packed steps
        Gradient of each step's log-probability: parameters in their order, each flattened; or its sketch.
    logp : ndarray of float64, shape (N, T) or (sum of lengths,)
        Log-probability of each step's action.
    scores_of : str
        What the scores are gradients with respect to.
    sketch : Sketch or None
        The sketch whose coordinates they are; None for exact coordinates.
    lengths : ndarray of int, shape (N,), or None
        Number of steps of each rollout, where they are packed.
    """

    scores: Float
    logp: Double
    scores_of: str
    sketch: Sketch | None
    lengths: NDArray[np.int64] | None

    def rollouts(self, rewards: ArrayLike, **others: Any) -> Rollouts:
        """Return `Rollouts` with these scores and log-probabilities.

        Parameters
        ----------
        rewards : array_like, shape (N, T) or (N,); packed (sum of lengths,) or (N,)
            Reward of each step, or one for each rollout.
        **others
            What else `Rollouts` takes, or `Rollouts.packed`.

        Returns
        -------
        Rollouts
        """
        kept: dict[str, Any] = {
            "logp": self.logp,
            "scores_of": self.scores_of,
            "sketched": self.sketch is not None,
        }
        if self.lengths is None:
            return Rollouts(self.scores, rewards, **kept, **others)
        return Rollouts.packed(self.scores, self.lengths, rewards, **kept, **others)

    def __repr__(self) -> str:
        sketch = "" if self.sketch is None else f"a {self.sketch.k}-dimensional sketch of "
        return f"StepScores({self.scores.shape}, {sketch}{self.scores_of})"


def per_step_scores(
    log_prob_fn: Callable[[Any, Any, Any], torch.Tensor],
    params: Mapping[str, torch.Tensor] | Module,
    observations: Any,
    actions: Any,
    *,
    lengths: ArrayLike | None = None,
    sketch: Sketch | None = None,
    memory: int = 1 << 30,
) -> StepScores:
    r"""Return the score of every step of a small policy, discrete or continuous.

    .. math:: S_{n,t} = \nabla_\theta \log \pi_\theta(a_{n,t} \mid o_{n,t})

    Parameters
    ----------
    log_prob_fn : callable
        ``log_prob_fn(params, observation, action)``: the log-probability of one action given one observation,
        a tensor with one number. `torch.func.vmap` runs it on many steps at once: no ``.item()``, no ``if``
        on the values of a tensor.
    params : torch.nn.Module, or mapping of str to torch.Tensor
        A policy: `log_prob_fn` then gets that policy, to be called as ever. D counts its trained parameters
        that the log-probability depends on, in their order; those of a critic beside it are left out. Or the
        parameters by name: `log_prob_fn` then gets a dict, and D counts all of them, in that order.
    observations, actions : array_like, shape (N, T, ...), or mappings or tuples of such
        What the policy saw and did. Floating-point numbers are converted to the precision of the parameters,
        integers are not.
    lengths : array_like of int, shape (N,), optional
        Number of steps of each rollout, where steps are packed, one rollout after the other without padding:
        observations and actions then have shape (sum of lengths, ...). Without it, give the lengths of padded
        rollouts to `StepScores.rollouts`.
    sketch : Sketch, optional
        Keep this sketch of each score in place of all its coordinates.
    memory : int, default 2**30
        Bytes that a chunk of steps may take beside the result, about.

    Returns
    -------
    StepScores
        Scores, float64 if the parameters are, else float32, and log-probabilities. Its ``rollouts(rewards)``
        gives `Rollouts`.

    Raises
    ------
    ValueError, TypeError
        For shapes that do not go together, or a `log_prob_fn` that gives more than one number, does not
        depend on `params`, or does what vmap cannot.

    Notes
    -----
    Checks of `torch.distributions` look at the values of their arguments, which vmap cannot: they are off
    while `log_prob_fn` runs, unless it asks for them by ``validate_args=True``. A policy runs in evaluation
    mode and is left as it was.

    Examples
    --------
    >>> import torch, rlvar.torch
    >>> policy = torch.nn.Linear(4, 2)
    >>> observations, actions = torch.zeros(8, 5, 4), torch.zeros(8, 5, dtype=torch.long)
    >>> def log_prob(policy, observation, action):
    ...     return torch.distributions.Categorical(logits=policy(observation)).log_prob(action)
    >>> scored = rlvar.torch.per_step_scores(log_prob, policy, observations, actions)
    >>> scored
    StepScores((8, 5, 10), all 10 parameters of Linear)
    >>> scored.rollouts(rewards=torch.ones(8, 5))
    Rollouts(N=8, T=5, D=10, lengths 5 to 5)
    """
    memory = _check.positive_integer("memory", memory)
    if sketch is not None and not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a Sketch or None, got {type(sketch).__name__}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_distributions_unchecked())
        if isinstance(params, Module):
            module = unwrapped(params)
            stack.enter_context(still(module))
            function, parameters = _of_module(log_prob_fn, module), _detached(named(module))
        else:
            module, function, parameters = None, log_prob_fn, _detached(params)
        steps = _Steps.of(observations, actions, lengths, next(iter(parameters.values())))
        used, size = _first_step(function, parameters, steps)
        scores_of = f"all {_size(parameters):,} parameters"
        if module is not None:
            scores_of = described(module, named(module))
            if len(used) < len(parameters):
                parameters = {name: parameters[name] for name in used}
                count = f"{_size(parameters):,}"
                scores_of = (
                    f"all {count} parameters of {name_of(module)} that its log-probabilities depend on"
                )
        scores, logp = _in_chunks(function, parameters, steps, sketch, memory, size)
    shape = steps.shape
    return StepScores(scores.reshape(*shape, -1), logp.reshape(shape), scores_of, sketch, steps.lengths)


@dataclass(frozen=True)
class _Steps:
    """S steps: each tensor of observations and actions is (S, ...)."""

    observations: Any
    actions: Any
    shape: tuple[int, ...]  # (N, T), or (S,) if packed
    lengths: NDArray[np.int64] | None
    device: torch.device

    @classmethod
    def of(cls, observations: Any, actions: Any, lengths: ArrayLike | None, like: torch.Tensor) -> _Steps:
        """Check the arrays and make them tensors, floating-point ones of the precision of `like`."""
        counts = None if lengths is None else _counts(lengths)
        given = {"actions": actions, "observations": observations}
        given = {name: _mapped(name, tree, partial(_tensor, like.dtype)) for name, tree in given.items()}
        shape: tuple[int, ...] = ()

        def flat(name: str, tensor: torch.Tensor) -> torch.Tensor:
            nonlocal shape
            axes = 2 if counts is None else 1
            wanted = "(N, T, ...)," if counts is None else f"({counts.sum()}, ...), the sum of lengths,"
            if shape:
                wanted = f"({', '.join(map(str, shape))}, ...), as actions,"
            leading = tuple(tensor.shape[:axes])
            if len(leading) < axes or leading != (shape or leading):
                raise ValueError(f"{name} must have shape {wanted} got {tuple(tensor.shape)}")
            if counts is not None and leading[0] != counts.sum():
                hint = "; padded steps (N, T, ...) go without lengths" if tensor.ndim > 1 else ""
                raise ValueError(f"{name} must have shape {wanted} got {tuple(tensor.shape)}{hint}")
            shape = leading
            return tensor.reshape(-1, *tensor.shape[axes:])

        flattened = {name: _mapped(name, tree, flat) for name, tree in given.items()}
        if 0 in shape:
            raise ValueError(f"actions must have at least one step, got shape {shape}")
        return cls(flattened["observations"], flattened["actions"], shape, counts, like.device)

    def __len__(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, rows: int | slice) -> tuple[Any, Any]:
        """Observations and actions of some steps, on the device of the parameters."""
        trees = ("observations", self.observations), ("actions", self.actions)
        observation, action = (
            _mapped(name, tree, lambda _, tensor: tensor[rows].to(self.device)) for name, tree in trees
        )
        return observation, action


def _mapped(name: str, tree: Any, function: Callable[[str, Any], Any]) -> Any:
    """Apply a function of name and leaf to each leaf of mappings and tuples."""
    if isinstance(tree, Mapping):
        return {key: _mapped(f"{name}[{key!r}]", value, function) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_mapped(f"{name}[{i}]", value, function) for i, value in enumerate(tree))
    return function(name, tree)


def tensors(name: str, tree: Any, like: torch.Tensor) -> Any:
    """Make tensors of arrays, dicts and tuples of them, where `like` is and of its precision if floating."""
    return _mapped(name, tree, lambda name, value: _tensor(like.dtype, name, value).to(like.device))


def _tensor(dtype: torch.dtype, name: str, value: Any) -> torch.Tensor:
    if isinstance(value, list) and value and all(isinstance(each, torch.Tensor) for each in value):
        value = torch.stack(value)
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
    else:
        try:
            array = np.ascontiguousarray(value)
        except ValueError as error:
            raise ValueError(
                f"{name} must be an array: pad rollouts to one length, or pack their steps and give lengths"
            ) from error
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}")
        array = array.astype(array.dtype.newbyteorder("="), copy=not array.flags.writeable)
        tensor = torch.from_numpy(array)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _counts(lengths: ArrayLike) -> NDArray[np.int64]:
    counts = np.asarray(lengths)
    if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise ValueError(f"lengths must be integers of at least 0, shape (N,), got {counts!r}")
    return counts.astype(np.int64)


def _detached(params: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if not isinstance(params, Mapping):
        kind = type(params).__name__
        raise TypeError(f"params must be a torch.nn.Module or a dict of tensors by name, got {kind}")
    if not params:
        raise ValueError("params must have at least one tensor")
    for name, tensor in params.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"params[{name!r}] must be a floating-point tensor, got {got}")
    return {name: tensor.detach() for name, tensor in params.items()}


def _size(parameters: Mapping[str, torch.Tensor]) -> int:
    return sum(each.numel() for each in parameters.values())


class _Bound(Module):
    """A function of a policy, an observation and an action, as a module for `functional_call`."""

    def __init__(self, function: Callable[[Any, Any, Any], Any], policy: Module) -> None:
        super().__init__()
        self.policy, self.functions = policy, (function,)  # a tuple: it may be a module itself

    def forward(self, observation: Any, action: Any) -> Any:
        return self.functions[0](self.policy, observation, action)


def _of_module(function: Callable[[Any, Any, Any], Any], policy: Module) -> Callable[[Any, Any, Any], Any]:
    bound = _Bound(function, policy)

    def call(parameters: Mapping[str, torch.Tensor], observation: Any, action: Any) -> Any:
        exchanged = {f"policy.{name}": tensor for name, tensor in parameters.items()}
        return functional_call(bound, exchanged, (observation, action))

    return call


def _one(value: Any) -> torch.Tensor:
    """Return the log-probability as a scalar."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"log_prob_fn must return a tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(
            f"log_prob_fn must return one log-probability, got shape {tuple(value.shape)}: it gets one "
            "observation and one action, and must add up independent coordinates of an action"
        )
    return value.reshape(())


def _first_step(
    function: Callable[[Any, Any, Any], Any], parameters: dict[str, torch.Tensor], steps: _Steps
) -> tuple[list[str], int]:
    """Return the parameters that the log-probability depends on, and the bytes that backward keeps a step."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        value = _one(function(leaves, *steps[0]))
        gradients: tuple[Any, ...] = (None,)
        if value.requires_grad:
            gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    used = [name for name, gradient in zip(leaves, gradients, strict=False) if gradient is not None]
    if not used:
        raise ValueError(
            "log_prob_fn does not depend on params: it must use those that it is given, as "
            "torch.func.functional_call(policy, params, (observation,)) does, without no_grad or detach"
        )
    return used, kept


def _in_chunks(
    function: Callable[[Any, Any, Any], Any],
    parameters: dict[str, torch.Tensor],
    steps: _Steps,
    sketch: Sketch | None,
    memory: int,
    kept: int,
) -> tuple[Float, Double]:
    """Return scores (S, D) and log-probabilities (S,)."""
    size = _size(parameters)
    double = all(tensor.dtype == torch.float64 for tensor in parameters.values())
    dtype = torch.float64 if double else torch.float32
    scores = np.empty(
        (len(steps), size if sketch is None else sketch.k), np.float64 if double else np.float32
    )
    logp = np.empty(len(steps))
    # A step holds its gradient, a copy of it on the way out, and what backward keeps twice over.
    chunk = max(1, memory // (3 * size * dtype.itemsize + 2 * kept))
    run = vmap(grad_and_value(lambda params, *step: _one(function(params, *step))), in_dims=(None, 0, 0))
    for start in range(0, len(steps), chunk):
        rows = slice(start, start + chunk)
        with torch.no_grad(), _vmap_explained():
            gradients, values = run(parameters, *steps[rows])
        logp[rows] = values.double().cpu().numpy()
        flat = {name: gradient.flatten(1).to(dtype) for name, gradient in gradients.items()}
        if sketch is None:
            column = 0
            for gradient in flat.values():
                scores[rows, column : column + gradient.shape[1]] = gradient.cpu().numpy()
                column += gradient.shape[1]
        else:
            scores[rows] = _sketched(sketch, flat, memory).cpu().numpy()
    return scores, logp


def _sketched(sketch: Sketch, flat: dict[str, torch.Tensor], memory: int) -> torch.Tensor:
    """Sketch (n, k) of gradients (n, size of the parameter) by its name."""
    first = next(iter(flat.values()))
    result = first.new_zeros(len(first), sketch.k)
    for name, gradient in flat.items():
        size = gradient.shape[1]
        block = max(1, memory // (4 * size * gradient.itemsize))
        for start in range(0, sketch.k, block):
            stop = min(start + block, sketch.k)
            directions = sketch.directions(
                name, (size,), start, stop, dtype=gradient.dtype, device=gradient.device
            )
            result[:, start:stop] += gradient @ directions.T
    return result


@contextlib.contextmanager
def _distributions_unchecked() -> Iterator[None]:
    """Switch the checks of torch.distributions off: they look at values, which vmap cannot."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextlib.contextmanager
def _vmap_explained() -> Iterator[None]:
    """Say what to do about what vmap cannot."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if "vmap" in message and (".item()" in message or "control flow" in message):
            raise ValueError(
                "log_prob_fn looks at the values of a tensor, which vmap cannot: it calls .item(), float() "
                "or one_hot, indexes x[action], or has an `if` on a tensor. In place of `if`, use "
                "torch.where; of x[action], x.gather(-1, action[None])[0] or the log_prob of a distribution; "
                "of one_hot, torch.arange(n) == action; of validate_args=True in a distribution, False"
            ) from error
        if "vmap" in message and "random" in message:
            raise ValueError(
                "log_prob_fn draws random numbers, which a log-probability does not need: take dropout or "
                "sampling out of it"
            ) from error
        raise
