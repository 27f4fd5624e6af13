"""Does acting on the verdict pay? Training a small language model with the batch that rlvar asks for.

    python studies/acting.py run --out docs/acting.json --device cuda   # six minutes on one H200
    python studies/acting.py show docs/acting.json --picture docs/acting.svg

The model of `examples/arithmetic.py`, taught until 15 % of its completions are right, is trained by policy
gradient with Adam, 64 rollouts a step, until 80 % are right on pairs of numbers that no step has seen. This
probability is exact: that of the one right completion, averaged over the pairs. An arm is an estimator and a
shape, prompts x completions. For a seed all arms start from one taught model; every arm is tried with every
learning rate of the grid. Before any training rlvar predicts the variance of each arm's step from rollouts of
the taught model; that of 200 real steps at the same parameters is set beside it. All runs of a task train
together (`studies/ensemble.py`).

Tasks: "sum", one reward for a completion that is all right; "digits", a longer completion with a reward for
each token up to the first wrong one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import acting_results
import arithmetic
import ensemble
import rlvar
from rlvar.torch import Sketch, sequence_scores, token_scores

ROLLOUTS, EVERY = 64, 20  # of a step; steps between two looks at the success
PAIRS = np.array([(a, b) for a in range(10, 100) for b in range(10, 100)])
HELD_OUT = np.random.default_rng(0).permutation(len(PAIRS))[: len(PAIRS) // 5]
SEEN = np.setdiff1d(np.arange(len(PAIRS)), HELD_OUT)
RATES = (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4)
IN_USE = (4, 16)  # prompts x completions that people start from: predictions are made from its rollouts


class Arm(NamedTuple):
    estimator: str
    prompts: int
    completions: int

    def __str__(self) -> str:
        return f"{self.estimator} {self.prompts}x{self.completions}"


class Task(NamedTuple):
    """What is to be written, in at most `longest` tokens, whether each is rewarded, and the arms."""

    right: str
    longest: int
    by_token: bool
    arms: tuple[Arm, ...]

    def completion(self, a: int, b: int) -> str:
        return self.right.format(
            ones=a % 10 + b % 10, tens=a // 10 + b // 10, sum=a + b, back=str(a + b)[::-1]
        )


_BOTH = (
    *(Arm("rloo", p, ROLLOUTS // p) for p in (4, 8, 16, 32)),
    *(Arm("grpo", p, ROLLOUTS // p) for p in (4, 8, 16)),
    Arm("single", 4, 16),
    Arm("single", 64, 1),
    Arm("single-mean", 64, 1),
)
TASKS = {
    "sum": Task("{ones} {sum}.", 8, False, (*_BOTH, Arm("otb", 64, 1))),
    "digits": Task(
        "{ones} {tens} {sum} {back}.",
        14,
        True,
        (*_BOTH, Arm("multi", 64, 1), Arm("multi-mean", 64, 1), Arm("otb", 64, 1), Arm("multi", 4, 16)),
    ),
}


# What is sampled, and what it is weighted by


class Tables(NamedTuple):
    """All prompts (8100, 6) and right completions (8100, longest) as tokens."""

    prompts: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, task: Task, device: str) -> Tables:
        right = [arithmetic.encode(task.completion(a, b).ljust(task.longest, "_")) for a, b in PAIRS]
        return cls(arithmetic.prompts_as_tokens(PAIRS).to(device), torch.tensor(right, device=device))


def right_tokens(targets, ids, mask):
    """1 for each token up to the first wrong one, and whether all are right."""
    same = ids[..., -targets.shape[-1] :] == targets
    return (same & mask).cumprod(-1).float(), same.all(-1).float()


def weights_of(arm: Arm, rewards, mask, log_probs, written):
    """Weights (R, 64, T) of an arm's runs; rewards (R, 64, T), log-probabilities (R, 64, T, V)."""
    whole = rewards.sum(-1)
    by_group = whole.view(len(whole), arm.prompts, arm.completions)
    live = mask.float()
    others = live.sum(1, keepdim=True) - 1
    to_go = rewards.flip(-1).cumsum(-1).flip(-1) * live
    if arm.estimator in ("rloo", "grpo"):
        centred = by_group - by_group.mean(-1, keepdim=True)
        if arm.estimator == "rloo":
            found = centred * arm.completions / (arm.completions - 1)
        else:
            found = centred / (by_group.std(-1, keepdim=True) + 1e-6)
        found = found.view_as(whole)[..., None]
    elif arm.estimator == "single":
        found = whole[..., None]
    elif arm.estimator == "single-mean":
        found = ((whole - whole.mean(1, keepdim=True)) * whole.shape[1] / (whole.shape[1] - 1))[..., None]
    elif arm.estimator == "multi":
        found = to_go
    elif arm.estimator == "multi-mean":
        mean = (to_go.sum(1, keepdim=True) - to_go) / others.clamp(min=1)
        found = to_go - mean
    else:  # the optimal token baseline over the batch, as verl computes it
        p = log_probs.exp()
        squares = 1 - 2 * p.gather(-1, written[..., None])[..., 0] + p.square().sum(-1)
        energy = (squares * live).cumsum(-1) * live
        baseline = (to_go * energy).sum(1, keepdim=True) / (energy.sum(1, keepdim=True) + 1e-8)
        found = to_go - baseline.where(others > 0, 0.0)
    return found * live


