from dataclasses import replace

import numpy as np
import pytest

import closed_forms
import rlvar
from rlvar.analysis.headroom import Headroom
from rlvar.cli import main
from rlvar.reporting.verdict import _headroom_sentence
from rlvar.reporting.words import percent, power
from sentences import told


def verdict(scores, rewards, names=("single", "multi"), **options):
    return told(rlvar.report(rlvar.Rollouts(scores, rewards, **options), names, reference="single"))


def test_a_clear_winner_is_said_with_its_factor_and_interval(rng):
    report = rlvar.report(rlvar.datasets.cartpole())
    ratio = report.comparison["multi"].ratio
    assert (
        f"Single-step needs {1 / ratio.value:.3g} times as many rollouts as multi-step "
        f"for the same precision (95% interval {1 / ratio.high:.3g} to {1 / ratio.low:.3g})."
        in report.verdict
    )


def test_a_tie_is_not_called_a_win(rng):
    text = verdict(rng.standard_normal((12, 2, 3)), rng.standard_normal((12, 2)))
    assert text.startswith("Inconclusive: ")
    assert " appears to need " in text
    assert "the interval includes 1" in text


def test_terminal_rewards_are_recognised(rng):
    assert "are the same estimator" in verdict(rng.standard_normal((12, 5, 3)), rng.standard_normal(12))


def test_no_variance_is_said():
    text = verdict(np.ones((12, 5, 3)), np.ones(12))
    assert "neither varies" in text
    assert "does not vary" in text


def test_two_rollouts_say_why_there_is_no_interval(rng):
    report = rlvar.report(rlvar.Rollouts(rng.standard_normal((2, 3, 1)), rng.standard_normal((2, 3))))
    assert "too few" in told(report)
    assert "too few" in str(report)


def test_positive_covariance_is_a_share_of_the_variance(rng):
    # All terms of a rollout are equal: every entry of C is the same, (T - 1) / T is covariance.
    scores = np.repeat(rng.standard_normal((50, 1, 2)), 10, axis=1)
    report = rlvar.report(rlvar.Rollouts(scores, np.ones(50)), ["single", "multi"])
    text = told(report)
    assert "90% of the variance of single-step is covariance between steps" in text
    assert "(45 covariance terms, 10 variance terms)" in text
    assert "grows as k^2.00" in text
    assert report.decompositions["multi"].covariance_share == pytest.approx(0.9)


def test_covariance_that_may_be_none_is_not_given_a_sign():
    # Independent scores with one terminal reward of 1: every covariance term is 0.
    wrong = 0
    for seed in range(40):
        scores = np.random.default_rng(seed).standard_normal((50, 6, 2))
        wrong += "is not distinguishable from zero" not in verdict(scores, np.ones(50))
    assert wrong <= 8


def test_one_estimator_without_variance_is_said():
    # Whole returns are 0, returns-to-go are not.
    rng = np.random.default_rng(0)
    rewards = np.repeat(rng.standard_normal((40, 1)), 2, axis=1) * [1, -1]
    assert "Single-step does not vary over these rollouts; multi-step does." in verdict(
        rng.standard_normal((40, 2, 3)), rewards
    )


def test_estimators_with_other_means_are_not_said_to_need_fewer_rollouts(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((40, 5, 3)), rng.standard_normal((40, 5)), groups=np.repeat(np.arange(10), 4)
    )
    names = ["single", "grpo", ("mine", rng.standard_normal((40, 5)))]
    text = told(rlvar.report(rollouts, names))
    assert "Mine may estimate a different mean gradient than single-step, so its variance ratio" in text
    assert "GRPO may estimate a different mean gradient than single-step. Scaled by the rewards, it" in text
    assert "times as many rollouts" not in text


def test_many_estimators_are_told_in_few_sentences(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((40, 5, 3)), rng.standard_normal((40, 5)), groups=np.repeat(np.arange(10), 4)
    )
    names = ["single", "multi", "rloo", "grpo", "dr-grpo", "opo"]
    report = rlvar.report(rollouts, names, reference="single")
    text = told(report)
    assert text.count("may estimate a different mean gradient than single-step. Scaled") == 1
    assert "The mean gradient of Dr. GRPO is 0.75 times that of single-step here; that divided out, " in text
    assert "groups as" in text
    assert report.text(full=True).count("Growth of the variance") <= 2


