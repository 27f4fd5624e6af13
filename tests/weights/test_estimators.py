"""Estimators by name, with parameters, and of the caller's own."""

import contextlib
import pickle

import numpy as np
import pytest

import closed_forms
import reference
import rlvar
from rlvar.weights.estimators import resolve

N, T = 12, 5
GROUPS = np.arange(N) // 3


@pytest.fixture
def rollouts(rng):
    return rlvar.Rollouts(
        rng.standard_normal((N, T, 2)),
        rng.standard_normal((N, T)),
        lengths=rng.integers(1, T + 1, N),
        values=rng.standard_normal((N, T)),
        groups=GROUPS,
        logp=rng.standard_normal((N, T)),
        behavior_logp=rng.standard_normal((N, T)),
    )


def test_parameters_reach_the_formula(rollouts):
    rewards, live = rollouts.rewards, {"lengths": rollouts.lengths}
    totals = np.where(rollouts.live, rewards, 0).sum(axis=1)
    to_go = reference.reward_to_go(rewards, 0.9, **live)
    discounted = np.where(rollouts.live, to_go[:, :1], 0)
    for estimator, expected in {
        rlvar.estimator("multi", gamma=0.9): to_go,
        rlvar.estimator("single", gamma=0.9): discounted,
        rlvar.estimator("gae", gamma=0.9, lam=0.5): rlvar.gae(
            rewards, rollouts.values, gamma=0.9, lam=0.5, **live
        )[0],
        rlvar.estimator("n-step", n=2, gamma=0.9): reference.n_step_returns(
            rewards, rollouts.values, 2, gamma=0.9, **live
        )
        - np.where(rollouts.live, rollouts.values, 0),
        rlvar.estimator("vtrace", gamma=0.9, lam=0.8, rho_clip=1.5, c_clip=0.5): reference.vtrace(
            *(rewards, rollouts.values, np.exp(rollouts.logp - rollouts.behavior_logp)),
            **{"gamma": 0.9, "lam": 0.8, "rho_clip": 1.5, "c_clip": 0.5, **live},
        )[1],
        rlvar.estimator("grpo", scale="batch", eps=0.5): rlvar.to_steps(
            rlvar.grpo(totals, GROUPS, scale="batch", eps=0.5), **live, steps=T
        ),
    }.items():
        found = np.where(rollouts.live, estimator.weights(rollouts), 0)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["multi-mean", "multi-optimal", "otb"])
def test_a_discount_of_steps_is_that_of_the_rewards(rollouts, name):
    powers = 0.9 ** np.arange(T)
    shrunk = rlvar.Rollouts(
        rollouts.scores / powers[:, None], rollouts.rewards * powers, lengths=rollouts.lengths, groups=GROUPS
    )
    if name == "otb":  # whose energies sum over steps
        shrunk = rlvar.Rollouts(rollouts.scores, shrunk.rewards, lengths=rollouts.lengths, groups=GROUPS)
    ours = rlvar.estimator(name, gamma=0.9).weights(rollouts)
    theirs = rlvar.estimator(name).weights(shrunk) / powers
    np.testing.assert_allclose(ours[rollouts.live], theirs[rollouts.live], rtol=1e-9, atol=1e-12)


def test_names_show_what_differs_from_the_defaults():
    assert rlvar.estimator("gae", gamma=0.99, lam=0.9).name == "gae(gamma=0.99, lam=0.9)"
    assert rlvar.estimator("gae", lam=0.95, gamma=1).name == "gae"
    assert rlvar.estimator("gae").parameters == {"gamma": 1.0, "lam": 0.95}


def test_an_estimator_built_directly_is_checked_as_by_name():
    with pytest.raises(ValueError, match="unknown estimator 'magic'; choose from single"):
        rlvar.Estimator("magic")
    with pytest.raises(TypeError, match="estimator 'single' has no parameter 'lam'; it has gamma"):
        rlvar.Estimator("single", (("lam", 0.5),))
    assert rlvar.Estimator("gae", (("lam", 0.95), ("gamma", 0.5))) == rlvar.estimator("gae", gamma=0.5)


def test_ratios_of_importance_are_in_vtrace_once(rollouts):
    with pytest.raises(ValueError, match="'vtrace': it has importance ratios already"):
        rlvar.compare(rollouts, ["vtrace"], importance="token")


def test_a_ratio_beyond_float64_is_clipped_by_vtrace():
    far = {"logp": [[0.0, 900.0], [0.0, 0.0]], "behavior_logp": [[0.0, 0.0], [0.0, 0.0]]}
    rollouts = rlvar.Rollouts(np.ones((2, 2, 1)), [[1.0, 2.0], [1.0, 1.0]], values=np.zeros((2, 2)), **far)
    np.testing.assert_array_equal(rlvar.estimator("vtrace").weights(rollouts), [[3, 2], [2, 1]])


