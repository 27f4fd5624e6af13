"""All validation and array preparation.

Each function takes what the user passed and returns what the kernels expect, or raises an error
that names the argument, what was wanted and what came. Nothing is allocated for results before
every argument has passed.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.floating[Any]]
Double = NDArray[np.float64]


class Steps(NamedTuple):
    """Which steps are live: at most one of the two is given."""

    lengths: NDArray[np.int64] | None  # (N,)
    mask: NDArray[np.uint8] | None  # (N, T)

    def live(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the live steps as an (N, T) array of booleans."""
        if self.lengths is not None:
            return np.arange(shape[1]) < self.lengths[:, None]
        if self.mask is not None:
            return self.mask.view(np.bool_)
        return np.broadcast_to(np.True_, shape)

    def rows(self, rows: NDArray[np.int64]) -> Steps:
        """Return those of some rollouts."""
        return Steps(*(None if each is None else each[rows] for each in self))  # type: ignore[arg-type]


class Scan(NamedTuple):
    """The checked arguments of a backward scan; all (N, T) arrays of one dtype."""

    arrays: list[Float]  # rewards, and what else there is to read at every step
    gamma: float
    gammas: Float | None  # one discount a step
    steps: Steps
    terminated: NDArray[np.uint8] | None
    truncated: NDArray[np.uint8] | None
    next_values: Float | None
    bootstrap: Float | None  # (N,)
    names: Sequence[str]
    time_first: bool  # whether the caller's arrays are (T, N)

    @property
    def options(self) -> tuple[Any, ...]:
        """What the kernels take after their own arguments."""
        return (
            self.gamma,
            self.gammas,
            *self.steps,
            self.terminated,
            self.truncated,
            self.next_values,
            self.bootstrap,
        )

    @property
    def inputs(self) -> list[Float]:
        """Every array of numbers that the kernels read."""
        others = (self.gammas, self.next_values, self.bootstrap)
        return [*self.arrays, *(other for other in others if other is not None)]

    @property
    def bootstrapped(self) -> NDArray[np.bool_]:
        """Which steps (N, T) take a next value: those truncated and not terminated."""
        assert self.truncated is not None
        cut = self.truncated.view(np.bool_)
        return cut if self.terminated is None else cut & ~self.terminated.view(np.bool_)

    def empty(self) -> Float:
        """Allocate a result (N, T) with the memory order of the caller's arrays."""
        first = self.arrays[0]
        if self.time_first:
            return np.empty(first.shape[::-1], first.dtype).T
        return np.empty(first.shape, first.dtype)

    def as_given(self, result: Float) -> Float:
        """Turn a result (N, T) into the caller's axes."""
        return result.T if self.time_first else result

    def raise_not_finite(self) -> None:
        """Raise if a number that the scan reads is not finite; name the first."""
        shape = self.arrays[0].shape
        for name, array in zip(self.names, self.arrays, strict=True):
            finite(name, array, self.steps, shape, self.time_first)
        if self.gammas is not None:
            finite("gamma", self.gammas, self.steps, shape, self.time_first)
        if self.next_values is not None and self.truncated is not None:
            read = self.steps.live(shape) & self.bootstrapped
            finite("next_values", self.next_values, Steps(None, read.view(np.uint8)), shape, self.time_first)
        if self.bootstrap is not None:
            finite("bootstrap_value", self.bootstrap)


