"""Batches of two processes and of one; run by itself, one of the two: ``two_processes.py FOLDER RANK``."""

import pickle
import sys
from pathlib import Path

import numpy as np
import torch

from rlvar.torch import Probe, Sketch

VOCABULARY = 23
GROUPS = [0, 0, 1, 1, 1, 2, 2, 2]
LENGTHS = [3, 4, 5, 6, 3, 4, 5, 6]  # of responses


class Fed:
    """A monitor that keeps what it is fed."""

    def __init__(self):
        self.updates = []

    def update(self, given, **options):
        self.updates.append((given, options))


def everything(steps=False):
    """What one process has of 8 rollouts of 3 prompts: tokens (8, 10), numbers of the last 6 columns."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, VOCABULARY, (3, 4))
    ids = np.concatenate([prompts[GROUPS], rng.integers(3, VOCABULARY, (8, 6))], axis=1)
    response = np.arange(6) < np.array(LENGTHS)[:, None]
    return {
        "input_ids": ids,
        "attention_mask": np.concatenate([np.ones((8, 4), bool), response], axis=1),
        "response_mask": response,
        "rewards": rng.uniform(size=(8, 6)) if steps else np.array([0.0, 1.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.3]),
        "groups": np.array(GROUPS),
        "behavior_logp": rng.normal(-3.0, 0.5, (8, 6)),
        "mine": rng.standard_normal((8, 6)),
    }


def rows_of(data, rows, padded=0):
    """Some rows, with more columns of padding on the right."""
    found = {}
    for name, array in data.items():
        wider = [(0, 0), (0, padded)] if array.ndim == 2 else [(0, 0)]
        found[name] = np.pad(array[rows], wider)
    return found


def split(data, at, padded=0):
    """Return data of one process, and the same of two."""
    return data, [rows_of(data, slice(at), padded), rows_of(data, slice(at, None))]


def _cases():
    few, dead, silent, lonely = (everything() for _ in range(4))
    missing = everything(steps=True)
    del few["groups"]
    missing["rewards"][[1, 6], 2] = np.nan
    dead["rewards"][4:] = np.nan  # which leaves the one row of group 1 on the first process with one other
    lonely["rewards"][3:5] = np.nan  # and this alone
    silent["response_mask"][5:] = silent["attention_mask"][5:, 4:] = False
    return {
        "a group on both": split(everything(), 3, padded=2),
        "no groups": split(few, 3),
        "rewards a token, some missing": split(missing, 3, padded=1),
        "no rewards on one": split(dead, 4),
        "a row left alone": split(lonely, 3),
        "no tokens on one": split(silent, 5),
        "no rows on one": split(everything(), 8),
    }


CASES = _cases()


class Small(torch.nn.Module):
    """A causal model in float64, without transformers, which takes seconds to import."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.mixing = torch.nn.Embedding(VOCABULARY, 16), torch.nn.Linear(16, 16)
        self.norm, self.head = torch.nn.RMSNorm(16), torch.nn.Linear(16, VOCABULARY, bias=False)
        self.double()

    def forward(self, input_ids, attention_mask):
        states = self.embedding(input_ids)
        weights = attention_mask[..., None].to(states)
        past = (states * weights).cumsum(1) / weights.cumsum(1).clamp(min=1)
        return self.head(self.norm(self.mixing(past + states).tanh()))


def made():
    return Probe(Small(), monitor=Fed(), whole=Fed(), sketch=Sketch(64))


def measured(probe, data):
    """What a probe finds, as arrays."""
    data = dict(data)
    own = ("mine", data.pop("mine")), ("of ratios", lambda rollouts: rollouts.logp - rollouts.behavior_logp)
    estimators = "single-mean", "multi-mean", *own, *["rloo", "otb-verl"] * ("groups" in data)
    rollouts = probe.update(**data)
    found = probe.gradients(**data, estimators=estimators)
    assert probe.monitor.updates[-1][0] is rollouts
    assert probe.whole.updates[-1][0] is found
    names = "scores", "rewards", "groups", "lengths", "logp", "behavior_logp", "score_squares"
    arrays = {name: getattr(rollouts.padded(), name) for name in names}
    return {name: array for name, array in arrays.items() if array is not None} | {
        **found,
        "sizes": found.sizes,
        "passes": np.array(list(found.passes.values())),
        "sketched": np.array([rollouts.sketched, found.known["sketched"]]),
        "names": np.array([rollouts.scores_of, found.scores_of]).view(np.uint32),
    }


def _error(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def _failing(*_, **__):
    raise FloatingPointError("of the model")


def _run(rank):
    probe, found = made(), {}
    for case, (_, parts) in CASES.items():
        found[case] = measured(probe, parts[rank])
    part = dict(CASES["a group on both"][1][rank])
    del part["mine"]
    short = {**part, "rewards": part["rewards"][:3]} if rank else part
    found["error"] = [_error(lambda: probe.update(**short))]
    if rank:
        probe.model.forward = _failing
    found["error"] += [
        _error(lambda: probe.update(**part)),
        _error(lambda: probe.gradients(**part, estimators="rloo")),
    ]
    if rank:
        del probe.model.forward
    found["labels"] = _error(lambda: probe.update(**{**part, "groups": [[0, 0, 1], [0, 0, 1, 1, 1]][rank]}))
    alone = [torch.distributed.new_group([0]), torch.distributed.new_group([1])][rank]
    found["alone"] = len(Probe(probe.model, process_group=alone).update(**part))
    return found


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    outcome = _run(rank)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(outcome))
    torch.distributed.destroy_process_group()