def test_groups_and_ignored_rewards_are_explained(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((20, 5, 3)),
        np.ones((20, 5)),
        lengths=[4] * 20,
        groups=list("aabbccddeeffgghhiijj"),
    )
    text = rlvar.report(rollouts).text(full=True)
    assert "This table uses group means, because rollouts of a group are dependent" in text
    assert "20 non-zero rewards lie on steps that are not live and are ignored" in text


def test_what_no_rollout_reaches_is_not_counted(rng):
    scores = rng.standard_normal((30, 50, 2))
    report = rlvar.report(rlvar.Rollouts(scores, rng.standard_normal((30, 50)), lengths=[7] * 30))
    assert "(21 covariance terms, 7 variance terms)" in told(report)
    assert "steps summed, 1 to 7\n" in str(report)


def test_one_step_has_no_covariance_and_no_exponent(rng):
    text = str(rlvar.report(rlvar.Rollouts(rng.standard_normal((30, 1, 2)), np.ones((30, 1)))))
    assert "nan" not in text


def test_the_chart_rises_to_the_largest_variance(rng):
    report = rlvar.report(rlvar.Rollouts(np.ones((10, 20, 1)), rng.standard_normal(10)))
    lines = report.text(full=True).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Growth of the variance"))
    heights = [sum(line[13:].ljust(20)[k] != " " for line in lines[start + 1 : start + 7]) for k in range(20)]
    assert heights == sorted(heights)
    assert heights[-1] == 6


def test_the_verdict_says_what_the_rollouts_cannot_tell():
    rng = np.random.default_rng(1)
    scores, rewards = rng.standard_normal((100, 3, 2)), rng.standard_normal(100)
    text = told(rlvar.report(rlvar.Rollouts(scores, rewards), ["single"]))
    assert "100 rollouts are too few to resolve the signal of single-step: its interval" in text
    assert "The scores are consistent with on-policy sampling" in text
    assert "of their variance is not excluded" in text
    assert "do not average to 0" not in text


def test_rollouts_of_another_policy_are_told():
    rng = np.random.default_rng(0)
    actions = rng.standard_normal((500, 5)) + 0.8  # sampled with a mean that is not the policy's
    report = rlvar.report(rlvar.Rollouts(actions[:, :, None], actions))
    assert "The scores do not average to 0 given the past" in report.verdict[0]  # before all else
    assert "scores of different steps are correlated" in report.verdict[0]
    assert f"the square of their mean is {report.on_policy.mean_score} of" in report.verdict[0]
    one_step = rlvar.report(rlvar.Rollouts(actions[:, :1, None], actions[:, :1])).verdict[0]
    assert "the square of their mean" in one_step
    assert "correlated" not in one_step
    assert report.to_dict()["on_policy"]["on_policy"] is False


def test_the_headroom_of_a_baseline_is_said_with_what_is_removed(rng):
    # A constant return of 10: a baseline removes nearly all of the noise, reward-to-go a half of it.
    scores = rng.standard_normal((200, 2, 2))
    report = rlvar.report(rlvar.Rollouts(scores, 5 + 0.5 * rng.standard_normal((200, 2))))
    (sentence,) = [line for line in report.verdict if "cross-fitted" in line]
    assert sentence.startswith("Reward-to-go removes 3")
    assert "of the variance of single-step" in sentence
    assert "; token baselines (OTB), cross-fitted, would remove 99." in sentence
    assert "of what is left (95% interval" in sentence
    assert report.to_dict()["headroom"]["removable"]["value"] > 0.99
    assert [row.name for row in report.comparison] == ["single", "multi"]
    alone = rlvar.report(report.rollouts, ["single"])
    assert sentence in alone.verdict
    assert [row.name for row in alone.comparison] == ["single"]
    terminal = verdict(scores, 5 + rng.standard_normal(200))
    assert "cross-fitted, would remove 9" in terminal
    assert "of the variance of single-step" in terminal
    assert "eward-to-go" not in terminal
    noise = verdict(scores, rng.standard_normal(200))
    assert "No fitted baseline measurably reduces the variance of single-step" in noise
    assert "No baseline has anything to remove" in verdict(np.ones((12, 5, 3)), np.ones(12))


