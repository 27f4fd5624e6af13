r"""Gradients of independent units for several estimators, out of a whole language model.

For unit u, a group of K rollouts or a single one, and weights w that are known before any score is,

    g[u] = 1/K sum_{n in u} sum_t w[n,t] S[n,t] ,

which is one backward pass of 1/K sum w log pi(y). A unit of K rollouts takes a pass for each of E estimators
or, where they weigh each rollout by one number, a pass for each rollout, g[u] = 1/K sum_n w[n] s[n]:
whichever is fewer. Weights that vary within a rollout always take a pass of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.torch import inputs
from rlvar.torch.backward import Backward
from rlvar.torch.inputs import Network, Tokens
from rlvar.torch.language import TokenScores, _log_probs
from rlvar.torch.policy import Policy
from rlvar.torch.sequences import backward_of, not_finite
from rlvar.torch.sketch import Sketch
from rlvar.torch.unit_weights import weights_of
from rlvar.weights.estimators import EstimatorLike


@dataclass(frozen=True, eq=False, repr=False)
class UnitGradients(Mapping[str, Double]):
    """Gradients of units by estimator: what `unit_gradients` returns, a dict for `rlvar.compare_gradients`.

    ``rlvar.compare_gradients(found, **found.known)`` compares them.

    Attributes
    ----------
    sizes : ndarray of int, shape (U,)
        Number of rollouts of each unit. Units are in the order in which their labels appear first.
    scores_of : str
        What the gradients are with respect to, such as "all 162,368 parameters of LlamaForCausalLM".
    sketch : Sketch or None
        The sketch whose coordinates they are; None for exact coordinates.
    unbiased : tuple of str
        The estimators whose mean is the policy gradient by theory; weights of your own are not among them.
    passes : dict of int
        Number of backward passes that it took: "of units", one per unit and estimator, and "of rollouts".
    """

    sizes: NDArray[np.int64]
    scores_of: str
    sketch: Sketch | None
    unbiased: tuple[str, ...]
    passes: dict[str, int]
    _gradients: dict[str, Double] = field(repr=False)

    def __getitem__(self, name: str) -> Double:
        return self._gradients[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._gradients)

    def __len__(self) -> int:
        return len(self._gradients)

    @property
    def known(self) -> dict[str, Any]:
        """What `rlvar.compare_gradients` should know of them."""
        sketched = self.sketch is not None
        return {
            "unbiased": self.unbiased,
            "sizes": self.sizes,
            "scores_of": self.scores_of,
            "sketched": sketched,
        }

    def __repr__(self) -> str:
        d = next(iter(self.values())).shape[1]
        passes = " and ".join(f"{count} {what}" for what, count in self.passes.items() if count) or "none"
        return f"UnitGradients({', '.join(self)}; U={len(self.sizes)}, D={d}; backward passes: {passes})"


def unit_gradients(
    model: torch.nn.Module,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
    response_mask: ArrayLike,
    weights: Mapping[str, ArrayLike] | EstimatorLike | Sequence[EstimatorLike],
    groups: Sequence[Hashable] | NDArray[Any] | None,
    *,
    rewards: ArrayLike | None = None,
    sketch: Sketch | None = Sketch(1024),  # noqa: B008 - frozen
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    precondition: torch.optim.Optimizer | None = None,
    memory: int = 1 << 30,
    progress: bool | Callable[[int, int], object] = False,
    **others: Any,
) -> UnitGradients:
    r"""Compute the gradients of independent units for several estimators, without storing scores.

    With respect to all trainable parameters (the adapters alone, with LoRA), by one backward pass per unit
    and estimator or, for weights that are one number per rollout, by one per rollout, whichever is fewer. No
    more of a gradient than one parameter's is in memory, beside the coordinates that are kept.

    Parameters
    ----------
    model, input_ids, attention_mask, response_mask
        As for `token_scores`. Layers whose gradient checkpointing is on are checkpointed, without dropout.
    weights : dict of array_like, or estimators
        Weights of your own by the name of an estimator, such as the advantages of a trainer: (N,), or one a
        token in the shape of the response mask, or (N, T). Or what `rlvar.compare` takes, with `rewards`:
        ``("rloo", "grpo", ("mine", advantages))``.
    groups : sequence of hashable, shape (N,), or None
        Label (prompt) of each rollout; each group is a unit. None if each rollout is one.
    rewards : array_like, shape (N,), or one per token, optional
        For estimators by name.
    sketch : Sketch or None, default Sketch(1024)
        Size and seed of the count sketch; None for the exact coordinates, as many as there are parameters.
    temperature, top_k, top_p, min_p
        As the rollouts were sampled: they are part of the policy.
    precondition : torch.optim.Optimizer, optional
        An Adam that trains the model: gradients are then divided by its ``sqrt(v) + eps``, before the sketch.
    memory : int, default 2**30
        Bytes for what the rollouts that run together keep for their backward pass, beside the model and the
        result; one rollout runs in any case.
    progress : bool or callable, default False
        Whether to show a progress bar (it needs tqdm), or a function of what is done and the whole.
    **others
        The rest of `Rollouts` that estimators by name need, such as `values`.

    Returns
    -------
    UnitGradients
        A dict of arrays (U, D) by estimator.

    Raises
    ------
    ValueError, TypeError
        As `token_scores`; for weights of a wrong shape or not finite, estimators without what they need or
        fitted to scores, and gradients that are not finite.

    Notes
    -----
    The gradient of a unit is the mean over its rollouts of the sum over their tokens of w S: no division by
    lengths, unless your weights have it.

    Examples
    --------
    >>> import torch, rlvar.torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=1))
    >>> ids, mask, groups = torch.randint(20, (8, 6)), torch.ones(8, 4), [0] * 4 + [1] * 4
    >>> rewards = [0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 0.5]
    >>> rlvar.torch.unit_gradients(model, ids, None, mask, ("rloo", "grpo"), groups, rewards=rewards)
    UnitGradients(rloo, grpo; U=2, D=1024; backward passes: 4 of units)
    """
    policy = Policy(temperature, top_k, top_p, min_p)
    network, tokens = inputs.prepared(model, input_ids, attention_mask, response_mask)
    backward, scores_of = backward_of(network, policy, sketch, precondition)
    n = len(tokens.counts)
    units = _check.Units(np.arange(n), np.arange(n + 1))
    if groups is not None:
        labels = _check.group_labels(groups, n)
        units = _check.Units(np.argsort(labels, kind="stable"), np.append(0, np.cumsum(np.bincount(labels))))
    scored = partial(log_probs_alone, network, tokens, policy, memory)
    named, unbiased = weights_of(weights, tokens, scored, rewards, {"groups": groups, **others})
    # Equal weights have equal gradients.
    distinct = {each.tobytes(): each for each in named.values()}
    sets = np.stack(list(distinct.values()))
    together = 1
    if units.sizes.max() > 1:
        longest = tokens.chunk(np.argmax(tokens.lengths, keepdims=True)).to(network.device)
        together = max(1, memory // backward.kept(longest))
    jobs = [_Job.of(rows, sets, tokens, together) for rows in np.split(units.members, units.offsets[1:-1])]
    passes = {
        "of units": sum(len(used) for job in jobs for _, used in job.batches),
        "of rollouts": sum(len(job.alone) for job in jobs),
    }
    result = np.zeros((len(sets), len(jobs), backward.size))
    done, total = 0, sum(passes.values())
    with contextlib.ExitStack() as stack:
        report = _check.reporter(progress, total, " backward passes", stack)
        stack.enter_context(backward.ready())
        for u, job in enumerate(jobs):
            for used, shares in job.run(backward, network, tokens, sets):
                result[used, u] += shares / units.sizes[u]
                done += 1
                report(done, total)
    if not np.isfinite(result).all():
        raise not_finite(f"unit {np.argwhere(~np.isfinite(result))[0][1]}")
    found = dict(zip(distinct, result, strict=True))
    gradients = {name: found[each.tobytes()] for name, each in named.items()}
    return UnitGradients(units.sizes, scores_of, sketch, unbiased, passes, gradients)


@dataclass(frozen=True)
class _Job:
    """The backward passes of one unit."""

    batches: list[
        tuple[NDArray[np.int64], list[int]]
    ]  # rollouts that run together; sets that take a pass each
    alone: list[int]  # rollouts that take a pass each, for all sets in `shared`
    shared: list[int]  # sets that are one number per rollout

    @classmethod
    def of(cls, rows: NDArray[np.int64], sets: Double, tokens: Tokens, together: int) -> _Job:
        """Plan them for some rollouts and sets of weights (E, N, T), the fewest of them."""
        rows = rows[np.argsort(tokens.lengths[rows], kind="stable")]
        weights, live = sets[:, rows], tokens.live[rows]
        used = np.count_nonzero(weights, axis=2) > 0  # (E, n)
        constant = ((weights == weights[:, :, :1]) | ~live).all(axis=(1, 2))

        def batches(some: NDArray[np.bool_]) -> list[tuple[NDArray[np.int64], list[int]]]:
            needed = np.flatnonzero(used[some].any(axis=0))
            parts = [needed[start : start + together] for start in range(0, len(needed), together)]
            return [(rows[part], np.flatnonzero(some & used[:, part].any(axis=1)).tolist()) for part in parts]

        shared, alone = np.flatnonzero(constant).tolist(), rows[used[constant].any(axis=0)].tolist()
        if len(alone) <= sum(len(numbers) for _, numbers in batches(constant)):
            return cls(batches(~constant), alone, shared)
        return cls(batches(np.ones_like(constant)), [], [])

    def run(
        self, backward: Backward, network: Network, tokens: Tokens, sets: Double
    ) -> Iterator[tuple[list[int], Double]]:
        """Give sets and what one pass adds to their gradients (e, D), pass by pass."""
        for rows, used in self.batches:
            chunk = tokens.chunk(rows).to(network.device)
            values = backward.log_probs(chunk)[0]
            for e in used:
                weights = torch.from_numpy(sets[e, rows, : values.shape[1]]).to(values)
                yield [e], backward.gradient(values, weights, again=e != used[-1])[None]
        for n in self.alone:
            chunk = tokens.chunk(np.array([n])).to(network.device)
            gradient = backward.gradient(backward.log_probs(chunk)[0], 1.0)
            yield self.shared, sets[self.shared, n, :1] * gradient


def log_probs_alone(
    network: Network, tokens: Tokens, policy: Policy, memory: int, needed: bool
) -> TokenScores:
    """Return log-probabilities, if they are needed, without scores."""
    logp, squares = np.zeros((2, *tokens.live.shape))
    if needed:
        with inputs.still(network.module):
            logp, squares = _log_probs(network, tokens, policy, memory)
    return TokenScores.unscored(tokens, logp, squares)
