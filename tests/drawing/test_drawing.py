"""Drawings: what is on the axes, by matplotlib's own account of it."""

import math

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib")
from matplotlib.figure import Figure

from rlvar.drawing.covariance import colour_range, covariance_map
from rlvar.drawing.growth import growth
from rlvar.drawing.intervals import intervals, shortened
from rlvar.drawing.plan import plan_curve
from rlvar.drawing.steps import block_size, lag_profile, step_share
from rlvar.stats.estimate import Estimate


@pytest.fixture
def axes():
    return Figure().add_subplot()


def points(axes, marker):
    return [line.get_xydata()[0].tolist() for line in axes.lines if line.get_marker() == marker]


def words(axes):
    return [text.get_text() for text in axes.texts]


def test_an_interval_has_its_dot_and_its_ends(axes):
    intervals(axes, ["a"], [Estimate(2.0, 0.1, 1.5, 3.0)], xlabel="x")
    assert points(axes, "o") == [[2.0, 0.0]]
    assert [1.5, 3.0] in [list(line.get_xdata()) for line in axes.lines]


@pytest.mark.parametrize(
    ("low", "high", "arrow"), [(0.5, math.inf, ">"), (0.0, 3.0, "<"), (-1.0, 3.0, "<"), (1.0, 1e9, ">")]
)
def test_what_a_log_axis_does_not_hold_of_an_interval_is_an_arrow_at_its_edge(axes, low, high, arrow):
    intervals(axes, ["a"], [Estimate(2.0, 0.1, low, high)], xlabel="x")
    edge = axes.get_xlim()[arrow == ">"]
    assert points(axes, arrow) == [[edge, 0.0]]


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (Estimate(-1.0, 1.0, -2.0, 3.0), "−1"),
        (Estimate(0.0), "0"),
        (Estimate(math.nan), "undefined"),
        (Estimate(math.inf, math.nan, 1.0, math.inf), "infinite"),
    ],
)
def test_values_that_a_log_axis_drops_are_said_in_words(axes, estimate, said):
    intervals(axes, ["a", "b"], [estimate, Estimate(1.0)], xlabel="x")
    assert words(axes) == [said]
    assert not points(axes, "o")


def test_without_a_signal_there_is_no_dot_but_how_far_it_is_bounded(axes):
    above, open_ = Estimate(5.0, 1.0, 2.0, math.inf, 0.95, False), Estimate(-5.0, 1.0, -2.0, 9.0, 0.95, False)
    intervals(axes, ["a", "b"], [above, open_], xlabel="x", signals=True)
    assert not points(axes, "o") + points(axes, "s")
    assert points(axes, ">") == [[axes.get_xlim()[1], 0.0]]
    assert words(axes) == ["not resolved"]


def test_a_linear_axis_holds_what_is_negative(axes):
    intervals(axes, ["a"], [Estimate(-1.0, 1.0, -2.0, 3.0)], xlabel="x", line=0.0, log=False)
    assert points(axes, "o") == [[-1.0, 0.0]]
    assert axes.get_xlim()[0] < -2 < 3 < axes.get_xlim()[1]


def test_labels_are_short_and_plain(axes):
    assert shortened("rloo") == "rloo"
    assert len(shortened("x" * 300)) <= 22
    assert "\x1b" not in shortened("\x1b[31mred")
    intervals(axes, ["cost $x$ of $y$"], [Estimate(1.0)], xlabel="x")
    assert not axes.get_yticklabels()[0].get_parse_math()


def test_growth_leaves_a_gap_where_nothing_varies(axes):
    growth(axes, [0.0, 0.0, 4.0, 8.0])
    assert np.isnan(axes.lines[0].get_ydata()[:2]).all()
    assert axes.get_ylim()[0] > 1


def test_guides_have_the_slopes_that_they_bear(axes):
    growth(axes, np.arange(1.0, 100) ** 2)
    for line, slope in zip(
        [line for line in axes.lines if line.get_label() == "_auxiliary"], (1, 2, 3), strict=True
    ):
        (x0, x1), (y0, y1) = line.get_xdata(), line.get_ydata()
        assert math.log(y1 / y0) / math.log(x1 / x0) == pytest.approx(slope)
    assert words(axes) == ["1", "2", "3"]


def test_the_power_law_goes_through_the_points_it_was_fitted_to(axes):
    growth(axes, np.arange(1.0, 100) ** 1.5, exponent=Estimate(1.5), span=(50, 99), guides=False)
    (law,) = (line for line in axes.lines if line.get_label() == "_auxiliary")
    np.testing.assert_allclose(law.get_ydata(), law.get_xdata() ** 1.5)


def test_blocks_of_the_lag_profile_add_up_to_the_covariance_terms(axes):
    lags = np.random.default_rng(0).standard_normal(200)
    lag_profile(axes, lags)
    values, edges, _ = axes.patches[0].get_data()
    assert len(values) <= 32
    assert (edges[0], edges[-1]) == (0.5, 199.5)
    np.testing.assert_allclose(values.sum(), 2 * lags[1:].sum())


def test_blocks_of_shares_add_up_to_one(axes):
    share = np.random.default_rng(0).random(97)
    step_share(axes, share / share.sum())
    np.testing.assert_allclose(axes.patches[0].get_data()[0].sum(), 1)


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 63, 64, 65, 4096])
def test_blocks_are_no_more_than_asked_for(steps):
    assert -(-steps // block_size(steps, 32)) <= 32


def test_outliers_do_not_take_the_colours_of_the_rest(axes):
    blocks = np.random.default_rng(0).standard_normal((50, 50))
    blocks[3, 3] = 1e6
    most = covariance_map(axes, blocks)
    assert most < 10
    assert axes.images[0].get_clim() == (-most, most)


def test_without_outliers_the_colours_reach_the_largest():
    assert colour_range(np.array([[2.0, -1.0], [-1.0, 2.0]])) == 2.0
    assert colour_range(np.zeros((3, 3))) == 1.0


def test_zero_is_transparent_and_signs_have_colours_of_their_own(axes):
    covariance_map(axes, np.array([[1.0, 0.0], [0.0, -1.0]]))
    image = axes.images[0]
    positive, zero, negative = (image.cmap(image.norm(x)) for x in (1.0, 0.0, -1.0))
    assert zero[3] < 0.02
    assert positive[0] > positive[2]
    assert negative[2] > negative[0]


def test_the_plan_marks_what_is_in_use_and_drops_no_shape(axes):
    gains = [Estimate(0.5, 0.1, 0.2, 0.9), Estimate(1.0), Estimate(3.0, 0.1, 2.0, 4.0)]
    plan_curve(axes, [[1, 8, 64]], [gains], in_use=8)
    curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
    assert curve.get_xydata().tolist() == [[1, 0.5], [8, 1.0], [64, 3.0]]
    assert [8, 8] in [list(line.get_xdata()) for line in axes.lines]


def test_a_variance_of_a_plan_that_is_only_bounded_has_no_dot(axes):
    gains = [Estimate(1.0), Estimate(0.7, 0.1, 0.5, 0.9), Estimate(0.3, 0.1, 0.0, 2.0)]
    plan_curve(axes, [[8, 16, 64]], [gains])
    curve = max(axes.lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_array_equal(curve.get_ydata(), [1.0, 0.7, np.nan])
