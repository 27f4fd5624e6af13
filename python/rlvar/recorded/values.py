"""The values of a row, checked: each error says what is wrong with which column."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlvar._types import Double
from rlvar.recorded.container import Ids, Marks, Prompt


def label_of(name: str, value: Any) -> Any:
    """Return what equal values can be told by."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, (str, int, float, type(None))) and value == value:
        return value
    raise ValueError(f"{name} must be a string or a number, got {seen(value)}")


def number(name: str, value: Any) -> float:
    """Return a number, NaN for None; of several their sum."""
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float, np.number, np.bool_)):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, (list, np.ndarray)):
        return float(numbers(name, value).sum())
    how = (
        f"; name one of its keys, as {name}.{next(iter(value))}" if isinstance(value, dict) and value else ""
    )
    raise ValueError(f"{name} must be a number, got {seen(value)}{how}")


def numbers(name: str, value: Any) -> Double:
    """Return numbers (n,), NaN for None."""
    try:
        array = np.asarray(value)
        if (
            array.dtype == object
            and array.ndim == 1
            and all(
                each is None or (isinstance(each, (int, float)) and not isinstance(each, bool))
                for each in value
            )
        ):
            array = np.array([math.nan if each is None else each for each in value], np.float64)
    except (ValueError, OverflowError):
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "biuf"):
        raise ValueError(f"{name} must be a list of numbers, got {seen(value)}")
    return array.astype(np.float64)


def token_ids(name: str, value: Any) -> Ids:
    """Return token ids (n,)."""
    try:
        array = np.asarray([] if value is None else value)
    except (ValueError, OverflowError):
        array = np.empty((0, 0))
    if value is None or array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} must be a list of token ids, got {seen(value)}")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        bad = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name} must be token ids of 0 or more, got {bad}")
    return array.astype(np.int64)


def whole_number(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 0 to {most}, got {seen(value)}")
    return int(value)


def lay(name: str, values: Double, into: NDArray[Any], live: Marks, prompt: int) -> None:
    """Put numbers of all tokens, of those of the response or of those chosen where they belong."""
    n = len(values)
    if n == len(into):
        into[:] = values
    elif n == len(into) - prompt:
        into[prompt:] = values
    elif n == np.count_nonzero(live):
        into[live] = values
    else:
        wanted = f"{len(into) - prompt} tokens of the response or {len(into)} in all"
        raise ValueError(f"{name} has {n} numbers, but there are {wanted}")


def to_chosen(values: Double, live: Marks) -> Double:
    """Return rewards (t,) of the tokens chosen: that of another goes to the last chosen before it."""
    earned = np.flatnonzero(values)
    if not len(earned):
        return np.zeros(np.count_nonzero(live))
    due = np.cumsum(live)[earned] - 1
    if live.any() and (due < 0).any():
        raise ValueError("a token before the response has a reward")
    result = np.zeros(np.count_nonzero(live))
    if len(result):
        np.add.at(result, due, values[earned])
    return result


def messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in value)
    )


def prompt_of(value: Any) -> Prompt:
    if isinstance(value, str) or messages(value):
        result: Prompt = value
        return result
    if value is None:
        return ""
    raise ValueError(f"the prompt must be text or chat messages, like the response, got {seen(value)}")


def response_of(response: Any) -> str:
    if isinstance(response, str):
        return response
    last = response[-1]
    if len(response) != 1 or last["role"] != "assistant" or not isinstance(last.get("content"), str):
        roles = ", ".join(str(each["role"])[:20] for each in response[:6])
        raise ValueError(
            f"a response must be text or one message of the assistant, got messages of {roles}; several "
            "turns need token ids with a mask"
        )
    return str(last["content"])


def seen(value: Any) -> str:
    """Describe a value briefly."""
    if isinstance(value, (list, np.ndarray)):
        every = value if isinstance(value, list) else value.tolist()
        odd = [each for each in every if isinstance(each, bool) or not isinstance(each, (int, float))]
        inner = odd or [each for each in every if isinstance(each, float)] or every
        return (
            f"a list with {seen(inner[0])}" if inner and not isinstance(inner[0], list) else "lists in a list"
        )
    if value is None:
        return "nothing"
    text = json.dumps(value, default=str) if isinstance(value, (str, int, float)) else type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."
