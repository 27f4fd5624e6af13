r"""How were the rollouts sampled? Repeated, in groups that are not given, or filtered by outcome.

Repeated rollouts equal an earlier one in scores and rewards to the bit. A policy of few sequences repeats
some by chance, so a count does not prove copies. What does is a pattern of labels (which rollouts are equal)
that independent draws of any distribution hardly ever have, in groups if they are given:

- all labels occur a multiple of m > 1 times, and there are nine more of them than groups: draws do that with
  a probability of about 2^-9 at most;
- equal labels lie side by side. Draws are exchangeable, so given their counts n the number A of neighbours
  with equal labels has the moments of random orders (Barton & David 1957), E A = sum n (n - 1) / N, and by
  Cantelli's inequality it is ten standard deviations above with a probability of at most 1 / 101.

Scores that were computed anew differ by rounding: where rollouts show no such pattern to the bit, but do if
scores that are equal to a hundredth count as equal, those do.

Without groups such a pattern may also come from prompts whose completions agree.
The same two tests of the first scores, or of the values of the first states, of different rollouts say
whether they come in groups, the prompts (or were sorted). Rollouts of one prompt in a row also show without
a common start: they resemble each other. With x the returns, or the returns times the summed scores, minus
their mean,

    z = sum_n y_n / sqrt(sum_n y_n^2),    y_n = x_n . (x_{n-1} + x_{n-2} + x_{n-3}),

is a sum of martingale differences over the root of its squares: for independent rollouts in random order it
is about standard normal, or smaller, under any tails (de la Pena 1999), and hardly ever above 4.

Filtered groups: no group is dead, its returns all equal, though the groups' own success rates make that
improbable. For returns of two values group u has x_u successes of K_u, and with success rates p ~ G

    P(x_u) = E Bin(x_u; K_u, p)   of all groups,    E Bin(x_u; K_u, p) / P(not dead | p)   if filtered;

the likelihood ratio of the two, each with the distribution G that fits best (on a grid, by the EM algorithm),
bounds how probable it is that none is dead. No estimate of a group's p is used: those of groups known to be
mixed are biased towards 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from rlvar import _check
from rlvar._types import Double
from rlvar.rollouts import Rollouts
from rlvar.stats.estimate import Estimate, Result
from rlvar.weights.batch import Batch

#: Estimators whose mean a filter by outcome only multiplies: their baselines are those of each group.
FILTER_PROOF = ("rloo",)
_FREE, _DEVIATIONS, _STANDARD_ERRORS, _ROUNDING = 9, 10.0, 4.0, 0.01
_CHUNK = 1 << 21  # numbers at a time
_IMPROBABLE = 0.01


@dataclass(frozen=True)
class Sampling(Result):
    """How the rollouts were sampled, as far as they show it.

    Attributes
    ----------
    rollouts : int
        Their number.
    repeated : int
        Rollouts that equal an earlier one in rewards, and in scores up to rounding.
    copied : bool
        Whether that cannot be chance: the repetitions have a pattern that independent rollouts do not have,
        given their groups. Without groups they may also be completions of one prompt that agree.
    sharing : int
        Without groups: rollouts whose first state, by `values`, or else first score is that of another one
        that is no copy. 0 with groups.
    shared : str
        What they share, "first value" or "first score".
    neighbours : bool
        Without groups: whether rollouts in a row resemble each other in returns or gradients, beyond chance.
    grouped : bool
        Whether either cannot be chance: these rollouts come in groups, which were not given.
    groups, dead_groups : int or None
        Groups of two rollouts or more, and those of them whose returns are all equal. None without groups.
    binary : bool
        Whether the returns of rollouts in groups take two values, so that a filter can be detected.
    filtered : bool or None
        True if groups were kept by their outcome: none is dead, which has a probability below 1 % without a
        filter; False if some are. None where that cannot be decided: without groups, with returns of more
        than two values, or where none is dead, but perhaps by chance.
    impossible : int
        Live steps whose `logp` is minus infinity, without `behavior_logp`: the policy that scores them never
        takes these actions, so another one did.
    padded : int
        Where all steps are live: rollouts whose last step has scores of 0 alone, as padding has.
    """

    _also = ("distinct", "mixed")
    rollouts: int
    repeated: int
    copied: bool
    sharing: int
    shared: str
    neighbours: bool
    grouped: bool
    groups: int | None
    dead_groups: int | None
    binary: bool
    filtered: bool | None
    impossible: int
    padded: int

    @property
    def distinct(self) -> bool | None:
        """Whether all rollouts differ; None if some are equal, but perhaps by chance."""
        return True if not self.repeated else False if self.copied else None

    @property
    def mixed(self) -> float | None:
        """Share of the groups that are not dead."""
        if not self.groups or self.dead_groups is None:
            return None
        return 1 - self.dead_groups / self.groups


@_check.quiet
def sampling_of(batch: Batch) -> Sampling:
    """Say how the rollouts of a batch were sampled.

    O(N (T + D)), and a pass over the scores of those that look equal.
    """
    rollouts = batch.rollouts
    labels = _equal_rollouts(batch)
    first = np.unique(labels, return_index=True)[1]
    repeated = len(labels) - len(first)
    copied = repeated > 0 and _copied(labels, rollouts.groups)
    sharing, shared, neighbours, grouped = 0, "first score", False, False
    if rollouts.groups is None:
        # Without copies. Rollouts that repeat by chance stay: those that differ are not exchangeable, as the
        # likely ones come first.
        starts, shared = _starts(rollouts, np.sort(first) if copied else np.arange(len(labels)))
        counts = np.bincount(starts, minlength=1)
        sharing = int(counts[counts > 1].sum())
        # One start for all is a state that an environment always starts in.
        grouped = len(counts) > 1 and _no_chance(starts)
        neighbours = not (copied or grouped or batch.several.any()) and _resemble_neighbours(batch)
    groups = dead = None
    binary = False
    if rollouts.groups is not None and not batch.several.any():
        units = _check.units(rollouts.groups, len(rollouts))
        several = units.sizes > 1
        groups = int(several.sum())
        dead = int((dead_groups(batch.returns, rollouts.groups, units) & several).sum())
        binary = _two_values(batch.returns)
    return Sampling(
        rollouts=len(rollouts),
        repeated=repeated,
        copied=copied,
        sharing=sharing,
        shared=shared,
        neighbours=neighbours,
        grouped=grouped or neighbours,
        groups=groups,
        dead_groups=dead,
        binary=binary,
        filtered=filtered_groups(batch),
        impossible=_impossible(rollouts),
        padded=_padded(rollouts),
    )


def _padded(rollouts: Rollouts) -> int:
    if rollouts.scores.ndim < 3 or rollouts.shape[1] < 2 or not rollouts.live.all():
        return 0
    return int(np.count_nonzero(~np.any(rollouts.scores[:, -1], axis=1)))


def _impossible(rollouts: Rollouts) -> int:
    if rollouts.logp is None or rollouts.behavior_logp is not None:
        return 0
    return int(np.count_nonzero(rollouts.live & np.isneginf(rollouts.logp)))


def dead_groups(returns: Double, labels: NDArray[np.int64], units: _check.Units) -> NDArray[np.bool_]:
    """Return which groups have equal returns (U,): a group of one has."""
    first = returns[units.members[units.offsets[:-1]]]
    return np.asarray(units.sums((returns != first[labels]).astype(np.float64)) == 0)


def kept_noise_scale(noise_scale: Estimate, mixed: float) -> Estimate:
    """Return RLOO's noise scale in groups that are not dead, m (N + 1) - 1 with their share m = `mixed`.

    A dead group has the gradient 0, so E g = m E[g | kept], and E |g|^2 = m E[|g|^2 | kept]. To keep these
    N + 1 - 1/m must be drawn: dropping the others saves their backward passes, but no rollouts.
    """
    value, low, high = (mixed * (x + 1) - 1 for x in (noise_scale.value, noise_scale.low, noise_scale.high))
    return replace(noise_scale, value=value, stderr=mixed * noise_scale.stderr, low=low, high=high)


@_check.quiet
def filtered_groups(batch: Batch) -> bool | None:
    """Return `Sampling.filtered`."""
    labels = batch.rollouts.groups
    if labels is None or batch.several.any():
        return None
    units, returns = _check.units(labels, len(labels)), batch.returns
    success = returns == returns.max()
    sizes, wins = units.sizes, units.sums(success.astype(np.int64))
    several = sizes > 1
    if not several.any() or not _two_values(returns):
        return None
    if (several & ((wins == 0) | (wins == sizes))).any():
        return False
    return chance_of_no_dead_group(wins[several], sizes[several]) < _IMPROBABLE or None


def _two_values(returns: Double) -> bool:
    low, high = returns.min(), returns.max()
    return bool(low < high and ((returns == low) | (returns == high)).all())


def chance_of_no_dead_group(wins: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Bound the probability that no group is dead, by `wins` (U,) out of `sizes` (U,), none dead.

    It is the ratio of the largest likelihoods without and with a filter, at most 1.
    """
    kinds, counts = np.unique(np.stack([wins, sizes]), axis=1, return_counts=True)
    x, k = (each[:, None].astype(np.float64) for each in kinds)
    half = np.exp(np.linspace(math.log(1e-4), math.log(0.5), 25))
    p = np.concatenate([half, 1 - half[-2::-1]])
    choices = np.array([math.log(math.comb(int(b), int(a))) for a, b in kinds.T])[:, None]
    binomial = np.exp(choices + x * np.log(p) + (k - x) * np.log1p(-p))
    mixed = -np.expm1(k * np.log(p)) - np.exp(k * np.log1p(-p))
    free, kept = (_log_likelihood(each, counts) for each in (binomial, binomial / mixed))
    return math.exp(min(free - kept, 0.0))


