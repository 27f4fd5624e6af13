"""The README's rows and every promise of speed: ours and the peers in turn, in one process, medians.

    python bench/promises.py [--threads 1] [--rounds 15] [--only covariance ...] [--shapes small]

Checks every result, prints the README's table (the fastest peer beside each of ours), a table of all that
was timed, then each promise with what was measured, and exits with status 1 if one is missed; an aim is
only reported. Peers that are not installed are left out; what takes more than five times as long as
rlvar runs a few times only. Small shapes show that the script runs: there every promise is only an aim.
See bench/README.md.
"""

import argparse
import importlib
import sys
import tracemalloc
from typing import NamedTuple

from timing import in_turn, keep_memory, limit_threads

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--only", nargs="+", metavar="OPERATION")
parser.add_argument("--shapes", choices=["full", "small"], default="full")
args = parser.parse_args()
limit_threads(args.threads)  # read when numpy, rlvar and the peers are imported
keep_memory()

import numpy as np  # noqa: E402

import peers  # noqa: E402
import rlvar  # noqa: E402
from rlvar import _core  # noqa: E402

OURS = "rlvar"
SLOW, SLOW_ROUNDS = 5, min(3, args.rounds)
TURNS = {"warm": True, "pause": 0.05} if args.threads > 1 else {}  # OpenBLAS's idle threads spin for 30 ms
SMALL = args.shapes == "small"
COVARIANCE = [(16, 32, 8), (9, 70, 5)] if SMALL else peers.COVARIANCE_SHAPES
FACTORED = [(8, 40, 5, 7)] if SMALL else peers.FACTORED_SHAPES
DECOMPOSE = [(8, 128, 8)] if SMALL else [(256, 512, 64), (64, 4096, 128)]
IN_CACHE = [(9, 40)] if SMALL else peers.SCAN_SHAPES
OUT_OF_CACHE = (64, 300) if SMALL else (1024, 16384)
CALL = (8, 16)
COMPARE, GROUP = (32, 20, 4) if SMALL else (512, 1024, 128), 4
BLOCK, SEVERAL = 16, 8
EIGHT = {
    "eight from rewards": ["single", "multi", "single-mean", "multi-mean", "rloo", "grpo", "dr-grpo", "opo"],
    "eight cross-fitted": ["single", "multi", "rloo", "grpo", "dr-grpo", "opo", "single-optimal", "otb"],
}


class Promise(NamedTuple):
    """On each of some shapes, what `above` takes over what `below` takes is at least or at most `limit`."""

    operation: str
    shapes: list
    above: str
    below: str
    bound: str
    limit: float
    aim: bool = False  # reported, never missed


PROMISES = [
    Promise("covariance", COVARIANCE, "best peer", OURS, "at least", 1.2),
    Promise("covariance", COVARIANCE[:2], "X @ X.T alone", OURS, "at least", 0.9),
    Promise("covariance", COVARIANCE[2:], "X @ X.T alone", OURS, "at least", 0.8),
    Promise("covariance", COVARIANCE[:2], "A @ B of as many operations", OURS, "at least", 0.9, True),
    Promise("covariance", COVARIANCE[2:], "A @ B of as many operations", OURS, "at least", 0.75, True),
    Promise("covariance", COVARIANCE, "ragged lengths", OURS, "at most", 0.45),
    Promise("covariance", COVARIANCE, "ragged lengths", OURS, "at most", 0.4, True),
    Promise("covariance", COVARIANCE[1:2], OURS, f"block_size={BLOCK}", "at least", 20),
    Promise("covariance", COVARIANCE[:1], f"{SEVERAL} one by one", f"{SEVERAL} at once", "at least", 2, True),
    Promise("covariance_factored", FACTORED, "rlvar: covariance of a (x) b", OURS, "at least", 10),
    Promise("covariance_factored", FACTORED, "A @ B of as many operations", OURS, "at least", 0.4, True),
    Promise("decompose", DECOMPOSE, OURS, "scores.sum()", "at most", 4),
    Promise("reward_to_go", IN_CACHE, "numpy: loop over steps", OURS, "at least", 10),
    Promise("reward_to_go", IN_CACHE, OURS, "np.copyto", "at most", 3),
    Promise("reward_to_go", [OUT_OF_CACHE], OURS, "np.copyto", "at most", 1.6),
    Promise("reward_to_go", IN_CACHE, "numba: loop", OURS, "at least", 3),
    Promise("gae", IN_CACHE, OURS, "np.copyto", "at most", 4),
    Promise("gae", IN_CACHE, "numba: loop", OURS, "at least", 3),
    *(
        Promise(operation, IN_CACHE, variant, OURS, "at most", 1.5)
        for operation in ("reward_to_go", "gae")
        for variant in ("0.2 % terminated", "random mask", "gamma = 1")
    ),
    Promise("call", [CALL], OURS, "a microsecond", "at most", 5),
    *(Promise("compare", [COMPARE], eight, OURS, "at most", 3) for eight in EIGHT),
    *(Promise("compare", [COMPARE], f"memory of {eight}", "the scores", "at most", 1.2) for eight in EIGHT),
]
if args.threads > 1:
    PROMISES.append(Promise("covariance", COVARIANCE, "one thread", OURS, "at least", 1.7, True))


