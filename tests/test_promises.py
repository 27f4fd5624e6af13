"""The promises have tests that exist, and their tables what the studies say."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from rlvar.analysis.deciders import few_decide
from tables import table

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def promises():
    return (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")


def test_tests_that_prove_the_promises_exist(promises):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", promises)
    assert len(named) == promises.count("tests/") - promises.count("python tests/")
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_studies_and_benchmarks_that_print_the_promises_exist(promises):
    named = re.findall(
        r"`python ((?:studies|bench|tests)/\w+\.py)", promises.replace("`python\n", "`python ")
    )
    assert len(named) > 10
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_the_coverage_table_has_all_settings_of_the_calibration(promises):
    calibration = importlib.import_module("calibration")
    rows = table(promises, "setting")
    tried = [[name, str(units)] for name in calibration.SETTINGS for units in calibration.UNITS]
    assert [row[:2] for row in rows] == tried
    head = "| setting | units | " + " | ".join(calibration.QUANTITIES) + " |"
    assert head in promises


def test_what_is_said_of_rows_that_cover_too_rarely_is_what_the_coverage_table_has(promises):
    rows = [[float(cell.rstrip("%") or "nan") for cell in row[1:10]] for row in table(promises, "setting")]
    poor = [row for row in rows if min(row[1:5]) < 92]
    assert len(poor) < len(rows) * 0.6
    assert f"note in {min(row[7] for row in poor):.0f} to {max(row[7] for row in poor):.0f} %" in promises
    others = sorted(row[7] for row in rows if row[0] == 160 and row not in poor)
    assert (
        f"others have it in {others[0]:.0f} to {others[-2]:.0f} %, but for\nsequence means "
        f"({others[-1]:.0f} %)" in promises
    )
    assert f"up to {max(row[8] for row in rows):.0f} % of a row" in promises


def test_the_note_on_few_deciders_has_the_coverage_that_the_promises_have(promises):
    (least,) = re.findall(r"variances are covered in (\d+) to 100 %", promises)
    assert f"in as few as {least}% of the cases" in few_decide([("single", 1.0, np.nan)], 40, "rollout")
