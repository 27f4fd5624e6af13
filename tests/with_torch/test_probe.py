"""A probe in a loop of one's own: what it gives, and that training never sees it."""

import copy
import math
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")
import rlvar  # noqa: E402
import tiny_models  # noqa: E402
import two_processes  # noqa: E402
from rlvar.torch import Probe, Sketch, token_scores, unit_gradients  # noqa: E402
from two_processes import Fed  # noqa: E402

GROUPS = ["a", "b", "a", "c", "c", "b", "a", "c"]
REWARDS = [0.0, 1.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.3]
IDS, ATTENDED, RESPONSE = tiny_models.batch(8)
BEHAVIOR = np.random.default_rng(0).normal(-3.0, 0.5, RESPONSE.shape)


@pytest.fixture(scope="module")
def llama():
    return tiny_models.make("llama")


def same(found, wanted):
    for name in ("rewards", "lengths", "groups", "logp", "behavior_logp", "score_squares", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    assert found.scores_of == wanted.scores_of


def test_it_gives_the_rollouts_of_a_part_and_feeds_the_monitor(llama):
    probe = Probe(llama, monitor=Fed(), temperature=0.7)
    found = probe.update(
        IDS, ATTENDED, RESPONSE, REWARDS, groups=GROUPS, behavior_logp=BEHAVIOR, step=7, batch=64
    )
    scored = token_scores(llama, IDS, ATTENDED, RESPONSE, of="final_norm", temperature=0.7)
    same(found, scored.rollouts(REWARDS, groups=GROUPS, behavior_logp=BEHAVIOR))
    assert found.scores_of == "the final norm of LlamaForCausalLM"
    assert probe.monitor.updates == [(found, {"step": 7, "batch": 64})]
    assert probe.seconds > 0.0


def test_it_gives_the_gradients_of_the_whole_model_and_feeds_the_other_monitor(llama):
    probe = Probe(llama, whole=Fed(), sketch=Sketch(32, seed=3))
    found = probe.gradients(IDS, ATTENDED, RESPONSE, REWARDS, ("rloo", "grpo"), groups=GROUPS, step=3)
    wanted = unit_gradients(
        llama, IDS, ATTENDED, RESPONSE, ("rloo", "grpo"), GROUPS, rewards=REWARDS, sketch=Sketch(32, seed=3)
    )
    assert list(found) == ["rloo", "grpo"]
    for name in found:
        np.testing.assert_array_equal(found[name], wanted[name])
    (given, options), *others = probe.whole.updates
    assert given is found
    assert not others
    assert options["scores_of"].startswith("all ")
    assert options["step"] == 3
    np.testing.assert_array_equal(options["sizes"], [3, 2, 3])


@pytest.mark.parametrize("by_token", [False, True])
def test_a_row_without_a_reward_is_left_out(llama, by_token):
    rewards, weights = np.array(REWARDS), np.arange(8.0)
    if by_token:
        rewards = rewards[:, None] * RESPONSE.numpy()
        rewards[RESPONSE == 0] = np.nan  # padding is not read
    rewards[2] = np.nan
    kept = [0, 1, 3, 4, 5, 6, 7]
    groups, behavior = [GROUPS[row] for row in kept], BEHAVIOR[kept]
    some = IDS[kept], ATTENDED[kept], RESPONSE[kept]
    probe = Probe(llama)
    found = probe.update(IDS, ATTENDED, RESPONSE, rewards, groups=GROUPS, behavior_logp=BEHAVIOR)
    wanted = token_scores(llama, *some, of="final_norm").rollouts(
        rewards[kept], groups=groups, behavior_logp=behavior
    )
    same(found, wanted)
    estimators = ("rloo", ("mine", weights))
    found = probe.gradients(IDS, ATTENDED, RESPONSE, rewards, estimators, groups=GROUPS)
    wanted = unit_gradients(
        llama, *some, ("rloo", ("mine", weights[kept])), groups, rewards=rewards[kept], sketch=Sketch(1024)
    )
    for name in ("rloo", "mine"):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_row_that_is_left_alone_in_its_group_is_left_out_too(llama):
    rewards = [np.nan, 1.0, 0.5, 1.0, np.nan, 0.0, 1.0, np.nan]  # of c there is one
    kept = [1, 2, 5, 6]
    rollouts = Probe(llama).update(IDS, ATTENDED, RESPONSE, rewards, groups=GROUPS)
    some = token_scores(llama, IDS[kept], ATTENDED[kept], RESPONSE[kept], of="final_norm")
    same(rollouts, some.rollouts([rewards[row] for row in kept], groups=[GROUPS[row] for row in kept]))


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


class Drawing(torch.nn.Module):
    """A model that draws random numbers in evaluation mode too, and may fail."""

    def __init__(self):
        super().__init__()
        self.embedding, self.norm = torch.nn.Embedding(tiny_models.VOCABULARY, 6), torch.nn.RMSNorm(6)
        self.head = torch.nn.Linear(6, tiny_models.VOCABULARY, bias=False)
        self.fails, self.cached = False, None

    def forward(self, input_ids, attention_mask=None):
        self.cached = torch.is_autocast_cache_enabled()
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        if self.fails:
            raise FloatingPointError("of the model")
        return self.head(self.norm(self.embedding(input_ids)))


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_everything_as_it_was(fails):
    model = Drawing().train()
    model.norm.eval()
    model.embedding.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.head.register_forward_hook(lambda *_: None)
    torch.use_deterministic_algorithms(True)
    try:
        before = states()
        kept = {name: each.clone() for name, each in model.state_dict().items()}
        parameters, hooks = dict(model.named_parameters()), list(model.head._forward_hooks)
        probe = Probe(model)
        model.fails = fails
        for call in (probe.update, lambda *given: probe.gradients(*given, "single")):
            if fails:
                with pytest.raises(FloatingPointError, match="of the model"):
                    call(IDS, ATTENDED, RESPONSE, REWARDS)
            else:
                call(IDS, ATTENDED, RESPONSE, REWARDS)
        assert states() == before
        assert torch.are_deterministic_algorithms_enabled()
        assert (model.cached, torch.is_autocast_cache_enabled()) == (False, True)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, each in model.state_dict().items():
        assert torch.equal(each, kept[name])
    assert all(each is parameters[name] for name, each in model.named_parameters())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert [each.requires_grad for each in model.parameters()] == [False, True, True]
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert [each.grad is None for each in model.parameters()] == [True, True, False]
    assert list(model.head._forward_hooks) == hooks
    assert not [name for module in model.modules() for name in vars(module) if name == "forward"]


def test_training_under_autocast_never_sees_it():
    def gradients(measured):
        model = tiny_models.make("llama").float().train()
        with torch.autocast("cpu", torch.bfloat16):
            if measured:
                probe = Probe(model)
                probe.update(IDS, ATTENDED, RESPONSE, REWARDS)
                probe.gradients(IDS, ATTENDED, RESPONSE, REWARDS, "single")
            loss = model(input_ids=IDS, attention_mask=ATTENDED).logits.logsumexp(-1).mean()
        loss.backward()
        return [each.grad for each in model.parameters()]

    for found, wanted in zip(gradients(True), gradients(False), strict=True):
        assert wanted is not None
        assert torch.equal(found, wanted)


@pytest.mark.filterwarnings(
    "ignore:`(is_gradient_checkpointing|gradient_checkpointing_enable)`:FutureWarning"
)
@pytest.mark.parametrize("kind", ["checkpointed, with dropout", "lora"])
def test_training_is_the_same_to_the_bit(kind):
    def trained(measured):
        model = tiny_models.make("gpt2").float().train()  # which has dropout
        if kind == "lora":
            peft = pytest.importorskip("peft", reason="needs peft")
            config = peft.LoraConfig(r=2, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True)
            model = peft.get_peft_model(model, config)
        else:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        parameters = [each for each in model.parameters() if each.requires_grad]
        optimizer, probe = torch.optim.Adam(parameters), Probe(model)
        for _ in range(3):
            if measured:
                probe.update(IDS, ATTENDED, RESPONSE, REWARDS)
            output = model(input_ids=IDS, attention_mask=ATTENDED)
            output.logits.logsumexp(-1).mean().backward()
            if measured:  # between the passes of an accumulated gradient
                probe.gradients(IDS, ATTENDED, RESPONSE, REWARDS, "single")
            optimizer.step()
        return [*parameters, *(each.grad for each in parameters), torch.get_rng_state()]

    assert all(map(torch.equal, trained(True), trained(False)))


def test_it_works_in_inference_mode(llama):
    with torch.inference_mode():
        probe = Probe(llama)
        rollouts = probe.update(IDS + 0, ATTENDED, RESPONSE, REWARDS)
        assert probe.gradients(IDS + 0, ATTENDED, RESPONSE, REWARDS, "single").sizes.sum() == 8
    assert len(rollouts) == 8


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rewards": REWARDS[:3]}, ValueError, r"rewards must have shape \(N,\) = \(8,\), or one per token"),
        ({"rewards": [np.nan] * 7 + [1.0]}, ValueError, "rewards .* at least 2 rollouts, got 1"),
        ({"groups": GROUPS[:3]}, ValueError, "groups must have shape"),
        ({"groups": [None] * 8}, ValueError, "groups must have a label"),
        ({"behavior_logp": BEHAVIOR[:, :2]}, ValueError, "behavior_logp must have one of the shapes"),
        ({"response_mask": RESPONSE * 0}, ValueError, "response_mask marks no token"),
    ],
)
def test_errors_name_the_argument(llama, changed, error, message):
    given = {
        "input_ids": IDS,
        "attention_mask": ATTENDED,
        "response_mask": RESPONSE,
        "rewards": REWARDS,
        **changed,
    }
    with pytest.raises(error, match=message):
        Probe(llama).update(**given)
    with pytest.raises(error, match=message):
        Probe(llama).gradients(**given, estimators="single")


