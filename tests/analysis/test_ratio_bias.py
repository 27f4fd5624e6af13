"""What leaving out importance ratios biases: measured, and against the standard error."""

import numpy as np
import pytest

import closed_forms
import reference
import rlvar
from rlvar.analysis.ratio_bias import lacking, lacking_weights, measurable
from rlvar.weights.batch import Batch
from sentences import told

TOKENS, STEPS = 4, 12
LOGITS, REWARDS = np.random.default_rng(0).standard_normal((2, TOKENS + 1, TOKENS))


def softmax(z):
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def sampled(rng, n, change, **more):
    """Rollouts of a policy that is sampled with its logits changed: one row for each token before."""
    before, rows = np.full(n, TOKENS), np.arange(n)
    scores, rewards, new, old = (np.zeros((n, STEPS, k)) for k in (LOGITS.size, 1, 1, 1))
    for t in range(STEPS):
        p, q = softmax(LOGITS[before]), softmax(change(LOGITS[before], before))
        token = np.minimum((rng.random((n, 1)) > q.cumsum(axis=1)).sum(axis=1), TOKENS - 1)
        each = scores[:, t].reshape(n, TOKENS + 1, TOKENS)
        each[rows, before] = np.eye(TOKENS)[token] - p
        rewards[:, t, 0] = REWARDS[before, token]
        new[:, t, 0], old[:, t, 0] = np.log(p[rows, token]), np.log(q[rows, token])
        before = token
    return rlvar.Rollouts(scores, rewards[:, :, 0], logp=new[:, :, 0], behavior_logp=old[:, :, 0], **more)


DRIFT = 0.15 * np.random.default_rng(1).standard_normal(LOGITS.shape)
CHANGES = {
    "engine": lambda rng: lambda z, before: z + 0.02 * rng.standard_normal(z.shape),
    "temperature 0.9": lambda rng: lambda z, before: z / 0.9,
    "stale": lambda rng: lambda z, before: z + DRIFT[before],
}


@pytest.mark.parametrize("importance", ["none", "token"])
@pytest.mark.parametrize("n", [64, 512])
def test_an_engine_that_rounds_takes_no_claim_away(importance, n):
    kept, most = 0, 0.0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        report = rlvar.report(sampled(rng, n, CHANGES["engine"](rng)), importance=importance)
        assert not report.comparison["multi"].importance.close
        kept += report.comparison.policies_agree and report.on_policy.on_policy
        most = max(most, report.comparison.bias_share)
        if report.on_policy.on_policy:
            text = told(report)
            assert "times as many rollouts as multi-step for the same precision" in text
            assert "log-probabilities differ from the model's by 0.0" in text
            assert f"at most {report.comparison.bias_share:.0%} of the standard error" in text
            assert "another policy sampled" not in text
            assert "hardly" not in str(report.comparison["multi"].importance)
            assert report.headroom is not None
    assert kept >= 9
    assert most < 0.2


@pytest.mark.parametrize("kind", ["temperature 0.9", "stale"])
@pytest.mark.parametrize("n", [128, 512])
def test_another_temperature_and_an_old_copy_do(kind, n):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        report = rlvar.report(sampled(rng, n, CHANGES[kind](rng)))
        text = told(report)
        assert "rollouts as multi-step for the same precision" not in text
        if n == 512:
            assert not report.comparison.policies_agree
            assert f"are biased, by up to {report.comparison.bias_share:.0%} of their standard error" in text


def test_ratios_that_are_all_near_0_are_no_proof_of_a_small_bias(rng):
    far = sampled(rng, 100, lambda z, before: z)
    far = rlvar.Rollouts(far.scores, far.rewards, logp=far.logp - 5, behavior_logp=far.logp)
    for row in rlvar.compare(far):
        assert row.bias is None
        assert not row.unbiased


@pytest.mark.parametrize("importance", ["none", "token", "geometric"])
def test_what_is_measured_is_the_difference_of_the_two_means(importance):
    new, old = (closed_forms.EnumeratedPolicy(vocabulary=3, steps=3, seed=seed) for seed in (1, 5))
    p = old.probabilities
    rollouts = rlvar.Rollouts(new.scores, new.rewards, logp=new.logp, behavior_logp=old.logp)
    batch, estimator = Batch.of(rollouts, importance=importance), rlvar.estimator("multi")
    weights = batch.weights(estimator)
    own, h = batch.gradients({"own": weights, "h": lacking_weights(batch, weights)})
    on_policy = new.probabilities @ reference.gradients(new.scores, weights)
    np.testing.assert_allclose(p @ (own.whole() + h.whole()), on_policy, atol=1e-12)
    if importance != "token":
        np.testing.assert_allclose(lacking(batch, own).whole(), h.whole(), atol=1e-12)


@pytest.mark.parametrize("aggregation", ["sum", "token-mean"])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_bias_over_the_squared_error_is_its_definition(aggregation, grouped):
    rng = np.random.default_rng(3)
    groups = np.arange(120) // 4 if grouped else np.arange(120)
    lengths = rng.integers(3, STEPS + 1, 120)
    rollouts = sampled(
        rng, 120, CHANGES["stale"](rng), lengths=lengths, groups=list(groups) if grouped else None
    )
    row = rlvar.compare(rollouts, ["multi"], aggregation=aggregation)["multi"]
    live = np.arange(STEPS) < lengths[:, None]
    rewards, d = (np.where(live, x, 0) for x in (rollouts.rewards, rollouts.logp - rollouts.behavior_logp))
    g = reference.gradients(rollouts.scores, reference.reward_to_go(rewards), lengths=lengths)
    size = lengths.astype(float) if aggregation == "token-mean" else np.ones(120)
    mean, rho = g.sum(axis=0) / size.sum(), np.exp(d.sum(axis=1))
    x = (rho - 1)[:, None] * (g - size[:, None] * mean)

    def of_units(rows):
        """Mean, sum over sum, and variance over U."""
        u = groups[-1] + 1
        m = rows.sum(axis=0) / size.sum()
        y = np.zeros((u, rows.shape[1]))
        np.add.at(y, groups, rows - size[:, None] * m)
        return m, np.square(y).sum() / (u - 1) / u / (size.sum() / u) ** 2

    (m, of_x), (_, of_g) = of_units(x), of_units(g)
    assert row.bias.value == pytest.approx((m @ m - of_x) / of_g, rel=1e-6)


def test_nothing_is_measured_where_more_than_ratios_biases_the_mean(rng):
    rollouts = sampled(rng, 100, CHANGES["engine"](rng))
    lengths = rng.integers(2, STEPS, 100)
    ragged = sampled(rng, 100, CHANGES["engine"](rng), lengths=lengths)
    assert rlvar.compare(ragged, aggregation="sequence-mean")["multi"].bias is None
    assert rlvar.compare(rollouts, importance="token", clip=1e-3)["multi"].bias is None
    assert rlvar.compare(rollouts, importance="sequence")["multi"].bias is None
    assert measurable(Batch.of(rollouts, importance="sequence", truncate=1.01))
