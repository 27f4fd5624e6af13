import json
import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import stats as scipy_stats

import reference
import rlvar
from rlvar.stats.inference import infer
from rlvar.stats.moments import Sample
from sentences import told


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
    result = rlvar.compare(rollouts, ["single", "multi"])
    labels = np.array(groups or np.arange(18))
    alone = {name: rlvar.compare(rollouts, [name], reference=name)[name] for name in ("single", "multi")}
    g = {
        name: reference.gradients(rollouts.scores, weights_of(rollouts, name), **options)
        for name in ("single", "multi")
    }

    def moment(name, i):
        return lambda kept: reference.unit_moments(g[name][kept], labels[kept])[i]

    everything = np.arange(18)
    for name in ("single", "multi"):
        row = result[name]
        for estimate, statistic in (
            (row.variance, moment(name, 0)),
            (alone[name].signal, moment(name, 1)),
            (row.ratio, lambda kept, name=name: moment(name, 0)(kept) / moment("single", 0)(kept)),
        ):
            assert estimate.value == pytest.approx(statistic(everything), rel=1e-10)
            expected = reference.jackknife_stderr(statistic, labels)
            assert estimate.stderr == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert result["single"].signal == result["multi"].signal  # of either
    assert result["single"].signal in (alone["single"].signal, alone["multi"].signal)
    assert result.units == len(set(labels.tolist()))


@pytest.mark.parametrize("aggregation", ["sum", "sequence-mean", "token-mean"])
def test_groups_of_unequal_sizes_are_parts_of_one_mean_over_rollouts_everywhere(rng, aggregation):
    # Groups whose sizes tell of their gradients: a mean of groups is another number.
    groups = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    n = len(groups)
    scores = (np.bincount(groups)[groups] - 4.0)[:, None, None] + rng.standard_normal((n, 5, 3))
    lengths = np.full(n, 5) if aggregation == "token-mean" else rng.integers(1, 6, n)
    rollouts = rlvar.Rollouts(scores, np.ones(n), groups=groups, lengths=lengths)
    ours = rlvar.compare(rollouts, ["single"], aggregation=aggregation)["single"]
    each = {"sum": np.ones(n), "sequence-mean": 1 / lengths, "token-mean": np.full(n, 0.2)}[aggregation]
    parts = rlvar.decompose(scores, each, groups=groups, lengths=lengths)
    for name in ("value", "stderr", "low", "high"):
        assert getattr(ours.signal, name) == pytest.approx(getattr(parts.signal, name), rel=1e-10)
    if aggregation != "sequence-mean":
        test = rlvar.on_policy_test(scores, groups=groups, lengths=lengths)
        unit = 1.0 if aggregation == "sum" else 5.0
        theirs = test.mean_score.value * test.trace.value / unit**2
        assert ours.signal.value == pytest.approx(theirs, rel=1e-10)
    g = reference.gradients(scores, np.broadcast_to(each[:, None], (n, 5)), lengths=lengths)
    assert ours.signal.value == pytest.approx(reference.unit_moments(g, groups)[1], rel=1e-10)


def test_without_groups_the_variance_is_the_sample_variance(rng):
    rollouts = make_rollouts(rng)
    result = rlvar.compare(rollouts)
    for name in ("single", "multi"):
        g = reference.gradients(rollouts.scores, weights_of(rollouts, name))
        variance = g.var(axis=0, ddof=1).sum()
        alone = rlvar.compare(rollouts, [name], reference=name)[name]
        assert result[name].variance.value == pytest.approx(variance)
        assert alone.signal.value == pytest.approx((g.mean(axis=0) ** 2).sum() - variance / 18)
        parts = rlvar.decompose(rollouts.scores, weights_of(rollouts, name))
        assert result[name].variance.value == pytest.approx(parts.variance.value)
        assert result[name].variance.stderr == pytest.approx(parts.variance.stderr)


def test_dependent_samples_of_a_group_do_not_bias_the_variance():
    # g = prompt + completion, variances 4 and 1: a group's mean of 8 has 4 + 1/8. Taking rollouts
    # for independent would say 5/8.
    rng = np.random.default_rng(5)
    ours = []
    for _ in range(400):
        g = 2 * rng.standard_normal((6, 1)) + rng.standard_normal((6, 8))
        rollouts = rlvar.Rollouts(g.reshape(48, 1, 1), np.ones(48), groups=np.repeat(np.arange(6), 8))
        ours.append(rlvar.compare(rollouts)["single"].variance.value)
    assert abs(np.mean(ours) - 4.125) < 3 * np.std(ours) / np.sqrt(400)


def test_leave_one_out_weights_are_measured_by_group(rng):
    # All groups of two samples of a two-armed bandit with pi = 1/2, S = +-1 and reward 1 or 0:
    # rloo's A = r_i - r_j, and the mean of a group's two gradients is (r_1 - r_2) (S_1 - S_2) / 2.
    arms = np.array([[a, b] for a in (0, 1) for b in (0, 1)] * 25)
    scores = np.where(arms == 1, 1.0, -1.0).reshape(-1, 1, 1)
    rollouts = rlvar.Rollouts(scores, arms.ravel().astype(float), groups=np.repeat(np.arange(100), 2))
    result = rlvar.compare(rollouts, ["single", "rloo"])
    means = (arms[:, 0] - arms[:, 1]) ** 2.0  # 0, 1, 1, 0
    assert result["rloo"].variance.value == pytest.approx(means.var(ddof=1))
    assert result["rloo"].unbiased
    assert "variance of a group's mean" in str(result)


