import itertools
import json
import re
import warnings

import numpy as np
import pytest

import closed_forms
import reference
import rlvar


def make_rollouts(rng, sizes, t=4, d=3, **options):
    """Rollouts whose groups are mixed up, with a mean and a spread of each prompt's own."""
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(groups)
    scores = rng.standard_normal((n, t, d)) + rng.standard_normal((len(sizes), t, d))[groups]
    return rlvar.Rollouts(scores, rng.standard_normal((n, t)), groups=groups, **options)


def of_gradients(g, groups):
    """Rollouts whose gradients are g (N, D)."""
    return rlvar.Rollouts(np.asarray(g, float)[:, None], np.ones(len(g)), groups=groups)


def anova(g, labels):
    """Within and between by their definition."""
    names = np.unique(labels)
    sizes = np.array([(labels == name).sum() for name in names])
    n, u = len(g), len(names)
    means = np.array([g[labels == name].mean(axis=0) for name in names])
    within = sum(((g[labels == a] - m) ** 2).sum() for a, m in zip(names, means, strict=True)) / (n - u)
    spread = (sizes[:, None] * (means - g.mean(axis=0)) ** 2).sum() / (u - 1)
    return within, (spread - within) / ((n - (sizes**2).sum() / n) / (u - 1))


SIZES = [3, 1, 5, 2, 2, 4]


@pytest.mark.parametrize("sizes", [SIZES, [4] * 5])
@pytest.mark.parametrize("estimator", ["single", "multi", "gae"])
def test_every_number_matches_its_definition(isa, rng, sizes, estimator):
    n = sum(sizes)
    options = {"mask": rng.random((n, 4)) < 0.8} if estimator == "multi" else {}
    rollouts = make_rollouts(rng, sizes, values=rng.standard_normal((n, 4)), **options)
    weights = {
        "single": lambda: rollouts.rewards.sum(axis=1),
        "multi": lambda: reference.reward_to_go(rollouts.rewards, **options),
        "gae": lambda: rlvar.gae(rollouts.rewards, rollouts.values, gamma=1.0, lam=0.95)[0],
    }[estimator]()
    g = reference.gradients(rollouts.scores, weights, **options)
    parts = rlvar.prompt_components(rollouts, estimator)

    def statistic(a, b):
        return lambda kept: np.array([a, b]) @ anova(g[kept], rollouts.groups[kept])

    everything = np.arange(n)
    for estimate, f in (
        (parts.within, statistic(1, 0)),
        (parts.between, statistic(0, 1)),
        (parts.variance, statistic(1, 1)),
        (parts.batch_variance(7, 3), statistic(1 / 21, 1 / 7)),
    ):
        assert estimate.value == pytest.approx(f(everything), rel=1e-10)
        assert estimate.stderr == pytest.approx(reference.jackknife_stderr(f, rollouts.groups), rel=1e-8)
    assert parts.groups == len(sizes)
    np.testing.assert_array_equal(parts.sizes, np.bincount(rollouts.groups))
    assert parts.estimator == estimator


def test_sums_of_squares_within_and_between_add_up_to_the_total(rng):
    p, k = 6, 4
    rollouts = make_rollouts(rng, [k] * p)
    parts = rlvar.prompt_components(rollouts)
    g = reference.gradients(rollouts.scores, rollouts.rewards.sum(axis=1))
    within = p * (k - 1) * parts.within.value
    between = (p - 1) * (parts.within.value + k * parts.between.value)
    assert within + between == pytest.approx(((g - g.mean(axis=0)) ** 2).sum(), rel=1e-12)


def test_the_variance_of_a_group_mean_is_that_of_compare(rng):
    rollouts = make_rollouts(rng, [4] * 6)
    theirs = rlvar.compare(rollouts)["single"].variance
    ours = rlvar.prompt_components(rollouts).batch_variance(1, 4)
    assert (ours.value, ours.stderr) == pytest.approx((theirs.value, theirs.stderr), rel=1e-10)


