"""Batches out of TRL's GRPOTrainer and RLOOTrainer, where their rows are still in groups.

Tokens and rewards meet only within two methods, both private: `_generate_and_score_completions` returns the
tokens of this process, in groups, before they are shuffled, and `_calculate_rewards` the rewards of all
processes, a column a function. `Inside` wraps the two on one trainer. Where TRL has changed them,
`OfRewardFunctions` wraps the reward functions instead, which are public.

Row i of the n of process p belongs to group (p n + i) // num_generations.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlvar._types import Double
from rlvar.torch.gathering import Processes


class ChangedError(Exception):
    """TRL's own methods have changed, as the message says."""


@dataclass(frozen=True)
class Generated:
    """The n rows of this process, as `Probe` takes them."""

    input_ids: torch.Tensor  # (n, L)
    attention_mask: torch.Tensor  # (n, L)
    response_mask: torch.Tensor  # (n, Tc)
    rewards: Double  # (n,) NaN where no function gave one
    groups: NDArray[np.int64]  # (n,)
    behavior_logp: torch.Tensor | None = None  # (n, Tc) as the sampler recorded them
    advantages: torch.Tensor | None = None  # (n,) as TRL trains on them


#: What is relied on: how many arguments the methods take, and what the first returns.
_PARAMETERS = {"_generate_and_score_completions": 1, "_calculate_rewards": 4}
_KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")

#: Takes what makes a batch; it is made only if it is wanted.
Taker = Callable[[Callable[[], Generated]], None]


