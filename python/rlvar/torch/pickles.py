"""Rollouts that trainers save with torch: verl's ``tq_batch.pt`` and slime's debug rollout data.

Loading them runs code in the file: `rlvar.read_recorded` asks for trust first. The result is rows of numpy
arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlvar.files import open_regular


def rows(place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rollouts of a file as rows."""
    with open_regular(place) as stream:
        try:
            data = torch.load(stream, map_location="cpu", weights_only=False)
        except ModuleNotFoundError as error:
            raise ImportError(f"{place}: it needs {error.name}, with which it was saved") from None
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
    if isinstance(data, Mapping) and "samples" in data:
        return _of_samples(data["samples"])
    if isinstance(data, Mapping) and "tensordict" in data:
        return _of_columns(data["tensordict"], data.get("keys"))
    names = ", ".join(str(name)[:40] for name in list(data)[:8]) if isinstance(data, Mapping) else ""
    what = f"a dictionary of {names}" if isinstance(data, Mapping) else f"a {type(data).__name__}"
    raise ValueError(f"it has {what}; verl's have tensordict and keys, slime's have samples")


def _of_samples(samples: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(samples, (list, tuple)):
        raise ValueError(f"its samples are a {type(samples).__name__}, not a list")
    for number, sample in enumerate(samples):
        if not isinstance(sample, Mapping):
            raise ValueError(f"sample {number} is a {type(sample).__name__}, not a dictionary")
        yield f"sample {number}", {str(name): _plain(value) for name, value in sample.items()}


def _of_columns(table: Any, keys: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give rows of columns, which are tensors, padded or nested, or lists."""
    read = {str(name): _rows_of(table[name]) for name in list(table.keys())}
    columns = {name: column for name, column in read.items() if column is not None}
    if keys is not None:
        columns["uid"] = list(keys)  # uid_session_index
    for name in ("prompts", "responses", "response_mask"):
        if name not in columns:
            raise ValueError(f"its tensordict has no {name}, but {', '.join(sorted(columns))}")
    n = len(columns["responses"])
    for number in range(n):
        row = {name: column[number] for name, column in columns.items() if len(column) == n}
        attended, prompts = row.get("attention_mask"), row["prompts"]
        # Padded prompts are so on the left.
        if isinstance(attended, np.ndarray) and len(attended) == len(prompts) + len(row["responses"]):
            row["prompts"] = prompts[attended[: len(prompts)].astype(bool)]
        yield f"rollout {number}", row


def _rows_of(column: Any) -> list[Any] | None:
    """Return a column's values by row; None for what has no rows."""
    if isinstance(column, torch.Tensor):
        return [_plain(each) for each in column.unbind()] if column.ndim else None
    if isinstance(column, np.ndarray):
        return list(column) if column.ndim else None
    if hasattr(column, "tolist"):  # tensordict's stacks of other things than tensors
        column = column.tolist()
    return [_plain(each) for each in column] if isinstance(column, (list, tuple)) else None


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().to("cpu")
        value = (value.float() if value.is_floating_point() else value).numpy()
        return value.item() if value.ndim == 0 else value
    return value
