r"""What one training step says of the gradients' moments, and the exact sum of two shards of a step.

Of U units with gradients g_u of several estimators a, b and sizes L_u, n = sum L_u, everything comes from

    m = sum g_u / n,   z_u = g_u - L_u m,   Q_ab = sum z_a . z_b,   c = sum L_u z_u,   l = sum L_u^2:

covariances C_ab = Q_ab / (U - 1) / (n / U)^2 and cross signals m_a . m_b - C_ab / U, both unbiased as in
`rlvar.stats.moments`. Shards of disjoint units merge without a difference that cancels (Chan, Golub & LeVeque
1983): about the joint mean, d away from that of a shard,

    Q_ab + d_a . c_b + d_b . c_a + l d_a . d_b,   c + l d .

Estimators whose weights depend on more than their own rollout or group do not merge: a shard's weights are
not those of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from rlvar import _check
from rlvar._types import Double
from rlvar.analysis.compare_gradients import Given
from rlvar.analysis.prompt_curves import LEAST, prompt_parts, squares_between
from rlvar.analysis.sampling import filtered_groups
from rlvar.rollouts import Rollouts
from rlvar.stats.moments import column_parts
from rlvar.weights.batch import Batch
from rlvar.weights.estimators import Estimator

_LEAVE_ONE_OUT = ("rloo", "dr-grpo")
_BY_GROUP = ("rloo", "dr-grpo", "otb-verl")
_LENGTHS = 5  # of a step, at which terms are cut


@dataclass(frozen=True, eq=False)
class Cloud:
    """Gradients of U units by E estimators, as far as their sums tell."""

    units: int
    size: float  # n
    square: float  # l
    scatter: Double  # Q (E, E)
    dots: Double  # m_a . m_b (E, E)
    mean: Double | None  # m (E, D); without it nothing merges
    crossed: Double | None  # c (E, D); 0 if None, as for units of one size

    @classmethod
    @_check.quiet
    def of(cls, columns: Callable[[slice], Sequence[Double]], width: int, sizes: Double) -> Cloud:
        """Sum what `columns` gives: of some of the D = `width` coordinates the gradients (U, d) of each."""
        total, even = float(sizes.sum()), bool((sizes == sizes[0]).all())
        e, part = len(columns(slice(0, 1))), column_parts(len(sizes), width)
        scatter, (mean, crossed) = np.zeros((e, e)), np.zeros((2, e, width))
        for some in part:
            z = []
            for a, g in enumerate(columns(some)):
                m = g.sum(axis=0) / total
                of_a = g - sizes[:, None] * m
                rest = of_a.sum(axis=0) / total  # rounding of the mean
                of_a -= sizes[:, None] * rest
                mean[a, some] = m + rest
                if not even:
                    crossed[a, some] = np.einsum("u,ud->d", sizes, of_a)
                z.append(of_a)
            for a in range(e):
                for b in range(a + 1):
                    scatter[a, b] += np.einsum("ud,ud->", z[a], z[b])
        scatter = np.tril(scatter) + np.tril(scatter, -1).T
        square = float(np.square(sizes).sum())
        return cls(len(sizes), total, square, scatter, _products(mean, mean), mean, None if even else crossed)

    @property
    def covariance(self) -> Double:
        """C (E, E); NaN of one unit."""
        with np.errstate(all="ignore"):
            return np.asarray(self.scatter / np.float64(self.units - 1) * (self.units / self.size) ** 2)

    @property
    def signal(self) -> Double:
        """Unbiased E m_a . E m_b (E, E)."""
        return np.asarray(self.dots - self.covariance / self.units)

    def merge(self, other: Cloud) -> Cloud:
        """Return the cloud of the units of both."""
        assert self.mean is not None
        assert other.mean is not None
        size = self.size + other.size
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.size / size)
        scatter, crossed, even = np.zeros(self.scatter.shape), np.zeros(mean.shape), True
        for each, d in ((self, apart * (-other.size / size)), (other, apart * (self.size / size))):
            scatter += each.scatter + each.square * _products(d, d)
            crossed += each.square * d
            if each.crossed is not None:
                both = _products(d, each.crossed)
                scatter += both + both.T
                crossed += each.crossed
                even = False
        even = even and self.size / self.units == other.size / other.units
        dots = _products(mean, mean)
        units, square = self.units + other.units, self.square + other.square
        return Cloud(units, size, square, scatter, dots, mean, None if even else crossed)

    def only(self, rows: Sequence[int]) -> Cloud:
        """Return some of the estimators."""
        assert self.mean is not None
        mean, crossed = self.mean[rows], None if self.crossed is None else self.crossed[rows]
        each = np.ix_(rows, rows)
        return replace(self, scatter=self.scatter[each], dots=self.dots[each], mean=mean, crossed=crossed)

    def without_means(self) -> Cloud:
        return replace(self, mean=None, crossed=None)

    @property
    def kept(self) -> int:
        """How many numbers its means are."""
        return sum(x.size for x in (self.mean, self.crossed) if x is not None)


def _products(a: Double, b: Double) -> Double:
    return np.asarray(np.einsum("ad,bd->ab", a, b))


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the V(K) of `rlvar.analysis.prompt_curves` is made of, in sums over groups."""

    least: int  # completions of a batch: 1 for weights of each rollout alone, 2 for leave-one-out
    groups: int
    rollouts: int
    square: float  # of the groups' sizes, their sum
    # Squares between and within groups, and 0; or the sums of the three parts of a U-statistic.
    sums: Double
    cloud: Cloud | None = None  # of the prompts' mean gradients, for leave-one-out

    @property
    def defined(self) -> bool:
        return self.groups > 1 and self.rollouts > self.groups

    @property
    def pivot(self) -> float:
        """Completions of a group, as they count in the squares between groups."""
        if self.least > 1:
            return self.rollouts / self.groups
        return (self.rollouts - self.square / self.rollouts) / (self.groups - 1)

    @property
    def values(self) -> Double:
        """Components between, within, pairs (3,), each unbiased."""
        if self.cloud is not None:
            values = self.sums / self.groups
            values[0] -= self.cloud.signal[0, 0]
            return values
        within = self.sums[1] / (self.rollouts - self.groups)
        return np.array([(self.sums[0] / (self.groups - 1) - within) / self.pivot, within, 0.0])

    def merge(self, other: Prompts, apart: float) -> Prompts:
        """Return those of both, whose mean gradients differ by the square `apart`."""
        sums, rollouts = self.sums + other.sums, self.rollouts + other.rollouts
        cloud = None
        if self.cloud is not None and other.cloud is not None:
            cloud = self.cloud.merge(other.cloud)
        else:
            sums[0] += self.rollouts * other.rollouts / rollouts * apart
        groups, square = self.groups + other.groups, self.square + other.square
        return Prompts(self.least, groups, rollouts, square, sums, cloud)