def test_estimators_are_equal_by_value_hash_and_pickle():
    one = rlvar.estimator("gae", lam=0.9, gamma=0.5)
    assert one == rlvar.estimator("gae", gamma=0.5, lam=np.float64(0.9)) != rlvar.estimator("gae", lam=0.9)
    for each in (one, *rlvar.estimators()):
        assert {pickle.loads(pickle.dumps(each)): 1}[each] == 1


def weigh(rollouts):
    return rollouts.rewards


def test_own_weights_pickle_if_what_they_are_made_of_does(rollouts):
    for given in (weigh, rollouts.rewards):
        (mine,) = pickle.loads(pickle.dumps(resolve(("mine", given))))
        np.testing.assert_array_equal(mine.weights(rollouts), rollouts.rewards)
        assert (mine.name, mine.unbiased, mine.per_rollout) == ("mine", None, None)


def test_a_discounted_estimator_is_not_called_unbiased():
    assert rlvar.estimator("multi").unbiased
    assert not rlvar.estimator("multi", gamma=0.99).unbiased


def test_names_estimators_and_pairs_mix_in_one_list(rollouts):
    gae = rlvar.estimator("gae", lam=0.5)
    mixed = ["single", gae, ("mine", weigh), ("const", np.ones(N))]
    assert [each.name for each in resolve(mixed)] == ["single", "gae(lam=0.5)", "mine", "const"]
    assert resolve("multi") == resolve(["multi"]) == resolve(rlvar.estimator("multi"))
    assert [each.name for each in resolve(("single", "multi"))] == ["single", "multi"]
    assert [each.name for each in resolve(("single", ("mine", weigh)))] == ["single", "mine"]
    assert [row.name for row in rlvar.compare(rollouts, mixed)] == [each.name for each in resolve(mixed)]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("magic", ValueError, "unknown estimator 'magic'; choose from single, multi, .*, vtrace$"),
        ([], ValueError, "estimators must name at least one estimator"),
        (["multi", "single", "multi"], ValueError, "estimators must have different names, got 'multi' twice"),
        ([("x", weigh), ("x", weigh)], ValueError, "got 'x' twice"),
        (
            [("multi", weigh)],
            ValueError,
            "weights of your own need a name that no estimator of rlvar has, got 'multi'",
        ),
        ([("", weigh)], ValueError, "need a name that no estimator of rlvar has, got ''"),
        ([("mine", None)], TypeError, "estimator 'mine': weights must be an array or a function, got None"),
        ({"mine": weigh}, TypeError, r"pairs \('mine', weights\), got dict"),
        ([3], TypeError, r"pairs \('mine', weights\), got int"),
        (None, TypeError, "estimators must be names, estimators or pairs .* got NoneType"),
    ],
)
def test_what_is_no_estimator_is_named(given, error, message):
    with pytest.raises(error, match=message):
        resolve(given)


@pytest.mark.parametrize(
    ("name", "parameters", "error", "message"),
    [
        ("magic", {}, ValueError, "unknown estimator 'magic'"),
        ("gae", {"lambda_": 0.9}, TypeError, "'gae' has no parameter 'lambda_'; it has gamma, lam"),
        ("rloo", {"gamma": 0.9}, TypeError, "estimator 'rloo' has no parameter 'gamma'; it has none"),
        ("n-step", {"n": 0}, ValueError, "n must be at least 1, got 0"),
        ("vtrace", {"c_clip": -1.0}, ValueError, "c_clip must not be negative"),
        ("gae", {"lam": 1.5}, ValueError, "lam must lie in 0..1, got 1.5"),
        ("grpo", {"scale": "std"}, ValueError, "scale must be one of 'group', .* got 'std'"),
        ("grpo", {"eps": -1}, ValueError, "eps must be finite and not negative"),
    ],
)
def test_wrong_parameters_are_named(name, parameters, error, message):
    with pytest.raises(error, match=message):
        rlvar.estimator(name, **parameters)


def test_what_rollouts_lack_is_named_with_what_to_do(rng):
    bare = rlvar.Rollouts(rng.standard_normal((4, 2, 1)), np.ones(4))
    with pytest.raises(ValueError, match="estimator 'rloo' needs groups: pass groups= to Rollouts"):
        rlvar.estimator("rloo").weights(bare)


