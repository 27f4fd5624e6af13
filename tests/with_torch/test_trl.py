"""Runs of TRL, watched: what goes in, what comes out, and that the training does not notice."""

import contextlib
import gc
import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra rlvar[torch]")
trl = pytest.importorskip("trl", reason="needs the extra rlvar[trl]")

import transformers  # noqa: E402

import rlvar  # noqa: E402
import rlvar.torch.trl  # noqa: E402
from rlvar.torch import Probe, trl_batches  # noqa: E402
from rlvar.torch.trl import watch  # noqa: E402
from tiny_trainers import CHARACTERS, PROMPTS, by_tokens, model, trainer  # noqa: E402

GRPO, RLOO = trl.GRPOTrainer, trl.RLOOTrainer
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*activation_checkpointing:FutureWarning",  # transformers' own, about what TRL calls
)


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Each training ends with a collection of garbage, which need not look at all that is imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def pages(request, monkeypatch):
    """Only the test of the page waits for pictures."""
    if "page" not in request.function.__name__:
        monkeypatch.setattr(rlvar.torch.trl.Watcher, "_write_page", lambda self: None)


@pytest.fixture
def fed(monkeypatch):
    """What probes are given and return, call by call: arguments by name, with "rollouts"."""
    calls, made = [], []
    names = ("input_ids", "attention_mask", "response_mask", "rewards")
    update = Probe.update

    def spy(self, *args, **kwargs):
        rollouts = update(self, *args, **kwargs)
        calls.append({**dict(zip(names, args, strict=True)), **kwargs, "rollouts": rollouts, **made[-1]})
        return rollouts

    def gathered(make):
        rows = trl_batches.gathered(make)
        made.append({"advantages": rows.advantages})
        return rows

    monkeypatch.setattr(rlvar.torch.trl, "gathered", gathered)
    monkeypatch.setattr(Probe, "update", spy)
    return calls


def course(watched):
    """What a training came to: parameters, what it logged but for times and ours, states of generators."""
    logged = [
        {key: each for key, each in record.items() if not key.startswith("rlvar") and "time" not in key}
        for record in watched.state.log_history
    ]
    logged = [{key: each for key, each in one.items() if "per_second" not in key} for one in logged]
    states = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    return [p.tolist() for p in watched.model.state_dict().values()], logged, states


#: Completions are sampled while gradients are held, by a model with dropout; penalised by a reference.
HARD = {
    GRPO: {
        "gradient_accumulation_steps": 3,
        "steps_per_generation": 1,
        "num_iterations": 2,
        "max_steps": 3,
        "bf16": False,  # which TRL has on
        "model": lambda: model(attention_dropout=0.3),
    },
    RLOO: {"temperature": 0.7, "top_k": 9, "gradient_checkpointing": True},
}


@pytest.mark.parametrize("kind", [GRPO, RLOO])
def test_the_training_takes_the_same_course_to_the_bit(tmp_path, kind):
    def run(watching):
        made = trainer(tmp_path, kind, **HARD[kind])
        watcher = watch(made, every=1, whole_every=1) if watching else None
        made.train()
        if watcher is not None:
            assert watcher.error is None
            assert watcher.monitor.steps > 1
            assert watcher.whole.steps > 1
        return course(made)

    assert run(True) == run(False)


def lengths(completion_ids, **_):
    return [None if len(ids) == 5 else float(len(ids)) for ids in completion_ids]


def some(prompts, completion_ids, **rest):
    found = by_tokens(prompts, completion_ids, **rest)
    return [None if each in (2, 3) else each for each in found]


@pytest.mark.parametrize("kind", [GRPO, RLOO])
def test_weighted_rewards_with_gaps_make_the_advantages_that_are_trained_on(tmp_path, fed, kind):
    made = trainer(tmp_path, kind, rewards=[some, lengths], reward_weights=[0.5, 2.0], max_steps=3)
    watcher = watch(made, every=1, whole_every=None)
    made.train()
    assert watcher.error is None
    left_out = 0
    for call in fed:
        ids, mask = call["input_ids"].numpy(), call["response_mask"].numpy().astype(bool)
        here = np.flatnonzero(~np.isnan(call["rewards"]))
        left_out += len(ids) - len(here)
        prompts = ["".join(CHARACTERS[token] for token in row[row > 0]) for row in ids[:, : -mask.shape[1]]]
        completions = [row[-mask.shape[1] :][live].tolist() for row, live in zip(ids, mask, strict=True)]
        parts = some(prompts, completions), lengths(completions)
        for n in here:
            assert call["rewards"][n] == 0.5 * (parts[0][n] or 0.0) + 2.0 * (parts[1][n] or 0.0)
        assert all(len(set(np.array(prompts)[call["groups"] == g])) == 1 for g in range(3))
        weights = {GRPO: rlvar.estimator("grpo", eps=1e-4), RLOO: rlvar.estimator("rloo")}[kind]
        expected = np.zeros(len(ids))
        expected[here] = weights.weights(call["rollouts"])[:, 0]
        assert call["advantages"].numpy() == pytest.approx(expected, abs=1e-5)
    assert 0 < left_out < 12