def test_one_completion_of_each_prompt_has_the_variance_of_a_random_rollout(rng):
    parts = rlvar.prompt_components(make_rollouts(rng, SIZES))
    assert parts.batch_variance(1, 1) == parts.variance
    assert parts.variance.value == pytest.approx(parts.within.value + parts.between.value, rel=1e-15)
    assert parts.batch_variance(10, 1).value == pytest.approx(parts.variance.value / 10, rel=1e-15)


# Three prompts with three equally likely completions each: gradients (prompt, completion, D).
TWO_LEVELS = np.array(
    [[[1.0, 0], [0, 2], [5, 1]], [[-3, 1], [-3, 1], [-3, 4]], [[0.5, 0], [0, 0.5], [-0.5, -7]]]
)


@pytest.mark.parametrize("sizes", [(2, 2), (1, 2), (1, 3)])
def test_components_are_unbiased_over_all_data_sets_of_a_two_level_distribution(sizes):
    means = TWO_LEVELS.mean(axis=1)
    within = ((TWO_LEVELS - means[:, None]) ** 2).sum() / 9
    between = ((means - means.mean(axis=0)) ** 2).sum() / 3
    everything = TWO_LEVELS.reshape(9, 2)
    total = ((everything - everything.mean(axis=0)) ** 2).sum() / 9
    groups = np.repeat([0, 1], sizes)
    found = []
    for prompts in itertools.product(range(3), repeat=2):
        for completions in itertools.product(range(3), repeat=sum(sizes)):
            parts = rlvar.prompt_components(
                of_gradients(TWO_LEVELS[np.array(prompts)[groups], completions], groups)
            )
            found.append((parts.within.value, parts.between.value, parts.variance.value))
    np.testing.assert_allclose(np.mean(found, axis=0), (within, between, total), rtol=1e-12)
    assert min(np.array(found)[:, 1]) < 0  # not clipped


def test_the_variance_of_a_batch_is_that_of_all_its_draws():
    # Two prompts with two completions each, out of three with three: 9 * 81 batches.
    means = TWO_LEVELS.mean(axis=1)
    within = ((TWO_LEVELS - means[:, None]) ** 2).sum() / 9
    between = ((means - means.mean(axis=0)) ** 2).sum() / 3
    batches = np.array(
        [
            TWO_LEVELS[np.repeat(prompts, 2), completions].mean(axis=0)
            for prompts in itertools.product(range(3), repeat=2)
            for completions in itertools.product(range(3), repeat=4)
        ]
    )
    assert batches.var(axis=0).sum() == pytest.approx(between / 2 + within / 4, rel=1e-12)


def test_completions_of_an_enumerated_policy_are_split_as_their_probabilities_say():
    # A prompt is the first token, a completion the rest.
    policy = closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=1)
    g = np.einsum("nt,ntd->nd", policy.rewards, policy.scores)
    mean = np.array([policy.given_prefix(column, 1) for column in g.T]).T
    within = policy.expectation(((g - mean) ** 2).sum(axis=1))
    between = policy.expectation(((mean - policy.probabilities @ g) ** 2).sum(axis=1))
    rng = np.random.default_rng(4)
    first = np.array([s[0] for s in policy.sequences])
    prompts = first[rng.choice(27, size=2000, p=policy.probabilities)]
    chosen = []
    for token in prompts:
        p = np.where(first == token, policy.probabilities, 0)
        chosen.extend(rng.choice(27, size=3, p=p / p.sum()))
    parts = rlvar.prompt_components(of_gradients(g[chosen], np.repeat(np.arange(2000), 3)))
    assert parts.within.low < within < parts.within.high
    assert parts.between.low < between < parts.between.high


def test_a_common_mean_costs_no_digits(rng):
    g, groups = rng.standard_normal((40, 3)), np.repeat(np.arange(10), 4)
    near, far = (rlvar.prompt_components(of_gradients(x, groups)) for x in (g, g + 1e7))
    for name in ("within", "between"):
        assert getattr(far, name).value == pytest.approx(getattr(near, name).value, rel=1e-6)
        assert getattr(far, name).stderr == pytest.approx(getattr(near, name).stderr, rel=1e-6)