def of_episodes(policy, rewards, **options):
    """Rollouts of several episodes a row: one ends, or is cut, with each token 0 or 1 but for the last."""
    tokens = np.asarray(policy.sequences)
    prefixes = tokens * 3 ** np.arange(tokens.shape[1])
    return rlvar.Rollouts(
        policy.scores,
        rewards,
        terminated=tokens == 0,
        truncated=tokens == 1,
        next_values=np.sin(prefixes.cumsum(axis=1)),  # any function of what has happened
        bootstrap_value=np.cos(prefixes.sum(axis=1)),
        **options,
    )


def test_single_and_multi_have_one_mean_where_episodes_end_inside():
    policy = closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=2)
    rollouts = of_episodes(policy, policy.rewards)
    single, multi = (
        reference.gradients(policy.scores, rlvar.estimator(name).weights(rollouts))
        for name in ("single", "multi")
    )
    assert np.abs(single - multi).max() > 0.1
    np.testing.assert_allclose(policy.probabilities @ single, policy.probabilities @ multi, atol=1e-12)


def test_returns_end_with_their_episode():
    options = {
        "terminated": [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]],
        "truncated": [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]],
        "next_values": [[9, 9, 9, 10, 9]] * 2,
        "bootstrap_value": [100, np.nan],  # of the second nothing is read
    }
    rewards = [[1, 2, 3, 4, 5], [1, 1, 1, 1, 1]]
    rollouts = rlvar.Rollouts(np.ones((2, 5, 1)), rewards, **options)
    multi, single = (rlvar.estimator(name).weights(rollouts) for name in ("multi", "single"))
    np.testing.assert_array_equal(multi, [[3, 2, 17, 14, 105], [5, 4, 3, 2, 1]])
    np.testing.assert_array_equal(single, [[3, 3, 17, 17, 105], [5, 5, 5, 5, 5]])
    with pytest.raises(ValueError, match="estimator 'single-mean': rollout 0 has several episodes"):
        rlvar.estimator("single-mean").weights(rollouts)


def test_a_terminal_reward_is_earned_by_the_last_live_step(rng):
    scores, rewards = rng.standard_normal((3, 4, 1)), np.array([1.0, 2.0, 3.0])
    mask = np.array([[1, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
    tail = {"truncated": [[0, 0, 0, 1]] * 3, "next_values": np.full((3, 4), 10.0)}
    rollouts = rlvar.Rollouts(scores, rewards, mask=mask, **tail, bootstrap_value=[5, 6, 7])
    expected = np.array([[11.0], [8.0], [0.0]]) * mask
    for name in ("single", "multi"):
        np.testing.assert_array_equal(rlvar.estimator(name).weights(rollouts), expected)
    # The reward of a rollout without steps still counts in the mean of the others.
    centred = rlvar.estimator("single-mean").weights(rollouts)
    np.testing.assert_allclose(centred[:2, 0], [11 - np.mean([8, 3]), 8 - np.mean([11, 3])])


def test_gae_bootstraps_where_the_rollouts_say(rng):
    options = {
        "terminated": rng.random((N, T)) < 0.2,
        "truncated": rng.random((N, T)) < 0.2,
        "next_values": rng.standard_normal((N, T)),
        "bootstrap_value": rng.standard_normal(N),
        "lengths": rng.integers(0, T + 1, N),
    }
    rewards, values = rng.standard_normal((2, N, T))
    rollouts = rlvar.Rollouts(np.ones((N, T, 1)), rewards, values=values, **options)
    expected = rlvar.gae(rewards, values, gamma=0.9, lam=0.8, **options)[0]
    estimator = rlvar.estimator("gae", gamma=0.9, lam=0.8)
    np.testing.assert_array_equal(estimator.weights(rollouts), expected)


def test_dead_rollouts_of_a_group_of_one_do_not_stop_rloo():
    rollouts = rlvar.Rollouts(np.ones((3, 2, 1)), [1.0, 2.0, 3.0], groups=[0, 0, 1], lengths=[2, 1, 0])
    np.testing.assert_array_equal(rlvar.estimator("rloo").weights(rollouts)[:2, 0], [-1.0, 1.0])


@pytest.mark.parametrize("name", ["single", "multi", "single-optimal", "multi-optimal", "otb"])
def test_gradients_whose_squares_underflow_are_an_error_not_0(rng, name):
    scores, rewards = rng.standard_normal((20, 3, 2)), rng.standard_normal((20, 3))
    for size, error in ((1e-100, None), (1e-200, ValueError)):
        with pytest.raises(error, match="below the range of float64") if error else contextlib.nullcontext():
            assert rlvar.compare(rlvar.Rollouts(scores * size, rewards), [name])[name].variance.value > 0
    rlvar.compare(rlvar.Rollouts(0 * scores, rewards), [name])