def test_a_baseline_has_no_credit_for_what_reward_to_go_removes(rng):
    # Rewards of mean 0 that no score has a part in: a baseline is of no use, reward-to-go is.
    report = rlvar.report(
        rlvar.Rollouts(rng.standard_normal((300, 8, 2)), rng.standard_normal((300, 8))), ["single"]
    )
    assert report.headroom.removable.low > 0.3
    assert report.headroom.on_top.low < 0
    (sentence,) = [line for line in report.verdict if "cross-fitted" in line]
    assert sentence.startswith("Reward-to-go removes 5")
    assert "; no fitted baseline measurably reduces what is left: " in sentence


def test_what_the_estimators_in_use_achieve_is_said_of_both_together(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((200, 4, 2)), 5 + rng.standard_normal((200, 4)))
    text = told(rlvar.report(rollouts, ["single", "multi", "multi-mean"]))
    assert " Already achieved of both together: multi-step with a mean baseline 1" in text
    text = told(rlvar.report(rollouts, ["multi-mean"], reference="multi-mean"))
    assert "over returns-to-go, cross-fitted, would remove" in text


def test_a_constant_that_beats_reward_to_go_is_told_beside_it():
    share, none = rlvar.Estimate(0.4, 0.05, 0.3, 0.5), rlvar.Estimate(np.nan)
    room = Headroom("single", "single-optimal", share, rlvar.Estimate(0.02, 0.02, -0.02, 0.06), none, {}, {})
    assert _headroom_sentence(room, grouped=False) == (
        "Whether reward-to-go reduces the variance of single-step is not resolved: by 2% (95% interval "
        "-2.0% to 6.0%); without it the best constant baseline (single-optimal), cross-fitted, "
        "would remove 40.0% of the variance of single-step (95% interval 30.0% to 50.0%)."
    )
    worse = replace(room, reward_to_go=rlvar.Estimate(-0.2, 0.05, -0.3, -0.1))
    told = "Reward-to-go adds 20.0% to the variance of single-step (95% interval 10.0% to 30.0%); "
    assert _headroom_sentence(worse, grouped=False).startswith(told)


def test_stale_rollouts_are_told_by_their_ratios(rng):
    logp = -rng.exponential(1.0, (60, 4))
    options = {"logp": logp, "behavior_logp": logp + 0.3 * rng.standard_normal((60, 4))}
    rollouts = rlvar.Rollouts(rng.standard_normal((60, 4, 2)), rng.standard_normal((60, 4)), **options)
    biased, fair = (rlvar.report(rollouts, importance=ratio) for ratio in ("token", "sequence"))
    assert "token ratios: effective sample size" in biased.text(full=True)
    assert "may estimate a different mean gradient than single-step" in told(biased)
    assert biased.headroom is None
    assert "times as many rollouts" in told(fair)


def test_decompositions_of_the_report_have_the_factors_of_its_table(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((40, 5, 3)), rng.standard_normal((40, 5)), lengths=rng.integers(1, 6, 40)
    )
    report = rlvar.report(rollouts, aggregation="sequence-mean", interval=rlvar.Bootstrap(seed=3))
    for name in ("single", "multi"):
        total = report.decompositions[name].variance
        assert report.comparison[name].variance.value == pytest.approx(total.value)
    assert "95% intervals in brackets: bootstrap over 40 rollouts." in str(report)
    assert "not divided by their number" in rlvar.report(rollouts, aggregation="token-mean").text(full=True)