def draw(p, arms_of, task: Task, tables: Tables, generator):
    """One batch for each copy: ids, which tokens are written, rewards (R, 64, T). `arms_of` (R,) are arms."""
    pairs = torch.empty(len(arms_of), ROLLOUTS, dtype=torch.long, device=tables.prompts.device)
    seen = torch.as_tensor(SEEN, device=pairs.device)
    for arm, rows in rows_by_arm(arms_of):
        drawn = torch.randint(len(seen), (len(rows), arm.prompts), generator=generator, device=pairs.device)
        pairs[rows] = seen[drawn].repeat_interleave(arm.completions, 1)
    ids, mask = ensemble.sample(p, tables.prompts[pairs], task.longest, arithmetic.END, generator)
    by_token, right = right_tokens(tables.targets[pairs], ids, mask)
    if task.by_token:
        return ids, mask, by_token
    last = mask & ~torch.nn.functional.pad(mask[..., 1:], (0, 1))
    return ids, mask, right[..., None] * last


def rows_by_arm(arms_of):
    for arm in dict.fromkeys(arms_of):
        yield arm, [row for row, each in enumerate(arms_of) if each == arm]


def gradients(p, arms_of, task: Task, ids, mask, rewards):
    """Gradient of minus the weighted log-probabilities, the mean over the batch, of each copy."""

    def loss(leaves):
        log_probs = ensemble.completion_logits(leaves, ids, task.longest)
        written = ids[..., -task.longest :]
        logp = log_probs.gather(-1, written[..., None])[..., 0]
        weights = torch.empty_like(rewards)
        for arm, rows in rows_by_arm(arms_of):
            given = rewards[rows], mask[rows], log_probs.detach()[rows], written[rows]
            weights[rows] = weights_of(arm, *given)
        return -(weights * logp).sum() / ROLLOUTS

    return ensemble.gradients_of(p, loss)


