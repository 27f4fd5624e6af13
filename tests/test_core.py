"""The choice of the kernels' module; kernels in forked children, at exit, without threads, under attack."""

import inspect
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import rlvar
from rlvar import _core


def run(code, limit=None, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=limit,
    )


@pytest.mark.parametrize("isa", _core.available_isas)
def test_the_environment_chooses_the_instruction_set(isa):
    result = run("import rlvar; rlvar.show_config()", RLVAR_ISA=isa)
    assert f"isa      {isa} (available: {', '.join(_core.available_isas)})" in result.stdout


def test_the_best_instruction_set_is_the_default():
    result = run("import rlvar._core as c; print(c.isa)", RLVAR_ISA="")
    assert result.stdout.strip() == _core.available_isas[-1]


def test_an_instruction_set_that_the_machine_lacks_is_a_clear_error():
    result = run("import rlvar", RLVAR_ISA="v9")
    assert result.returncode != 0
    wanted = f"RLVAR_ISA must be one of {', '.join(_core.available_isas)} on this machine, got 'v9'"
    assert result.stderr.splitlines()[-1] == f"ImportError: {wanted}"


def test_show_config_prints_everything(capsys):
    rlvar.show_config()
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["rlvar", "isa", "openmp", "threads", "eigen", "numpy"]
    assert lines["rlvar"] == rlvar.__version__
    assert lines["eigen"].startswith("3.4.")


FORK = """
import os, sys, warnings
import numpy as np, rlvar
warnings.simplefilter("ignore")  # 3.12 warns of threads at every fork
rng = np.random.default_rng(0)
scores, rewards = rng.standard_normal((600, 40, 16)), rng.standard_normal((600, 4000))

def compute():
    matrix = rlvar.covariance(scores, num_threads=4)
    parts = rlvar.decompose(scores, num_threads=4)
    return matrix, parts.growth, rlvar.reward_to_go(rewards)

expected = compute()
child = os.fork()
if child == 0:
    same = all(np.array_equal(a, b) for a, b in zip(compute(), expected))
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_computes_the_right_answer_after_a_parallel_region():
    result = run(FORK, OMP_NUM_THREADS="4")
    assert result.returncode == 0, result.stderr


EXIT = """
import threading, time, warnings
import numpy as np, rlvar
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
scores, rewards = rng.standard_normal((400, 300, 32), dtype=np.float32), rng.standard_normal((4000, 1000))
calls = [lambda: rlvar.covariance(scores, num_threads={threads}), lambda: rlvar.reward_to_go(rewards),
         lambda: rlvar.covariance(scores, num_threads={threads})]

def forever(call):
    while True:
        call()

for call in calls:
    threading.Thread(target=forever, args=(call,), daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize("threads", [None, 1, 4])
def test_the_interpreter_may_end_while_daemon_threads_are_inside_kernels(threads):
    result = run(EXIT.format(threads=threads))
    assert (result.returncode, result.stderr) == (0, "")


NO_THREADS = """
import resource
import numpy as np, rlvar
scores = np.random.default_rng(0).standard_normal((64, 90, 16))
alone = rlvar.covariance(scores, num_threads=1)
memory = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (memory + (1 << 30),) * 2)
assert (rlvar.covariance(scores, num_threads=8) == alone).all()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_where_no_thread_can_be_started_kernels_run_on_the_callers():
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY:
        pytest.skip("stacks are limited here")

    def limit():  # each thread wants a stack of 64 GB, which the script's limit on memory forbids
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 36, hard))

    result = run(NO_THREADS, limit, OPENBLAS_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr


MANY = """
import numpy as np, rlvar
scores = np.random.default_rng(0).standard_normal((200, 110, 40))
alone = rlvar.covariance(scores, num_threads=1)
for threads in (None, 2, 7, 3, None):
    assert (rlvar.covariance(scores, num_threads=threads) == alone).all(), threads
"""


@pytest.mark.parametrize(
    "setting",
    ["NUM_THREADS=4", "NUM_THREADS=3,2", "THREAD_LIMIT=1", "DYNAMIC=true", "WAIT_POLICY=active"],
)
def test_whatever_openmp_is_told_the_bits_are_those_of_one_thread(setting):
    name, value = setting.split("=")
    result = run(MANY, **{f"OMP_{name}": value})
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.skipif(not _core.openmp, reason="needs OpenMP")
def test_openmp_says_how_many_threads_are_the_default():
    result = run("import rlvar._core as c; print(c.default_threads())", OMP_NUM_THREADS="3")
    assert result.stdout.strip() == "3"


HANDLER = """
import signal
import numpy as np, rlvar
scores = np.random.default_rng(0).standard_normal((1000, 250, 64))
alone, small = rlvar.covariance(scores, num_threads=1), rlvar.covariance(scores[:200, :60], num_threads=1)
seen = []

def compute(*_):
    seen.append((rlvar.covariance(scores[:200, :60], num_threads=2) == small).all())
    signal.setitimer(signal.ITIMER_REAL, 0.02)

signal.signal(signal.SIGALRM, compute)
signal.setitimer(signal.ITIMER_REAL, 0.02)
while len(seen) < 5:
    assert (rlvar.covariance(scores, num_threads=2) == alone).all()
signal.setitimer(signal.ITIMER_REAL, 0)
assert all(seen)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
def test_a_signal_handler_may_compute_while_a_kernel_does():
    result = run(HANDLER)
    assert (result.returncode, result.stderr) == (0, "")


SIGNALS = """
import os, signal
import numpy as np, rlvar
rlvar.covariance(np.random.default_rng(0).standard_normal((200, 110, 40)), num_threads=4)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
print(signal.sigwait([signal.SIGUSR1]).name)
"""


@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="needs sigwait")
def test_signals_that_the_program_waits_for_are_not_taken_by_the_kernels_threads():
    result = run(SIGNALS, OPENBLAS_NUM_THREADS="1")
    assert result.stdout.strip() == "SIGUSR1"


