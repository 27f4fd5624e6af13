"""One grammar: verb(rollouts, estimator, *, options), with arrays as the second way in."""

import inspect
import json
import pickle

import numpy as np
import pytest

import rlvar
from rlvar import _core


@pytest.fixture
def arrays(rng):
    lengths = rng.integers(1, 8, 40)
    return {
        "scores": rng.standard_normal((40, 7, 3)),
        "rewards": rng.standard_normal((40, 7)),
        "lengths": lengths,
        "groups": np.arange(40) // 4,
    }


@pytest.fixture
def rollouts(arrays):
    return rlvar.Rollouts(**arrays)


@pytest.fixture
def to_go(arrays):
    return rlvar.reward_to_go(arrays["rewards"], lengths=arrays["lengths"])


def test_rollouts_and_an_estimator_give_what_scores_and_weights_give(arrays, rollouts, to_go):
    scores, lengths, groups = arrays["scores"], arrays["lengths"], arrays["groups"]
    ours = rlvar.decompose(rollouts, "multi")
    theirs = rlvar.decompose(scores, to_go, lengths=lengths, groups=groups)
    known = [line for line in repr(ours).splitlines() if "horizon" not in line]  # which takes rewards
    assert known == repr(theirs).splitlines()
    assert repr(rlvar.decompose(rollouts)) == repr(ours)
    assert repr(rlvar.decompose(rollouts, ("mine", to_go))) == repr(theirs)
    ours = rlvar.covariance(rollouts, "multi")
    np.testing.assert_array_equal(ours, rlvar.covariance(scores, to_go, lengths=lengths))
    whole = to_go[:, 0]
    both = rlvar.covariance(rollouts, ["multi", "single"])
    sets = np.stack([to_go, np.broadcast_to(whole[:, None], to_go.shape)])
    np.testing.assert_allclose(both, rlvar.covariance(scores, sets, lengths=lengths), rtol=1e-12)
    ours = rlvar.on_policy_test(rollouts)
    assert ours == rlvar.on_policy_test(scores, lengths=lengths, groups=groups)
    one, other = rlvar.CovarianceAccumulator(), rlvar.CovarianceAccumulator()
    one.update(rollouts, "multi")
    other.update(scores, to_go, lengths=lengths)
    np.testing.assert_array_equal(one.covariance(), other.covariance())
    one.update(rollouts, "single")
    other.update(scores, whole, lengths=lengths)
    np.testing.assert_allclose(one.covariance(), other.covariance(), rtol=1e-12)


def test_ratios_of_importance_are_in_the_terms(rng, arrays):
    logp, old = rng.standard_normal((2, 40, 7)) / 4
    stale = rlvar.Rollouts(**arrays, logp=logp, behavior_logp=old)
    row = rlvar.compare(stale, ["multi"], importance="token", truncate=2.0)["multi"]
    parts = rlvar.decompose(stale, "multi", importance="token", truncate=2.0)
    matrix = rlvar.covariance(stale, "multi", importance="token", truncate=2.0)
    assert parts.variance.value == pytest.approx(matrix.sum())
    assert parts.signal.value == pytest.approx(row.signal.value)


