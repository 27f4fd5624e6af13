import ast
import decimal
import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import reference
import rlvar
import strategies

OPTIONS = {"eps": st.sampled_from([0.0, 1e-8, 0.5]), "ddof": st.integers(0, 1)}


def lengths_of(rewards):
    """Some lengths, 1 to 3, that follow the rewards into any order, and stay if 3 is added."""
    return 1 + np.nan_to_num(np.floor(np.asarray(rewards, float)), posinf=0) % 3


# Advantages of rewards and groups, one for each way through the code.
ESTIMATORS = {
    "rloo": rlvar.rloo,
    "grpo": rlvar.grpo,
    "grpo, eps 0": partial(rlvar.grpo, eps=0.0),
    "grpo, paper": partial(rlvar.grpo, preset="paper"),
    "grpo, batch": partial(rlvar.grpo, scale="batch"),
    "dr-grpo": partial(rlvar.grpo, scale="none"),
    "reinforce_pp": rlvar.reinforce_pp,
    "opo": lambda rewards, groups: rlvar.opo(rewards, lengths_of(rewards), groups),
}
each_estimator = pytest.mark.parametrize("advantages", ESTIMATORS.values(), ids=ESTIMATORS)
singletons = st.sampled_from(["zero", "raw"])
assert_close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11)


