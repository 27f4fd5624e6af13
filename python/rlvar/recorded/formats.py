"""Which column has what, in the files of each trainer and in other files.

A format is recognised by columns that it has and others do not. Columns that the user names replace its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Names = tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """Columns of one kind of file: for each field those that may have it, the likeliest first.

    `needs` tells it from others. With `sums` the reward is the sum of what is called one, as TRL's functions
    are.
    """

    name: str
    needs: Names
    columns: Mapping[str, Names]
    sums: bool = False
    note: str = ""


_LOST = "the text lacks special tokens, such as the end of a response, which the policy saw and chose"

FORMATS = (
    Format(
        "NeMo-RL",
        ("token_ids", "token_loss_mask", "rewards"),
        {
            "tokens": ("token_ids",),
            "mask": ("token_loss_mask",),
            "kept": ("sample_loss_mask",),
            "reward": ("filtered_rewards", "rewards"),  # with dynamic sampling, rewards are of other rows too
            "logp": ("generation_logprobs", "prev_logprobs"),
        },
    ),
    Format(
        "open-instruct",
        ("prompt_tokens", "response_tokens", "reward"),
        {
            "prompt": ("prompt_tokens",),
            "response": ("response_tokens",),
            "reward": ("reward",),
            "group": ("prompt_idx",),
            "logp": ("logprobs",),
            "step": ("step",),
            "tools": ("request_info.tool_calleds",),
        },
    ),
    Format(
        "slime",
        ("tokens", "response_length", "reward"),
        {
            "tokens": ("tokens",),
            "response_length": ("response_length",),
            "mask": ("loss_mask",),
            "removed": ("remove_sample",),
            "reward": ("reward",),
            "group": ("group_index",),
            "logp": ("rollout_log_probs",),
        },
    ),
    Format(
        "verl",
        ("prompts", "responses", "response_mask"),
        {
            "prompt": ("prompts",),
            "response": ("responses",),
            "mask": ("response_mask",),
            "reward": ("rm_scores", "token_level_scores", "token_level_rewards"),
            "group": ("uid",),
            "logp": ("rollout_log_probs", "old_log_probs"),
        },
    ),
    Format(
        "verl's text",
        ("input", "output", "score"),
        {
            "prompt": ("input",),
            "response": ("output",),
            "reward": ("score",),
            "group": ("uid",),
            "step": ("step",),
        },
        note=_LOST,
    ),
    Format(
        "TRL's completions",
        ("prompt", "completion", "advantage"),
        {"prompt": ("prompt",), "response": ("completion",), "step": ("step",)},
        sums=True,
        note=_LOST,
    ),
    Format(
        "ms-swift's completions",
        ("prompt", "completion", "advantages"),
        {"prompt": ("prompt",), "response": ("completion",), "step": ("gen_step", "step")},
        sums=True,
        note=_LOST,
    ),
)

ANY = Format(
    "",
    (),
    {
        "prompt": ("prompt_ids", "prompt_token_ids", "prompt_tokens", "prompts", "prompt", "input",
                   "question", "query", "messages"),
        "response": ("response_ids", "response_token_ids", "response_tokens", "completion_ids",
                     "completion_token_ids", "responses", "response", "completion", "output"),
        "tokens": ("input_ids", "token_ids", "tokens"),
        "mask": ("response_mask", "loss_mask", "token_loss_mask", "completion_mask"),
        "reward": ("reward", "rewards", "score"),
        "group": ("uid", "group", "group_id", "group_index", "prompt_id", "prompt_idx", "problem_id"),
        "logp": ("behavior_logp", "logprobs", "rollout_log_probs", "rollout_logprobs",
                 "sampling_per_token_logps", "generation_logprobs", "old_per_token_logps", "old_log_probs"),
        "step": ("step", "global_step", "gen_step"),
        "temperature": ("temperature",),
    },
    sums=True,
)  # fmt: skip

_NO_REWARDS = ("step", "gen_step", "global_step", "advantage", "advantages", "idx", "index", "temperature")


def format_of(names: Sequence[str]) -> Format:
    """Return the format of a file with columns of such names."""
    return next((each for each in FORMATS if set(each.needs) <= set(names)), ANY)


def chosen(form: Format, row: Mapping[str, Any], given: Mapping[str, str | None]) -> dict[str, Names]:
    """Return the column of each field; of rewards perhaps several, to be summed.

    `row` is the first of the file; `given` are the columns that the user named, "none" for no such.
    """
    found: dict[str, Names] = {
        field: next(((name,) for name in names if has(row, name)), ())
        for field, names in form.columns.items()
    }
    named = {field: name for field, name in given.items() if name is not None}
    for field, name in named.items():
        columns = () if name == "none" else tuple(part.strip() for part in name.split(","))
        for column in columns:
            if not has(row, column):
                raise ValueError(f"{field}: there is no column {column!r}; there are {listed_names(row)}")
        if len(columns) > 1 and field != "reward":
            raise ValueError(f"{field}: one column is needed, got {name!r}")
        found[field] = columns
    if "prompt" in named or "response" in named:
        found["tokens"] = found["tokens"] if "tokens" in named else ()
    elif "tokens" in named or (form is ANY and found["tokens"] and found["mask"] and not _ids(row, found)):
        found |= {"prompt": (), "response": ()}
    elif form is ANY:
        found["tokens"] = ()
    if not found.get("reward") and "reward" not in named and not found.get("per_token_reward"):
        found["reward"] = _rewards(row, found, form is not ANY) if form.sums else ()
    return found


def _ids(row: Mapping[str, Any], found: Mapping[str, Names]) -> bool:
    """Whether the response is in token ids."""
    if not found["response"]:
        return False
    value = get(row, found["response"][0])
    return not isinstance(value, str) and len(value or ()) > 0 and not isinstance(value[0], (str, dict))


def _rewards(row: Mapping[str, Any], found: Mapping[str, Names], by_any_name: bool) -> Names:
    """Return what may be rewards: what is called so, or else, by any name, the only number."""
    taken = {name for names in found.values() for name in names} | set(_NO_REWARDS)
    numbers = tuple(
        name
        for name, value in row.items()
        if name not in taken
        and (value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)))
    )
    named = tuple(name for name in numbers if "reward" in name.lower())
    if named or not by_any_name:
        return named
    if len(numbers) > 1:
        names = ", ".join(numbers[:8])
        raise ValueError(f"which column is the reward: {names}? Name it (reward), or several to be summed")
    return numbers


def has(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a column; "a.b" is key b of the dictionary in column a."""
    if name in row:
        return True
    outer, _, rest = name.partition(".")
    inner = row.get(outer)
    return bool(rest) and isinstance(inner, dict) and has(inner, rest)


def get(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, None where there is none."""
    if name in row:
        return row[name]
    outer, _, rest = name.partition(".")
    inner = row.get(outer)
    return get(inner, rest) if rest and isinstance(inner, dict) else None


def listed_names(row: Mapping[str, Any]) -> str:
    """Return the names of the columns in one line."""
    names = [str(name)[:40] for name in list(row)[:12]]
    more = f" and {len(row) - len(names)} more" if len(row) > len(names) else ""
    return (", ".join(names) or "none") + more
