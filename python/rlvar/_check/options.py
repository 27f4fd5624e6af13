"""Numbers and choices: each function returns what it checked, or raises an error that names the argument."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast, get_args

import numpy as np

from rlvar._check.arrays import floats

Function = TypeVar("Function", bound=Callable[..., Any])


def quiet(function: Function) -> Function:
    """Shield a function from the caller's numpy error state: it checks its results itself."""

    @wraps(function)
    def quietly(*args: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*args, **options)

    return cast(Function, quietly)


def documented(**shared: str) -> Callable[[Function], Function]:
    """Make a function quiet, and put into its docstring what others say too, for each ``%(name)s``."""

    def decorate(function: Function) -> Function:
        function = quiet(function)
        for name, text in shared.items():
            if function.__doc__:  # absent under python -OO
                function.__doc__ = function.__doc__.replace(f"%({name})s", text)
        return function

    return decorate


def _number(name: str, value: Any) -> float:
    try:
        array = floats(name, value)
        if array.ndim or isinstance(value, bool) or getattr(value, "dtype", None) == np.bool_:
            raise TypeError
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
    return float(array)


def _within(name: str, value: Any, *, good: Callable[[float], bool], wanted: str) -> float:
    """Return a number that is good."""
    number = value if type(value) is float else _number(name, value)
    if not good(number):
        raise ValueError(f"{name} must {wanted}, got {value!r}")
    return number


# Each takes the name of the argument and its value, `confidence` the value alone.
confidence = partial(_within, "confidence", good=lambda x: 0 < x < 1, wanted="lie strictly between 0 and 1")
discount = partial(_within, good=lambda x: 0 <= x <= 1, wanted="lie in 0..1")
bound = partial(_within, good=lambda x: x >= 0, wanted="not be negative")  # may be infinite
non_negative_number = partial(_within, good=lambda x: 0 <= x < math.inf, wanted="be finite and not negative")
positive_number = partial(_within, good=lambda x: 0 < x < math.inf, wanted="be finite and positive")


def clip(value: Any) -> tuple[float, float]:
    """Return how far below and above 1 ratios may lie: a pair of numbers >= 0, or one for both."""
    pair = (value, value) if not isinstance(value, (tuple, list)) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"clip must be one number or a pair (below, above), got {value!r}")
    return bound("clip", pair[0]), bound("clip", pair[1])


def positive_integer(name: str, value: int, least: int = 1) -> int:
    """Return an integer >= `least`."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def boolean(name: str, value: Any) -> bool:
    """Return whether `value` is true; a string such as "no" is neither."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def text(name: str, value: Any) -> str:
    """Return a string that is not empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} must not be empty")
    return str(value)


def names(name: str, value: Any) -> list[str]:
    """Return one name, or a sequence of them without repetition, as a list; at least one."""
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [None]
    if not all(isinstance(each, str) for each in given):
        raise TypeError(f"{name} must be a name or a sequence of names, got {value!r}")
    if not given:
        raise ValueError(f"{name} must name at least one, got none")
    return list(dict.fromkeys(given))


def choice(name: str, value: Any, options: Any) -> Any:
    """Return what is among `options`, a sequence or a Literal."""
    known = get_args(options) or options
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not any(
        value == each if isinstance(value, str) or (whole and isinstance(each, int)) else value is each
        for each in known
    ):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def threads(value: int | None) -> int | None:
    """Return the number of threads asked for, or None for the default."""
    return None if value is None else min(positive_integer("num_threads", value), 1024)