def test_growth_with_the_length_of_rollouts_and_along_the_sequence_are_told_apart(rng):
    lengths = rng.choice([20, 40, 60], 300)
    text = verdict(rng.standard_normal((300, 60, 2)), lengths / 60, lengths=lengths)
    assert "on average 20 to 60 steps, the variance of single-step grows as length^" in text
    assert "grows as k^" not in text
    for near in (None, 58 + lengths // 30):  # of 58 to 60 steps: no lengths to speak of
        text = verdict(rng.standard_normal((300, 60, 2)), np.ones(300), lengths=near)
        assert "grows as length" not in text
        along = (
            "In rollouts of full length, the variance of the sum of the first k steps' terms of single-step"
        )
        assert f"{along} grows as k^" in text


def test_rewards_on_the_way_are_told_by_what_cut_rollouts_would_show():
    # Each token its own reward: T^3, where the terms of whole rollouts add up ever more slowly.
    tokens = np.random.default_rng(0).random((300, 80)) < 0.5
    report = rlvar.report(rlvar.Rollouts((tokens - 0.5)[:, :, None], tokens.astype(float)))
    exponent = report.decompositions["multi"].horizon_exponent
    assert 2.5 < exponent.low < 2.95 < exponent.high
    (sentence,) = [line for line in report.verdict if "grow" in line]
    begins = "If rollouts were cut after k steps, the variance of multi-step would grow as k^"
    assert sentence.startswith(begins + f"{exponent.value:.2f} (95% interval {exponent.low:.3g} to ")
    assert sentence.endswith("over k from 40 to 80, which at least half of the rollouts reach.")


def test_growth_that_may_be_linear_and_quadratic_is_not_resolved():
    rng = np.random.default_rng(0)
    text = verdict(rng.standard_normal((12, 6, 2)), rng.standard_normal((12, 6)))
    assert "would grow as a power of k that is not resolved, " in text
    assert "would grow as k^" not in text


def test_few_rollouts_are_warned_of_once(tmp_path, rng, capsys):
    path = tmp_path / "few.npz"
    np.savez(path, scores=rng.standard_normal((6, 3, 2)), rewards=rng.standard_normal((6, 3)))
    assert main(["report", str(path)]) == 0
    assert capsys.readouterr().err.count("only 6 rollouts") == 1


def test_a_ratio_that_may_be_zero_has_no_upper_end_when_it_is_turned_around(rng):
    # Without one rollout multi-step does not vary: its last reward is the only one.
    scores, rewards = np.ones((12, 2, 1)), np.zeros((12, 2))
    scores[:, 0] = 0.0
    rewards[:, 0] = rng.standard_normal(12)
    rewards[0, 1] = 0.5
    report = rlvar.report(rlvar.Rollouts(scores, rewards))
    ratio = report.comparison["multi"].ratio
    assert ratio.low == 0.0
    assert f"interval {1 / ratio.high:.3g} to inf)" in told(report)


def test_nothing_can_be_removed_from_a_reference_that_does_not_vary(rng):
    # R S = 1 always; with a baseline it varies.
    signs = np.sign(rng.standard_normal((20, 1, 1)))
    text = verdict(signs, signs[:, :, 0])
    assert "No baseline has anything to remove from single-step." in text
    assert "inf%" not in text


def test_a_baseline_for_all_groups_is_not_said_to_be_the_best_there_is(rng):
    # Prompts differ in their rewards: each needs a baseline of its own.
    groups = np.repeat(np.arange(60), 8)
    signs = rng.choice([-1.0, 1.0], (480, 1, 2))
    rewards = 5 * rng.standard_normal(60)[groups] + signs[:, 0, 0]
    report = rlvar.report(
        rlvar.Rollouts(signs, rewards, groups=groups), ["single", "rloo"], reference="single"
    )
    assert report.comparison["rloo"].ratio.high < 0.1
    assert report.headroom.removable.low < 0
    text = told(report)
    assert "No fitted baseline measurably reduces the variance of single-step" in text
    assert "the best constant baseline (single-optimal), one for all groups, cross-fitted, would" in text
    report = rlvar.report(
        rlvar.Rollouts(signs, rewards + 30, groups=groups), ["single", "rloo"], reference="single"
    )
    text = told(report)
    assert (
        "The best constant baseline (single-optimal), one for all groups, cross-fitted, would remove" in text
    )


def test_a_token_mean_over_groups_is_not_said_to_average_their_means(rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((40, 5, 3)), rng.standard_normal((40, 5)), groups=np.repeat(np.arange(10), 4)
    )
    text = rlvar.report(rollouts, aggregation="token-mean").text(full=True)
    assert "variance of a group's tokens" in text
    assert "This table uses groups, because" in text
    assert "group's mean" not in text
    assert "group means" not in text


def test_ratios_that_leave_few_rollouts_are_told(rng):
    # Coins of 0.5 scored as coins of 0.65: after 600 tosses one rollout has most of the ratios' sum.
    tosses = rng.random((64, 600)) < 0.5
    logp = np.log(np.where(tosses, 0.65, 0.35))
    options = {"logp": logp, "behavior_logp": np.full((64, 600), np.log(0.5))}
    rollouts = rlvar.Rollouts((tosses - 0.65)[:, :, None], tosses.mean(axis=1), **options)
    report = rlvar.report(rollouts, ["single", "single-mean"], importance="sequence")
    size = report.comparison["single"].importance.effective_size
    assert size < 10
    sentence = f"the effective sample size is {size:.1f} of 64 rollouts. Do not trust any number here."
    assert sentence in told(report)
    unweighted = told(rlvar.report(rollouts))
    assert f"Sequence ratios would leave an effective sample size of {size:.1f} of 64" in unweighted
    assert "behavior_logp agrees that another policy sampled" in unweighted


def test_ratios_whose_mean_is_not_one_are_told(rng):
    tosses = rng.random((100, 4)) < 0.5
    scores, logp = np.where(tosses, 0.5, -0.5)[:, :, None], np.full(tosses.shape, -1.0)
    rollouts = rlvar.Rollouts(scores, np.ones(100), logp=logp, behavior_logp=logp - 0.5 * tosses)
    text = told(rlvar.report(rollouts, importance="sequence"))
    assert "The mean of the sequence ratios is" in text
    assert "should be 1" in text
    assert "effective sample size" not in text


def test_a_sampler_that_never_takes_some_tokens_is_told_and_nothing_is_unbiased():
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.3, 0.15, 0.05])
    kept = p[:2] / p[:2].sum()
    tokens = (rng.random((200, 3)) > kept[0]).astype(int)
    rollouts = rlvar.Rollouts(
        np.eye(4)[tokens] - p, tokens.mean(axis=1), logp=np.log(p[tokens]), behavior_logp=np.log(kept[tokens])
    )
    report = rlvar.report(rollouts, importance="sequence")
    assert not any(row.unbiased for row in report.comparison)
    text = told(report)
    assert "Either about 49% of the policy's probability lies on rollouts that were never or" in text
    assert "No estimator is then unbiased" in text
    assert "for the same precision" not in text.replace("each needs for the same precision", "")