CATALOG_WEIGHTS = {
    "single": lambda r, to_go, alive, labels: r,
    "multi": lambda r, to_go, alive, labels: to_go,
    "single-mean": lambda r, to_go, alive, labels: r - (r.sum() - r) / (len(r) - 1),
    "multi-mean": lambda r, to_go, alive, labels: np.array(
        [
            [
                x - (np.mean(others) if len(others := np.delete(column, n)[np.delete(live, n)]) else 0)
                for x, column, live in zip(to_go[n], to_go.T, alive.T, strict=True)
            ]
            for n in range(len(r))
        ]
    ),
    "rloo": lambda r, to_go, alive, labels: reference.rloo(r, labels),
    "grpo": lambda r, to_go, alive, labels: reference.grpo(r, labels, eps=1e-6, ddof=1),
    "dr-grpo": lambda r, to_go, alive, labels: r - np.array([r[labels == label].mean() for label in labels]),
    "opo": lambda r, to_go, alive, labels: (
        r - np.array([np.average(r[labels == k], weights=alive.sum(axis=1)[labels == k]) for k in labels])
    ),
    "james-stein": lambda r, to_go, alive, labels: reference.james_stein(list(r), labels),
    "vl-norm": lambda r, to_go, alive, labels: (
        reference.rloo(r, labels) * reference.length_weights(alive.sum(axis=1), 1.0)
    ),
    "otb-verl": lambda r, to_go, alive, labels: reference.otb_verl(to_go, SQUARES, labels, mask=alive),
}
SQUARES = np.random.default_rng(1).random((18, 7))


@pytest.mark.parametrize("kind", ["lengths", "mask"])
def test_every_named_estimator_is_its_formula(rng, kind):
    labels = np.array(GROUPS)
    options = (
        {"lengths": rng.integers(1, 8, 18)} if kind == "lengths" else {"mask": rng.random((18, 7)) < 0.7}
    )
    values, logp, old = rng.standard_normal((3, 18, 7))
    rollouts = make_rollouts(
        rng, groups=labels, values=values, score_squares=SQUARES, logp=logp, behavior_logp=old, **options
    )
    alive = reference.live_steps((18, 7), **options)
    to_go, totals = weights_of(rollouts, "multi"), weights_of(rollouts, "single")
    weights = {name: f(totals, to_go, alive, labels) for name, f in CATALOG_WEIGHTS.items()}
    centred = weights["dr-grpo"]
    weights["reinforce++"] = centred / np.sqrt((centred**2).sum() / 17 + 1e-8)
    weights["single-optimal"] = reference.single_optimal(rollouts.scores, totals, labels, **options)
    for name, baseline in (("multi-optimal", "multi_optimal"), ("otb", "token_baseline")):
        weights[name] = getattr(reference, baseline)(rollouts.scores, to_go, labels, **options)
    given = {"gamma": 1.0, **options}
    weights["gae"] = reference.gae(rollouts.rewards, values, lam=0.95, **given)[0]
    weights["n-step"] = reference.n_step_returns(rollouts.rewards, values, 5, **given) - values * alive
    weights["vtrace"] = reference.vtrace(rollouts.rewards, values, np.exp(logp - old), **given)[1]
    names = [estimator.name for estimator in rlvar.estimators()]
    assert set(names) == set(weights)
    result = rlvar.compare(rollouts, names, reference="single")
    for name in names:
        own = rlvar.compare(rollouts, [(f"own {name}", weights[name])])[f"own {name}"]
        assert own.unbiased is None
        for field in ("variance", "ratio"):
            ours, theirs = getattr(result[name], field), getattr(own, field)
            assert ours.value == pytest.approx(theirs.value, rel=1e-9, abs=1e-9)


def test_terminal_rewards_serve_every_estimator(rng):
    terminal = rng.standard_normal(18)
    lengths = rng.integers(1, 8, 18)
    scores = rng.standard_normal((18, 7, 2))
    by_step = dict(zip(("values", "logp", "behavior_logp"), rng.standard_normal((3, 18, 7)), strict=True))
    per_step = np.zeros((18, 7))
    per_step[np.arange(18), lengths - 1] = terminal
    options = {"lengths": lengths, "groups": GROUPS, "score_squares": SQUARES, **by_step}
    names = [estimator.name for estimator in rlvar.estimators()]
    one = rlvar.compare(rlvar.Rollouts(scores, terminal, **options), names)
    other = rlvar.compare(rlvar.Rollouts(scores, per_step, **options), names)
    for name in names:
        assert one[name].variance.value == pytest.approx(other[name].variance.value, rel=1e-12)


def test_own_weights_and_functions(rng):
    rollouts = make_rollouts(rng)
    result = rlvar.compare(
        rollouts,
        [
            ("array", rollouts.rewards),
            ("per rollout", rollouts.rewards[:, 0]),
            ("function", lambda r: r.rewards * 2),
            "multi",
            rlvar.estimator("multi", gamma=0.5),
        ],
        reference="array",
    )
    assert result["function"].ratio.value == pytest.approx(4)
    assert [row.unbiased for row in result] == [None] * 3 + [True, False]
    discounted = rlvar.reward_to_go(rollouts.rewards, 0.5)
    same = rlvar.compare(rollouts, [("discounted", discounted)], reference="discounted")
    assert result[rlvar.estimator("multi", gamma=0.5).name].variance == same["discounted"].variance


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones((7, 18)), ValueError, r"estimator 'mine': weights must have shape \(N, T\) = \(18, 7\)"),
        (np.full(18, np.nan), ValueError, r"estimator 'mine': weights must be finite .*weights\[0\] = nan"),
        (["a"] * 18, TypeError, "estimator 'mine': weights must be float32"),
        (lambda r: r.nothing, ValueError, "estimator 'mine': AttributeError: 'Rollouts' object has"),
        (None, TypeError, "estimator 'mine'"),
    ],
)
def test_bad_weights_of_the_callers_own_are_named(rng, weights, error, message):
    with pytest.raises(error, match=message):
        rlvar.compare(make_rollouts(rng), [("mine", weights)])


def test_errors_of_any_kind_keep_the_name_and_their_cause(rng):
    class OddError(ValueError):
        def __init__(self, one, two):
            super().__init__(one, two)

    def odd(rollouts):
        raise OddError(1, 2)

    with pytest.raises(ValueError, match=r"estimator 'mine': OddError: \(1, 2\)") as caught:
        rlvar.compare(make_rollouts(rng), [("mine", odd)])
    assert isinstance(caught.value.__cause__, OddError)


