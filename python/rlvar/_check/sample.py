"""How much each rollout counts, and which rollouts are independent units."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar._check.arrays import _array, _shape_error, non_negative
from rlvar._types import Double


class Samples(NamedTuple):
    """How much each rollout counts: by its weight p.

    Weights are in units of 2**exponent, the largest in [1, 2): results do not depend on their common
    factor, and a power of two changes no digit of them.
    """

    weight: Double | None  # p (N,), or None for ones
    v1: float  # sum of p
    v2: float  # sum of p**2
    pairs: float  # v1**2 - v2
    exponent: int

    @property
    def effective_size(self) -> float:
        """Number of equally weighted rollouts whose mean has the variance of the weighted mean (Kish)."""
        return self.v1**2 / self.v2 if self.v2 > 0 else 0.0

    def normaliser(self, ddof: int) -> float:
        """Return what sums of squares are divided by, as numpy.cov has it; some weight must be left."""
        if self.v1 == 0:
            raise ValueError("sample_weight must not be all zero")
        return divisor(self.v1, self.v2, self.pairs, ddof)


class Units(NamedTuple):
    """Independent units: unit u holds the rollouts members[offsets[u]:offsets[u + 1]]."""

    members: NDArray[np.int64]  # (N,)
    offsets: NDArray[np.int64]  # (U + 1,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rollouts in each unit (U,)."""
        return np.diff(self.offsets)

    def among(self, rows: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Units]:
        """Return which units hold some of `rows` (N,), and what they hold of them."""
        kept = rows[self.members]
        unit = np.repeat(np.arange(len(self)), np.diff(self.offsets))[kept]
        present, sizes = np.unique(unit, return_counts=True)
        return present, Units(self.members[kept], np.concatenate([[0], np.cumsum(sizes)]))

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum `values` (N, ...) over the rollouts of each unit, giving (U, ...)."""
        return np.add.reduceat(values[self.members], self.offsets[:-1], axis=0)


def samples(sample_weight: ArrayLike | None, n: int) -> Samples:
    """Return how much each of N rollouts counts, by its weight p."""
    if sample_weight is None:
        return Samples(None, float(n), float(n), float(n) * (n - 1), 0)
    p = non_negative("sample_weight", sample_weight, n)
    exponent = int(np.frexp(p.max(initial=0.0))[1]) - 1  # ones stay ones
    with np.errstate(under="ignore"):
        p = np.ldexp(p, -exponent)
        v1, v2 = p.sum(), np.square(p).sum()
        # Of the largest the others are summed: v1 minus it would lose their digits.
        others = v1 - p
        if n:
            others[np.argmax(p)] = np.delete(p, np.argmax(p)).sum()
        pairs = (p * others).sum()
    return Samples(p, float(v1), float(v2), float(pairs), exponent)


def units(groups: Sequence[Hashable] | NDArray[Any] | None, n: int) -> Units:
    """Return the independent units: groups of rollouts by label, or single rollouts."""
    if groups is None:
        return Units(np.arange(n), np.arange(n + 1))
    found = some_units(groups, n)
    if len(found) < 2:
        raise ValueError("groups must have at least two different labels, got one")
    return found


def some_units(groups: Sequence[Hashable] | NDArray[Any] | None, n: int) -> Units:
    """Return the same, maybe of one group."""
    if groups is None:
        return units(None, n)
    labels = group_labels(groups, n)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    return Units(np.argsort(labels, kind="stable"), offsets)


def few(units: int, unit: str) -> str | None:
    """Say what fewer than ten units mean; `unit` is what one is called."""
    if units >= 10:
        return None
    return f"only {units} {unit}s: {'no intervals' if units < 3 else 'intervals may be far too narrow'}"


def warn_few(units: int, unit: str) -> None:
    """Warn of fewer than ten units, where the caller's caller is."""
    note = few(units, unit)
    if note is not None:
        warnings.warn(note, UserWarning, stacklevel=3)


def divisor(v1: float, v2: float, pairs: float, ddof: int) -> float:
    """Return v1 - ddof * v2 / v1 of weights p, with v1 = sum(p), v2 = sum(p**2), pairs = v1**2 - v2.

    `pairs` is the sum of p[i] p[j] over i != j, and has all its digits where one weight dominates.
    """
    if isinstance(ddof, bool) or not isinstance(ddof, (int, np.integer)) or ddof < 0:
        raise ValueError(f"ddof must be a non-negative integer, got {ddof!r}")
    if ddof == 0:
        return v1
    result = (pairs - (ddof - 1) * v2) / v1 if v1 > 0 else 0.0
    if result <= 0:
        count = v1**2 / v2 if v2 > 0 else 0.0
        raise ValueError(f"ddof must leave degrees of freedom, got ddof = {ddof} for {count:.6g} samples")
    return result


def group_labels(groups: Sequence[Hashable] | NDArray[Any], n: int) -> NDArray[np.int64]:
    """Number arbitrary hashable labels (N,) in the order of their first appearance; none may be missing."""
    return named_groups(groups, n)[0]


def named_groups(
    groups: Sequence[Hashable] | NDArray[Any], n: int
) -> tuple[NDArray[np.int64], tuple[Hashable, ...]]:
    """Return the numbers (N,) of such labels, and the label that each number stands for (U,)."""
    labels: Any = groups
    if hasattr(groups, "__array__"):
        array = _array("groups", groups)
        if array.ndim != 1:
            raise _shape_error("groups", f"(N,) = ({n},)", array.shape)
        labels = array.tolist()
    if isinstance(labels, (Set, Mapping)) or not hasattr(labels, "__len__"):
        raise TypeError(f"groups must be a sequence of labels, got {type(groups).__name__}")
    if len(labels) != n:
        raise _shape_error("groups", f"(N,) = ({n},)", (len(labels),))
    seen: dict[Hashable, int] = {}
    if set(map(type, labels)) <= {int, str}:  # the short way: none can be missing
        return np.array([seen.setdefault(label, len(seen)) for label in labels], np.int64), tuple(seen)
    numbers = np.empty(n, np.int64)
    for i, label in enumerate(labels):
        try:
            plain = label.item() if hasattr(label, "item") else label  # scalar arrays hash by identity
            numbers[i] = seen.setdefault(plain, len(seen))
            missing = label is np.ma.masked or _missing(plain)
        except (TypeError, ValueError):
            raise TypeError(f"groups must be hashable labels, got groups[{i}] = {label!r}") from None
        if missing:
            raise ValueError(f"groups must have a label for each rollout, got groups[{i}] = {label!r}")
    return numbers, tuple(seen)


def _missing(label: Any) -> bool:
    """Whether a label, or a part of it, is None, NaN, NaT or NA."""
    if isinstance(label, tuple):
        return any(map(_missing, label))
    return label is None or type(label).__name__ == "NAType" or bool(label != label)
