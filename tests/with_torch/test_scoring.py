"""From a model and what a trainer wrote to a folder of rollouts, in one command."""

import json
import os
import re

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="needs tokenizers")
import rlvar  # noqa: E402
from rlvar.cli import main  # noqa: E402
from rlvar.torch import Sketch, scoring, token_scores  # noqa: E402
from rlvar.torch.pretrained import load_model, load_tokenizer, tokenised  # noqa: E402

CHARACTERS = "0123456789+= abc"
TEMPLATE = "{% for m in messages %}{{ m['content'] }}={% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama and a tokenizer of characters, as transformers saves them."""
    place = tmp_path_factory.mktemp("model")
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{c: i + 3 for i, c in enumerate(CHARACTERS)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<pad>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(place)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(vocabulary), **sizes, tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(place)
    return place


def rows(n=10):
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        response = rng.integers(3, 19, 1 + i % 4).tolist()
        found.append(
            {
                "step": 1,
                "prompt_idx": i // 2,
                "prompt_tokens": [1, 4 + i // 2, 5],
                "response_tokens": response,
                "reward": float(i % 3 == 0),
                "logprobs": (-rng.random(len(response))).tolist(),
                "each": rng.random(len(response)).tolist(),
            }
        )
    return found


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "run_rollouts_000000.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def score(*arguments):
    return main(["score", *map(str, arguments)])


def test_scores_of_a_file_are_those_of_its_tokens(tmp_path, folder, data, capsys):
    out = tmp_path / "out"
    assert score(folder, data, "--out", out, "--sketch", "5", "--temperature", "0.5") == 0
    assert "10 rollouts in 5 groups of up to 4 tokens" in capsys.readouterr().out
    rollouts = rlvar.load_rollouts(out)
    ids, mask = np.zeros((10, 7), int), np.zeros((10, 7))
    for n, row in enumerate(rows()):
        whole = row["prompt_tokens"] + row["response_tokens"]
        ids[n, : len(whole)], mask[n, 3 : len(whole)] = whole, 1
    attended = np.arange(7) < 3 + mask.sum(axis=1)[:, None]
    model = load_model(str(folder), "auto", "cpu")
    expected = token_scores(model, ids, attended, mask, sketch=Sketch(5), temperature=0.5)
    live = rollouts.live
    np.testing.assert_allclose(rollouts.padded().scores[live], expected.scores[live], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rollouts.logp, expected.logp, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rollouts.score_squares[live], expected.score_squares[live], atol=1e-6)
    np.testing.assert_array_equal(rollouts.groups, np.arange(10) // 2)
    np.testing.assert_array_equal(rollouts.rewards, [row["reward"] for row in rows()])
    np.testing.assert_array_equal(rollouts.behavior_logp[2, :3], rows()[2]["logprobs"])
    assert (rollouts.scores_of, rollouts.sketched) == (expected.scores_of, True)


def test_a_reward_for_each_token_and_exact_coordinates(tmp_path, folder, data):
    out = tmp_path / "out.npz"
    options = ("--sketch", "none", "--per-token-reward", "each")
    assert score(folder, data, "--out", out, *options) == 0
    rollouts = rlvar.load_rollouts(out)
    each = np.concatenate([row["each"] for row in rows()])
    np.testing.assert_array_equal(rollouts.rewards[rollouts.live], each)
    size = sum(each.numel() for each in load_model(str(folder), "auto", "cpu").parameters())
    assert (rollouts.shape[2], rollouts.sketched) == (size, False)
    assert sorted(os.listdir(tmp_path)) == ["out.npz", data.name]


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_a_run_that_was_stopped_continues_to_the_same_bits(tmp_path, folder, data, monkeypatch, capsys, name):
    monkeypatch.setattr(scoring, "_ROWS", 3)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = tmp_path / "whole" / name, tmp_path / "cut" / name
    assert score(folder, data, "--out", whole, "--sketch", "5") == 0
    blocks = []

    def stopped(*arguments, **options):
        blocks.append(1)
        if len(blocks) == 3:
            raise KeyboardInterrupt
        return token_scores(*arguments, **options)

    monkeypatch.setattr(scoring, "token_scores", stopped)
    capsys.readouterr()
    assert score(folder, data, "--out", cut, "--sketch", "5") == 130
    assert capsys.readouterr().err == "rlvar: stopped; the same command continues where it stopped\n"
    assert score(folder, data, "--out", cut, "--sketch", "6") == 2
    assert "it was begun with another sketch; " in capsys.readouterr().err
    assert score(folder, data, "--out", cut, "--sketch", "5") == 0
    assert len(blocks) == 5  # of four blocks one twice: the third was not written
    a, b = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
        for top in (tmp_path / "whole", tmp_path / "cut")
    )
    if name == "out":
        assert a == b
    one, other = rlvar.load_rollouts(whole), rlvar.load_rollouts(cut)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.logp, other.logp)
    assert a.keys() == b.keys()


def test_another_model_under_the_same_name_does_not_continue(tmp_path, folder, data, monkeypatch):
    recorded = rlvar.read_recorded(data)
    model = load_model(str(folder), "auto", "cpu")
    monkeypatch.setattr(scoring, "_ROWS", 3)
    monkeypatch.setattr(scoring, "token_scores", lambda *a, **o: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scoring.score_recorded(model, recorded, tmp_path / "out")
    assert not (tmp_path / "out").exists()  # nothing was written
    found = []
    monkeypatch.setattr(
        scoring,
        "token_scores",
        lambda *a, **o: found.append(0) or token_scores(*a, **o) if not found else 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        scoring.score_recorded(model, recorded, tmp_path / "out")
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    with pytest.raises(ValueError, match="it was begun with another model; "):
        scoring.score_recorded(model, recorded, tmp_path / "out")


def test_rollouts_without_a_token_keep_their_place(tmp_path, folder):
    texts = [("1+1=", ""), ("1+1=", "2"), ("1+1=", ""), ("1+1=", "11"), ("1+1=", "")]
    recorded = rlvar.RecordedRollouts("mine", "mine", np.arange(5.0), texts=texts)
    scoring.score_recorded(str(folder), recorded, tmp_path / "out", sketch=Sketch(2))
    rollouts = rlvar.load_rollouts(tmp_path / "out")
    np.testing.assert_array_equal(rollouts.live_steps, [0, 1, 0, 2, 0])
    np.testing.assert_array_equal(rollouts.rewards, np.arange(5.0))


def test_blocks_are_cut_by_rows_and_bytes_and_each_has_a_token():
    lengths = np.array([0, 0, 3, 1, 0, 5, 5, 0, 2, 0, 0])
    every = {
        (rows, size): list(scoring._blocks(lengths, size)) for rows in (1,) for size in (1, 1 << 24, 1 << 30)
    }
    for found in every.values():
        assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
        assert found[-1][1] == len(lengths)
        assert all(lengths[start:stop].any() for start, stop in found)
    assert [len(found) for found in every.values()] == [1, 5, 5]


def test_text_becomes_tokens_prompt_and_response_apart(folder):
    tokenizer = load_tokenizer(str(folder))
    ask = [{"role": "user", "content": "1+1"}]
    texts = [("1+1=", "2"), ("<s>1+1=", "2"), (ask, "2")]
    recorded = rlvar.RecordedRollouts("mine", "mine", np.zeros(3), texts=texts)
    found = tokenised(recorded, tokenizer)
    begun, plain = [1, 4, 13, 4, 14, 5], [4, 13, 4, 14, 5]
    assert [each.tolist() for each in found.ids] == [begun, begun, plain]
    assert [each.tolist() for each in found.masks] == [
        [False] * 5 + [True],
        [False] * 5 + [True],
        [False] * 4 + [True],
    ]
    assert any("prompt and response apart" in note for note in found.notes)
    empty = rlvar.RecordedRollouts("mine", "mine", np.zeros(1), texts=[([], "2")])
    with pytest.raises(ValueError, match="mine: rollout 0 "):
        tokenised(empty, tokenizer)


def test_the_report_scores_what_a_trainer_wrote_and_says_what_with(tmp_path, folder, data, capsys):
    options = ["--model", str(folder), "--sketch", "4", "--scores", str(tmp_path / "kept")]
    assert main(["report", str(data), *options, "--estimators", "single,rloo"]) == 0
    out = capsys.readouterr().out
    assert f"{data}(open-instruct),scoredby{folder}" in "".join(out.split())
    assert "Groups are by prompt_idx." in out
    assert "Verdict" in out
    assert rlvar.load_rollouts(tmp_path / "kept").shape == (10, 4, 4)
    assert main(["report", str(tmp_path / "kept"), "--model", str(folder)]) == 2
    assert "these rollouts have scores already; --model is for what trainers write" in capsys.readouterr().err


def refused(capsys, command, message):
    assert main(list(map(str, command))) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_what_cannot_be_scored_is_one_line(tmp_path, folder, data, capsys):
    out = ["--out", tmp_path / "out"]
    refused(capsys, ["score", tmp_path / "none", data, *out], "none: no such folder")
    (tmp_path / "empty").mkdir()
    refused(capsys, ["score", tmp_path / "empty", data, *out], "model")
    refused(capsys, ["score", folder, tmp_path / "none", *out], "none: No such file or directory")
    refused(
        capsys, ["score", folder, data, *out, "--sketch", "many"], "--sketch must be a number of directions"
    )
    refused(capsys, ["score", folder, data, *out, "--sketch", "0"], "k must be at least 1")
    refused(capsys, ["score", folder, data, *out, "--temperature", "0"], "temperature must be")
    refused(capsys, ["score", folder, data, *out, "--memory", "0"], "--memory must be")
    refused(capsys, ["score", folder, data, *out, "--reward", "x"], "there is no column 'x'")
    refused(capsys, ["score", folder, data, "--out", data], "it exists already; choose another place")
    refused(capsys, ["score", folder, data, "--out", tmp_path / "no" / "out"], "No such file or directory")
    (tmp_path / "r.npz").symlink_to(data)
    refused(capsys, ["score", folder, data, "--out", tmp_path / "r.npz"], "that is what is read")
    alone = tmp_path / "alone.jsonl"
    alone.write_text('{"reward": 1}\n{"reward": 0}\n')
    refused(capsys, ["score", folder, alone, *out], "neither token ids nor text to score")
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt_ids": [1], "response_ids": [99], "reward": 1}\n' * 2)
    refused(capsys, ["score", folder, other, *out], "input_ids has token 99")
    assert not (tmp_path / "out").exists()


def test_a_model_whose_files_lack_a_parameter_is_refused(tmp_path, folder):
    model = load_model(str(folder), "auto", "cpu")
    state = {name: each for name, each in model.state_dict().items() if "mlp.up_proj" not in name}
    model.save_pretrained(tmp_path / "m", state_dict=state)
    with pytest.raises(ValueError, match=r"its files lack 1 parameters, such as .*up_proj"):
        load_model(str(tmp_path / "m"), "auto", "cpu")


def test_pickles_of_slime(tmp_path, folder):
    samples = [
        {
            "group_index": i // 2,
            "index": i,
            "prompt": "q",
            "tokens": [1, 4, 5, 6, 7],
            "response_length": 3,
            "loss_mask": [1, 0, 1] if i else None,
            "reward": {"acc": float(i)},
            "rollout_log_probs": [-1.0, 0.0, -2.0],
            "remove_sample": i == 3,
            "status": "completed",
        }
        for i in range(4)
    ]
    torch.save({"rollout_id": 0, "samples": samples}, tmp_path / "rollout_0.pt")
    with pytest.raises(ValueError, match="it is a pickle"):
        rlvar.read_recorded(tmp_path / "rollout_0.pt")
    recorded = rlvar.read_recorded(tmp_path / "rollout_0.pt", reward="reward.acc", trust_pickle=True)
    assert recorded.format == "slime"
    np.testing.assert_array_equal(recorded.lengths, [3, 2, 2, 0])
    np.testing.assert_array_equal(recorded.masks[1], [0, 0, 1, 0, 1])
    np.testing.assert_array_equal(recorded.behavior_logp[1], [-1, -2])
    np.testing.assert_array_equal(recorded.groups, [0, 0, 1, 1])
    np.testing.assert_array_equal(recorded.rewards, np.arange(4.0))


@pytest.mark.parametrize("nested", [True, False])
def test_pickles_of_verl(tmp_path, nested):
    prompts, responses = [[4, 5], [4], [6, 7, 8], [6]], [[9], [9, 10, 11], [9, 10], [9]]

    def column(lists, dtype=torch.int64, left=False):
        tensors = [torch.tensor(each, dtype=dtype) for each in lists]
        if nested:
            return torch.nested.nested_tensor(tensors, layout=torch.jagged)
        sides = [(3 - len(each), 0) if left else (0, 3 - len(each)) for each in lists]
        return torch.stack([torch.nn.functional.pad(t, side) for t, side in zip(tensors, sides, strict=True)])

    ones = [[1] * len(each) for each in responses]
    table = {
        "prompts": column(prompts, left=True),
        "responses": column(responses),
        "response_mask": column(ones),
        "rm_scores": column(
            [[0.0] * (len(each) - 1) + [0.5 * len(each)] for each in responses], torch.float32
        ),
        "rollout_log_probs": column([[-1.0] * len(each) for each in responses], torch.bfloat16),
    }
    if not nested:
        before = column([[1] * len(each) for each in prompts], left=True)
        table["attention_mask"] = torch.cat([before, column(ones)], dim=1)
    keys = ["u0_0_0", "u1_0_0", "u0_1_0", "u1_1_0"]
    torch.save(
        {"tensordict": table, "tags": [{}] * 4, "keys": keys, "global_steps": 1}, tmp_path / "tq_batch.pt"
    )
    recorded = rlvar.read_recorded(tmp_path / "tq_batch.pt", trust_pickle=True)
    assert recorded.format == "verl"
    assert [each.tolist() for each in recorded.ids] == [
        p + r for p, r in zip(prompts, responses, strict=True)
    ]
    np.testing.assert_array_equal(recorded.rewards, [0.5, 1.5, 1.0, 0.5])
    np.testing.assert_array_equal(recorded.groups, [0, 1, 0, 1])
    np.testing.assert_array_equal(recorded.behavior_logp[1], [-1.0] * 3)
    each = rlvar.read_recorded(tmp_path / "tq_batch.pt", per_token_reward="rm_scores", trust_pickle=True)
    np.testing.assert_array_equal(each.token_rewards[1], [0, 0, 1.5])


@pytest.mark.parametrize("data", [[1, 2], {"a": 1}, {"samples": 3}, {"samples": [3]}, {"tensordict": {}}])
def test_other_pickles_are_refused_in_one_line(tmp_path, data):
    torch.save(data, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: "):
        rlvar.read_recorded(tmp_path / "x.pt", trust_pickle=True)


def test_examples_of_the_help_run_as_written(tmp_path, folder, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.rename("rollouts.jsonl")
    (tmp_path / "checkpoint").symlink_to(folder, target_is_directory=True)
    with pytest.raises(SystemExit, match="0"):
        main(["score", "--help"])
    examples = re.findall(r"^  rlvar (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert examples == ["score checkpoint/ rollouts.jsonl --out scores", "report scores"]
    for example in examples:
        assert main(example.split()) == 0