def test_rloo_refuses_singletons_which_would_shrink_its_mean(rng):
    rollouts = make_rollouts(rng, groups=[0, 0, 1, *range(2, 17)])
    with pytest.raises(ValueError, match=r"estimator 'rloo': groups must have two scored rewards"):
        rlvar.compare(rollouts, ["rloo"])


def test_what_estimators_lists_can_be_compared(rng):
    rollouts = make_rollouts(rng)
    assert repr(rlvar.compare(rollouts, rlvar.estimators()[:2])) == repr(rlvar.compare(rollouts))


def test_what_the_rollouts_lack_is_named(rng):
    with pytest.raises(ValueError, match="estimator 'rloo' needs groups: pass groups= to Rollouts"):
        rlvar.compare(make_rollouts(rng), ["rloo"])
    with pytest.raises(ValueError, match="estimator 'gae' needs values: pass values= to Rollouts"):
        rlvar.compare(make_rollouts(rng), ["gae"])


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
    result = rlvar.compare(rlvar.Rollouts(np.ones((5, 2, 1)), np.ones(5)), ["multi"])
    assert result["multi"].variance.value == 0
    assert np.isnan(result["multi"].ratio.value)
    assert result["multi"].signal.value == pytest.approx(4.0)


def test_bits_do_not_depend_on_the_number_of_threads(rng):
    rollouts = make_rollouts(rng, n=300)
    one = rlvar.compare(rollouts, num_threads=1)
    for threads in (2, 3, 8):
        assert repr(rlvar.compare(rollouts, num_threads=threads)) == repr(one)


def test_a_bad_score_is_named(rng):
    scores = rng.standard_normal((5, 3, 2))
    scores[3, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"got scores\[3, 1, 0\] = nan"):
        rlvar.compare(rlvar.Rollouts(scores, np.ones((5, 3))))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((["magic"],), {}, ValueError, "unknown estimator 'magic'; choose from single, multi"),
        (([],), {}, ValueError, "at least one"),
        ((), {"reference": "magic"}, ValueError, "unknown estimator 'magic'; choose from single, multi"),
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


def test_noise_scale_is_variance_over_signal_and_its_ratio_is_paired(rng):
    rollouts = make_rollouts(rng, n=400)
    scores = rollouts.scores + 1.0  # a strong signal
    result = rlvar.compare(rlvar.Rollouts(scores, rollouts.rewards + 2), reference="multi")
    for row in result:
        assert row.signal.low > 0
        assert row.noise_scale.value == pytest.approx(row.variance.value / row.signal.value)
        assert row.noise_scale.low < row.noise_scale.value < row.noise_scale.high < np.inf
    ratio = result["single"].noise_scale.value / result["multi"].noise_scale.value
    assert result["single"].noise_scale_ratio.value == pytest.approx(ratio)
    own = result["multi"]
    assert (own.noise_scale_ratio.value, own.noise_scale_ratio.stderr) == (
        pytest.approx(1),
        pytest.approx(0, abs=1e-9),
    )
    assert own.alignment.value == pytest.approx(1)


def test_noise_scale_agrees_with_the_two_batches_of_mccandlish(rng):
    # With a small batch of 1 and a big one of N: |G|^2 = (N |G_N|^2 - |G_1|^2) / (N - 1) and
    # S = (|G_1|^2 - |G_N|^2) / (1 - 1 / N), |G_1|^2 being the mean over the rollouts.
    rollouts = make_rollouts(rng, n=50)
    row = rlvar.compare(rollouts, ["single"])["single"]
    g = reference.gradients(rollouts.scores, rollouts.rewards.sum(axis=1))
    small, big = (g**2).sum(axis=1).mean(), (g.mean(axis=0) ** 2).sum()
    assert row.signal.value == pytest.approx((50 * big - small) / 49)
    assert row.variance.value == pytest.approx((small - big) / (1 - 1 / 50))


def test_without_a_signal_the_noise_scale_has_no_upper_end(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((100, 3, 2)), rng.standard_normal((100, 3)))
    result = rlvar.compare(rollouts, ["single", ("now", rollouts.rewards)])
    row = result["now"]
    assert row.signal.low <= 0
    assert row.noise_scale.high == np.inf
    assert 0 <= row.noise_scale.low < row.noise_scale.high
    assert (row.noise_scale_ratio.low, row.noise_scale_ratio.high) == (0, np.inf)
    assert (row.alignment.low, row.alignment.high) == (-1, 1)
    assert row.to_dict()["noise_scale"]["high"] is None
    # Except beside itself: that needs no signal.
    same = rlvar.Estimate(1.0, 0.0, 1.0, 1.0)
    assert (result["single"].noise_scale_ratio, result["single"].alignment) == (same, same)


def test_estimators_of_other_means_rank_by_noise_scale(rng):
    scores = rng.standard_normal((300, 4, 2))
    rewards = 1 + 0.5 * scores[:, :, 0]
    halved = ("half", lambda rollouts: rollouts.rewards.sum(axis=1) / 2)
    result = rlvar.compare(rlvar.Rollouts(scores, rewards), [halved, "single"])
    half = result["half"]
    # Half of everything: a quarter of the variance, and yet no better.
    assert half.ratio.value == pytest.approx(0.25)
    assert half.noise_scale_ratio.value == pytest.approx(1)
    assert half.alignment.value == pytest.approx(1)
    text = str(result)
    assert "The estimators may have different means; ranked by noise scale:" in text
    assert "ranked by noise scale" not in str(rlvar.compare(rlvar.Rollouts(scores, rewards)))


