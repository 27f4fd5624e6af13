"""Results as a data frame: pandas' where that is installed, else polars'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from rlvar.stats.estimate import Estimate, Result


def frame(columns: Mapping[str, Any]) -> Any:
    """Return a DataFrame of columns, sequences of one length."""
    for package in ("pandas", "polars"):
        try:
            module = import_module(package)
        except ImportError:
            continue
        return module.DataFrame(dict(columns))
    raise ImportError("to_frame needs pandas or polars: pip install pandas")


def columns_of(rows: Iterable[Result], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return a column for each name, and of an `Estimate` three: NAME, NAME_low and NAME_high."""
    found: dict[str, list[Any]] = {}
    taken = list(rows)
    for name in names:
        values = [getattr(row, name) for row in taken]
        found[name] = [each.value if isinstance(each, Estimate) else each for each in values]
        for end in ("low", "high") if any(isinstance(each, Estimate) for each in values) else ():
            found[f"{name}_{end}"] = [getattr(each, end, math.nan) for each in values]
    return found
