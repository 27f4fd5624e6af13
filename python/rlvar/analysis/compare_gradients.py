"""The same comparison from gradients already at hand: of micro-batches, ranks, another framework.

What `compare` infers from the gradients of rollouts, this infers from those of any U independent units. Where
gradients are too large to keep, their inner products suffice: see `rlvar.stats.grams`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double, Float
from rlvar.analysis.comparison import Comparison
from rlvar.stats.grams import rows_of
from rlvar.stats.inference import infer
from rlvar.stats.moments import Sample
from rlvar.stats.resampling import Bootstrap, drawn


@dataclass(frozen=True, eq=False)
class _Rows:
    """Gradients (U, D) times the number of rollouts of each, converted a few columns at a time."""

    base: Float
    sizes: Double  # (U,)

    def whole(self, coordinates: slice = slice(None)) -> Double:
        return self.base[:, coordinates] * self.sizes[:, None]


def compare_gradients(
    gradients: Mapping[str, ArrayLike] | Mapping[str | tuple[str, str], ArrayLike],
    *,
    reference: str | None = None,
    unbiased: str | Sequence[str] = (),
    groups: Sequence[Hashable] | NDArray[Any] | None = None,
    sizes: ArrayLike | None = None,
    gram_of: int | None = None,
    scores_of: str | None = None,
    sketched: bool = False,
    interval: Literal["jackknife"] | Bootstrap = "jackknife",
    confidence: float = 0.95,
    num_threads: int | None = None,
) -> Comparison:
    """Compare estimators by gradients already at hand.

    Parameters
    ----------
    gradients : dict of array_like, shape (U, D)
        By the name of each estimator, gradients of the same U units in the same order: micro-batches of one
        size, ranks, rollouts. float32 is kept without a copy. With `gram_of`, matrices (U, U) of inner
        products in their place: of the gradients of an estimator by its name, and of those of two, a in rows
        and b in columns, by ``(a, b)``, for all pairs or for none.
    reference : str, optional
        The name whose variance is the denominator of each ratio; the first by default.
    unbiased : str or sequence of str, optional
        Names of those whose mean is the policy gradient. They share one mean and so one signal, and their
        ratios say how many units each needs for the same precision. About the others nothing is assumed.
    groups : sequence of hashable, shape (U,), optional
        Label of each unit. Those with equal labels are dependent: the mean of them is then a unit.
    sizes : array_like, shape (U,), optional
        Number of rollouts that each is the mean of, where they differ: the batch's gradient is the mean over
        rollouts. Ones by default.
    gram_of : int, optional
        The number D of coordinates that the gradients have, where `gradients` has inner products.
    scores_of, sketched
        As in `Rollouts`: what these are gradients with respect to, and whether the D coordinates are
        independent random directions of that.
    interval, confidence, num_threads
        As in `compare`.

    Returns
    -------
    Comparison
        As from `compare`, of a batch's gradient that is the mean over all units, each by its size. Without
        inner products of two estimators, no alignment is known, nor whether the data deny that means are the
        same.

    Raises
    ------
    ValueError, TypeError
        Naming the estimator: for other shapes, fewer than two units, what is not finite; matrices that are
        not symmetric, or no inner products of any gradients.

    Warns
    -----
    UserWarning
        For fewer than ten units.

    Notes
    -----
    Of weights that are fitted to the units, as baselines are, no more is known than the gradients: `compare`
    refits those of "single-mean" and "single-optimal" without each unit. Inner products go through a Cholesky
    factorisation of all of them, O((E U)^3) for E estimators.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> now = rng.standard_normal((32, 1000)) + 0.1  # of 32 micro-batches
    >>> other = now / 2 + rng.standard_normal((32, 1000)) / 2 + 0.05
    >>> result = rlvar.compare_gradients({"now": now, "other": other}, unbiased=["now", "other"])
    >>> round(result["other"].ratio.value, 1)
    0.5
    """
    given = given_gradients(gradients, unbiased, groups, sizes, gram_of, sketched, num_threads)
    names = given.names
    reference = names[0] if reference is None else _check.text("reference", reference)
    if reference not in names:
        raise ValueError(f"reference must be among {', '.join(names)}, got {reference!r}")
    level, bootstrap, threads = _check.confidence(confidence), drawn(interval), _check.threads(num_threads)
    scores_of = None if scores_of is None else _check.text("scores_of", scores_of)
    samples = [Sample(rows, given.sizes, given.units, spans=given.spans) for rows in given.rows]
    classes = ["unbiased" if name in given.unbiased else None for name in names]
    number = names.index(reference)
    found = infer(samples, number, level, bootstrap, threads, classes, given.sketched, given.crossed)
    for name, each in zip(names, found, strict=True):
        if not np.isfinite(each.variance.value):
            raise ValueError(f"gradients[{name!r}] have squares beyond the range of float64; rescale them")
    result = Comparison.of(
        dict(zip(names, found, strict=True)),
        names,
        {name: True if name in given.unbiased else None for name in names},
        {},
        reference=reference,
        units=len(given.sizes),
        unit="unit" if groups is None else "group",
        aggregation=None,
        interval="jackknife" if bootstrap is None else "bootstrap",
        scaled=False,
        scores_of=scores_of,
        of_sequences=False,
        crossed=given.crossed,
    )
    _check.warn_few(result.units, result.unit)
    return result


class Given(NamedTuple):
    """Gradients of the caller's that have been checked."""

    names: list[str]
    rows: list[_Rows]  # of each name (N, D)
    sizes: Double  # of the units (U,)
    units: _check.Units | None  # which rows are in each, if several are
    unbiased: list[str]
    spans: int | None  # coordinates of the gradients, if inner products were given
    sketched: bool
    crossed: bool  # whether products of different names are known


