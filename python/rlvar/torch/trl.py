"""One line that watches a run of TRL's GRPOTrainer or RLOOTrainer.

    watcher = rlvar.torch.trl.watch(trainer)
    trainer.train()

Of every tenth batch of completions, right after it is sampled and before the model moves, it takes the scores
of the final norm's gain, which cost a forward pass, and of every fiftieth the gradients of all parameters.
Two monitors pool them over the steps. Their numbers go where the trainer logs, as ``rlvar/...``,
and to a page at the end. Training is the same, to the bit, as without it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlvar import _check
from rlvar._types import Double
from rlvar.monitor import Monitor
from rlvar.rollouts import Rollouts
from rlvar.torch.probe import Probe
from rlvar.torch.trl_batches import (
    ChangedError,
    Generated,
    Inside,
    OfRewardFunctions,
    gathered,
    is_rloo,
    penalised,
    replaced,
)
from rlvar.torch.unit_weights import FITTED
from rlvar.weights.estimators import Estimator, EstimatorLike, OwnEstimator, estimator, resolve

if TYPE_CHECKING:
    from rlvar.reporting.run import RunReport

__all__ = ["Watcher", "watch"]

_log = logging.getLogger("rlvar")


def watch(
    trainer: Any,
    *,
    every: int = 10,
    whole_every: int | None = 50,
    estimators: EstimatorLike | Sequence[EstimatorLike] | None = None,
    window: int = 50,
    page: str | os.PathLike[str] | None = None,
) -> Watcher:
    """Watch a trainer: measure the noise of its gradient while it trains.

    Parameters
    ----------
    trainer : trl.GRPOTrainer or trl.RLOOTrainer
        Before ``trainer.train()``.
    every : int, default 10
        One in this many batches of completions is scored with the gain of the final norm: for the on-policy
        test and the ratios of estimators.
    whole_every : int or None, default 50
        One in this many is measured by the gradients of all parameters: for the noise scale. None for never.
    estimators : estimator or sequence of estimators, optional
        What is compared. The first is the reference; by default the one in use, then "single", "rloo" and
        "grpo", of which all parameters measure the one in use alone: each other one would cost as much again.
        Those that you name are measured by all parameters too.
    window : int, default 50
        How many of the last measurements are pooled, as for `Monitor`.
    page : path, optional
        Where the page goes that is written when the training ends; ``rlvar.html`` in the trainer's output
        directory by default. It needs ``pip install 'rlvar[report]'``.

    Returns
    -------
    Watcher

    Raises
    ------
    TypeError, ValueError
        For a trainer of another kind, or one that is already watched.

    Notes
    -----
    Where a version of TRL keeps its batches elsewhere, a warning says so, and the reward functions are
    wrapped instead; `Watcher.notes` says what that lacks. An error while it measures is one warning, and the
    training goes on.

    Examples
    --------
    >>> import rlvar.torch.trl
    >>> def main(trainer):
    ...     watcher = rlvar.torch.trl.watch(trainer, every=10)
    ...     trainer.train()
    ...     print(watcher.report())
    """
    import trl

    if not isinstance(trainer, (trl.GRPOTrainer, trl.RLOOTrainer)):
        raise TypeError(f"trainer must be a GRPOTrainer or RLOOTrainer of TRL, got {type(trainer).__name__}")
    if any(isinstance(each, _Callback) for each in trainer.callback_handler.callbacks):
        raise ValueError("trainer is already watched; call watcher.remove() first")
    return Watcher(trainer, every, whole_every, estimators, window, page)


class Watcher:
    """What `watch` returns.

    Attributes
    ----------
    monitor : Monitor
        Of the gain of the final norm.
    whole : Monitor or None
        Of all trainable parameters.
    notes : list of str
        What is measured, and which of the trainer's settings are left out.
    seconds : float
        Time that it has taken so far.
    error : Exception or None
        The last error while it measured.
    """

    def __init__(
        self,
        trainer: Any,
        every: int,
        whole_every: int | None,
        estimators: EstimatorLike | Sequence[EstimatorLike] | None,
        window: int,
        page: str | os.PathLike[str] | None,
    ) -> None:
        self._trainer = trainer
        self._every = _check.positive_integer("every", every)
        self._whole_every = (
            None if whole_every is None else _check.positive_integer("whole_every", whole_every)
        )
        in_use = in_use_by(trainer)
        compared = (
            [in_use, *map(estimator, ("single", "rloo", "grpo"))]
            if estimators is None
            else resolve(estimators)
        )
        compared = list({each.name: each for each in compared}.values())
        for each in compared:
            if "values" in each.needs:
                raise ValueError(
                    f"estimator {each.name!r} needs values, which {type(trainer).__name__} does not have"
                )
        args = trainer.args
        self.notes = notes_on(trainer, in_use.name)
        fitted = [each.name for each in compared if each.base in FITTED]
        if fitted and whole_every is not None:
            self.notes.append(
                f"Gradients of all parameters do not measure {', '.join(fitted)}: these need scores."
            )
        if compared[0].name != in_use.name:
            self.notes.append(f"Ratios are relative to {compared[0].name}.")
        self._compared, self._window = compared, window
        self._in_whole = compared[:1] if estimators is None else compared
        self._in_whole = [each for each in self._in_whole if each.base not in FITTED]
        if not self._in_whole:
            self._whole_every = None
        self._of_trl = any(isinstance(each, OwnEstimator) and each.given is _of_trl for each in compared)
        self._page = Path(args.output_dir, "rlvar.html") if page is None else Path(page)
        self._start()
        self._step_rollouts = (
            args.per_device_train_batch_size
            * args.gradient_accumulation_steps
            * trainer.accelerator.num_processes
        )
        self._source: Inside | OfRewardFunctions | None = None
        try:
            self._source = Inside(trainer, self._take)
        except ChangedError as changed:
            self._fall_back(changed)
        self._undo_log = replaced(trainer, "log", self._around_log)
        self._callback = _Callback(self)
        trainer.add_callback(self._callback)

    def _start(self) -> None:
        """Begin with nothing seen."""
        reference, window = self._compared[0].name, self._window
        self.monitor = Monitor(self._compared, reference=reference, window=window)
        self.whole = None
        if self._whole_every is not None:
            self.whole = Monitor(self._in_whole, reference=self._in_whole[0].name, window=window)
        policy = policy_of(self._trainer.args)
        self._probe = Probe(self._trainer.model, monitor=self.monitor, whole=self.whole, **policy)
        self._batches, self._last_step = 0, -1
        self._fresh = False
        self.seconds = 0.0
        self.error: Exception | None = None

    def metrics(self) -> dict[str, float]:
        """Return what is logged: the monitors' numbers, under names that begin with ``rlvar/``."""
        found = {f"rlvar/final_norm/{key}": value for key, value in self.monitor.metrics().items()}
        if self.whole is not None:
            found |= {f"rlvar/all/{key}": value for key, value in self.whole.metrics().items()}
        found["rlvar/seconds"] = self.seconds
        return found

    def report(self) -> RunReport:
        """What the run says so far, as a page: print it, or ``.to_html(path)``."""
        from rlvar.reporting.run import run_report

        monitors = [each for each in (self.whole, self.monitor) if each is not None and each.steps]
        return run_report(monitors or self.monitor)

    def remove(self) -> None:
        """Stop watching: the trainer is as it was before."""
        if self._callback not in self._trainer.callback_handler.callbacks:
            return
        if self._source is not None:
            self._source.remove()
        self._undo_log()
        self._trainer.remove_callback(self._callback)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the monitors to a folder, as it is done with each checkpoint."""
        monitors = {"monitor": self.monitor, "whole": self.whole}
        state: dict[str, Any] = {
            name: None if each is None else each.state_dict() for name, each in monitors.items()
        }
        state |= zip(_COUNTS, (self._batches, self._last_step, self.seconds), strict=True)
        torch.save(state, Path(folder, _FILE))

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint, as it is done where training resumes from the output directory."""
        state = torch.load(Path(folder, _FILE), weights_only=True)
        begun = state["monitor"]
        wanted = [each.name for each in self._compared], self._window
        if begun["names"] and (begun["names"][: begun["asked"]], begun["window"]) != wanted:
            raise ValueError(
                f"{Path(folder, _FILE)} has estimators {', '.join(begun['names'])} and window "
                f"{begun['window']}, not those of this watcher: watching starts anew"
            )
        self.monitor = self._probe.monitor = Monitor.from_state(begun, self._compared)
        if self.whole is not None and state["whole"] is not None:
            self.whole = self._probe.whole = Monitor.from_state(state["whole"], self._compared)
        self._batches, self._last_step, self.seconds = (state[name] for name in _COUNTS)

    def _take(self, make: Callable[[], Generated]) -> None:
        """Measure a batch of completions, if its turn has come."""
        index, self._batches = self._batches, self._batches + 1
        of_part = index % self._every == 0
        of_whole = self._whole_every is not None and index % self._whole_every == 0
        step = self._trainer.state.global_step
        if not (of_part or of_whole) or step == self._last_step:  # another batch of the same step
            return
        self._last_step = step
        with self._guarded("measuring a batch"):
            rows = gathered(make)
            given: dict[str, Any] = {
                "groups": rows.groups,
                "behavior_logp": rows.behavior_logp,
                "values": rows.advantages if self._of_trl else None,
                "step": step,
                "batch": self._step_rollouts,
            }
            tokens = rows.input_ids, rows.attention_mask, rows.response_mask, rows.rewards
            if of_part:
                self._probe.update(*tokens, **given)
            if of_whole:
                self._probe.gradients(*tokens, self._in_whole, **given)
            self._fresh = True

    @contextlib.contextmanager
    def _guarded(self, doing: str) -> Iterator[None]:
        """Let no error of ours end a training: the first is a warning."""
        began = perf_counter()
        try:
            yield
        except ChangedError as changed:
            if self._source is not None:
                self._source.remove()
            self._fall_back(changed)
        except Exception as error:
            if self.error is None:
                warnings.warn(
                    f"rlvar failed while {doing}; the training goes on ({type(error).__name__}: {error})",
                    stacklevel=2,
                )
            self.error = error
        finally:
            self.seconds += perf_counter() - began

    def _fall_back(self, changed: ChangedError) -> None:
        import trl

        said = f"This version of TRL ({trl.__version__}) keeps its batches elsewhere: {changed}"
        self._source = None
        try:
            self._source = OfRewardFunctions(self._trainer, self._take)
        except ChangedError as also:
            said += f". rlvar cannot measure: {also}"
        else:
            said += f". {self._source.lacks}"
        self.notes.append(said)
        warnings.warn(said, stacklevel=3)

    def _around_log(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def log(logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
            if self._fresh and self._trainer.model.training:  # not among what an evaluation logs
                self._fresh = False
                with self._guarded("adding to the log"):
                    logs.update(self.metrics())
            return original(logs, *args, **kwargs)

        return log

    def _resume(self, args: Any, state: Any) -> None:
        """Begin, from what was saved with the checkpoint that the training goes on from."""
        if state.global_step and self._batches:  # loaded before
            return
        self._start()
        if not state.global_step:
            return
        last = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        folders = [Path(each) for each in (args.resume_from_checkpoint,) if isinstance(each, str)] + [last]
        for folder in folders:
            if (folder / _FILE).exists():
                self.load(folder)
                return
        _log.warning(
            "rlvar starts anew: %s has no %s; to go on, call watcher.load(checkpoint)", folders[-1], _FILE
        )

    def _save(self, args: Any, state: Any) -> None:
        folder = Path(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        if folder.is_dir():
            self.save(folder)

    def _write_page(self) -> None:
        if not self.monitor.steps and not (self.whole is not None and self.whole.steps):
            return
        try:
            self.report().to_html(self._page)
        except ImportError as error:
            _log.warning("rlvar wrote no page: %s", error)


_FILE = "rlvar_monitor.pt"
_COUNTS = ("batches", "last_step", "seconds")


class _Callback(transformers.TrainerCallback):
    """Where a training begins, saves and ends."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with self._watcher._guarded("resuming"):
            self._watcher._resume(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self._watcher._guarded("saving"):
                self._watcher._save(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self._watcher._guarded("writing the page"):
                self._watcher._write_page()


def in_use_by(trainer: Any) -> Estimator:
    """Return the estimator that a trainer's settings make: what it multiplies a completion's score by."""
    if is_rloo(trainer):
        return (
            OwnEstimator("rloo-whitened", given=_of_trl)
            if trainer.normalize_advantages
            else estimator("rloo")
        )
    if getattr(trainer, "multi_objective_aggregation", None) == "normalize_then_sum":
        base: Estimator = OwnEstimator("gdpo", given=_of_trl)
    elif trainer.scale_rewards == "none":
        base = estimator("dr-grpo")
    else:
        base = estimator("grpo", scale=trainer.scale_rewards)
    if trainer.loss_type not in ("grpo", "sapo"):
        return base

    def by_length(rollouts: Rollouts) -> Double:
        return base.weights(rollouts) / np.maximum(rollouts.token_counts, 1)[:, None]

    return OwnEstimator(f"{base.base}-over-length", given=by_length)


def _of_trl(rollouts: Rollouts) -> Double:
    """The advantages that TRL computed, which come as values."""
    assert rollouts.values is not None
    return rollouts.values


def policy_of(args: Any) -> dict[str, Any]:
    """What `Probe` should know of how completions are sampled."""
    names = ("temperature", "top_k", "top_p", "min_p")
    given = {name: getattr(args, name) for name in names}
    given |= {name: value for name, value in (args.generation_kwargs or {}).items() if name in names}
    given["top_k"] = given["top_k"] if given["top_k"] and given["top_k"] > 0 else None  # 0 and -1 are none
    return given


def notes_on(trainer: Any, in_use: str) -> list[str]:
    """Say what is measured, and which of a trainer's settings are left out."""
    args, beta = trainer.args, trainer.beta
    weights = trainer.reward_weights.tolist()
    terms = [f"{weight:g} x {name}" for weight, name in zip(weights, trainer.reward_func_names, strict=True)]
    notes = [
        f"The estimator in use is {in_use}.",
        f"The reward of a completion is {' + '.join(terms)}. A completion without one is left out, and so is "
        "one that this leaves alone in its group.",
    ]
    if beta and penalised(trainer):
        notes.append(f"The KL penalty (beta={beta:g}) is in the rewards, minus its mean over each group.")
    elif beta:
        notes.append(f"The KL penalty (beta={beta:g}) is not measured.")
    if args.repetition_penalty != 1:
        notes.append(
            f"repetition_penalty={args.repetition_penalty:g} is not part of the policy that is measured."
        )
    warping = {name: value for name, value in policy_of(args).items() if value not in (None, 1.0)}
    warping.pop("temperature", None)
    if warping:
        said = ", ".join(f"{name}={value:g}" for name, value in warping.items())
        notes.append(
            f"{said}: part of the policy that is measured, because it sampled with them; TRL's loss ignores "
            "them."
        )
    if args.num_iterations > 1 or args.steps_per_generation > args.gradient_accumulation_steps:
        notes.append(
            "Completions are measured when they are sampled, not again at later steps that use them."
        )
    for name, off in _NOT_MEASURED.items():
        value = getattr(args, name, off)
        if value != off:
            notes.append(f"{name}={value} is not measured.")
    return notes


#: Settings of the loss that change a gradient, with what turns them off.
_NOT_MEASURED = {
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
}