def test_effective_units_say_how_few_rollouts_decide(rng):
    scores, rewards = rng.standard_normal((200, 3, 2)), np.ones((200, 3))
    light = rlvar.compare(rlvar.Rollouts(scores, rewards))["multi"]
    assert light.variance_units > 10
    assert light.ratio_units > 20
    rewards[7] = 1000
    row = rlvar.compare(rlvar.Rollouts(scores, rewards))["multi"]
    assert 1 <= row.variance_units < 1.02
    # By definition: the squares of what each unit changes in the variance, and in the ratio.
    g = {
        name: reference.gradients(scores, weights_of(rlvar.Rollouts(scores, rewards), name))
        for name in ("single", "multi")
    }
    kept = ~np.eye(200, dtype=bool)
    v = {name: np.array([x[k].var(axis=0).sum() for k in kept]) for name, x in g.items()}
    for x, found in ((v["multi"], row.variance_units), (v["multi"] / v["single"], row.ratio_units)):
        changes = np.square(x - x.mean())
        assert found == pytest.approx(changes.sum() ** 2 / (changes**2).sum(), rel=1e-6)
    fields = rlvar.compare(rlvar.Rollouts(scores, rewards)).to_dict()["rows"]
    assert fields[1]["ratio_units"] == pytest.approx(row.ratio_units)
    assert fields[0]["ratio_units"] is None  # of the reference with itself
    assert f"{row.variance_units:.3g}, {row.ratio_units:.3g} of 200" in str(
        rlvar.compare(rlvar.Rollouts(scores, rewards))
    )


def on_policy_rollouts(rng, n=200, t=3, **options):
    """Gaussian actions of mean 0, scored by the policy that sampled them, each with a reward of its own."""
    scores = rng.standard_normal((n, t, 2))
    return rlvar.Rollouts(scores, 1 + 0.3 * scores[..., 0] + rng.standard_normal((n, t)), **options)


@pytest.mark.parametrize("interval", ["jackknife", rlvar.Bootstrap(300)])
def test_unbiased_estimators_share_the_signal_of_the_quietest(rng, interval):
    rollouts = on_policy_rollouts(rng)
    half = ("half", lambda rollouts: rollouts.rewards.sum(axis=1) / 2)
    later = rlvar.estimator("multi", gamma=0.9)
    result = rlvar.compare(rollouts, ["single", "multi", "multi-mean", half, later], interval=interval)
    quietest = min((row for row in result if row.unbiased), key=lambda row: row.variance.value)
    alone = rlvar.compare(rollouts, [quietest.name], reference=quietest.name, interval=interval)
    assert quietest.name == "multi-mean"
    for row in result:
        if row.unbiased:
            assert row.signal == alone[quietest.name].signal
            assert row.noise_scale.value == pytest.approx(row.variance.value / row.signal.value)
            assert (row.factor, row.alignment) == (1.0, rlvar.Estimate(1.0, 0.0, 1.0, 1.0))
            # One mean: noise scales compare as variances, signal or no signal.
            assert row.noise_scale_ratio == row.ratio
    # What is proportional to one of them has its signal too, what has another mean has its own.
    assert result["half"].unbiased is None
    assert result["half"].factor == pytest.approx(0.5)
    assert result["half"].signal.value == pytest.approx(result["single"].signal.value / 4)
    own = rlvar.compare(rollouts, [later], reference=later, interval=interval)[later.name]
    assert result[later.name].signal == own.signal
    assert result[later.name].factor is None


def test_of_estimators_that_are_about_as_quiet_the_first_gives_the_signal():
    # The least of many is least by chance: its signal of 0 would be resolved in 6 to 7 %.
    resolved = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        base = rng.standard_normal((12, 1))
        samples = [Sample(base + rng.standard_normal((12, 1))) for _ in range(6)]
        found = infer(samples, 2, 0.95, classes=["unbiased"] * 6)
        assert len({each.signal for each in found}) == 1 or any(each.differs for each in found)
        resolved += found[0].signal.resolved
    assert resolved / 400 < 0.045


def test_what_the_data_deny_of_theory_is_told_and_nothing_is_shared():
    # A terminal reward that is spread over the steps: reward-to-go drops rewards that later actions decide.
    denied = []
    for seed in range(20):
        coins = np.random.default_rng(seed).random((200, 10)) < 0.5
        won = (coins.sum(axis=1) > 5).astype(float)
        scores = coins[:, :, None] - 0.5
        result = rlvar.compare(rlvar.Rollouts(scores, np.repeat(won[:, None] / 10, 10, axis=1)))
        terminal = rlvar.compare(rlvar.Rollouts(scores, won), ["single", "multi", "single-mean"])
        assert not any(row.differs for row in terminal)
        denied.append(result["multi"].differs)
        assert denied[-1] == (not result.same_mean(result["multi"]))
        assert denied[-1] == (result["multi"].signal != result["single"].signal)
    assert all(denied)


def test_means_that_agree_are_hardly_ever_denied():
    denied = 0
    for seed in range(500):
        rng = np.random.default_rng(seed)
        scores = rng.standard_normal((20, 4, 1))
        rollouts = rlvar.Rollouts(scores, rng.standard_exponential((20, 4)) + scores[..., 0])
        denied += rlvar.compare(rollouts)["multi"].differs
    assert denied <= 4


def test_signals_are_shared_within_one_kind_of_importance_ratio_only(rng):
    rollouts = stale_rollouts(rng, n=40)
    result = rlvar.compare(rollouts, ["single", "multi"], importance=["none", "sequence"])
    alone = rlvar.compare(rollouts, ["single", "multi"], importance="sequence")
    assert result["single:sequence"].signal == result["multi:sequence"].signal == alone["multi"].signal
    assert result["multi:none"].signal not in (alone["multi"].signal, result["single:none"].signal)
    assert (result["multi:sequence"].factor, result["multi:none"].factor) == (1.0, None)


