"""The same gradients in other packages: what they say of the noise scale, and what scores they give.

    python studies/other_packages.py [--data-sets 200]

Prints three Markdown tables, those of docs/comparisons.md. The first takes normal gradients of D = 60
coordinates with variances that fall as 1 / d, U = 64 of them a batch and a noise scale of exactly 40, and has
quantiles of what each way says of it: from one batch, and after 50 batches, smoothed as its package does. The
second takes a small policy and a small language model, and compares gradients of single samples with those of
a loop over backward passes, the largest difference over the largest number, and takes their CPU time on one
thread, the least of five. The third has verl's variance proxies (0.9.1, `compute_variance_proxy_metrics`)
beside what they stand for, on the embedded rollouts of a language model.

Packages that are not installed are left out: gns-pytorch, traintools, opacus, backpack-for-pytorch.
"""

import argparse
import gc
import importlib
import itertools
import time
import warnings

import numpy as np
import torch
from torch.func import functional_call, grad, vmap
from transformers import LlamaConfig, LlamaForCausalLM

import rlvar
import rlvar.torch

COORDINATES, BATCH, MICRO, BATCHES, TRUTH = 60, 64, 8, 50, 40.0


def optional(name):
    """Return a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


gns_pytorch, traintools = optional("gns_pytorch"), optional("traintools.gradnoise")
opacus, backpack = optional("opacus"), optional("backpack")


class World:
    """Normal gradients with a variance of 1 in all, and a mean of squared norm 1 / TRUTH."""

    def __init__(self, rng):
        spread = 1 / np.arange(1, COORDINATES + 1)
        self.deviation = np.sqrt(spread / spread.sum())
        mean = rng.standard_normal(COORDINATES)
        self.mean = mean / np.linalg.norm(mean) / TRUTH**0.5

    def draw(self, rng):
        return self.mean + self.deviation * rng.standard_normal((BATCHES, BATCH, COORDINATES))


def average(values, decay):
    """Exponential mean of values (B,), corrected for its start."""
    weights = decay ** np.arange(len(values))[::-1]
    return weights @ values / weights.sum()


def two_sizes(batches, small, decay):
    """Noise scales from squared norms at two sizes (McCandlish et al. 2018): of the first batch, smoothed.

    S / |G|^2 with |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b), S = (|G_b|^2 - |G_B|^2) / (1 / b - 1 / B).
    """
    b, norms, large = small, *norms_of(batches, small)
    signal = (BATCH * large - b * norms) / (BATCH - b)
    variance = (norms - large) / (1 / b - 1 / BATCH)
    return variance[0] / signal[0], average(variance, decay) / average(signal, decay)


def norms_of(batches, small):
    """Squared norms (B,) at the small size, of the last micro-batch or all examples, and of whole batches."""
    whole = np.square(batches.mean(axis=1)).sum(axis=1)
    if small == 1:
        return np.square(batches).sum(axis=2).mean(axis=1), whole
    return np.square(batches[:, -small:].mean(axis=1)).sum(axis=1), whole


def gpt_neox(batches):
    return two_sizes(batches, MICRO, 0.99)


def per_example(batches):
    return two_sizes(batches, 1, 0.95)


def with_gns_pytorch(batches):
    """Losses that are linear in one parameter, so that their gradients are the given ones."""
    model = torch.nn.Linear(COORDINATES, 1, bias=False, dtype=torch.float64)
    said = [gns_pytorch.compute_gns(model(torch.from_numpy(each))[:, 0], model) for each in batches]
    return said[0], np.mean(said)


def with_traintools(batches):
    estimator = traintools.GNSEstimator()
    micro = torch.from_numpy(batches.reshape(BATCHES, -1, MICRO, COORDINATES).mean(axis=2))
    said = [estimator.update(each, MICRO, BATCH).gns for each in micro]
    return said[0], said[-1]


def with_rlvar(batches):
    """Estimates, with intervals."""
    monitor = rlvar.Monitor(reference="gradients", window=BATCHES)
    for each in batches:
        monitor.update({"gradients": each})
    one = rlvar.compare_gradients({"gradients": batches[0]})["gradients"].noise_scale
    return one, monitor["gradients"].noise_scale


WAYS = {
    "two batch sizes, 8 and 64 (GPT-NeoX)": gpt_neox,
    "norms of single examples (nanoGNS)": per_example,
    **({"gns-pytorch, mean over batches": with_gns_pytorch} if gns_pytorch else {}),
    **({"traintools, 8 micro-batches of 8": with_traintools} if traintools else {}),
    "rlvar": with_rlvar,
}


def noise_scales(count):
    """Print quantiles of noise scales, and how often the intervals of those that have one hold the truth."""
    rng = np.random.default_rng(0)
    world, said = World(rng), {name: [] for name in WAYS}
    for _ in range(count):
        batches = world.draw(rng)
        for name, way in WAYS.items():
            said[name].append(way(batches))
    print("| noise scale of 40 | one batch: 5 %, 50 %, 95 % | after 50: 5 %, 50 %, 95 % | interval |")
    print("|---|---|---|---|")
    for name, pairs in said.items():
        cells = []
        for values in zip(*pairs, strict=True):
            quantiles = np.quantile([float(x) for x in values], [0.05, 0.5, 0.95])
            cells.append(", ".join(f"{x:.3g}" for x in quantiles))
        held = "none"
        if name == "rlvar":
            held = " and ".join(
                f"{np.mean([x.low <= TRUTH <= x.high for x in values]):.0%}"
                for values in zip(*pairs, strict=True)
            )
            held = f"holds 40 in {held}"
        print(f"| {name} | {' | '.join(cells)} | {held} |", flush=True)


class Actor(torch.nn.Module):
    """A policy of two actions, as for CartPole."""

    def __init__(self):
        super().__init__()
        sizes = (4, 64, 64, 2)
        layers = [[torch.nn.Linear(a, b), torch.nn.Tanh()] for a, b in itertools.pairwise(sizes)]
        self.layers = torch.nn.Sequential(*[module for pair in layers for module in pair][:-1])

    def forward(self, observation):
        return self.layers(observation)


def actor(count=1000):
    """Return a model, its arguments, and the log-probabilities that it gives by sample."""
    torch.manual_seed(0)
    model, observations, actions = Actor(), torch.randn(count, 4), torch.randint(2, (count,))

    def logp(model, observations, actions):
        return model(observations).log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    return model, (observations, actions), logp


def language_model(count=16):
    """A completion's log-probability, summed over its 11 tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model, ids = LlamaForCausalLM(config), torch.randint(50, (count, 12))

    def logp(model, ids):
        found = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
        return found.gather(-1, ids[:, 1:, None])[..., 0].sum(1)

    return model, (ids,), logp


