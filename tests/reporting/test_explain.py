"""Numbers of `rlvar explain` are closed forms, those of loops over all sequences, or the report's."""

import itertools
import math
import re

import numpy as np
import pytest

import closed_forms
import reference
import rlvar
from rlvar.cli import main
from rlvar.reporting.explain import explain
from rlvar.stats.estimate import inverse
from rlvar.stats.shown import measured


@pytest.fixture(scope="module")
def page():
    return explain()


@pytest.fixture(scope="module")
def words(page):
    """The page without its line breaks."""
    return re.sub(r"\s+", " ", page)


def numbers(pattern, text):
    (found,) = re.findall(pattern.replace("#", r"(-?[\d.]+\d|\d)"), text)
    return [float(each) for each in ([found] if isinstance(found, str) else found)]


def variance_by_loops(reward_of, weight_of, steps=8):
    """V of sum_t w_t (y_t - 1/2) over all tosses of a fair coin; weights from the rewards of a sequence."""
    gradients = []
    for tosses in itertools.product((0, 1), repeat=steps):
        rewards = reward_of(tosses)
        gradients.append(sum(weight_of(rewards, t) * (tosses[t] - 0.5) for t in range(steps)))
    mean = math.fsum(gradients) / len(gradients)
    return math.fsum((g - mean) ** 2 for g in gradients) / len(gradients)


def whole(rewards, t):
    return sum(rewards)


def to_go(rewards, t):
    return sum(rewards[t:])


def last_pays(tosses):
    return [0] * (len(tosses) - 1) + [tosses[-1]]


def test_it_is_a_page_of_80_columns_without_control_characters(page):
    lines = page.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 72
    assert all(line.isascii() and line.isprintable() and line == line.rstrip() for line in lines)


def test_it_says_the_same_each_time(page):
    assert explain() == page


def test_what_is_measured_on_cartpole_is_what_the_report_has(words):
    report = rlvar.report(rlvar.datasets.cartpole())
    row = report.comparison["multi"]
    assert f"noise scale: {measured(report.comparison['single'].noise_scale)} rollouts of CartPole" in words
    assert f"CartPole: {measured(inverse(row.ratio))} times" in words
    assert row.ratio.high < 1  # single-step is noisier beyond doubt
    assert row.ratio_units < 4  # "few episodes decide that"
    single, multi = (measured(report.decompositions[name].horizon_exponent) for name in ("single", "multi"))
    first, last = report.decompositions["multi"].growth_range
    assert f"after k = {first} to {last} steps: k^{single} and k^{multi}." in words
    parts = report.decompositions["multi"]
    share = -parts.covariance_terms.value / parts.variance_terms.value
    assert parts.covariance_terms.high < 0
    assert numbers("In CartPole they cancel #%", words) == [round(100 * share)]


def test_with_one_reward_at_the_end_the_two_are_one_to_the_bit(words):
    apart, one, other, first, second = numbers(
        "weights differ by # at most. V is # and # if the last of 8 tosses pays 1 for heads, # and # for",
        words,
    )
    assert apart == 0
    exact = variance_by_loops(last_pays, to_go)
    assert one == other == exact == variance_by_loops(last_pays, whole) == 8 / 8 - 1 / 16
    completions = rlvar.datasets.arithmetic()
    rows = rlvar.compare(completions, ["single", "multi"])
    assert first == second == rows["single"].variance.value == rows["multi"].variance.value
    paid = np.zeros(completions.live.shape)
    for n, length in enumerate(completions.lengths):
        paid[n, length - 1] = completions.rewards[n]
        for t in range(length):
            assert paid[n, t:length].sum() == completions.rewards[n]


def test_past_rewards_make_the_difference_and_the_sum_holds(words):
    v, v_multi, past, twice, factor = numbers(
        r"2 Cov\(multi, past\) # = # \+ # \+ # and single-step needs # times", words
    )
    assert v == v_multi + past + twice
    assert [v, v_multi] == list(closed_forms.bernoulli_variances(8, 0.5))
    assert v == variance_by_loops(list, whole)
    assert v_multi == variance_by_loops(list, to_go)
    assert past == variance_by_loops(list, lambda rewards, t: sum(rewards[:t]))
    assert factor == round(v / v_multi, 2)
    single, multi = closed_forms.bernoulli_variances(100_000, 0.5)
    assert numbers(r"\(# as T grows\)", words) == [pytest.approx(single / multi, rel=1e-4)]


