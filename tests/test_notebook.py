"""Results in a notebook: tables that are safe and say what `to_dict` says, drawings, data frames."""

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rlvar
from rlvar.stats.shown import number

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e&amp;\n$x$"


class Table(HTMLParser):
    """The cells of the one table, the tags of all, and the text beside it."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.text = [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        if self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.text += data


def shown(x):
    """An estimate of `to_dict` as a notebook shows it."""
    if x["high"] is None:  # infinite
        return f"above {number(x['low'])}"
    return f"{number(x['value'])} ({number(x['low'])} to {number(x['high'])})"


@pytest.fixture(scope="module")
def cartpole():
    return rlvar.datasets.cartpole()


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(24), 8)
    scores = rng.standard_normal((192, 1, 3))
    rewards = 2 * rng.standard_normal(24)[groups] + scores[:, 0, 0]
    return rlvar.Rollouts(scores, rewards, groups=groups)


@pytest.fixture(scope="module")
def results(cartpole, prompts):
    monitor = rlvar.Monitor(["single", "multi"])
    for half in (slice(0, 128), slice(128, 256)):
        monitor.update(
            rlvar.Rollouts(cartpole.scores[half], cartpole.rewards[half], lengths=cartpole.lengths[half])
        )
    return SimpleNamespace(
        comparison=rlvar.compare(cartpole, ["single", "multi"]),
        decomposition=rlvar.decompose(cartpole),
        report=rlvar.report(cartpole, ["single", "multi"]),
        plan=rlvar.plan(prompts, budget=192),
        cheapest=rlvar.plan(prompts, target=0.5, cost_prompt=4),
        monitor=monitor,
        run_report=monitor.report(),
        pair_report=rlvar.report_pair(cartpole[:128], cartpole[128:]),
    )


PLOTTED = ["comparison", "decomposition", "report", "plan", "cheapest"]
IN_FRAMES = ["comparison", "decomposition", "report", "plan", "monitor"]
EACH = [*PLOTTED, "monitor", "run_report", "pair_report"]


def test_a_comparison_shows_the_numbers_of_its_dict_the_quietest_first(results):
    table = Table(results.comparison._repr_html_())
    rows = {row["name"]: row for row in results.comparison.to_dict()["rows"]}
    assert table.rows[0][:2] == ["estimator", "variance, ratio to single"]
    assert [row[0] for row in table.rows[1:]] == ["multi", "single"]
    for name, *cells in table.rows[1:]:
        assert cells == [shown(rows[name][key]) for key in ("ratio", "noise_scale", "variance", "signal")]


def test_a_decomposition_shows_the_numbers_of_its_dict(results):
    table, numbers = Table(results.decomposition._repr_html_()), results.decomposition.to_dict()
    cells = {name: cell for name, cell, _ in table.rows[1:]}
    assert set(cells) == {
        *("variance", "variance terms", "covariance terms", "growth exponent", "horizon exponent"),
        *("length exponent", "signal", "noise scale"),
    }
    for name, cell in cells.items():
        assert cell == shown(numbers[name.replace(" ", "_")])


@pytest.mark.parametrize("name", ["plan", "cheapest"])
def test_a_plan_shows_its_options_the_best_first(results, name):
    plan = getattr(results, name)
    rows, options = Table(plan._repr_html_()).rows[1:], plan.to_dict()["options"]
    assert 1 < len(rows) == len(options[:8])
    for (shape, _, variance, gain), option in zip(rows, options, strict=False):
        assert shape == f"{option['prompts']} x {option['completions']}"
        assert (variance, gain) == (shown(option["variance"]), shown(option["gain"]))


def test_a_report_shows_all_its_sentences_and_the_table(results):
    table = Table(results.report._repr_html_())
    for sentence in (*results.report.verdict, *results.report.notes):
        assert sentence in table.text
    assert table.rows == Table(results.report.comparison._repr_html_()).rows


def test_a_monitor_shows_what_its_repr_says(results):
    table = Table(results.monitor._repr_html_())
    assert [row[0] for row in table.rows[1:]] == ["multi", "single"]
    first, *_, last = str(results.monitor).splitlines()
    assert first in table.text
    assert last in table.text
    assert "nothing to pool yet" in rlvar.Monitor()._repr_html_()


def test_the_report_on_a_run_shows_its_sentences_and_tables(results):
    table = Table(results.run_report._repr_html_())
    for sentence in results.run_report.verdict:
        assert sentence in table.text
    assert table.rows == Table(results.monitor._repr_html_()).rows


def test_the_report_on_two_sets_shows_its_sentences_and_numbers(results):
    report, html = results.pair_report, results.pair_report._repr_html_()
    for sentence in (*report.verdict, *report.notes):
        assert sentence in Table(html).text
    row = report.to_dict()["pair"]["rows"][0]
    for cell in (row["name"], shown(row["ratio"]), *map(shown, row["variance"])):
        assert cell in [each for line in Table(html).rows for each in line]


def test_what_a_signal_that_is_not_resolved_does_not_tell_has_no_number(rng):
    scores = rng.standard_normal((40, 1, 50))
    own = ("own", lambda rollouts: rollouts.rewards**3)
    result = rlvar.compare(rlvar.Rollouts(scores, rng.standard_normal(40)), ["single", own])
    (row,) = [row for row in Table(result._repr_html_()).rows if row[0] == "own"]
    assert not result["own"].signal.resolved
    assert row[3] == row[-1] == "not resolved"  # ratio of noise scales, alignment


def test_estimators_whose_place_is_not_resolved_come_last(rng):
    scores = rng.standard_normal((40, 1, 50))
    own = ("own", lambda rollouts: rollouts.rewards / 100)
    cubed = ("cubed", lambda rollouts: rollouts.rewards**3)
    result = rlvar.compare(rlvar.Rollouts(scores, rng.standard_normal(40)), [cubed, "single", own])
    # A hundredth of everything is no better.
    assert {row.name for row in result.ranked[:2]} == {"single", "own"}
    assert result.ranked[2].name == "cubed"


def test_hostile_names_are_escaped_in_tables(cartpole):
    own = (HOSTILE, lambda rollouts: rollouts.rewards.sum(axis=1))
    rollouts = rlvar.Rollouts(
        cartpole.scores, cartpole.rewards, lengths=cartpole.lengths, scores_of=f"all parameters of {HOSTILE}"
    )
    result = rlvar.compare(rollouts, ["single", own], reference=HOSTILE)
    told = [
        result,
        rlvar.decompose(rollouts, own),
        rlvar.report(rollouts, ["single", own], source=HOSTILE),
        rlvar.report_pair(cartpole[:128], cartpole[128:], names=(HOSTILE, "B")),
    ]
    for each in told:
        html = each._repr_html_()
        assert "script" not in Table(html).tags
        assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J\\u202e&amp;amp;\\n$x$" in html
        assert html.isprintable()


def test_tables_take_their_colours_from_the_theme(results):
    for name in EACH:
        html = getattr(results, name)._repr_html_()
        assert not re.search(r"(?<![-\w])color\s*:|#[0-9a-f]{3,6}|<style|<script|https?:", html)


# Drawings.


@pytest.fixture
def pyplot():
    pytest.importorskip("matplotlib", reason="needs matplotlib").use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@pytest.mark.parametrize("name", PLOTTED)
def test_a_plot_uses_the_axes_given_and_else_those_of_a_new_figure(results, pyplot, name):
    result = getattr(results, name)
    figure, (left, right) = pyplot.subplots(1, 2)
    assert result.plot(right) is right
    assert right.has_data()
    assert not left.has_data()
    own = result.plot()
    assert own.figure is pyplot.gcf() is not figure
    assert own.has_data()
    own.figure.canvas.draw()


def test_the_dots_of_a_comparison_are_its_ratios_the_quietest_on_top(results, pyplot):
    axes = results.comparison.plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["multi", "single"]
    dots = [line.get_xydata()[0] for line in axes.lines if len(line.get_xydata()) == 1]
    for y, name in enumerate(["multi", "single"]):
        assert [results.comparison[name].ratio.value, y] in [dot.tolist() for dot in dots]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "variance, ratio to single"


@pytest.mark.parametrize("of", ["ratio", "noise_scale_ratio", "noise_scale", "variance"])
def test_a_comparison_draws_the_number_asked_for(results, pyplot, of):
    dots = [
        line.get_xdata()[0] for line in results.comparison.plot(of=of).lines if len(line.get_xdata()) == 1
    ]
    assert getattr(results.comparison["multi"], of).value in dots


def test_where_means_may_differ_a_comparison_draws_noise_scales(cartpole, pyplot):
    own = ("own", lambda rollouts: rollouts.lengths.astype(float) ** 2)
    axes = rlvar.compare(cartpole, ["single", own]).plot()
    assert axes.get_xlabel() == "noise scale, ratio to single"


def test_hostile_names_are_drawn_as_text(cartpole, pyplot):
    own = (HOSTILE, lambda rollouts: rollouts.rewards.sum(axis=1))
    axes = rlvar.compare(cartpole, ["single", own], reference=HOSTILE).plot()
    axes.figure.canvas.draw()
    for text in (axes.get_xlabel(), *(label.get_text() for label in axes.get_yticklabels())):
        assert text.isprintable()


def test_the_curve_of_a_decomposition_is_its_growth_as_far_as_rollouts_go(pyplot, rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((40, 9, 2)), rng.standard_normal(40), lengths=np.full(40, 6)
    )
    result = rlvar.decompose(rollouts)
    axes = result.plot()
    x, y = axes.lines[0].get_data()
    assert x.tolist() == [1, 2, 3, 4, 5, 6]
    assert y.tolist() == result.growth[:6].tolist()
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


@pytest.mark.parametrize("of", ["growth", "step_share", "covariance", "lag_profile"])
def test_a_decomposition_draws_what_is_asked_for(results, pyplot, of):
    axes = results.decomposition.plot(of=of)
    labels = {
        "growth": ("number of steps summed", "variance"),
        "step_share": ("step", "share of the variance"),
        "covariance": ("step", "step"),
        "lag_profile": ("distance of two steps", "covariance terms"),
    }
    assert (axes.get_xlabel(), axes.get_ylabel()) == labels[of]
    axes.figure.canvas.draw()


def test_the_map_of_a_decomposition_adds_up_to_its_variance(results, pyplot):
    (image,) = results.decomposition.plot(of="covariance").images
    assert image.get_array().sum() == pytest.approx(results.decomposition.variance.value)


def test_the_curve_of_a_plan_is_the_variance_over_that_in_use(results, pyplot):
    x, y = results.plan.plot().lines[1].get_data()
    gains = {option.completions: option.gain for option in results.plan.options}
    assert x.tolist() == sorted(gains)
    # Of a gain without an upper end the variance is only bounded: a band, and no point.
    right = [1 / gain.value if math.isfinite(gain.high) else math.nan for _, gain in sorted(gains.items())]
    assert y.tolist() == pytest.approx(right, nan_ok=True)
    assert np.isfinite(right).sum() > 1
    assert results.cheapest.plot().get_ylabel() == "cost over that in use"


def test_a_plan_without_intervals_is_drawn(pyplot, rng):
    rollouts = rlvar.Rollouts(
        rng.standard_normal((8, 1, 3)), rng.standard_normal(8), groups=np.arange(8) // 4
    )
    plan = rlvar.plan(rollouts, budget=8)
    assert not plan.tells
    plan.plot().figure.canvas.draw()


def test_drawings_suit_a_dark_ground(results, pyplot):
    inks = {}
    for style in ("default", "dark_background"):
        with pyplot.style.context(style):
            inks[style] = results.decomposition.plot().xaxis.label.get_color()
    assert inks["default"] < "#444444"
    assert inks["dark_background"] > "#bbbbbb"


def test_axes_that_are_none_and_numbers_that_are_none_are_refused_by_name(results, pyplot):
    with pytest.raises(TypeError, match="ax must be matplotlib Axes, got Figure"):
        results.comparison.plot(pyplot.figure())
    with pytest.raises(TypeError, match="ax must be matplotlib Axes, got ndarray"):
        results.plan.plot(pyplot.subplots(2)[1])
    with pytest.raises(ValueError, match=r"of must be one of 'ratio', .* got 'magic'"):
        results.comparison.plot(of="magic")


@pytest.mark.parametrize("name", PLOTTED)
def test_without_matplotlib_a_plot_says_what_to_install(results, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"plot needs matplotlib: pip install 'rlvar\[report\]'"):
        getattr(results, name).plot()


# Data frames.


@pytest.fixture(params=["pandas", "polars"])
def frames(request, monkeypatch):
    pytest.importorskip(request.param, reason=f"needs {request.param}")
    if request.param == "polars":
        monkeypatch.setitem(sys.modules, "pandas", None)
    return request.param


def test_the_frame_of_a_comparison_has_its_numbers(results, frames):
    frame = results.comparison.to_frame()
    assert type(frame).__module__.partition(".")[0] == frames
    assert list(frame["estimator"]) == ["single", "multi"]
    for key in ("variance", "ratio", "signal", "noise_scale", "noise_scale_ratio", "alignment"):
        for end, column in (("value", key), ("low", f"{key}_low"), ("high", f"{key}_high")):
            assert list(frame[column]) == [getattr(getattr(row, key), end) for row in results.comparison]
    assert list(frame["unbiased"]) == [True, True]


def test_a_frame_leaves_what_is_not_known_empty(rng, frames):
    own = ("own", lambda rollouts: rollouts.rewards**3)
    frame = rlvar.compare(
        rlvar.Rollouts(rng.standard_normal((40, 1, 5)), rng.random(40)), ["single", own]
    ).to_frame()
    factor, unbiased = list(frame["factor"])[1], list(frame["unbiased"])[1]
    assert unbiased is None
    assert factor is None or math.isnan(factor)
    assert list(frame["noise_scale_high"])[1] >= 0


def test_the_frame_of_a_decomposition_has_a_row_for_each_step(results, frames):
    frame, parts = results.decomposition.to_frame(), results.decomposition
    assert list(frame.columns) == ["step", "step_variance", "step_share", "growth", "alive"]
    assert list(frame["step"]) == list(range(1, 209))
    for name in ("step_variance", "step_share", "growth", "alive"):
        assert list(frame[name]) == getattr(parts, name).tolist()


def test_the_frame_of_a_plan_has_a_row_for_each_option(results, frames):
    frame = results.plan.to_frame()
    assert list(frame["completions"]) == [option.completions for option in results.plan.options]
    assert list(frame["gain_low"]) == [option.gain.low for option in results.plan.options]


def test_the_frame_of_a_monitor_has_a_row_for_each_step(results, frames):
    frame = results.monitor.to_frame()
    assert list(frame["step"]) == [1, 2]
    assert list(frame["reward"]) == [each["reward"] for each in results.monitor.history]


@pytest.mark.parametrize("name", IN_FRAMES)
def test_without_pandas_and_polars_a_frame_says_what_to_install(results, monkeypatch, name):
    for package in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="to_frame needs pandas or polars: pip install pandas"):
        getattr(results, name).to_frame()


# The notebook in docs/, which the site executes as a notebook.

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def test_the_notebook_does_what_its_text_says(pyplot):
    pytest.importorskip("pandas", reason="needs pandas")
    names = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)


def test_the_notebook_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