def flat(tensors):
    return torch.cat([each.flatten(1) for each in tensors], dim=1)


def by_loop(model, given, logp):
    rows = []
    for n in range(len(given[0])):
        of_one = torch.autograd.grad(logp(model, *(x[n : n + 1] for x in given))[0], list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in of_one]))
    return torch.stack(rows)


def by_vmap(model, given, logp):
    def one(parameters, *sample):
        def called(*args, **named):
            return functional_call(model, parameters, args, named)

        return logp(called, *(x[None] for x in sample))[0]

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    return flat(vmap(grad(one), in_dims=(None, *[0] * len(given)))(parameters, *given).values())


def by_opacus(model, given, logp):
    wrapped = opacus.GradSampleModule(model, loss_reduction="sum")
    try:
        logp(wrapped, *given).sum().backward()
        return flat([p.grad_sample for p in model.parameters()])
    finally:
        wrapped.to_standard_module()
        model.zero_grad()


def by_backpack(model, given, logp):
    extended = backpack.extend(model)
    with backpack.backpack(backpack.extensions.BatchGrad()):
        logp(extended, *given).sum().backward()
    if lacking := sum(not hasattr(p, "grad_batch") for p in model.parameters()):
        raise NotImplementedError(f"nothing for {lacking} of {len(list(model.parameters()))} parameters")
    return flat([p.grad_batch for p in model.parameters()])


