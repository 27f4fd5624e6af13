"""A run of TRL on two processes, watched: what they say is what one process would."""

import sys
from pathlib import Path

import torch

import rlvar.torch.trl
from rlvar.torch import Probe
from tiny_trainers import model, trainer


def main(folder):
    torch.set_num_threads(1)
    calls, update = [], Probe.update

    def spy(self, *args, **kwargs):
        calls.append((args, kwargs))
        return update(self, *args, **kwargs)

    Probe.update = spy
    # The model stays where it is, and groups of 4 are split between processes of 6 rows.
    options = {"per_device_train_batch_size": 6, "learning_rate": 0.0, "bf16": False}
    made = trainer(folder, model=lambda: model(hidden_size=16), **options)
    watcher = rlvar.torch.trl.watch(made, every=1, whole_every=1)
    watcher._write_page = lambda: None
    made.train()
    rank = made.accelerator.process_index
    found = {
        "calls": calls,
        "error": watcher.error,
        "monitors": [watcher.monitor.metrics(), watcher.whole.metrics()],
        "logged": made.state.log_history,
    }
    torch.save(found, Path(folder, f"rank{rank}.pt"))


if __name__ == "__main__":
    main(sys.argv[1])