def test_a_shared_signal_makes_noise_scales_finite_and_still_covers():
    # E g = 0.6 for each of eight steps, in one of two coordinates.
    rng, finite, covered = np.random.default_rng(0), np.zeros(2), 0
    truth = (8 * 0.6) ** 2
    for _ in range(300):
        scores = rng.standard_normal((40, 8, 2))
        rollouts = rlvar.Rollouts(scores, 1 + 0.6 * scores[..., 0] + rng.standard_normal((40, 8)))
        single = rlvar.compare(rollouts, ["single", "multi"])["single"]
        alone = rlvar.compare(rollouts, ["single"])["single"]
        finite += [np.isfinite(single.noise_scale.high), np.isfinite(alone.noise_scale.high)]
        covered += single.signal.low <= truth <= single.signal.high
    assert finite[0] > 1.5 * finite[1]
    assert covered / 300 > 0.92


GROUPED = np.repeat(np.arange(30), 4)


@pytest.mark.parametrize("interval", ["jackknife", rlvar.Bootstrap(300)])
def test_exact_factors_leave_no_doubt(rng, interval):
    scores = rng.standard_normal((120, 3, 2))
    rollouts = rlvar.Rollouts(scores, rng.standard_normal(120), groups=GROUPED)  # no signal at all
    minus = ("minus", lambda rollouts: -3.0 * rlvar.rloo(rollouts.rewards, GROUPED))
    names = ["rloo", "dr-grpo", "grpo", "reinforce++", minus]
    result = rlvar.compare(rollouts, names, reference="rloo", interval=interval)
    sure = rlvar.Estimate(1.0, 0.0, 1.0, 1.0)
    assert result["dr-grpo"].factor == pytest.approx(0.75)  # 1 - 1/K
    assert result["minus"].factor == pytest.approx(-3)
    for name, sign in (("dr-grpo", 1), ("reinforce++", 1), ("minus", -1)):
        row = result[name]
        assert row.ratio.low == row.ratio.value == row.ratio.high == pytest.approx(row.factor**2)
        assert row.noise_scale_ratio.value == pytest.approx(1, abs=1e-12)
        assert row.noise_scale_ratio.low == row.noise_scale_ratio.high == row.noise_scale_ratio.value
        assert row.alignment == rlvar.Estimate(sign, 0.0, sign, sign, resolved=True)
        assert row.noise_scale.value == pytest.approx(result["rloo"].noise_scale.value)
        assert not row.identical
        assert np.isnan(row.ratio_units)
    assert (result["rloo"].factor, result["rloo"].noise_scale_ratio) == (1.0, sure)
    assert result["grpo"].factor is None
    assert not result["grpo"].alignment.resolved
    # By way of rloo, beside a reference that neither is proportional to.
    beside = rlvar.compare(rollouts, ["single", "rloo", "dr-grpo"], interval=interval)["dr-grpo"]
    assert beside.factor == pytest.approx(0.75)
    assert beside.noise_scale_ratio.value == pytest.approx(beside.ratio.value / 0.75**2)


@pytest.mark.parametrize("mean", [0.1, 0.0, -0.1])
def test_the_units_that_would_resolve_a_signal_follow_from_the_margin_of_none(mean):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(30)
    x = (x - x.mean()) / x.std(ddof=1)
    x += np.sqrt(max(0.0, 1 / 30 + mean))  # a signal of `mean`, a variance of 1, in one coordinate
    row = rlvar.compare(rlvar.Rollouts(x[:, None, None], np.ones(30)), ["single"])["single"]
    needed = row.units_to_resolve
    jackknifed = row.variance.stderr / row.variance.value
    dof = min(29, 2 / jackknifed**2)

    def limit(units):  # V (F - 1) / U, of a variance that so many units tell
        return (scipy_stats.f.ppf(0.975, 1, dof * units / 30) - 1) / units

    assert row.signal.value == pytest.approx(max(mean, -1 / 30), abs=1e-12)
    assert not row.signal.resolved
    assert limit(needed.low) == pytest.approx(row.signal.high, rel=1e-4)
    assert needed.high == np.inf
    if mean > 0:
        assert limit(needed.value) == pytest.approx(mean, rel=1e-4)
        assert needed.value > 30
    elif mean < 0:
        assert needed.value == np.inf
    assert row.to_dict()["units_to_resolve"]["low"] == pytest.approx(needed.low)
    strong = rlvar.compare(rlvar.Rollouts(x[:, None, None] + 5, np.ones(30)), ["single"])["single"]
    assert strong.units_to_resolve.high < 30
    assert strong.units_to_resolve.resolved


@pytest.mark.parametrize("signal", [1e-6, 1e-12, 1e-18])
def test_units_that_resolve_a_signal_go_as_its_inverse_however_small_it_is(rng, signal):
    null = rlvar.compare(rlvar.Rollouts(rng.standard_normal((60, 1, 4)), rng.random(60)))["single"]._null
    needed = [null.units_for(each, 0.95) for each in (1e-5, signal)]
    assert needed[1] / needed[0] == pytest.approx(1e-5 / signal, rel=1e-2)


def test_so_many_units_resolve_a_signal_in_half_of_the_data_sets():
    rng, truth = np.random.default_rng(0), 0.04

    def rows(units):
        for g in rng.standard_normal((400, units, 2)) * [2.0, 1.0] + [0.2, 0.0]:
            yield rlvar.compare(rlvar.Rollouts(g[:, None], np.ones(units)), ["single"])["single"]

    # At the true signal; V and the F of many units are known.
    needed = np.median([row.units_to_resolve.value * row.signal.value / truth for row in rows(300)])
    resolved = np.mean([row.signal.resolved for row in rows(round(needed))])
    assert 0.4 < resolved < 0.6


def test_few_units_are_in_the_result_itself(rng):
    with pytest.warns(UserWarning, match="only 6 groups"):
        result = rlvar.compare(make_rollouts(rng, groups=GROUPS))
    assert result.notes == ("Only 6 groups: intervals may be far too narrow.",)
    assert result.to_dict()["notes"] == list(result.notes)
    assert str(result).endswith("Only 6 groups: intervals may be far too narrow.")


def test_a_hundred_thousand_units_finish(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((100_000, 1, 3)) + 0.1, np.ones(100_000))
    assert rlvar.compare(rollouts, ["single"])["single"].signal.resolved


