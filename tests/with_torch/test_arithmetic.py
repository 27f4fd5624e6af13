"""The language model of the examples, little taught: what the on-policy test sees; the study of parts."""

import copy
import importlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import rlvar  # noqa: E402
from rlvar.torch import token_scores  # noqa: E402
from rlvar.torch.policy import Policy  # noqa: E402

arithmetic = importlib.import_module("arithmetic")
make_arithmetic_rollouts = importlib.import_module("make_arithmetic_rollouts")


@pytest.fixture(scope="module")
def model():
    made = arithmetic.make_model(0)
    arithmetic.teach(made, 250, np.random.default_rng(0))
    return made


def sampled(model, sampler=None, policy=None):
    """1,000 completions of a sampler, scored as the model's at temperature 1; with rewards of tokens too."""
    torch.manual_seed(3)
    pairs = arithmetic.draw_prompts(1000, np.random.default_rng(5))
    ids, mask, logp = arithmetic.sample(sampler or model, pairs, (policy or Policy()).log_probs)
    right, by_token = arithmetic.rewards_of(pairs, ids, mask)
    scored = token_scores(model, ids, None, mask, of="final_norm")
    return scored.rollouts(right), scored.rollouts(by_token, behavior_logp=logp)


def test_samples_at_temperature_1_are_on_policy(model):
    rollouts, recorded = sampled(model)
    assert rlvar.on_policy_test(rollouts).against == ()
    assert rlvar.compare(recorded).policies_agree


@pytest.mark.parametrize(
    "policy", [Policy(temperature=0.9), Policy(top_p=0.95)], ids=["temperature", "top-p"]
)
def test_samples_of_another_temperature_or_top_p_are_found_without_their_probabilities(model, policy):
    assert "mean_score" in rlvar.on_policy_test(sampled(model, policy=policy)[0]).against


def test_a_sampler_in_bfloat16_is_no_reason_to_withdraw_claims(model):
    rollouts, recorded = sampled(model, copy.deepcopy(model).bfloat16())
    assert np.abs(recorded.logp - recorded.behavior_logp).max() > 0.005
    assert rlvar.on_policy_test(rollouts).against == ()
    compared = rlvar.compare(recorded, ["single", "multi"])
    assert compared.policies_agree
    assert compared["multi"].unbiased


def test_the_embedded_rollouts_come_from_the_script(model):
    rollouts, by_token = make_arithmetic_rollouts.make_rollouts(model, 1, prompts=3, completions=2)
    assert rollouts.shape[0] == 6
    assert rollouts.sketched
    np.testing.assert_array_equal(rollouts.rewards == 1, by_token.sum(axis=1) == rollouts.live_steps)
    np.testing.assert_allclose(rollouts.logp, rollouts.behavior_logp, atol=1e-4)


def test_the_study_of_parts_runs(capsys):
    importlib.import_module("parts_of_models").main(quick=True)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| 0, taught |") for line in lines) == 8
    assert "| all, exactly | 1.00, 1.00, 1.00 | 1.00, 1.00, 1.00 |" in "\n".join(lines)