def test_a_logp_of_minus_infinity_says_that_another_policy_sampled(rng):
    actions, logp = rng.standard_normal((100, 4)), np.zeros((100, 4))
    logp[3, 2] = -np.inf
    rollouts = rlvar.Rollouts(actions[:, :, None], actions, logp=logp)
    text = told(rlvar.report(rollouts))
    assert "1 step has a logp of minus infinity: the policy that scores them never takes this action" in text
    assert "times as many rollouts as" not in text


def test_rows_of_positions_are_told_and_nobody_is_accused():
    net, rng = closed_forms.MixingNetwork(seed=0), np.random.default_rng(0)
    drawn = rng.choice(len(net.probabilities), 1000, p=net.probabilities)
    rows, groups = net.shares.sum(axis=2)[drawn], np.arange(1000) // 2
    text = told(rlvar.report(rlvar.Rollouts(rows, net.rewards[drawn])))
    assert "look like rows of one backward pass (contributions of positions), not token scores" in text
    assert "each needs for the same precision: these look like rows of positions" in text
    assert "do not average to 0" not in text
    # With one number a rollout it does not matter what a step is.
    total = rlvar.Rollouts(rows, net.rewards[drawn].sum(axis=1), groups=groups)
    text = told(rlvar.report(total, ["single", "rloo"]))
    assert "look like rows" in text
    assert "groups as" in text
    assert "each needs for the same precision" not in text


