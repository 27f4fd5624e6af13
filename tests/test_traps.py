"""The page of traps has the numbers that its script prints."""

import importlib
import re
from pathlib import Path

import pytest

from tables import table

traps = importlib.import_module("traps")


@pytest.fixture(scope="module")
def page():
    return (Path(__file__).parents[1] / "docs" / "traps.md").read_text(encoding="utf-8")


def test_the_truths_of_the_table_are_what_the_script_prints(page, capsys):
    traps.main(["--data-sets", "0"])
    printed = table(capsys.readouterr().out, "number")
    assert printed == [row[:2] for row in table(page, "number")]


def test_every_trap_has_the_numbers_of_the_table(page):
    rows = [
        [name, *(f"{float(cell.split(' ')[0]):.3g}" for cell in cells)]
        for name, *cells in table(page, "number")
    ]
    told = re.findall(r"^> (.+): wrong (\S+), right (\S+), rlvar (\S+)$", page, re.MULTILINE)
    assert [[name, right, wrong, ours] for name, wrong, right, ours in told] == rows


def test_a_row_that_misses_the_truth_is_named(monkeypatch, capsys):
    way, options = traps.ROWS["variance, float64, mean 1e8 spreads"]
    rows = {"right": (way, options), "wrong": (lambda *given: traps.Found(1.0, [2.0], [3.0]), {})}
    monkeypatch.setattr(traps, "ROWS", rows)
    assert traps.main(["--data-sets", "80"]) == 1
    assert "not as promised: wrong\n" in capsys.readouterr().out
