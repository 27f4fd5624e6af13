import importlib.util
import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import reference
import rlvar

EXAMPLES = Path(__file__).parents[1] / "examples"
# Looked for, not imported: the scripts run in processes of their own, where warnings are no errors.
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
SCRIPTS = ["covariance_processes.py", pytest.param("covariance_ray.py", marks=needs_ray)]
# Ray writes a token to the home directory unless it is given one, and reports how it is used.
ENVIRONMENT = os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
N, T, D = 23, 9, 3


def run(script, *arguments):
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def ragged(rng, dtype):
    """Arrays of a folder: means that differ from shard to shard, and NaN in every step that is not live."""
    lengths = rng.integers(1, T + 1, N)
    lengths[:2] = 0, T
    dead = ~reference.live_steps((N, T), lengths=lengths)
    scores = (rng.standard_normal((N, T, D)) + np.linspace(0, 5, N)[:, None, None]).astype(dtype)
    rewards = rng.standard_normal((N, T))
    scores[dead], rewards[dead] = np.nan, np.nan
    return {"scores": scores, "rewards": rewards, "lengths": lengths, "groups": np.arange(N) % 4}


def write(folder, arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def to_go(arrays):
    return rlvar.reward_to_go(arrays["rewards"], lengths=arrays["lengths"])


def leave_one_out(arrays):
    return rlvar.rloo(np.nansum(arrays["rewards"], axis=1), arrays["groups"])


def assert_saved(path, expected, tolerance):
    saved = rlvar.CovarianceAccumulator.load(path)
    assert saved.count == N
    error = np.abs(saved.covariance() - expected).max() / expected.diagonal().max()
    assert error < tolerance


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 1e-12)])
def test_shards_on_workers_agree_with_one_call(script, dtype, tolerance, rng, tmp_path):
    arrays = ragged(rng, dtype)
    write(tmp_path, arrays)
    ran = run(script, tmp_path, "--workers", 2, "--shards", 3, "--out", tmp_path / "merged.npz")
    assert ran.returncode == 0, ran.stderr
    expected = rlvar.covariance(arrays["scores"], to_go(arrays), lengths=arrays["lengths"])
    assert_saved(tmp_path / "merged.npz", expected, tolerance)
    printed = [line.split("  ")[-1].strip() for line in ran.stdout.splitlines()[1:]]
    wanted = np.array([expected.sum(), expected.trace(), expected.sum() - expected.trace()])
    np.testing.assert_allclose([float(number) for number in printed], wanted, rtol=1e-4)


def test_weights_come_from_the_rewards_of_all_shards(rng, tmp_path):
    arrays = ragged(rng, np.float64)
    write(tmp_path, arrays)  # every shard has some of each group
    options = ("--estimator", "rloo", "--block-size", 2, "--shards", 3, "--out", tmp_path / "merged.npz")
    ran = run("covariance_processes.py", tmp_path, *options)
    assert ran.returncode == 0, ran.stderr
    expected = rlvar.covariance(
        arrays["scores"], leave_one_out(arrays), lengths=arrays["lengths"], block_size=2
    )
    assert_saved(tmp_path / "merged.npz", expected, 1e-12)


def test_a_mask_and_more_shards_than_rollouts(rng, tmp_path):
    arrays = ragged(rng, np.float64)
    mask = reference.live_steps((N, T), lengths=arrays.pop("lengths")) & (rng.random((N, T)) < 0.8)
    write(tmp_path, arrays | {"mask": mask})
    ran = run("covariance_processes.py", tmp_path, "--shards", 2 * N, "--out", tmp_path / "merged.npz")
    assert ran.returncode == 0, ran.stderr
    weights = rlvar.reward_to_go(arrays["rewards"], mask=mask)
    assert_saved(tmp_path / "merged.npz", rlvar.covariance(arrays["scores"], weights, mask=mask), 1e-12)


def test_without_a_folder_it_shows_the_embedded_rollouts():
    ran = run("covariance_processes.py")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("CartPole: multi, 256 rollouts in 8 shards\n")


def assert_one_line(ran, *parts):
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in parts)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_that_does_not_exist_is_one_line(script, tmp_path):
    assert_one_line(run(script, tmp_path / "nowhere"), str(tmp_path / "nowhere"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_estimator_is_one_line(script):
    assert_one_line(run(script, "--estimator", "a2c"), "'a2c'", "single, multi")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--estimator", "rloo"), ("'rloo'", "groups")),  # CartPole's are not grouped
        (("--workers", 0), ("--workers", "at least 1")),
        (("--shards", 0), ("--shards", "at least 1")),
        (("--block-size", 0), ("block_size", "at least 1")),
        (("--out", EXAMPLES / "nowhere" / "merged.npz"), (str(EXAMPLES / "nowhere"),)),
    ],
)
def test_other_arguments_that_cannot_work_are_one_line(options, parts):
    assert_one_line(run("covariance_processes.py", *options), *parts)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_error_in_a_worker_is_one_line(script, rng, tmp_path):
    arrays = ragged(rng, np.float64)
    arrays["scores"][20, 0, 2], arrays["lengths"][20] = np.nan, T
    arrays["rewards"][20] = 1.0
    write(tmp_path, arrays)
    shard, index = "in the shard of rollouts from 15 on", "scores[5, 0, 2] = nan"
    assert_one_line(run(script, tmp_path, "--shards", 3), shard, index)