def test_a_probe_is_checked_when_it_is_made(llama):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        Probe(None)
    with pytest.raises(ValueError, match="of must be"):
        Probe(llama, of="norm")
    with pytest.raises(TypeError, match="sketch must be a Sketch or None"):
        Probe(llama, sketch=64)
    with pytest.raises(ValueError, match="temperature"):
        Probe(llama, temperature=0.0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each of two processes found, by what it was given."""
    folder = tmp_path_factory.mktemp("gathered")
    script = [sys.executable, two_processes.__file__, str(folder)]
    running = [subprocess.Popen([*script, str(rank)]) for rank in range(2)]
    try:
        assert [each.wait(timeout=300) for each in running] == [0, 0]
    finally:
        for each in running:
            each.kill()
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


@pytest.mark.parametrize("case", two_processes.CASES)
def test_two_processes_find_what_one_does(outcomes, case):
    wanted = two_processes.measured(two_processes.made(), two_processes.CASES[case][0])
    for found in outcomes:
        assert found[case].keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(found[case][name], wanted[name], rtol=1e-12, atol=1e-12, err_msg=name)


def test_an_error_on_one_process_is_one_on_all(outcomes):
    first, second = outcomes
    where = "process 1 could not measure its part of the batch"
    shapes = "(N,) = (5,), or one per token, got (3,)"
    assert first["error"] == [
        f"RuntimeError: {where}: ValueError: rewards must have shape {shapes}",
        *[f"RuntimeError: {where}: FloatingPointError: of the model"] * 2,
    ]
    assert [each.partition(":")[0] for each in second["error"]] == ["ValueError", *["FloatingPointError"] * 2]
    assert first["labels"] == second["labels"]
    assert "0 stands for different prompts on processes 0 and 1; make labels" in first["labels"]


def test_a_group_of_one_process_measures_alone(outcomes):
    assert [each["alone"] for each in outcomes] == [3, 5]


# The pages on other trainers: on their own classes where they are installed, else on some with their fields.

DOCS = Path(__file__).parents[2] / "docs"


def run(page, names, capsys):
    """Run a page's examples: they print what they say."""
    for example in re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        exec(example, names)
        claimed = "".join(re.findall(r"^print\(.*\n((?:# .*\n)+)", example, re.MULTILINE))
        assert capsys.readouterr().out.splitlines() == [line[2:].strip() for line in claimed.splitlines()]
    return names


@pytest.fixture(scope="module")
def policy():
    return tiny_models.make("llama").float()


def expected(model, data):
    """Rollouts that the pages' code should find."""
    scored = token_scores(
        model, data["input_ids"], data["attention_mask"], data["response_mask"], of="final_norm"
    )
    return scored.rollouts(data["rewards"], groups=data["groups"], behavior_logp=data["behavior_logp"])


def test_the_page_on_verl(policy, tmp_path, capsys):
    given = two_processes.everything(steps=True)
    given["groups"] = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    tensors = {name: torch.as_tensor(array) for name, array in given.items()}
    batch = {
        "prompts": tensors["input_ids"][:, :4],
        "responses": tensors["input_ids"][:, 4:],
        "input_ids": tensors["input_ids"],
        "attention_mask": tensors["attention_mask"].long(),
        "response_mask": tensors["response_mask"].long(),
        "token_level_scores": (tensors["rewards"] * tensors["response_mask"]).float(),
        "rollout_log_probs": tensors["behavior_logp"].float(),
    }
    uid = np.array([["5a", "c7"][group] for group in given["groups"]], dtype=object)
    try:
        from verl import DataProto

        data = DataProto.from_dict(tensors=batch, non_tensors={"uid": uid}, meta_info={"temperature": 1.0})
    except ImportError:
        data = SimpleNamespace(batch=batch, non_tensor_batch={"uid": uid}, meta_info={"temperature": 1.0})
    lengths = batch["response_mask"].sum(1).tolist()

    def jagged(tensor):
        rows = [row[:length] for row, length in zip(tensor, lengths, strict=True)]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    dump = {name: jagged(batch[name]) for name in ("responses", "response_mask", "rollout_log_probs")}
    dump["prompts"] = torch.nested.as_nested_tensor(list(batch["prompts"]), layout=torch.jagged)
    dump["rm_scores"] = jagged(batch["token_level_scores"])
    try:
        from tensordict import TensorDict

        dump = TensorDict(dump, batch_size=8)
    except ImportError:
        pass
    keys, tags = [f"{each}_{i}_0" for i, each in enumerate(uid)], [{"is_padding": i == 7} for i in range(8)]
    torch.save({"tensordict": dump, "tags": tags, "keys": keys, "global_steps": 40}, tmp_path / "tq_batch.pt")

    class Trainer:
        def __init__(self, batch):
            self.batch, self.global_steps = batch, 42

        def _update_actor(self, batch):
            return batch

        def fit(self):
            return self._update_actor(self.batch)

    names = {"model": policy, "data": data, "path": tmp_path / "tq_batch.pt", "Trainer": Trainer}
    names = run(DOCS / "verl.md", names, capsys)
    names["Watched"](data).fit()
    assert [record["step"] for record in names["probe"].monitor.history] == [40, 41, 42]
    wanted = {**given, "rewards": given["rewards"].astype(np.float32) * given["response_mask"]}
    wanted["behavior_logp"] = wanted["behavior_logp"].astype(np.float32)
    same(names["rollouts"], expected(policy, wanted))
    tokens, others = names["arguments_of_dump"](names["payload"])
    same(
        Probe(policy).update(*tokens, **others),
        expected(policy, {name: array[:7] for name, array in wanted.items()}),
    )


def test_the_page_on_openrlhf(policy, tmp_path, capsys):
    given = two_processes.everything()
    given["groups"] = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    tensors = {name: torch.as_tensor(array) for name, array in given.items()}
    # What it calls action_mask is that of the tokens but the first, padded as the sequences are.
    action_mask = torch.cat([torch.zeros(8, 3, dtype=bool), tensors["response_mask"]], dim=1)
    logp = torch.cat([torch.zeros(8, 3), tensors["behavior_logp"].float()], dim=1)
    fields = "sequences", "attention_mask", "action_mask", "rollout_log_probs", "rewards"
    try:
        from openrlhf.trainer.ppo_utils.experience import Experience, split_experience_batch
    except ImportError:
        Experience = SimpleNamespace

        def split_experience_batch(each):
            rows = zip(*(getattr(each, name) for name in fields), each.prompts, strict=True)
            return [Experience(**dict(zip(fields, row, strict=False)), prompts=[row[-1]]) for row in rows]

    experiences = []
    for rows in ([6, 1, 3], [0, 2, 4, 5, 7]):  # as they are balanced by length
        width = int(tensors["attention_mask"][rows].sum(1).max())
        arrays = tensors["input_ids"], tensors["attention_mask"].long(), action_mask, logp
        cut = [array[rows, : width - shift] for array, shift in zip(arrays, (0, 0, 1, 1), strict=True)]
        values = dict(zip(fields, (*cut, tensors["rewards"][rows].float()), strict=True))
        prompts = [f"prompt {given['groups'][row]}" for row in rows]
        experiences.append(Experience(**values, index=list(rows), prompts=prompts))
    order = [6, 1, 3, 0, 2, 4, 5, 7]
    items = [item for each in copy.deepcopy(experiences) for item in split_experience_batch(each)]
    trainer = SimpleNamespace(
        actor=SimpleNamespace(model=policy, temperature=1.0), replay_buffer=SimpleNamespace(items=items)
    )
    names = {"model": policy, "experiences": experiences, "path": tmp_path / "e.pt", "self": trainer}
    names = run(DOCS / "openrlhf.md", names, capsys)
    wanted = {name: array[order] for name, array in given.items()}
    wanted["behavior_logp"] = wanted["behavior_logp"].astype(np.float32)
    wanted["rewards"] = wanted["rewards"].astype(np.float32)
    same(
        Probe(policy).update(*names["tokens"], **names["others"]),
        expected(policy, {**wanted, "behavior_logp": None}),
    )
    tokens, others = names["arguments"](experiences, 4)
    same(Probe(policy).update(*tokens, **others), expected(policy, wanted))


def test_the_page_on_loops(capsys):
    pytest.importorskip("stable_baselines3", reason="needs stable-baselines3")
    names = run(DOCS / "training.md", {}, capsys)
    probe = names["probe"]
    assert [part.scores_of for part in probe.report().runs[0].parts] == [
        probe.whole.scores_of,
        probe.monitor.scores_of,
    ]
    probe.report(probe, names=("one", "two"))
    with pytest.raises(ValueError, match="needs a monitor that has seen a step"):
        Probe(probe.model, monitor=rlvar.Monitor()).report()


def test_a_probe_has_monitors_of_its_own(llama):
    probe = Probe(llama)
    probe.update(IDS, ATTENDED, RESPONSE, REWARDS, groups=GROUPS)
    assert (probe.monitor.steps, probe.whole.steps) == (1, 0)
    assert probe.monitor.scores_of.startswith("the final norm")


def test_a_model_with_parameters_that_are_not_finite_is_told_as_such(llama):
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="the logits of LlamaForCausalLM are not finite"):
        Probe(broken).update(IDS, ATTENDED, RESPONSE, REWARDS, groups=GROUPS)


def test_a_batch_in_use_has_as_many_groups_where_rows_are_left_out(llama):
    probe = Probe(llama)
    rewards = [*REWARDS[:3], math.nan, *REWARDS[4:]]
    probe.update(IDS, ATTENDED, RESPONSE, rewards, groups=GROUPS, batch=16)
    assert (probe.monitor.units, probe.monitor.batch_units) == (3, 6)
