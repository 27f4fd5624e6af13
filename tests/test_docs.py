"""What the documentation says is what happens."""

import doctest
import importlib
import inspect
import pkgutil
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import rlvar
from rlvar.cli import _parser, main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
START, MATHEMATICS, READING, SCORES, TRAPS, COMPARISONS = (
    ROOT / "docs" / f"{page}.md"
    for page in ("start", "mathematics", "reading", "scores", "traps", "comparisons")
)
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


PUBLIC = ["rlvar", "rlvar.datasets", "rlvar.torch", "rlvar.torch.sb3", "rlvar.torch.trl"]


def public(module):
    """Return what is public in a module, by its name; skip where what the module needs is missing."""
    needed = ["torch", "transformers"] if "torch" in module else []
    for package in [*needed, *{"sb3": ["stable_baselines3"], "trl": ["trl"]}.get(module.split(".")[-1], [])]:
        pytest.importorskip(package, reason=f"needs {package}")
    loaded = importlib.import_module(module)
    names = getattr(loaded, "__all__", ("arithmetic", "cartpole"))
    return {name: getattr(loaded, name) for name in names if name not in ("__version__", "datasets")}


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_in_the_reference_once(module):
    shown = []
    for page in sorted((ROOT / "docs" / "api").glob("*.rst")):
        text = page.read_text(encoding="utf-8")
        if f".. currentmodule:: {module}\n" in text:
            shown += re.findall(r"^\.\. auto(?:function|class):: (\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(public(module))


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_member_of_a_class_is_documented(module):
    bare = []
    for name, class_ in public(module).items():
        if isinstance(class_, type):
            said = set(re.findall(r"\w+", inspect.getdoc(class_)))
            ours = [base for base in class_.__mro__ if base.__module__.startswith("rlvar")]
            fields = {*getattr(class_, "__dataclass_fields__", ()), *getattr(class_, "_fields", ())}
            members = {key for base in ours for key in vars(base)} - fields
            bare += [f"{name}.{key}" for key in fields - said if key[0] != "_"]
            bare += [
                f"{name}.{key}"
                for key in members - said
                if key[0] != "_" and not inspect.getattr_static(class_, key).__doc__
            ]
    assert bare == []


def blocks(language, page=README):
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    others = re.findall(r"`(tests/[\w/]+\.py)`|python (tests/[\w/]+\.py)", text)
    assert len(named) + len(others) == text.count("tests/")
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")
    assert all((ROOT / (quoted or run)).is_file() for quoted, run in others)


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_the_commands_of_a_page_are_commands(page):
    for line in "".join(blocks("sh", page)).splitlines():
        if line.startswith("rlvar "):
            _parser().parse_args(shlex.split(line, comments=True)[1:])


def test_links_lead_somewhere():
    # Those between the pages of docs/, and into them, are checked while the site is built.
    for page in (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(
            r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))
        ):
            url = urlsplit(target)
            if url.scheme:
                assert url.scheme == "https", target
                assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", url.netloc), target
            else:
                assert not url.path or (page.parent / url.path).exists(), f"{page.name}: {target}"


EXAMPLES = [README, START, MATHEMATICS, READING, SCORES, TRAPS, COMPARISONS]


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run_and_print_what_they_say(page, capsys):
    for package in ("torch", "transformers", "gymnasium", "matplotlib"):
        if re.search(rf"^(import|from) {package}\b", "".join(blocks("python", page)), re.MULTILINE):
            pytest.importorskip(package, reason=f"needs {package}")
    names = {}
    for example in blocks("python", page):
        exec(example, names)
        printed = capsys.readouterr().out.splitlines()
        claimed = "".join(re.findall(r"^print\(.*\n((?:# .*\n)+)", example, re.MULTILINE))
        assert claimed or not printed
        assert printed == [line[2:].strip() for line in claimed.splitlines()]


def test_the_report_that_new_users_see_is_the_output_of_the_command(capsys):
    assert main(["report"]) == 0
    assert capsys.readouterr().out in blocks("text", START)


def test_the_version_is_the_same_everywhere():
    assert np.lib.NumpyVersion(rlvar.__version__) >= "0.1.0"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {rlvar.__version__}" in changelog
