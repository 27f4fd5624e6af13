"""The jackknife of fitted baselines: without a unit they are fitted to the others."""

import numpy as np
import pytest

import reference
import rlvar
from rlvar import _check
from rlvar.weights.batch import Batch
from rlvar.weights.refit import refit_of

GROUPS = [None, np.arange(60) // 3, np.random.default_rng(0).integers(0, 25, 60)]


def without(rollouts, name, u):
    """Rollouts that are left without unit u, and the weights that are fitted to them, folds as they are."""
    labels = np.arange(len(rollouts)) if rollouts.groups is None else rollouts.groups
    left, r = labels != u, rollouts.rewards
    if name == "single-mean":
        return left, r - (r[left].sum() - r) / (left.sum() - 1)
    squares = np.square(rollouts.scores.sum(axis=1)).sum(axis=1)
    folds = labels % min(10, labels.max() + 1)
    others = [left & (folds != fold) for fold in folds]
    return left, r - [squares[rows] @ r[rows] / squares[rows].sum() for rows in others]


@pytest.mark.parametrize("groups", GROUPS)
def test_a_mean_without_a_unit_is_that_of_the_others(rng, groups):
    rollouts = rlvar.Rollouts(rng.standard_normal((60, 2, 3)), rng.standard_normal(60), groups=groups)
    estimator, units = rlvar.estimator("single-mean"), _check.units(groups, 60)
    refit, slopes = refit_of(Batch.of(rollouts), estimator, units), rng.standard_normal(60)
    before = estimator.weights(rollouts)[:, 0]
    expected = []
    for u in range(len(units)):
        left, after = without(rollouts, "single-mean", u)
        expected.append(slopes[left] @ (after - before)[left])
    np.testing.assert_allclose(refit(slopes), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", GROUPS[:2])  # of groups of unlike sizes the first order is not enough
@pytest.mark.parametrize("name", ["single-mean", "single-optimal"])
def test_variances_without_a_unit_are_those_of_baselines_without_it(rng, name, groups):
    rollouts = rlvar.Rollouts(rng.standard_normal((60, 2, 3)), 1 + rng.standard_normal(60), groups=groups)
    ours = rlvar.compare(rollouts, [name])[name]._variances.left_out
    before = rlvar.estimator(name).weights(rollouts)[:, 0]
    exact, fixed = [], []
    for u in range(len(ours)):
        left, after = without(rollouts, name, u)
        both = rlvar.compare(rollouts[left], [("fitted", after[left]), ("fixed", before[left])])
        exact.append(both["fitted"].variance.value)
        fixed.append(both["fixed"].variance.value)
    added, of_refit = ours - fixed, np.subtract(exact, fixed)
    assert np.corrcoef(added, of_refit)[0, 1] > 0.9
    assert 0.7 < added.std() / of_refit.std() < 2  # to first order


def test_where_a_mean_has_nothing_to_gain_its_interval_covers():
    # R has mean 0 and no part in |s|^2: without it V, with the mean of the 19 others V (1 + 1/19).
    covered = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        rollouts = rlvar.Rollouts(rng.standard_normal((20, 1, 2)), rng.standard_normal(20))
        ratio = rlvar.compare(rollouts, ["single-mean"])["single-mean"].ratio
        covered.append(ratio.low <= 20 / 19 <= ratio.high)
    assert np.mean(covered) > 0.9


def test_other_estimators_have_nothing_to_refit(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((20, 3, 2)), rng.standard_normal((20, 3)))
    batch, units = Batch.of(rollouts), _check.units(None, 20)
    for name in ("single", "multi", "otb"):
        assert refit_of(batch, rlvar.estimator(name), units) is None
    g = reference.gradients(rollouts.scores, rollouts.rewards.sum(axis=1))
    expected = [np.delete(g, u, axis=0).var(axis=0, ddof=1).sum() for u in range(20)]
    left_out = rlvar.compare(rollouts, ["single"])["single"]._variances.left_out
    np.testing.assert_allclose(left_out, expected, rtol=1e-10)