VERBS = {
    "decompose": rlvar.decompose,
    "covariance": rlvar.covariance,
    "update": lambda *args, **options: rlvar.CovarianceAccumulator().update(*args, **options),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_what_goes_with_the_other_way_in_is_named(verb, arrays, rollouts):
    with pytest.raises(TypeError, match="lengths goes with scores; pass it to Rollouts instead"):
        verb(rollouts, "multi", lengths=arrays["lengths"])
    with pytest.raises(TypeError, match="mask goes with scores"):
        verb(rollouts, "multi", mask=np.ones((40, 7)))
    with pytest.raises(TypeError, match="estimator 'multi' needs Rollouts, got scores: pass weights"):
        verb(arrays["scores"], "multi")
    with pytest.raises(TypeError, match="importance needs Rollouts with logp and behavior_logp, got scores"):
        verb(arrays["scores"], importance="token")
    with pytest.raises(ValueError, match="unknown estimator 'magic'"):
        verb(rollouts, "magic")


def test_rollouts_are_wanted_by_name(arrays):
    for verb in (rlvar.compare, rlvar.report, rlvar.prompt_components):
        with pytest.raises(TypeError, match="rollouts must be a Rollouts, got ndarray"):
            verb(arrays["scores"])


def test_dir_is_what_is_public():
    assert dir(rlvar) == sorted(rlvar.__all__)
    assert all(hasattr(rlvar, name) for name in rlvar.__all__)


def test_the_repr_of_a_result_is_its_table(rollouts):
    comparison = rlvar.compare(rollouts, ["single", "otb", "rloo"])
    components = rlvar.prompt_components(rollouts)
    results = [
        comparison,
        rlvar.report(rollouts),
        rlvar.decompose(rollouts),
        rlvar.on_policy_test(rollouts),
        rlvar.headroom(comparison),
        components,
        rlvar.plan(components, target=1.0, cost_prompt=1),
        comparison["single"].variance,
    ]
    for result in results:
        assert repr(result) == str(result)
        assert "Estimate(" not in repr(result)
        assert type(result).__name__ not in repr(result)


def test_results_pickle(rollouts):
    for result in (rlvar.compare(rollouts, ["single", "rloo"]), rlvar.report(rollouts)):
        assert repr(pickle.loads(pickle.dumps(result))) == repr(result)


def test_a_number_has_one_name(rollouts):
    for result in (rlvar.decompose(rollouts), rlvar.prompt_components(rollouts)):
        assert isinstance(result.variance, rlvar.Estimate)
    accumulator = rlvar.CovarianceAccumulator()
    accumulator.update(rollouts, "multi")
    assert accumulator.totals().variance == pytest.approx(rlvar.decompose(rollouts).variance.value)


def test_the_report_is_what_the_command_prints(rollouts, tmp_path, capsys):
    from rlvar.cli import main

    rlvar.save_rollouts(tmp_path / "r.npz", rollouts)
    assert main(["report", str(tmp_path / "r.npz"), "--reference", "multi"]) == 0
    report = rlvar.report(rollouts, reference="multi", source=str(tmp_path / "r.npz"))
    assert capsys.readouterr().out == f"{report}\n"


def test_lengths_and_mask_stand_in_one_order_and_together():
    for name in rlvar.__all__:
        function = getattr(rlvar, name)
        if callable(function):
            parameters = list(inspect.signature(function).parameters)
            given = [each for each in parameters if each in ("lengths", "mask")]
            assert given in ([], ["lengths", "mask"]) or name in ("opo", "length_weights", "read_recorded"), (
                name
            )


KERNELS = ("means", "covariance", "shared_moments", "gradients", "projections", "unit_squares")


@pytest.mark.parametrize("ragged", [False, True])
def test_a_report_reads_the_scores_at_most_twelve_times(rng, monkeypatch, ragged):
    passes = []
    for name in KERNELS:
        kernel = getattr(_core, name)
        monkeypatch.setattr(
            _core, name, lambda *args, kernel=kernel, name=name: (passes.append(name), kernel(*args))[1]
        )
    scores, rewards = rng.standard_normal((64, 32, 16), np.float32), rng.standard_normal((64, 32))
    lengths = rng.integers(1, 33, 64) if ragged else None
    report = rlvar.report(rlvar.Rollouts(scores, rewards, lengths=lengths))
    assert len(passes) <= 8
    report.to_dict()
    assert len(passes) <= 12
    taken = len(passes)
    str(report)
    assert len(passes) == taken


@pytest.mark.parametrize("kind", ["all", "lengths", "mask"])
def test_rollouts_of_weight_0_are_not_read(rng, kind):
    scores, weights, p = (
        rng.standard_normal((6, 3, 2)),
        rng.standard_normal((6, 3)),
        np.array([1, 2, 0, 1, 3, 0]),
    )
    options = {
        "all": {},
        "lengths": {"lengths": [3, 2, 1, 3, 3, 2]},
        "mask": {"mask": rng.random((6, 3)) < 0.8},
    }
    options = options[kind]
    spoilt = scores.copy()
    spoilt[[2, 5]] = [[[np.nan]], [[np.inf]]]
    matrix = rlvar.covariance(scores, weights, sample_weight=p, **options)
    np.testing.assert_array_equal(rlvar.covariance(spoilt, weights, sample_weight=p, **options), matrix)
    sound, decomposed = (rlvar.decompose(x, weights, sample_weight=p, **options) for x in (scores, spoilt))
    assert str(sound) == str(decomposed)
    accumulator = rlvar.CovarianceAccumulator()
    accumulator.update(spoilt, weights, sample_weight=p, **options)
    np.testing.assert_allclose(accumulator.covariance(), matrix, rtol=1e-13)


@pytest.mark.parametrize("weight", [1e-8, 1e-12, 1e-15, 1e-100, 1e-300])
def test_two_rollouts_of_any_weights_have_half_their_squared_distance_as_variance(weight):
    scores, p = np.array([[[0.0]], [[1.0]]]), [weight, 1.0]
    assert rlvar.covariance(scores, sample_weight=p)[0, 0] == pytest.approx(0.5, rel=1e-14)
    assert rlvar.covariance(scores, sample_weight=p[::-1])[0, 0] == pytest.approx(0.5, rel=1e-14)
    accumulator = rlvar.CovarianceAccumulator()
    for one, of_one in zip(scores, p, strict=True):
        accumulator.update(one[None], sample_weight=[of_one])
    assert accumulator.covariance()[0, 0] == pytest.approx(0.5, rel=1e-14)


def test_the_json_of_a_report_is_small_and_the_large_arrays_are_asked_for(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((256, 1024, 1)), rng.standard_normal((256, 1024)))
    report = rlvar.report(rollouts)
    assert len(json.dumps(report.to_dict(), allow_nan=False)) < 300_000
    parts = report.decompositions["multi"]
    assert "mean" not in parts.to_dict()
    np.testing.assert_array_equal(parts.to_dict(arrays=["mean"])["mean"], parts.mean)
    with pytest.raises(ValueError, match=r"arrays must be among mean, lag_profile, .*, got 'growth'"):
        parts.to_dict(arrays=["growth"])
