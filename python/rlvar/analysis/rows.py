"""Rows of a result by the names of their estimators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Row = TypeVar("_Row", bound=_Named)
_Any = TypeVar("_Any", covariant=True)


class _HasRows(Protocol[_Any]):
    @property
    def rows(self) -> tuple[_Any, ...]: ...


class ByName:
    """A result with `rows`: iterate over them, or index by an estimator's name."""

    def __getitem__(self: _HasRows[_Row], name: str) -> _Row:
        for row in self.rows:
            if row.name == name:
                return row
        known = ", ".join(row.name for row in self.rows) or "none yet"
        raise KeyError(f"{name!r} was not compared; these were: {known}")

    def __iter__(self: _HasRows[_Row]) -> Iterator[_Row]:
        return iter(self.rows)

    def __len__(self: _HasRows[_Named]) -> int:
        return len(self.rows)

    def __contains__(self: _HasRows[_Named], name: object) -> bool:
        return any(row.name == name for row in self.rows)