def by_rlvar(model, given, logp):
    if isinstance(model, Actor):
        scored = rlvar.torch.per_step_scores(logp, model, *(x[:, None] for x in given))
        return torch.from_numpy(scored.scores[:, 0])
    (ids,) = given
    sequences = rlvar.torch.sequence_scores(
        model, ids, torch.ones_like(ids), torch.ones(len(ids), 11), sketch=None
    )
    return torch.from_numpy(sequences.scores[:, 0])


METHODS = {
    "a loop of backward passes": by_loop,
    "torch.func, vmap(grad)": by_vmap,
    **({"Opacus, GradSampleModule": by_opacus} if opacus else {}),
    **({"BackPACK, BatchGrad": by_backpack} if backpack else {}),
    "rlvar.torch": by_rlvar,
}


def scores():
    """Print how far gradients of single samples are from those of a loop, and how long they take."""
    print("| single gradients | 1,000 steps of a policy: off by | time | 16 completions: off by | time |")
    print("|---|---|---|---|---|")
    cells = {name: [] for name in METHODS}
    for make in (actor, language_model):
        right = by_loop(*make())
        for name, method in METHODS.items():
            try:
                taken = []
                for _ in range(5):
                    setting = make()
                    start = time.process_time()
                    found = method(*setting)
                    taken.append(time.process_time() - start)
                off = float((found - right).abs().max() / right.abs().max())
                cells[name] += [f"{off:.0e}", f"{min(taken) * 1e3:.3g} ms"]
            except NotImplementedError as error:
                cells[name] += [str(error), ""]
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


def proxies():
    """Print verl's proxies: |G|^2, E[A^2 W] and their difference over N - 1, not below 0, and what is so.

    A is the advantage of a completion and W the sum over its tokens of 1 - 2 pi + sum pi^2, the squared norm
    of the score by the logits.
    """
    rollouts = rlvar.datasets.arithmetic()
    n, k = len(rollouts), 16  # completions, those of one prompt in a row
    live = rollouts.live
    squares = np.where(live, rollouts.score_squares, 0.0).sum(axis=1)
    sums = np.where(live[:, :, None], rollouts.scores, 0.0).sum(axis=1, dtype=np.float64)
    rewards = rollouts.rewards.reshape(-1, k)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    advantages = {
        "rloo": centred * k / (k - 1),
        "grpo": centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6),
        "single": rewards,
    }
    power = {name: np.mean(a.ravel() ** 2 * squares) for name, a in advantages.items()}
    comparison = rlvar.compare(rollouts, list(advantages))
    print("| of the embedded rollouts | verl's proxy | rlvar |\n|---|---|---|")
    for name in ("grpo", "single"):
        print(f"| {name} over RLOO | {power[name] / power['rloo']:.3g} | {comparison[name].ratio} |")
    mean = (advantages["rloo"].ravel()[:, None] * sums).mean(axis=0)
    noise = max(0.0, (power["rloo"] - mean @ mean) / (n - 1))
    row = comparison["rloo"]
    variance = f"{row.variance.value / (n / k):.3g}"
    print(f"| RLOO, signal | {mean @ mean:.3g} | {row.signal} |")
    print(f"| RLOO, variance of the mean | {noise:.3g} | {variance} |")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-sets", type=int, default=200)
    count = parser.parse_args(arguments).data_sets
    torch.set_num_threads(1)
    gc.freeze()  # gns-pytorch collects garbage at every call
    warnings.simplefilter("ignore")  # what the packages warn of
    proxies()
    print()
    noise_scales(count)
    print()
    scores()


if __name__ == "__main__":
    main()