def test_the_order_of_rollouts_does_not_matter(rng):
    g, groups, order = rng.standard_normal((17, 3)), np.repeat(np.arange(6), SIZES), rng.permutation(17)
    one, other = (rlvar.prompt_components(of_gradients(g[i], groups[i])) for i in (np.arange(17), order))
    for name in ("within", "between", "variance"):
        for field in ("value", "stderr", "low", "high"):
            assert getattr(getattr(one, name), field) == pytest.approx(getattr(getattr(other, name), field))


def test_bits_do_not_depend_on_the_number_of_threads(rng):
    rollouts = make_rollouts(rng, [4] * 80)
    one = rlvar.prompt_components(rollouts, num_threads=1)
    other = rlvar.prompt_components(rollouts, num_threads=3)
    assert one.to_dict() == other.to_dict()


def test_dead_groups_are_counted_and_kept():
    rewards = np.array([1.0, 1, 0, 1, 0, 0, 1])  # 3 groups of two, the first and third dead; a singleton
    groups = list("aabbccd")
    scores = np.arange(7.0)[:, None, None]
    parts = rlvar.prompt_components(rlvar.Rollouts(scores, rewards, groups=groups))
    assert parts.dead_groups == 2
    assert parts.within.value == pytest.approx(anova(rewards[:, None] * scores[:, 0], np.array(groups))[0])
    # Of rewards a step the returns count.
    stepwise = rlvar.Rollouts(np.ones((4, 2, 1)), [[1, 0], [0, 1], [1, 1], [1, 0]], groups=[0, 0, 1, 1])
    assert rlvar.prompt_components(stepwise).dead_groups == 1


def of_pairs(scores, returns):
    """Means of h . h over two, three and four different completions of one prompt, and of h itself."""

    def h(i, j):
        return (returns[i] - returns[j]) * (scores[i] - scores[j]) / 2

    of_two, of_three, of_four = (itertools.permutations(range(len(returns)), count) for count in (2, 3, 4))
    return (
        np.mean([h(i, j) @ h(i, j) for i, j in of_two]),
        np.mean([h(i, j) @ h(i, k) for i, j, k in of_three]),
        np.mean([h(i, j) @ h(k, m) for i, j, k, m in of_four]),
        np.mean([h(i, j) for i, j in itertools.permutations(range(len(returns)), 2)], axis=0),
    )


@pytest.mark.parametrize("name", ["rloo", "dr-grpo"])
def test_the_components_of_rloo_are_means_over_different_completions(isa, rng, name):
    rollouts = make_rollouts(rng, [4, 6, 5, 4, 7, 5])
    sums, returns = rollouts.scores.sum(axis=1), rollouts.rewards.sum(axis=1)
    parts = rlvar.prompt_components(rollouts, name)

    def statistic(a, b, c):
        def of(kept):
            of_group = [
                of_pairs(sums[kept][rollouts.groups[kept] == u], returns[kept][rollouts.groups[kept] == u])
                for u in np.unique(rollouts.groups[kept])
            ]
            two, three, four, means = (np.array(x) for x in zip(*of_group, strict=True))
            gram = means @ means.T
            signal = (gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1))
            z1, z2 = (three - four).mean(), (two - four).mean()
            return a * (four.mean() - signal) + b * 4 * z1 + c * (2 * z2 - 4 * z1)

        return of

    for estimate, f in (
        (parts.between, statistic(1, 0, 0)),
        (parts.within, statistic(0, 1, 0)),
        (parts.pairs, statistic(0, 0, 1)),
        (parts.batch_variance(7, 3), statistic(1 / 7, 1 / 21, 1 / 42)),
    ):
        assert estimate.value == pytest.approx(f(np.arange(31)), rel=1e-9)
        assert estimate.stderr == pytest.approx(reference.jackknife_stderr(f, rollouts.groups), rel=1e-7)


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce++"])
def test_the_variance_at_the_completions_in_use_is_that_of_compare(rng, name):
    rollouts = make_rollouts(rng, [5] * 8)
    theirs = rlvar.compare(rollouts, [name])[name].variance
    parts = rlvar.prompt_components(rollouts, name)
    assert parts.completions == 5
    for ours in (parts.variance, parts.batch_variance(1, 5)):
        assert (ours.value, ours.stderr) == pytest.approx((theirs.value, theirs.stderr), rel=1e-9)