def test_the_kl_penalty_is_in_the_rewards_but_for_its_mean(tmp_path, fed):
    peft = pytest.importorskip("peft", reason="needs peft")
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    made = trainer(tmp_path, RLOO, peft=adapters, beta=0.5)
    watcher = watch(made, every=1, whole_every=2)
    made.train()
    assert watcher.error is None
    for call in fed:
        ids, mask = call["input_ids"].numpy(), call["response_mask"].numpy().astype(bool)
        completions = [row[-mask.shape[1] :][live].tolist() for row, live in zip(ids, mask, strict=True)]
        prompts = ["".join(CHARACTERS[token] for token in row[row > 0]) for row in ids[:, : -mask.shape[1]]]
        plain = np.array(by_tokens(prompts, completions))
        assert np.abs(call["rewards"] - plain).max() > 0.01
        means = [np.bincount(call["groups"], each) / 4 for each in (plain, call["rewards"])]
        assert means[0] == pytest.approx(means[1], abs=1e-5)
        assert call["advantages"].numpy() == pytest.approx(
            rlvar.rloo(call["rewards"], call["groups"]), abs=1e-5
        )
    assert "trainable parameters" in watcher.whole.scores_of
    assert any("KL penalty (beta=0.5) is in the rewards" in note for note in watcher.notes)


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        (GRPO, {"scale_rewards": "none", "loss_type": "dr_grpo"}, "dr-grpo"),
        (GRPO, {"scale_rewards": "batch"}, "grpo(scale='batch')"),
        (GRPO, {"loss_type": "grpo"}, "grpo-over-length"),
        (GRPO, {"multi_objective_aggregation": "normalize_then_sum"}, "gdpo"),
        (RLOO, {"normalize_advantages": True}, "rloo-whitened"),
    ],
)
def test_the_reference_is_what_the_settings_make(tmp_path, fed, kind, settings, name):
    made = trainer(tmp_path, kind, **settings, max_steps=1)
    watcher = watch(made, every=1, whole_every=None)
    made.train()
    assert watcher.error is None
    assert watcher.monitor.reference == name
    (call,) = fed
    weights = watcher._compared[0].weights(call["rollouts"])
    live = call["rollouts"].live
    over = call["rollouts"].token_counts if "length" in name else np.ones(12)
    advantages = (call["advantages"].numpy() / over)[:, None]
    assert np.where(live, weights, 0.0) == pytest.approx(np.where(live, advantages, 0.0), abs=1e-4)


def test_estimators_without_what_they_need_are_refused(tmp_path):
    with pytest.raises(ValueError, match="estimator 'gae' needs values, which GRPOTrainer does not have"):
        watch(trainer(tmp_path), estimators=["rloo", "gae"])


def test_each_batch_of_completions_counts_once_and_evaluations_do_not(tmp_path, fed):
    made = trainer(
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        steps_per_generation=6,
        num_iterations=2,
        max_steps=8,
        eval_dataset=PROMPTS.select(range(3)),
        eval_strategy="steps",
        eval_steps=4,
        per_device_eval_batch_size=12,
    )
    watcher = watch(made, every=1, whole_every=2)
    made.train()
    assert watcher.error is None
    assert [call["step"] for call in fed] == [0, 4]  # two steps twice with each batch
    assert {len(call["rewards"]) for call in fed} == {24}
    assert {call["batch"] for call in fed} == {12}
    assert (watcher.monitor.steps, watcher.whole.steps) == (2, 1)
    logged = [set(record) for record in made.state.log_history]
    assert sum("rlvar/seconds" in keys for keys in logged) == 2
    assert not any("rlvar/seconds" in keys and "eval_loss" in keys for keys in logged)


def test_the_precision_is_that_of_the_training(tmp_path, fed):
    options = {"max_steps": 1, "temperature": 0.5}
    for precision in ({"bf16": False}, {"bf16": True}, {"model": lambda: model().to(torch.bfloat16)}):
        made = trainer(tmp_path, **options, **precision)
        watcher = watch(made, every=1, whole_every=1)
        made.train()
        assert watcher.error is None
        assert watcher.whole["grpo"].variance.value > 0
    precise, mixed, rough = (np.where(call["rollouts"].live, call["rollouts"].logp, 0.0) for call in fed)
    assert mixed == pytest.approx(precise, abs=0.01)
    assert not np.array_equal(mixed, precise)
    assert rough == pytest.approx(precise, abs=0.1)