def moments_by_definition(g, sizes, labels):
    """Variance and signal of sum g / sum sizes over units (labels), by the delta method."""
    names = list(dict.fromkeys(labels))
    g = np.array([g[labels == name].sum(axis=0) for name in names])
    sizes = np.array([sizes[labels == name].sum() for name in names], float)
    mean = g.sum(axis=0) / sizes.sum()
    variance = np.square((g - sizes[:, None] * mean) / sizes.mean()).sum() / (len(g) - 1)
    return variance, mean @ mean - variance / len(g)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("kind", ["lengths", "mask"])
def test_a_token_mean_is_a_ratio_of_sums_over_units(rng, groups, kind):
    options = (
        {"lengths": rng.integers(0, 8, 18)} if kind == "lengths" else {"mask": rng.random((18, 7)) < 0.7}
    )
    rollouts = make_rollouts(rng, groups=groups, **options)
    result = rlvar.compare(rollouts, ["single", "multi"], aggregation="token-mean")
    tokens = reference.live_steps((18, 7), **options).sum(axis=1)
    labels = np.array(groups or np.arange(18))
    for row in result:
        g = reference.gradients(rollouts.scores, weights_of(rollouts, row.name), **options)
        variance, signal = moments_by_definition(g, tokens, labels)
        assert row.variance.value == pytest.approx(variance)
        alone = rlvar.compare(rollouts, [row.name], reference=row.name, aggregation="token-mean")[row.name]
        assert alone.signal.value == pytest.approx(signal)
        expected = reference.jackknife_stderr(
            lambda kept, g=g: moments_by_definition(g[kept], tokens[kept], labels[kept])[0], labels
        )
        assert row.variance.stderr == pytest.approx(expected)
        assert row.unbiased
    assert ("a group's tokens" if groups else "one rollout's tokens") in str(result)


def test_the_variance_of_a_token_mean_is_that_of_resampled_batches(rng):
    lengths = rng.integers(1, 8, 400)
    rollouts = make_rollouts(rng, n=400, lengths=lengths)
    g = reference.gradients(rollouts.scores, weights_of(rollouts, "multi"), lengths=lengths)
    drawn = rng.integers(400, size=(4000, 400))
    means = g[drawn].sum(axis=1) / lengths[drawn].sum(axis=1)[:, None]
    row = rlvar.compare(rollouts, ["multi"], aggregation="token-mean")["multi"]
    assert row.variance.value / 400 == pytest.approx(means.var(axis=0).sum(), rel=0.08)  # 4 standard errors


def test_a_sequence_mean_divides_each_rollout_by_its_length(rng):
    lengths = rng.integers(1, 8, 18)
    rollouts = make_rollouts(rng, lengths=lengths)
    own = [
        ("own single", weights_of(rollouts, "single") / lengths),
        ("own multi", weights_of(rollouts, "multi") / lengths[:, None]),
    ]
    ours = rlvar.compare(rollouts, aggregation="sequence-mean")
    theirs = rlvar.compare(rollouts, own)
    for name in ("single", "multi"):
        same = theirs[f"own {name}"]
        assert ours[name].variance.value == pytest.approx(same.variance.value)
        assert ours[name].signal.stderr == pytest.approx(same.signal.stderr)
        # Past rewards and baselines do not drop out of a mean over a length that depends on the action.
        assert ours[name].unbiased is False
    assert "ranked by noise scale" in str(ours)


def test_with_equal_lengths_all_aggregations_agree_but_for_the_length(rng):
    rollouts = make_rollouts(rng)
    total, sequence, token = (
        rlvar.compare(rollouts, aggregation=a) for a in ("sum", "sequence-mean", "token-mean")
    )
    for name in ("single", "multi"):
        for row in (sequence[name], token[name]):
            assert row.unbiased
            assert 49 * row.variance.value == pytest.approx(total[name].variance.value)
            assert row.noise_scale.value == pytest.approx(total[name].noise_scale.value)
            assert row.ratio.stderr == pytest.approx(total[name].ratio.stderr)


def stale_rollouts(rng, n=18, **options):
    logp = -rng.exponential(1.0, (n, 7))
    return make_rollouts(
        rng, n=n, logp=logp, behavior_logp=logp + 0.2 * rng.standard_normal((n, 7)), **options
    )


@pytest.mark.parametrize("truncate", [None, 1.05])
def test_importance_ratios_multiply_the_weights(rng, truncate):
    lengths = rng.integers(1, 8, 18)
    rollouts = stale_rollouts(rng, lengths=lengths)
    kinds = ["none", "token", "sequence", "geometric"]
    together = rlvar.compare(rollouts, importance=kinds, truncate=truncate)
    assert [row.name for row in together] == [
        f"{name}:{kind}" for name in ("single", "multi") for kind in kinds
    ]
    # The first ratio that leaves its mean alone, if there is one.
    assert together.reference == ("single:sequence" if truncate is None else "single:none")
    for kind in kinds:
        rho = 1.0
        if kind != "none":
            rho = reference.importance_ratios(
                rollouts.logp, rollouts.behavior_logp, kind, truncate, lengths=lengths
            )
        own = [
            (f"own {n}", np.ones((18, 7)) * weights_of(rollouts, n).reshape(18, -1) * rho)
            for n in ("single", "multi")
        ]
        theirs = rlvar.compare(rollouts, own)
        alone = rlvar.compare(rollouts, importance=kind, truncate=truncate if kind != "none" else None)
        for name in ("single", "multi"):
            row = together[f"{name}:{kind}"]
            assert row.variance.value == pytest.approx(theirs[f"own {name}"].variance.value)
            assert row.variance == alone[name].variance
            assert row.unbiased == (kind == "sequence" and truncate is None)
            assert row.importance.importance == kind
    text = str(together)
    assert text.count("ratios: effective sample size") == 3
    assert "biased: off-policy rollouts without importance ratios" in text
    assert "token ratios" in text
    assert rlvar.compare(rollouts, importance=kinds, reference="multi:token").reference == "multi:token"


