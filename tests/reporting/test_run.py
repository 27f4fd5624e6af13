"""The report on a monitored run: sentences, the table of the terminal, and the page."""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest

import rlvar
from pages import Page
from rlvar.reporting.run import run_report
from rlvar.stats.shown import number

matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")
HOSTILE = "<script>alert('x')</script> \x1b[31m\u202e &amp; \"quoted\" $x^2$"


def run(
    steps=24,
    *,
    completions=8,
    prompts=4,
    groups=True,
    drift=0.0,
    strength=2.0,
    estimators=("single", "rloo", "grpo"),
    scores_of="all 20 parameters of Toy",
    seed=0,
    **options,
):
    """Watch a policy of 20 coordinates and rollouts of 6 steps, of prompts that are easy or hard."""
    rng = np.random.default_rng(seed)
    monitor = rlvar.Monitor(list(estimators), **options)
    n = prompts * completions
    for step in range(steps):
        scores = rng.standard_normal((n, 6, 20)) + drift
        ease = np.repeat(rng.standard_normal(prompts), completions)
        hit = strength * scores[:, :, 0].sum(axis=1) / 6**0.5 + ease + rng.standard_normal(n)
        labels = np.arange(n) // completions if groups else None
        rewards = (hit > 0.5 - step / steps).astype(float)
        monitor.update(rlvar.Rollouts(scores, rewards, groups=labels, scores_of=scores_of))
    return monitor


@pytest.fixture(scope="module")
def monitor():
    return run()


@pytest.fixture(scope="module")
def report(monitor):
    return monitor.report()


@pytest.fixture(scope="module")
def norm():
    return run(12, scores_of="the final norm of A", seed=1)


@pytest.fixture(scope="module")
def two(norm):
    first = run(12, scores_of="all 20 parameters of A"), norm
    second = run(12, completions=16, prompts=2, scores_of="all 30 parameters of B", seed=2)
    return run_report(first, second, names=("A", HOSTILE))


