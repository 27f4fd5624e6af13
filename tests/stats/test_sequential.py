"""A test that may be looked at after every step."""

import math

import numpy as np
import pytest

from rlvar.stats.sequential import BURN_IN, MeanZero


def fed(z):
    found = MeanZero()
    for each in z:
        found = found.add(float(each))
    return found


def alarmed(z, level):
    found = MeanZero()
    for each in z:
        found = found.add(float(each))
        if found.passes(level):
            return True
    return False


def test_the_mixture_is_that_of_half_a_normal():
    z = np.random.default_rng(0).standard_normal(30) + 0.3
    found = fed(z)
    x = np.linspace(0, 40, 400_001)
    rho, s, q = found.rho, z[BURN_IN:].sum(), np.square(z[BURN_IN:]).sum()
    density = 2 * math.sqrt(rho / (2 * math.pi)) * np.exp(-rho * x**2 / 2)
    values = density * np.exp(x * s - x**2 * q / 2)
    mixture = float((values[1:] + values[:-1]).sum() * (x[1] - x[0]) / 2)
    assert found.passes(1.001 / mixture)
    assert not found.passes(0.999 / mixture)


@pytest.mark.parametrize("draw", ["standard_normal", "chisquare"])
def test_false_alarms_hold_at_every_look(draw):
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        z = rng.standard_normal(300) if draw == "standard_normal" else rng.chisquare(2, 300) - 2
        found += alarmed(z, 0.05)
    assert found <= 100 * 0.05


def test_a_mean_that_is_not_zero_is_found():
    rng = np.random.default_rng(2)
    assert all(alarmed(rng.standard_normal(300) + 0.4, 0.025) for _ in range(20))
    assert not any(alarmed(rng.standard_normal(300) - 0.4, 0.025) for _ in range(20))


def test_the_interval_excludes_what_the_test_rejects():
    z = np.random.default_rng(3).standard_normal(100) + 1
    found, level = fed(z), 0.025
    estimate = found.estimate(level, 0.95)
    assert estimate.value == pytest.approx(z[BURN_IN:].mean())
    assert found.passes(level, estimate.low - 1e-9)
    assert not found.passes(level, estimate.low + 1e-9)
    assert found.passes(level, estimate.high + 1e-9, sign=-1.0)
    assert not found.passes(level, estimate.high - 1e-9, sign=-1.0)
    assert estimate.resolved == found.passes(level)


def test_units_do_not_matter():
    z = np.random.default_rng(4).standard_normal(60) + 0.2
    a, b = (fed(factor * z).estimate(0.025, 0.95) for factor in (1.0, 2.0**-40))
    assert np.ldexp([b.value, b.low, b.high], 40) == pytest.approx([a.value, a.low, a.high], rel=1e-9)


def test_zeros_before_anything_else_are_no_evidence():
    none = fed(np.zeros(100)).estimate(0.025, 0.95)
    assert none.value == 0
    assert math.isnan(none.low)
    z = np.random.default_rng(5).standard_normal(20)
    assert fed([0, 0, *z]).total == fed(z).total
