"""What watching a run of TRL costs, as a share of the run.

    python bench/trl_watch.py [--threads 1] [--steps 100] [--small]

The model of `examples/arithmetic.py`, 125,248 parameters; steps of 8 prompts with 8 completions. A larger
model pays less: what is beside the passes through it does not grow. The share is taken inside one process, and
what was measured is checked. It exits with status 1 if the promise is missed: at most 5 % with every=10.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from timing import limit_threads

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--small", action="store_true", help="shows that it runs; promises nothing")
args = parser.parse_args()
limit_threads(args.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import arithmetic  # noqa: E402
import arithmetic_trl  # noqa: E402
import rlvar.torch.trl  # noqa: E402

LIMIT = 0.05
torch.set_num_threads(args.threads)
steps = 20 if args.small else args.steps
model = arithmetic.make_model(0)
arithmetic.teach(model, 300, np.random.default_rng(0))
with tempfile.TemporaryDirectory() as folder:
    trainer = arithmetic_trl.make_trainer(model, folder, steps=steps)
    watcher = rlvar.torch.trl.watch(trainer, every=10)
    trainer.train()
history = trainer.state.log_history
seconds = max(each.get("rlvar/seconds", 0.0) for each in history)  # but for the page at the end
(run,) = (each["train_runtime"] for each in history if "train_runtime" in each)
assert watcher.error is None
assert (watcher.monitor.steps, watcher.whole.steps) == (-(-steps // 10), -(-steps // 100))
assert all(each.variance.value > 0 for monitor in (watcher.monitor, watcher.whole) for each in monitor)
print(f"a run of {steps} steps             {run:6.2f} s")
print(f"of it rlvar, with every=10    {seconds:6.2f} s, {seconds / run:.1%}")
sys.exit(not args.small and seconds / run > LIMIT)