class Samples(NamedTuple):
    """How much each rollout counts: by its weight p, and by the number c of its copies.

    Weights are in units of 2**exponent, the largest in [1, 2): results do not depend on their common
    factor, and a power of two changes no digit of them.
    """

    weight: Double | None  # c p (N,), or None for ones
    counts: NDArray[np.int64] | None  # c (N,)
    v1: float  # sum of c p
    v2: float  # sum of c p**2
    exponent: int
    rollouts: int  # N, copies among them

    @property
    def effective_size(self) -> float:
        """Number of equally weighted rollouts whose mean has the variance of the weighted mean (Kish)."""
        return self.v1**2 / self.v2 if self.v2 > 0 else 0.0

    def normaliser(self, ddof: int) -> float:
        """Return what sums of squares are divided by, as numpy.cov has it; some weight must be left."""
        if self.v1 == 0:
            if self.counts is None or self.counts.any():
                where = "" if self.counts is None else " where counts are not"
                raise ValueError(f"sample_weight must not be all zero{where}")
            raise ValueError("counts must not be all zero")
        return divisor(self.v1, self.v2, ddof)


class Units(NamedTuple):
    """Independent units: unit u holds the rollouts members[offsets[u]:offsets[u + 1]].

    Copies of a rollout are units of their own, or copies inside the unit of their group.
    """

    members: NDArray[np.int64]  # (N,), without rollouts of count 0
    offsets: NDArray[np.int64]  # (U + 1,)
    copies: NDArray[np.int64] | None = None  # (U,), how often each unit is there
    counts: NDArray[np.int64] | None = None  # (N,), how often each rollout is there inside its unit

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def number(self) -> int:
        """Number of units, copies among them."""
        return len(self) if self.copies is None else int(self.copies.sum())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rollouts in each unit (U,)."""
        return np.diff(self.offsets) if self.counts is None else self.sums(self.counts)

    def among(self, rows: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Units]:
        """Return which units hold some of `rows` (N,), and what they hold of them."""
        kept = rows[self.members]
        unit = np.repeat(np.arange(len(self)), np.diff(self.offsets))[kept]
        present, sizes = np.unique(unit, return_counts=True)
        copies = None if self.copies is None else self.copies[present]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return present, Units(self.members[kept], offsets, copies, self.counts)

    def total(self, values: NDArray[Any]) -> Any:
        """Sum `values` (U, ...) over the units, copies among them."""
        return values.sum(axis=0) if self.copies is None else self.copies @ values

    def sums(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum `values` (N, ...) over the rollouts of each unit, giving (U, ...)."""
        result: NDArray[Any] = np.add.reduceat(values[self.members], self.offsets[:-1], axis=0)
        return result