@dataclass(frozen=True, eq=False)
class Sampled:
    """What the on-policy test takes: sums over rollouts and units of their scores."""

    off_diagonal: float  # sum over rollouts of |sum_t S_t|^2 - sum_t |S_t|^2
    trace: float  # sum over rollouts and t of |S_t|^2
    squares: float  # sum over units of |s_u|^2, s_u the sum of the unit's scores
    total: Double | None  # sum of all scores (D,)
    pairs: float  # sum over u != v of s_u . s_v

    def merge(self, other: Sampled) -> Sampled:
        assert self.total is not None
        assert other.total is not None
        total, squares = self.total + other.total, self.squares + other.squares
        pairs = self.pairs + other.pairs + 2 * float(np.einsum("d,d->", self.total, other.total))
        off_diagonal, trace = self.off_diagonal + other.off_diagonal, self.trace + other.trace
        return Sampled(off_diagonal, trace, squares, total, pairs)


@dataclass(frozen=True, eq=False)
class StepRecord:
    """One training step."""

    step: int
    rollouts: int
    batch: int | None  # rollouts of a batch in use, if not these
    reward: float  # mean return; NaN of gradients
    reference: int  # which of the estimators
    gradients: Cloud  # of the estimators
    unbiased: tuple[bool | None, ...]  # of the estimators, if there was no filter
    filtered: bool | None = None  # whether groups look kept by their outcome
    sampled: Sampled | None = None
    prompts: Prompts | None = None  # of the reference
    lengths: tuple[int, ...] = ()  # numbers of steps, whose first terms are summed
    cuts: Cloud | None = None

    @property
    def weight(self) -> float:
        """How much the step counts: its degrees of freedom."""
        return self.gradients.units - 1.0

    @property
    def mergeable(self) -> bool:
        return self.gradients.mean is not None

    def same(self, other: StepRecord) -> bool:
        """Whether the sums of both are the same to the bit, as of the same rollouts."""
        mine, others = self._numbers(), other._numbers()
        both = [(a, b) for a, b in zip(mine, others, strict=True) if a is not None and b is not None]
        return all(np.array_equal(a, b) for a, b in both) and any(np.any(a) for a, _ in both)

    def _numbers(self) -> list[Double | None]:
        sampled = self.sampled
        sums = None if sampled is None else np.array([sampled.trace, sampled.off_diagonal, sampled.squares])
        return [
            self.gradients.scatter,
            self.gradients.dots,
            self.gradients.mean,
            sums,
            None if sampled is None else sampled.total,
        ]

    def merge(self, other: StepRecord) -> StepRecord:
        """Return the record of the step, of which the two are shards of disjoint units."""
        n, first, second = self.rollouts + other.rollouts, self.gradients, other.gradients
        batches = [each.batch for each in (self, other) if each.batch is not None]
        lengths = tuple(k for k in self.lengths if k in other.lengths)
        cuts = None
        if self.cuts is not None and other.cuts is not None and lengths:
            cuts = self.cuts.only([self.lengths.index(k) for k in lengths])
            cuts = cuts.merge(other.cuts.only([other.lengths.index(k) for k in lengths]))
        prompts = self.prompts or other.prompts
        if self.prompts is not None and other.prompts is not None:
            assert first.mean is not None
            assert second.mean is not None
            apart = float(np.square(first.mean[self.reference] - second.mean[self.reference]).sum())
            prompts = self.prompts.merge(other.prompts, apart)
        sampled = None
        if self.sampled is not None and other.sampled is not None:
            sampled = self.sampled.merge(other.sampled)
        return StepRecord(
            step=self.step,
            rollouts=n,
            batch=max(batches, default=None),
            reward=(self.reward * self.rollouts + other.reward * other.rollouts) / n,
            reference=self.reference,
            gradients=first.merge(second),
            unbiased=tuple(map(all_known, zip(self.unbiased, other.unbiased, strict=True))),
            filtered=any_filtered((self.filtered, other.filtered)),
            sampled=sampled,
            prompts=prompts,
            lengths=lengths if cuts is not None else (),
            cuts=cuts,
        )

    @property
    def width(self) -> int:
        """Return the number of coordinates of its means."""
        return 0 if self.gradients.mean is None else self.gradients.mean.shape[1]

    def to_state(self) -> dict[str, Any]:
        """Return it as numbers, lists and dicts, without means."""
        assert not self.mergeable
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> StepRecord:
        """Return the record that `to_state` came from."""
        prompts, sampled = state["prompts"], state["sampled"]
        return cls(
            **{
                **state,
                "gradients": _cloud(state["gradients"]),
                "unbiased": tuple(state["unbiased"]),
                "sampled": None if sampled is None else Sampled(**sampled),
                "prompts": None
                if prompts is None
                else Prompts(
                    **{**prompts, "sums": np.array(prompts["sums"]), "cloud": _cloud(prompts["cloud"])}
                ),
                "lengths": tuple(state["lengths"]),
                "cuts": _cloud(state["cuts"]),
            }
        )

    @property
    def kept(self) -> int:
        """How many numbers its means are."""
        clouds = self.gradients, self.cuts, None if self.prompts is None else self.prompts.cloud
        total = 0 if self.sampled is None or self.sampled.total is None else len(self.sampled.total)
        return total + sum(each.kept for each in clouds if each is not None)

    def without_means(self) -> StepRecord:
        """Return what is left of it to pool."""
        prompts = self.prompts
        if prompts is not None and prompts.cloud is not None:
            prompts = replace(prompts, cloud=prompts.cloud.without_means())
        return replace(
            self,
            gradients=self.gradients.without_means(),
            sampled=None if self.sampled is None else replace(self.sampled, total=None),
            prompts=prompts,
            cuts=None if self.cuts is None else self.cuts.without_means(),
        )


