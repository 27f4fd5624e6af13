import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import rlvar
from rlvar._check import arrays
from rlvar.analysis import accumulator
from rlvar.cli import main, streams
from rlvar.reporting.text import STYLES
from rlvar.stats.shown import number


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
    text = " ".join(result.stdout.split())
    assert "Single-step needs" in text
    assert "times as many rollouts as multi-step for the same precision" in text


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
    for sentence in fields["verdict"] + fields["notes"]:
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
        str(tmp_path): "it has no array named scores",
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


def refused(capsys, command, message):
    assert main(list(map(str, command))) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


@pytest.mark.parametrize("command", [("report", "--json"), ("covariance", "--out")])
def test_outputs_are_looked_at_before_the_rollouts_are(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setattr(f"rlvar.cli.{command[0]}.load_rollouts", None)
    (tmp_path / "file").touch()
    for output, message in (
        ("none/out", "none: No such file or directory"),
        (".", "Is a directory"),
        ("file/out", "Not a directory"),
    ):
        refused(capsys, [command[0], "any.npz", command[1], tmp_path / output], message)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    refused(capsys, [command[0], "any.npz", command[1], tmp_path / "file"], "file: Permission denied")


def test_outputs_replace_no_input_by_whatever_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("r.npz")
    (tmp_path / "hard.npz").hardlink_to("r.npz")
    (tmp_path / "soft.npz").symlink_to("r.npz")
    (tmp_path / "folder").mkdir()
    for name, array in np.load("r.npz").items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    (tmp_path / "folder" / "scores.npy").rename("elsewhere.npy")
    (tmp_path / "folder" / "scores.npy").symlink_to("../elsewhere.npy")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.np?")}
    for source, output in (
        ("r.npz", "r.npz"),
        ("r.npz", "./folder/../r.npz"),
        ("r.npz", "hard.npz"),
        ("r.npz", "soft.npz"),
        ("soft.npz", "r.npz"),
        ("folder", "folder/rewards.npy"),
        ("folder", "folder/values.npy"),
        ("folder/", "elsewhere.npy"),
    ):
        refused(capsys, ["report", source, "--json", output], "that is what is read; name another file")
        refused(capsys, ["covariance", source, "--out", output], "that is what is read; name another file")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.np?")}
    assert main(["covariance", "folder", "--out", "folder/part.npz"]) == 0


def test_json_is_written_at_once_or_not_at_all(tmp_path, capsys, monkeypatch):
    (tmp_path / "out.json").write_text("old")
    monkeypatch.setattr(
        os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    refused(
        capsys, ["report", write(tmp_path / "r.npz"), "--json", tmp_path / "out.json"], "out.json: No space"
    )
    assert (tmp_path / "out.json").read_text() == "old"
    assert len(os.listdir(tmp_path)) == 2


def test_json_goes_to_standard_output_beside_the_report():
    result = run("report", "--json", "/dev/stdout")
    assert result.returncode == 0
    document, end = json.JSONDecoder().raw_decode(result.stdout)
    assert document["rollouts"]["N"] == 256
    assert "Verdict" in result.stdout[end:]


def test_standard_output_in_a_file_is_not_replaced_by_the_json(tmp_path):
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "rlvar", "report", "--json", tmp_path / "out"]
        assert subprocess.run(command, stdout=out, timeout=120).returncode == 0
    assert "Verdict" in (tmp_path / "out").read_text().split("\n}\n")[1]


def test_unknown_estimators_and_commands(tmp_path, capsys):
    assert main(["report", "--estimators", "magic"]) == 2
    assert "unknown estimator 'magic'; choose from single, multi" in capsys.readouterr().err
    for arguments in ([], ["dance"], ["report", "--dance"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"rlvar {rlvar.__version__}\n"


def test_a_terminal_without_utf8_and_a_closed_pipe():
    result = run("report", "--full", env={**os.environ, "PYTHONIOENCODING": "ascii"})
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


@pytest.mark.parametrize(
    ("redirection", "status", "out", "err"),
    [
        ("2>&-", 0, "Verdict", ""),
        ("2>/dev/full", 0, "Verdict", ""),
        (">&-", 2, "", "rlvar: standard output is closed\n"),
        (">/dev/full", 2, "", "rlvar: standard output: No space left on device\n"),
        (">&- 2>&-", 2, "", ""),
        (">/dev/full 2>/dev/full", 2, "", ""),
    ],
)
def test_closed_and_full_streams(tmp_path, redirection, status, out, err):
    path = write(tmp_path / "r.npz", other=np.ones(1))  # of which there is a warning
    if err:
        path = write(tmp_path / "r.npz")
    command = f"{sys.executable} -m rlvar report {path} {redirection}"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (status, err)
    assert out in result.stdout


@pytest.mark.parametrize(
    "command",
    ["--help >&-", "--help >/dev/full", "report --help | head -c 0", "--version >&-", "report --no 2>&-"],
)
def test_help_into_closed_and_full_streams_has_no_traceback(command):
    command = f"{sys.executable} -m rlvar {command}"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


def test_a_file_comes_by_standard_input_and_a_pipe_is_refused(tmp_path):
    path = write(tmp_path / "r.npz")
    with open(path) as file:
        assert "Verdict" in run("report", "-", stdin=file).stdout
    piped = run("report", "/dev/stdin", input="PK")
    assert piped.returncode == 2
    assert piped.stderr == "rlvar: /dev/stdin: it is a pipe, not a regular file\n"


STEERING = "\x1b]0;t\x07\r\u202e\x9b2J\nrlvar: verified"


def test_no_name_steers_the_terminal(tmp_path, capsys):
    path = write(tmp_path / f"é{STEERING}.npz", **{STEERING: np.ones(1)})
    for arguments in (
        ("report", path, "--json", f"{path}.json"),
        ("covariance", path, "--out", f"{path}.out"),
        ("report", f"{path}.none"),
        ("report", path, "--reference", STEERING),
        ("report", path, "--json", f"{path}.none/out"),
        ("report", path, path),
    ):
        with contextlib.suppress(SystemExit):
            assert main(arguments) in (0, 2)
        shown = "".join(capsys.readouterr())
        assert all(line.isprintable() for line in shown.split("\n")), shown
        assert r"\x1b]0;t\x07" in re.sub(r"\n *", "", shown)  # where a long name is broken
        assert "\nrlvar: verified" not in shown


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_names_beyond_the_encoding_are_escaped(tmp_path, variables):
    name = os.fsdecode("é".encode() + b"\xff.npz")
    write(tmp_path / "r.npz")
    (tmp_path / "r.npz").rename(tmp_path / name)
    result = run("covariance", name, cwd=tmp_path, env={**os.environ, **variables})
    assert (result.returncode, result.stderr) == (0, "")
    assert r"\udcff.npz" in result.stdout
    assert "  40 rollouts, multi\n" in result.stdout


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.int16])
def test_covariance_converts_a_folder_block_by_block(tmp_path, monkeypatch, capsys, dtype):
    scores = np.random.default_rng(0).integers(-9, 9, (40, 12, 3))
    np.save(tmp_path / "scores.npy", np.asfortranarray(scores.astype(dtype)))
    np.save(tmp_path / "rewards.npy", np.ones(40))
    monkeypatch.setattr(accumulator, "_UPDATE_BYTES", 1)  # so blocks of 16 rollouts
    converted, floats = [], arrays.floats
    monkeypatch.setattr(
        arrays,
        "floats",
        lambda name, x, *more: converted.append((name, np.shape(x))) or floats(name, x, *more),
    )
    assert main(["covariance", str(tmp_path)]) == 0
    assert max(shape[0] for name, shape in converted if name == "scores") == 16
    expected = rlvar.covariance(scores).sum()
    assert f"variance          {number(expected)}\n" in capsys.readouterr().out


def test_the_reference_is_chosen(tmp_path, capsys):
    path, out = write(tmp_path / "r.npz"), tmp_path / "out.json"
    assert main(["report", path, "--reference", "multi", "--json", str(out)]) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["comparison"]["rows"]}
    expected = rlvar.compare(rlvar.load_rollouts(path), reference="multi")
    for name, row in rows.items():
        assert row["ratio"]["value"] == expected[name].ratio.value
    capsys.readouterr()
    refused(capsys, ["report", path, "--reference", "best"], "unknown estimator 'best'")