def given_gradients(
    gradients: Mapping[str, ArrayLike] | Mapping[str | tuple[str, str], ArrayLike],
    unbiased: str | Sequence[str],
    groups: Sequence[Hashable] | NDArray[Any] | None,
    sizes: ArrayLike | None,
    gram_of: int | None,
    sketched: bool,
    num_threads: int | None,
    least: int = 2,
) -> Given:
    """Check the arguments of `compare_gradients`, with at least `least` units."""
    if not isinstance(gradients, Mapping):
        raise TypeError(f"gradients must be a dict of arrays by name, got {type(gradients).__name__}")
    names = [name for name in gradients if isinstance(name, str)]
    if not names:
        raise ValueError("gradients must name at least one estimator, got none")
    shared = _check.names("unbiased", unbiased) if len(unbiased) else []
    for name in shared:
        if name not in names:
            raise ValueError(f"unbiased must be among {', '.join(names)}, got {name!r}")
    sketched, crossed = _check.boolean("sketched", sketched), True
    if gram_of is None:
        rows: Mapping[str, Float] = _arrays(gradients, names, least)
    elif sketched:
        raise ValueError("sketched needs the coordinates of gradients, not their inner products (gram_of)")
    else:
        gram_of = _check.positive_integer("gram_of", gram_of)
        grams, eps = _grams(gradients, names)
        crossed = len(names) == 1 or len(grams) > len(names)
        rows = rows_of(grams, names, eps, _check.threads(num_threads))
    count = len(rows[names[0]])
    units = _check.units(groups, count) if least > 1 else _check.some_units(groups, count)
    each_size = np.ones(count) if sizes is None else _check.non_negative("sizes", sizes, count)
    if not each_size.all():
        raise ValueError(f"sizes must be positive, got sizes[{np.argmin(each_size)}] = 0")
    summed = units if len(units) < count else None
    of_units = units.sums(each_size)
    found = [_Rows(rows[name], each_size) for name in names]
    return Given(names, found, of_units, summed, shared, gram_of, sketched, crossed)


def _arrays(gradients: Mapping[Any, ArrayLike], names: Sequence[str], least: int) -> dict[str, Float]:
    """Check gradients (U, D)."""
    rows: dict[str, Float] = {}
    for name, given in gradients.items():
        what = f"gradients[{name!r}]"
        if name not in names:
            raise TypeError(f"gradients must have names as keys, got {name!r}; pairs go with gram_of=")
        array = rows[name] = _check.floats(what, given)
        if array.ndim != 2 or not array.shape[1]:
            raise ValueError(f"{what} must have shape (U, D), a gradient in each row, got {array.shape}")
        if array.shape != rows[names[0]].shape:
            wanted = f"{rows[names[0]].shape}, like those of {names[0]!r}"
            raise ValueError(f"{what} must have shape (U, D) = {wanted}, got {array.shape}")
        if len(array) < least:
            raise ValueError(f"{what} must have at least U = {least} units, got shape {array.shape}")
        _check.finite(what, array)
    return rows


def _grams(
    gradients: Mapping[Any, ArrayLike], names: Sequence[str]
) -> tuple[dict[tuple[str, str], Double], float]:
    """Check inner products (U, U) of all names and pairs of them; return them and the worst precision."""
    grams: dict[tuple[str, str], Double] = {}
    eps, u = 0.0, 0
    for key, given in gradients.items():
        what, pair = f"gradients[{key!r}]", (key, key) if isinstance(key, str) else key
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(each in names for each in pair)):
            raise ValueError(f"keys of gradients must be {', '.join(names)} or pairs of them, got {key!r}")
        exact = _check.floats(what, given)
        u = u or (len(exact) if exact.ndim else 0)
        if exact.shape != (u, u):
            raise ValueError(f"{what} must have shape (U, U) = ({u}, {u}), got {exact.shape}")
        if u < 2:
            raise ValueError(f"{what} must have at least U = 2 units, got shape {exact.shape}")
        _check.finite(what, exact)
        k, eps_of = exact.astype(np.float64), float(np.finfo(exact.dtype).eps)
        if pair[0] == pair[1]:
            apart = np.abs(k - k.T)
            if apart.max() > 64 * eps_of * np.abs(k).max():
                i, j = np.unravel_index(int(apart.argmax()), k.shape)
                raise ValueError(
                    f"{what} must be symmetric, got {k[i, j]} at [{i}, {j}] and {k[j, i]} at [{j}, {i}]"
                )
            k = (k + k.T) / 2
        grams[pair], grams[pair[::-1]], eps = k, k.T, max(eps, eps_of)
    if len(names) < len(grams) < len(names) ** 2:
        missing = next((a, b) for a in names for b in names if (a, b) not in grams)
        raise ValueError(f"gradients must have all pairs of names or none, got none for {missing!r}")
    return grams, eps
