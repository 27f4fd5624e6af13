"""Scores of small policies: against one backward pass a step."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra rlvar[torch]")

import rlvar.torch  # noqa: E402
from rlvar.torch import Sketch, per_step_scores  # noqa: E402

D = torch.distributions
N, T = 3, 4


def discrete(policy, observation, action):
    return D.Categorical(logits=policy(observation)).log_prob(action)


class Gaussian(torch.nn.Module):
    """A normal distribution whose scale is a parameter, beside a critic."""

    def __init__(self):
        super().__init__()
        self.log_std = torch.nn.Parameter(torch.tensor([0.1, -0.2]))
        self.mean, self.critic = torch.nn.Linear(3, 2), torch.nn.Linear(3, 1)


def continuous(policy, observation, action):
    return D.Normal(policy.mean(observation), policy.log_std.exp()).log_prob(action).sum()


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))


@pytest.fixture
def steps(rng):
    return rng.normal(size=(N, T, 3)), rng.integers(0, 4, size=(N, T))


def one_pass_a_step(log_prob, parameters, observations, actions):
    """The definition: a backward pass for each step."""
    scores, logp = [], []
    for observation, action in zip(*map(torch.as_tensor, (observations, actions)), strict=True):
        value = log_prob(observation, action)
        parts = torch.autograd.grad(value, parameters)
        scores.append(torch.cat([part.flatten() for part in parts]).numpy())
        logp.append(value.item())
    return np.array(scores), np.array(logp)


def test_scores_of_a_discrete_policy_are_those_of_one_backward_pass_a_step(policy, steps):
    policy.double()
    scored = per_step_scores(discrete, policy, *steps)
    flat = [each.reshape(N * T, *each.shape[2:]) for each in steps]
    scores, logp = one_pass_a_step(lambda *step: discrete(policy, *step), list(policy.parameters()), *flat)
    np.testing.assert_allclose(scored.scores, scores.reshape(N, T, -1), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(scored.logp, logp.reshape(N, T), rtol=1e-10)
    assert scored.scores_of == "all 44 parameters of Sequential"


def test_scores_of_a_continuous_policy_leave_the_critic_out(rng):
    torch.manual_seed(0)
    policy = Gaussian().double()
    observations, actions = rng.normal(size=(N, T, 3)), rng.normal(size=(N, T, 2))
    scored = per_step_scores(continuous, policy, observations, actions)
    actor = [policy.log_std, *policy.mean.parameters()]
    flat = observations.reshape(-1, 3), actions.reshape(-1, 2)
    scores, _ = one_pass_a_step(lambda *step: continuous(policy, *step), actor, *flat)
    np.testing.assert_allclose(scored.scores, scores.reshape(N, T, -1), rtol=1e-10, atol=1e-12)
    assert scored.scores_of == "all 10 parameters of Gaussian that its log-probabilities depend on"


def test_a_dict_of_parameters_gives_coordinates_in_its_order(policy, steps):
    def log_prob(params, observation, action):
        return discrete(lambda x: torch.func.functional_call(policy, params, (x,)), observation, action)

    params = {**dict(reversed(list(policy.named_parameters()))), "unused": torch.zeros(2)}
    ours = per_step_scores(log_prob, params, *steps).scores
    blocks = np.split(per_step_scores(discrete, policy, *steps).scores, np.cumsum([15, 5, 20]), axis=-1)
    np.testing.assert_array_equal(ours, np.concatenate([*reversed(blocks), np.zeros((N, T, 2))], axis=-1))
    assert ours.dtype == np.float32


def test_chunks_change_nothing_but_rounding(policy, steps):
    whole = per_step_scores(discrete, policy, *steps).scores
    ours = per_step_scores(discrete, policy, *steps, memory=1500).scores
    np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("memory", [1 << 30, 2000], ids=["at once", "directions in blocks"])
def test_a_sketch_is_the_product_of_scores_and_directions(policy, steps, memory):
    exact = per_step_scores(discrete, policy, *steps).scores
    sketch = Sketch(70, seed=3)  # more than one word of signs
    named = policy.named_parameters()
    directions = [sketch.directions(name, each.shape, 0, 70).flatten(1) for name, each in named]
    scored = per_step_scores(discrete, policy, *steps, sketch=sketch, memory=memory)
    expected = exact @ torch.cat(directions, dim=1).numpy().T
    np.testing.assert_allclose(scored.scores, expected, rtol=1e-4, atol=1e-6)
    rollouts = scored.rollouts(np.ones((N, T)))
    assert rollouts.sketched
    assert rollouts.scores_of == "all 44 parameters of Sequential"


def test_packed_steps_are_the_padded_ones(policy, steps):
    lengths = np.array([2, 4, 3])
    live = np.arange(T) < lengths[:, None]
    observations, actions = steps
    rewards = np.arange(12.0).reshape(N, T)
    padded = per_step_scores(discrete, policy, observations, actions).rollouts(rewards, lengths=lengths)
    scored = per_step_scores(discrete, policy, observations[live], actions[live], lengths=lengths)
    assert scored.scores.shape == (9, 44)
    packed = scored.rollouts(rewards[live])
    np.testing.assert_allclose(packed.scores, padded.scores[live], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(packed.logp[live], padded.logp[live], rtol=1e-6)
    np.testing.assert_array_equal(packed.rewards[live], rewards[live])
    np.testing.assert_array_equal(packed.lengths, lengths)
    assert scored.rollouts([1.0, 2.0, 3.0]).rewards.shape == (N,)
    assert (scored.rollouts(rewards).rewards == packed.rewards)[live].all()


def test_observations_may_be_dicts_and_tuples(policy, steps):
    def log_prob(policy, observation, action):
        return discrete(policy, torch.cat([observation["x"], observation["rest"][0]]), action)

    observations, actions = steps
    tree = {"x": observations[..., :1], "rest": (observations[..., 1:],)}
    ours = per_step_scores(log_prob, policy, tree, actions)
    np.testing.assert_array_equal(ours.scores, per_step_scores(discrete, policy, *steps).scores)


def test_lists_and_tensors_with_gradients_are_taken(policy, steps):
    observations, actions = steps
    plain = per_step_scores(discrete, policy, *steps).scores
    traced = torch.as_tensor(observations).requires_grad_()
    for given in (observations.tolist(), traced, [*traced]):
        np.testing.assert_array_equal(
            per_step_scores(discrete, policy, given, actions.tolist()).scores, plain
        )


def test_the_policy_is_left_as_it_was_also_after_an_error(steps):
    policy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))
    policy[0].eval()
    policy[0].bias.requires_grad_(False)
    policy[0].weight.grad = torch.ones(4, 3)
    before = {name: each.clone() for name, each in policy.state_dict().items()}

    def fails(policy, observation, action):
        raise KeyError("mine")

    checked = D.Distribution._validate_args  # Stable-Baselines3 turns it off
    scored = per_step_scores(discrete, policy, *steps)  # in evaluation mode: dropout draws nothing
    assert scored.scores_of == "all 12 trainable parameters of Sequential"
    with pytest.raises(KeyError, match="mine"):
        per_step_scores(fails, policy, *steps)
    assert [policy.training, policy[0].training, policy[1].training] == [True, False, True]
    assert D.Distribution._validate_args is checked
    assert [each.requires_grad for each in policy.parameters()] == [True, False]
    assert (policy[0].weight.grad == 1).all()
    assert all((before[name] == each).all() for name, each in policy.state_dict().items())


def test_what_padding_holds_does_not_matter(policy, steps):
    observations, actions = steps

    def compared():
        rollouts = per_step_scores(discrete, policy, observations, actions).rollouts(
            np.ones((N, T)), lengths=[2, 4, 4]
        )
        return rlvar.compare(rollouts, "multi").to_dict()

    clean = compared()
    observations[0, 2:] = np.nan
    assert compared() == clean


@pytest.mark.parametrize(
    ("log_prob", "error", "message"),
    [
        (lambda p, o, a: p(o)[0] if o[0] > 0 else p(o)[1], ValueError, "`if` on a tensor.*use torch.where"),
        (lambda p, o, a: p(o)[0] * o[0].item(), ValueError, r"calls \.item\(\)"),
        (lambda p, o, a: discrete(p, o, a).item(), TypeError, "must return a tensor, got float"),
        (lambda p, o, a: p(o), ValueError, r"one log-probability, got shape \(4,\): it gets one observation"),
        (lambda p, o, a: torch.ones(()), ValueError, "does not depend on params: .*functional_call"),
        (lambda p, o, a: discrete(p, o, a).detach(), ValueError, "without no_grad or detach"),
        (lambda p, o, a: p(torch.dropout(o, 0.5, True))[0], ValueError, "draws random numbers"),
    ],
)
def test_what_vmap_cannot_do_is_explained(policy, steps, log_prob, error, message):
    with pytest.raises(error, match=message):
        per_step_scores(log_prob, policy, *steps)


def test_checks_that_name_a_bad_value_are_explained(policy, steps):
    def checked(policy, observation, action):
        return D.Categorical(logits=policy(observation), validate_args=True).log_prob(action)

    observations, actions = steps
    per_step_scores(checked, policy, observations, actions)
    actions[1, 1] = 4  # the policy knows 0 to 3
    with pytest.raises(ValueError, match="of validate_args=True in a distribution, False"):
        per_step_scores(checked, policy, observations, actions)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"observations": np.zeros((N, 5, 3))},
            ValueError,
            r"observations must have shape \(3, 4, .*as actions",
        ),
        (
            {"observations": {"a": np.zeros((N, 3))}},
            ValueError,
            r"observations\['a'\] must have shape \(3, 4",
        ),
        ({"actions": np.zeros(N)}, ValueError, r"actions must have shape \(N, T, \.\.\.\), got \(3,\)"),
        (
            {"observations": np.zeros((0, T)), "actions": np.zeros((0, T))},
            ValueError,
            "actions must have at least one step",
        ),
        ({"actions": [[1, 2], [3]]}, ValueError, "actions must be an array: pad"),
        ({"actions": [["a"]]}, TypeError, "actions must be an array of numbers, got dtype <U1"),
        ({"lengths": [4, 4, 4]}, ValueError, r"\(12, \.\.\.\), the sum of lengths, got \(3, 4\); padded"),
        ({"lengths": [1.5]}, ValueError, "lengths must be integers"),
        (
            {"params": [torch.ones(1)]},
            TypeError,
            r"params must be a torch\.nn\.Module or a dict .*, got list",
        ),
        ({"params": {}}, ValueError, "params must have at least one tensor"),
        ({"params": {"a": torch.ones(1, dtype=int)}}, TypeError, r"params\['a'\] must be a floating-point"),
        ({"sketch": 64}, TypeError, "sketch must be a Sketch or None, got int"),
        ({"memory": 0}, ValueError, "memory must be"),
    ],
)
def test_errors_name_the_argument(policy, steps, change, error, message):
    given = {"params": policy, "observations": steps[0], "actions": steps[1], **change}
    with pytest.raises(error, match=message):
        per_step_scores(discrete, **given)


REMEDIES = {
    "gather": lambda p, o, a: p(o).log_softmax(-1).gather(-1, a[None])[0],
    "arange": lambda p, o, a: (p(o).log_softmax(-1) * (torch.arange(3) == a)).sum(),
    "distribution": lambda p, o, a: torch.distributions.Categorical(logits=p(o)).log_prob(a),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_the_error_says_to_do_in_place_of_indexing_works(name):
    policy = torch.nn.Linear(4, 3)
    observations, actions = torch.randn(5, 2, 4), torch.randint(3, (5, 2))
    with pytest.raises(ValueError, match=r"x.gather\(-1, action\[None\]\)\[0\].*torch.arange\(n\) == action"):
        per_step_scores(lambda p, o, a: p(o).log_softmax(-1)[a], policy, observations, actions)
    found = per_step_scores(REMEDIES[name], policy, observations, actions).scores
    error = torch.eye(3)[actions] - policy(observations).softmax(-1)
    weight = (error[..., None] * observations[..., None, :]).flatten(2)
    np.testing.assert_allclose(found, torch.cat([weight, error], -1).detach().numpy(), atol=1e-6)