N, T, D = 6, 5, 3


def kernel_calls(scores, lengths, members, offsets):
    """A call of each kernel that reads indices."""
    n = len(scores)
    terms = _core.Terms(scores, np.ones((n, T)), lengths, None)
    options = (0.9, None, lengths, None, None, None, None, None)
    sets, a, b = np.ones((2, n, T)), np.ones((n, T)), np.empty((n, T))
    units = max(len(offsets) - 1, 0)
    return {
        "covariance": lambda: _core.covariance(terms, 1, 1.0, np.empty((T, T)), None, None, 2),
        "covariance_factored": lambda: _core.covariance_factored(
            terms, np.ones((N, T, 2)), 1, 1.0, np.empty((T, T)), 2
        ),
        "shared_moments": lambda: _core.shared_moments(terms, sets, np.empty((2, T, T)), 2),
        "gradients": lambda: _core.gradients(terms, sets, np.empty((2, n, D)), 2),
        "projections": lambda: _core.projections(terms, np.ones((n, D)), np.empty((n, T)), 2),
        "means": lambda: _core.means(terms, np.empty((T, D)), 2),
        "unit_squares": lambda: _core.unit_squares(
            *(terms, np.ones((T, D)), members, offsets),
            *(np.empty((units, T)), np.empty((units, T)), None, None, 2),
        ),
        "reward_to_go": lambda: _core.reward_to_go(a, options, b),
        "gae": lambda: _core.gae(a, a, 0.9, options, b, b.copy()),
    }


def small_arrays():
    return np.full(N, T), np.arange(N), np.arange(N + 1)


@pytest.mark.parametrize("bad", [-1, T + 1, 10**12, -(2**63)])
@pytest.mark.parametrize("kernel", kernel_calls(np.ones((N, T, D)), *small_arrays()))
def test_kernels_refuse_lengths_that_changed_after_the_check(isa, kernel, bad):
    lengths, members, offsets = small_arrays()
    call = kernel_calls(np.ones((N, T, D)), lengths, members, offsets)[kernel]
    call()
    lengths[2] = bad
    with pytest.raises(ValueError, match="has changed since it was checked"):
        call()


@pytest.mark.parametrize(
    ("which", "index", "bad"),
    [("members", 2, -1), ("members", 2, N), ("offsets", 0, -1), ("offsets", 2, 99), ("offsets", 1, 4)],
)
def test_unit_squares_refuses_units_that_changed_after_the_check(isa, which, index, bad):
    lengths, members, offsets = small_arrays()
    {"members": members, "offsets": offsets}[which][index] = bad
    with pytest.raises(ValueError, match="has changed since"):
        kernel_calls(np.ones((N, T, D)), lengths, members, offsets)["unit_squares"]()