def test_the_components_of_rloo_are_unbiased_for_any_number_of_completions():
    # One prompt with two outcomes, sampled by another policy than that of the scores, which have a mean.
    p, outcomes, returns = np.array([0.6, 0.4]), np.array([[-1.0, 1.0], [2.0, 0.5]]), np.array([0.0, 3.0])
    truth = {}
    for k in (2, 3, 6):
        drawn = np.array(list(itertools.product(range(2), repeat=k)))
        advantages = (returns[drawn] - returns[drawn].mean(axis=1, keepdims=True)) * k / (k - 1)
        g, chance = np.einsum("nk,nkd->nd", advantages, outcomes[drawn]) / k, p[drawn].prod(axis=1)
        truth[k] = chance @ np.square(g - chance @ g).sum(axis=1)
    drawn = np.array(list(itertools.product(range(2), repeat=4)))
    mean = dict.fromkeys(truth, 0.0)
    for first, second in itertools.product(drawn, repeat=2):
        both = np.concatenate([first, second])
        rollouts = rlvar.Rollouts(outcomes[both][:, None], returns[both], groups=np.repeat([0, 1], 4))
        curve = quietly(rollouts, "rloo")._curve
        for k in truth:
            mean[k] += p[both].prod() * curve.at(k).value
    assert mean == pytest.approx(truth, rel=1e-10)