def test_past_rewards_that_cancel_make_multi_step_the_noisier_one(words):
    pay, factor = numbers(
        "first toss pay # more .* multi-step has # times the variance of single-step", words
    )

    def rewards_of(tosses):
        return [tosses[0] + pay, *tosses[1:-1], tosses[-1] - pay]

    single, multi = (variance_by_loops(rewards_of, weight) for weight in (whole, to_go))
    assert single == variance_by_loops(list, whole)
    assert factor == round(multi / single, 1)
    assert factor > 1


def test_the_table_of_growth_has_the_closed_form_and_its_exponents(page):
    rows = [
        [float(cell) for cell in line.split()] for line in page.splitlines() if re.match(r" +\d+ +\d", line)
    ]
    assert [row[0] for row in rows] == [1, 2, 4, 8, 16]
    before = None
    for row in rows:
        steps = int(row[0])
        exact = closed_forms.bernoulli_variances(steps, 0.5)
        if before is None:
            row = [*row[:4], math.nan, *row[4:], math.nan]
        single, multi = row[1:5], row[5:9]
        assert single[2] == exact[0] == single[0] + single[1]
        assert multi[2] == exact[1] == multi[0] + multi[1]
        assert single[1] == steps * (steps - 1) / 16  # v^2 for each pair, in both orders
        assert multi[1] == 0
        if before is not None:
            for of_one, v, v_before in zip((single, multi), exact, before, strict=True):
                assert of_one[3] == round(math.log2(v / v_before), 2)
        before = exact
    far = [closed_forms.bernoulli_variances(steps, 0.5) for steps in (50_000, 100_000)]
    for one, other in zip(*far, strict=True):
        assert math.log2(other / one) == pytest.approx(3, abs=1e-3)  # "both tend to T^3"


def test_covariances_that_are_equal_give_the_square_and_those_that_are_not_there_give_the_line(words):
    times, square, nothing, line = numbers(
        "add up to # times the variance terms, and V of the first k terms is as k.#. With a parameter for "
        "each toss they are #, and it is as k.#. In",
        words,
    )
    exact = closed_forms.all_correct_covariance(8, 0.5)
    assert times == (exact.sum() - exact.trace()) / exact.trace()
    growth = [exact[:k, :k].sum() for k in range(1, 9)]
    assert np.allclose(growth, exact[0, 0] * np.arange(1, 9) ** square)
    assert np.allclose(np.cumsum(exact.diagonal()), exact[0, 0] * np.arange(1, 9) ** line)
    assert nothing == 0
    assert all(growth <= np.arange(1, 9) / 4)  # the line that bounds them all the same


@pytest.mark.parametrize("seed", range(5))
def test_one_reward_at_the_end_from_0_to_1_stays_below_the_sum_of_the_squared_scores(seed):
    policy = closed_forms.EnumeratedPolicy(vocabulary=3, steps=4, seed=seed)
    rewards = np.random.default_rng(seed).integers(0, 2, len(policy.sequences)).astype(float)
    v = policy.covariance(np.repeat(rewards[:, None], 4, axis=1)).sum()
    assert v <= policy.fisher_information().sum()


def test_the_noise_scale_of_a_reward_for_the_last_toss_is_twice_the_length_minus_1(words):
    said = numbers("the noise scale is # at T = 4 and # at T = 8", words)
    for steps, noise_scale in zip((4, 8), said, strict=True):
        mean = 0.25  # of y_T (y_T - 1/2)
        assert noise_scale == 2 * steps - 1 == variance_by_loops(last_pays, whole, steps) / mean**2


def test_baselines_do_what_the_page_says(words):
    before, after, multi_before, multi_after, best, right = numbers(
        "falls from # to #, of multi-step from # to #. .*: # for the completions, of which #% are right",
        words,
    )
    assert [before, multi_before] == list(closed_forms.bernoulli_variances(8, 0.5))
    assert after == variance_by_loops(list, lambda rewards, t: sum(rewards) - 4)
    assert multi_after == variance_by_loops(list, lambda rewards, t: sum(rewards[t:]) - (8 - t) / 2)
    completions = rlvar.datasets.arithmetic()
    norms = [g @ g for g in reference.gradients(completions.scores, lengths=completions.lengths)]
    assert best == round(np.average(completions.rewards, weights=norms), 2)
    assert right == round(100 * completions.rewards.mean())
    rloo = rlvar.report(completions).comparison["single"]
    assert f"needs {measured(inverse(rloo.ratio))} times the prompts" in words
    assert rloo.ratio.high < 1


def test_the_commands_that_it_ends_with_exist(page, capsys):
    commands = re.findall(r"^     rlvar report (.*?)  ", page, re.MULTILINE)
    assert len(commands) == 5
    with pytest.raises(SystemExit):
        main(["report", "--help"])
    options = capsys.readouterr().out
    for command in commands:
        for option in re.findall(r"--\w+", command):
            assert option in options
