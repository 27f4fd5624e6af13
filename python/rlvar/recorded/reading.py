"""From the rows of a file to recorded rollouts: each value checked, each error with its line."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.files import door
from rlvar.recorded import values
from rlvar.recorded.container import Ids, Marks, Prompt, RecordedRollouts
from rlvar.recorded.formats import Format, Names, chosen, format_of, get, listed_names
from rlvar.recorded.tables import Row, kind_of, rows_of

_KINDS = {"jsonl": "JSON Lines", "parquet": "Parquet", "pickle": "a pickle"}
_OF_KEY = re.compile(r"(.+)_\d+_\d+")  # verl's keys are uid_session_index


def is_recorded(path: str | PathLike[str]) -> bool:
    """Whether a file has recorded rollouts, by its content: JSON Lines, Parquet or a pickle."""
    place = Path(os.fsdecode(path))
    with door(place):
        return kind_of(place) is not None


def read_recorded(
    path: str | PathLike[str],
    *,
    prompt: str | None = None,
    response: str | None = None,
    tokens: str | None = None,
    mask: str | None = None,
    reward: str | None = None,
    per_token_reward: str | None = None,
    group: str | None = None,
    logp: str | None = None,
    step: int | None = None,
    trust_pickle: bool = False,
) -> RecordedRollouts:
    """Read rollouts as a trainer wrote them: token ids or text, with rewards.

    Recognised by their columns are NeMo-RL's ``train_data_step*.jsonl``, open-instruct's
    ``*_rollouts_*.jsonl``, verl's ``tq_batch.pt`` and ``rollout_data_dir``, slime's
    ``--save-debug-rollout-data``, the completions of TRL and ms-swift. Any other JSON Lines or Parquet file
    is read by usual names of columns, or by the names given here.

    Parameters
    ----------
    path : path-like
        JSON Lines, Parquet (it needs pyarrow) or a pickle of torch's.
    prompt, response : str, optional
        Columns of prompts and responses: token ids, text or, of prompts, chat messages.
    tokens, mask : str, optional
        In place of them: a column of prompt and response together, in token ids, and one that is 1 for each
        token that the policy chose and the loss sees. With `response`, a mask of the response's tokens.
    reward : str, optional
        Column of rewards. Several, such as "format,accuracy", are summed; "reward.accuracy" is a key of a
        dictionary in the column reward. Numbers for each token are summed.
    per_token_reward : str, optional
        Column of a reward for each token of the response.
    group : str, optional
        Column of labels that rollouts of one prompt share. By default rollouts of equal prompts are a group.
    logp : str, optional
        Column of log-probabilities that the sampler recorded. Pass "none" for any column to ignore it.
    step : int, optional
        Take rollouts of this training step alone.
    trust_pickle : bool, default False
        Whether to load a pickle, which runs any code in the file.

    Returns
    -------
    RecordedRollouts

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file, or a line of it, does not fit: the message names it, and what is missing.
    ImportError
        If the file needs a package that is not installed.

    Examples
    --------
    >>> import json, pathlib, rlvar, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "mine.jsonl")
    ...     rows = [{"prompt": "1+1=", "completion": x, "reward": float(x == "2")} for x in "2322"]
    ...     _ = path.write_text("\\n".join(map(json.dumps, rows)))
    ...     rlvar.read_recorded(path)
    RecordedRollouts(N=4, text, 1 groups, JSON Lines)
    """
    place, at = Path(os.fsdecode(path)), ""
    given = {
        "prompt": prompt,
        "response": response,
        "tokens": tokens,
        "mask": mask,
        "reward": reward,
        "per_token_reward": per_token_reward,
        "group": group,
        "logp": logp,
    }
    for name, value in given.items():
        if value is not None:
            _check.text(name, value)
    if step is not None:
        _check.positive_integer("step", step, 0)
    trust_pickle = _check.boolean("trust_pickle", trust_pickle)
    with door(place, lambda: at):
        kind = kind_of(place)
        if kind is None:
            raise ValueError("it has no recorded rollouts: rlvar reads JSON Lines, Parquet and pickles")
        builder = None

        for where, whole in rows_of(place, kind, trust_pickle):
            for row in _single(whole):
                at = f"{where}: "
                if builder is None:
                    at = ""
                    builder = _Builder(row, given, step, str(place), _KINDS[kind])
                    at = f"{where}: "
                builder.add(row)
                at = ""
        if builder is None:
            raise ValueError("it has no rollouts")
        return builder.result()


def _single(row: Row) -> Iterator[Row]:
    """Give the rollouts of a row.

    NeMo-RL puts each value into a list of one, and ms-swift all rollouts of a step into one row of lists.
    """
    tokens, prompts = row.get("token_ids"), row.get("prompt")
    if isinstance(tokens, list) and len(tokens) == 1 and isinstance(tokens[0], list):
        yield {
            name: value[0] if isinstance(value, list) and len(value) == 1 else value
            for name, value in row.items()
        }
    elif isinstance(prompts, list) and prompts and isinstance(prompts[0], (str, list)):
        every = {name: value for name, value in row.items() if isinstance(value, list)}
        n = len(prompts)
        wrong = next((name for name, value in every.items() if len(value) != n), None)
        if wrong is not None:
            raise ValueError(f"{wrong} has {len(every[wrong])} values, but prompt {n}")
        for i in range(n):
            yield {**row, **{name: value[i] for name, value in every.items()}}
    else:
        yield row


class _Builder:
    """Gathers rows."""

    def __init__(
        self, first: Row, given: Mapping[str, str | None], step: int | None, source: str, kind: str
    ) -> None:
        self.form: Format = format_of(list(first))
        self.columns: dict[str, Names] = chosen(self.form, first, given)
        if not self.columns.get("reward") and not self.columns.get("per_token_reward"):
            found = listed_names(first)
            raise ValueError(f"there is no column of rewards among {found}; name it with --reward (reward=)")
        self.step, self.source, self.kind = step, source, kind
        self.rewards: list[float] = []
        self.labels: list[Any] = []
        self.steps: list[Any] = []
        self.ids: list[Ids] = []
        self.masks: list[Marks] = []
        self.texts: list[tuple[Prompt, str]] = []
        self.token_rewards: list[Double] = []
        self.logp: list[Double | None] = []
        self.temperatures: set[float] = set()
        self.before = 0  # tokens before the first that the policy chose, of the last rollout
        self.called_tools = 0
        self.out_of_loss = 0

    def value(self, row: Row, field: str) -> Any:
        """Return what a row has for a field, None for nothing."""
        names = self.columns.get(field, ())
        return get(row, names[0]) if names else None

    def name(self, field: str) -> str:
        return self.columns[field][0]

    def add(self, row: Row) -> None:
        """Add one rollout."""
        step = self.value(row, "step")
        if self.step is not None:
            if not self.columns.get("step"):
                raise ValueError("it has no column of training steps")
            if step != self.step:
                return
        self.steps.append(values.label_of("step", step))
        tokens = self.add_tokens(row)
        self.add_reward(row, tokens)
        label = self.value(row, "group")
        if self.columns.get("group"):
            if label is None:
                raise ValueError(f"{self.name('group')} is missing")
            label = values.label_of(self.name("group"), label)
            if self.form.name.startswith("verl") and isinstance(label, str):
                key = _OF_KEY.fullmatch(label)
                label = key[1] if key else label
        self.labels.append(label if self.columns.get("group") else self.prompt_key())
        temperature = self.value(row, "temperature")
        if temperature is not None:
            self.temperatures.add(values.number(self.name("temperature"), temperature))
        called = self.value(row, "tools")
        self.called_tools += bool(any(called) if isinstance(called, list) else called)

    def add_tokens(self, row: Row) -> Marks | None:
        """Add the tokens or the text of a rollout; return which are of the response and which chosen."""
        prompt, response = self.value(row, "prompt"), self.value(row, "response")
        whole = self.value(row, "tokens")
        if self.columns.get("tokens"):
            ids = values.token_ids(self.name("tokens"), whole)
            mask = self.value(row, "mask")
            count = self.value(row, "response_length")
            if count is not None:
                response_tokens = values.whole_number("response_length", count, len(ids))
                prompt_tokens = len(ids) - response_tokens
            elif mask is None:
                raise ValueError("tokens need a mask of those that the policy chose; name its column (mask)")
            else:
                prompt_tokens = 0
        elif self.columns.get("response") and response is not None:
            if isinstance(response, str) or values.messages(response):
                self.texts.append((values.prompt_of(prompt), values.response_of(response)))
                return None
            ids = values.token_ids(self.name("response"), response)
            before = values.token_ids(self.name("prompt") if self.columns.get("prompt") else "prompt", prompt)
            prompt_tokens = len(before)
            ids = np.concatenate([before, ids])
            mask = self.value(row, "mask")
        elif self.columns.get("response"):
            raise ValueError(f"{self.name('response')} is missing")
        elif self.columns.get("prompt") and values.messages(prompt):
            if prompt[-1]["role"] != "assistant":
                role = values.seen(prompt[-1]["role"])
                raise ValueError(f"the last message of {self.name('prompt')} is of {role}, not a response")
            self.texts.append((values.prompt_of(prompt[:-1]), values.response_of(prompt[-1:])))
            return None
        else:
            return None
        live = np.zeros(len(ids), bool)
        live[prompt_tokens:] = True
        if mask is not None:
            marks = values.numbers(self.name("mask"), mask)
            if not np.isin(marks, (0.0, 1.0)).all():
                raise ValueError(f"{self.name('mask')} must be 0 or 1 for each token")
            values.lay(self.name("mask"), marks, live, live.copy(), prompt_tokens)
        self.before = int(np.argmax(live)) if live.any() else len(ids)
        if self.left_out(row):
            live[:] = False
            self.out_of_loss += 1
        if live[:1].any():
            raise ValueError("the response starts at the first token, without a prompt before it")
        end = int(np.flatnonzero(live)[-1]) + 1 if live.any() else max(self.before, 1)
        logp = self.by_token(row, "logp", live, prompt_tokens)
        if logp is not None and np.isnan(logp[live]).any():
            t = int(np.argmax(np.isnan(logp[live])))
            raise ValueError(f"{self.name('logp')} is not a number for token {t} of the response")
        self.logp.append(None if logp is None else logp[live])
        earned = self.by_token(row, "per_token_reward", live, prompt_tokens)
        if earned is not None:
            if not np.isfinite(earned).all():
                t, name = int(np.argmin(np.isfinite(earned))), self.name("per_token_reward")
                raise ValueError(f"{name} is not finite at token {t} of prompt and response")
            self.token_rewards.append(values.to_chosen(earned, live))
        elif self.columns.get("per_token_reward"):
            raise ValueError(f"{self.name('per_token_reward')} is missing")
        self.ids.append(ids[:end])
        self.masks.append(live[:end])
        return live

    def by_token(self, row: Row, field: str, live: Marks, prompt: int) -> Double | None:
        """Return the numbers of a field for all tokens of a rollout; None where it has none."""
        value = self.value(row, field)
        if value is None:
            return None
        result = np.zeros(len(live))
        values.lay(self.name(field), values.numbers(self.name(field), value), result, live, prompt)
        return result

    def left_out(self, row: Row) -> bool:
        """Whether the loss leaves out the whole rollout."""
        kept, removed = self.value(row, "kept"), self.value(row, "removed")
        return (kept is not None and values.number(self.name("kept"), kept) == 0) or removed is True

    def add_reward(self, row: Row, tokens: Marks | None) -> None:
        """Add the reward of a rollout: a number, the sum of several, or the sum of its tokens'."""
        if self.columns.get("per_token_reward") and tokens is None:
            raise ValueError("rewards of tokens need token ids, which the file lacks")
        names = self.columns.get("reward", ())
        if not names:
            self.rewards.append(float(self.token_rewards[-1].sum()))
            return
        parts = [values.number(name, get(row, name)) for name in names]
        # A reward function of TRL gives none for what it does not judge.
        counted = [part for part in parts if not math.isnan(part)]
        if not counted or not all(map(math.isfinite, counted)):
            what = "missing or NaN" if not counted else "not finite"
            raise ValueError(f"its reward ({' + '.join(names)}) is {what}; take that rollout out of the file")
        self.rewards.append(math.fsum(counted))

    def prompt_key(self) -> Any:
        """Return what is equal for equal prompts; None where there are none."""
        if self.texts:
            return json.dumps(self.texts[-1][0], sort_keys=True, default=str)
        if self.ids:
            return self.ids[-1][: self.before].tobytes()
        return None

    def result(self) -> RecordedRollouts:
        """Return all rollouts."""
        n = len(self.rewards)
        if n == 0:
            raise ValueError(f"it has no rollouts of step {self.step}")
        for found in (self.ids, self.texts):
            if len(found) not in (0, n):
                raise ValueError("some rows have token ids or text and others do not")
        if len(self.temperatures) > 1:
            low, high = min(self.temperatures), max(self.temperatures)
            raise ValueError(f"its rollouts come from several policies, of temperatures {low:g} to {high:g}")
        known = [each for each in self.logp if each is not None]
        return RecordedRollouts(
            source=self.source,
            format=self.form.name or self.kind,
            rewards=np.array(self.rewards),
            groups=self.groups(),
            ids=self.ids or None,
            masks=self.masks or None,
            texts=self.texts or None,
            token_rewards=self.token_rewards or None,
            behavior_logp=known if known and len(known) == n else None,
            temperature=next(iter(self.temperatures), None),
            notes=tuple(self.notes(len(known))),
        )

    def groups(self) -> NDArray[np.int64] | None:
        """Number the groups, those of different steps apart; None where all are of one rollout."""
        if any(label is None for label in self.labels):
            return None
        known: dict[Any, int] = {}
        pairs = zip(self.steps, self.labels, strict=True)
        numbers = np.array([known.setdefault(pair, len(known)) for pair in pairs], np.int64)
        return None if len(known) == len(numbers) else numbers

    def notes(self, known: int) -> Iterator[str]:
        """Give what a reader of any result should know."""
        n, rewards = len(self.rewards), self.columns.get("reward", ())
        if len(rewards) > 1:
            yield f"the reward is the sum of {', '.join(rewards)}; the trainer's weights are not recorded"
        by = self.columns.get("group") or ("equal prompts",)
        if all(label is not None for label in self.labels):
            alone = self.groups() is None
            yield f"groups are by {by[0]}" + ("; no two rollouts share one" if alone else "")
        steps = len(set(self.steps))
        if steps > 1:
            yield f"the rollouts come from {steps} training steps, so from as many policies; --step takes one"
        if 0 < known < n:
            yield f"{n - known} of {n} rollouts have no recorded log-probabilities, so none are used"
        if self.out_of_loss:
            yield (
                f"the trainer left {self.out_of_loss} of {n} rollouts out of the loss: their gradients are "
                "0, but their rewards count"
            )
        if self.called_tools:
            yield (
                f"{self.called_tools} of {n} rollouts called tools; the tools' output is not marked, so "
                "all tokens count as the policy's"
            )
        if self.form.note and self.texts:
            yield self.form.note
