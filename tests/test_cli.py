import json
import subprocess
import sys

import numpy as np
import pytest

import rlvar
from rlvar.cli import main


def run(*arguments, **options):
    command = [sys.executable, "-m", "rlvar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def write(path, **arrays):
    rng = np.random.default_rng(0)
    defaults = {"scores": rng.standard_normal((40, 12, 3)), "rewards": rng.standard_normal((40, 12))}
    np.savez(path, **{**defaults, **arrays})
    return str(path)


def test_without_a_file_it_reports_on_the_embedded_rollouts():
    result = run("report")
    assert result.returncode == 0
    assert result.stderr == ""
    assert "N = 256 rollouts, T = 208 steps, D = 10 coordinates" in result.stdout
    assert "Single-step needs" in result.stdout
    assert "times as many rollouts as multi-step for the same precision" in result.stdout


def test_every_number_of_the_report_is_in_the_json(tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["report", write(tmp_path / "r.npz"), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    fields = json.loads(out.read_text())
    assert fields["rollouts"]["N"] == 40
    assert fields["rollouts"]["lengths"] == [12] * 40
    assert set(fields["decompositions"]) == {"single", "multi"}
    ratio = rlvar.compare(rlvar.load_rollouts(tmp_path / "r.npz"))["multi"].ratio
    assert fields["comparison"]["rows"][1]["ratio"]["value"] == ratio.value
    for sentence in fields["verdict"]:
        assert sentence in " ".join(text.split())


def test_estimators_are_chosen(tmp_path, capsys):
    assert main(["report", write(tmp_path / "r.npz"), "--estimators", "multi"]) == 0
    text = capsys.readouterr().out
    assert "variance of multi-step" in text
    assert "variance of single-step comes" not in text


def test_a_directory_of_npy_files(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "scores.npy", rng.standard_normal((9, 4, 2)).astype(np.float32))
    np.save(tmp_path / "rewards.npy", rng.standard_normal((9, 4)))
    np.save(tmp_path / "groups.npy", np.array(list("aabbccdde")))
    assert main(["report", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "N = 9 rollouts in 5 groups" in text.replace(", in", " in")
    assert "jackknife over 5 groups" in text


def test_unusable_input_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("hello")
    nan = np.ones((40, 12, 3))
    nan[3, 2, 1] = np.nan
    cases = {
        str(tmp_path / "none.npz"): "No such file",
        str(tmp_path / "text.npz"): "is not an .npz file",
        str(tmp_path): "holds no array named scores",
        write(tmp_path / "nan.npz", scores=nan): "got scores[3, 2, 1] = nan",
        write(tmp_path / "shape.npz", rewards=np.ones(3)): "rewards must have shape",
        write(tmp_path / "flat.npz", scores=np.ones(3)): "scores must have shape (N, T, D), got (3,)",
    }
    for file, message in cases.items():
        assert main(["report", file]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("rlvar: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
        assert file in captured.err


def test_ignored_arrays_are_a_warning_in_one_line(tmp_path, capsys):
    file = write(tmp_path / "r.npz", length=np.ones(40, int))
    assert main(["report", file]) == 0
    assert capsys.readouterr().err == f"rlvar: warning: {file}: ignored arrays named length\n"


def test_a_failed_json_is_said_before_anything_is_claimed(tmp_path, capsys):
    file = write(tmp_path / "r.npz")
    assert main(["report", file, "--json", str(tmp_path / "no" / "out.json")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_unknown_estimators_and_commands(tmp_path, capsys):
    assert main(["report", "--estimators", "magic"]) == 2
    assert "estimator 'magic': it is none of single, multi" in capsys.readouterr().err
    for arguments in ([], ["dance"], ["report", "--dance"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rlvar {rlvar.__version__}\n"


def test_a_terminal_without_utf8_and_a_closed_pipe():
    result = run("report", env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0
    assert "|####" in result.stdout
    assert "?" not in result.stdout
    pipe = subprocess.run(
        f"{sys.executable} -m rlvar report | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert pipe.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_shows_on_a_terminal_only(tmp_path):
    import os
    import pty

    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rlvar", "report"], stdout=subprocess.DEVNULL, stderr=terminal
    )
    assert process.wait(timeout=120) == 0
    os.close(terminal)
    shown = os.read(controller, 65536).decode()
    os.close(controller)
    assert "decomposing the variance of multi-step ..." in shown
    assert shown.endswith("\r\x1b[K")


def test_covariance_streams_a_folder_into_an_accumulator(tmp_path, capsys):
    rng = np.random.default_rng(0)
    scores, rewards = rng.standard_normal((90, 12, 3)), rng.standard_normal((90, 12))
    lengths = rng.integers(1, 13, 90)
    for name, array in (("scores", scores), ("rewards", rewards), ("lengths", lengths)):
        np.save(tmp_path / f"{name}.npy", array)
    out = tmp_path / "out.npz"
    command = ["covariance", str(tmp_path), "--estimator", "single", "--block-size", "2", "--out", str(out)]
    assert main(command) == 0
    whole = np.where(np.arange(12) < lengths[:, None], rewards, 0).sum(axis=1)
    expected = rlvar.covariance(scores, whole, lengths=lengths, block_size=2)
    result = rlvar.CovarianceAccumulator.load(out)
    np.testing.assert_allclose(result.covariance(), expected, rtol=0, atol=1e-12 * expected.max())
    assert f"total variance    {expected.sum():.6g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimator", "best"], "estimator 'best': it is none of single, multi"),
        (["--block-size", "0"], "block_size must be at least 1, got 0"),
        (["--out", "none/out.npz"], "--out none/out.npz: not a file in a folder that exists"),
        (["--out", "."], "--out .: not a file in a folder that exists"),
    ],
)
def test_covariance_refuses_in_one_line(tmp_path, capsys, options, message):
    command = ["covariance", write(tmp_path / "r.npz"), "--out", str(tmp_path / "out.npz"), *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_stale_rollouts_are_weighed_in_report_and_covariance(tmp_path, capsys):
    rng = np.random.default_rng(1)
    logp = -rng.exponential(1.0, (40, 12))
    stale = {"logp": logp, "behavior_logp": logp + 0.05 * rng.standard_normal((40, 12))}
    path = write(tmp_path / "r.npz", **stale)
    weights = ["--ratio", "sequence", "--truncate", "2"]
    options = ["--aggregation", "token-mean", "--interval", "bootstrap", "--seed", "3"]
    assert main(["report", path, *weights, *options]) == 0
    text = capsys.readouterr().out
    assert "sequence ratios: effective sample size" in text
    assert "variance of one rollout's tokens" in text
    assert "intervals: bootstrap over 40 rollouts" in text
    assert main(["covariance", path, *weights]) == 0
    rollouts = rlvar.load_rollouts(path)
    expected = rlvar.compare(rollouts, ["multi"], importance="sequence", truncate=2.0)["multi"].variance.value
    assert f"total variance    {expected:.6g}" in capsys.readouterr().out
    for command in (["report"], ["covariance", "--estimator", "multi"]):
        assert main([*command, write(tmp_path / "plain.npz"), "--ratio", "token"]) == 2
        assert "must have rollouts with logp and behavior_logp" in capsys.readouterr().err