def time(functions):
    """Median seconds of each function, by name; of what is much slower than ours, of a few rounds."""
    once = dict(zip(functions, in_turn(*functions.values(), rounds=1, **TURNS), strict=True))
    slow = [name for name in functions if once[name] > SLOW * once[OURS]]
    fast = [name for name in functions if name not in slow]
    seconds = {}
    for names, rounds in ((fast, args.rounds), (slow, SLOW_ROUNDS)):
        times = in_turn(*(functions[name] for name in names), rounds=rounds, **TURNS)
        seconds |= zip(names, times, strict=True)
    return seconds


def covariance(shape, dtype):
    """Complete peers, the floors, and our options."""
    n, t, d = shape
    ours, theirs = (1e-6, 1e-5) if dtype == np.float32 else (1e-12, 1e-12)
    scores, weights = peers.covariance_inputs(shape, dtype)
    lengths = np.random.default_rng(1).integers(1, t + 1, n)
    several = np.random.default_rng(1).standard_normal((SEVERAL, n, t))
    x, (a, b) = peers.flat_terms(scores, weights), peers.gemm_inputs(dtype)

    def reference(w):
        return peers.numpy_covariance(scores.astype(np.float64), w)

    expected, blocks = reference(weights), np.arange(0, t, BLOCK)
    summed = np.add.reduceat(np.add.reduceat(expected, blocks, axis=0), blocks, axis=1)
    live = np.arange(t) < lengths[:, None]
    functions = {
        OURS: lambda: rlvar.covariance(scores, weights),
        "ragged lengths": lambda: rlvar.covariance(scores, weights, lengths=lengths),
        f"block_size={BLOCK}": lambda: rlvar.covariance(scores, weights, block_size=BLOCK),
    }
    for function, right in zip(
        functions.values(), (expected, reference(weights * live), summed), strict=True
    ):
        peers.check(function(), right, ours)
    if shape == COVARIANCE[0]:
        functions[f"{SEVERAL} at once"] = lambda: rlvar.covariance(scores, several)
        functions[f"{SEVERAL} one by one"] = lambda: [rlvar.covariance(scores, w) for w in several]
        for result, w in zip(rlvar.covariance(scores, several), several, strict=True):
            peers.check(result, reference(w), ours)
    if args.threads > 1:
        functions["one thread"] = lambda: rlvar.covariance(scores, weights, num_threads=1)
    peers.check(x @ x.T / (n - 1), expected, theirs)
    functions |= {"X @ X.T alone": lambda: x @ x.T, "A @ B alone": lambda: a @ b}
    for name, peer in peers.installed("covariance").items():
        result = peer(scores, weights)
        assert result.dtype == dtype
        peers.check(result, expected, theirs)
        functions[name] = lambda peer=peer: peer(scores, weights)
    seconds = time(functions)
    # N D T (T + 1) operations are one triangle, 2 n^3 are A @ B.
    share = n * d * t * (t + 1) / (2 * peers.GEMM**3)
    return seconds | {"A @ B of as many operations": seconds.pop("A @ B alone") * share}


