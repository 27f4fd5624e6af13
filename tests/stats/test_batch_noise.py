"""What two batches differ by, beside what simulated batches differ by."""

import json
import math

import numpy as np
import pytest

import rlvar
from rlvar.stats import moments
from rlvar.stats.batch_noise import batch_noise, share_along

#: Standard deviations of a unit's gradient in each coordinate, and its mean.
SETTINGS = {
    "30 directions": (np.ones(30), np.full(30, 0.4)),
    "noise along the mean": (np.r_[5.0, np.ones(40)], np.r_[2.0, np.zeros(40)]),
    "noise across the mean": (np.r_[5.0, np.ones(40)], np.r_[0.0, np.full(40, 0.25)]),
    "3 directions": (np.ones(3), np.array([0.5, 0.0, 0.0])),
    "a weak signal": (np.ones(300), np.full(300, 0.05)),
}


def shape(sd, mean):
    """V, the effective dimension, and the share of the noise along the mean."""
    v = np.square(sd).sum()
    return v, v**2 / (sd**4).sum(), (mean**2 * sd**2).sum() / (mean @ mean) / v


def of_moments(sd, mean, units, noise_scale=None):
    v, dimension, along = shape(sd, mean)
    noise_scale = v / (mean @ mean) if noise_scale is None else noise_scale
    return batch_noise(rlvar.Estimate(noise_scale), dimension, along, units, unit="rollout")


def simulated(rng, sd, mean, units, pairs=20_000):
    """Angle of the mean cosine, and change in norm, of two batches of normal gradients."""
    a, b = mean + rng.standard_normal((2, pairs, len(mean))) * sd / np.sqrt(units)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    cosine = np.mean((a * b).sum(axis=1) / norms[0] / norms[1])
    change = np.sqrt(np.square(norms[0] - norms[1]).mean() / np.square(norms).mean())
    return math.degrees(math.acos(cosine)), change


@pytest.mark.parametrize("units", [20, 200])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_moments_give_what_simulated_batches_differ_by(rng, setting, units):
    angle, change = simulated(rng, *SETTINGS[setting], units)
    found = of_moments(*SETTINGS[setting], units)
    assert found.angle.value == pytest.approx(angle, abs=2.5)
    assert found.norm_change == pytest.approx(change, rel=0.15)


def test_without_a_signal_the_change_in_norm_of_equal_directions_is_that_of_the_chi_distribution():
    """E|m|^2 = 1 and E|m| = sqrt(2 / D) Gamma((D + 1) / 2) / Gamma(D / 2) for normal m in D directions."""
    for d in (1, 2, 7, 5000):
        mean = math.sqrt(2 / d) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
        found = batch_noise(rlvar.Estimate(-5.0), d, 1 / d, 10, unit="rollout")
        assert found.norm_change == pytest.approx(math.sqrt(2 * (1 - mean**2)), rel=1e-6)
        assert found.angle.value == 90


def test_in_many_directions_the_cosine_is_the_share_of_the_signal():
    for ratio in (0.01, 1.0, 50.0):
        found = batch_noise(rlvar.Estimate(100 / ratio), 1e9, 0.0, 100, unit="rollout")
        assert math.cos(math.radians(found.angle.value)) == pytest.approx(ratio / (1 + ratio), rel=1e-6)


def test_more_units_turn_less_whatever_the_noise():
    for dimension in (1.0, 1.5, 4.0, 100.0):
        for along in np.linspace(0, 1 / math.sqrt(dimension), 5):
            any_size = batch_noise(rlvar.Estimate(50.0, 1.0, 20.0, 90.0), dimension, along, 1, unit="rollout")
            angles = [any_size.at(u).angle for u in (1, 3, 10, 30, 100, 1000, 100_000)]
            assert all(x.low <= x.value <= x.high <= 90 for x in angles)
            assert [x.value for x in angles] == sorted((x.value for x in angles), reverse=True)
            assert angles[-1].high < 5