def test_optimal_baselines_are_fitted_to_the_weighted_scores(rng):
    rollouts = stale_rollouts(rng)
    rho = reference.importance_ratios(rollouts.logp, rollouts.behavior_logp, "token")
    scores = rollouts.scores * rho[:, :, None]
    totals, to_go = weights_of(rollouts, "single"), weights_of(rollouts, "multi")
    ours = rlvar.compare(rollouts, ["single-optimal", "multi-optimal", "otb"], importance="token")
    for name, function, returns in (
        ("single-optimal", "single_optimal", totals),
        ("multi-optimal", "multi_optimal", to_go),
        ("otb", "token_baseline", to_go),
    ):
        g = reference.gradients(scores, getattr(reference, function)(scores, returns))
        assert ours[name].variance.value == pytest.approx(g.var(axis=0, ddof=1).sum())


def test_rollouts_of_the_same_policy_need_no_ratio(rng):
    logp = -rng.exponential(1.0, (18, 7))
    rollouts = make_rollouts(rng, logp=logp, behavior_logp=logp)
    plain, weighted = rlvar.compare(rollouts), rlvar.compare(rollouts, importance="sequence")
    for name in ("single", "multi"):
        assert plain[name].unbiased
        assert weighted[name].variance == plain[name].variance
        assert weighted[name].importance.effective_size == 18


@pytest.mark.parametrize("aggregation", ["sum", "token-mean"])
@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(800), 2)])
def test_bootstrap_intervals_agree_with_the_jackknife(rng, aggregation, groups):
    scores = rng.standard_normal((1600, 4, 2))
    rewards = 1 + scores[:, :, 0] + scores[:, :, 1] * rng.integers(0, 2, (1600, 4))
    rollouts = rlvar.Rollouts(scores, rewards, groups=groups, lengths=rng.integers(1, 5, 1600))
    options = {"aggregation": aggregation}
    one = rlvar.compare(rollouts, **options)["multi"]
    other = rlvar.compare(rollouts, interval=rlvar.Bootstrap(), **options)["multi"]
    for name in ("variance", "ratio", "signal", "noise_scale", "noise_scale_ratio", "alignment"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.value == pytest.approx(theirs.value)
        width = ours.high - ours.low
        # An alignment near 1 ends there: its interval has no width to compare.
        assert name == "alignment" or 0.8 < (theirs.high - theirs.low) / width < 1.25
        assert abs(theirs.low - ours.low) < max(0.2 * width, 0.02)


def test_bootstraps_follow_their_seed(rng):
    rollouts = make_rollouts(rng, n=30)
    one, same, other = (
        rlvar.compare(rollouts, interval=rlvar.Bootstrap(300, seed=seed)) for seed in (1, 1, 2)
    )
    assert repr(one) == repr(same)
    assert one["multi"].variance.low != other["multi"].variance.low
    assert one.interval == "bootstrap"
    assert one["single"].ratio == rlvar.Estimate(1.0, 0.0, 1.0, 1.0)


SEQUENCES = ["single", "single-mean", "rloo", "grpo", "dr-grpo", "reinforce++", "opo"]


@pytest.mark.parametrize(
    ("t", "names", "interval", "times"),
    [
        (2, ["single", "multi"], "jackknife", 2.5),
        (2, ["single", "multi"], rlvar.Bootstrap(1000), 2.5),
        (1, SEQUENCES, rlvar.Bootstrap(1000), 3.5),
    ],
)
def test_memory_is_that_of_the_gradients_which_differ_in_more_than_a_number(rng, t, names, interval, times):
    scores = rng.standard_normal((40, t, 100_000), np.float32)
    rollouts = rlvar.Rollouts(scores, rng.standard_normal((40, t)), groups=np.arange(40) // 4)
    tracemalloc.start()
    rlvar.compare(rollouts, names, interval=interval)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < times * scores.nbytes


def test_squares_below_the_range_of_float64_are_told(rng):
    rollouts = make_rollouts(rng, n=30)
    tiny = rlvar.Rollouts(rollouts.scores * 1e-200, rollouts.rewards)
    for tell in (rlvar.compare, rlvar.on_policy_test, lambda tiny: rlvar.decompose(tiny, "multi").signal):
        with pytest.raises(ValueError, match="below the range of float64"):
            tell(tiny)
    small = rlvar.Rollouts(rollouts.scores * 2.0**-400, rollouts.rewards)
    ours, theirs = rlvar.compare(small)["multi"], rlvar.compare(rollouts)["multi"]
    for name in ("ratio", "noise_scale", "noise_scale_ratio", "alignment"):
        assert getattr(ours, name).interval == pytest.approx(getattr(theirs, name).interval, rel=1e-9)
    assert rlvar.compare(rlvar.Rollouts(rollouts.scores, np.zeros(30)))["single"].variance.value == 0.0


def test_a_bootstrap_of_no_variance_or_two_rollouts_is_undefined_not_wrong(rng):
    rollouts = rlvar.Rollouts(np.ones((12, 2, 1)), np.ones(12))
    still = rlvar.compare(rollouts, ["multi"], interval=rlvar.Bootstrap())
    assert np.isnan(still["multi"].ratio.value)
    assert np.isnan(still["multi"].variance.low)
    two = rlvar.compare(make_rollouts(rng, n=2), interval=rlvar.Bootstrap(100))
    assert np.isnan(two["multi"].variance.low)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"importance": "token"},
            ValueError,
            "importance='token' needs rollouts with logp and behavior_logp",
        ),
        ({"importance": "both"}, ValueError, "importance must be one of"),
        ({"importance": []}, ValueError, "importance must name at least one"),
        ({"importance": None}, TypeError, "importance must be a name or a sequence of names, got None"),
        ({"aggregation": "mean"}, ValueError, "aggregation must be one of"),
        ({"interval": "bootstrap"}, ValueError, "interval must be 'jackknife' or an rlvar.Bootstrap"),
        ({"truncate": 2.0}, ValueError, "truncate needs rollouts with logp"),
    ],
)
def test_bad_options_are_named(rng, options, error, message):
    with pytest.raises(error, match=message):
        rlvar.compare(make_rollouts(rng), **options)


