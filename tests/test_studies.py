"""The worlds of the studies have the truth that they say, and a study of intervals fails where they miss."""

import importlib
from pathlib import Path

import numpy as np
import pytest

import closed_forms
import rlvar
import worlds

calibration = importlib.import_module("calibration")
monitoring = importlib.import_module("monitoring")
false_verdicts = importlib.import_module("false_verdicts")
two_sets = importlib.import_module("two_sets")
TAILS = {
    "a tail that both share": worlds.Linear(factor=0.3),
    "a tail in one alone": worlds.Linear(bonus=0.5),
    "stale, 40 tosses": worlds.tosses(4),
}


@pytest.mark.parametrize("name", calibration.SETTINGS)
def test_the_truth_of_a_world_is_what_many_units_come_to(name):
    world, own, other = calibration.SETTINGS[name]
    setting = TAILS.get(name, world), own, other  # of heavier tails no number of units comes to the truth
    units, rng = 2000 if "1000" in name else 20_000, np.random.default_rng(1)
    true = calibration.truth(*setting, units)
    *covered, _, _, width, _, _, _ = calibration.trial(rng, setting, units, true, 0.9999, None)
    assert all(np.array(covered) | np.isnan(true))
    assert width < 2


def test_the_truth_of_rloo_is_its_closed_form_averaged_over_prompts():
    world, size = worlds.Prompts([0.1, 0.4, 0.8], [5]), 5
    parts = [
        closed_forms.rloo_moments(policy, world.rewards, scores, size)
        for policy, scores in zip(world.policy, world.scores, strict=True)
    ]
    means = np.array([mean for mean, _, _ in parts])
    within = np.mean([independent + pairs for _, independent, pairs in parts])
    found = world.truth("rloo", units=20)
    np.testing.assert_allclose(found.mean, means.mean(axis=0), rtol=0, atol=1e-12)
    assert found.variance == pytest.approx(within + means.var(axis=0).sum(), rel=1e-12)


def test_a_leave_one_out_mean_over_all_units_has_its_closed_form():
    world = calibration.SETTINGS["success in 4 %"][0]
    whole = world.whole
    summed, returns = (whole.scores * whole.live[:, :, None]).sum(axis=1), whole.rewards.sum(axis=1)
    _, independent, pairs = closed_forms.rloo_moments(world.probabilities, returns, summed, 12)
    assert world.probabilities @ returns == pytest.approx(0.04, abs=0.004)
    assert world.truth("single-mean", 12).variance == pytest.approx(12 * (independent + pairs), rel=1e-12)


def test_every_setting_is_tried_with_either_interval():
    rng = np.random.default_rng(0)
    for setting in calibration.SETTINGS.values():
        for bootstrap in (None, rlvar.Bootstrap(100)):
            values = calibration.truth(*setting, 12)
            tried = calibration.trial(rng, setting, 12, np.full_like(values, np.nan), 0.95, bootstrap)
            assert not any(tried[: len(calibration.QUANTITIES)])  # nothing covers what is undefined
            assert len(tried) == len(calibration.QUANTITIES) + 6


def test_the_calibration_fails_where_intervals_miss_without_a_note_and_only_there(monkeypatch, capsys):
    light = calibration.SETTINGS["light"]
    monkeypatch.setattr(calibration, "SETTINGS", {"light": light})
    monkeypatch.setattr(calibration, "UNITS", (160,))
    assert calibration.main(["--data-sets", "40"]) == 0
    right = calibration.truth
    monkeypatch.setattr(calibration, "truth", lambda *given: 2 * right(*given))
    assert calibration.main(["--data-sets", "10"]) == 1
    assert "light, 160 units: variance 0.0%" in capsys.readouterr().out


def test_the_truth_of_a_moving_policy_is_what_many_prompts_come_to():
    for path in monitoring.PATHS:
        world = 6, 3000, 4, 5, "heavy", 0.8, path
        covariances, signals, variances, squares = monitoring.run(np.random.default_rng(0), *world)
        found = np.einsum("tii->ti", covariances)
        np.testing.assert_allclose(found.mean(axis=0), variances.mean(axis=0), rtol=0.1)
        assert signals[:, 1, 1].mean() == pytest.approx(squares.mean(), rel=0.1)


def test_a_run_of_another_policy_raises_the_alarm_and_one_on_policy_does_not():
    rng, stale = np.random.default_rng(0), monitoring.worlds.MISMATCHED["stale: logits moved by 10 %"]
    for behavior, found in ((stale, True), (monitoring.worlds.PI, False)):
        scores, _ = monitoring.worlds.sample(rng, 64 * 100, monitoring.worlds.PI, behavior)
        assert (monitoring.alarm(monitoring.records(scores, 64)) is not None) == found


def test_a_verdict_that_misses_the_truth_is_judged_false(monkeypatch, capsys):
    (known,) = (each for each in false_verdicts.attempts() if each.title == "two batches, weak signal")
    wrong = {
        "precision": {"needs": {("single", "multi"): np.nan}},
        "reward-to-go": {"variance": {"single": 1.0, "multi": 2.0}},
        "growth, horizon": {"horizon": {"multi": 0.2, "single": 0.2}},
        "angle": {"angle": 80.0, "norm": 0.2},
    }
    for kind, truth in wrong.items():
        false = known._replace(truth=truth)
        monkeypatch.setattr(false_verdicts, "attempts", lambda each=false: [each])
        assert false_verdicts.main(["--data-sets", "5"]) == 1
        assert f"1 ({kind}): " in capsys.readouterr().out
    monkeypatch.setattr(false_verdicts, "attempts", lambda: [known])
    assert false_verdicts.main(["--data-sets", "5"]) == 0


def test_the_tables_of_acting_are_those_of_its_recorded_runs(capsys):
    docs = Path(__file__).parents[1] / "docs"
    importlib.import_module("acting_results").show(docs / "acting.json")
    written = (docs / "acting.md").read_text(encoding="utf-8")
    shown = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("#")]
    assert len(shown) > 60
    assert [line for line in shown if line not in written] == []


def test_two_sets_on_the_same_prompts_have_the_ratios_that_the_study_says():
    world = two_sets.Shared(0.25)
    found = rlvar.compare_rollouts(*world.rollouts(np.random.default_rng(0), 20_000), ["rloo"])
    row = found["rloo"]
    assert found.paired
    estimates = row.ratio, row.signal_ratio, row.noise_scale_ratio, found.reward_difference
    for estimate, true in zip(estimates, world.truth(), strict=True):
        assert abs(estimate.value - true) < 4 * estimate.stderr
        assert estimate.stderr < 0.06