@torch.no_grad()
def success(p, tables: Tables, pairs: np.ndarray, chunk: int = 128) -> torch.Tensor:
    """Probability (R,) of a right completion, the mean over pairs."""
    copies, total = len(p["lm_head.weight"]), 0.0
    for some in np.array_split(pairs, -(-len(pairs) // chunk)):
        prompts, targets = tables.prompts[some], tables.targets[some]
        ids = torch.cat([prompts, targets], -1).expand(copies, -1, -1)
        log_probs = ensemble.completion_logits(p, ids, targets.shape[-1])
        logp = log_probs.gather(-1, targets.expand(copies, -1, -1)[..., None])[..., 0]
        total = total + (logp * (targets != 0)).sum(-1).exp().sum(-1)
    return total / len(pairs)


# From a taught model to one that has learned


def teach(task: Task, tables: Tables, seeds: int, start: float, held_out: np.ndarray, device: str):
    """State dicts of models, one a seed, each as it was when `start` of its completions were right."""
    models = [arithmetic.make_model(seed).state_dict() for seed in range(seeds)]
    p = ensemble.stacked(models, device)
    adam = ensemble.Adam(p, torch.full((seeds,), 2e-3, device=device))
    generator = torch.Generator(device).manual_seed(1)
    seen = torch.as_tensor(SEEN, device=device)
    taught, steps = {}, 0
    while len(taught) < seeds:
        pairs = seen[torch.randint(len(seen), (seeds, 64), generator=generator, device=device)]
        ids, targets = torch.cat([tables.prompts[pairs], tables.targets[pairs]], -1), tables.targets[pairs]

        def loss(leaves, ids=ids, targets=targets):
            log_probs = ensemble.completion_logits(leaves, ids, task.longest)
            logp = log_probs.gather(-1, targets[..., None])[..., 0] * (targets != 0)
            return -(logp.sum((1, 2)) / (targets != 0).sum((1, 2))).sum()

        adam.step(ensemble.gradients_of(p, loss))
        steps += 1
        if steps % 10 == 0:
            for seed, rate in enumerate(success(p, tables, held_out).tolist()):
                if rate >= start and seed not in taught:
                    taught[seed] = {name: x[seed].clone() for name, x in p.items()}
        if steps > 5000:
            raise RuntimeError("the models do not learn")
    return [taught[seed] for seed in range(seeds)]


def train(task: Task, tables: Tables, starts, rates, goal, most, held_out, device, so_far):
    """Train all runs to the goal: success by (arm, rate, seed), a list with a number every twenty steps."""
    keys = [(arm, rate, seed) for arm in task.arms for rate in rates for seed in range(len(starts))]
    p = ensemble.stacked([starts[seed] for _, _, seed in keys], device)
    adam = ensemble.Adam(p, torch.tensor([rate for _, rate, _ in keys], device=device))
    generator = torch.Generator(device).manual_seed(2)
    curves = {key: [] for key in keys}
    running, step = list(keys), 0
    while running:
        if step % EVERY == 0:
            now = success(p, tables, held_out).tolist()
            for key, rate in zip(running, now, strict=True):
                curves[key].append(rate)
            left = [row for row, rate in enumerate(now) if rate < goal] if step < most else []
            if len(left) < len(running):
                running = [running[row] for row in left]
                adam.keep(torch.tensor(left, dtype=torch.long, device=device))
            so_far(curves, step, len(running))
            if not running:
                break
        arms_of = [arm for arm, _, _ in running]
        adam.step(gradients(p, arms_of, task, *draw(p, arms_of, task, tables, generator)))
        step += 1
    return curves


# What rlvar says beforehand, and what steps then vary by


class Scored(NamedTuple):
    """Rollouts of a taught model, in groups: with scores of whole completions, and of tokens."""

    whole: rlvar.Rollouts
    tokens: rlvar.Rollouts | None


def score(task: Task, start, seed: int, batches: int, tokens: int) -> Scored:
    """Sample `batches` of the batch in use and score them by all parameters, as a user would."""
    tables, p = Tables.of(task, "cpu"), ensemble.stacked([start], "cpu")
    model = arithmetic.make_model(0)
    model.load_state_dict(start)
    prompts, completions = IN_USE[0] * batches, IN_USE[1]
    pairs = SEEN[np.random.default_rng([seed, 7]).integers(len(SEEN), size=prompts)].repeat(completions)
    generator = torch.Generator().manual_seed(1000 + seed)
    ids, mask = ensemble.sample(p, tables.prompts[pairs][None], task.longest, arithmetic.END, generator)
    by_token, right = (x[0].double().numpy() for x in right_tokens(tables.targets[pairs], ids, mask))
    given = model, ids[0], None, mask[0]
    groups = np.arange(prompts).repeat(completions)
    returns = by_token.sum(axis=-1) if task.by_token else right
    whole = sequence_scores(*given, sketch=Sketch(1024)).rollouts(returns, groups=groups)
    if not task.by_token or batches == 1:
        return Scored(whole, None)
    return Scored(whole, token_scores(*given, sketch=Sketch(tokens)).rollouts(by_token, groups=groups))


def predict(name: str, start, seed: int, batches: int, tokens: int) -> dict:
    """Say what each arm's step varies by, and plan, from `batches` of the batch in use.

    "single", "rloo" and "grpo" go by scores of whole completions; what weighs tokens apart by a sketch of
    every token's score, with `tokens` coordinates; a baseline over the batch by how it compares with none, if
    there are batches enough.
    """
    task = TASKS[name]
    scored = score(task, {key: torch.from_numpy(x) for key, x in start.items()}, seed, batches, tokens)
    plans = {each: rlvar.plan(scored.whole, each, budget=ROLLOUTS) for each in ("single", "rloo")}
    found = by_shape(task, scored)
    if batches > 1:
        found |= over_the_batch(task, scored, found)
    return {
        "arms": {str(arm): variance for arm, variance in found.items()},
        "plans": {each: [plan.prompts, plan.completions, plan.gain.value] for each, plan in plans.items()},
    }


def by_shape(task: Task, scored: Scored) -> dict[Arm, float]:
    """Variance of a step whose weights depend on a rollout or its group alone, V(K) / P."""
    parts = {name: rlvar.prompt_components(scored.whole, name) for name in ("single", "rloo", "grpo")}
    if scored.tokens is not None:
        parts["multi"] = rlvar.prompt_components(scored.tokens, "multi")
    found = {
        arm: parts[arm.estimator].batch_variance(arm.prompts, arm.completions).value
        for arm in task.arms
        if arm.estimator in parts
    }
    scale = rlvar.compare(scored.whole, ["rloo", "grpo"], reference="rloo")["grpo"].noise_scale_ratio
    rloo, grpo = (parts[name].batch_variance(1, IN_USE[1]).value for name in ("rloo", "grpo"))
    for arm in task.arms:
        if arm.estimator == "grpo":  # to the scale of RLOO's gradient
            found[arm] *= np.nan if scale is None or not grpo else scale.value * rloo / grpo
    return found


def over_the_batch(task: Task, scored: Scored, found: dict[Arm, float]) -> dict[Arm, float]:
    """Variance of a step with a baseline over the batch of one completion a prompt.

    That without it, times the ratio of variances in sets of one completion of each prompt, as many sets as
    there are completions.
    """
    result = {}
    for plain, names, one in (
        ("single", ("single-mean",), scored.whole),
        ("multi", ("multi-mean", "otb"), scored.tokens),
    ):
        arms = [arm for arm in task.arms if arm.estimator in names]
        if one is None or not arms:
            continue
        rows = []
        for first in range(IN_USE[1]):
            some = np.arange(first, len(one.scores), IN_USE[1])
            rollouts = rlvar.Rollouts(one.scores[some], one.rewards[some], lengths=one.lengths[some])
            compared = rlvar.compare(rollouts, [plain, *(arm.estimator for arm in arms)], reference=plain)
            rows.append([row.variance.value for row in compared.rows])
        without, *with_ = np.sum(rows, axis=0)
        for arm, variance in zip(arms, with_, strict=True):
            result[arm] = float(found[Arm(plain, arm.prompts, arm.completions)] * variance / without)
    return result


def realise(task: Task, tables: Tables, start, repeats: int, device: str, seed: int) -> dict:
    """Variance and squared mean, unbiased, of each arm's gradient over repeated batches at one model."""
    p = {name: x[None].expand(repeats, *x.shape).to(device) for name, x in start.items()}
    generator = torch.Generator(device).manual_seed(3000 + seed)
    found = {}
    for arm in task.arms:
        arms_of = [arm] * repeats
        given = draw(p, arms_of, task, tables, generator)
        steps = gradients(p, arms_of, task, *given).values()
        variance = sum(float(g.double().var(0).sum()) for g in steps)
        squared = sum(float(g.double().mean(0).square().sum()) for g in steps)
        found[str(arm)] = [variance, squared - variance / repeats]
    return found


# Subcommands


def run(options) -> None:
    device, began = options.device, time.perf_counter()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")

    def log(line: str) -> None:
        print(f"{time.perf_counter() - began:6.0f} s {line}", flush=True)

    held_out = HELD_OUT[: options.held_out]
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "rates": options.rates,
        "every": EVERY * ROLLOUTS,
        "levels": [x / 10 for x in range(1, 10) if options.start < x / 10 < options.goal] + [options.goal],
        "most": options.most * ROLLOUTS,
        "in use": list(IN_USE),
        "pooled": options.pooled,
        "tasks": {},
    }
    starts, tables = {}, {name: Tables.of(TASKS[name], device) for name in options.tasks}
    # Predictions are made by other processes, from the taught models alone, while this one trains.
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), initializer=in_a_worker)
    with pool:
        asked = {}
        for name in options.tasks:
            starts[name] = teach(TASKS[name], tables[name], options.seeds, options.start, held_out, device)
            log(f"{name}: {options.seeds} models taught")
            for batches in (options.pooled, 1):
                asked[name, batches] = [
                    pool.submit(predict, name, on_cpu(start), seed, batches, options.tokens)
                    for seed, start in enumerate(starts[name])
                ]
        for name in options.tasks:
            task, of_task = TASKS[name], found["tasks"].setdefault(name, {})
            p = ensemble.stacked(starts[name], device)
            of_task["started"] = success(p, tables[name], held_out).tolist()
            of_task["realised"] = [
                realise(task, tables[name], start, options.repeats, device, seed)
                for seed, start in enumerate(starts[name])
            ]
            log(f"{name}: variances of steps realised")

            def so_far(curves, step, running, task=task, of_task=of_task):
                log(f"  step {step}: {running} of {len(curves)} runs go on")
                of_task["runs"] = by_arm(curves, task, options, found["levels"])
                write(options.out, found)

            given = starts[name], options.rates, options.goal, options.most, held_out, device
            train(task, tables[name], *given, so_far)
        for (name, batches), results in asked.items():
            key = "one batch" if batches == 1 else "pooled"
            found["tasks"][name][key] = [result_or_error(each) for each in results]
    write(options.out, found)
    log("done")


