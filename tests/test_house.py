"""The house: a flat public face over a few wings, and arrows one way."""

import ast
import sys
from pathlib import Path

import pytest

import rlvar

ROOT = Path(rlvar.__file__).parent
# Lowest first: a wing imports those before it, and itself. A file at the root is a wing of its own.
WINGS = [
    *("_types", "_core", "config", "_check", "stats", "drawing", "rollouts", "files", "datasets", "recorded"),
    *("terms", "weights", "analysis", "reporting", "monitor", "cli", "__init__", "__main__"),
]
FILES = [path for path in ROOT.rglob("*.py") if "torch" not in path.parts]


def wing(parts):
    return parts[0].removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "rlvar" else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_wing_imports_only_wings_below_it(path):
    here = WINGS.index(wing(path.relative_to(ROOT).parts))
    for name in imported(path):
        package, _, rest = name.partition(".")
        if package == "rlvar" and rest and not rest.startswith("_core_"):
            assert WINGS.index(wing(rest.split("."))) <= here, f"imports {name}"


def test_nothing_but_numpy_is_needed_at_run_time():
    own = {"rlvar", "numpy", "tqdm", "torch", "pyarrow", "matplotlib", "jinja2"}  # but numpy, extras
    for path in FILES:
        packages = {name.partition(".")[0] for name in imported(path)}
        assert packages <= own | sys.stdlib_module_names, path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_product_is_left_to_blas(path):
    # Its bits depend on the number of threads.
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.MatMult)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
            assert node.attr not in (
                "dot",
                "matmul",
                "vdot",
                "inner",
                "tensordot",
                "cov",
                "corrcoef",
                "linalg",
            )
        if isinstance(node, ast.Call):
            assert not any(option.arg == "optimize" for option in node.keywords)