INTERRUPTED = """
import importlib, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
module, name = sys.argv[1].split(":")
stop = lambda *arguments, **options: os.kill(os.getpid(), signal.SIGINT)
setattr(importlib.import_module(module), name, stop)
sys.exit(importlib.import_module("rlvar.cli").main(["report"]))
"""


@pytest.mark.parametrize("stage", ["rlvar.cli.report:make_report", "rlvar.cli.streams:shown"])
def test_ctrl_c_is_status_130_without_a_word(stage):
    command = [sys.executable, "-c", INTERRUPTED, stage]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (130, "")


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
    assert (
        f"variance          {number(expected.sum())}  (its terms below are blocks of 2 steps)\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--estimator", "best"], "unknown estimator 'best'; choose from single, multi"),
        (["--block-size", "0"], "block_size must be at least 1, got 0"),
        (["--out", "none/out.npz"], "none: No such file or directory"),
        (["--out", "."], ".: Is a directory"),
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
    weights = ["--importance", "sequence", "--truncate", "2"]
    options = ["--aggregation", "token-mean", "--interval", "bootstrap", "--seed", "3"]
    assert main(["report", path, *weights, *options]) == 0
    text = capsys.readouterr().out
    settings = "bootstrap over 40 rollouts. Importance ratios: sequence. Aggregation: token-mean."
    assert settings in " ".join(text.split())
    assert main(["report", path, *weights, *options, "--full"]) == 0
    text = capsys.readouterr().out
    assert "sequence ratios: effective sample size" in text
    assert "variance of one rollout's tokens" in text
    assert main(["covariance", path, *weights]) == 0
    rollouts = rlvar.load_rollouts(path)
    expected = rlvar.compare(rollouts, ["multi"], importance="sequence", truncate=2.0)["multi"].variance.value
    assert f"variance          {number(expected)}\n" in capsys.readouterr().out
    for command in (["report"], ["covariance", "--estimator", "multi"]):
        assert main([*command, write(tmp_path / "plain.npz"), "--importance", "token"]) == 2
        assert "needs rollouts with logp and behavior_logp" in capsys.readouterr().err