def _log_likelihood(density: Double, counts: NDArray[np.int64]) -> float:
    """Largest log-likelihood of mixtures of densities (kinds, grid), by the EM algorithm (Laird 1978)."""
    weight = np.full(density.shape[1], 1 / density.shape[1])
    total = counts.sum()
    for _ in range(200):
        whole = (density * weight).sum(axis=1)
        weight = weight * ((counts / whole)[:, None] * density).sum(axis=0) / total
    return float((counts * np.log((density * weight).sum(axis=1))).sum())


def _no_chance(labels: NDArray[np.int64], groups: NDArray[np.int64] | None = None) -> bool:
    """Whether draws that are independent in each group hardly ever have such labels (N,)."""
    if groups is None:
        groups = np.zeros(len(labels), np.int64)
    kinds, counts = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    group_sizes = np.bincount(groups)
    if len(counts) - np.count_nonzero(group_sizes) >= _FREE and np.gcd.reduce(counts) > 1:
        return True
    order = np.argsort(groups, kind="stable")
    equal = np.diff(groups[order]) + np.abs(np.diff(labels[order])) == 0
    n, each = group_sizes[group_sizes > 1].astype(np.float64), counts.astype(np.float64)
    squares, cubes = (np.bincount(kinds[0], each**power)[group_sizes > 1] for power in (2, 3))
    mean = (squares - n) / n
    variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
    spread = math.sqrt(max(variance.sum(), 0.0))
    return bool(spread > 0 and np.count_nonzero(equal) - mean.sum() > _DEVIATIONS * spread)