def quietly(rollouts, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rlvar.prompt_components(rollouts, name)


def bandits(rng, prompts, completions, d=12):
    """Rewards 0 and 1 of prompts that differ in difficulty; scores of their own policies."""
    scores = rng.standard_normal((prompts, completions, d))
    logits = 1.5 * rng.standard_normal((prompts, 1)) + scores[..., 0] + 0.5 * scores[..., 1]
    rewards = rng.random((prompts, completions)) < 1 / (1 + np.exp(-logits))
    return rlvar.Rollouts(
        scores.reshape(-1, 1, d), rewards.ravel().astype(float), groups=np.arange(prompts).repeat(completions)
    )


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_groups_of_eight_say_what_groups_of_another_size_have_for_a_variance(name):
    rng = np.random.default_rng(0)
    parts = rlvar.prompt_components(bandits(rng, 3000, 8), name)
    for k in (2, 4) if name == "grpo" else (2, 4, 32):
        rollouts = bandits(rng, 3000, k)
        row = rlvar.compare(rollouts, [name], reference="rloo")[name]
        expected = row.variance.value
        if name == "grpo":  # in units of the gradient of groups of eight
            length = {
                n: rlvar.grpo(r.rewards, r.groups) @ r.rewards / len(r)
                for n, r in ((k, rollouts), (8, bandits(rng, 3000, 8)))
            }
            expected *= (length[8] / length[k]) ** 2
        assert parts.batch_variance(1, k).value == pytest.approx(expected, rel=0.06)


def test_the_variance_of_all_subsets_of_a_group_is_a_mean_over_them(rng):
    rollouts = make_rollouts(rng, [4] * 5)
    parts = rlvar.prompt_components(rollouts, "grpo")
    s, r = rollouts.scores.sum(axis=1), rollouts.rewards.sum(axis=1)
    square, means, lengths = [], [], {2: [], 4: []}
    for u in range(5):
        rows = np.flatnonzero(rollouts.groups == u)
        for k in lengths:
            chosen = [list(each) for each in itertools.combinations(rows, k)]
            weights = [rlvar.grpo(r[each], [0] * k) / k for each in chosen]
            lengths[k].append(np.mean([w @ r[each] for w, each in zip(weights, chosen, strict=True)]))
            if k == 2:
                g = np.array([w @ s[each] for w, each in zip(weights, chosen, strict=True)])
                square.append(np.square(g).sum(axis=1).mean())
                means.append(g.mean(axis=0))
    gram = np.array(means) @ np.array(means).T
    variance = np.mean(square) - (gram.sum() - np.trace(gram)) / 20
    scale = np.mean(lengths[4]) / np.mean(lengths[2])
    assert parts.batch_variance(3, 2).value == pytest.approx(variance * scale**2 / 3, rel=1e-9)
    assert (parts.within, parts.between, parts.pairs) == (None, None, None)


def test_groups_that_are_too_small_are_left_out_or_refused(rng):
    rollouts = make_rollouts(rng, SIZES)
    parts = rlvar.prompt_components(make_rollouts(rng, [3, 4, 5, 2, 4]), "rloo")
    np.testing.assert_array_equal(np.sort(parts.sizes), [4, 4, 5])
    with pytest.raises(
        ValueError, match=r"'rloo' needs two groups of 4 rollouts or more .*, got groups of 1 to 5"
    ):
        rlvar.prompt_components(make_rollouts(rng, [3, 1, 5]), "rloo")
    with pytest.raises(
        ValueError, match="'grpo' needs two rollouts or more in each group, got a group of one"
    ):
        rlvar.prompt_components(rollouts, "grpo")
    with pytest.raises(ValueError, match="completions must be at most 2 for 'grpo'"):
        rlvar.prompt_components(make_rollouts(rng, [3, 2, 5]), "grpo").batch_variance(1, 3)
    with pytest.raises(ValueError, match="completions must be at least 2"):
        parts.batch_variance(1, 1)


def test_dead_groups_add_nothing_and_no_rounding_to_the_components_of_rloo(rng):
    rewards = np.repeat([0.1, 0.7, 0.3], 4)
    rollouts = rlvar.Rollouts(rng.standard_normal((12, 2, 3)), rewards, groups=np.arange(12) // 4)
    parts = rlvar.prompt_components(rollouts, "rloo")
    assert (parts.within.value, parts.pairs.value, parts.between.value, parts.dead_groups) == (0, 0, 0, 3)


def test_beyond_the_completions_in_use_the_upper_end_keeps_the_variance_within_prompts():
    for seed in range(20):
        parts = rlvar.prompt_components(bandits(np.random.default_rng(seed), 10, 4), "rloo")
        large = parts.batch_variance(1, 64)
        assert large.low <= large.value <= large.high < 10 * parts.variance.high
        assert large.high >= parts.within.value / 64


def test_two_groups_have_values_without_intervals():
    parts = rlvar.prompt_components(of_gradients([[1.0], [2], [4], [6]], [0, 0, 1, 1]))
    assert parts.within.value == pytest.approx(1.25)
    assert all(np.isnan(e.low) for e in (parts.within, parts.between, parts.batch_variance(3, 2)))
    assert not parts.between.resolved
    # Nor has anything if all that is known of completions is in one group.
    parts = rlvar.prompt_components(of_gradients([[1.0], [2], [4], [6]], [0, 0, 1, 2]))
    assert parts.within.value == pytest.approx(0.5)
    assert np.isnan(parts.within.low)


def test_printable_and_json_ready(rng):
    parts = rlvar.prompt_components(make_rollouts(rng, SIZES), rlvar.estimators()[1], confidence=0.9)
    assert "6 prompts of 1 to 5 completions, 0 with all returns equal" in str(parts)
    result = rlvar.plan(parts, target=0.1, cost_prompt=1)
    for item in (parts, result):
        fields = json.loads(json.dumps(item.to_dict(), allow_nan=False))
        assert fields == item.to_dict()
    assert parts.to_dict()["within"]["confidence"] == 0.9
    assert parts.to_dict()["estimator"] == "multi"


ALONE = [e.name for e in rlvar.estimators() if e.per_rollout]
KNOWN = (*ALONE, "rloo", "dr-grpo", "grpo", "reinforce++")


@pytest.mark.parametrize("name", [e.name for e in rlvar.estimators() if e.name not in KNOWN])
def test_estimators_whose_dependence_on_completions_is_not_known_are_refused(rng, name):
    message = rf"one of {', '.join(map(re.escape, KNOWN))}, got '{re.escape(name)}', whose variance"
    with pytest.raises(ValueError, match=message):
        rlvar.prompt_components(make_rollouts(rng, SIZES), name)


def test_estimators_say_whether_their_weights_depend_on_the_rollout_alone(rng):
    names = ("values", "logp", "behavior_logp", "score_squares")
    by_step = dict(zip(names, rng.random((4, 12, 4)), strict=True))
    rollouts = make_rollouts(rng, [4, 4, 4], **by_step)
    changed = rollouts.rewards.copy()
    changed[1:] += rng.standard_normal((11, 4))
    other = rlvar.Rollouts(rollouts.scores, changed, groups=rollouts.groups, **by_step)
    for estimator in rlvar.estimators():
        same = np.array_equal(estimator.weights(rollouts)[0], estimator.weights(other)[0])
        assert same == estimator.per_rollout


def test_bad_arguments_are_named(rng):
    rollouts = make_rollouts(rng, SIZES)
    with pytest.raises(TypeError, match="rollouts must be a Rollouts, got ndarray"):
        rlvar.prompt_components(rollouts.scores)
    with pytest.raises(ValueError, match="rollouts need groups, the prompts: pass groups= to Rollouts"):
        rlvar.prompt_components(rlvar.Rollouts(rollouts.scores, rollouts.rewards))
    with pytest.raises(ValueError, match="at least two different labels"):
        rlvar.prompt_components(of_gradients(np.ones((4, 1)), [0] * 4))
    with pytest.raises(ValueError, match="got groups of one only"):
        rlvar.prompt_components(of_gradients(np.ones((4, 1)), range(4)))
    with pytest.raises(ValueError, match="unknown estimator 'magic'; choose from single"):
        rlvar.prompt_components(rollouts, "magic")
    with pytest.raises(ValueError, match="estimator 'gae' needs values: pass values="):
        rlvar.prompt_components(rollouts, "gae")
    with pytest.raises(TypeError, match="estimator must be names, estimators or pairs"):
        rlvar.prompt_components(rollouts, ["single"])
    with pytest.raises(ValueError, match="confidence must lie strictly"):
        rlvar.prompt_components(rollouts, confidence=0)
    rollouts.scores[3, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"got scores\[3, 1, 0\] = nan"):
        rlvar.prompt_components(rollouts)
    parts = rlvar.prompt_components(make_rollouts(rng, SIZES))
    with pytest.raises(ValueError, match="prompts must be at least 1"):
        parts.batch_variance(0, 1)
    with pytest.raises(TypeError, match="completions must be an integer, got float"):
        parts.batch_variance(1, 1.5)


def test_stale_rollouts_are_weighed_by_their_ratios(rng):
    logp = -rng.exponential(1.0, (40, 3))
    options = {
        "groups": np.arange(40) // 4,
        "logp": logp,
        "behavior_logp": logp + 0.3 * rng.standard_normal((40, 3)),
    }
    scores, rewards = rng.standard_normal((40, 3, 2)), rng.standard_normal(40)
    stale = rlvar.Rollouts(scores, rewards, **options)
    rho = rlvar.importance_ratios(logp, options["behavior_logp"]).values[:, 0]
    weighed = rlvar.Rollouts(scores, rewards * rho, groups=options["groups"])
    ours, theirs = rlvar.prompt_components(stale, importance="sequence"), rlvar.prompt_components(weighed)
    assert ours.within.value == pytest.approx(theirs.within.value)
    assert ours.between.value == pytest.approx(theirs.between.value)
    assert rlvar.prompt_components(stale).within.value != pytest.approx(theirs.within.value)