def _plain(name: str, value: ArrayLike) -> NDArray[Any]:
    """Turn `value` into an array; refuse what numpy would take apart wrongly."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array; pass the mask as mask=")
    try:
        array = np.asarray(value)
    except ValueError as error:
        hint = "; pad its rows and pass lengths=" if "inhomogeneous" in str(error) else ""
        raise ValueError(f"{name} must be a rectangular array{hint}: {error}") from None
    except (TypeError, RuntimeError) as error:  # tensors that numpy cannot see
        raise TypeError(f"{name} cannot be read as an array: {error}") from None
    if array.dtype.kind == "O":
        raise TypeError(f"{name} must be an array of real numbers, got dtype object")
    return array


_KERNEL_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def floats(name: str, value: ArrayLike) -> Float:
    """Return `value` as a native, aligned float32 or float64 array.

    float32 and float64 come back as they are; float16 and bfloat16 become float32, integers and
    booleans float64. numpy saves bfloat16 without its name, as two bytes: those are bfloat16 too.
    """
    if type(value) is np.ndarray and value.dtype in _KERNEL_DTYPES:
        flags = value.flags
        if flags.c_contiguous and flags.aligned:
            return value
    array = _plain(name, value)
    if array.dtype.name == "bfloat16":  # of ml_dtypes, known by its name alone
        return array.astype(np.float32)
    if array.dtype == "V2":
        return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "fiub" or (kind == "f" and size > 8):
        raise TypeError(
            f"{name} must be float32, float64, half precision, integers or booleans, got dtype {array.dtype}"
        )
    target = np.dtype(np.float32 if kind == "f" and size < 8 else np.float64)
    strided = array.flags.aligned and all(stride % target.itemsize == 0 for stride in array.strides)
    if array.dtype != target or not array.dtype.isnative or not strided:
        array = array.astype(target)
    return array


def _shape_error(name: str, wanted: str, got: tuple[int, ...]) -> ValueError:
    return ValueError(f"{name} must have shape {wanted}, got {got}")


def doubles(name: str, value: ArrayLike, *shapes: tuple[int, ...]) -> Double:
    """Return `value` in float64, of one of `shapes`, each (N,) or (N, T), if any are given.

    Half precision is exact in float64.
    """
    exact = floats(name, value)
    if shapes and exact.shape not in shapes:
        wanted = " or ".join(f"{'(N, T)' if len(shape) == 2 else '(N,)'} = {shape}" for shape in shapes)
        raise _shape_error(name, wanted, exact.shape)
    return exact.astype(np.float64, copy=False)


def sequence_rewards(value: ArrayLike) -> tuple[Double, NDArray[np.bool_]]:
    """Return rewards (N,) in float64 and which are scored; warn, once, of those that are NaN."""
    array = doubles("rewards", value)
    if array.ndim != 1:
        raise _shape_error("rewards", "(N,)", array.shape)
    bad = np.flatnonzero(np.isinf(array))
    if bad.size:
        raise ValueError(
            f"rewards must be finite, or NaN where unscorable, got rewards[{bad[0]}] = {array[bad[0]]}"
        )
    scored = ~np.isnan(array)
    missing = np.count_nonzero(~scored)
    if missing:
        message = f"{missing} of {len(array)} rewards are NaN: no statistic counts them, their advantage is 0"
        warnings.warn(message, UserWarning, stacklevel=4)  # where the caller of the public function is
    return array, scored


def scores(value: ArrayLike, rollouts: int = 2) -> Float:
    """Return scores (N, T, D) with a contiguous last axis, N >= `rollouts`, T >= 1, D >= 1."""
    array = floats("scores", value)
    if array.ndim != 3:
        raise _shape_error("scores", "(N, T, D)", array.shape)
    n, t, d = array.shape
    if n < rollouts:
        raise ValueError(f"scores must hold at least N = {rollouts} rollouts, got shape {array.shape}")
    if t < 1 or d < 1:
        raise ValueError(f"scores must have T >= 1 steps and D >= 1 coordinates, got shape {array.shape}")
    if d > 1 and array.strides[2] != array.itemsize:
        array = np.ascontiguousarray(array)
    return array


def weights(value: ArrayLike | None, shape: tuple[int, int], live: Steps, name: str = "weights") -> Double:
    """Return weights as a float64 (N, T) array, a broadcast view where they came as (N,)."""
    if value is None:
        return np.broadcast_to(np.float64(1.0), shape)
    array = doubles(name, value, shape, shape[:1])
    finite(name, array, live, shape)
    return np.broadcast_to(array[:, None], shape) if array.ndim == 1 else array


def weight_sets(value: ArrayLike, shape: tuple[int, int], live: Steps) -> Double:
    """Return E sets of weights as a float64 (E, N, T) array, C-contiguous."""
    array = doubles("weights", value)
    if array.ndim != 3 or array.shape[1:] != shape or not len(array):
        raise _shape_error("weights", f"(E, N, T) = (E, {shape[0]}, {shape[1]}) with E >= 1", array.shape)
    for e, one in enumerate(array):
        finite(f"weights[{e}]", one, live, shape)
    return np.ascontiguousarray(array)


def steps(shape: tuple[int, int], mask: ArrayLike | None = None, lengths: ArrayLike | None = None) -> Steps:
    """Return the live steps of an (N, T) array from a mask (N, T) or lengths (N,)."""
    n, t = shape
    if mask is not None and lengths is not None:
        raise ValueError("mask and lengths must not both be given")
    if lengths is not None:
        counts = _plain("lengths", lengths)
        if counts.dtype.kind not in "iu":
            raise TypeError(f"lengths must be integers, got dtype {counts.dtype}")
        if counts.shape != (n,):
            raise _shape_error("lengths", f"(N,) = ({n},)", counts.shape)
        bad = np.flatnonzero((counts < 0) | (counts > t))
        if bad.size:
            raise ValueError(f"lengths must lie in 0..T = 0..{t}, got lengths[{bad[0]}] = {counts[bad[0]]}")
        return Steps(np.ascontiguousarray(counts, dtype=np.int64), None)
    if mask is not None:
        return Steps(None, flags(mask, shape).view(np.uint8))
    return Steps(None, None)


def flags(
    value: ArrayLike, shape: tuple[int, ...] | None = None, name: str = "mask", axes: str = "(N, T)"
) -> NDArray[np.bool_]:
    """Return a mask as booleans, of the given shape or of any shape (N, T)."""
    mask = _plain(name, value)
    if mask.ndim != 2 if shape is None else mask.shape != shape:
        wanted = axes if shape is None else f"{axes} = {shape}" if len(shape) == 2 else f"{shape}"
        raise _shape_error(name, wanted, mask.shape)
    if mask.dtype.kind != "b":
        if mask.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be booleans, or numbers 0 and 1, got dtype {mask.dtype}")
        wrong = np.argwhere((mask != 0) & (mask != 1))
        if len(wrong):
            where = ", ".join(map(str, wrong[0]))
            raise ValueError(f"{name} must hold only 0 and 1, got {name}[{where}] = {mask[tuple(wrong[0])]}")
    return mask.astype(np.bool_, copy=False)


def alive(name: str, array: Double, live: NDArray[np.bool_]) -> Double:
    """Return a copy of `array` that is 0 where not live, whatever lies there, and finite elsewhere."""
    array = np.where(live, array, 0.0)
    finite(name, array)
    return array


def finite(
    name: str,
    array: Float,
    live: Steps | None = None,
    shape: tuple[int, int] | None = None,
    time_first: bool = False,
) -> None:
    """Raise where `array` is not finite; name the first index.

    With `live`, only where a step is live, if `array` is (N, T), or any step of the rollout, if it
    is (N,); `shape` is then (N, T). With `time_first`, the index is that of the transpose.
    """
    good = np.isfinite(array)
    if good.all():
        return
    where_live = ""
    if live is not None:
        where_live = " in live steps"
        alive = live.live(shape or array.shape)
        good |= ~(alive if array.ndim == 2 else alive.any(axis=1))
    if not good.all():
        index, where = _first(~good, time_first)
        raise ValueError(f"{name} must be finite{where_live}, got {name}[{where}] = {array[index]}")


def _first(bad: NDArray[np.bool_], time_first: bool) -> tuple[tuple[int, ...], str]:
    """Return the first index where `bad`, and as the caller has it who gave the transpose."""
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    return index, ", ".join(map(str, index[::-1] if time_first else index))


class NotFiniteError(ValueError):
    """Scores that are not finite, or give what is not: the fault of no estimator."""


def raise_not_finite(array: Float, live: Steps, first: int = 0) -> NoReturn:
    """Explain a result that is not finite: name the first bad live score, or else the overflow.

    Rollouts count from `first`.

    Kernels do not look for NaN; it shows in what they return. This slow search runs only then.
    """
    alive = live.live(array.shape[:2])
    for n, rollout in enumerate(array):
        good = np.isfinite(rollout) | ~alive[n][:, None]
        if not good.all():
            t, d = (int(i) for i in np.argwhere(~good)[0])
            raise NotFiniteError(
                f"scores must be finite in live steps, got scores[{first + n}, {t}, {d}] = {rollout[t, d]}"
            )
    raise NotFiniteError("the result is beyond the range of float64; rescale the scores or the weights")


def non_negative(name: str, value: ArrayLike, n: int) -> Double:
    """Return an array (N,), float64, finite and non-negative."""
    array = np.ascontiguousarray(doubles(name, value, (n,)))
    finite(name, array)
    if (array < 0).any():
        i = int(np.argmax(array < 0))
        raise ValueError(f"{name} must not be negative, got {name}[{i}] = {array[i]}")
    return array


def samples(sample_weight: ArrayLike | None, counts: ArrayLike | None, n: int) -> Samples:
    """Return how much each of N rollouts counts, by its weight p and the number c of its copies."""
    p = None if sample_weight is None else non_negative("sample_weight", sample_weight, n)
    c = None if counts is None else whole_counts("counts", counts, n)
    if p is None and c is None:
        return Samples(None, None, float(n), float(n), 0, n)
    p = np.ones(n) if p is None else p if c is None else np.where(c > 0, p, 0.0)
    exponent = int(np.frexp(p.max(initial=0.0))[1]) - 1  # ones stay ones
    p = np.ldexp(p, -exponent)
    w = p if c is None else c * p
    shift = int(np.frexp(w.max(initial=0.0))[1]) - 1
    w = np.ldexp(w, -shift)
    v2 = float(np.ldexp(w * p, -shift).sum())
    return Samples(w, c, float(w.sum()), v2, exponent + shift, n if c is None else int(c.sum()))


def whole_counts(name: str, value: ArrayLike, n: int) -> NDArray[np.int64]:
    """Return an array (N,) of non-negative integers, of a dtype of integers."""
    array = _plain(name, value)
    if array.shape != (n,):
        raise _shape_error(name, f"(N,) = ({n},)", array.shape)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if (array < 0).any():
        i = int(np.argmax(array < 0))
        raise ValueError(f"{name} must not be negative, got {name}[{i}] = {array[i]}")
    if (total := float(array.sum(dtype=np.float64))) > 2**53:
        raise ValueError(f"{name} must sum to at most 2**53, got {total:.6g}")
    return array.astype(np.int64)


def divisor(v1: float, v2: float, ddof: int) -> float:
    """Return v1 - ddof * v2 / v1, with v1 = sum(c p) and v2 = sum(c p**2) of weights p, counted c times."""
    if isinstance(ddof, bool) or not isinstance(ddof, (int, np.integer)) or ddof < 0:
        raise ValueError(f"ddof must be a non-negative integer, got {ddof!r}")
    result = v1 - ddof * v2 / v1 if v1 > 0 else 0.0
    if result <= 0:
        count = v1**2 / v2 if v2 > 0 else 0.0
        raise ValueError(f"ddof must leave degrees of freedom, got ddof = {ddof} for {count:.6g} samples")
    return result


def out_array(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Check an output array that the caller passed."""
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a numpy array, got {type(out).__name__}")
    if out.shape != shape:
        raise _shape_error("out", str(shape), out.shape)
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable")
    if not out.flags.aligned or not all(stride % out.itemsize == 0 for stride in out.strides):
        raise ValueError("out must be aligned")
    return out