def page_of(report, folder):
    report.to_html(folder / "run.html")
    return (folder / "run.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    return page_of(report, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page_of_two(two, tmp_path_factory):
    return page_of(two, tmp_path_factory.mktemp("page"))


def interval(x):
    return f"95% interval {number(x['low'])} to {number(x['high'])}"


def about(report, kind):
    return [each.text for each in report.findings if each.figure == kind]


def changed(report, **changes):
    """Return the report with other numbers in its only part."""
    (one,) = report.runs
    return replace(report, runs=(replace(one, parts=(replace(one.parts[0], **changes),)),))


def test_numbers_in_sentences_are_those_of_the_json(report):
    found = json.loads(json.dumps(report.to_dict()))
    (part,) = found["runs"][0]["parts"]
    rows = {row["name"]: row for row in part["rows"]}
    assert 3 <= len(found["verdict"]) <= 6
    (noise,) = about(report, "noise-scale")
    scale, share = rows["rloo"]["noise_scale"], part["noise_over_signal"]
    assert f"is {number(scale['value'])} groups ({interval(scale)}) over all 24 monitored steps" in noise
    assert f"in a batch of 4 groups the variance of the gradient is {number(share['value'])} times" in noise
    assert interval(share) in noise
    single, grpo = about(report, "ratios")
    ratio = rows["single"]["ratio"]
    assert single == (
        f"Single-step needs {number(ratio['value'])} times as many groups as RLOO for the same precision "
        f"({interval(ratio)})."
    )
    ratio = rows["grpo"]["noise_scale_ratio"]
    value = max(ratio["value"], 1 / ratio["value"])
    assert f"{number(value)} times as many groups" in grpo
    assert "same signal-to-noise ratio" in grpo
    (shape,) = about(report, "plan")
    assert any(
        f"{option['prompts']} prompt" in shape
        and any(f"{text} times" in shape for text in (f"{1 / gain['value']:.2g}", number(1 / gain["value"])))
        for option in part["plan"]["options"]
        if (gain := option["gain"])["value"] > 0
    )
    (policy,) = about(report, "on-policy")
    for name in ("ratio", "mean_score"):
        assert f"{number(part['on_policy'][name]['value'])} ({interval(part['on_policy'][name])})" in policy
    (growth,) = about(report, "growth")
    assert f"k^{part['growth']['value']:.2f} ({interval(part['growth'])}" in growth


def test_the_curves_are_not_in_the_json_unless_asked_for(report):
    (part,) = report.runs[0].parts
    assert "history" not in part.to_dict()
    assert len(part.to_dict(arrays=["history"])["history"]) == 24


def test_a_report_does_not_change_when_the_run_goes_on():
    monitor = run(12)
    report = monitor.report()
    before = report.to_dict(), repr(report)
    scores = np.random.default_rng(1).standard_normal((32, 6, 20))
    labels = np.arange(32) // 8
    of = "all 20 parameters of Toy"
    monitor.update(rlvar.Rollouts(scores, scores[:, 0, 0], groups=labels, scores_of=of))
    assert (report.to_dict(), repr(report)) == before


def test_the_terminal_has_80_columns_and_no_control_characters(report, two):
    for each in (report, two):
        text = repr(each)
        assert max(map(len, text.splitlines())) <= 80
        assert all(c.isprintable() or c == "\n" for c in text)
    assert "Verdict\n" in repr(report)
    assert re.search(r"\n  rloo +1 \(1 to 1\) ", repr(report))


def test_a_batch_beyond_the_noise_scale_has_more_signal_than_noise(report):
    assert "noise dominates" in about(report, "noise-scale")[0]
    assert "signal dominates" in about(changed(report, batch_units=1000.0), "noise-scale")[0]
    scale = report.runs[0].parts[0].in_use.noise_scale.value
    assert "neither dominates" in about(changed(report, batch_units=scale), "noise-scale")[0]


def test_a_signal_that_is_not_resolved_has_no_noise_scale_but_a_bound():
    report = run(strength=0.0).report()
    (sentence,) = about(report, "noise-scale")
    bound = report.runs[0].parts[0].in_use.noise_scale.low
    assert (
        "The signal of RLOO is not resolved over all 24 monitored steps: its interval includes zero"
        in sentence
    )
    assert f"no upper bound (95% interval from {number(bound)} groups)" in sentence
    grpo = about(report, "ratios")[1]
    assert grpo.startswith("The variance of GRPO is ")
    assert grpo.endswith("so this does not say how many groups GRPO needs.")
    assert "above " in repr(report)


def test_few_steps_say_that_there_are_no_intervals(tmp_path):
    report = run(3).report()
    assert about(report, "noise-scale")[0].startswith("3 steps are too few to resolve the signal")
    assert "no interval" in about(report, "ratios")[0]
    assert about(report, "growth") == []
    assert 'role="img"' in page_of(report, tmp_path)
    one = rlvar.Monitor().report()
    assert one.verdict == ["No training step has been seen yet."]
    assert "No step seen yet" in page_of(one, tmp_path)


def test_an_alarm_comes_first_and_takes_back_what_ratios_say(report):
    alarmed = run(30, drift=0.5).report()
    assert alarmed.findings[0].figure == "on-policy"
    since = alarmed.runs[0].parts[0].on_policy.since
    assert f"do not look like those of the policy that sampled since step {since}:" in alarmed.verdict[0]
    assert "no ratio says how many rollouts an estimator needs" in alarmed.verdict[0]
    assert not any("needs" in text for text in about(alarmed, "ratios"))
    (policy,) = about(report, "on-policy")
    assert policy.startswith("The scores are consistent with on-policy sampling over the whole run")


def test_without_groups_units_are_rollouts_and_there_is_no_shape(tmp_path):
    report = run(12, groups=False, estimators=("single", "single-mean")).report()
    assert about(report, "plan") == []
    assert re.search(r"The noise scale of single-step is [\d.,]+ rollouts", report.verdict[0])
    assert 'id="plan-1"' not in page_of(report, tmp_path)


def test_a_reference_that_was_not_asked_for_has_its_noise_scale_said():
    monitor = run(12, estimators=("single", "grpo"), reference="rloo")
    report = monitor.report()
    assert [row.name for row in report.runs[0].parts[0].rows] == ["single", "grpo"]
    assert "noise scale" in about(report, "noise-scale")[0]
    assert "RLOO" in about(report, "noise-scale")[0]


def test_many_alternatives_share_sentences(report):
    several = run(12, estimators=("rloo", "single", "single-mean", "multi", "grpo", "opo")).report()
    assert len(several.verdict) <= 6
    (shared,) = [text for text in about(several, "ratios") if text.startswith("Compared with the groups")]
    part = several.runs[0].parts[0]
    for row in part.rows:
        if row.factor is not None and row.name != "rloo":
            ratio = row.ratio if row.factor == 1 else row.noise_scale_ratio
            assert f"{number(ratio.value)} ({interval(ratio.to_dict())})" in shared


def test_a_tie_and_estimators_that_are_the_same_are_said_so(report):
    (part,) = report.runs[0].parts
    ratio = rlvar.Estimate(1.001, 0.001, 0.999, 1.003)
    rows = [part.rows[1], replace(part.rows[0], ratio=ratio)]
    (tie,) = about(changed(report, rows=tuple(rows)), "ratios")
    assert "need as many groups for the same precision, to within 1%" in tie
    rows[1] = replace(rows[1], ratio=rlvar.Estimate(1.0, 0.0, 1.0, 1.0))
    (same,) = about(changed(report, rows=tuple(rows)), "ratios")
    assert "are the same estimator" in same


def test_unbiased_estimators_whose_means_differ_say_what_to_look_for(report):
    (part,) = report.runs[0].parts
    ratio = rlvar.Estimate(2.0, 0.1, 1.5, 2.5)
    denied = replace(part.rows[0], factor=None, differs=True, noise_scale_ratio=ratio)
    (sentence,) = about(changed(report, rows=(part.rows[1], denied)), "ratios")
    assert "needs 2 times as many groups as RLOO for the same signal-to-noise ratio" in sentence
    assert "their mean gradients differ, though in theory both are unbiased: look for rewards" in sentence


def test_shapes_say_whether_another_is_known_to_be_quieter(report):
    (part,) = report.runs[0].parts
    now = next(each for each in part.plan.options if each.completions == part.plan.in_use)
    other = next(each for each in part.plan.options if each is not now)
    shape = f"{other.prompts} prompt"
    for gain, said in (
        (rlvar.Estimate(2.0, 0.1, 1.5, 2.5), ("For the same 32 rollouts, ", shape, "0.5 times the variance")),
        (rlvar.Estimate(0.5, 0.1, 0.4, 0.8), ("no other", "2 times its variance (95% interval 1.25 to 2.5)")),
        (rlvar.Estimate(1.2, 0.1, 0.9, 1.5), ("is not resolved", shape, "0.83 times the variance")),
        (rlvar.Estimate(1.2), ("is not resolved",)),
    ):
        option = replace(other, gain=gain)
        best, second = (option, now) if gain.low > 1 else (now, option)
        of_best = {"prompts": best.prompts, "completions": best.completions, "gain": best.gain}
        plan = replace(part.plan, **of_best, options=(best, second))
        (sentence,) = about(changed(report, plan=plan), "plan")
        for words in said:
            assert words in sentence


def test_parts_are_named_and_the_noise_scale_is_that_of_all_parameters(norm):
    whole = run(12, scores_of="all 9 parameters of A")
    both = run_report([norm, whole])
    assert [part.title for part in both.runs[0].parts] == ["all parameters", "the final norm"]
    assert about(both, "noise-scale") == about(whole.report(), "noise-scale")
    (alone,) = about(norm.report(), "noise-scale")
    assert alone.startswith("For the final norm alone: the noise scale of RLOO")
    assert about(norm.report(), "plan")[0].startswith("For the final norm alone: for the same 32 rollouts")
    assert "noise scales from the final norm were 6 to 100 times too small" in " ".join(repr(both).split())
    # What all parameters do not tell yet comes from the part, by its name.
    young = run_report([norm, run(3, scores_of="all 9 parameters of A")])
    assert about(young, "noise-scale")[0].startswith("3 steps are too few")
    assert all(text.startswith("For the final norm alone: ") for text in about(young, "ratios"))


def test_two_runs_compare_in_rollouts_where_their_groups_differ_in_size(two, page_of_two):
    ratio = two.noise_scale_ratios["all parameters"]
    a, b = (each.parts[0].in_use.noise_scale for each in two.runs)
    assert ratio.value == pytest.approx(8 * a.value / (16 * b.value))
    values = sorted((8 * a.value, 16 * b.value))
    assert f"{number(values[1])} against {number(values[0])} rollouts" in two.verdict[0]
    assert number(max(ratio.value, 1 / ratio.value)) in two.verdict[0]
    assert list(two.noise_scale_ratios) == ["all parameters"]
    labels = re.findall(r'aria-label="Noise scale and batch[^"]*"', page_of_two)
    assert f"to {number(8 * a.value)} (interval" in labels[0]
    assert f"to {number(16 * b.value)} (interval" in labels[0]
    assert "a dashed line marks the batch of 32 rollouts" in labels[0]
    assert f"to {number(two.runs[0].parts[1].in_use.noise_scale.value)} (interval" in labels[1]
    assert two.to_dict()["noise_scale_ratios"]["all parameters"]["value"] == ratio.value


def test_the_page_stands_alone_and_every_link_leads_somewhere(report, page, two, page_of_two):
    for each, text in ((report, page), (two, page_of_two)):
        assert len(text) < 1.5e6
        parsed = Page(text)
        assert not re.search(r"https?:|//[a-z]|@import|src=|url\((?!#)", text)
        assert not parsed.all("script")
        assert not parsed.all("link")
        ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = [attributes["href"] for _, attributes in parsed.tags if "href" in attributes]
        assert len(parsed.all("a")) == len(each.verdict)
        assert {link[0] for link in links} == {"#"}
        assert {link[1:] for link in links} <= set(ids)
        assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
        for sentence in each.verdict:
            assert sentence in " ".join(parsed.text)


def test_every_figure_has_alternative_text_with_numbers_and_a_reading_aid(report, page):
    parsed = Page(page)
    drawn = [attributes for attributes in parsed.all("svg") if attributes.get("role") == "img"]
    figures = [attributes["id"] for attributes in parsed.all("figure")]
    kinds = "noise-scale", "ratios", "plan", "signal", "on-policy", "reward", "growth"
    assert figures == [f"{kind}-1" for kind in kinds]
    assert len(drawn) == len(parsed.all("figcaption")) == len(figures)
    for attributes in drawn:
        assert re.search(r"\d", attributes["aria-label"])
    scale = report.runs[0].parts[0].in_use.noise_scale
    assert f"to {number(scale.value)} (interval {number(scale.low)} to {number(scale.high)})" in page
    others = [attributes for attributes in parsed.all("svg") if attributes.get("role") != "img"]
    assert all(attributes["aria-hidden"] == "true" for attributes in others)


def test_an_estimator_has_one_colour_on_the_whole_page(tmp_path, norm):
    rng, whole = np.random.default_rng(0), rlvar.Monitor(reference="rloo")
    for step in range(3):  # names in another order
        of = {name: rng.standard_normal((8, 5)) + 1 for name in ("grpo", "rloo", "single")}
        whole.update(of, step=step, scores_of="all 9 parameters of A")
    text = page_of(run_report([norm, whole]), tmp_path)
    for name in ("single-step", "GRPO"):
        colours = re.findall(rf"<li><svg class=\"key\"[^>]*>(.*)</svg>{name}</li>", text)
        assert len(colours) == 2
        assert colours[0] == colours[1]


def test_what_users_name_is_escaped(page_of_two, tmp_path):
    own = {
        HOSTILE: np.random.default_rng(0).standard_normal((8, 5)) + 1,
        "_b": np.random.default_rng(1).standard_normal((8, 5)) + 1,
    }
    monitor = rlvar.Monitor(reference="_b")
    for _ in range(9):
        monitor.update(own, scores_of=f"all {HOSTILE}")
    for text in (page_of_two, page_of(monitor.report(names=(HOSTILE, "b")), tmp_path)):
        assert "<script" not in text
        assert "&lt;script&gt;" in text
        assert "$x^2$" in text
        assert all(c.isprintable() or c == "\n" for c in text)


def test_the_page_is_written_whole_or_not_at_all(report, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError):
        report.to_html(tmp_path / "none" / "run.html")
    with pytest.raises(IsADirectoryError):
        report.to_html(tmp_path)
    path = tmp_path / "run.html"
    path.write_text("before")
    monkeypatch.setattr("rlvar.reporting.run_page.page", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.to_html(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_its_extra_the_page_says_what_to_install(report, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"needs matplotlib and jinja2: pip install 'rlvar\[report\]'"):
        report.to_html(tmp_path / "run.html")
    assert list(tmp_path.iterdir()) == []
    assert "Verdict" in repr(report)


def test_drawing_leaves_matplotlib_as_it_was_and_does_not_depend_on_it(report, page, tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    monkeypatch.setitem(matplotlib.rcParams, "lines.markeredgewidth", 7.0)
    before = dict(matplotlib.rcParams)
    assert page_of(report, tmp_path) == page  # to the byte
    assert dict(matplotlib.rcParams) == before


def test_a_page_is_drawn_of_whatever_the_history_has(report, tmp_path):
    empty = {"step": 1.0}
    flat = {"step": 2.0, "noise_scale": 1e-300, "noise_scale/low": 1e-301, "variance": 0.0, "reward": 0.0}
    wild = {"step": 3.0, "noise_scale": -5.0, "noise_scale/low": 2.0, "signal": -1.0, "growth_exponent": 1e9}
    for history in ([], [flat], [empty, flat, wild]):
        text = page_of(changed(report, history=tuple(history)), tmp_path)
        assert len(Page(text).all("a")) == len(report.verdict)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "monitor must be a Monitor or several, got int"),
        (([],), ValueError, "monitor must be at least one monitor, got none"),
        ((rlvar.Monitor(), "x"), TypeError, "other must be a Monitor or several, got str"),
        (([rlvar.Monitor(), rlvar.Monitor()],), ValueError, "monitor has two monitors of the scores given"),
        ((rlvar.Monitor(), rlvar.Monitor(confidence=0.9)), ValueError, "must have one confidence"),
    ],
)
def test_what_is_no_monitor_is_refused_by_name(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        run_report(*arguments)


@pytest.mark.parametrize(
    ("names", "error"),
    [("ab", TypeError), ((1, 2), TypeError), (("a",), ValueError), (("a", "a"), ValueError)],
)
def test_names_are_one_for_each_run(names, error):
    with pytest.raises(error, match="names must be"):
        run_report(rlvar.Monitor(), rlvar.Monitor(), names=names)


def test_runs_of_other_parameters_do_not_compare(norm):
    report = run_report(norm, run(9, scores_of="all 5 parameters of A"))
    assert "not measured on the same parameters" in report.verdict[0]
    assert report.noise_scale_ratios == {}


def test_what_has_no_interval_yet_or_does_not_vary_is_told_without_infinities():
    rng = np.random.default_rng(0)
    groups = np.arange(32) // 4
    for count, constant in ((13, False), (12, True)):
        monitor = rlvar.Monitor(["rloo", "grpo", "single"])
        for _ in range(count):
            scores = rng.standard_normal((32, 1, 12))
            rewards = np.ones(32) if constant else scores[:, 0, 0] + rng.standard_normal(32)
            monitor.update(rlvar.Rollouts(scores, rewards, groups=groups))
        told = " ".join(monitor.report().verdict)
        assert "inf " not in told
        assert "nan" not in told
        assert "consistent with on-policy" not in told
        assert ("does not vary" in told) is constant


def test_a_run_beside_itself_has_the_same_noise_scale(norm):
    assert "is the same in this run and the other: " in run_report(norm, norm).verdict[0]
