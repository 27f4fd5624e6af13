"""The covariance of step terms in micro-batches: streamed, merged, saved.

What is kept of the rollouts so far is their weight W, the mean m (B, D) of the terms and the sums
M (B, B) of the products of their deviations from it, over coordinates. Two such parts merge into
the same of all their rollouts (Chan, Golub & LeVeque 1979):

    delta = m_b - m_a,   M = M_a + M_b + W_a W_b / (W_a + W_b) delta delta^T,
    m = m_a + delta W_b / (W_a + W_b).

The mean is kept in two float64 parts, m + tail: deltas keep their digits where a mean is far above the
spread.
"""

from __future__ import annotations

import math
import operator
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlvar import _check, _core, files
from rlvar._types import Double, Importance
from rlvar.rollouts import Rollouts
from rlvar.terms.passes import Terms
from rlvar.weights.estimators import EstimatorLike
from rlvar.weights.source import batch_of, estimator_of, terms_of

_FORMAT = "rlvar.CovarianceAccumulator"
_VERSION = 1
_UPDATE_BYTES = 1 << 26  # scores of one update of a stream


class Totals(NamedTuple):
    """The total variance and its two parts; the parts add up to it.

    Attributes
    ----------
    variance : float
        Total variance of one rollout's gradient estimate.
    variance_terms : float
        The part of the steps, or of the blocks of steps: the trace of their covariance.
    covariance_terms : float
        The part between them: everything off its diagonal.
    """

    variance: float
    variance_terms: float
    covariance_terms: float


class _State(NamedTuple):
    """Moments of some rollouts. Never changed in place, so that an error cannot leave a change half done."""

    rollouts: int
    exponent: int  # weight and sums are in units of 2**exponent: no scale of sample weights is lost
    weight: float  # v1, sum of the weights p
    square_weight: float  # v2 / v1**2, with v2 the sum of p**2
    pairs: float  # 1 - v2 / v1**2, with all its digits
    sums: Double  # (B, B)
    mean: Double  # (B, D)
    tail: Double  # (B, D)

    def divisor(self, ddof: int) -> float:
        """Return what the sums are divided by."""
        some = float(self.weight > 0)
        return self.weight * _check.divisor(some, self.square_weight, self.pairs, ddof)

    def scaled(self, exponent: int) -> _State:
        """Return the same in units of 2**exponent."""
        shift = self.exponent - exponent
        if shift == 0:
            return self
        weight, sums = math.ldexp(self.weight, shift), np.ldexp(self.sums, shift)
        return self._replace(exponent=exponent, weight=weight, sums=sums)


_ALL: weakref.WeakSet[CovarianceAccumulator] = weakref.WeakSet()


def _unlock() -> None:
    """A child of fork() holds no lock that another thread held."""
    for accumulator in _ALL:
        accumulator._lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