def units(
    groups: Sequence[Hashable] | NDArray[Any] | None, n: int, counts: NDArray[np.int64] | None = None
) -> Units:
    """Return the independent units: groups of rollouts by label, or single rollouts."""
    present = np.arange(n) if counts is None else np.flatnonzero(counts)
    if counts is not None and counts.sum() < 2:
        raise ValueError(f"counts must leave at least two rollouts, got {counts.sum()}")
    if groups is None:
        return Units(present, np.arange(len(present) + 1), None if counts is None else counts[present])
    labels = group_labels(groups, n)[present]
    sizes = np.bincount(labels)
    offsets = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
    if len(offsets) < 3:
        raise ValueError("groups must hold at least two different labels, got one")
    return Units(present[np.argsort(labels, kind="stable")], offsets, counts=counts)


def warn_few(units: Units, *, grouped: bool, stacklevel: int = 3) -> None:
    """Warn of fewer than ten units; by default where the caller's caller is."""
    if units.number < 10:
        name = "groups" if grouped else "rollouts"
        what = "no intervals" if units.number < 3 else "intervals may be far too narrow"
        warnings.warn(f"{units.number} {name} are few: {what}", UserWarning, stacklevel=stacklevel)


def group_labels(groups: Sequence[Hashable] | NDArray[Any], n: int) -> NDArray[np.int64]:
    """Number arbitrary hashable labels (N,) in the order of their first appearance."""
    if hasattr(groups, "__array__"):  # tensors too: theirs hash by identity, so no two would be equal
        array = np.asarray(groups)
        if array.ndim != 1:
            raise _shape_error("groups", f"(N,) = ({n},)", array.shape)
        groups = array.tolist()
    if isinstance(groups, (set, frozenset)) or not hasattr(groups, "__len__"):
        raise TypeError(f"groups must be a sequence of labels, got {type(groups).__name__}")
    if len(groups) != n:
        raise _shape_error("groups", f"(N,) = ({n},)", (len(groups),))
    seen: dict[Hashable, int] = {}
    try:
        # Scalar tensors hash by identity too: .item() is what they hold.
        plain = (label.item() if hasattr(label, "item") else label for label in groups)
        labels = np.array([seen.setdefault(label, len(seen)) for label in plain], dtype=np.int64)
    except TypeError:
        raise TypeError("groups must hold hashable labels") from None
    if any(label != label for label in seen):
        raise ValueError("groups must not hold NaN: it is not equal to itself")
    return labels