def all_known(values: Iterable[bool | None]) -> bool | None:
    """Return False if one is, else None if one is, else True."""
    found = set(values)
    return False if False in found else None if None in found else True


def any_filtered(values: Iterable[bool | None]) -> bool | None:
    """Return whether groups look kept by their outcome: never where one dead group was not."""
    found = set(values)
    return False if False in found else True if True in found else None


def _plain(value: Any) -> Any:
    """Turn dataclasses into dicts, tuples and arrays into lists."""
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _cloud(state: Mapping[str, Any] | None) -> Cloud | None:
    if state is None:
        return None
    return Cloud(**{**state, "scatter": np.array(state["scatter"]), "dots": np.array(state["dots"])})


def separate(estimator: Estimator, grouped: bool) -> bool:
    """Whether weights depend on their own rollout or group alone, so that shards have those of the whole."""
    if estimator.base in ("grpo", "opo"):
        return grouped and estimator.parameters.get("scale") != "batch"
    return bool(estimator.per_rollout) or estimator.base in _BY_GROUP


@_check.quiet
def record_of_rollouts(
    rollouts: Rollouts,
    estimators: Sequence[Estimator],
    reference: int,
    step: int,
    batch_size: int | None,
    threads: int | None,
) -> StepRecord:
    """Sum up rollouts of one step."""
    batch = Batch.of(rollouts, threads=threads)
    n, _, d = rollouts.shape
    units = _check.some_units(rollouts.groups, n)
    counts, grouped = units.sizes.astype(np.float64), len(units) < n
    found = batch.gradients({each.name: batch.weights(each) for each in estimators})

    def columns(part: slice) -> list[Double]:
        rows = [g.whole(part) for g in found]
        return [units.sums(each) for each in rows] if grouped else rows

    gradients = Cloud.of(columns, d, counts)
    for i, each in enumerate(estimators):
        spread = batch.spread(each)
        if spread is not None:  # of a fit to fewer rollouts, which is not in the rows
            gradients.scatter[i, i] += spread.sum() * (len(units) - 1) / len(units)
    chosen, sums = estimators[reference], batch.summed_scores()
    squares = batch.plain.step_squares.sum()
    of_units = units.sums(sums) if grouped else sums
    total, square = of_units.sum(axis=0), float(np.square(of_units).sum())
    off = float((batch.plain.squares - batch.plain.step_squares.sum(axis=1)).sum())
    if (
        abs(off) <= rollouts.shape[1] * d * np.finfo(np.float64).eps * squares
    ):  # rounding must not pass for a sign
        off = 0.0
    lengths, cuts = _cuts(batch, chosen, units)
    return StepRecord(
        step=step,
        rollouts=n,
        batch=batch_size,
        reward=float(batch.step_rewards.sum() / n),
        reference=reference,
        gradients=gradients,
        unbiased=tuple(
            None if each.unbiased is None else each.unbiased and batch.unbiased for each in estimators
        ),
        filtered=filtered_groups(batch) if len(units) > 1 else None,
        sampled=Sampled(off, float(squares), square, total, float(np.square(total).sum()) - square),
        prompts=None if rollouts.groups is None else _prompts(batch, chosen, units),
        lengths=lengths,
        cuts=cuts,
    )