@pytest.mark.parametrize("kernel", kernel_calls(np.ones((N, T, D)), *small_arrays()))
def test_kernels_refuse_arrays_that_changed_their_shape_after_the_check(isa, kernel):
    lengths, members, offsets = small_arrays()
    scores = np.ones((N, T, D))
    call = kernel_calls(scores, lengths, members, offsets)[kernel]
    lengths.shape = (2, N // 2)
    with pytest.raises(ValueError, match="has changed since"):
        call()


ATTACK = """
import random, sys, threading, time, warnings
import numpy as np, rlvar
warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
n, t = 300, 70
scores, rewards = rng.standard_normal((n, t, 9)).astype(np.float32), rng.standard_normal((n, t))
mask, done, lengths = np.ones((n, t), bool), np.zeros((n, t), bool), np.full(n, 40)
rollouts = rlvar.Rollouts(scores, rewards, mask=mask)
stop = False

def attack():
    while not stop:
        lengths[:] = random.choice([10**8, -5, 2**62, 40])
        mask.view(np.uint8)[:] = rng.integers(0, 256, (n, t)) * (rng.random((n, t)) < random.random())
        done[:] = ~mask
        time.sleep(0.0002)
        lengths[:] = 40
        time.sleep(0.0005)

threading.Thread(target=attack, daemon=True).start()
calls = [
    lambda: rlvar.covariance(scores, lengths=lengths, num_threads=4),
    lambda: rlvar.covariance(scores, mask=mask, num_threads=4),
    lambda: rlvar.covariance(scores, np.stack([rewards, -rewards, 2 * rewards]), mask=mask, num_threads=4),
    lambda: rlvar.covariance_factored(scores, scores + 5, lengths=lengths, num_threads=4),
    lambda: rlvar.covariance_factored(scores + 5, scores + 5, mask=mask, num_threads=4),
    lambda: rlvar.decompose(scores, rewards, mask=mask, num_threads=4),
    lambda: rlvar.decompose(scores, rewards, lengths=lengths, num_threads=4),
    lambda: rlvar.gae(rewards, rewards, gamma=0.9, lam=0.9, mask=mask, terminated=done),
    lambda: rlvar.vtrace(rewards, rewards, abs(rewards), gamma=0.9, lengths=lengths),
    lambda: rlvar.reward_to_go(rewards, 0.9, mask=mask, truncated=done, next_values=rewards),
]
until = time.monotonic() + 4
while time.monotonic() < until:
    for call in calls:
        try:
            call()
        except ValueError:
            pass
stop = True
"""


def test_whatever_another_thread_writes_no_kernel_leaves_its_arrays():
    result = run("import faulthandler; faulthandler.enable()" + ATTACK)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "foreign",
    {
        "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
        "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
        "reversed": lambda x: x[::-1].copy()[::-1],
        "in other dtypes' columns": lambda x: np.rec.fromarrays([np.zeros(x.shape, "u1"), x])["f1"],
        "a subclass": lambda x: x.view(type("Sub", (np.ndarray,), {})),
        "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    }.items(),
    ids=lambda item: item[0],
)
def test_memory_of_any_kind_gives_the_same_bits(rng, foreign):
    change = foreign[1]
    scores, weights, p = rng.standard_normal((9, 7, 3)), rng.standard_normal((9, 7)), rng.random(9)
    lengths, mask = rng.integers(0, 8, 9), rng.random((9, 7)) < 0.7
    for options in ({"lengths": lengths}, {"mask": mask}):
        strange = {name: change(x) for name, x in options.items()}
        results = [
            rlvar.covariance(change(scores), change(weights), sample_weight=change(p), **strange),
            rlvar.reward_to_go(change(weights), 0.9, bootstrap_value=change(p), **strange),
        ]
        wanted = [
            rlvar.covariance(scores, weights, sample_weight=p, **options),
            rlvar.reward_to_go(weights, 0.9, bootstrap_value=p, **options),
        ]
        for result, same in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(result, same)


def test_kernels_of_many_threads_at_once_give_what_each_gives_alone(rng):
    scores = rng.standard_normal((8, 50, 40, 6))
    wanted = [rlvar.covariance(each, num_threads=1) for each in scores]
    found = [None] * len(scores)

    def compute(i):
        for _ in range(5):
            found[i] = rlvar.covariance(scores[i], num_threads=3)

    workers = [threading.Thread(target=compute, args=(i,)) for i in range(len(scores))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(found, wanted)


def test_the_stub_has_the_signatures_of_the_module():
    stub = Path(inspect.getfile(_core) + "i").read_text()
    for name, text in re.findall(r"^def (\w+)\((.*?)\) ->", stub, flags=re.S | re.M):
        if name != "load":
            arguments = re.findall(r"(\w+): ", re.sub(r"#.*", "", text))
            overloads = [line for line in getattr(_core, name).__doc__.splitlines() if f"{name}(" in line]
            assert re.findall(r"(\w+): ", overloads[-1].split(") ->")[0]) == arguments, name
