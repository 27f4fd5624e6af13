"""A run of TRL's GRPOTrainer, watched: the pooled noise scale beside the exact one.

    python studies/watched_run.py [PAGE]   # five minutes on one thread; prints the table of docs/trl.md
    python studies/watched_run.py --fast   # the same at ten times the learning rate
    python studies/watched_run.py --quick  # a few steps: shows that it runs

The model of `examples/arithmetic.py`, taught for 300 steps, learns sums by steps of 8 prompts with 8
completions each, with the share of a completion up to its first wrong character as reward. Every batch is
measured by all parameters, and all measurements are pooled. At three checkpoints 50 times as many rollouts
are sampled from the policy then, and their exact gradients of all parameters (no sketch) give its noise
scale. The pooled one is that of the steps before it, so the two are of one policy only as far as the policy
has not moved: the learning rate is TRL's own, 1e-6. With --fast, 1e-5, the pooled one lags behind.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import arithmetic
import arithmetic_trl
import rlvar.torch.trl
from rlvar.torch import unit_gradients

PROMPTS, COMPLETIONS, MORE = 8, 8, 50


def exact(model, seed: int, batches: int) -> tuple[float, float, float]:
    """Noise scale of GRPO, in groups, with its interval: from so many batches and all parameters exactly.

    V = sum |g - mean g|^2 / (U - 1) and S = |mean g|^2 - V / U of all U groups; the interval is that of
    S / V, from a jackknife over batches.
    """
    rng = np.random.default_rng(seed)
    sums, squares = [], []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(batches):
            pairs = np.repeat(arithmetic.draw_prompts(PROMPTS, rng), COMPLETIONS, axis=0)
            ids, mask, _ = arithmetic.sample(model, pairs)
            written = [
                row[live].tolist() for row, live in zip(ids[:, arithmetic.PROMPT :], mask, strict=True)
            ]
            rewards = arithmetic_trl.partly(written, *pairs.T.tolist())
            attended = torch.cat([torch.ones(len(ids), arithmetic.PROMPT), mask], dim=1)
            groups = np.repeat(np.arange(PROMPTS), COMPLETIONS)
            options = {"rewards": rewards, "sketch": None}
            g = unit_gradients(model, ids, attended, mask, "grpo", groups, **options)["grpo"]
            sums.append(g.sum(axis=0))
            squares.append(np.square(g).sum())

    def inverse(total, square, units):
        variance = (square - total @ total / units) / (units - 1)
        return (total @ total / units**2 - variance / units) / variance

    total, square, units = sum(sums), sum(squares), PROMPTS * batches
    value = inverse(total, square, units)
    left_out = [inverse(total - s, square - q, units - PROMPTS) for s, q in zip(sums, squares, strict=True)]
    half = 1.96 * np.sqrt((batches - 1) * np.var(left_out))
    high = 1 / (value - half) if value > half else np.inf
    return 1 / value, 1 / (value + half), high


class Checkpoints(transformers.TrainerCallback):
    """Keeps the pooled noise scale after some steps, and the parameters."""

    def __init__(self, watcher, steps):
        self.watcher, self.steps, self.kept = watcher, steps, []

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step in self.steps:
            pooled = self.watcher.whole["grpo"].noise_scale
            self.kept.append((state.global_step, pooled, copy.deepcopy(model.state_dict())))


def shown(value: float, low: float, high: float) -> str:
    return f"{value:5.1f} [{low:4.1f}, {high:5.1f}]   {1 / value:.3f} [{1 / high:.3f}, {1 / low:.3f}]"


def main() -> None:
    quick, rate = "--quick" in sys.argv, 1e-5 if "--fast" in sys.argv else 1e-6
    pages = [each for each in sys.argv[1:] if not each.startswith("-")]
    last = 12 if quick else 120
    torch.set_num_threads(1)
    model = arithmetic.make_model(0)
    arithmetic.teach(model, 300, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        trainer = arithmetic_trl.make_trainer(
            model, folder, steps=last, reward=arithmetic_trl.partly, learning_rate=rate
        )
        page = pages[0] if pages else None
        watcher = rlvar.torch.trl.watch(trainer, every=1, whole_every=1, window=last, page=page)
        kept = Checkpoints(watcher, [last // 3, 2 * last // 3, last])
        trainer.add_callback(kept)
        trainer.train()
    rewards = [each["reward"] for each in trainer.state.log_history if "reward" in each]
    print(watcher.report())
    print(f"right: {rewards[0]:.2f} at first, {rewards[-1]:.2f} at last; {watcher.seconds:.0f} s of rlvar")
    print("       pooled: noise scale, and one over it    exact: the same                         held")
    held = []
    for step, pooled, parameters in kept.kept:
        model = arithmetic.make_model(0)  # a copy of the trainer's would run its own wrapped forward
        model.load_state_dict(parameters)
        true = exact(model, step, 2 if quick else MORE)
        held.append(pooled.low <= true[0] <= pooled.high)
        seen = shown(pooled.value, pooled.low, pooled.high)
        print(f"{step:5d}  {seen}  {shown(*true)}  {'yes' if held[-1] else 'no'}")
    if not quick and rate == 1e-6:
        # Of the signal over the variance, which has an end where the noise scale may have none.
        widths = [1 / pooled.low - 1 / pooled.high for _, pooled, _ in kept.kept]
        assert widths == sorted(widths, reverse=True), widths
        assert all(held)


if __name__ == "__main__":
    main()
