"""Gradients already at hand say what the rollouts that they come from say."""

import json
import math

import numpy as np
import pytest

import rlvar

NAMES = ["single", "multi", "multi-mean", "rloo", "grpo", "dr-grpo", "otb", "single-optimal"]
UNBIASED = [name for name in NAMES if rlvar.estimator(name).unbiased]
# What is fitted to the rollouts is refitted without each of them, which gradients alone cannot be.
FITTED = "single-optimal"
GROUPS = np.repeat(np.arange(30), np.tile([2, 3, 4], 10))
ESTIMATES = ("variance", "ratio", "signal", "noise_scale", "noise_scale_ratio", "alignment")


def make_rollouts(rng, d=6, terminal=False, mean=0.3):
    n = len(GROUPS)
    scores = rng.standard_normal((n, 5, d)) + mean
    rewards = rng.standard_normal(n if terminal else (n, 5)) + 0.5
    lengths = rng.integers(1, 6, n)
    return rlvar.Rollouts(scores, rewards, lengths=lengths, groups=GROUPS)


def gradients_of(rollouts, names=NAMES):
    live = rollouts.live[:, :, None]
    weights = {name: rlvar.estimator(name).weights(rollouts)[:, :, None] for name in names}
    return {name: np.where(live, w * rollouts.scores, 0.0).sum(axis=1) for name, w in weights.items()}


def products_of(gradients, crossed=True):
    grams = {name: g @ g.T for name, g in gradients.items()}
    if crossed:
        names = list(gradients)
        for i, a in enumerate(names):
            grams.update({(a, b): gradients[a] @ gradients[b].T for b in names[i + 1 :]})
    return grams


def assert_same(ours, theirs, names=NAMES, rel=1e-9):
    assert (ours.units, ours.reference, len(ours)) == (theirs.units, theirs.reference, len(theirs))
    for name in names:
        a, b = ours[name], theirs[name]
        for field in ESTIMATES:
            for of in ("value", "stderr", "low", "high"):
                x, y = (getattr(getattr(row, field), of) for row in (a, b))
                assert x == pytest.approx(y, rel=rel, abs=rel, nan_ok=True), (name, field, of)
            assert getattr(a, field).resolved == getattr(b, field).resolved, (name, field)
        for field in ("variance_units", "ratio_units", "factor"):
            x, y = getattr(a, field), getattr(b, field)
            assert x == y is None or x == pytest.approx(y, rel=rel, nan_ok=True), (name, field)
        assert (a.differs, a.identical) == (b.differs, b.identical)
        for batch in (a.batch_noise, a.batch_noise.at(7)):
            other = b.batch_noise.at(batch.units)
            assert batch.angle.value == pytest.approx(other.angle.value, rel=rel)
            assert batch.norm_change == pytest.approx(other.norm_change, rel=rel)


@pytest.mark.parametrize("interval", ["jackknife", rlvar.Bootstrap(200, seed=3)])
@pytest.mark.parametrize("given", ["arrays", "products"])
@pytest.mark.parametrize("d", [6, 400])  # fewer coordinates than units, and more
def test_gradients_and_their_products_say_what_the_rollouts_say_in_groups(rng, given, interval, d):
    rollouts = make_rollouts(rng, d)
    theirs = rlvar.compare(rollouts, NAMES, reference="single", interval=interval)
    gradients, options = gradients_of(rollouts), {}
    if given == "products":
        gradients, options = products_of(gradients), {"gram_of": d}
    ours = rlvar.compare_gradients(
        gradients, reference="single", unbiased=UNBIASED, groups=GROUPS, interval=interval, **options
    )
    assert_same(ours, theirs, [name for name in NAMES if name != FITTED])
    assert ours[FITTED].variance.value == pytest.approx(theirs[FITTED].variance.value)
    assert ours.grouped
    assert ours.reference_unbiased


@pytest.mark.parametrize("given", ["arrays", "products"])
def test_means_of_groups_of_unequal_sizes_count_by_their_sizes(rng, given):
    rollouts, counts = make_rollouts(rng), np.bincount(GROUPS)
    gradients = {
        name: np.stack([g[u == GROUPS].mean(axis=0) for u in range(len(counts))])
        for name, g in gradients_of(rollouts).items()
    }
    options = {"reference": "single", "unbiased": UNBIASED, "sizes": counts}
    if given == "products":
        gradients, options = products_of(gradients), {**options, "gram_of": 6}
    theirs = rlvar.compare(rollouts, NAMES, reference="single")
    assert_same(
        rlvar.compare_gradients(gradients, **options), theirs, [name for name in NAMES if name != FITTED]
    )
    with pytest.raises(ValueError, match="sizes must be positive"):
        rlvar.compare_gradients(gradients, **{**options, "sizes": counts - 2})


