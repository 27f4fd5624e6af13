"""The choice of the kernels' module, and what kernels do in forked children."""

import os
import subprocess
import sys

import pytest

import rlvar
from rlvar import _core


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("isa", _core.available_isas)
def test_the_environment_chooses_the_instruction_set(isa):
    result = run("import rlvar; rlvar.show_config()", RLVAR_ISA=isa)
    assert f"isa      {isa} (available: {', '.join(_core.available_isas)})" in result.stdout


def test_the_best_instruction_set_is_the_default():
    result = run("import rlvar._core as c; print(c.isa)", RLVAR_ISA="")
    assert result.stdout.strip() == _core.available_isas[-1]


def test_an_instruction_set_that_the_machine_lacks_is_a_clear_error():
    result = run("import rlvar", RLVAR_ISA="v9")
    assert result.returncode != 0
    wanted = f"RLVAR_ISA must be one of {', '.join(_core.available_isas)} on this machine, got 'v9'"
    assert result.stderr.splitlines()[-1] == f"ImportError: {wanted}"


def test_show_config_prints_everything(capsys):
    rlvar.show_config()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["rlvar", "isa", "openmp", "threads", "eigen", "numpy"]
    assert lines["rlvar"] == rlvar.__version__
    assert lines["eigen"].startswith("3.4.")


FORK = """
import os, sys, warnings
import numpy as np, rlvar
warnings.simplefilter("ignore")  # 3.12 warns of threads at every fork
rng = np.random.default_rng(0)
scores, rewards = rng.standard_normal((600, 40, 16)), rng.standard_normal((600, 4000))

def compute():
    matrix = rlvar.covariance(scores, num_threads=4)
    parts = rlvar.decompose(scores, num_threads=4)
    return matrix, parts.growth, rlvar.reward_to_go(rewards)

expected = compute()
child = os.fork()
if child == 0:
    same = all(np.array_equal(a, b) for a, b in zip(compute(), expected))
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes_the_right_answer_after_a_parallel_region():
    result = run(FORK, OMP_NUM_THREADS="4")
    assert result.returncode == 0, result.stderr