def threads(value: int | None) -> int | None:
    """Return the number of threads asked for, or None for the default."""
    if value is None:
        return None
    count = positive_integer("num_threads", value)
    return min(count, 1024)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str) or np.ndim(value) != 0:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None


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


def scan(
    arrays: dict[str, ArrayLike],
    gamma: float | ArrayLike,
    mask: ArrayLike | None,
    lengths: ArrayLike | None,
    terminated: ArrayLike | None,
    truncated: ArrayLike | None,
    next_values: ArrayLike | None,
    bootstrap_value: ArrayLike | None,
    time_axis: int,
) -> Scan:
    """Check the arguments of a backward scan; `arrays`, by name, start with the rewards."""
    if time_axis not in (-1, 0, 1):
        raise ValueError(f"time_axis must be -1, 0 or 1, got {time_axis!r}")
    time_first = time_axis == 0
    axes = "(T, N)" if time_first else "(N, T)"
    checked = [floats(name, value) for name, value in arrays.items()]
    names = list(arrays)
    rewards = checked[0]
    given, dtype = rewards.shape, rewards.dtype
    if len(given) != 2:
        raise _shape_error(names[0], axes, given)
    for name, array in zip(names, checked, strict=True):
        if array.shape != given:
            raise _shape_error(name, f"{axes} = {given}", array.shape)
        if array.dtype != dtype:
            dtype = np.dtype(np.float64)
    shape = given[::-1] if time_first else given
    stepwise = np.ndim(gamma) > 0
    factor = 1.0 if stepwise else discount("gamma", gamma)  # type: ignore[arg-type]
    gammas = floats("gamma", gamma) if stepwise else None
    if (truncated is None) != (next_values is None):
        pair = ("truncated", "next_values")
        present, missing = pair if next_values is None else pair[::-1]
        raise ValueError(f"{present} needs {missing}: what lies beyond a truncated step counts by its value")
    beyond = None if next_values is None else floats("next_values", next_values)
    tail = None if bootstrap_value is None else floats("bootstrap_value", bootstrap_value)
    if beyond is not None and beyond.dtype != dtype:
        dtype = np.dtype(np.float64)
    for name, other in (("gamma", gammas), ("next_values", beyond)):
        if other is not None and other.shape != given:
            raise _shape_error(name, f"{axes} = {given}", other.shape)
    if tail is not None and tail.shape != shape[:1]:
        raise _shape_error("bootstrap_value", f"(N,) = ({shape[0]},)", tail.shape)

    def prepared(array: Float | None) -> Float | None:
        if array is None:
            return None
        array = array.astype(dtype, copy=False)
        return array.T if time_first else array

    def marks(name: str, value: ArrayLike | None) -> NDArray[np.uint8] | None:
        if value is None:
            return None
        array = flags(value, given, name, axes).view(np.uint8)
        return array.T if time_first else array

    if mask is not None and lengths is not None:
        raise ValueError("mask and lengths must not both be given")
    live = steps(shape, None, lengths) if mask is None else Steps(None, marks("mask", mask))
    result = Scan(
        [prepared(array) for array in checked],  # type: ignore[misc]
        factor,
        prepared(gammas),
        live,
        marks("terminated", terminated),
        marks("truncated", truncated),
        prepared(beyond),
        None if tail is None else np.ascontiguousarray(tail, dtype),
        names,
        time_first,
    )
    if result.gammas is not None:
        wrong = ~((result.gammas >= 0) & (result.gammas <= 1)) & live.live(shape)
        if wrong.any():
            index, where = _first(wrong, time_first)
            raise ValueError(f"gamma must lie in 0..1, got gamma[{where}] = {result.gammas[index]}")
    return result


