"""What a sketch leaves uncertain is what other sketches of the same data would have said."""

import json
import math

import numpy as np
import pytest

import rlvar
from rlvar.stats.sketch_noise import of_the_whole

UNITS, PARAMETERS, DIRECTIONS, SKETCHES = 40, 150, 40, 200
BOTH = ["single", "multi"]


@pytest.fixture(scope="module")
def gradients():
    """Gradients of two estimators of one mean, with noise of many sizes."""
    rng = np.random.default_rng(5)
    sizes = np.exp(-np.arange(PARAMETERS) / 40)
    shared, own = rng.standard_normal((2, UNITS, PARAMETERS)) * sizes
    mean = rng.standard_normal(PARAMETERS) * sizes * 0.7
    return {"single": mean + shared + 0.5 * own, "multi": mean + 0.6 * shared}


@pytest.fixture(scope="module")
def whole(gradients):
    return rlvar.compare_gradients(gradients, unbiased=BOTH)


@pytest.fixture(scope="module")
def sketches(gradients):
    """The same by many sketches."""
    rng, found = np.random.default_rng(6), []
    for _ in range(SKETCHES):
        directions = rng.choice([-1.0, 1.0], (PARAMETERS, DIRECTIONS)) / math.sqrt(DIRECTIONS)
        some = {name: g @ directions for name, g in gradients.items()}
        found.append(rlvar.compare_gradients(some, unbiased=BOTH, sketched=True))
    return found


@pytest.mark.parametrize(
    ("name", "what"),
    [
        *(("single", what) for what in ("variance", "signal", "noise_scale")),
        *(("multi", what) for what in ("variance", "ratio", "signal", "noise_scale")),
    ],
)
def test_the_standard_errors_are_those_of_many_sketches(whole, sketches, name, what):
    values = np.array([getattr(each[name], what).value for each in sketches])
    told = np.array([getattr(each[name].sketch, what) for each in sketches])
    assert np.sqrt(np.mean(told**2)) == pytest.approx(values.std(ddof=1), rel=0.15)
    # And the values are those of all parameters, but for chance and a bias of order 1 / k.
    truth = getattr(whole[name], what).value
    assert values.mean() == pytest.approx(truth, abs=3 * values.std() / math.sqrt(SKETCHES) + 0.02 * truth)


def test_of_a_count_sketch_the_standard_errors_are_upper_bounds(gradients):
    rng, values, told = np.random.default_rng(7), [], []
    names = ("variance", "ratio", "signal", "noise_scale")
    for _ in range(SKETCHES):
        buckets = np.zeros((PARAMETERS, DIRECTIONS))
        where = np.arange(PARAMETERS), rng.integers(0, DIRECTIONS, PARAMETERS)
        buckets[where] = rng.choice([-1.0, 1.0], PARAMETERS)
        some = {name: g @ buckets for name, g in gradients.items()}
        row = rlvar.compare_gradients(some, unbiased=BOTH, sketched=True)["multi"]
        values.append([getattr(row, name).value for name in names])
        told.append([getattr(row.sketch, name) for name in names])
    assert (np.sqrt(np.square(told).mean(axis=0)) > np.std(values, axis=0)).all()


def test_what_two_batches_differ_by_is_that_of_all_parameters(whole, sketches):
    # Else the 40 directions would count for all that there are: norms would change by half as much again.
    for name in BOTH:
        truth = whole[name].batch_noise.at(1000)
        found = [each[name].batch_noise.at(1000) for each in sketches]
        assert np.mean([each.norm_change for each in found]) == pytest.approx(truth.norm_change, rel=0.1)
        assert np.mean([each.angle.value for each in found]) == pytest.approx(truth.angle.value, rel=0.03)


def test_the_dimension_of_a_sketch_is_turned_into_that_of_the_whole():
    # A covariance of the identity in P dimensions, seen through k: tr Sigma_k^2 = P + P^2 / k.
    p, k = 1000, 50
    dimension, along = of_the_whole(p**2 / (p + p**2 / k), 1 / p + 1 / k, k)
    assert dimension == pytest.approx(p)
    assert along == pytest.approx(1 / p)
    assert of_the_whole(50.0, 0.001, 50) == (math.inf, 0.0)


def make_rollouts(rng, k=16, **options):
    scores = rng.standard_normal((60, 4, 90)) @ rng.choice([-1.0, 1.0], (90, k)) / math.sqrt(k)
    return rlvar.Rollouts(scores, rng.standard_normal((60, 4)) + 1.0, **options)


def test_sketched_rollouts_say_it_in_rows_table_json_and_report(rng):
    rollouts = make_rollouts(rng, sketched=True, scores_of="all 90 parameters of Toy")
    result = rlvar.compare(rollouts)
    sketch = result["multi"].sketch
    assert sketch.coordinates == 16
    g = {
        name: (rlvar.estimator(name).weights(rollouts)[:, :, None] * rollouts.scores).sum(axis=1)
        for name in BOTH
    }
    deviations = {name: x - x.mean(axis=0) for name, x in g.items()}
    by_coordinate = {name: np.square(y).sum(axis=0) / 59 for name, y in deviations.items()}
    of_single, of_multi = (by_coordinate[name] for name in BOTH)
    assert sketch.variance == pytest.approx(math.sqrt(16 * of_multi.var(ddof=1)))
    left_out = (of_multi.sum() - of_multi) / (of_single.sum() - of_single)
    assert sketch.ratio == pytest.approx(math.sqrt(15 * left_out.var()))
    assert result["single"].sketch.ratio == pytest.approx(0, abs=1e-12)
    assert math.isnan(sketch.noise_scale) == (not result["multi"].noise_scale.resolved)
    text = str(result)
    assert text.startswith("Scores: a 16-dimensional sketch of all 90 parameters of Toy\n")
    assert "sketch of 16 directions: standard errors of variances" in text
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["rows"][1]["sketch"]["variance"] == sketch.variance
    report = rlvar.report(rollouts)
    assert "  Scores: a 16-dimensional sketch of all 90 parameters of Toy\n" in str(report)
    assert "16 directions" in report.text(full=True)


def test_a_small_sketch_asks_for_a_larger_one_and_a_large_one_does_not(rng):
    note = rlvar.compare(make_rollouts(rng, k=4, sketched=True)).notes[-1]
    assert "the variance of single (" in note
    assert note.endswith("A larger sketch would reduce them.")
    large = rlvar.compare(make_rollouts(rng, k=4000, sketched=True))
    assert not any("sketch" in each for each in large.notes)


def test_coordinates_that_are_no_sketch_have_no_such_noise(rng):
    plain = rlvar.compare(make_rollouts(rng, scores_of="all 16 parameters of Toy"))
    assert plain["multi"].sketch is None
    assert "sketch" not in str(plain)
    assert str(plain).startswith("Scores: all 16 parameters of Toy\n")
    assert "Scores" not in str(rlvar.compare(make_rollouts(rng)))


def test_one_direction_tells_nothing_of_others(rng):
    result = rlvar.compare(make_rollouts(rng, k=1, sketched=True))
    assert math.isnan(result["multi"].sketch.variance)
    assert "a 1-dimensional sketch" in str(result)
