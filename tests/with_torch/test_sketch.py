"""Random directions: a hash of the parameter's name and index, the same everywhere."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
from rlvar.torch import Sketch  # noqa: E402


def signs(k=64, seed=0, name="w", shape=(4096,), start=0, stop=None):
    return Sketch(k, seed).directions(name, shape, start, k if stop is None else stop) * k**0.5


def test_directions_are_signs_over_the_root_of_k():
    assert set(np.unique(signs())) == {-1.0, 1.0}


def test_a_smaller_sketch_holds_the_first_directions_of_a_larger():
    torch.testing.assert_close(signs(k=32), signs(k=150)[:32])


def test_directions_do_not_depend_on_how_they_are_asked_for():
    torch.testing.assert_close(signs(k=150, start=60, stop=70), signs(k=150)[60:70])


def test_the_same_numbers_in_every_process_and_version():
    # Written down: whoever changes the generator makes old scores incomparable with new ones.
    first = signs(k=2, seed=3, name="lm_head.weight", shape=(8,)).round().int().tolist()
    assert first == [[1, 1, 1, 1, -1, -1, -1, 1], [-1, 1, 1, 1, -1, 1, -1, -1]]


def test_names_seeds_and_directions_give_other_signs():
    every = torch.cat([signs(k=3), signs(k=3, seed=1), signs(k=3, name="v")])
    correlations = (every @ every.T / every.shape[1] - torch.eye(9)).abs()
    assert correlations.max() < 5 / 4096**0.5


def test_signs_are_balanced_and_serially_uncorrelated():
    every = signs(k=128)
    n = every.shape[1]
    assert every.mean(1).abs().max() < 5 / n**0.5
    for lag in (1, 2, 16, 64):
        assert (every[:, lag:] * every[:, :-lag]).mean(1).abs().max() < 5 / n**0.5


def test_a_sketch_keeps_squared_norms_on_average_with_the_error_of_signs():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    squares = torch.stack([(signs(8, seed, shape=(50,)) @ x).square().mean() for seed in range(2000)])
    truth = x.square().sum()
    variance = 2 * (truth**2 - x.pow(4).sum()) / 8  # of k = 8 independent squares
    assert abs(squares.mean() - truth) < 4 * (variance / 2000) ** 0.5
    assert float(squares.var()) == pytest.approx(float(variance), rel=0.15)


@pytest.mark.parametrize(
    ("k", "seed", "error"), [(0, 0, ValueError), (2.5, 0, TypeError), (3, "a", TypeError)]
)
def test_what_is_no_sketch_is_refused(k, seed, error):
    with pytest.raises(error, match=r"k|seed"):
        Sketch(k, seed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_directions_on_another_device():
    here, there = (Sketch(70, 5).directions("w", (33, 7), 0, 70, device=d).cpu() for d in ("cpu", "cuda"))
    torch.testing.assert_close(here, there)