def mixed(rng, n=60):
    """Rewards and labels, every group of 2 or more."""
    return rng.standard_normal(n), rng.permutation(np.arange(n) // 2 % (n // 5)).tolist()


# Against the definitions


@given(case=strategies.sequences(), singleton=singletons)
def test_rloo_matches_the_definition(case, singleton):
    assert_close(rlvar.rloo(*case, singleton=singleton), reference.rloo(*case, singleton))


@given(
    case=strategies.sequences(),
    options=st.fixed_dictionaries(
        {**OPTIONS, "singleton": singletons, "scale": st.sampled_from(["group", "batch", "none"])}
    ),
)
def test_grpo_matches_the_definition(case, options):
    assert_close(rlvar.grpo(*case, **options), reference.grpo(*case, **options))


@given(case=strategies.sequences(), grouped=st.booleans())
def test_reinforce_pp_matches_the_definition(case, grouped):
    rewards, groups = case[0], case[1] if grouped else None
    assert_close(rlvar.reinforce_pp(rewards, groups), reference.reinforce_pp(rewards, groups))


@given(case=strategies.sequences(), grouped=st.booleans(), data=st.data())
def test_opo_matches_the_definition(case, grouped, data):
    rewards, groups = case[0], case[1] if grouped else None
    lengths = data.draw(hnp.arrays(np.int64, len(rewards), elements=st.integers(1, 5000)))
    assert_close(rlvar.opo(rewards, lengths, groups), reference.opo(rewards, lengths, groups))


@given(
    x=hnp.arrays(np.int64, hnp.array_shapes(min_dims=0, max_dims=3, max_side=5)),
    shift_mean=st.booleans(),
    options=st.fixed_dictionaries(OPTIONS),
    data=st.data(),
)
def test_whiten_matches_the_definition(x, shift_mean, options, data):
    x = x % 512 / 64
    mask = data.draw(hnp.arrays(np.bool_, x.shape))
    if mask.sum() <= options["ddof"]:
        with pytest.raises(ValueError, match=r"x must have at least ddof \+ 1"):
            rlvar.whiten(x, mask=mask, **options)
    else:
        result = rlvar.whiten(x, mask=mask, shift_mean=shift_mean, **options)
        assert_close(result, reference.whiten(x, mask, shift_mean, **options))


@given(
    case=strategies.rewards(),
    per_step=st.booleans(),
    estimator=st.sampled_from(["k1", "k2", "k3"]),
    data=st.data(),
)
def test_kl_rewards_and_to_steps_match_the_definition(case, per_step, estimator, data):
    rewards, options = case
    live = reference.live_steps(rewards.shape, **options)
    logp, ref_logp = (
        data.draw(hnp.arrays(np.float64, rewards.shape, elements=st.floats(-8.0, 0.0))) for _ in range(2)
    )
    if not per_step:
        rewards = rewards.sum(axis=1) * live.any(axis=1)
        np.testing.assert_array_equal(rlvar.to_steps(rewards, mask=live), reference.to_steps(rewards, live))
    result = rlvar.kl_rewards(rewards, logp, ref_logp, 0.25, estimator=estimator, **options)
    expected = reference.kl_rewards(rewards, logp, ref_logp, live, 0.25, estimator)
    assert_close(result, expected)


# Identities


def test_rloo_is_the_centred_reward_times_n_over_n_minus_1(rng):
    rewards, groups = mixed(rng)
    sizes = np.array([groups.count(label) for label in groups])
    centred = rlvar.grpo(rewards, groups, scale="none")
    assert_close(rlvar.rloo(rewards, groups), centred * sizes / (sizes - 1))


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_grpo_without_eps_is_invariant_under_scaling_and_shifting_rewards(rng, scale):
    rewards, groups = mixed(rng)
    plain = rlvar.grpo(rewards, groups, scale=scale, eps=0.0)
    np.testing.assert_array_equal(rlvar.grpo(2.0**40 * rewards, groups, scale=scale, eps=0.0), plain)
    assert_close(rlvar.grpo(1e-9 * rewards, groups, scale=scale, eps=0.0), plain)
    np.testing.assert_allclose(rlvar.grpo(rewards + 1e6, groups, scale=scale, eps=0.0), plain, atol=1e-8)


def test_grpo_of_the_paper_has_mean_square_1_in_each_group(rng):
    rewards, groups = mixed(rng)
    advantages = rlvar.grpo(rewards, groups, preset="paper")
    for label in set(groups):
        assert_close(np.mean(advantages[np.array(groups) == label] ** 2), 1.0)


def test_group_and_batch_are_the_same_for_one_group(rng):
    rewards = rng.standard_normal(9)
    assert_close(rlvar.grpo(rewards, ["x"] * 9, scale="group"), rlvar.grpo(rewards, ["x"] * 9, scale="batch"))
    for advantages in (rlvar.reinforce_pp, partial(rlvar.opo, lengths=np.full(9, 7))):
        np.testing.assert_array_equal(advantages(rewards), advantages(rewards, groups=["x"] * 9))


def test_opo_with_equal_lengths_subtracts_the_mean(rng):
    rewards, groups = mixed(rng)
    assert_close(rlvar.opo(rewards, np.full(60, 12), groups), rlvar.reinforce_pp(rewards, groups))


def test_opo_has_the_least_variance_of_all_baselines(rng):
    rewards, lengths = rng.standard_normal(50), rng.integers(1, 100, 50)

    def second_moment(advantages):
        return np.sum(lengths * advantages**2)

    best = second_moment(rlvar.opo(rewards, lengths))
    for baseline in rng.standard_normal(20):
        assert best <= second_moment(rewards - baseline)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_masked_whitening_is_whitening_of_the_compressed(rng, shift_mean):
    x, mask = rng.standard_normal((7, 11)), rng.random((7, 11)) < 0.6
    result = rlvar.whiten(np.where(mask, x, np.nan), mask=mask, shift_mean=shift_mean)
    np.testing.assert_array_equal(result[mask], rlvar.whiten(x[mask], shift_mean=shift_mean))
    assert (result[~mask] == 0).all()


def test_whitened_values_have_mean_0_or_their_own_and_variance_1(rng):
    x = 1e6 + rng.standard_normal(1000)
    for ddof in (0, 1):
        for shift_mean, mean in ((True, 0.0), (False, x.mean())):
            result = rlvar.whiten(x, shift_mean=shift_mean, eps=0.0, ddof=ddof)
            np.testing.assert_allclose(result.mean(), mean, atol=1e-9)
            np.testing.assert_allclose(result.std(ddof=ddof), 1.0, rtol=1e-7)


@given(d=st.floats(-20, 20) | st.floats(-1e-7, 1e-7))
def test_k2_and_k3_are_never_negative_and_agree_for_small_differences(d):
    k2, k3 = (-rlvar.kl_rewards([0.0], [[0.0]], [[d]], 1.0, estimator=name)[0, 0] for name in ("k2", "k3"))
    assert k2 >= 0
    assert k3 >= 0
    if abs(d) < 0.01:
        np.testing.assert_allclose(k3, k2, rtol=abs(d), atol=2 * np.finfo(float).eps * abs(d))


def test_k1_summed_over_steps_is_the_log_ratio_of_the_sequence(rng):
    logp, ref_logp = -rng.random((2, 5, 8))
    result = rlvar.kl_rewards(np.ones(5), logp, ref_logp, 0.5)
    assert_close(result.sum(axis=1), 1.0 - 0.5 * (logp - ref_logp).sum(axis=1))


def test_k1_and_k3_are_unbiased_under_the_policy():
    policy, ref = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    exact = np.sum(policy * np.log(policy / ref))
    for name in ("k1", "k3"):
        result = rlvar.kl_rewards([[0.0] * 3], [np.log(policy)], [np.log(ref)], 1.0, estimator=name)
        assert_close(-result[0] @ policy, exact)


def test_sequence_reward_lands_on_the_last_live_step():
    mask = [[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    result = rlvar.kl_rewards([1, 2, 3, 0], np.zeros((4, 4)), np.zeros((4, 4)), 0.1, mask=mask)
    np.testing.assert_array_equal(result, [[0, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e308])
def test_what_lies_under_the_mask_changes_no_bit(rng, junk):
    mask = rng.random((6, 9)) < 0.5
    mask[:, 0] = True
    arrays = rng.standard_normal((3, 6, 9))
    clean, dirty = (np.where(mask, arrays, fill) for fill in (0.0, junk))
    for reward in (arrays[0, :, 0], None):
        results = [
            rlvar.kl_rewards(a[0] if reward is None else reward, a[1], a[2], 0.1, mask=mask, estimator="k3")
            for a in (clean, dirty)
        ]
        np.testing.assert_array_equal(*results)
        assert (results[0][~mask] == 0).all()
    np.testing.assert_array_equal(rlvar.whiten(dirty[0], mask=mask), rlvar.whiten(clean[0], mask=mask))


# Groups


@each_estimator
@pytest.mark.parametrize("value", [0.1, 1 / 3, -0.7, 1e6 + 0.1, 1e-300])
@pytest.mark.parametrize("size", [2, 3, 7, 10])
def test_a_group_of_equal_rewards_gives_exact_zeros(rng, advantages, value, size):
    rewards, groups = mixed(rng)
    order = rng.permutation(60 + size)
    all_rewards = np.concatenate([rewards, np.full(size, value)])[order]
    all_groups = [[*groups, *["equal"] * size][i] for i in order]
    result = advantages(all_rewards, all_groups)
    assert (result[order >= 60] == 0).all()
    assert (result[order < 60] != 0).all()
    assert (advantages(np.full(size, value), ["equal"] * size) == 0).all()


def test_equal_values_whiten_to_exact_zeros():
    assert (rlvar.whiten(np.full(7, 0.1), eps=0.0) == 0).all()
    assert (rlvar.whiten(np.full(7, 0.1), eps=0.0, shift_mean=False) == 0.1).all()


@each_estimator
def test_labels_are_any_hashable_in_any_order(rng, advantages):
    rewards, groups = mixed(rng)
    expected = advantages(rewards, groups)
    for rename in (
        lambda g: f"prompt {-g}",
        lambda g: ("prompt", -g),
        lambda g: 1e9 - g,
        lambda g: frozenset([g]),
    ):
        np.testing.assert_array_equal(advantages(rewards, [rename(g) for g in groups]), expected)
    np.testing.assert_array_equal(advantages(rewards, np.array(groups)), expected)
    np.testing.assert_array_equal(advantages(rewards, np.array([f"p{g}" for g in groups])), expected)
    order = rng.permutation(60)
    shuffled = advantages(rewards[order], [groups[i] for i in order])
    assert_close(shuffled, expected[order])


def test_labels_of_an_array_like_are_compared_by_value():
    class Tensor(list):  # as torch's, whose elements hash by identity
        def __iter__(self):
            return iter([object() for _ in range(len(self))])

        def __array__(self, dtype=None, copy=None):
            return np.array([self[i] for i in range(len(self))], dtype)

    np.testing.assert_array_equal(rlvar.rloo([0.0, 2.0, 4.0], Tensor([4, 4, 4])), [-3.0, 0.0, 3.0])


@pytest.mark.parametrize("advantages", [rlvar.rloo, rlvar.grpo, partial(rlvar.grpo, scale="none")])
def test_singletons_get_0_or_their_reward_or_an_error(advantages):
    rewards, groups = [3.0, 1.0, 2.0], ["a", "b", "a"]
    assert advantages(rewards, groups)[1] == 0
    raw = advantages(rewards, groups, singleton="raw")
    np.testing.assert_array_equal(raw, advantages(rewards, groups) + np.array([0, 1, 0]))
    with pytest.raises(ValueError, match=r"two scored rewards each, got one in .* rewards\[1\]"):
        advantages(rewards, groups, singleton="raise")
    np.testing.assert_array_equal(
        advantages([3.0, 2.0], ["a", "a"], singleton="raise"), advantages([3.0, 2.0], ["a", "a"])
    )


def test_singletons_of_reinforce_pp_and_opo_are_their_own_baseline():
    np.testing.assert_array_equal(rlvar.reinforce_pp([3.0, 1.0], ["a", "b"]), [0, 0])
    np.testing.assert_array_equal(rlvar.opo([3.0, 1.0], [5, 6], ["a", "b"]), [0, 0])


@pytest.mark.parametrize(
    ("preset", "eps", "ddof", "singleton"),
    [
        ("None", "1e-6", 1, "zero"),
        ('"trl"', "1e-4", 1, "zero"),
        ('"verl"', "1e-6", 1, "raw"),
        ('"openrlhf"', "1e-9", 1, "raise"),
        ('"paper"', "0", 0, "zero"),
    ],
)
def test_presets_are_what_the_table_says(rng, preset, eps, ddof, singleton):
    assert re.search(rf'{preset} +{eps} +{ddof} +"{singleton}"', rlvar.grpo.__doc__)
    preset = ast.literal_eval(preset)
    rewards, groups = mixed(rng)
    options = {"eps": float(eps), "ddof": ddof, "singleton": singleton}
    np.testing.assert_array_equal(
        rlvar.grpo(rewards, groups, preset=preset), rlvar.grpo(rewards, groups, **options)
    )
    if singleton == "raise":
        with pytest.raises(ValueError, match="groups must have two"):
            rlvar.grpo([3.0], [0], preset=preset)
    else:
        assert rlvar.grpo([3.0], [0], preset=preset) == (3.0 if singleton == "raw" else 0.0)


@pytest.mark.parametrize("preset", ["trl", "verl", "openrlhf", "paper"])
def test_what_is_given_overrides_the_preset(rng, preset):
    rewards, groups = mixed(rng)
    options = {"eps": 0.25, "ddof": 0, "singleton": "zero"}
    expected = rlvar.grpo([7.0, *rewards], ["alone", *groups], **options)
    np.testing.assert_array_equal(
        rlvar.grpo([7.0, *rewards], ["alone", *groups], preset=preset, **options), expected
    )
    without_eps = rlvar.grpo([0.0, 4.0], [0, 0], preset=preset, eps=0.0, ddof=0)
    np.testing.assert_array_equal(without_eps, [-1.0, 1.0])


# NaN, dtypes, containers


@each_estimator
def test_unscorable_rewards_are_left_out_and_get_0_with_one_warning(rng, advantages):
    rewards, groups = mixed(rng)
    rewards[rng.permutation(60)[:20]] = np.nan
    scored = ~np.isnan(rewards)
    expected = advantages(rewards[scored], np.array(groups)[scored])
    with pytest.warns(UserWarning, match="20 of 60 rewards are NaN") as caught:
        result = advantages(rewards, groups)
    assert len(caught) == 1
    np.testing.assert_array_equal(result[scored], expected)
    assert (result[~scored] == 0).all()


def test_the_warning_points_to_the_caller():
    for call in (partial(rlvar.rloo, groups=[0, 0]), partial(rlvar.opo, lengths=[1, 1])):
        with pytest.warns(UserWarning, match="1 of 2") as caught:
            call([1.0, np.nan])
        assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:.* rewards are NaN")
def test_a_group_with_one_scored_reward_is_a_singleton():
    rewards, groups = [np.nan, 3.0, np.nan], ["a", "a", "b"]
    for advantages in (rlvar.rloo, rlvar.grpo):
        np.testing.assert_array_equal(advantages(rewards, groups), [0, 0, 0])
        np.testing.assert_array_equal(advantages(rewards, groups, singleton="raw"), [0, 3, 0])
        with pytest.raises(ValueError, match=r"got one in that of rewards\[1\]"):
            advantages(rewards, groups, singleton="raise")
    np.testing.assert_array_equal(rlvar.reinforce_pp([np.nan, np.nan]), [0, 0])


@each_estimator
def test_half_precision_is_computed_in_double(rng, advantages):
    rewards, groups = mixed(rng)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = (100 + rewards).astype(dtype)
        result = advantages(half, groups)
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result, advantages(half.astype(np.float64), groups))


def test_half_precision_steps_are_computed_in_double(rng):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    logp, ref_logp, mask = (rng.standard_normal((3, 4, 5)) > 0) * [[[0.1]], [[0.3]], [[1.0]]]
    mask[:, 0] = 1
    for dtype in (np.float16, bfloat16):
        halves = [a.astype(dtype) for a in (logp[:, 0], logp, ref_logp)]
        doubles = [a.astype(np.float64) for a in halves]
        pairs = [
            (
                rlvar.kl_rewards(*a, 0.1, mask=mask, estimator="k3"),
                rlvar.whiten(a[2], mask=mask),
                rlvar.to_steps(a[0], mask=mask),
            )
            for a in (halves, doubles)
        ]
        for half, double in zip(*pairs, strict=True):
            assert half.dtype == np.float64
            np.testing.assert_array_equal(half, double)


@each_estimator
def test_lists_integers_and_empty_batches(advantages):
    expected = advantages(np.array([1.0, 2.0, 6.0]), [0, 0, 0])
    for rewards in ([1, 2, 6], (1, 2, 6), np.array([1, 2, 6], np.uint8), np.array([1, 2, 6], ">f4")):
        result = advantages(rewards, [0, 0, 0])
        assert result.dtype == np.float64
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(
        advantages(np.array([True, False]), "ab"), advantages([1.0, 0.0], ["a", "b"])
    )
    assert advantages([], []).shape == (0,)


@each_estimator
def test_rewards_are_never_changed(rng, advantages):
    rewards, groups = mixed(rng)
    kept = rewards.copy()
    rewards.setflags(write=False)
    result = advantages(rewards[::-1], groups)
    np.testing.assert_array_equal(rewards, kept)
    assert not np.may_share_memory(result, rewards)


def test_steps_are_never_changed(rng):
    arrays = rng.random((4, 5, 6))
    mask = arrays[3] > 0.3
    kept = arrays.copy()
    arrays.setflags(write=False)
    mask.setflags(write=False)
    for rewards in (arrays[0], np.zeros(5)):
        rlvar.kl_rewards(rewards, arrays[1], arrays[2], 0.1, mask=mask)
    rlvar.whiten(arrays[0])[...] = 0
    rlvar.whiten(arrays[0], mask=mask)[...] = 0
    rlvar.to_steps(arrays[0, :, 0], mask=mask)[...] = 0
    np.testing.assert_array_equal(arrays, kept)


def test_empty_steps():
    assert rlvar.kl_rewards(np.zeros(3), np.zeros((3, 0)), np.zeros((3, 0)), 1).shape == (
        3,
        0,
    )
    assert rlvar.kl_rewards([], np.zeros((0, 3)), np.zeros((0, 3)), 1).shape == (0, 3)
    assert rlvar.to_steps([], mask=np.zeros((0, 3))).shape == (0, 3)


def test_a_large_offset_costs_no_digits(rng):
    rewards, groups = mixed(rng)
    rewards = np.round(rewards * 1024) / 1024
    for advantages in ESTIMATORS.values():
        np.testing.assert_allclose(
            advantages(rewards + 3 * 2.0**32, groups), advantages(rewards, groups), rtol=1e-12, atol=1e-12
        )


# Errors


def test_rewards_of_any_size_keep_their_advantages():
    for size in (1e200, 1e-150, 1.0):
        np.testing.assert_allclose(rlvar.grpo([size, -size], [0, 0], eps=0.0), [0.5**0.5, -(0.5**0.5)])
        np.testing.assert_allclose(rlvar.whiten([size, -size], eps=0.0), [0.5**0.5, -(0.5**0.5)])
    with pytest.raises(ValueError, match="beyond the range of float64"):
        rlvar.rloo([1e308, -1e308], [0, 0])


def test_scalar_tensors_are_labels_by_value():
    class Tensor:  # hashes by identity, as torch's
        def __init__(self, value):
            self.value = value

        def item(self):
            return self.value

    labels = [Tensor(0), Tensor(0), Tensor(1), Tensor(1)]
    np.testing.assert_array_equal(rlvar.rloo([1.0, 2.0, 3.0, 5.0], labels), [-1.0, 1.0, -2.0, 2.0])


@pytest.mark.parametrize("groups", [0, {1, 2}, iter([1, 2])])
def test_groups_must_be_a_sequence(groups):
    with pytest.raises(TypeError, match="groups must be a sequence of labels"):
        rlvar.rloo([1.0, 2.0], groups)


def test_what_has_no_weight_decides_nothing():
    np.testing.assert_allclose(rlvar.opo([1.0, 2.0, 1e17], [10, 10, 0])[:2], [-0.5, 0.5])
    np.testing.assert_allclose(rlvar.opo([1e17, 1.0, 2.0], [0, 1e-200, 1e-200])[1:], [-0.5, 0.5])
    np.testing.assert_allclose(rlvar.opo([1.0, 2.0], [1e308, 1e308]), [-0.5, 0.5])
    assert (rlvar.opo([1.0, 2.0, 3.0], [4, 0, 0], ["a", "b", "b"]) == 0).all()
    logp, ref_logp = [[-1.0, -800.0]], [[-np.inf, -0.5]]
    for name in ("k1", "k2", "k3"):
        result = rlvar.kl_rewards([1.0], logp, ref_logp, 0.0, estimator=name)
        np.testing.assert_array_equal(result, [[0, 1]])
    dead = rlvar.kl_rewards([1.0, np.nan], np.zeros((2, 2)), np.zeros((2, 2)), 0.1, lengths=[1, 0])
    np.testing.assert_array_equal(dead, [[1, 0], [0, 0]])
    np.testing.assert_array_equal(rlvar.to_steps([1.0, np.nan], lengths=[2, 0]), [[1, 1], [0, 0]])


@pytest.mark.parametrize("size", [1e-300, 1e-170, 1e-20, 1e20, 1e200])
def test_a_group_keeps_its_advantages_beside_one_of_any_other_size(size):
    rewards = np.array([0.0, 1.0, 3.0, 0.0, size, 3 * size])
    result = rlvar.grpo(rewards, [0, 0, 0, 1, 1, 1], eps=0.0)
    np.testing.assert_allclose(result[3:], result[:3], rtol=1e-12)
    np.testing.assert_allclose(rlvar.whiten([0, size, 3 * size], eps=0.0), result[:3], rtol=1e-12)


@pytest.mark.parametrize("d", [1e-170, 1e-12, 1e-6, 0.2, 0.3, -0.2, -0.3, -3.0])
def test_k3_has_all_its_digits(d):
    with decimal.localcontext() as context:
        context.prec = 400
        exact = float(decimal.Decimal(d).exp() - 1 - decimal.Decimal(d))
    result = rlvar.kl_rewards([0.0], [[0.0]], [[d]], 1.0, estimator="k3")[0, 0]
    np.testing.assert_allclose(-result, exact, rtol=1e-14)


def test_lengths_and_the_mask_of_their_steps_say_the_same(rng):
    x, lengths = rng.standard_normal((3, 4)), np.array([4, 0, 2])
    mask = np.arange(4) < lengths[:, None]
    for ours, theirs in (
        (rlvar.whiten(x, lengths=lengths), rlvar.whiten(x, mask=mask)),
        (rlvar.to_steps(x[:, 0], lengths=lengths), rlvar.to_steps(x[:, 0], mask=mask)),
        (rlvar.kl_rewards(x, x, x**2, 0.1, lengths=lengths), rlvar.kl_rewards(x, x, x**2, 0.1, mask=mask)),
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert rlvar.to_steps(x[:, 0], lengths=lengths, steps=9).shape == (3, 9)
    with pytest.raises(ValueError, match=r"x must have at least ddof \+ 1 = 2 live entries, got 1"):
        rlvar.whiten([[1.0, 2.0]], lengths=[1])
    with pytest.raises(ValueError, match=r"rewards must be 0 without a live step .* got rewards\[1\] = 2.0"):
        rlvar.kl_rewards([1.0, 2.0], np.zeros((2, 2)), np.zeros((2, 2)), 0.1, lengths=[1, 0])
    with pytest.raises(ValueError, match="to_steps needs lengths or mask"):
        rlvar.to_steps([1.0])
