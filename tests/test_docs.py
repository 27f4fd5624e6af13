"""What the documentation says is what happens."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rlvar
from rlvar.analysis.deciders import few_decide
from rlvar.cli import main

ROOT = Path(__file__).parents[1]
README, STATISTICS, SCORES = ROOT / "README.md", ROOT / "docs" / "statistics.md", ROOT / "docs" / "scores.md"
MODULES = [
    module.name
    for module in pkgutil.walk_packages(rlvar.__path__, "rlvar.")
    if not module.name.startswith("rlvar._")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    if name.startswith("rlvar.torch"):
        pytest.importorskip("torch", reason="needs torch")
        pytest.importorskip("transformers", reason="needs transformers")
    if name == "rlvar.torch.sb3":
        pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    if name in ("rlvar.reporting.html", "rlvar.reporting.plots", "rlvar.reporting.run_page"):
        for package in ("matplotlib", "jinja2"):
            pytest.importorskip(package, reason=f"needs {package}")
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_public_functions_of_torch_have_a_complete_docstring():
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("transformers", reason="needs transformers")
    module = importlib.import_module("rlvar.torch")
    for name in module.__all__:
        text = getattr(module, name).__doc__
        for section in ("Parameters\n", "Returns\n", "Raises\n", "Examples\n") if name.islower() else ():
            assert section in text, name


@pytest.mark.parametrize("name", [n for n in rlvar.__all__ if callable(getattr(rlvar, n)) and n.islower()])
def test_public_functions_have_a_complete_docstring(name):
    text = getattr(rlvar, name).__doc__
    assert "Examples\n" in text
    if name not in ("show_config", "estimators"):
        returns = inspect.signature(getattr(rlvar, name)).return_annotation != "None"
        for section in ("Parameters\n", *["Returns\n"] * returns, "Raises\n"):
            assert section in text


def blocks(language, page=README):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", [README, SCORES], ids=lambda page: page.name)
def test_the_examples_of_a_page_run_and_print_what_they_say(page, capsys):
    if page == SCORES:
        pytest.importorskip("torch", reason="needs torch")
        pytest.importorskip("transformers", reason="needs transformers")
    names = {}
    for example in blocks("python", page):
        exec(example, names)
        printed = capsys.readouterr().out.splitlines()
        claimed = "".join(re.findall(r"^print\(.*\n((?:# .*\n)+)", example, re.MULTILINE))
        assert claimed or not printed
        assert printed == [line[2:].strip() for line in claimed.splitlines()]


def test_the_report_in_the_readme_is_the_output_of_the_command(capsys):
    assert main(["report"]) == 0
    assert capsys.readouterr().out in blocks("text")


def test_the_version_is_the_same_everywhere():
    assert np.lib.NumpyVersion(rlvar.__version__) >= "0.1.0"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {rlvar.__version__}" in changelog


def table(text, first):
    """Cells of the body of the one Markdown table whose first column is headed `first`."""
    (body,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines()]


@pytest.fixture(scope="module")
def statistics():
    return STATISTICS.read_text(encoding="utf-8")


def test_tests_that_prove_the_statistics_exist(statistics):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", statistics)
    assert len(named) == statistics.count("tests/")
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_the_statistics_say_which_estimators_are_unbiased(statistics):
    said = {name: unbiased == "yes" for name, unbiased, _ in table(statistics, "estimator")}
    assert said == {estimator.name: estimator.unbiased for estimator in rlvar.estimators()}


def test_naive_ways_and_their_truths_are_what_the_script_prints(statistics):
    # The truths are exact: a few data sets give those of all.
    script = [sys.executable, str(ROOT / "studies" / "naive_ways.py"), "--data-sets", "20"]
    printed = subprocess.run(script, capture_output=True, text=True, timeout=300).stdout
    printed, said = ([row[:2] for row in table(text, "naive way")] for text in (printed, statistics))
    assert printed == said


def test_the_coverage_table_has_all_settings_of_the_calibration(statistics):
    calibration = importlib.import_module("calibration")
    rows = table(statistics, "setting")
    tried = [[name, str(units)] for name in calibration.SETTINGS for units in calibration.UNITS]
    assert [row[:2] for row in rows] == tried
    head = "| setting | units | " + " | ".join(calibration.QUANTITIES) + " |"
    assert head in statistics


def test_what_is_said_of_rows_that_cover_too_rarely_is_what_the_coverage_table_has(statistics):
    rows = [[float(cell.rstrip("%") or "nan") for cell in row[1:10]] for row in table(statistics, "setting")]
    poor = [row for row in rows if min(row[1:5]) < 92]
    assert len(poor) < len(rows) * 0.6
    assert f"note in {min(row[7] for row in poor):.0f} to {max(row[7] for row in poor):.0f} %" in statistics
    others = sorted(row[7] for row in rows if row[0] == 160 and row not in poor)
    assert (
        f"others have it in {others[0]:.0f} to {others[-2]:.0f} %, but for\nsequence means "
        f"({others[-1]:.0f} %)" in statistics
    )
    assert f"up to {max(row[8] for row in rows):.0f} % of a row" in statistics


def test_the_note_on_few_deciders_has_the_coverage_that_the_statistics_have(statistics):
    (least,) = re.findall(r"variances are covered in (\d+) to 100 %", statistics)
    assert f"in as few as {least}% of the cases" in few_decide([("single", 1.0, np.nan)], 40, "rollout")
