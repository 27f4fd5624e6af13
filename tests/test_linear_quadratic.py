"""The study of a linear-quadratic problem: its closed form, and that it can fail."""

import importlib

import numpy as np
import pytest

import closed_forms
import rlvar

study = importlib.import_module("linear_quadratic")


@pytest.mark.parametrize("gain", [-0.7, 0.4])
def test_the_closed_form_is_the_sum_over_quadrature_nodes(gain):
    """Two steps of a scalar problem are four normals, and squares of degree 8 at most in each."""
    scalar = np.array([[1.0]])
    problem = study.Problem(0.9 * scalar, 0.5 * scalar, scalar, 0.3 * scalar, 0.6, 0.4, 2)
    k = gain * scalar
    states, _ = study.linear_maps(problem, k)
    xi, p = closed_forms.normals(states.shape[2], nodes=5)

    class Nodes:
        def standard_normal(self, shape):
            assert shape == xi.shape
            return xi

    rollouts = study.simulate(problem, k, Nodes(), len(xi))
    mean, variances = study.closed_form(problem, k)
    for name, weights in (
        ("single", rollouts.rewards.sum(axis=1)),
        ("multi", rlvar.reward_to_go(rollouts.rewards)),
    ):
        parts = rlvar.decompose(rollouts.scores, weights, sample_weight=p, ddof=0)
        assert parts.variance.value == pytest.approx(variances[name], rel=1e-11)
        np.testing.assert_allclose(parts.mean.sum(axis=0), mean, rtol=0, atol=1e-11)


def test_the_study_fails_where_the_closed_form_is_wrong_and_only_there(monkeypatch, capsys):
    assert study.main(["--rollouts", "2000"]) == 0
    assert capsys.readouterr().out.startswith("noise over signal of single")
    right = study.closed_form

    def wrong(problem, k):
        mean, variances = right(problem, k)
        return mean, {name: 1.3 * variance for name, variance in variances.items()}

    monkeypatch.setattr(study, "closed_form", wrong)
    assert study.main(["--rollouts", "2000"]) == 1
