"""The page of a report: what it says, what it draws, and that it is harmless."""

import re

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="needs matplotlib")
pytest.importorskip("jinja2", reason="needs jinja2")

import rlvar
from pages import Page
from rlvar.stats.shown import measured

EVIL = "<script>alert(1)</script>\x1b[31m\u202e" + "x" * 300


def page_of(report, folder):
    report.to_html(folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def reports():
    return {
        "cartpole": rlvar.report(rlvar.datasets.cartpole(), source="CartPole-v1, embedded"),
        "arithmetic": rlvar.report(rlvar.datasets.arithmetic(), sha256={"mine.npz": "ab" * 32}),
    }


@pytest.fixture(scope="module")
def pages(reports, tmp_path_factory):
    return {name: page_of(each, tmp_path_factory.mktemp(name)) for name, each in reports.items()}


@pytest.fixture(scope="module", params=["cartpole", "arithmetic"])
def both(request, reports, pages):
    return reports[request.param], pages[request.param]


def small(rewards=None, *, n=40, t=6, **options):
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((n, t, 4))
    rewards = rng.standard_normal((n, t)) if rewards is None else rewards
    return rlvar.Rollouts(scores, rewards, **options)


def test_every_sentence_is_there_with_a_link_to_what_supports_it(both):
    report, page = both
    items = re.findall(r"<li>(.*?) <a href=\"#([^\"]*)\">", page.html)
    said = {"".join(Page(text).text): anchor for text, anchor in items}
    assert [*said] == report.verdict + report.notes
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert set(said.values()) <= targets


def test_findings_about_a_figure_link_to_that_figure(both):
    report, page = both
    for finding in report.findings:
        if finding.figure in page.figures:
            assert f'<a href="#{finding.figure}">' in page.html
    assert {finding.figure for finding in report.findings if finding.kind == "verdict"} <= set(page.figures)


def test_the_table_has_the_numbers_of_the_json(both):
    report, page = both
    text = "\n".join(page.text)
    for row in report.to_dict()["comparison"]["rows"]:
        for name in ("variance", "ratio", "signal"):
            told = {key: np.nan if x is None else x for key, x in row[name].items()}
            assert measured(rlvar.Estimate(**told)) in text


def test_the_alternative_text_of_each_figure_has_its_numbers(both):
    report, page = both
    svgs = [each for each in page.all("svg") if each.get("role") == "img"]
    assert len(svgs) == len(page.figures)
    told = dict(zip(page.figures, (each["aria-label"] for each in svgs), strict=True))
    for row in report.comparison:
        assert measured(row.ratio) in told["estimators"]
        assert measured(row.noise_scale, bounded=True) in told["noise-scale"]
    assert measured(report.on_policy.ratio) in told["on-policy"]
    assert page.html.count("<figcaption>") == len(page.figures)


def test_it_is_one_file_without_scripts_that_asks_nothing_of_the_network(both):
    _, page = both
    assert not page.all("script") + page.all("link") + page.all("iframe")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert not re.findall(r"url\((?!#)|@import", page.html)
    assert len(page.html.encode()) < 1.5e6


def test_names_of_elements_are_unique(both):
    ids = [attributes["id"] for _, attributes in both[1].tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_there_is_a_figure_for_what_there_is_data_of(pages):
    always = {"estimators", "noise-scale", "headroom", "growth", "steps", "covariance", "lags", "on-policy"}
    assert set(pages["cartpole"].figures) == always | {"length", "rewards"}
    assert set(pages["arithmetic"].figures) == always | {"plan"}


@pytest.mark.parametrize(
    ("rollouts", "absent"),
    [
        (small(np.arange(40.0), t=1), {"growth", "steps", "covariance", "lags", "rewards", "length", "plan"}),
        (small(np.zeros((40, 6))), {"growth", "steps", "covariance", "lags", "length", "noise-scale"}),
        (small(lengths=np.zeros(40, int)), {"growth", "covariance", "rewards", "on-policy"}),
        (small(np.arange(40.0)), {"rewards", "length", "plan"}),
    ],
    ids=["one step", "no variance", "no live step", "terminal"],
)
def test_there_is_no_figure_for_what_there_is_no_data_of(rollouts, absent, tmp_path):
    page = page_of(rlvar.report(rollouts), tmp_path)
    assert "estimators" in page.figures
    assert not absent & set(page.figures)


@pytest.mark.filterwarnings("ignore::UserWarning")  # that they are few
@pytest.mark.parametrize("n", [2, 3])
def test_few_rollouts_have_a_page(n, tmp_path):
    report = rlvar.report(small(n=n))
    assert report.verdict[0] in "".join(page_of(report, tmp_path).text)


def test_names_are_text_and_steer_nothing(tmp_path):
    weights = np.random.default_rng(1).standard_normal((40, 6))
    options = {"source": EVIL, "sha256": {EVIL: "ab" * 32}}
    report = rlvar.report(small(scores_of=EVIL), ["single", ("mine<b>\x1b", weights)], **options)
    page = page_of(report, tmp_path)
    assert not page.all("script")
    assert not page.all("b")
    assert all(c.isprintable() or c == "\n" for c in page.html)
    assert "<script>alert(1)</script>\\x1b[31m\\u202e" in "".join(page.text)


def test_it_says_what_was_computed_and_on_what(both):
    report, page = both
    text = "\n".join(page.text)
    assert report.made in text
    assert f"rlvar {rlvar.__version__}" in text
    assert f"scores {report.rollouts.shape}" in text
    for name, digest in report.sha256.items():
        assert f"SHA-256 of {name}" in text
        assert digest in text


def test_a_page_replaces_what_was_there_or_leaves_it(reports, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")
    monkeypatch.setattr("rlvar.reporting.report_page.page", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        reports["cartpole"].to_html(path)
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_what_cannot_be_written_is_told_before_the_work(reports, tmp_path, monkeypatch):
    monkeypatch.setattr("rlvar.reporting.report_page.report_page", lambda _: pytest.fail("it worked"))
    with pytest.raises(FileNotFoundError):
        reports["cartpole"].to_html(tmp_path / "none" / "report.html")
    with pytest.raises(IsADirectoryError):
        reports["cartpole"].to_html(tmp_path)


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_what_is_missing_is_named_with_its_extra(package, reports, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=r"needs matplotlib and jinja2: pip install 'rlvar\[report\]'"):
        reports["cartpole"].to_html(tmp_path / "report.html")


def test_what_may_have_another_mean_gradient_is_marked(pages):
    assert "GRPO *" in pages["arithmetic"].html
    assert "Dr. GRPO *" in pages["arithmetic"].html
    assert "single-step *" not in pages["arithmetic"].html
