"""A probe for one's own training loop: a batch goes in, `Rollouts` come out, monitors are updated.

Of each batch it computes the token scores of a part of the model, which costs a pass or two, for a monitor of
that part; and less often, when it is asked to, the gradients of all parameters, for a monitor of the whole
model. Training is not affected: see `untouched`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.monitor import Monitor
from rlvar.reporting.run import RunReport, run_report
from rlvar.rollouts import Rollouts
from rlvar.torch.batch import Batch
from rlvar.torch.gathering import Processes, gradients_of_all, rollouts_of_all
from rlvar.torch.gradients import UnitGradients, log_probs_alone, unit_gradients
from rlvar.torch.inputs import Network, prepared
from rlvar.torch.language import Of, TokenScores, token_scores
from rlvar.torch.policy import Policy
from rlvar.torch.sketch import Sketch
from rlvar.weights.estimators import Estimator, EstimatorLike, OwnEstimator, resolve


class Probe:
    """A probe that measures the batches of a training loop, for monitors.

    Parameters
    ----------
    model : torch.nn.Module
        As for `token_scores`: the model that is trained, wrapped or not.
    monitor : Monitor, optional
        Updated by `update`, with scores of the part `of` of the model; by default ``Monitor()``.
    whole : Monitor, optional
        Updated by `gradients`, with gradients of all trainable parameters; by default ``Monitor()``. Its
        noise scale is the model's; that of a part, named by `scores_of`, is another number.
    of : {"final_norm", "last_block", "head", "all"}, default "final_norm"
        What the scores are with respect to, as in `token_scores`.
    sketch : Sketch, optional
        Coordinates of sketches. By default 64 for scores and 1,024 for gradients; the gain of the final norm
        is never sketched.
    temperature, top_k, top_p, min_p
        As the rollouts were sampled: they are part of the policy.
    memory : int, default 2**30
        As in `token_scores` and `unit_gradients`.
    process_group : torch.distributed.ProcessGroup, optional
        Of the processes that train together; the default group where torch.distributed is initialised. Each
        passes its own rows, as many as it has, at the same steps, and all get the rollouts of all, whose
        scores take memory on each. A group of one process measures alone.

    Attributes
    ----------
    model : torch.nn.Module
        As given.
    monitor, whole : Monitor
        As given, or those made here.
    seconds : float
        Time that the probe has taken so far.

    Notes
    -----
    Parameters, gradients, modes, hooks, random states and flags are left as they were, also after an error.
    An error on one process is an error on all.

    Examples
    --------
    >>> import torch, rlvar.torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=1))
    >>> probe = rlvar.torch.Probe(model)
    >>> ids, mask, groups = torch.randint(20, (8, 6)), torch.ones(8, 4), [0] * 4 + [1] * 4
    >>> rewards = [0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 1.0, float("nan")]
    >>> probe.update(ids, None, mask, rewards, groups=groups)
    Rollouts(N=7, T=4, D=8, lengths 4 to 4, 2 groups)
    >>> probe.gradients(ids, None, mask, rewards, ("rloo", "grpo"), groups=groups)
    UnitGradients(rloo, grpo; U=2, D=1024; backward passes: 4 of units)
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        monitor: Monitor | None = None,
        whole: Monitor | None = None,
        of: Of = "final_norm",
        sketch: Sketch | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        memory: int = 1 << 30,
        process_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        Network(model)  # raises for anything else
        _check.choice("of", of, Of)
        if sketch is not None and not isinstance(sketch, Sketch):
            raise TypeError(f"sketch must be a Sketch or None, got {type(sketch).__name__}")
        self.model = model
        self.monitor = Monitor() if monitor is None else monitor
        self.whole = Monitor() if whole is None else whole
        self.seconds = 0.0
        self._of, self._sketch = of, sketch
        self._policy = Policy(temperature, top_k, top_p, min_p)
        self._memory = _check.positive_integer("memory", memory)
        self._group = process_group

    def update(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None,
        response_mask: ArrayLike,
        rewards: ArrayLike,
        *,
        groups: Sequence[Hashable] | NDArray[Any] | None = None,
        behavior_logp: ArrayLike | None = None,
        values: ArrayLike | None = None,
        step: int | None = None,
        batch: int | None = None,
    ) -> Rollouts:
        """Score a batch with the part `of` of the model, and update `monitor`.

        Parameters
        ----------
        input_ids, attention_mask, response_mask
            As for `token_scores`. Of several processes, one may have no rows.
        rewards : array_like, shape (N,), or one per token
            Rows with NaN are left out, and with them a row that is then alone in its group.
        groups : sequence of hashable, shape (N,), optional
            Label (prompt) of each row, the same on all processes.
        behavior_logp, values : array_like, one per token, optional
            As in `TokenScores.rollouts`.
        step, batch : int, optional
            For `Monitor.update`: the trainer's number of the step, and the rollouts of a training batch where
            they are not those given, before any are left out.

        Returns
        -------
        Rollouts
            Those with a reward, with their scores. Of several processes they are packed, those of the first
            process first.

        Raises
        ------
        ValueError, TypeError
            As for `token_scores` and `Rollouts`; for a label of different prompts on different processes.
        RuntimeError
            Where another process has failed.
        """
        by_token = {"behavior_logp": behavior_logp, "values": values}
        with self._measuring():
            mine, whole, processes = self._batches(
                lambda: Batch.of(input_ids, attention_mask, response_mask, rewards, groups, by_token)
            )
            if processes is None:
                rollouts = self._scored(mine).rollouts(mine.rewards, groups=mine.groups, **mine.by_token)
            else:
                rollouts = rollouts_of_all(processes, mine, whole, self._scored)
            self.monitor.update(rollouts, step=step, batch=whole.in_use(batch))
        return rollouts

    def gradients(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None,
        response_mask: ArrayLike,
        rewards: ArrayLike,
        estimators: EstimatorLike | Sequence[EstimatorLike],
        *,
        groups: Sequence[Hashable] | NDArray[Any] | None = None,
        behavior_logp: ArrayLike | None = None,
        values: ArrayLike | None = None,
        step: int | None = None,
        batch: int | None = None,
    ) -> UnitGradients:
        """Compute the gradients of all trainable parameters by unit, and update `whole`.

        Parameters
        ----------
        input_ids, attention_mask, response_mask, rewards, groups, behavior_logp, values, step, batch
            As in `update`.
        estimators : estimator or sequence of estimators
            As the weights of `unit_gradients`; in pairs ``("mine", advantages)``, those of this process.

        Returns
        -------
        UnitGradients
            A unit is a group, or a rollout without groups.

        Raises
        ------
        ValueError, TypeError
            As `unit_gradients`, and as `update`.
        RuntimeError
            Where another process has failed.
        """
        wanted: list[Estimator] = []

        def given() -> Batch:
            wanted.extend(resolve(estimators, "estimators"))
            own = {
                f"weights of {each.name!r}": each.given
                for each in wanted
                if isinstance(each, OwnEstimator) and not callable(each.given)
            }
            by_token = {"behavior_logp": behavior_logp, "values": values, **own}
            return Batch.of(input_ids, attention_mask, response_mask, rewards, groups, by_token)

        with self._measuring():
            mine, whole, processes = self._batches(given)
            weights, others = _with_weights(wanted, whole)
            if processes is None:
                options = {**self._options, **others, "rewards": whole.rewards}
                found = unit_gradients(self.model, *whole.tokens, weights, whole.groups, **options)
            else:
                found = gradients_of_all(
                    processes, mine, whole, weights, others, self._log_probs, self._weighted
                )
            self.whole.update(found, **found.known, step=step, batch=whole.in_use(batch))
        return found

    def report(
        self, other: Probe | None = None, *, names: Sequence[str] = ("this run", "the other")
    ) -> RunReport:
        """Report on the run so far, from both monitors, maybe beside another probe's run.

        Parameters
        ----------
        other : Probe, optional
            That of another run.
        names : sequence of str
            What to call the two.

        Returns
        -------
        RunReport
            ``print`` shows it, ``.to_html(path)`` writes a page.

        Raises
        ------
        ValueError
            For a probe whose monitors have seen no step.
        """
        runs = [
            [each for each in (probe.whole, probe.monitor) if each.steps]
            for probe in (self, other)
            if probe is not None
        ]
        if not all(runs):
            raise ValueError("a report needs a monitor that has seen a step")
        return run_report(*runs, names=names)

    def _batches(self, given: Callable[[], Batch]) -> tuple[Batch, Batch, Processes | None]:
        """Return the rows of this process and those of all."""
        processes = Processes.of(self._group)
        parts, rank = ([given()], 0) if processes is None else (processes.together(given), processes.rank)
        mine, whole = parts[rank], Batch.joined(parts)
        if (alone := whole.left_alone).any():
            before = sum(map(len, parts[:rank]))
            mine = mine[np.flatnonzero(~alone[before : before + len(mine)])]
            whole = whole[np.flatnonzero(~alone)]
        whole.check()
        return mine, whole, processes

    @property
    def _options(self) -> dict[str, Any]:
        sketch = {} if self._sketch is None else {"sketch": self._sketch}
        return {**asdict(self._policy), "memory": self._memory, **sketch}

    def _scored(self, rows: Batch) -> TokenScores:
        return token_scores(self.model, *rows.tokens, of=self._of, **self._options)

    def _log_probs(self, rows: Batch) -> TokenScores:
        network, tokens = prepared(self.model, *rows.tokens)
        return log_probs_alone(network, tokens, self._policy, self._memory, True)

    def _weighted(self, rows: Batch, weights: dict[str, Double]) -> UnitGradients:
        return unit_gradients(self.model, *rows.tokens, weights, rows.groups, **self._options)

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """Leave everything as it was, and take the time."""
        device = next(self.model.parameters()).device
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what the trainer has asked for is not ours
        began = time.perf_counter()
        try:
            with untouched(self.model):
                yield
        finally:
            self.seconds += time.perf_counter() - began


@contextlib.contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Restore the state of all generators of random numbers, and keep the caller's cache of autocast apart.

    Autocast keeps the copies that it casts of parameters until its outermost context ends: none of ours.
    """
    devices = {each.device.index for each in model.parameters() if each.device.type == "cuda"}
    python, cached = random.getstate(), torch.is_autocast_cache_enabled()
    numpy = np.random.get_state()  # noqa: NPY002 - the global one, which a trainer may draw from
    with torch.random.fork_rng(devices=sorted(devices)), torch.inference_mode(False):
        torch.set_autocast_cache_enabled(False)
        try:
            yield
        finally:
            torch.set_autocast_cache_enabled(cached)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _with_weights(wanted: Sequence[Estimator], rows: Batch) -> tuple[list[EstimatorLike], dict[str, Double]]:
    """Return estimators with their own weights out of a batch, and what else it holds by token."""
    by_token, weights = dict(rows.by_token), list[EstimatorLike]()
    for each in wanted:
        own = by_token.pop(f"weights of {each.name!r}", None)
        weights.append(each if own is None else (each.name, own))
    return weights, by_token