def test_a_token_mean_needs_a_token(rng):
    with pytest.raises(ValueError, match="aggregation='token-mean' needs a live step"):
        rlvar.compare(make_rollouts(rng, lengths=[0] * 18), aggregation="token-mean")


@pytest.mark.parametrize(
    ("n", "groups", "message"),
    [
        (9, None, "only 9 rollouts: intervals may be far too narrow"),
        (2, None, "only 2 rollouts: no intervals"),
        (18, np.arange(18) % 3, "only 3 groups"),
    ],
)
def test_fewer_than_ten_units_are_a_warning(rng, n, groups, message):
    rollouts = make_rollouts(rng, n=n, groups=groups)
    scored = {"groups": groups}
    calls = [lambda: rlvar.compare(rollouts), lambda: rlvar.on_policy_test(rollouts.scores, **scored)]
    calls += [lambda: rlvar.decompose(rollouts.scores, **scored)]
    calls += [] if groups is None else [lambda: rlvar.prompt_components(rollouts)]
    for call in calls:
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert len(caught) == 1
        assert caught[0].filename == __file__


def test_ten_units_are_none(rng):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rlvar.compare(make_rollouts(rng, n=10))
    assert not caught


def test_own_weights_are_never_taken_for_those_of_another_estimator_of_that_name(rng):
    rollouts, w = make_rollouts(rng), rng.standard_normal((18, 7))
    mine = ("multi(gamma=0.9)", w)
    alone = rlvar.compare(rollouts, ["single", mine])
    beside = rlvar.compare(rollouts, ["single", rlvar.estimator("multi-optimal", gamma=0.9), mine])
    assert beside["multi(gamma=0.9)"].variance == alone["multi(gamma=0.9)"].variance


def test_the_mean_over_the_others_leaves_the_mean_alone_however_few_they_are(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((3, 1, 2)), rng.standard_normal(3))
    single, multi = (rlvar.compare(rollouts, [name])[name] for name in ("single-mean", "multi-mean"))
    assert single.variance.value == pytest.approx(multi.variance.value)


def test_the_reference_may_be_weights_of_ones_own_or_a_name_with_a_colon(rng):
    rollouts, w = stale_rollouts(rng), rng.standard_normal((18, 7))
    assert rlvar.compare(rollouts, ["multi"], reference=("mine", w)).reference == "mine"
    kinds = ["none", "token"]
    result = rlvar.compare(rollouts, ["multi", ("a:b", w)], importance=kinds, reference="a:b")
    assert result.reference == "a:b:none"


def test_a_lack_of_memory_is_a_memory_error(rng):
    def hungry(rollouts):
        raise MemoryError

    with pytest.raises(MemoryError):
        rlvar.compare(make_rollouts(rng), [("mine", hungry)])


def test_gae_by_its_name_alone_says_what_gamma_and_lambda_it_has(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((200, 3, 2)), np.ones((200, 3)), values=rng.standard_normal((200, 3))
    )
    (note,) = rlvar.compare(rollouts, ["single", "gae"]).notes
    assert note.startswith("The row gae has gamma = 1 and lambda = 0.95. If your trainer uses others,")
    own = rlvar.estimator("gae", gamma=0.99, lam=0.9)
    report = rlvar.report(rollouts, ["single", own])
    assert report.comparison.notes == ()
    assert "GAE(gamma=0.99, lam=0.9) may estimate a different mean gradient" in told(report)


def test_what_is_compared_by_default_is_what_the_rollouts_can_tell_apart(rng):
    scores, by_step, whole = rng.standard_normal((24, 3, 2)), rng.standard_normal((24, 3)), np.arange(24.0)
    groups, pairs_and_one = np.arange(24) // 4, [0, 0, 0, *np.arange(21)]
    of_groups = ["rloo", "grpo", "dr-grpo"]
    late = by_step * [0, 0, 1]  # one reward, but an array of steps
    for rewards, labels, expected in (
        (by_step, None, ["single", "multi"]),
        (by_step, groups, ["single", "multi", *of_groups]),
        (whole, None, ["single", "single-mean"]),
        (late, None, ["single", "single-mean"]),
        (whole, groups, ["single", *of_groups]),
        (whole, pairs_and_one, ["single", "single-mean"]),
        (by_step, pairs_and_one, ["single", "multi"]),
    ):
        rollouts = rlvar.Rollouts(scores, rewards, groups=labels)
        assert [row.name for row in rlvar.compare(rollouts)] == expected
    several = rlvar.Rollouts(
        scores, by_step, groups=groups, terminated=np.tile([0, 1, 0], (24, 1)).astype(bool)
    )
    assert [row.name for row in rlvar.compare(several)] == ["single", "multi"]


def test_the_reference_is_rloo_where_it_is_compared_and_varies(rng):
    scores, groups = rng.standard_normal((24, 1, 2)), np.arange(24) // 4
    rollouts = rlvar.Rollouts(scores, rng.standard_normal(24), groups=groups)
    assert rlvar.compare(rollouts).reference == "rloo"
    assert rlvar.compare(rollouts, ["grpo", "rloo"]).reference == "rloo"
    assert rlvar.compare(rollouts, ["grpo"]).reference == "single"
    assert rlvar.compare(rollouts, ["single-mean"]).reference == "single"
    dead = rlvar.Rollouts(scores, 0.1 + np.repeat(rng.random(6), 4), groups=groups)
    found = rlvar.compare(dead)
    assert found.reference == "single"
    assert found["single"].ratio.value == 1
    assert found["rloo"].ratio.value == 0
    assert rlvar.compare(dead, ["rloo", "grpo"]).reference == "rloo"  # neither varies
    assert rlvar.compare(dead, reference="rloo").reference == "rloo"
    assert rlvar.compare(dead, ["rloo", "reinforce++", "single-mean"]).reference == "single-mean"
