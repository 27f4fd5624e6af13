"""What trainers write, with exactly their columns, and what is no such thing."""

import json
import zipfile

import numpy as np
import pytest

import rlvar
from rlvar.recorded import is_recorded, read_recorded


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def nemo_rl(n=8):
    """Each value in a list of one, tokens padded on the right; two rollouts a prompt."""
    rows = []
    for i in range(n):
        prompt, response, pad = [5, 6, i // 2], [9] * (1 + i % 3), [0] * (2 - i % 3)
        mask = [0] * 3 + [1] * len(response) + [0] * len(pad)
        logp = [0.0] * 3 + [-0.5 - t for t in range(len(response))] + [0.0] * len(pad)
        rows.append(
            {
                "rewards": [float(i % 2)],
                "input_lengths": [3 + len(response)],
                "token_loss_mask": [mask],
                "sample_loss_mask": [1.0],
                "advantages": [[0.0] * 6],
                "generation_logprobs": [logp],
                "prev_logprobs": [[-7.0] * 6],
                "token_ids": [prompt + response + pad],
                "idx": i,
            }
        )
    return rows


def open_instruct(n=6, step=4):
    return [
        {
            "step": step,
            "sample_idx": i,
            "prompt_idx": i // 2,
            "prompt_tokens": [1, 2],
            "response_tokens": [3, 4, 5][: 1 + i % 3],
            "reward": float(i),
            "advantage": 0.0,
            "finish_reason": "stop",
            "dataset": "math",
            "ground_truth": None,
            "request_info": {"num_calls": 0, "tool_calleds": False},
            "logprobs": [-1.0, -2.0, -3.0][: 1 + i % 3],
        }
        for i in range(n)
    ]


def verl_text(n=4):
    return [
        {"input": f"user q{i // 2}", "output": "a", "gts": "a", "score": i % 2, "step": 1, "acc": i % 2}
        for i in range(n)
    ]


def test_nemo_rl(tmp_path):
    recorded = read_recorded(lines(tmp_path / "train_data_step3.jsonl", nemo_rl()))
    assert recorded.format == "NeMo-RL"
    np.testing.assert_array_equal(recorded.rewards, [0, 1] * 4)
    np.testing.assert_array_equal(recorded.groups, [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(recorded.lengths, [1, 2, 3, 1, 2, 3, 1, 2])
    # What follows the response is gone, and log-probabilities are those of its tokens.
    np.testing.assert_array_equal(recorded.ids[4], [5, 6, 2, 9, 9])
    np.testing.assert_array_equal(recorded.masks[4], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(recorded.behavior_logp[4], [-0.5, -1.5])


def test_with_dynamic_sampling_the_rewards_of_nemo_rl_are_those_it_trained_on(tmp_path):
    rows = [{**row, "filtered_rewards": [7.0]} for row in nemo_rl()]
    np.testing.assert_array_equal(read_recorded(lines(tmp_path / "x", rows)).rewards, [7.0] * 8)


def test_a_rollout_that_the_loss_leaves_out_keeps_its_reward_and_its_group(tmp_path):
    rows = nemo_rl()
    rows[3]["sample_loss_mask"] = [0.0]
    recorded = read_recorded(lines(tmp_path / "x", rows))
    assert recorded.lengths[3] == 0
    assert recorded.rewards[3] == 1
    assert recorded.groups[3] == recorded.groups[2]
    assert any("left 1 of 8 rollouts out of the loss" in note for note in recorded.notes)


def test_open_instruct(tmp_path):
    recorded = read_recorded(lines(tmp_path / "run_rollouts_000000.jsonl", open_instruct()))
    assert recorded.format == "open-instruct"
    np.testing.assert_array_equal(recorded.groups, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(recorded.ids[2], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(recorded.behavior_logp[2], [-1, -2, -3])


def test_groups_of_different_training_steps_are_apart_and_one_step_can_be_taken(tmp_path):
    path = lines(tmp_path / "x", [*open_instruct(4, step=1), *open_instruct(4, step=2)])
    both = read_recorded(path)
    np.testing.assert_array_equal(both.groups, [0, 0, 1, 1, 2, 2, 3, 3])
    assert any("2 training steps" in note for note in both.notes)
    assert len(read_recorded(path, step=2)) == 4
    with pytest.raises(ValueError, match=r"x: it has no rollouts of step 3$"):
        read_recorded(path, step=3)


def test_tools_that_open_instruct_does_not_mark_are_noted(tmp_path):
    rows = open_instruct()
    rows[0]["request_info"]["tool_calleds"] = True
    notes = read_recorded(lines(tmp_path / "x", rows)).notes
    assert any("1 of 6 rollouts called tools" in note for note in notes)


def test_texts_of_verl_and_its_keys_as_groups(tmp_path):
    recorded = read_recorded(lines(tmp_path / "1.jsonl", verl_text()))
    assert (recorded.format, recorded.texts[0]) == ("verl's text", ("user q0", "a"))
    np.testing.assert_array_equal(recorded.groups, [0, 0, 1, 1])
    rows = [{**row, "uid": f"ab-{i % 2}_{i // 2}_0"} for i, row in enumerate(verl_text())]
    np.testing.assert_array_equal(read_recorded(lines(tmp_path / "2.jsonl", rows)).groups, [0, 1, 0, 1])


def test_completions_of_trl_sum_reward_functions_and_ignore_those_that_gave_none(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = {
        "step": [5] * 4,
        "prompt": ["a", "a", "b", "b"],
        "completion": ["w", "x", "y", "z"],
        "accuracy_reward": [0.0, 1.0, None, 1.0],
        "format_reward": [0.5, 0.5, 0.5, 0.0],
        "length": [3.0, 3.0, 3.0, 3.0],
        "advantage": [0.0] * 4,
    }
    pq.write_table(pa.table(table), tmp_path / "completions_00005.parquet")
    recorded = read_recorded(tmp_path / "completions_00005.parquet")
    assert recorded.format == "TRL's completions"
    np.testing.assert_array_equal(recorded.rewards, [0.5, 1.5, 0.5, 1.0])
    assert any("the sum of accuracy_reward, format_reward" in note for note in recorded.notes)
    chosen = read_recorded(tmp_path / "completions_00005.parquet", reward="format_reward,length")
    np.testing.assert_array_equal(chosen.rewards, [3.5, 3.5, 3.5, 3.0])


def test_one_line_of_ms_swift_holds_a_whole_step(tmp_path):
    row = {
        "gen_step": [0] * 4,
        "prompt": ["a", "a", "b", "b"],
        "completion": list("wxyz"),
        "Accuracy": [0.0, 1.0, 1.0, 1.0],
        "advantages": [0.0] * 4,
    }
    recorded = read_recorded(lines(tmp_path / "completions.jsonl", [row]))
    assert recorded.format == "ms-swift's completions"
    np.testing.assert_array_equal(recorded.rewards, [0, 1, 1, 1])
    np.testing.assert_array_equal(recorded.groups, [0, 0, 1, 1])
    row["completion"] = list("xyz")
    with pytest.raises(ValueError, match="completion has 3 values, but prompt 4"):
        read_recorded(lines(tmp_path / "completions.jsonl", [row]))


def test_parquet_and_json_lines_with_the_same_columns_read_the_same(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = open_instruct()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p")
    one, other = read_recorded(tmp_path / "p"), read_recorded(lines(tmp_path / "j", rows))
    assert one.notes == other.notes
    for name in ("rewards", "groups", "lengths"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("ids", "masks", "behavior_logp"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_array_equal(a, b)


def test_columns_are_named(tmp_path):
    rows = [
        {"q": [1, 2], "a": [3, 4, 5], "m": [1, 0, 1], "r": {"total": 2.0}, "each": [0.0, 1.0, 1.0], "of": "x"}
    ] * 2
    path = lines(tmp_path / "x", rows)
    columns = {"prompt": "q", "response": "a", "mask": "m", "reward": "r.total", "group": "of"}
    recorded = read_recorded(path, **columns, per_token_reward="each")
    np.testing.assert_array_equal(recorded.masks[0], [0, 0, 1, 0, 1])
    np.testing.assert_array_equal(recorded.rewards, [2.0, 2.0])
    # The reward of a token that the policy did not choose is due to the last of its own before.
    np.testing.assert_array_equal(recorded.token_rewards[0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"response: there is no column 'b'; there are q, a, m, r, each, of"):
        read_recorded(path, prompt="q", response="b", reward="r.total")


def test_known_columns_can_be_left_out(tmp_path):
    path = lines(tmp_path / "x", open_instruct())
    assert read_recorded(path, logp="none").behavior_logp is None
    np.testing.assert_array_equal(read_recorded(path, group="none").groups, [0] * 6)


def test_numbers_for_each_token_make_a_reward_by_their_sum(tmp_path):
    rows = [{"prompt_ids": [1], "response_ids": [2, 3], "reward": [0.25, 0.5]}] * 2
    np.testing.assert_array_equal(read_recorded(lines(tmp_path / "x", rows)).rewards, [0.75, 0.75])


def test_chat_messages_are_a_prompt_or_prompt_and_response(tmp_path):
    ask, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
    rows = [{"messages": [ask, answer], "score": 1}, {"messages": [ask, answer], "score": 0}]
    assert read_recorded(lines(tmp_path / "x", rows)).texts == [([ask], "yo")] * 2
    rows = [{"prompt": [ask], "completion": [answer], "score": 1}] * 2
    assert read_recorded(lines(tmp_path / "x", rows)).texts == [([ask], "yo")] * 2
    with pytest.raises(ValueError, match="line 1: a response must be text or one message of the assistant"):
        read_recorded(lines(tmp_path / "x", [{"prompt": "a", "completion": [answer, ask], "score": 1}]))


def test_a_temperature_is_taken_if_all_have_the_same(tmp_path):
    row = {"prompt": "a", "completion": "b", "reward": 1.0}
    path = lines(tmp_path / "x", [{**row, "temperature": 0.7}] * 2)
    assert read_recorded(path).temperature == 0.7
    with pytest.raises(ValueError, match=r"several policies, of temperatures 0.7 to 1$"):
        read_recorded(lines(tmp_path / "x", [{**row, "temperature": t} for t in (0.7, 1.0)]))


PROMPTED = '{"prompt_ids": [1], "response_ids": [2, 3], "reward": 1%s}\n'
BAD = {
    "": "it has no recorded rollouts",
    "\x00\x01\x02": "it has no recorded rollouts",
    "[1]\n": "line 1 is a list, but JSON Lines have one object per line",
    "{}\n": "there is no column of rewards among none",
    '{"a": 1, "b": "x"}\n': "there is no column of rewards among a, b; name it",
    PROMPTED % "" + '{"prompt_ids": [1], "resp': "line 2 is not JSON: Unterminated string",
    PROMPTED % "" + '{"prompt_ids": [1], "reward": 1}': "line 2: response_ids is missing",
    PROMPTED % "" + '{"prompt_ids": [1], "response_ids": [2]}': "line 2: its reward (reward) is missing",
    PROMPTED.replace("1%s", "NaN"): "line 1: its reward (reward) is missing or NaN; take that rollout out",
    PROMPTED.replace("1%s", "1e999"): "line 1: its reward (reward) is not finite",
    PROMPTED.replace("1%s", '"1"'): 'line 1: reward must be a number, got "1"',
    PROMPTED.replace("1%s", '{"acc": 1}'): "name one of its keys, as reward.acc",
    PROMPTED.replace("[2, 3]", '[2, "x"]') % "": 'must be a list of token ids, got a list with "x"',
    PROMPTED.replace("[2, 3]", "[2, 2.5]") % "": "must be a list of token ids, got a list with 2.5",
    PROMPTED.replace("[2, 3]", "[true]") % "": "must be a list of token ids",
    PROMPTED.replace("[2, 3]", "[[2], [3, 4]]") % "": "must be a list of token ids",
    PROMPTED.replace("[2, 3]", "[-2]") % "": "must be token ids of 0 or more, got -2",
    PROMPTED.replace("[2, 3]", "[9" + "9" * 30 + "]") % "": "must be a list of token ids",
    PROMPTED.replace("[1]", "[]") % "": "the response starts at the first token, without a prompt before it",
    PROMPTED % ', "logprobs": [-1]': "logprobs has 1 numbers, but there are 2 tokens of the response",
    PROMPTED % ', "logprobs": [-1, null]': "logprobs is not a number for token 1 of the response",
    PROMPTED % ', "response_mask": [1, 2]': "response_mask must be 0 or 1 for each token",
    PROMPTED % ', "group": [1]': "group must be a string or a number, got a list with 1",
    PROMPTED % ', "group": NaN': "group must be a string or a number, got NaN",
    "[" * 100_000: "line 1 is nested too deeply",
    PROMPTED % ("0" * 5000): "line 1 is not JSON",
    '{"prompt": "\x1b[31m", "completion": "a", "reward": 1}': "not JSON: Invalid control character",
    '{"tokens": [1, 2], "reward": 1, "response_length": 3}': "must be a whole number from 0 to 2",
    '{"prompt": "a", "completion": "b", "advantage": 0, "x": 1, "y": 2}': "which column is the reward: x, y?",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_what_does_not_fit_is_one_line_that_names_the_file(tmp_path, text):
    path = tmp_path / "f\x1b[31mé.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"f\\x1b\[31mé\.jsonl: ") as caught:
        read_recorded(path)
    message = str(caught.value)
    assert BAD[text] in message
    assert message.isprintable()
    assert len(message) < 600


def test_damaged_and_foreign_files_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "p").write_bytes(b"PAR1" + bytes(range(200)))
    with pytest.raises(ValueError, match=r"p: "):
        read_recorded(tmp_path / "p")
    rlvar.save_rollouts(tmp_path / "r.npz", rlvar.datasets.cartpole())
    for path in (tmp_path / "r.npz", tmp_path):
        assert not is_recorded(path)
        with pytest.raises(ValueError, match="it has no recorded rollouts"):
            read_recorded(path)
    with pytest.raises(FileNotFoundError):
        read_recorded(tmp_path / "none")
    with pytest.raises(ValueError, match="it is a device"):
        read_recorded("/dev/null")


def test_a_line_of_any_length_ends_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("rlvar.recorded.tables._LINE", 1000)
    (tmp_path / "x").write_text('{"prompt": "' + "a" * 5000)
    with pytest.raises(ValueError, match="line 1 is longer than"):
        read_recorded(tmp_path / "x")


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was loaded')",)


def test_pickles_are_refused_unloaded_and_it_says_why(tmp_path):
    import pickle

    with zipfile.ZipFile(tmp_path / "tq_batch.pt", "w") as archive:
        archive.writestr("tq_batch/data.pkl", pickle.dumps(Trap()))
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("tq_batch.pt", "old.pt"):
        assert is_recorded(tmp_path / name)
        with pytest.raises(ValueError, match="it is a pickle, and loading one runs any code in it"):
            read_recorded(tmp_path / name)


def test_groups_of_one_are_none(tmp_path):
    recorded = read_recorded(
        lines(tmp_path / "x", [{"prompt": p, "completion": "b", "reward": 1} for p in "abc"])
    )
    assert recorded.groups is None
    assert any("no two rollouts share one" in note for note in recorded.notes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rewards": [1.0, np.nan]}, "rewards must have one finite number for each rollout"),
        ({"rewards": [[1.0, 2.0]]}, "rewards must have one finite number for each rollout"),
        ({"groups": [1]}, "groups must have shape"),
        ({"ids": [[1, 2], [3]]}, "ids and masks go together: pass both or neither"),
        ({"ids": [[1, 2]], "masks": [[False, True]]}, "ids must have one row for each of 2 rollouts, got 1"),
        ({"ids": [[1, 2], [3]], "masks": [[False, True]] * 2}, r"masks\[1\] must have 1 values, got 2"),
        (
            {"ids": [[1, 2]] * 2, "masks": [[False, True]] * 2, "behavior_logp": [[-1.0], []]},
            r"behavior_logp\[1\] must have 1 values, got 0",
        ),
    ],
)
def test_rows_that_do_not_fit_each_other_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        rlvar.RecordedRollouts("mine", "mine", **{"rewards": [1.0, 2.0], **arrays})