def test_the_share_along_the_mean_is_estimated_without_much_bias(rng):
    for setting in ("noise along the mean", "noise across the mean"):
        sd, mean = SETTINGS[setting]
        along = shape(sd, mean)[-1]
        found = []
        for _ in range(100):
            own, _ = moments.products([moments.Sample(mean + rng.standard_normal((200, len(sd))) * sd)])[0]
            signal = moments.signal(own).value
            found.append(share_along(own, moments.variance(own).value, signal, moments.dimension(own)))
            assert 0 <= found[-1] <= 1
        assert np.mean(found) == pytest.approx(along, abs=0.02)


@pytest.mark.parametrize("setting", ["30 directions", "noise along the mean", "a weak signal"])
def test_the_interval_of_the_angle_covers(rng, setting):
    sd, mean = SETTINGS[setting]
    angle, _ = simulated(rng, sd, mean, units=50)
    covered = []
    for _ in range(150):
        scores = mean + rng.standard_normal((50, 1, len(mean))) * sd
        rollouts = rlvar.Rollouts(scores, np.ones(50))
        found = rlvar.compare(rollouts, ["single"])["single"].batch_noise.angle
        covered.append(found.low <= angle <= found.high)
    assert np.mean(covered) > 0.88  # 95 % but for 4 standard errors


def test_disjoint_halves_of_the_embedded_rollouts_differ_by_as_much(rng):
    rollouts = rlvar.datasets.cartpole()
    weights = rlvar.estimator("multi").weights(rollouts)
    g = np.einsum("nt,ntd->nd", np.where(rollouts.live, weights, 0), rollouts.scores)
    cosines, changes, squares = [], [], []
    for _ in range(1000):
        order = rng.permutation(256)
        a, b = g[order[:128]].mean(axis=0), g[order[128:]].mean(axis=0)
        norms = np.linalg.norm(a), np.linalg.norm(b)
        cosines.append(a @ b / norms[0] / norms[1])
        changes.append((norms[0] - norms[1]) ** 2)
        squares.append((norms[0] ** 2 + norms[1] ** 2) / 2)
    found = rlvar.compare(rollouts)["multi"].batch_noise.at(128)
    assert found.angle.value == pytest.approx(math.degrees(math.acos(np.mean(cosines))), abs=3)
    assert found.norm_change == pytest.approx(math.sqrt(np.mean(changes) / np.mean(squares)), rel=0.1)


def test_it_is_said_in_one_sentence(rng):
    result = rlvar.compare(rlvar.datasets.cartpole())
    noise = result["multi"].batch_noise
    angle = noise.angle
    assert str(noise) == (
        "Two batches of 256 independent rollouts differ by about "
        f"{noise.norm_change:.0%} in gradient norm and "
        f"{angle.value:.0f} degrees in direction (95% interval {angle.low:.0f} to {angle.high:.0f}), "
        "by chance alone."
    )
    fields = json.loads(json.dumps(noise.to_dict(), allow_nan=False))
    assert fields["norm_change"] == noise.norm_change
    groups = np.arange(40) // 4
    noisy = rlvar.Rollouts(rng.standard_normal((40, 1, 50)), rng.standard_normal(40), groups=groups)
    text = str(rlvar.compare(noisy, ["single"])["single"].batch_noise)
    assert text.startswith("Two batches of 10 independent groups differ by about")
    assert text.endswith("degrees or more in direction, by chance alone: their signal is not resolved.")
    still = rlvar.Rollouts(np.zeros((10, 1, 2)), np.ones(10))
    assert str(rlvar.compare(still)["single"].batch_noise) == "The gradient of every batch is 0."
    constant = rlvar.Rollouts(np.ones((10, 1, 2)), np.ones(10))
    assert rlvar.compare(constant)["single"].batch_noise.angle.value == 0
    with pytest.raises(ValueError, match="units must be at least 1, got 0"):
        noise.at(0)
