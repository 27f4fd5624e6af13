"""What docs/comparisons.md says of other packages is what they do."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

other_packages = importlib.import_module("other_packages")
PAGE = Path(__file__).parents[2] / "docs" / "comparisons.md"


def test_the_proxies_of_verl_are_those_of_the_page(capsys):
    other_packages.proxies()
    assert capsys.readouterr().out in PAGE.read_text(encoding="utf-8")


def test_norms_of_single_examples_give_our_noise_scale_of_one_batch(rng):
    batches = other_packages.World(rng).draw(rng)
    theirs, ours = other_packages.per_example(batches)[0], other_packages.with_rlvar(batches)[0]
    assert theirs == pytest.approx(ours.value, rel=1e-9)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of vmap over attention
@pytest.mark.parametrize("make", [other_packages.actor, other_packages.language_model])
@pytest.mark.parametrize("name", other_packages.METHODS)
def test_gradients_of_single_samples_are_the_same_from_whoever_gives_them(make, name):
    right = other_packages.by_loop(*make(4))
    try:
        found = other_packages.METHODS[name](*make(4))
    except NotImplementedError:
        pytest.skip("not for this model")
    np.testing.assert_allclose(found, right, rtol=0, atol=1e-6 * float(torch.max(right.abs())))
