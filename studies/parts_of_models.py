"""What parts of a model tell of its policy gradient, beside all parameters exactly.

    python studies/parts_of_models.py          # ten minutes on one thread; prints the tables of the docs
    python studies/parts_of_models.py --quick  # one model, little taught, few rollouts: shows that it runs

The model is that of `examples/arithmetic.py`, at three stages of its training and with three seeds each. The
same completions are scored by all parameters exactly (a backward pass a token), by sketches of them and by
parts. Four numbers are compared: the variance ratio of multi-step to single-step with a reward for each right
token; that of RLOO to single-step with one reward at the end; the noise scale of single-step, in groups; the
share of RLOO's variance that lies within prompts. At the end, how much of the squared norms of scores verl's
stand-in W explains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import arithmetic
import rlvar
from rlvar.torch import Sketch, sequence_scores, token_scores

STAGES = {"taught": 0.0, "0.45 right": 0.45, "0.6 right": 0.6}
SOURCES = {
    "all, exactly": {"sketch": None},
    "all, k = 16": {"sketch": Sketch(16)},
    "all, k = 64": {"sketch": Sketch(64)},
    "all, k = 256": {"sketch": Sketch(256)},
    "last block, k = 256": {"of": "last_block", "sketch": Sketch(256)},
    "final norm": {"of": "final_norm"},
    "head, k = 256": {"of": "head", "sketch": Sketch(256)},
}
SEQUENCES = "sequences, k = 1024"
EXACT = "all, exactly"
COLUMNS = ("multi/single", "RLOO/single", "noise scale", "within prompts")


def stages(seed: int, quick: bool):
    """Give the name of each stage with the model."""
    model, rng = arithmetic.make_model(seed), np.random.default_rng(seed)
    while arithmetic.success(model, np.random.default_rng(99)) < (0.05 if quick else 0.15):
        arithmetic.teach(model, 50, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    for name, until in STAGES.items():
        while arithmetic.success(model, np.random.default_rng(99)) < until:
            for _ in range(10):
                arithmetic.improve(model, optimizer, rng)
        yield name, model
        if quick:
            return


def numbers(terminal: rlvar.Rollouts, by_token: rlvar.Rollouts | None) -> list[rlvar.Estimate | None]:
    """What is compared; return-to-go needs scores of tokens."""
    compared = rlvar.compare(terminal, ["single", "rloo"], reference="single")
    components = rlvar.prompt_components(terminal, "rloo")
    within = 1.0 - components.between.value / components.variance.value
    return [
        None if by_token is None else rlvar.compare(by_token, ["single", "multi"])["multi"].ratio,
        compared["rloo"].ratio,
        compared["single"].noise_scale,
        within,
    ]


def measure(model, seed: int, prompts: int, completions: int):
    """Numbers by source, and correlations of W with squared norms of tokens and of sequences."""
    torch.manual_seed(seed)
    pairs = np.repeat(arithmetic.draw_prompts(prompts, np.random.default_rng(seed)), completions, axis=0)
    ids, mask, _ = arithmetic.sample(model, pairs)
    right, token_rewards = arithmetic.rewards_of(pairs, ids, mask)
    groups = np.repeat(np.arange(prompts), completions)
    found = {}
    for name, options in SOURCES.items():
        scored = token_scores(model, ids, None, mask, **options)
        terminal = scored.rollouts(right, groups=groups)
        found[name] = numbers(terminal, scored.rollouts(token_rewards, groups=groups))
        if name == EXACT:
            live, scores = terminal.live, np.asarray(scored.scores, np.float64)
            squares = np.einsum("ntd,ntd->nt", scores, scores)
            whole = np.square(scores.sum(axis=1)).sum(axis=1)
            stand_in = terminal.score_squares
            by_token = np.corrcoef(squares[live], stand_in[live])[0, 1]
            by_sequence = np.corrcoef(whole, np.where(live, stand_in, 0.0).sum(axis=1))[0, 1]
    scored = sequence_scores(model, ids, None, mask, sketch=Sketch(1024))
    found[SEQUENCES] = numbers(scored.rollouts(right, groups=groups), None)
    return found, (by_token, by_sequence)


def shown(number: rlvar.Estimate | float | None) -> str:
    if number is None:
        return ""
    return f"{number:.0%}" if isinstance(number, float) else str(number)


def main(quick: bool = False) -> None:
    torch.set_num_threads(1)
    rows, correlations = {}, {}
    print(f"| seed, stage | source | {' | '.join(COLUMNS)} |\n|---|---|---|---|---|---|")
    for seed in range(1 if quick else 3):
        for stage, model in stages(seed, quick):
            found, correlations[seed, stage] = measure(model, 10 + seed, *((12, 4) if quick else (32, 8)))
            rows[seed, stage] = found
            for source, values in found.items():
                print(f"| {seed}, {stage} | {source} | {' | '.join(map(shown, values))} |", flush=True)
    print("\nOver all models, found / exact: the least, the median and the most\n")
    print(f"| source | {' | '.join(COLUMNS)} |\n|---|---|---|---|---|")
    for source in (*SOURCES, SEQUENCES):
        cells = []
        for column in range(len(COLUMNS)):
            pairs = [(found[source][column], found[EXACT][column]) for found in rows.values()]
            ratios = [
                float(a) / float(b) for a, b in pairs if a is not None and float(b) > 0 and float(a) > 0
            ]
            low, middle, high = np.quantile(ratios, (0, 0.5, 1)) if ratios else (np.nan,) * 3
            cells.append(f"{low:.2f}, {middle:.2f}, {high:.2f}" if ratios else "")
        print(f"| {source} | {' | '.join(cells)} |")
    by_token, by_sequence = np.array(list(correlations.values())).T
    print("\nCorrelation of verl's W with the squared norm of all parameters' scores:")
    print(f"by token {by_token.min():.2f} to {by_token.max():.2f}", end=", ")
    print(f"by sequence {by_sequence.min():.2f} to {by_sequence.max():.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
