"""A folder of scores that grows: whatever ends the process, the next one gives the same bits."""

import errno
import json
import os

import numpy as np
import pytest

import rlvar
from rlvar.recorded import folder
from rlvar.recorded.folder import ScoreFolder

LENGTHS = np.array([3, 0, 2, 4, 1])
KEY = {"model": "a", "temperature": 1.0}
ENDS = [(0, 2), (2, 4), (4, 5)]


def blocks(start, stop, lengths=LENGTHS):
    """The rows of some rollouts, of which each number says where it belongs."""
    first, last = lengths[:start].sum(), lengths[:stop].sum()
    rows = np.arange(first, last, dtype=np.float32)
    return {
        "logp": -rows.astype(np.float64),
        "score_squares": rows.astype(np.float64),
        "scores": np.stack([rows, 10 * rows], axis=1),
    }


def write(place, ends=ENDS, key=KEY, lengths=LENGTHS, finish=True, archive=None):
    with ScoreFolder(place, key, lengths) as target:
        for start, stop in ends:
            if stop > target.done:
                target.append(stop - start, blocks(start, stop, lengths), "all of it", True)
        if finish:
            target.finish({"rewards": np.arange(float(len(lengths)))}, archive)


def contents(place):
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_it_is_read_as_rollouts(tmp_path):
    write(tmp_path / "out")
    rollouts = rlvar.load_rollouts(tmp_path / "out")
    np.testing.assert_array_equal(rollouts.live_steps, LENGTHS)
    np.testing.assert_array_equal(rollouts.scores, blocks(0, 5)["scores"])
    np.testing.assert_array_equal(rollouts.logp[rollouts.live], blocks(0, 5)["logp"])
    assert (rollouts.scores_of, rollouts.sketched) == ("all of it", True)


@pytest.mark.parametrize("cuts", [0, 1, 2, 3])
def test_a_killed_run_is_refused_and_the_next_continues_to_the_same_bytes(tmp_path, cuts):
    write(tmp_path / "whole")
    # A kill leaves the process no time to tidy up, and perhaps half of a block.
    target = ScoreFolder(tmp_path / "cut", KEY, LENGTHS)
    for start, stop in ENDS[:cuts]:
        target.append(stop - start, blocks(start, stop), "all of it", True)
    os.close(target._handle)
    if cuts:
        with open(tmp_path / "cut" / "scores.npy.part", "ab") as file:
            file.write(b"half of a block")
    with pytest.raises(ValueError, match="cut: its scores are not complete"):
        rlvar.load_rollouts(tmp_path / "cut")
    write(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("kept", [1, 2, 3, 4, 5, 6])
def test_a_run_that_is_killed_while_it_gives_files_their_names_is_finished_by_the_next(
    tmp_path, monkeypatch, kept
):
    write(tmp_path / "whole")
    write(tmp_path / "cut", finish=False)
    left = [kept]
    replace = os.replace

    def stop(*names):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="its scores are not complete"):
        rlvar.load_rollouts(tmp_path / "cut")
    write(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_what_was_begun_with_other_things_is_refused_by_name(tmp_path):
    write(tmp_path / "out", ENDS[:1], finish=False)
    with pytest.raises(ValueError, match="out: it was begun with another model and another temperature; "):
        write(tmp_path / "out", key={"model": "b", "temperature": 0.5})
    write(tmp_path / "out")


def test_nothing_that_is_there_is_written_over(tmp_path):
    write(tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for name in ("out", "mine", "file"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FileExistsError):
            write(tmp_path / name)
        assert before == sorted(tmp_path.rglob("*"))


def test_an_archive_holds_the_same_and_the_folder_is_gone(tmp_path):
    write(tmp_path / "out")
    write(tmp_path / "r.npz.scoring", archive=tmp_path / "r.npz")
    one, other = rlvar.load_rollouts(tmp_path / "out"), rlvar.load_rollouts(tmp_path / "r.npz")
    for name in ("scores", "rewards", "lengths", "logp", "score_squares", "scores_of", "sketched"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert sorted(os.listdir(tmp_path)) == ["out", "r.npz"]


def test_a_full_disk_is_an_error_that_names_the_file_and_the_run_continues_later(tmp_path, monkeypatch):
    write(tmp_path / "whole")
    write(tmp_path / "out", ENDS[:1], finish=False)
    monkeypatch.setattr(
        folder.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    with pytest.raises(OSError, match=r"No space left.*logp.npy.part"):
        write(tmp_path / "out")
    monkeypatch.undo()
    assert json.loads((tmp_path / "out" / "scoring.json").read_text())["rollouts"] == 2
    write(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_error_before_the_first_block_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), ScoreFolder(tmp_path / "out", KEY, LENGTHS):
        raise RuntimeError
    assert not (tmp_path / "out").exists()


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with ScoreFolder(tmp_path / "out", KEY, LENGTHS):  # noqa: SIM117 - one after the other
        with pytest.raises(ValueError, match="out: another process is scoring into it"):
            ScoreFolder(tmp_path / "out", KEY, LENGTHS)


@pytest.mark.parametrize("state", [b"", b"{}", b"[]", b'{"key": {}, "rollouts": "2"}', b"\xff"])
def test_a_damaged_state_is_refused_in_one_line(tmp_path, state):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scoring.json").write_bytes(state)
    with pytest.raises(ValueError, match=r"scoring\.json: "):
        write(tmp_path / "out")


def test_files_that_were_cut_short_are_noticed(tmp_path):
    write(tmp_path / "out", ENDS[:2], finish=False)
    os.truncate(tmp_path / "out" / "scores.npy.part", 150)
    with pytest.raises(ValueError, match=r"scores\.npy\.part: it was cut short"):
        write(tmp_path / "out")


def test_as_many_steps_as_rollouts_keep_their_terminal_rewards(tmp_path):
    lengths = np.array([1, 0, 2, 1, 1])
    write(tmp_path / "out", lengths=lengths)
    rollouts = rlvar.load_rollouts(tmp_path / "out")
    np.testing.assert_array_equal(rollouts.live_steps, lengths)
    np.testing.assert_array_equal(rollouts.rewards, np.arange(5.0))
    np.testing.assert_array_equal(rollouts.scores[rollouts.live], blocks(0, 5, lengths)["scores"])
