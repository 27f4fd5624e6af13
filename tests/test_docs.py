"""What the documentation says is what happens."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import rlvar
from rlvar.cli import main

README = Path(__file__).parents[1] / "README.md"
MODULES = [
    f"rlvar.{module.name}"
    for module in pkgutil.iter_modules(rlvar.__path__)
    if not module.name.startswith("_")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


@pytest.mark.parametrize("name", [n for n in rlvar.__all__ if callable(getattr(rlvar, n)) and n.islower()])
def test_public_functions_have_a_complete_docstring(name):
    text = getattr(rlvar, name).__doc__
    assert "Examples\n" in text
    if name not in ("show_config", "estimators"):
        for section in ("Parameters\n", "Returns\n", "Raises\n"):
            assert section in text


def blocks(language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def test_the_api_example_of_the_readme_runs(capsys):
    (example,) = blocks("python")
    exec(example, {})
    printed = capsys.readouterr().out.splitlines()
    claimed = [line[2:].strip() for line in example.splitlines() if line.startswith("# ")]
    assert printed == claimed


def test_the_report_in_the_readme_is_the_output_of_the_command(capsys):
    assert main(["report"]) == 0
    assert capsys.readouterr().out in blocks("text")


def test_the_version_is_the_same_everywhere():
    assert np.lib.NumpyVersion(rlvar.__version__) >= "0.1.0"
    changelog = (README.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {rlvar.__version__}" in changelog
