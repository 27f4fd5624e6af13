"""What watching a run of TRL costs, as a share of the run.

    python bench/trl_watch.py [--threads 1] [--steps 100] [--small]

The model of `examples/arithmetic.py`, 125,248 parameters; steps of 8 prompts with 8 completions. A larger
model pays less: what is beside the passes through it does not grow. The share is of this process's processor
time, so that others on the machine do not blur it, and what was measured is checked. It exits with status 1
if the promise is missed: at most 5 % with every=10.
"""

import argparse
import sys
import tempfile
import time
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
rlvar.torch.trl.perf_counter = time.process_time
with tempfile.TemporaryDirectory() as folder:
    trainer = arithmetic_trl.make_trainer(model, folder, steps=steps)
    watcher = rlvar.torch.trl.watch(trainer, every=10)
    watcher._write_page = lambda: None  # a few seconds, once
    began = time.process_time()
    trainer.train()
    run = time.process_time() - began
assert watcher.error is None
assert (watcher.monitor.steps, watcher.whole.steps) == (-(-steps // 10), -(-steps // 50))
assert all(each.variance.value > 0 for monitor in (watcher.monitor, watcher.whole) for each in monitor)
share = watcher.seconds / run
print(f"a run of {steps} steps             {run:6.2f} s of processor time")
print(f"of it rlvar, with every=10    {watcher.seconds:6.2f} s, {share:.1%}")
sys.exit(not args.small and share > LIMIT)