def in_a_worker() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of few groups


def on_cpu(start: ensemble.Parameters) -> dict[str, np.ndarray]:
    return {name: x.cpu().numpy() for name, x in start.items()}


def result_or_error(asked: Future) -> dict | None:
    """What was predicted; an error is told, and does not cost the runs."""
    try:
        return asked.result()
    except Exception as error:
        print(f"no prediction: {error!r}", flush=True)
        return None


def by_arm(curves, task: Task, options, levels) -> dict:
    """Of each arm, by rate and seed, looks until success was at each level, and the last success.

    And by rate the median of success over seeds at every look, of runs that have ended the last, in
    thousandths.
    """
    found = {}
    for arm in task.arms:
        of_arm = found[str(arm)] = {"reached": [], "last": [], "median": []}
        for rate in options.rates:
            runs = [curves[arm, rate, seed] for seed in range(options.seeds)]
            first = [[next((i for i, x in enumerate(run) if x >= y), None) for y in levels] for run in runs]
            held = [run + run[-1:] * (max(map(len, runs)) - len(run)) for run in runs]
            of_arm["reached"].append(first)
            of_arm["last"].append([round(run[-1], 3) for run in runs])
            of_arm["median"].append([round(1000 * x) for x in np.median(held, axis=0)])
    return found


