"""Rollouts out of Minari data sets: recorded episodes, scored under a policy of yours."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from rlvar._types import Double
from rlvar.rollouts import Rollouts
from rlvar.torch.inputs import still
from rlvar.torch.sketch import Sketch
from rlvar.torch.steps import per_step_scores, tensors


def minari_rollouts(
    dataset: Iterable[Any],
    log_prob_fn: Callable[[Any, Any, Any], torch.Tensor],
    params: Mapping[str, torch.Tensor] | torch.nn.Module,
    *,
    value_fn: Callable[[Any], torch.Tensor] | None = None,
    sketch: Sketch | None = None,
    memory: int = 1 << 30,
) -> Rollouts:
    """Return the episodes of a Minari data set as rollouts, with their scores under a policy.

    Parameters
    ----------
    dataset : minari.MinariDataset, or iterable of its episodes
        For some of the episodes, ``dataset.sample_episodes(100)`` or a list of them.
    log_prob_fn, params, sketch, memory
        As in `per_step_scores`. Observations and actions are dicts and tuples where the spaces are.
    value_fn : callable, optional
        ``value_fn(observations)``: values (n,) of n observations, tensors (n, ...). They become `values`, and
        where an episode was cut, `next_values`. Without it what comes after a cut counts as 0: the return is
        then that up to the time limit.

    Returns
    -------
    Rollouts
        One rollout per episode, with `terminated` and `truncated` apart. An episode that ends without either
        mark is truncated.

    Raises
    ------
    ValueError, TypeError
        As for `per_step_scores`, and for anything but episodes.

    Notes
    -----
    Another policy than this one may have recorded the data: see `on_policy_test`.

    Examples
    --------
    >>> import minari, rlvar.torch  # doctest: +SKIP
    >>> dataset = minari.load_dataset("D4RL/pointmaze/umaze-v2")  # doctest: +SKIP
    >>> rollouts = rlvar.torch.minari_rollouts(dataset, log_prob, policy)  # doctest: +SKIP
    """
    if not isinstance(dataset, Iterable) or isinstance(dataset, str):
        hint = (
            "minari.load_dataset(...)"
            if isinstance(dataset, str)
            else "a Minari data set or a list of episodes"
        )
        raise TypeError(f"dataset must be {hint}, got {dataset!r}")
    episodes = list(dataset)
    fields = "observations", "actions", "rewards", "terminations", "truncations"
    for episode in episodes:
        if not all(hasattr(episode, field) for field in fields):
            raise TypeError(f"dataset must give episodes of Minari, got {type(episode).__name__}")
    episodes = [episode for episode in episodes if len(episode.rewards)]
    if len(episodes) < 2:
        raise ValueError(f"dataset must have at least 2 episodes with steps, got {len(episodes)}")
    lengths = np.array([len(episode.rewards) for episode in episodes])
    # An episode of T steps has T + 1 observations.
    before = _joined([_cut(episode.observations, slice(None, -1)) for episode in episodes])
    actions, rewards, terminated, truncated = (
        _joined([getattr(episode, field) for episode in episodes]) for field in fields[1:]
    )
    scored = per_step_scores(
        log_prob_fn, params, before, actions, lengths=lengths, sketch=sketch, memory=memory
    )
    last = lengths.cumsum() - 1
    truncated[last] |= ~terminated[last]
    values, next_values = None, np.zeros(len(rewards))
    if value_fn is not None:
        after = _joined([_cut(episode.observations, slice(-1, None)) for episode in episodes])
        like = next(iter(params.parameters() if isinstance(params, torch.nn.Module) else params.values()))
        values, next_values[last] = _values(value_fn, before, like), _values(value_fn, after, like)
    return scored.rollouts(
        rewards, terminated=terminated, truncated=truncated, values=values, next_values=next_values
    )


def _values(function: Callable[[Any], Any], observations: Any, like: torch.Tensor) -> Double:
    """Values (n,) of n observations, in evaluation mode if they come from a module."""
    batch = tensors("observations", observations, like)
    with contextlib.ExitStack() as stack, torch.no_grad():
        if isinstance(function, torch.nn.Module):
            stack.enter_context(still(function))
        values = function(batch)
    count = len(_leaf(batch))
    if not isinstance(values, torch.Tensor) or values.numel() != count:
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(
            f"value_fn must return a tensor with a value for each of {count} observations, got {got}"
        )
    return values.double().cpu().numpy().reshape(-1)


def _leaf(tree: Any) -> Any:
    """The first array of dicts and tuples."""
    while isinstance(tree, (Mapping, tuple)):
        tree = next(iter(tree.values() if isinstance(tree, Mapping) else tree))
    return tree


def _cut(tree: Any, rows: slice) -> Any:
    """Rows of each array of dicts and tuples."""
    if isinstance(tree, Mapping):
        return {name: _cut(each, rows) for name, each in tree.items()}
    return tuple(_cut(each, rows) for each in tree) if isinstance(tree, tuple) else np.asarray(tree)[rows]


def _joined(trees: list[Any]) -> Any:
    """Concatenate arrays, or dicts and tuples of them."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {name: _joined([tree[name] for tree in trees]) for name in first}
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*trees, strict=True))
    return np.concatenate([np.asarray(tree) for tree in trees])