@pytest.mark.parametrize("given", ["arrays", "products"])
def test_without_groups_each_gradient_is_a_unit(rng, given):
    names = ["single", "multi", "otb"]
    grouped = make_rollouts(rng)
    rollouts = rlvar.Rollouts(grouped.scores, grouped.rewards, lengths=grouped.lengths)
    gradients, options = gradients_of(rollouts, names), {}
    if given == "products":
        gradients, options = products_of(gradients), {"gram_of": 6}
    assert_same(
        rlvar.compare_gradients(gradients, unbiased=names, **options), rlvar.compare(rollouts, names), names
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_gradients_are_known_from_their_products(rng, dtype):
    gradients = gradients_of(make_rollouts(rng, terminal=True), ["single", "multi"])
    gradients = {name: g.astype(dtype) for name, g in gradients.items()}
    row = rlvar.compare_gradients(products_of(gradients), gram_of=6)["multi"]
    assert row.identical
    assert (row.factor, row.ratio.interval) == (1.0, (1.0, 1.0))


def test_products_of_each_estimator_alone_leave_the_alignment_unknown(rng):
    gradients = gradients_of(make_rollouts(rng), ["single", "multi", "grpo"])
    whole = rlvar.compare_gradients(gradients, groups=GROUPS)
    for interval in ("jackknife", rlvar.Bootstrap(200)):
        alone = rlvar.compare_gradients(
            products_of(gradients, crossed=False), gram_of=6, groups=GROUPS, interval=interval
        )
        assert math.isnan(alone["multi"].alignment.value)
        assert math.isnan(alone["multi"].alignment.high)
        assert alone["single"].alignment.value == 1.0
        assert "alignment" in alone.notes[-1]
        assert "not known" in str(alone)
        for name in gradients:
            for field in ("variance", "ratio", "signal", "noise_scale"):
                value = getattr(whole[name], field).value
                assert getattr(alone[name], field).value == pytest.approx(value, rel=1e-9)
    assert not any("alignment" in note for note in whole.notes)
    known = rlvar.compare_gradients(
        products_of(gradients, False), gram_of=6, groups=GROUPS, unbiased=["single", "multi"]
    )
    assert known["multi"].alignment.value == 1.0
    assert known.same_mean(known["multi"])


def test_what_only_the_caller_knows_is_not_taken_for_known(rng):
    gradients = gradients_of(make_rollouts(rng), ["single", "multi"])
    result = rlvar.compare_gradients(gradients)
    assert result.reference == "single"
    assert result["multi"].unbiased is None
    assert not result.same_mean(result["multi"])
    assert "may have different means" in str(result)
    both = rlvar.compare_gradients(gradients, unbiased=["single", "multi"])
    assert both["multi"].signal == both["single"].signal
    # What the data deny is told.
    far = {"near": 1 + rng.random((40, 3)), "far": 9 + rng.random((40, 3))}
    assert rlvar.compare_gradients(far, unbiased=list(far))["far"].differs


def test_float32_columns_give_what_float64_gives_to_their_precision(rng):
    gradients = gradients_of(make_rollouts(rng), ["single", "multi"])
    short = {name: g.astype(np.float32) for name, g in gradients.items()}
    exact = rlvar.compare_gradients(gradients)
    assert_same(rlvar.compare_gradients(short), exact, ["single", "multi"], rel=1e-5)
    long = {name: g.astype(np.float64) for name, g in short.items()}
    assert repr(rlvar.compare_gradients(short)) == repr(rlvar.compare_gradients(long))
    products = products_of(short)
    assert products["single"].dtype == np.float32
    assert_same(rlvar.compare_gradients(products, gram_of=6), exact, ["single", "multi"], rel=1e-3)


def test_tensors_are_taken(rng):
    torch = pytest.importorskip("torch")
    g = gradients_of(make_rollouts(rng), ["single", "multi"])
    tensors = {name: torch.tensor(x, requires_grad=True) for name, x in g.items()}
    assert repr(rlvar.compare_gradients(tensors)) == repr(rlvar.compare_gradients(g))


def test_units_are_called_so_and_the_result_is_json(rng):
    result = rlvar.compare_gradients({"mine": rng.standard_normal((20, 3)) + 2.0})
    text = str(result)
    assert "variance of one unit" in text
    assert "rollout" not in text
    assert str(result["mine"].batch_noise).startswith("Two batches of 20 independent units differ by")
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (found["unit"], found["grouped"], found["aggregation"]) == ("unit", False, None)
    with pytest.warns(UserWarning, match="only 4 units"):
        rlvar.compare_gradients({"mine": rng.standard_normal((4, 3))})
    with pytest.warns(UserWarning, match="only 5 groups"):
        rlvar.compare_gradients({"mine": rng.standard_normal((10, 3))}, groups=np.arange(10) // 2)


def test_headroom_reads_gradients_at_hand(rng):
    gradients = gradients_of(make_rollouts(rng, mean=0.0), ["single", "otb"])
    room = rlvar.headroom(rlvar.compare_gradients(gradients, unbiased=["single", "otb"]))
    assert room.best == "otb"


EYE = np.eye(12)
UNEQUAL = EYE.copy()
UNEQUAL[2, 3] = 0.1
NAN = np.ones((12, 3))
NAN[5, 1] = np.nan


@pytest.mark.parametrize(
    ("gradients", "options", "error", "message"),
    [
        ([EYE], {}, TypeError, "gradients must be a dict of arrays by name, got list"),
        ({}, {}, ValueError, "gradients must name at least one estimator"),
        ({"a": EYE, "b": np.eye(13)}, {}, ValueError, r"gradients\['b'\] must have shape .* got \(13, 13\)"),
        ({"a": np.ones(12)}, {}, ValueError, r"gradients\['a'\] must have shape \(U, D\)"),
        ({"a": np.ones((1, 3))}, {}, ValueError, r"gradients\['a'\] must have at least U = 2 units"),
        ({"a": EYE, "b": NAN}, {}, ValueError, r"gradients\['b'\] must have shape"),
        ({"a": NAN}, {}, ValueError, r"must be finite, got gradients\['a'\]\[5, 1\] = nan"),
        ({"a": [["x"]]}, {}, TypeError, r"gradients\['a'\] must be"),
        ({"a": EYE, ("a", "a"): EYE}, {}, TypeError, "pairs go with gram_of="),
        ({"a": EYE}, {"reference": "b"}, ValueError, "reference must be among a, got 'b'"),
        ({"a": EYE}, {"unbiased": "b"}, ValueError, "unbiased must be among a, got 'b'"),
        ({"a": EYE}, {"groups": np.zeros(12)}, ValueError, "groups must have at least two"),
        ({"a": EYE}, {"groups": np.zeros(11)}, ValueError, "groups must have shape"),
        ({"a": EYE}, {"interval": "t"}, ValueError, "interval must be"),
        ({"a": 1e200 * EYE}, {}, ValueError, r"gradients\['a'\] have squares beyond"),
        ({"a": NAN[:, :2]}, {"gram_of": 3}, ValueError, r"gradients\['a'\] must have shape \(U, U\)"),
        ({"a": [[1.0]]}, {"gram_of": 3}, ValueError, r"gradients\['a'\] must have at least U = 2"),
        ({"a": EYE * np.nan}, {"gram_of": 3}, ValueError, r"gradients\['a'\] must be finite"),
        ({"a": EYE}, {"gram_of": 0}, ValueError, "gram_of must be at least 1"),
        ({"a": EYE}, {"gram_of": 3, "sketched": True}, ValueError, "sketched needs the coordinates"),
        (
            {"a": UNEQUAL},
            {"gram_of": 3},
            ValueError,
            r"gradients\['a'\] must be symmetric, got .* at \[2, 3\]",
        ),
        ({"a": 1 - EYE}, {"gram_of": 3}, ValueError, r"gradients\['a'\] must be inner products"),
        ({"a": EYE, "b": -EYE}, {"gram_of": 3}, ValueError, r"gradients\['b'\] must be inner products"),
        (
            {"a": EYE, "b": EYE, ("b", "a"): 2 * EYE},
            {"gram_of": 3},
            ValueError,
            r"gradients\['b'\] must be inner products",
        ),
        ({"a": EYE, "b": EYE, ("b", "c"): EYE}, {"gram_of": 3}, ValueError, "or pairs of them, got"),
        (
            {"a": EYE, "b": EYE, "c": EYE, ("b", "a"): EYE},
            {"gram_of": 3},
            ValueError,
            r"all pairs of names or none, got none for \('a', 'c'\)",
        ),
    ],
)
def test_bad_gradients_are_named(gradients, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.compare_gradients(gradients, **options)


def test_gradients_that_never_vary_are_told(rng):
    still = rlvar.compare_gradients({"a": np.zeros((12, 12)), "b": EYE, ("a", "b"): 0 * EYE}, gram_of=3)
    assert still["a"].variance.value == 0
    assert still["b"].variance.value == pytest.approx(1.0)