def test_log_probabilities_that_differ_by_rounding_change_no_verdict(rng):
    # What a trainer and an inference engine of the same policy say of the same tokens.
    tosses = rng.random((200, 30)) < 0.5
    logp = np.full(tosses.shape, np.log(0.5))
    scores, rewards = (tosses - 0.5)[:, :, None], tosses.astype(float)
    engine = logp + 1e-3 * rng.standard_normal(tosses.shape)
    plain = rlvar.report(rlvar.Rollouts(scores, rewards))
    both = rlvar.report(rlvar.Rollouts(scores, rewards, logp=logp, behavior_logp=engine))
    assert both.verdict == plain.verdict
    assert "the policies agree on these rollouts" in both.text(full=True)


def test_estimators_that_are_the_same_are_told_once(rng):
    rewards = rng.standard_normal(60)
    logp = -rng.exponential(1.0, (60, 4))
    stale = {"logp": logp, "behavior_logp": logp + 0.3 * rng.standard_normal((60, 4))}
    rollouts = rlvar.Rollouts(rng.standard_normal((60, 4, 2)), rewards, **stale)
    report = rlvar.report(rollouts, ["single", "multi"])
    text = report.text(full=True)
    assert "are the same estimator" in text
    assert "ranked by noise scale" not in text
    assert text.count("Where the variance of") == 1
    assert "single-step comes from (multi-step is the same)" in text
    assert text.count("Growth of the variance") == 1


def test_nothing_is_claimed_without_intervals_or_gradients(rng):
    two = rlvar.report(rlvar.Rollouts(rng.standard_normal((2, 3, 1)), rng.standard_normal((2, 3))))
    assert two.verdict == ["2 rollouts are too few to tell anything: there are no intervals."]
    still = rlvar.Rollouts(rng.standard_normal((20, 3, 1)), np.zeros(20))
    assert rlvar.report(still).verdict[0].startswith("All gradient estimates are 0")
    with pytest.raises(ValueError, match="estimators must name at least one"):
        rlvar.report(still, [])


@pytest.mark.parametrize("interval", ["jackknife", rlvar.Bootstrap()])
def test_a_variance_that_one_rollout_carries_alone_settles_nothing(interval):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scores, rewards = rng.standard_normal((23, 6, 3)), np.zeros(23)
        rewards[seed] = 1.0
        report = rlvar.report(rlvar.Rollouts(scores, rewards), ["single", "multi"], interval=interval)
        assert str(report).count("not resolved") >= 3  # of either table, and the sentence
        # Returns-to-go of the others vary, whole returns do not.
        rewards = np.where(np.arange(23)[:, None] == seed, rng.standard_normal(6), [1, -1, 0, 0, 0, 0])
        text = told(rlvar.report(rlvar.Rollouts(scores, rewards), interval=interval))
        assert "Inconclusive: " in text
        assert "e+" not in text


def test_a_number_that_rounds_to_zero_has_no_sign():
    assert (power(-0.004), power(-0.006)) == ("0.00", "-0.01")
    assert (percent(-0.004), percent(-0.006)) == ("0%", "-1%")


def test_unresolved_quantities_are_shown_as_such(rng):
    rollouts = rlvar.Rollouts(rng.standard_normal((100, 3, 2)), rng.standard_normal((100, 3)))
    text = str(rlvar.compare(rollouts, ["single", "multi", "reinforce++"]))
    assert "not resolved" in text
    assert "above " in text
    assert " inf" not in text


def test_rollouts_that_hold_several_episodes_have_a_report(rng):
    ends = np.zeros((40, 8), bool)
    ends[:, 3] = True
    rollouts = rlvar.Rollouts(rng.standard_normal((40, 8, 3)), rng.standard_normal((40, 8)), terminated=ends)
    report = rlvar.report(rollouts)
    assert report.headroom.best in ("multi-optimal", "otb")
    assert "times as many rollouts as multi-step" in report.verdict[0]


PRECISION = "for the same precision"