def _copied(labels: NDArray[np.int64], groups: NDArray[np.int64] | None) -> bool:
    """Whether equal rollouts, in their groups or with all of their group, are no chance."""
    if groups is None:
        return _no_chance(labels)
    units = _check.units(groups, len(groups))
    pairs = zip(units.offsets, units.offsets[1:], strict=False)
    whole = _numbered(np.sort(labels[units.members[a:b]]).tobytes() for a, b in pairs)
    return _no_chance(labels, groups) or _no_chance(whole)


def _resemble_neighbours(batch: Batch) -> bool:
    """Whether returns, or gradients of the whole returns, of rollouts in a row are alike beyond chance."""
    r, s = batch.returns, batch.summed_scores()
    step = max(1, _CHUNK // len(r))
    of_gradients = np.zeros(len(r))
    for start in range(0, s.shape[1], step):
        of_gradients += _with_neighbours(r[:, None] * s[:, start : start + step])
    return any(
        bool(y.sum() > _STANDARD_ERRORS * math.sqrt(np.square(y).sum()) > 0)
        for y in (_with_neighbours(r[:, None]), of_gradients)
    )


def _with_neighbours(x: Double) -> Double:
    """Products (N,) of deviations x (N, D) from their mean with the sum of the three before."""
    x = x - x.mean(axis=0)
    before = np.zeros_like(x)
    for lag in range(1, 4):
        before[lag:] += x[:-lag]
    return np.asarray((x * before).sum(axis=1))


def _numbered(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)


def _equal_rollouts(batch: Batch) -> NDArray[np.int64]:
    """Number rollouts (N,) so that equal ones have one number; those without a live step equal none.

    To the bit or, if that shows no pattern of copies and this does, but for rounding.
    """
    rollouts, rewards = batch.rollouts, batch.rollouts.rewards
    rewards = np.ascontiguousarray(rewards if rewards.ndim == 1 else np.where(batch.live, rewards, 0.0))
    alike = _numbered(
        (length, reward.tobytes()) if length else n
        for n, (length, reward) in enumerate(zip(rollouts.token_counts.tolist(), rewards, strict=True))
    )
    exact = _equal_to_the_bit(rollouts, alike)
    # A few numbers are close by chance.
    few = math.prod(rollouts.shape[1:]) < 8
    if few or (exact.max() + 1 < len(exact) and _copied(exact, rollouts.groups)):
        return exact
    near = _equal_but_for_rounding(batch, alike, exact)
    return near if near.max() < exact.max() and _copied(near, rollouts.groups) else exact


def _equal_to_the_bit(rollouts: Rollouts, alike: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number rollouts (N,) that are `alike` in lengths and rewards by their scores.

    A few first and last ones single out those that may be equal; of these all are compared.
    """
    scores, live = rollouts.kernel_scores, rollouts.live
    some = [np.ascontiguousarray(each) for each in at_the_ends(rollouts)]
    quick = _numbered((kind, a.tobytes(), b.tobytes()) for kind, a, b in zip(alike, *some, strict=True))
    whole = [0] * len(quick)
    for n in np.flatnonzero(np.bincount(quick)[quick] > 1).tolist():
        whole[n] = _hash(scores[n], live[n])
    return _numbered(zip(quick.tolist(), whole, strict=True))


def at_the_ends(rollouts: Rollouts) -> list[NDArray[np.floating]]:
    """Return a few coordinates of each rollout's first and last live scores."""
    scores, live = rollouts.kernel_scores, rollouts.live
    ends = np.argmax(live, axis=1), _check.row_ends(live) - 1
    return [scores[np.arange(len(scores)), steps, :8] for steps in ends]


def _equal_but_for_rounding(
    batch: Batch, alike: NDArray[np.int64], exact: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Number rollouts (N,) so that those that are `alike`, with scores equal to a hundredth, have one number.

    In the order of their summed scores along each of two directions each is compared with the three before.
    """
    scores, live, labels = batch.rollouts.kernel_scores, batch.live, exact.copy()
    some = at_the_ends(batch.rollouts)
    summed = batch.plain.summed_scores()
    for direction in np.random.default_rng(0).standard_normal((2, summed.shape[1])):
        order = np.lexsort((exact, np.einsum("nd,d->n", summed, direction), alike))
        for lag in range(1, 4):
            a, b = order[:-lag], order[lag:]
            near = (alike[a] == alike[b]) & (labels[a] != labels[b]) & (live[a] == live[b]).all(axis=1)
            for each in some:
                near &= _close(each[a], each[b])
            for one, other in zip(a[near].tolist(), b[near].tolist(), strict=True):
                if _close(scores[one][live[one]], scores[other][live[one]]).all():
                    labels[labels == labels[other]] = labels[one]
    return _numbered(labels.tolist())


def _close(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which rows (M, D) are equal, to a hundredth of the largest."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    squares = np.square(a).sum(axis=1)
    return np.asarray(np.square(a - b).sum(axis=1) <= _ROUNDING**2 * squares.max(initial=0.0))


def _hash(scores: NDArray[np.floating], live: NDArray[np.bool_]) -> int:
    """Return 128 bits of the live scores of one rollout."""
    rows = np.ascontiguousarray(scores if live.all() else scores[live])
    return int.from_bytes(blake2b(rows.view(np.uint8).data, digest_size=16).digest(), "little")


def _starts(rollouts: Rollouts, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], str]:
    """Number some rollouts so that those with one start have one number, and say by what."""
    live = rollouts.live[rows]
    rows, first = rows[live.any(axis=1)], np.argmax(live, axis=1)[live.any(axis=1)]
    if rollouts.values is not None:
        return _numbered(rollouts.values[rows, first].tolist()), "first value"
    at_first = np.ascontiguousarray(rollouts.kernel_scores[rows, first])
    # Scores of 0 say nothing of where they came from.
    keys = (each.tobytes() if each.any() else n for n, each in enumerate(at_first))
    return _numbered(keys), "first score"