def test_what_is_logged_reaches_every_logger_and_is_json(tmp_path):
    heard = []

    class Logger(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append(dict(logs))

    made = trainer(tmp_path, max_steps=4)
    made.add_callback(Logger())
    watcher = watch(made, every=2, whole_every=4, estimators=["grpo", "rloo"])
    made.train()
    assert ["rlvar/seconds" in logs for logs in heard] == [True, False, True, False, False]
    assert ["rlvar/seconds" in record for record in made.state.log_history] == [
        True,
        False,
        True,
        False,
        False,
    ]
    json.dumps(heard, allow_nan=False)
    last = heard[2]
    assert last["rlvar/final_norm/steps"] == 2
    assert last["rlvar/all/steps"] == 1
    assert "rlvar/final_norm/ratio/rloo" in last
    assert "rlvar/all/ratio/rloo" in last
    assert 0 < last["rlvar/seconds"] <= watcher.seconds


def test_rows_out_of_reward_functions_are_those_out_of_the_trainer(tmp_path, fed, monkeypatch):
    rewards = [some, lengths]
    inside = trainer(tmp_path, rewards=rewards)
    watch(inside, every=1, whole_every=None)
    inside.train()
    monkeypatch.setitem(trl_batches._PARAMETERS, "_score_completions", 2)
    outside = trainer(tmp_path, rewards=list(rewards))
    with pytest.warns(UserWarning, match="GRPOTrainer has no _score_completions. rlvar reads the arguments"):
        watcher = watch(outside, every=1, whole_every=None)
    outside.train()
    assert watcher.error is None
    assert course(inside) == course(outside)
    assert len(fed) == 4
    for first, second in zip(fed[:2], fed[2:], strict=True):
        first, second = first["rollouts"], second["rollouts"]
        assert np.array_equal(first.scores, second.scores)
        assert np.array_equal(first.groups, second.groups)
        assert np.array_equal(first.rewards, second.rewards)
    watcher.remove()
    assert outside.reward_funcs == rewards


class Renamed(dict):
    """What a later TRL may return."""

    def __contains__(self, key):
        return key != "prompt_mask" and super().__contains__(key)


class Later(GRPO):
    def _generate_and_score_completions(self, inputs):
        return Renamed(super()._generate_and_score_completions(inputs))


def test_where_trl_returns_other_keys_the_next_batch_is_read_otherwise(tmp_path, fed, monkeypatch):
    monkeypatch.setitem(sys.modules["tiny_trainers"].CONFIGS, Later, trl.GRPOConfig)
    made = trainer(tmp_path, Later, max_steps=3)
    watcher = watch(made, every=1, whole_every=None)
    with pytest.warns(UserWarning, match="returns no prompt_mask. rlvar reads the arguments of the reward"):
        made.train()
    assert watcher.error is None
    assert len(fed) == 2


def test_a_failure_is_one_warning_and_ctrl_c_passes(tmp_path, monkeypatch):
    plain = trainer(tmp_path, max_steps=3)
    plain.train()
    raised = RuntimeError("no memory")

    def fail(self, *args, **kwargs):
        raise raised

    monkeypatch.setattr(Probe, "update", fail)
    made = trainer(tmp_path, max_steps=3)
    watcher = watch(made, every=1, whole_every=1)
    with pytest.warns(UserWarning, match="rlvar failed") as caught:
        made.train()
    said = [str(each.message) for each in caught if "rlvar" in str(each.message)]
    assert said == ["rlvar failed while measuring a batch; the training goes on (RuntimeError: no memory)"]
    assert watcher.error is raised
    assert course(made) == course(plain)
    raised = KeyboardInterrupt()
    made = trainer(tmp_path)
    watch(made, every=1)
    with pytest.raises(KeyboardInterrupt):
        made.train()


@pytest.mark.filterwarnings("ignore:.*do not match the ones:UserWarning")
def test_a_resumed_run_says_what_the_whole_one_says(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}

    def run(resume):
        made = trainer(tmp_path, **options)
        watcher = watch(made, every=1, whole_every=2)
        made.train(resume_from_checkpoint=resume)
        assert watcher.error is None
        return watcher

    whole, resumed = run(None), run(str(tmp_path / "checkpoint-2"))
    assert resumed.monitor.steps == whole.monitor.steps == 4
    assert resumed.whole.steps == whole.whole.steps == 2
    assert resumed.monitor.metrics() == whole.monitor.metrics()
    assert resumed.whole.metrics() == whole.whole.metrics()
    assert resumed.monitor.history == whole.monitor.history
    made = trainer(tmp_path, **options)
    watcher = watch(made, every=1, whole_every=None, window=7)
    with pytest.raises(ValueError, match="window 50, not those of this watcher: watching starts anew"):
        watcher.load(tmp_path / "checkpoint-2")


def test_removed_it_leaves_the_trainer_as_it_was(tmp_path, fed):
    made = trainer(tmp_path)
    before, callbacks = dict(vars(made)), list(made.callback_handler.callbacks)
    watcher = watch(made, every=1)
    with pytest.raises(ValueError, match="already watched"):
        watch(made)
    assert "No training step" in str(watcher.report())
    watcher.remove()
    watcher.remove()
    assert vars(made) == before
    assert made.callback_handler.callbacks == callbacks
    watch(made, every=1).remove()
    made.train()
    assert not fed


def test_what_is_no_trainer_of_trl_is_refused():
    with pytest.raises(TypeError, match="trainer must be a GRPOTrainer or RLOOTrainer of TRL, got object"):
        watch(object())


def test_the_page_is_written_at_the_end(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra rlvar[report]")
    pytest.importorskip("jinja2", reason="needs the extra rlvar[report]")
    made = trainer(tmp_path)
    watcher = watch(made, every=1, whole_every=1)
    made.train()
    page = (tmp_path / "rlvar.html").read_text()
    assert "the final norm of LlamaForCausalLM" in page
    assert f"all {sum(p.numel() for p in made.model.parameters()):,} parameters" in page
    assert str(watcher.report())


def test_what_the_docs_say_runs_and_names_all_that_is_logged(tmp_path, capsys):
    text = (Path(__file__).parents[2] / "docs" / "trl.md").read_text()
    made = trainer(tmp_path, max_steps=1)
    (example,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    names = {"trainer": made}
    exec(example, names)
    assert str(names["watcher"].report()) in capsys.readouterr().out
    metrics = {re.sub("/(low|high)$", "", key) for key in names["watcher"].metrics()}
    metrics = {re.sub("^rlvar/(final_norm|all)/", "", key) for key in metrics}
    metrics = {re.sub("ratio/.*", "ratio/NAME", key) for key in metrics}
    table = re.findall(r"^\|(.*?)\|", text, re.MULTILINE)
    assert metrics <= set(re.findall("`([^`]+)`", " ".join(table)))


def test_two_processes_say_what_one_says(tmp_path):
    script = Path(__file__).parents[1] / "watched_processes.py"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    with contextlib.ExitStack() as stack:
        running = []
        for rank in range(2):
            process = subprocess.Popen(
                [sys.executable, str(script), str(tmp_path)],
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
            )
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        assert [each.wait(timeout=300) for each in running] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    assert [each["error"] for each in ranks] == [None, None]
    assert ranks[0]["monitors"] == ranks[1]["monitors"]
    monitors = [rlvar.Monitor(each, reference="grpo") for each in (("grpo", "single", "rloo"), ("grpo",))]
    probe = Probe(model(hidden_size=16), monitor=monitors[0], whole=monitors[1])
    for calls in zip(*(each["calls"] for each in ranks), strict=True):
        args = joined(calls)
        options = {key: calls[0][1][key] for key in ("step", "batch")}
        groups = np.concatenate([kwargs["groups"] for _, kwargs in calls])
        assert groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
        probe.update(*args, groups=groups, **options)
        probe.gradients(*args, "grpo", groups=groups, **options)
    for monitor, found in zip(monitors, ranks[0]["monitors"], strict=True):
        # Gradients of float32, by as many threads as there are: their rounding. (In float64 see test_probe.)
        assert found == pytest.approx(monitor.metrics(), rel=1e-6)
    logged = ranks[0]["logged"][0]
    assert logged["rlvar/all/steps"] == 1


def joined(calls):
    """Rows of both processes, aligned left: each pads its own."""
    rows = []
    for (ids, attended, response, rewards), _ in calls:
        for row, live, wrote, reward in zip(ids, attended.bool(), response.bool(), rewards, strict=True):
            rows.append((row[live].tolist(), int(wrote.sum()), reward))
    ids, response = np.zeros((2, len(rows), max(len(tokens) for tokens, _, _ in rows)), int)
    attended = np.zeros_like(ids)
    for n, (tokens, wrote, _) in enumerate(rows):
        ids[n, : len(tokens)], attended[n, : len(tokens)] = tokens, 1
        response[n, len(tokens) - wrote : len(tokens)] = 1
    return ids, attended, response, np.array([reward for _, _, reward in rows])
