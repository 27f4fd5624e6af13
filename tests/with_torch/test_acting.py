"""The study of acting on the verdict: its runs take the steps of the example, its tables say what came."""

import copy
import importlib
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import rlvar  # noqa: E402
from rlvar.weights.batch import Batch  # noqa: E402
from rlvar.weights.source import estimator_of  # noqa: E402

arithmetic = importlib.import_module("arithmetic")
ensemble = importlib.import_module("ensemble")
acting = importlib.import_module("acting")
acting_results = importlib.import_module("acting_results")
SUM = acting.TASKS["sum"]


@pytest.fixture(scope="module")
def models():
    return [arithmetic.make_model(seed) for seed in range(2)]


@pytest.fixture
def stacked(models):
    return ensemble.stacked([model.state_dict() for model in models], "cpu")


def test_stacked_models_have_the_logits_of_transformers_with_and_without_a_cache(models, stacked):
    ids = torch.randint(15, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    expected = torch.stack([model(one).logits for model, one in zip(models, ids, strict=True)])
    torch.testing.assert_close(ensemble.logits(stacked, ids), expected, rtol=0, atol=1e-5)
    past = []
    parts = [ensemble.logits(stacked, part, past) for part in ids.split([5, 1, 3], dim=-1)]
    torch.testing.assert_close(torch.cat(parts, 2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", acting.TASKS)
def test_weights_of_every_arm_are_those_of_rlvar(name):
    task, generator = acting.TASKS[name], torch.Generator().manual_seed(1)
    lengths = torch.randint(2, task.longest + 1, (1, 64), generator=generator)
    mask = torch.arange(task.longest) < lengths[..., None]
    rewards = torch.rand(mask.shape, generator=generator) * mask
    log_probs = torch.randn(*mask.shape, 15, generator=generator).log_softmax(-1)
    written = torch.randint(15, mask.shape, generator=generator)
    at = log_probs.exp().gather(-1, written[..., None])[..., 0]
    squares = ((1 - 2 * at + log_probs.exp().square().sum(-1)) * mask)[0].numpy()
    for arm in task.arms:
        whole = arm.estimator == "otb"
        rollouts = rlvar.Rollouts(
            np.ones((64, task.longest, 1)),
            rewards[0].double().numpy(),
            lengths=lengths[0].numpy(),
            groups=np.zeros(64, int) if whole else np.arange(64) // arm.completions,
            score_squares=squares,
        )
        weights = Batch.of(rollouts).weights(estimator_of("otb-verl" if whole else arm.estimator))
        expected = np.broadcast_to(np.asarray(weights).reshape(64, -1), mask[0].shape) * mask[0].numpy()
        found = acting.weights_of(arm, rewards, mask, log_probs, written)[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=str(arm))


def test_a_run_takes_the_steps_of_the_example(models, stacked, monkeypatch):
    seen, sample = {}, arithmetic.sample
    right = np.random.default_rng(3).integers(0, 2, 64).astype(float)

    def recorded(model, pairs):
        seen["ids"], seen["mask"], logp = sample(model, pairs)
        return seen["ids"], seen["mask"], logp

    monkeypatch.setattr(arithmetic, "sample", recorded)
    monkeypatch.setattr(arithmetic, "rewards_of", lambda *given: (right, None))
    model = copy.deepcopy(models[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    adam = ensemble.Adam(stacked, torch.tensor([0.0, 1e-3]))
    for _ in range(2):
        arithmetic.improve(model, optimizer, np.random.default_rng(0), 16, 4)
        ids, mask = (x.expand(2, -1, -1) for x in seen.values())
        last = mask & ~torch.nn.functional.pad(mask[..., 1:], (0, 1))
        rewards = torch.from_numpy(right).float()[:, None] * last
        step = acting.gradients(stacked, [acting.Arm("rloo", 16, 4)] * 2, SUM, ids, mask, rewards)
        for name, parameter in model.named_parameters():
            tolerance = 1e-4 * float(parameter.grad.abs().max())
            torch.testing.assert_close(step[name][1], parameter.grad, rtol=0, atol=tolerance)
        adam.step(step)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(stacked[name][1], parameter.detach(), rtol=0, atol=1e-4)
        assert torch.equal(stacked[name][0], models[0].state_dict()[name])  # at a rate of 0


def test_the_success_is_the_share_of_right_completions_in_the_long_run(stacked):
    pairs, again = np.arange(20), 40
    targets = torch.zeros(len(acting.PAIRS), SUM.longest, dtype=torch.long)
    targets[:, 0] = arithmetic.END  # right is an answer that ends at once, after one token for some prompts
    targets[:10, :2] = torch.tensor([arithmetic.CHARACTERS.index("7"), arithmetic.END])
    tables = acting.Tables.of(SUM, "cpu")._replace(targets=targets)
    exact = acting.success(stacked, tables, pairs)
    prompts = tables.prompts[pairs].repeat(again, 1).expand(2, -1, -1)
    generator = torch.Generator().manual_seed(2)
    ids, mask = ensemble.sample(stacked, prompts, SUM.longest, arithmetic.END, generator)
    by_token, right = acting.right_tokens(targets[pairs].repeat(again, 1), ids, mask)
    error = (exact * (1 - exact) / right.shape[1]).sqrt()
    assert (exact > 0.02).all()
    assert ((right.mean(1) - exact).abs() < 4 * error).all()
    assert torch.equal(right == 1, (by_token.sum(-1) == mask.sum(-1)) & ~mask[..., 2])


@pytest.mark.filterwarnings("ignore")  # of few groups
def test_a_tiny_study_runs_and_is_shown(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(acting, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(acting, "IN_USE", (3, 16))
    monkeypatch.setattr(acting, "EVERY", 1)
    digits, names = acting.TASKS["digits"], ("rloo 4x16", "grpo 4x16", "multi 64x1", "otb 64x1")
    some = digits._replace(arms=tuple(arm for arm in digits.arms if str(arm) in names))
    monkeypatch.setitem(acting.TASKS, "digits", some)
    out = tmp_path / "found.json"
    tiny = {"tasks": "digits", "seeds": 1, "rates": 1e-3, "start": 0, "goal": 0.5, "most": 1, "repeats": 2}
    tiny |= {"tokens": 2, "pooled": 2, "held-out": 8}
    options = [word for name, value in tiny.items() for word in (f"--{name}", str(value))]
    acting.main(["run", "--out", str(out), *options])
    found = json.loads(out.read_text())
    task = found["tasks"]["digits"]
    assert set(task["runs"]) == set(names)
    assert all(set(seed["arms"]) == set(names) for seed in task["pooled"])
    assert all(np.shape(runs["median"]) == (1, 2) for runs in task["runs"].values())
    acting.main(["show", str(out)])
    assert "| otb 64x1 |" in capsys.readouterr().out


def test_tables_say_what_runs_did():
    runs = {
        "rloo 4x16": {"reached": [[[5], [None]], [[8], [12]]], "last": [[0.9, 0.1], [0.9, 0.9]]},
        "single 64x1": {"reached": [[[2], [4]], [[3], [6]]], "last": [[0.9, 0.9], [0.9, 0.9]]},
    }
    for arm in runs.values():
        arm["median"] = [[300, 900], [300, 900]]
    said = [{"arms": {"rloo 4x16": 4.0, "single 64x1": 1.0}, "plans": {}}] * 2
    realised = [{"rloo 4x16": [8.0, 1.0], "single 64x1": [2.0, 1.0]}] * 2
    task = {"runs": runs, "pooled": said, "realised": realised}
    found = {"rates": [1e-4, 2e-4], "every": 640, "most": 12_800, "levels": [0.8]}
    single, rloo = acting_results.rows_of(task, found, 0)
    assert (single.arm, single.predicted, single.realised, single.rate) == ("single 64x1", 0.25, 0.25, 1e-4)
    assert (rloo.rate, rloo.reached.tolist(), rloo.all_reached) == (2e-4, [5120, 7680], [1, 2])
    assert single.ratio[0] == pytest.approx(np.sqrt(5120 / 1280 * 7680 / 2560))
    assert single.earlier == (2, 0)
