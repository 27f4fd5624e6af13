"""Numbers and choices: each function returns what it checked, or raises an error that names the argument."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, TypeVar, cast, get_args

import numpy as np

from rlvar._check.arrays import floats

Function = TypeVar("Function", bound=Callable[..., Any])


def quiet(function: Function) -> Function:
    """Let a function compute alike whatever the caller's numpy error state: it checks its results itself."""

    @functools.wraps(function)
    def quietly(*args: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args, **options)

    return cast(Function, quietly)


def _number(name: str, value: Any) -> float:
    try:
        array = floats(name, value)
        if array.ndim or isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_:
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
    return float(array)


def confidence(value: float) -> float:
    """Return a confidence level strictly between 0 and 1."""
    level = _number("confidence", value)
    if not 0.0 < level < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {value!r}")
    return level


def discount(name: str, value: float) -> float:
    """Return a discount factor in [0, 1]."""
    factor = value if type(value) is float else _number(name, value)
    if not 0.0 <= factor <= 1.0:
        raise ValueError(f"{name} must lie in 0..1, got {value!r}")
    return factor


def bound(name: str, value: float) -> float:
    """Return an upper bound >= 0, which may be infinite."""
    number = _number(name, value)
    if not number >= 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    return number


def positive_integer(name: str, value: int) -> int:
    """Return an integer >= 1."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def seed(value: int) -> int:
    """Return the seed of a random generator, an integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"seed must be an integer, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"seed must not be negative, got {value}")
    return int(value)


def names(name: str, value: Any) -> list[str]:
    """Return one name, or a sequence of them without repetition, as a list; at least one."""
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [None]
    if not all(isinstance(each, str) for each in given):
        raise TypeError(f"{name} must be a name or a sequence of names, got {value!r}")
    if not given:
        raise ValueError(f"{name} must name at least one, got none")
    return list(dict.fromkeys(given))


def choice(name: str, value: Any, options: Any) -> None:
    """Raise unless `value` is among `options`, a sequence or a Literal."""
    known = get_args(options) or options
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not any(
        value == each if isinstance(value, str) or (whole and isinstance(each, int)) else value is each
        for each in known
    ):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def non_negative_number(name: str, value: float) -> float:
    """Return a finite number >= 0."""
    number = _number(name, value)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return number


def positive_number(name: str, value: float) -> float:
    """Return a finite number > 0."""
    number = _number(name, value)
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be finite and positive, got {value!r}")
    return number


def degrees_of_freedom(name: str, count: int, ddof: int) -> int:
    """Return what a sum of `count` squares is divided by; at least one must be left."""
    if count <= ddof:
        raise ValueError(f"{name} must have at least ddof + 1 = {ddof + 1} entries that count, got {count}")
    return count - ddof


def threads(value: int | None) -> int | None:
    """Return the number of threads asked for, or None for the default."""
    if value is None:
        return None
    count = positive_integer("num_threads", value)
    return min(count, 1024)