def completions(path, n=24, reward="reward"):
    rows = [{"prompt": f"q{i // 4}", "completion": "a", reward: float(i % 3 == 0)} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rewards_without_scores_get_what_they_can(tmp_path, capsys):
    path, out = completions(tmp_path / "c.jsonl"), tmp_path / "out.json"
    assert main(["report", path, "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "".join(text.split()).startswith(f"Rewards:{path}N=24rollouts,in6groupsof4,JSONLines")
    assert "rlvar report FILE" not in text
    fields = json.loads(out.read_text())
    assert fields["rollouts"] == 24
    for sentence in fields["verdict"]:
        assert "".join(sentence.split()) in "".join(text.split())


def test_columns_are_named_by_options(tmp_path, capsys):
    path = tmp_path / "x"
    path.write_text('{"a": 1, "b": 2, "c": "p"}\n{"a": 3, "b": 4, "c": "p"}\n{"a": 0, "b": 4, "c": "r"}\n')
    refused(capsys, ["report", path], "there is no column of rewards among a, b, c; name it")
    assert main(["report", str(path), "--reward", "a,b", "--group", "c"]) == 0
    assert "range                     3 to 7\n" in capsys.readouterr().out
    refused(capsys, ["report", path, "--reward", "d"], "x: reward: there is no column 'd'; there are a, b, c")


def test_options_of_recorded_rollouts_do_not_go_with_scores(tmp_path, capsys):
    path = write(tmp_path / "r.npz")
    refused(capsys, ["report", path, "--reward", "a"], "these rollouts have scores already; --reward is for")
    refused(capsys, ["report", "--model", "m"], "embedded rollouts have scores already; --model is for")
    path = completions(tmp_path / "c.jsonl")
    refused(capsys, ["report", path, "--scores", "s"], "--scores takes scores, and so --model")
    refused(capsys, ["report", path, "--dataset", "cartpole"], "give a FILE or --dataset, not both")
    refused(capsys, ["report", path, "--json", path], "that is what is read; name another file")


WITHOUT = """
import sys
sys.modules[sys.argv.pop(1)] = None
from rlvar.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("package", "file", "command", "message"),
    [
        ("torch", "c.jsonl", ["score", "m", "c.jsonl", "--out", "o"], "pip install 'rlvar[torch]'"),
        ("torch", "c.jsonl", ["report", "c.jsonl", "--model", "m"], "pip install 'rlvar[torch]'"),
        ("pyarrow", "c.parquet", ["report", "c.parquet"], "c.parquet: reading Parquet needs pyarrow"),
        ("torch", "c.pt", ["report", "c.pt", "--trust-pickle"], "c.pt: reading it needs torch"),
    ],
)
def test_a_package_that_is_missing_is_one_line(tmp_path, package, file, command, message):
    if file == "c.jsonl":
        completions(tmp_path / file)
    else:
        (tmp_path / file).write_bytes({"c.parquet": b"PAR1", "c.pt": b"\x80\2."}[file])
    command = [sys.executable, "-c", WITHOUT, package, *command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert message in result.stderr
    assert os.listdir(tmp_path) == [file]


def test_no_text_of_a_recorded_file_steers_the_terminal(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    row = {STEERING: 1.0, "prompt": STEERING, "completion": STEERING, "r\x1breward": 1.0}
    path.write_text((json.dumps(row) + "\n") * 4)
    for options in ([], ["--reward", STEERING], ["--reward", "none"], ["--group", f"{STEERING}x"]):
        assert main(["report", str(path), *options]) in (0, 2)
        shown = "".join(capsys.readouterr())
        assert all(line.isprintable() for line in shown.split("\n")), shown
        assert "\nrlvar: verified" not in shown


def test_two_files_are_set_side_by_side_and_paired_if_asked(tmp_path, capsys):
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(20), 2)
    before = write(tmp_path / "before.npz", groups=groups)
    after = write(tmp_path / "after.npz", groups=groups, scores=rng.standard_normal((40, 12, 3)))
    assert main(["report", before, after, "--estimators", "single"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "before and after are taken as independent: the labels of their groups are consecutive numbers"
        in text
    )
    assert main(["report", before, after, "--estimators", "single", "--paired", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pair"]["names"] == ["before", "after"]
    assert found["pair"]["shared"] == 20
    assert main(["report", before, "--paired"]) == 2
    assert "--paired is for two files" in capsys.readouterr().err


def test_json_on_standard_output_is_nothing_else(tmp_path):
    path = write(tmp_path / "r.npz")
    for command in (("report", path), ("report", path, write(tmp_path / "s.npz"))):
        result = run(*command, "--json", "-")
        assert result.returncode == 0
        assert json.loads(result.stdout)["verdict"]
    assert sorted(os.listdir(tmp_path)) == ["r.npz", "s.npz"]


def test_quiet_is_the_verdict_a_sentence_a_line(tmp_path, capsys):
    path = write(tmp_path / "r.npz")
    assert main(["report", path, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == rlvar.report(rlvar.load_rollouts(path)).verdict
    assert err == ""
    with pytest.raises(SystemExit, match="2"):
        main(["report", path, "--quiet", "--full"])


def test_outputs_are_two_files_and_a_page_is_none_of_the_streams(tmp_path, capsys):
    path, out = write(tmp_path / "r.npz"), tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    message = "--html and --json name one file"
    refused(capsys, ["report", path, "--html", out, "--json", tmp_path / "link"], message)
    refused(capsys, ["report", path, "--html", "-"], "--html takes a file")
    refused(capsys, ["report", path, "--html", path], "that is what is read; name another file")
    refused(capsys, ["report", write(tmp_path / "s.npz"), path, "--json", path], "that is what is read")
    refused(capsys, ["report", completions(tmp_path / "c.jsonl"), "--html", out], "--html takes scores")
    assert not out.exists()


def test_a_page_needs_its_packages_before_the_work(tmp_path):
    command = [sys.executable, "-c", WITHOUT, "matplotlib", "report", "none.npz", "--html", "out.html"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "pip install 'rlvar[report]'" in result.stderr


def test_files_are_one_or_two_that_differ_and_both_have_scores(tmp_path, capsys):
    path = write(tmp_path / "r.npz")
    refused(capsys, ["report", path, path], "this file is given twice; name two")
    refused(capsys, ["report", path, "b", "c"], "one file, or two to set side by side; got 3")
    refused(capsys, ["report", path, completions(tmp_path / "c.jsonl")], "need scores; rlvar score")
    refused(capsys, ["report", path, "b", "--reference", "multi"], "--reference is for one file")


@pytest.mark.parametrize(
    ("variables", "terminal", "coloured"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, True),
        ({"TERM": "xterm", "FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(monkeypatch, variables, terminal, coloured):
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    assert streams.has_colour(stream) is coloured


def test_our_colours_pass_and_no_other_code_does():
    text = f"{STYLES['bold']}a{STYLES['plain']}\x1b[2J\x1b[5m\x9b31m"
    assert streams.shown(text) == f"{STYLES['bold']}a{STYLES['plain']}\\x1b[2J\\x1b[5m\\x9b31m"


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


def test_a_log_has_nothing_of_short_work_and_a_line_a_stage_of_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(streams.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", log := Stream(terminal=False))
    with streams.progress() as show:
        show("reading rollouts")
        now[0] = 11.0
        show("comparing 2 estimators")
        for minute in range(4):
            now[0] = 100.0 + 60 * minute
            show.count("scoring", 10 * minute, 100)
            show.count("scoring", 10 * minute + 1, 100)
    assert log.getvalue().splitlines() == [
        "rlvar: comparing 2 estimators",
        "rlvar: scoring: 0 of 100 rollouts",
        "rlvar: scoring: 10 of 100 rollouts, about 9 minutes left",
        "rlvar: scoring: 20 of 100 rollouts, about 8 minutes left",
        "rlvar: scoring: 30 of 100 rollouts, about 7 minutes left",
    ]


@pytest.mark.parametrize("bars", [True, False])
def test_a_terminal_shows_one_line_that_fits_and_is_cleared(monkeypatch, bars):
    if bars:
        pytest.importorskip("tqdm", reason="needs tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", terminal := Stream(terminal=True))
    with streams.progress() as show:
        show("x" * 300 + STEERING)
        for done in range(3):
            show.count("scoring", done, 3)
    shown = terminal.getvalue()
    assert "\n" not in shown
    assert "\x9b" not in shown
    assert "scoring" in shown
    assert max(map(len, re.split("\r", shown))) <= 85  # with the code that clears
    assert shown.endswith("\r\x1b[K")
    with streams.progress(quiet=True) as show:
        show("reading")
    assert terminal.getvalue() == shown


def help_of(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    return capsys.readouterr().out


def examples(text):
    return re.findall(r"^  (rlvar .*)$", text.partition("example")[2], re.MULTILINE)


@pytest.mark.parametrize("command", ["", "report", "score", "covariance", "explain"])
def test_help_has_an_example_and_80_columns(capsys, monkeypatch, command):
    for columns in ("80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        text = help_of(capsys, command.split())
        assert max(map(len, text.splitlines())) <= 80
        assert examples(text)


@pytest.mark.parametrize("command", ["", "report", "covariance", "explain"])
def test_examples_of_the_help_run_as_written(tmp_path, capsys, monkeypatch, command):
    for package in ("matplotlib", "jinja2"):
        pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.chdir(tmp_path)
    for name in ("rollouts", "before", "after"):
        write(f"{name}.npz")
    completions(tmp_path / "completions.jsonl", reward="score")
    for example in examples(help_of(capsys, command.split())):
        assert main(shlex.split(example)[1:]) == 0, example
    assert capsys.readouterr().out