def covariance_factored(shape, dtype):
    """Peers, among them all p q coordinates formed; the floor; a mean far above the spread; ragged."""
    n, t, p, q = shape
    ours, theirs = (1e-6, 1e-5) if dtype == np.float32 else (1e-12, 1e-12)
    a, b, weights = peers.factored_inputs(shape, dtype)
    lengths = np.random.default_rng(1).integers(1, t + 1, n)
    expected = peers.numpy_factored(a.astype(np.float64), b.astype(np.float64), weights)
    x, y = peers.gemm_inputs(dtype)
    functions = {
        OURS: lambda: rlvar.covariance_factored(a, b, weights),
        "ragged lengths": lambda: rlvar.covariance_factored(a, b, weights, lengths=lengths),
        "centred, a + 5 and b + 5": lambda: rlvar.covariance_factored(a + 5, b + 5),
        "A @ B alone": lambda: x @ y,
    }
    peers.check(functions[OURS](), expected, ours)
    for name, peer in peers.installed("covariance_factored").items():
        peers.check(peer(a, b, weights), expected, theirs)
        functions[name] = lambda peer=peer: peer(a, b, weights)
    seconds = time(functions)
    operations = (p + q) * n * t * (t + 1) + p * q * t * (t + 1 + 2 * n)
    return seconds | {
        "A @ B of as many operations": seconds.pop("A @ B alone") * operations / (2 * peers.GEMM**3)
    }


def decompose(shape, dtype):
    scores, weights = peers.covariance_inputs(shape, dtype)
    expected = peers.numpy_growth(scores.astype(np.float64), weights)
    peers.check(rlvar.decompose(scores, weights).growth, expected, 1e-6)
    functions = {
        OURS: lambda: rlvar.decompose(scores, weights),
        "scores.sum()": lambda: scores.sum(),
    }
    for name, peer in peers.installed("decompose").items():
        functions[name] = lambda peer=peer: peer(scores, weights)
    return time(functions)


def scan(operation, shape, dtype):
    """Peers, and our options; all that can write to the same arrays."""
    function, arrays, lam = {
        "reward_to_go": (rlvar.reward_to_go, 1, {}),
        "gae": (rlvar.gae, 2, {"lam": peers.LAMBDA}),
    }[operation]
    inputs = peers.scan_inputs(shape, dtype)[:arrays]
    outputs = tuple(np.empty_like(array) for array in inputs)
    out = outputs if arrays > 1 else outputs[0]
    rng = np.random.default_rng(1)
    terminated = rng.random(shape, np.float32) < 0.002
    terminated[:, -1] = False
    variants = {
        OURS: {},
        "0.2 % terminated": {"terminated": terminated},
        "random mask": {"mask": rng.random(shape, np.float32) < 0.5},
        "gamma = 1": {"gamma": 1.0},
    }

    def verify(results, options):
        results = results if isinstance(results, tuple) else (results,)
        right = peers.scans(*inputs, **{"lam": lam.get("lam", 1.0), **options})
        for result, column in zip(results, right[:arrays], strict=True):
            assert result.dtype == dtype
            peers.check(result, column, 1e-5)

    def copy():
        for array, output in zip(inputs, outputs, strict=True):
            np.copyto(output, array)

    functions = {"np.copyto": copy}
    for name, options in variants.items():
        full = {"gamma": peers.GAMMA, **lam, **options, "out": out}
        functions[name] = lambda full=full: function(*inputs, **full)
        verify(functions[name](), options)
    functions["without out="] = lambda: function(*inputs, gamma=peers.GAMMA, **lam)
    for name, peer in peers.installed(operation).items():
        verify(peer(*inputs), {})
        extra = {"out": out} if peers.module(name) == "numba" else {}
        functions[name] = lambda peer=peer, extra=extra: peer(*inputs, **extra)
    return time(functions)