def test_the_same_precision_is_said_of_distinct_unfiltered_rollouts_on_policy_alone():
    rng = np.random.default_rng(0)
    actions = rng.standard_normal((400, 5))
    fair = rlvar.Rollouts(actions[:, :, None], actions)
    assert f"rollouts as multi-step {PRECISION}" in rlvar.report(fair).verdict[0]
    off = rlvar.Rollouts(actions[:, :, None] + 0.8, actions)
    logp = np.zeros((400, 5))
    stale = rlvar.Rollouts(actions[:, :, None], actions, logp=logp, behavior_logp=logp - 0.3 * actions)
    twice = rlvar.Rollouts(np.repeat(actions[:200, :, None], 2, axis=0), np.repeat(actions[:200], 2, axis=0))
    for rollouts, doubt in [
        (off, "the scores may not be those of the policy that sampled"),
        (stale, "another policy sampled these rollouts"),
        (twice, "some rollouts look like copies"),
    ]:
        text = told(rlvar.report(rollouts))
        assert "times as many rollouts as" not in text
        if "may estimate a different mean gradient" not in text:
            assert f"This does not say how many rollouts each needs {PRECISION}: {doubt}" in text


def test_groups_kept_by_their_outcome_are_not_said_to_need_fewer():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 2000)
    rewards = (rng.random((2000, 8)) < p[:, None]).astype(float)
    rewards = rewards[(rewards.sum(axis=1) % 8) > 0][:300]
    groups = np.repeat(np.arange(300), 8)
    rollouts = rlvar.Rollouts(rng.standard_normal((2400, 1, 3)), rewards.ravel(), groups=groups)
    text = told(rlvar.report(rollouts, ["single", "rloo"], reference="rloo"))
    assert "kept by their outcome" in text
    assert "as many groups" not in text


def test_a_ratio_within_one_percent_is_a_tie(rng):
    rewards = np.concatenate([1e-4 * rng.standard_normal((300, 3)), rng.standard_normal((300, 1))], axis=1)
    first = rlvar.report(rlvar.Rollouts(rng.standard_normal((300, 4, 2)), rewards)).verdict[0]
    assert "need as many rollouts for the same precision, to within 1% (95% interval" in first


def test_a_known_factor_between_two_means_is_said_and_divided_out(rng):
    groups = np.repeat(np.arange(12), 4)
    rollouts = rlvar.Rollouts(rng.standard_normal((48, 1, 3)), rng.standard_normal(48), groups=groups)
    first = rlvar.report(rollouts, ["rloo", "dr-grpo"], reference="rloo").verdict[0]
    assert first == (
        "The mean gradient of Dr. GRPO is 0.75 times that of RLOO here, and so is its noise: both need as "
        "many groups for the same precision."
    )


def test_two_batches_are_compared_where_the_signal_is_resolved(rng):
    text = told(rlvar.report(rlvar.datasets.cartpole()))
    assert (
        "With multi-step, two batches of 256 independent rollouts differ by about 24% in gradient norm and"
        in text
    )
    noise = rlvar.Rollouts(rng.standard_normal((40, 3, 2)), rng.standard_normal((40, 3)))
    assert "two batches" not in told(rlvar.report(noise))


def test_a_report_shows_one_signal_of_an_estimator():
    report = rlvar.report(rlvar.datasets.cartpole())
    assert report.text(full=True).count("signal |E g|^2") == 1
    assert all("signal" not in parts for parts in report.to_dict()["decompositions"].values())


def test_advantages_given_as_rewards_are_one_gradient_of_two_lengths(rng):
    # Centred within groups of 4: RLOO is then 4/3 of single-step, whatever theory says of their means.
    rewards = rng.integers(0, 2, (30, 4)).astype(float)
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)).ravel()
    groups = np.repeat(np.arange(30), 4)
    rollouts = rlvar.Rollouts(rng.standard_normal((120, 1, 3)), advantages, groups=groups)
    report = rlvar.report(rollouts, ["single", "rloo"], reference="single")
    row = report.comparison["rloo"]
    assert row.factor == pytest.approx(4 / 3)
    assert row.ratio.value == pytest.approx(16 / 9)
    assert row.signal.value == pytest.approx(16 / 9 * report.comparison["single"].signal.value)
    assert report.verdict[0].startswith(
        "The mean gradient of RLOO is 1.33 times that of single-step here, and so"
    )
