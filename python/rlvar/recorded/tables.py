"""Files of rows, each a dictionary: JSON Lines and Parquet, recognised by their content.

Each row comes with its name for errors, "line 3" or "row 3".
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from rlvar.files import open_regular

Row = dict[str, Any]
Rows = Iterator[tuple[str, Row]]
Kind = Literal["jsonl", "parquet", "pickle"]

_LINE = 1 << 28  # bytes of one line
_ROWS = 64  # of Parquet at a time


def kind_of(place: Path) -> Kind | None:
    """Return the kind of a file of recorded rollouts; None for any other file."""
    if place.is_dir():
        return None
    with open_regular(place) as file:
        head = file.read(512)
        if head[:4] == b"PAR1":
            return "parquet"
        if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
            return "pickle"
        if head[:4] == b"PK\3\4":
            return "pickle" if _of_torch(file) else None
        text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        return "jsonl" if text[:1] in (b"{", b"[") else None


def _of_torch(file: IO[bytes]) -> bool:
    try:
        return any(os.path.basename(name) == "data.pkl" for name in zipfile.ZipFile(file).namelist())
    except zipfile.BadZipFile:
        return False


def rows_of(place: Path, kind: Kind, trust_pickle: bool) -> Rows:
    """Give the rows of a file."""
    if kind == "pickle":
        return _pickled(place, trust_pickle)
    return _of_parquet(place) if kind == "parquet" else _of_lines(place)


def _of_lines(place: Path) -> Rows:
    with open_regular(place) as file:
        number = 0
        while line := file.readline(_LINE):
            number += 1
            if len(line) == _LINE:
                raise ValueError(f"line {number} is longer than {_LINE >> 20} MiB")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError:
                raise ValueError(f"line {number} is nested too deeply") from None
            except ValueError as error:
                cut = "" if line.endswith(b"\n") else "; the file may have been cut off there"
                raise ValueError(f"line {number} is not JSON: {error}{cut}") from None
            if not isinstance(row, dict):
                what = type(row).__name__
                raise ValueError(f"line {number} is a {what}, but JSON Lines have one object per line")
            yield f"line {number}", row


def _of_parquet(place: Path) -> Rows:
    try:
        import pyarrow.parquet as parquet
        import pyarrow.types as kinds
    except ImportError:
        raise ImportError(f"{place}: reading Parquet needs pyarrow: pip install 'rlvar[parquet]'") from None
    number = 0
    with open_regular(place) as stream, parquet.ParquetFile(stream) as file:
        for batch in file.iter_batches(_ROWS):
            columns = [_values(column, kinds) for column in batch.columns]
            for values in zip(*columns, strict=True):
                yield f"row {number}", dict(zip(batch.schema.names, values, strict=True))
                number += 1


def _values(column: Any, kinds: Any) -> list[Any]:
    """Return the values of a column; lists of numbers as arrays."""
    kind = column.type
    if (kinds.is_list(kind) or kinds.is_large_list(kind)) and (
        kinds.is_integer(kind.value_type) or kinds.is_floating(kind.value_type)
    ):
        return [each.values.to_numpy(zero_copy_only=False) if each.is_valid else None for each in column]
    values: list[Any] = column.to_pylist()
    return values


def _pickled(place: Path, trusted: bool) -> Rows:
    if not trusted:
        raise ValueError(
            "it is a pickle, and loading one runs any code in it; if you trust whoever wrote it, pass "
            "--trust-pickle (trust_pickle=True)"
        )
    try:
        reader = importlib.import_module("rlvar.torch.pickles")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"{place}: reading it needs torch: pip install 'rlvar[torch]'") from None
    rows: Rows = reader.rows(place)
    return rows
