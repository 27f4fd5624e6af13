"""Make the embedded language-model rollouts: two-digit sums of a small Llama, part-way through its training.

    pip install '.[torch]'
    python examples/make_arithmetic_rollouts.py python/rlvar/data/arithmetic.npz

`arithmetic.py` trains it until almost half of its completions are right, in about a minute. Then 16
completions of each of 32 prompts are sampled at temperature 1. The scores are a 64-dimensional sketch of all
parameters' token scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import arithmetic
import rlvar
import rlvar.torch

SEED = 0
PROMPTS, COMPLETIONS = 32, 16
RIGHT = 0.45


def make_rollouts(model, seed: int, prompts: int = PROMPTS, completions: int = COMPLETIONS, **options):
    """Sample and score completions: rollouts with rewards (N,), and the rewards of their tokens (N, 8)."""
    torch.manual_seed(seed)
    pairs = np.repeat(arithmetic.draw_prompts(prompts, np.random.default_rng(seed)), completions, axis=0)
    ids, mask, logp = arithmetic.sample(model, pairs)
    right, by_token = arithmetic.rewards_of(pairs, ids, mask)
    scored = rlvar.torch.token_scores(model, ids, None, mask, **options)
    groups = np.repeat(np.arange(prompts), completions)
    return scored.rollouts(right, behavior_logp=logp, groups=groups), by_token[:, : scored.scores.shape[1]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the .npz file to write")
    out = parser.parse_args().out
    model, _ = arithmetic.train(SEED, RIGHT)
    rollouts, by_token = make_rollouts(model, SEED + 1)
    print(rollouts)
    keys = ("scores", "lengths", "groups", "logp", "behavior_logp", "score_squares", "scores_of", "sketched")
    # A completion is right where all of its tokens are: rlvar.datasets.arithmetic adds them up.
    np.savez_compressed(
        out, rewards=by_token.astype(np.int8), **{key: getattr(rollouts, key) for key in keys}
    )
    print(f"{out}: {out.stat().st_size:,} bytes, {rollouts.rewards.mean():.1%} right")


if __name__ == "__main__":
    main()