def ratios(scan: Scan) -> Float:
    """Return the importance ratios of a scan, its last array: finite and >= 0, 0 where not live."""
    array = scan.arrays[-1]
    live = scan.steps.live(array.shape)
    result: Float = np.where(live, array, array.dtype.type(0))
    if not np.isfinite(result).all():
        scan.raise_not_finite()
    if (result < 0).any():
        index, where = _first(result < 0, scan.time_first)
        raise ValueError(f"rho must not be negative, got rho[{where}] = {result[index]}")
    return result


def bound(name: str, value: float) -> float:
    """Return an upper bound >= 0, which may be infinite."""
    number = _number(name, value)
    if not number >= 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    return number


def positive_integer(name: str, value: int) -> int:
    """Return an integer >= 1."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def bootstrap(resamples: int, first: int) -> tuple[int, int]:
    """Return the number of resamples, enough of them for an interval, and the seed."""
    number = positive_integer("resamples", resamples)
    if number < 100:
        raise ValueError(f"resamples must be at least 100, got {number}")
    return number, seed(first)


def seed(value: int) -> int:
    """Return the seed of a random generator, an integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"seed must be an integer, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"seed must not be negative, got {value}")
    return int(value)


def in_range(values: Double) -> None:
    """Raise if a result computed from finite rewards is not finite."""
    if not np.isfinite(values).all():
        raise ValueError("the result is beyond the range of float64; rescale the rewards")


def names(name: str, value: Any) -> list[str]:
    """Return one name, or a sequence of them without repetition, as a list; at least one."""
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [None]
    if not all(isinstance(each, str) for each in given):
        raise TypeError(f"{name} must be a name or a sequence of names, got {value!r}")
    if not given:
        raise ValueError(f"{name} must name at least one, got none")
    return list(dict.fromkeys(given))


def choice(name: str, value: Any, options: Sequence[Any]) -> None:
    """Raise unless `value` is among `options`."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")


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


def every_group(good: NDArray[np.bool_], rows: NDArray[np.bool_], wanted: str) -> None:
    """Raise unless `good` for each row that `rows` marks; name the first that is not."""
    if not good.all():
        row = np.flatnonzero(rows)[np.argmin(good)]
        raise ValueError(f"{wanted} in the group of rewards[{row}]")


def placed(rewards: Double, last: NDArray[np.int64]) -> None:
    """Raise unless rewards (N,) are finite, and 0 where there is no last step (-1) to hold them."""
    finite("rewards", rewards)
    lost = np.flatnonzero((last < 0) & (rewards != 0))
    if lost.size:
        i = lost[0]
        raise ValueError(f"mask must leave a step for rewards[{i}] = {rewards[i]}, got none in row {i}")
