import json

import numpy as np
import pytest

import reference
import rlvar


def make_rollouts(rng, n=18, t=7, d=3, **options):
    return rlvar.Rollouts(rng.standard_normal((n, t, d)) + 0.2, rng.standard_normal((n, t)), **options)


def weights_of(rollouts, name):
    """The estimators' weights by their definition."""
    live = {"mask": rollouts.mask, "lengths": rollouts.lengths}
    if name == "multi":
        return reference.reward_to_go(rollouts.rewards, **live)
    alive = reference.live_steps(rollouts.rewards.shape, **live)
    return np.where(alive, rollouts.rewards, 0).sum(axis=1)


GROUPS = list("aabbbcccddaabbeeff")


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("kind", ["all", "lengths", "mask"])
def test_every_number_matches_its_definition(isa, rng, groups, kind):
    options = {
        "all": {},
        "lengths": {"lengths": rng.integers(0, 8, 18)},
        "mask": {"mask": rng.random((18, 7)) < 0.7},
    }[kind]
    rollouts = make_rollouts(rng, groups=groups, **options)
    result = rlvar.compare(rollouts)
    labels = np.array(groups or np.arange(18))
    g = {
        name: reference.gradients(rollouts.scores, weights_of(rollouts, name), **options)
        for name in ("single", "multi")
    }

    def moment(name, i):
        return lambda kept: reference.pair_moments(g[name][kept], labels[kept])[i]

    everything = np.arange(18)
    for name in ("single", "multi"):
        row = result[name]
        for estimate, statistic in (
            (row.variance, moment(name, 0)),
            (row.signal, moment(name, 1)),
            (row.ratio, lambda kept, name=name: moment(name, 0)(kept) / moment("single", 0)(kept)),
        ):
            assert estimate.value == pytest.approx(statistic(everything), rel=1e-10)
            expected = reference.jackknife_stderr(statistic, labels)
            assert estimate.stderr == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert result.units == len(set(labels.tolist()))


def test_without_groups_the_variance_is_the_sample_variance(rng):
    rollouts = make_rollouts(rng)
    result = rlvar.compare(rollouts)
    for name in ("single", "multi"):
        g = reference.gradients(rollouts.scores, weights_of(rollouts, name))
        variance = g.var(axis=0, ddof=1).sum()
        assert result[name].variance.value == pytest.approx(variance)
        assert result[name].signal.value == pytest.approx((g.mean(axis=0) ** 2).sum() - variance / 18)
        parts = rlvar.decompose(rollouts.scores, weights_of(rollouts, name))
        assert result[name].variance.value == pytest.approx(parts.total_variance.value)
        assert result[name].variance.stderr == pytest.approx(parts.total_variance.stderr)


def test_dependent_samples_of_a_group_do_not_bias_the_variance():
    # g = prompt + completion, variances 4 and 1. With 6 prompts of 8, the sample variance that
    # takes rollouts for independent is low by 4 * 7/47 on average; ours is not.
    rng = np.random.default_rng(5)
    ours, naive = [], []
    for _ in range(400):
        g = 2 * rng.standard_normal((6, 1)) + rng.standard_normal((6, 8))
        rollouts = rlvar.Rollouts(g.reshape(48, 1, 1), np.ones(48), groups=np.repeat(np.arange(6), 8))
        ours.append(rlvar.compare(rollouts)["single"].variance.value)
        naive.append(g.var(ddof=1))
    error = np.std(ours) / np.sqrt(400)
    assert abs(np.mean(ours) - 5) < 3 * error
    assert np.mean(naive) < 5 - 3 * error


def test_the_paired_interval_is_narrower_than_that_of_independent_rollouts(rng):
    result = rlvar.compare(make_rollouts(rng, n=200))
    relative = [row.variance.stderr / row.variance.value for row in result]
    unpaired = result["multi"].ratio.value * np.hypot(*relative)
    assert result["multi"].ratio.stderr < 0.9 * unpaired


def test_the_reference_may_be_any_estimator_compared_or_not(rng):
    rollouts = make_rollouts(rng)
    both = rlvar.compare(rollouts, ["single", "multi"])
    swapped = rlvar.compare(rollouts, ["single"], reference="multi")
    assert len(swapped) == 1
    assert swapped["single"].ratio.value == pytest.approx(1 / both["multi"].ratio.value)
    assert swapped["single"].ratio.low == pytest.approx(1 / both["multi"].ratio.high)
    assert both["single"].ratio == rlvar.Estimate(1.0, 0.0, 1.0, 1.0)


def test_indexable_iterable_and_printable(rng):
    result = rlvar.compare(make_rollouts(rng), ["multi", "single"])
    assert [row.name for row in result] == ["multi", "single"]
    assert len(result) == 2
    assert "multi" in result
    assert "grpo" not in result
    with pytest.raises(KeyError, match="'grpo' was not compared; these were: multi, single"):
        result["grpo"]
    assert str(result).splitlines()[1].startswith("multi")
    fields = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert fields["rows"][0]["ratio"]["value"] == result["multi"].ratio.value


def test_two_rollouts_have_values_without_intervals(rng):
    result = rlvar.compare(make_rollouts(rng, n=2))
    assert result["multi"].variance.value > 0
    assert np.isnan(result["multi"].ratio.low)


def test_no_variance_gives_an_undefined_ratio():
    result = rlvar.compare(rlvar.Rollouts(np.ones((5, 2, 1)), np.ones(5)))
    assert result["multi"].variance.value == 0
    assert np.isnan(result["multi"].ratio.value)
    assert result["multi"].signal.value == pytest.approx(4.0)


def test_bits_do_not_depend_on_the_number_of_threads(rng):
    rollouts = make_rollouts(rng, n=300)
    one = rlvar.compare(rollouts, num_threads=1)
    for threads in (2, 3, 8):
        assert rlvar.compare(rollouts, num_threads=threads) == one


def test_a_bad_score_is_named(rng):
    scores = rng.standard_normal((5, 3, 2))
    scores[3, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"got scores\[3, 1, 0\] = nan"):
        rlvar.compare(rlvar.Rollouts(scores, np.ones((5, 3))))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((["magic"],), {}, ValueError, "estimators must be among single, multi, got 'magic'"),
        (("single",), {}, TypeError, "must be a sequence of names, got the string 'single'"),
        (([],), {}, ValueError, "at least one"),
        ((), {"reference": "magic"}, ValueError, "got 'magic'"),
        ((), {"confidence": 0}, ValueError, "confidence must lie strictly"),
        ((), {"num_threads": -1}, ValueError, "num_threads must be at least 1"),
    ],
)
def test_bad_arguments_are_named(rng, arguments, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.compare(make_rollouts(rng), *arguments, **options)


def test_one_group_and_foreign_containers_are_refused(rng):
    with pytest.raises(ValueError, match="at least two different labels"):
        rlvar.compare(make_rollouts(rng, groups=["x"] * 18))
    with pytest.raises(TypeError, match="rollouts must be a Rollouts, got ndarray"):
        rlvar.compare(np.ones((4, 3, 2)))