class CovarianceAccumulator:
    """The covariance of step terms, in micro-batches of any size.

    Batches and merges in any grouping agree with one call of `covariance`, to rounding. Accumulators
    pickle, so that processes can reduce shards and send the results. Batches may be padded to
    different T: the terms of missing steps are 0.

    Parameters
    ----------
    block_size : int, default 1
        As in `covariance`.
    num_threads : int, optional
        As in `covariance`. Not pickled: the process that unpickles chooses by itself.

    Notes
    -----
    Memory is that of one or two (B, B) matrices and the mean. An update costs what `covariance` costs, and
    D·B·(B+1) operations for the merge: little for batches of some 16 rollouts or more. With float32 scores,
    groupings agree to the rounding of float32 products, near 1e-6. An update that fails, or is interrupted,
    leaves the accumulator as it was. Threads may share an accumulator: no update is lost, and they never
    read half of one.

    Examples
    --------
    >>> import numpy as np, rlvar
    >>> rng = np.random.default_rng(0)
    >>> scores, weights = rng.standard_normal((100, 5, 3)), rng.standard_normal(100)
    >>> first, second = rlvar.CovarianceAccumulator(), rlvar.CovarianceAccumulator()
    >>> first.update(scores[:60], weights[:60])
    >>> second.update(scores[60:], weights[60:])
    >>> whole = first + second
    >>> bool(np.allclose(whole.covariance(), rlvar.covariance(scores, weights), rtol=1e-12))
    True
    """

    def __init__(self, *, block_size: int = 1, num_threads: int | None = None) -> None:
        self._block_size = _check.positive_integer("block_size", block_size)
        if self._block_size >= 1 << 62:
            raise ValueError(f"block_size must be below 2**62, got {block_size}")
        self._threads = _check.threads(num_threads)
        self._state: _State | None = None  # replaced, never changed: reading it once needs no lock
        self._lock = threading.Lock()  # for those who replace it by what they made of it
        _ALL.add(self)

    @property
    def block_size(self) -> int:
        """As given."""
        return self._block_size

    @property
    def count(self) -> int:
        """Rollouts so far."""
        state = self._state
        return 0 if state is None else state.rollouts

    @property
    def effective_size(self) -> float:
        """Kish's effective number of rollouts, as in `Decomposition`; 0 before the first."""
        state = self._state
        return 1.0 / state.square_weight if state is not None and state.weight > 0 else 0.0

    @property
    def mean(self) -> Double:
        """Mean of each term, or block of terms, so far (B, D); B = ceil(T / block_size)."""
        return self._some().mean.copy()

    def __repr__(self) -> str:
        state = self._state
        count, size = (0, "") if state is None else (state.rollouts, ", B={}, D={}".format(*state.mean.shape))
        return f"CovarianceAccumulator(count={count}, block_size={self.block_size}{size})"

    def update(
        self,
        rollouts: Rollouts | ArrayLike,
        estimator: EstimatorLike | ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        importance: Importance = "none",
        truncate: float | None = None,
        rollouts_per_update: int | None = None,
        progress: bool | Callable[[int, int], object] = False,
    ) -> None:
        """Take in rollouts: a micro-batch, or more than memory holds, a block at a time.

        Parameters
        ----------
        rollouts, estimator, lengths, mask, sample_weight, importance, truncate
            As in `covariance`, of one estimator; N may be 1, or 0, for scores. Memory-mapped scores, such as
            those of a folder that `load_rollouts` reads, are read from disk once. An estimator that looks at
            other rollouts (groups, means over the batch) sees those of this call. Sample weights of different
            calls share one scale.
        rollouts_per_update : int, optional
            Rollouts of one block; by default 64 MiB of scores, and at least 16.
        progress : bool or callable, default False
            Whether to show a progress bar (it needs tqdm, ``pip install 'rlvar[progress]'``), or a
            function of the rollouts done and of their number.

        Raises
        ------
        ValueError, TypeError
            As for `covariance`; also for a D that differs from that of earlier rollouts.
        ImportError
            For a progress bar without tqdm.
        """
        options = {"lengths": lengths, "mask": mask, "importance": importance, "truncate": truncate}
        if isinstance(rollouts, Rollouts):
            batch = batch_of(rollouts, **options)  # type: ignore[arg-type]
            scores, live = rollouts.stored_scores, rollouts.steps
            w = batch.weighed(batch.weights(estimator_of("multi" if estimator is None else estimator)))
        else:
            scores = rollouts if isinstance(rollouts, np.ndarray) else _check.scores(rollouts, rollouts=0)
            # Checks all but the scores, which are converted a block at a time.
            none = np.broadcast_to(np.float32(0.0), (*scores.shape[:2], 1)) if scores.ndim == 3 else scores
            terms = terms_of(none, estimator, **options, least=0)  # type: ignore[arg-type]
            live, w = terms.live, terms.weights
        one = _check.kernel_scores(scores[:1])
        self._refuse_other_coordinates("scores", scores.shape[2])
        n = len(scores)
        p = None if sample_weight is None else _check.non_negative("sample_weight", sample_weight, n)
        if rollouts_per_update is None:
            size = max(16, _UPDATE_BYTES // max(1, math.prod(one.shape) * one.dtype.itemsize))
        else:
            size = _check.positive_integer("rollouts_per_update", rollouts_per_update)
        state: _State | None = None
        with ExitStack() as stack:
            report = _check.reporter(progress, n, " rollouts", stack)
            for start in range(0, n, size):
                part = slice(start, start + size)
                block = _check.kernel_scores(scores[part])
                terms = Terms(block, w[part], live.rows(part), self._threads)
                new = _moments(terms, None if p is None else p[part], self.block_size, start)
                state = _merged(state, new, self._threads)
                report(min(start + size, n), n)
        if state is not None:
            self._take("scores", state)

    def merge(self, other: CovarianceAccumulator) -> None:
        """Take in all rollouts of another accumulator, of the same block_size and D, which stays as it is."""
        if not isinstance(other, CovarianceAccumulator):
            raise TypeError(f"other must be a CovarianceAccumulator, got {type(other).__name__}")
        if other.block_size != self.block_size:
            raise ValueError(f"block_size must be {self.block_size}, as here, got {other.block_size}")
        state = other._state
        if state is not None:
            self._take("other", state._replace(sums=state.sums.copy()))

    def _take(self, name: str, state: _State) -> None:
        """Take in the moments of other rollouts, which are used up."""
        with self._lock:
            self._refuse_other_coordinates(name, state.mean.shape[1])
            self._state = _merged(self._state, state, self._threads)

    def __add__(self, other: CovarianceAccumulator) -> CovarianceAccumulator:
        """Return a new accumulator of the rollouts of both."""
        if not isinstance(other, CovarianceAccumulator):
            return NotImplemented
        result = CovarianceAccumulator(block_size=self.block_size, num_threads=self._threads)
        result._state = self._state
        result.merge(other)
        return result

    def __radd__(self, other: int) -> CovarianceAccumulator:
        """Let `sum` of accumulators start from its 0."""
        if other != 0:
            return NotImplemented
        return CovarianceAccumulator(block_size=self.block_size, num_threads=self._threads) + self

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("_block_size", "_state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _threads=None, _lock=threading.Lock())
        _ALL.add(self)

    def covariance(self, *, ddof: int = 1, out: Double | None = None) -> Double:
        """Return the covariance matrix (B, B), as `rlvar.covariance` of all rollouts so far.

        Parameters
        ----------
        ddof, out
            As in `rlvar.covariance`.

        Raises
        ------
        ValueError
            Before the first update, or with no degrees of freedom left.
        """
        state = self._some()
        divisor = state.divisor(ddof)
        if out is not None:
            _check.out_array(out, state.sums.shape, np.dtype(np.float64))
        _check.in_range(np.array(float(state.sums.diagonal().max()) / divisor))
        with np.errstate(all="ignore"):
            result: Double = np.divide(state.sums, divisor, out=out)
        return result

    def growth(self, *, ddof: int = 1) -> Double:
        """Return the growth curve (B,): the variance of the sum of the first k terms, k = 1 .. B."""
        state = self._some()
        return _check.in_range(_growth(state.sums, state.divisor(ddof)))

    def totals(self, *, ddof: int = 1) -> Totals:
        """Return the total variance, its variance terms and its covariance terms."""
        state = self._some()
        divisor = state.divisor(ddof)
        total = float(_check.in_range(_growth(state.sums, divisor))[-1])
        with np.errstate(all="ignore"):
            variance = float(_check.in_range(state.sums.trace() / divisor))
        return Totals(total, variance, total - variance)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the accumulator to an .npz file, as a whole or not at all; a link's target is replaced."""
        fields: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "block_size": self.block_size}
        state = self._state
        files.write_arrays(path, fields if state is None else {**fields, **state._asdict()})

    @classmethod
    def load(cls, path: str | PathLike[str], *, num_threads: int | None = None) -> CovarianceAccumulator:
        """Read an accumulator that `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is damaged, something else, or from another version.
        """
        threads = _check.threads(num_threads)
        with files.opened(path) as (names, read):
            if "format.npy" not in names or read("format").item() != _FORMAT:
                raise ValueError("it is not a saved CovarianceAccumulator")
            version = read("version").item()
            if version != _VERSION:
                raise ValueError(f"it has version {version}, but this rlvar reads version {_VERSION}")
            result = cls(block_size=read("block_size").item(), num_threads=threads)
            if len(names) > 3:
                result._state = _read(read)
        return result

    def _some(self) -> _State:
        state = self._state
        if state is None:
            raise ValueError("the accumulator has no rollouts yet: call update first")
        return state

    def _refuse_other_coordinates(self, name: str, d: int) -> None:
        state = self._state
        if state is not None and state.mean.shape[1] != d:
            raise ValueError(f"{name} must have D = {state.mean.shape[1]} coordinates, as before, got {d}")


def _moments(terms: Terms, p: Double | None, block_size: int, first: int) -> _State:
    """Return the moments of one batch; errors count rollouts from `first`."""
    n, t, d = terms.scores.shape
    samples = _check.samples(p, n)
    blocks = -(-t // block_size)
    sums, mean, tail = np.empty((blocks, blocks)), np.empty((blocks, d)), np.empty((blocks, d))
    terms = terms.counted(samples.weight)
    terms.covariance(samples.weight, 1.0, min(block_size, t), sums, mean, tail)
    if not (np.isfinite(sums.diagonal()).all() and np.isfinite(mean).all()):
        _check.raise_not_finite(terms.scores, terms.live, first)
    square, pairs = (x / samples.v1**2 if samples.v1 > 0 else 0.0 for x in (samples.v2, samples.pairs))
    return _State(n, samples.exponent, samples.v1, square, pairs, sums, mean, tail)


@_check.quiet
def _merged(a: _State | None, b: _State, threads: int | None) -> _State:
    """Return the moments of both; `b` is used up."""
    if a is None:
        return b
    rows = max(len(a.mean), len(b.mean))
    exponent = max((state.exponent for state in (a, b) if state.weight > 0), default=b.exponent)
    a, b = _padded(a, rows).scaled(exponent), _padded(b, rows).scaled(exponent)
    total = a.weight + b.weight
    sums = b.sums
    sums += a.sums
    delta = (b.mean - a.mean) + (b.tail - a.tail)
    share = b.weight / total if total > 0 else 0.0
    _core.add_product(delta, a.weight * share, sums, threads)
    _check.in_range(sums.diagonal())
    shift = delta * share
    mean = a.mean + shift
    # What rounding took from the sum (Knuth's two-sum), and the old tail.
    back = mean - a.mean
    tail = a.tail + ((a.mean - (mean - back)) + (shift - back))
    rest = a.weight / total if total > 0 else 0.0
    squares = a.square_weight * rest**2 + b.square_weight * share**2
    pairs = a.pairs * rest**2 + b.pairs * share**2 + 2.0 * rest * share
    return _State(a.rollouts + b.rollouts, exponent, total, squares, pairs, sums, mean, tail)


def _padded(state: _State, rows: int) -> _State:
    """Return the moments with terms of 0 for the rows that they lack."""
    missing = rows - len(state.mean)
    if missing == 0:
        return state
    below = ((0, missing), (0, 0))
    sums, mean, tail = np.pad(state.sums, (0, missing)), np.pad(state.mean, below), np.pad(state.tail, below)
    return state._replace(sums=sums, mean=mean, tail=tail)


def _growth(sums: Double, divisor: float = 1.0) -> Double:
    """Return the variance of the sum of the first k terms (B,), k = 1 .. B."""
    with np.errstate(all="ignore"):
        added = [2.0 * row[:i].sum() + row[i] for i, row in enumerate(sums)]
        return np.asarray(np.cumsum(added) / divisor)


def _read(read: Callable[[str], NDArray[Any]]) -> _State:
    """Return the state that a file holds; raise if it cannot be that of an accumulator."""
    rollouts, exponent = (operator.index(read(name).item()) for name in ("rollouts", "exponent"))
    weight, square_weight, pairs = (float(read(name).item()) for name in ("weight", "square_weight", "pairs"))
    sums, mean, tail = (np.ascontiguousarray(read(name)) for name in ("sums", "mean", "tail"))
    b, d = mean.shape
    for array, shape in ((sums, (b, b)), (mean, (b, d)), (tail, (b, d))):
        sound = array.size and array.dtype == np.float64 and np.isfinite(array).all()
        if array.shape != shape or not sound:
            raise ValueError(
                f"its moments are damaged: {array.dtype} of shape {array.shape}, not finite float64 {shape}"
            )
    # Weights are in units of the largest one's power of two, and Kish's size is at most the number.
    nothing = weight == square_weight == pairs == 0 and not sums.any()
    some = 1 <= weight <= 2 * rollouts and square_weight * rollouts >= 1 - 1e-9 and square_weight <= 1 + 1e-9
    some = some and pairs >= 0 and abs(square_weight + pairs - 1) <= 1e-9
    if rollouts < 0 or abs(exponent) > 4096 or not (nothing or some):
        raise ValueError("its weights are damaged: no rollouts can have them")
    # Positive semi-definite to the rounding of float32 products, as far as that is seen in B x B operations.
    diagonal, worst = sums.diagonal(), 1e-5 * max(sums.diagonal().max(), 0.0) + 1e-300
    bound = np.sqrt(np.maximum(diagonal, 0.0))
    cross = all((np.abs(row) <= bound * end + worst).all() for row, end in zip(sums, bound, strict=True))
    if (sums != sums.T).any() or (diagonal < 0).any() or not cross or (_growth(sums) < -b * worst).any():
        raise ValueError("its sums are damaged: no covariance can have them")
    return _State(rollouts, exponent, weight, square_weight, pairs, sums, mean, tail)