class Inside:
    """Two private methods of one trainer, wrapped."""

    lacks = ""

    def __init__(self, trainer: Any, take: Taker) -> None:
        for name, count in _PARAMETERS.items():
            method = getattr(trainer, name, None)
            if not callable(method):
                raise ChangedError(f"{type(trainer).__name__} has no {name}")
            try:
                inspect.signature(method).bind(*range(count))
            except TypeError as error:
                raise ChangedError(f"{type(trainer).__name__}.{name} takes other arguments") from error
        self._trainer, self._take = trainer, take
        self._rewards: torch.Tensor | None = None
        self._undo = [replaced(trainer, name, wrapper) for name, wrapper in self._wrappers.items()]

    @property
    def _wrappers(self) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
        return {
            "_generate_and_score_completions": self._around_generate,
            "_calculate_rewards": self._around_rewards,
        }

    def remove(self) -> None:
        for undo in self._undo:
            undo()

    def _around_rewards(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def calculate_rewards(*args: Any, **kwargs: Any) -> Any:
            self._rewards = original(*args, **kwargs)
            return self._rewards

        return calculate_rewards

    def _around_generate(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def generate_and_score_completions(*args: Any, **kwargs: Any) -> Any:
            self._rewards = None
            output = original(*args, **kwargs)
            if self._trainer.model.training:  # and no evaluation
                self._take(partial(self._batch, output, self._rewards))
            return output

        return generate_and_score_completions

    def _batch(self, output: Any, of_functions: Any) -> Generated:
        name = f"{type(self._trainer).__name__}._generate_and_score_completions"
        if not isinstance(output, dict) or (missing := [key for key in _KEYS if key not in output]):
            raise ChangedError(
                f"{name} returns no {', '.join(missing) if isinstance(output, dict) else 'dict'}"
            )
        if "pixel_values" in output:
            raise ValueError("prompts with images are not measured")
        n, accelerator = len(output["prompt_ids"]), self._trainer.accelerator
        wanted = accelerator.num_processes * n, len(self._trainer.reward_funcs)
        if not isinstance(of_functions, torch.Tensor) or tuple(of_functions.shape) != wanted:
            raise ChangedError(f"{name} does not take rewards of shape {wanted} from _calculate_rewards")
        mask = output["completion_mask"]
        tools = output.get("tool_mask")
        logp = output.get("sampling_per_token_logps")
        response = mask if tools is None else mask * tools
        if logp is not None and torch.isnan(logp[response.bool()]).any():
            logp = None  # the sampler did not record all of them
        mine = slice(accelerator.process_index * n, (accelerator.process_index + 1) * n)
        rewards = summed(self._trainer, of_functions)
        if penalised(self._trainer):
            rewards = with_penalty(rewards, output["advantages"], mine, self._trainer.num_generations)
        return Generated(
            torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
            torch.cat([output["prompt_mask"], mask], dim=1),
            response,
            rewards[mine],
            np.arange(len(rewards))[mine] // self._trainer.num_generations,
            logp,
            output["advantages"],
        )


class OfRewardFunctions:
    """The reward functions of one trainer, wrapped: they are given this process's rows, in groups."""

    lacks = (
        "rlvar reads the arguments of the reward functions instead: prompts are tokenised again, all tokens "
        "of a completion count as the policy's, and there are no log-probabilities of the sampler and no KL "
        "penalty in the rewards"
    )

    def __init__(self, trainer: Any, take: Taker) -> None:
        functions = trainer.reward_funcs
        for function in functions:
            if isinstance(function, torch.nn.Module) or inspect.iscoroutinefunction(function):
                raise ChangedError("reward models and asynchronous reward functions are not read")
        self._trainer, self._take = trainer, take
        self._rewards: dict[int, Any] = {}
        self._before = list(functions)
        self._ours = [self._around(i, function) for i, function in enumerate(functions)]
        functions[:] = self._ours

    def remove(self) -> None:
        functions = self._trainer.reward_funcs
        for i, (ours, before) in enumerate(zip(self._ours, self._before, strict=True)):
            if i < len(functions) and functions[i] is ours:
                functions[i] = before
        self._take = lambda make: None

    def _around(self, i: int, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def reward(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            self._rewards[i] = result
            if len(self._rewards) == len(self._ours):
                rewards, self._rewards = self._rewards, {}
                if self._trainer.model.training:
                    self._take(partial(self._batch, kwargs, rewards))
            return result

        return reward

    def _batch(self, given: dict[str, Any], rewards: dict[int, Any]) -> Generated:
        for name in ("prompts", "completion_ids"):
            if name not in given:
                raise ValueError(f"TRL gives reward functions no {name}")
        trainer = self._trainer
        prompts = [self._tokens(prompt) for prompt in given["prompts"]]
        completions = [list(ids) for ids in given["completion_ids"]]
        n, k, first = len(prompts), trainer.num_generations, max(map(len, prompts))
        longest = max(map(len, completions))
        ids = torch.zeros(n, first + longest, dtype=torch.int64)
        attended, response = torch.zeros_like(ids), torch.zeros(n, longest, dtype=torch.int64)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            whole = torch.tensor([*prompt, *completion])
            columns = slice(first - len(prompt), first + len(completion))
            ids[row, columns], attended[row, columns], response[row, : len(completion)] = whole, 1, 1
        columns_of = [
            [np.nan if each is None else float(each) for each in rewards[i]] for i in sorted(rewards)
        ]
        earned = summed(trainer, torch.tensor(columns_of, dtype=torch.float64).T)
        first_row = trainer.accelerator.process_index * n
        return Generated(ids, attended, response, earned, (first_row + np.arange(n)) // k)

    def _tokens(self, prompt: Any) -> list[int]:
        """Tokenise a prompt, a text or a conversation, as TRL does."""
        processor = self._trainer.processing_class
        if isinstance(prompt, str):
            return list(processor(text=[prompt])["input_ids"][0])
        found = processor.apply_chat_template(
            conversation=[prompt],
            chat_template=getattr(self._trainer, "chat_template", None),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **(getattr(self._trainer, "chat_template_kwargs", None) or {}),
        )
        return list(found["input_ids"][0])


def replaced(
    owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Callable[[], None]:
    """Put a wrapper in the place of one object's method, and return what undoes it."""
    own = vars(owner).get(name)
    original = getattr(owner, name)
    wrapper = around(original)
    active = True

    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return (wrapper if active else original)(*args, **kwargs)

    def undo() -> None:
        nonlocal active
        active = False  # for whoever has wrapped it since
        if vars(owner).get(name) is method:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

    setattr(owner, name, method)
    return undo


def summed(trainer: Any, of_functions: torch.Tensor) -> Double:
    """Rewards (M,) of functions (M, F), weighted and clipped as TRL does: NaN where no function gave one."""
    columns = of_functions.detach().double().cpu().numpy()
    weights = trainer.reward_weights.double().cpu().numpy()
    missing = np.isnan(columns)
    result: Double = (np.where(missing, 0.0, columns) * weights).sum(axis=1)
    result[missing.all(axis=1)] = np.nan
    clip = getattr(trainer, "reward_clip_range", None)
    return np.clip(result, *clip) if clip else result


def penalised(trainer: Any) -> bool:
    """Whether RLOO takes a KL penalty off the rewards that can be read back from its advantages."""
    return is_rloo(trainer) and trainer.beta != 0 and not trainer.normalize_advantages


def is_rloo(trainer: Any) -> bool:
    return hasattr(trainer, "normalize_advantages")


def with_penalty(rewards: Double, advantages: torch.Tensor, mine: slice, k: int) -> Double:
    """Rewards with this process's KL penalties, up to their mean over each group.

    Of m rewards of a group, RLOO's advantage is A_i = r_i - (sum of r - r_i) / (m - 1): so r_i is its group's
    mean plus A_i (m - 1) / m. The mean of the penalty is not in the advantages.
    """
    groups = rewards.reshape(-1, k)
    there = ~np.isnan(groups)
    count = there.sum(axis=1, keepdims=True)
    mean = np.where(there, groups, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    mean, share = (
        np.broadcast_to(each, groups.shape).ravel() for each in (mean, (count - 1) / np.maximum(count, 1))
    )
    result = rewards.copy()
    result[mine] = mean[mine] + advantages.detach().double().cpu().numpy() * share[mine]
    return np.where(np.isnan(rewards), np.nan, result)


def gathered(make: Callable[[], Generated]) -> Generated:
    """Make a batch; leave out rewards that are alone in their group, whichever process has the others.

    With none to compare with, nothing is trained on them. An error on one process is one on all.
    """
    rows: Generated | None = None

    def rewards() -> tuple[Double, NDArray[np.int64]]:
        nonlocal rows
        rows = make()
        return rows.rewards, rows.groups

    processes = Processes.of(None)
    every = [rewards()] if processes is None else processes.together(rewards)
    assert rows is not None
    groups = np.concatenate([labels[~np.isnan(earned)] for earned, labels in every])
    alone = np.bincount(groups, minlength=rows.groups.max() + 1)[rows.groups] < 2
    return replace(rows, rewards=np.where(alone, np.nan, rows.rewards))
