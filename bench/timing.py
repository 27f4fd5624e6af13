"""Threads and timing of the scripts that print ratios. Imports no numpy: threads are set before it."""

import ctypes
import os
import statistics
import time


def limit_threads(threads):
    """Set the threads of the libraries that are imported after this call."""
    for library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)


def keep_memory():
    """Where the C library is glibc: hand what is freed to the next call, not back to the system.

    Else whoever makes a large temporary pays for its pages at every call, a time that varies fivefold.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(-4, 0)  # M_MMAP_MAX: nothing from mmap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def in_turn(*functions, rounds, warm=False, pause=0.0):
    """Median seconds of each function, run A B A B ... after a warm-up.

    `warm`: each timed call comes right after another of the same function, so that the cache holds
    what it uses, not what the others left there. `pause`: seconds before each, in which the threads of
    the libraries that ran before it go to sleep.
    """
    times = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for function, seconds in zip(functions, times, strict=True):
            time.sleep(pause)
            if warm:
                function()
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]