def _cuts(batch: Batch, chosen: Estimator, units: _check.Units) -> tuple[tuple[int, ...], Cloud | None]:
    """Sum up gradients of the first k terms, for the largest powers of 2 that half of the rollouts reach."""
    terms, n = batch.terms(chosen), len(batch.rollouts)
    alive = (terms.ends()[:, None] > np.arange(terms.weights.shape[1])).sum(axis=0)
    last = int((2 * alive >= n).sum())
    if last < 2:
        return (), None
    top = last.bit_length() - 1
    lengths = tuple(1 << k for k in range(max(0, top - _LENGTHS + 1), top + 1))
    before = np.arange(terms.weights.shape[1]) < np.array(lengths)[:, None, None]
    weights = np.where(before, terms.weights, 0.0)

    def columns(part: slice) -> list[Double]:
        return [units.sums(g) for g in terms.gradients_of(weights, part)]

    return lengths, Cloud.of(columns, batch.rollouts.shape[2], units.sizes.astype(np.float64))


def _prompts(batch: Batch, chosen: Estimator, units: _check.Units) -> Prompts | None:
    """Sum up what says how the reference depends on prompts and completions, if it is of a known form."""
    labels = batch.rollouts.groups
    assert labels is not None
    if chosen.base in _LEAVE_ONE_OUT:
        kept = np.flatnonzero(np.bincount(labels)[labels] >= LEAST)
        if not len(kept):
            return None
        labels = _check.group_labels(labels[kept], len(kept))
        units = _check.some_units(labels, len(labels))
        s = batch.summed_scores()
        parts, c = prompt_parts(s if len(kept) == len(s) else s[kept], batch.returns[kept], labels, units)
        cloud = Cloud.of(lambda part: [c[:, part]], c.shape[1], np.ones(len(c)))
        square = float(np.square(units.sizes).sum())
        return Prompts(2, len(units), len(kept), square, np.array([each.sum() for each in parts]), cloud)
    if not chosen.per_rollout:
        return None
    g = batch.gradients({chosen.name: batch.weights(chosen)})[0].whole()
    within, between = squares_between(g, labels, units)
    sums = np.array([between.sum(), within.sum(), 0.0])
    return Prompts(1, len(units), len(g), float(np.square(units.sizes).sum()), sums)


@_check.quiet
def record_of_gradients(given: Given, reference: int, step: int, batch_size: int | None) -> StepRecord:
    """Sum up unit gradients of one step."""

    def columns(part: slice) -> list[Double]:
        rows = [each.whole(part) for each in given.rows]
        return rows if given.units is None else [given.units.sums(each) for each in rows]

    cloud = Cloud.of(columns, given.rows[0].base.shape[1], given.sizes)
    if given.spans is not None:  # coordinates of their own at each step
        cloud = cloud.without_means()
    for name, variance in zip(given.names, np.diagonal(cloud.scatter), strict=True):
        if not np.isfinite(variance):
            raise ValueError(f"gradients[{name!r}] have squares beyond the range of float64; rescale them")
    return StepRecord(
        step=step,
        rollouts=round(cloud.size),
        batch=batch_size,
        reward=float("nan"),
        reference=reference,
        gradients=cloud,
        unbiased=tuple(True if name in given.unbiased else None for name in given.names),
    )