def compare(shape, dtype):
    """Eight estimators beside one, and what numpy holds at most, over the scores."""
    n, t, d = shape
    rng = np.random.default_rng(0)
    scores, rewards = rng.standard_normal(shape, dtype), rng.standard_normal((n, t))
    rollouts = rlvar.Rollouts(scores, rewards, groups=np.arange(n) // GROUP)

    def call(names):
        return rlvar.compare(rollouts, names, reference=names[0])

    functions = {OURS: lambda: call(["multi"])}
    memory = {}
    for eight, names in EIGHT.items():
        result = call(names)
        for name in names:
            w = rlvar.estimator(name).weights(rollouts)
            w = np.broadcast_to(w if w.ndim == 2 else w[:, None], (n, t))
            g = np.stack([w_n @ s.astype(np.float64) for w_n, s in zip(w, scores, strict=True)])
            units = g.reshape(-1, GROUP, d).mean(axis=1)
            peers.check(result[name].variance.value, units.var(axis=0, ddof=1).sum(), 1e-10)
        tracemalloc.start()
        call(names)
        memory[f"memory of {eight}"] = tracemalloc.get_traced_memory()[1] + scores.nbytes
        tracemalloc.stop()
        functions[eight] = lambda names=names: call(names)
    return time(functions) | memory | {"the scores": scores.nbytes}


def call(shape, dtype):
    """A small call, of a thousand in a row: what a call costs beside its work."""
    rewards = peers.scan_inputs(shape, dtype)[0]
    thousand = in_turn(lambda: [rlvar.reward_to_go(rewards, 0.99) for _ in range(1000)], rounds=args.rounds)
    return {OURS: thousand[0] / 1e3, "a microsecond": 1e-6}


def cases():
    """(operation, shape, dtype, what is measured by name), as it is measured."""
    for shape in COVARIANCE:
        for dtype in peers.DTYPES:
            yield "covariance", shape, dtype, covariance
    for shape in FACTORED:
        for dtype in peers.DTYPES:
            yield "covariance_factored", shape, dtype, covariance_factored
    for shape in DECOMPOSE:
        yield "decompose", shape, np.float32, decompose
    for operation in ("reward_to_go", "gae"):
        for shape in [*IN_CACHE, OUT_OF_CACHE]:
            yield operation, shape, np.float32, lambda *case, operation=operation: scan(operation, *case)
    yield "call", CALL, np.float64, call
    yield "compare", COMPARE, np.float32, compare


def judge(operation, shape, dtype, found):
    """Print each promise about what was found; return whether all are kept."""
    good = True
    for promise in PROMISES:
        if promise.operation != operation or shape not in promise.shapes:
            continue
        if promise.above not in found or promise.below not in found:
            print(f"not measured     {operation} {shape}: {promise.above} over {promise.below}")
            continue
        measured = found[promise.above] / found[promise.below]
        kept = measured >= promise.limit if promise.bound == "at least" else measured <= promise.limit
        aim = promise.aim or SMALL
        verdict = (("MISSED", "kept"), ("aim not reached", "aim reached"))[aim][kept]
        what = f"{operation} {shape} {np.dtype(dtype).name}: {promise.above} over {promise.below}"
        print(f"{verdict:<16} {what} {measured:.2f}, {promise.bound} {promise.limit:.3g}")
        good &= kept or aim
    return good


def milliseconds(seconds):
    return f"{1e3 * seconds:.3g} ms"


def main():
    versions = [f"rlvar {rlvar.__version__}, {_core.isa}, numpy {np.__version__}"]
    everyone = {peers.module(peer) for operation in peers.PEERS for peer in peers.installed(operation)}
    for name in sorted(everyone - {"numpy", "rlvar"}):
        module = importlib.import_module(name)
        versions.append(f"{name} {module.__version__}")
        if name == "torch":
            module.set_num_threads(args.threads)
    print(", ".join(versions) + f", {args.threads} thread(s)\n")
    measured = []
    for operation, shape, dtype, measure in cases():
        if not args.only or operation in args.only:
            found = measure(shape, dtype)
            theirs = {name: found[name] for name in peers.PEERS.get(operation, {}) if name in found}
            if theirs:
                found["best peer"] = min(theirs.values())
            measured.append((operation, shape, dtype, found, theirs))
    print("| operation | shape | dtype | rlvar | fastest peer | its time | times faster |\n|" + 7 * "---|")
    for operation, shape, dtype, found, theirs in measured:
        if theirs:
            best = min(theirs, key=theirs.get)
            print(
                f"| `{operation}` | {shape} | {np.dtype(dtype).name} | {milliseconds(found[OURS])} | {best} "
                f"| {milliseconds(theirs[best])} | {theirs[best] / found[OURS]:.1f} |"
            )
    print("\n| operation | shape | dtype | what | time | times rlvar's |\n|" + 6 * "---|")
    for operation, shape, dtype, found, _ in measured:
        for name, seconds in found.items():
            if seconds < 1e4 and name != "best peer":
                row = (f"`{operation}`", shape, np.dtype(dtype).name, name, milliseconds(seconds))
                print("|", " | ".join(map(str, row)), f"| {seconds / found[OURS]:.2f} |")
    print()
    verdicts = [judge(*case[:4]) for case in measured]
    return int(not all(verdicts))


if __name__ == "__main__":
    sys.exit(main())