def write(path: str, found: dict) -> None:
    def short(x):
        if isinstance(x, float):
            return float(f"{x:.4g}") if np.isfinite(x) else None
        if isinstance(x, dict):
            return {key: short(value) for key, value in x.items()}
        return [short(value) for value in x] if isinstance(x, (list, tuple)) else x

    Path(path).write_text(json.dumps(short(found), separators=(",", ":")) + "\n")


def main(given=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run", help="train, predict and write what came out as JSON")
    one.add_argument("--out", required=True)
    one.add_argument("--device", default="cpu")
    one.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    one.add_argument("--seeds", type=int, default=10)
    one.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    one.add_argument("--start", type=float, default=0.15)
    one.add_argument("--goal", type=float, default=0.80)
    one.add_argument("--most", type=int, default=1400, help="steps of 64 rollouts")
    one.add_argument("--repeats", type=int, default=200, help="steps behind each realised variance")
    one.add_argument("--pooled", type=int, default=8, help="batches in use behind a prediction")
    one.add_argument("--tokens", type=int, default=64, help="coordinates of a sketch of tokens' scores")
    one.add_argument("--held-out", type=int, default=810, help="pairs")
    one.add_argument("--processes", type=int, default=None, help="that predict beside the training")
    one.set_defaults(call=run)
    two = commands.add_parser("show", help="print tables of what came out, draw the picture")
    two.add_argument("file")
    two.add_argument("--picture", metavar="FILE")
    two.set_defaults(call=lambda options: acting_results.show(options.file, options.picture))
    options = parser.parse_args(given)
    options.call(options)


if __name__ == "__main__":
    main()
