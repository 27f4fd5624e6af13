"""A model's work on Ray: the same function of a model and a shard on every worker, results in their order.

Ray places the workers, restarts those that die and repeats their shards. A worker is an actor, as Ray advises
for state that is costly to load: it keeps the model. The parameters lie in Ray's store once a machine, and
the workers on CPUs read them there; on a GPU each worker has a copy, and the GPU for itself.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import os
import signal
import socket
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlvar.config import version

_RETRIES = 2  # of a shard whose worker died
_AHEAD = 4  # shards a worker that are under way, or done and wait for those before them
_Bytes = NDArray[np.uint8]


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Give a cluster of Ray that this process is connected to; end only what this began.

    Without an address it is the cluster that this process is connected to, or what Ray takes by itself: that
    of RAY_ADDRESS, the one that runs on this machine, or a new one for as long as this lasts.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ImportError("shards on Ray need it: pip install 'rlvar[ray]'") from None
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", here):
            raise ValueError(
                f"this process is connected to Ray at {here} already, so it cannot connect to {address}"
            )
        yield Cluster(ray, stays=True)
        return
    place = _found(address)
    if place is not None:
        _reach(place)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:
                if place in (None, "local"):
                    raise ConnectionError(f"Ray could not start here: {_line(error)}") from error
                raise ConnectionError(
                    f"Ray at {place}: {_line(error)}; perhaps it wants RAY_AUTH_MODE=token"
                ) from error
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(
                signal.SIGTERM, before
            )  # Ray's aborts with a trace; its processes end with this one
        yield Cluster(ray, stays=False)
    finally:
        ray.shutdown()


def _found(address: str | None) -> str | None:
    """Return the address that Ray takes where none is given, as its documentation has it."""
    if address in (None, "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address in (None, "auto"):
        file = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
        with contextlib.suppress(OSError):
            return file.read_text().strip() or address
    return address


def _reach(address: str) -> None:
    """Raise if host:port does not answer: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "local", "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"Ray at {address}: no answer ({_line(error)}); `ray status` shows what runs, and the "
            "address local starts a cluster on this machine"
        ) from None


class Cluster:
    """A cluster of Ray; `stays` tells whether this process stays connected when the work is done."""

    def __init__(self, ray: Any, stays: bool) -> None:
        self._ray, self._stays = ray, stays

    def device(self, device: str | None) -> str:
        """Return the kind of device of the workers: by default "cuda" if the cluster has a GPU."""
        if device not in (None, "cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda on Ray, which numbers GPUs itself, got {device!r}")
        return device or ("cuda" if self._ray.cluster_resources().get("GPU", 0) >= 1 else "cpu")

    def map(
        self,
        function: Callable[..., Any],
        model: torch.nn.Module,
        shards: Sequence[tuple[Any, ...]],
        *,
        cpus: int,
        device: str,
    ) -> Generator[Any, None, None]:
        """Give function(model, *shard) for each shard, in their order, from workers on `device`."""
        if not shards:
            return
        ray, gpus = self._ray, int(device == "cuda")
        room = self._room(cpus, gpus)
        if not room:
            wanted = f"{cpus} CPU{'s' * (cpus > 1)}{' and a GPU' * gpus}"
            raise ValueError(f"no machine of Ray's cluster has {wanted} for a worker")
        with _told(ray):
            held = [ray.put(_apart(model))]
        made = ray.remote(_Worker).options(
            num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_RETRIES
        )
        workers = [made.remote(function, device, cpus) for _ in range(min(room, len(shards)))]
        starting = {worker.start.options(max_task_retries=0).remote(version): worker for worker in workers}
        under_way = dict(starting)  # by what each is to return
        free: deque[Any] = deque()
        left, results = deque(shards), deque[Any]()
        try:
            with _told(ray):
                while left or results:
                    while left and free and len(results) < _AHEAD * len(workers):
                        worker = free.popleft()
                        result = worker.run.remote(held, *left.popleft())
                        under_way[result] = worker
                        results.append(result)
                    for done in ray.wait(list(under_way))[0]:
                        free.append(under_way.pop(done))
                        if done in starting:  # it has a shard to go on with while the next is on its way
                            ray.get(done)
                            free.append(starting.pop(done))
                    while results and results[0] not in under_way:
                        yield ray.get(results.popleft())
        finally:
            if self._stays:  # otherwise they end with the connection
                for worker in workers:
                    ray.kill(worker)

    def _room(self, cpus: int, gpus: int) -> int:
        """Return how many workers there is room for."""
        count = 0
        for node in self._ray.nodes():
            has = node["Resources"] if node["Alive"] else {}
            here = int(has.get("CPU", 0) // cpus)
            count += min(here, int(has.get("GPU", 0))) if gpus else here
        return count


class _Worker:
    """Computes shards, one at a time, with the model that it keeps."""

    def __init__(self, function: Callable[..., Any], device: str, threads: int) -> None:
        self._function, self._device, self._threads = function, device, threads
        self._model: torch.nn.Module | None = None

    def start(self, wanted: str) -> None:
        """Get ready, in the version that the caller has."""
        if version != wanted:
            raise ValueError(f"Ray's workers have rlvar {version}, and this is {wanted}")

    def run(self, held: list[Any], *shard: Any) -> Any:
        """Return the function of a shard; in a list, Ray hands on the reference to the model alone."""
        if self._model is None:  # the first time, and the first after a restart
            torch.set_num_threads(self._threads)
            ray: Any = importlib.import_module("ray")
            self._model = _together(*ray.get(held[0])).to(self._device)
        return self._function(self._model, *shard)


def _apart(model: torch.nn.Module) -> tuple[torch.nn.Module, dict[str, tuple[_Bytes, torch.Size]]]:
    """Return a copy of a model without its parameters, and their bytes, which Ray hands out in place."""
    plain = {name: each for name, each in model.named_parameters() if type(each) is torch.nn.Parameter}
    empty = {
        id(each): torch.nn.Parameter(torch.empty(0, dtype=each.dtype), each.requires_grad)
        for each in plain.values()
    }
    hollow = copy.deepcopy(model, dict(empty))
    return hollow, {
        name: (each.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), each.shape)
        for name, each in plain.items()
    }


def _together(hollow: torch.nn.Module, parameters: dict[str, tuple[_Bytes, torch.Size]]) -> torch.nn.Module:
    """Return the model of what `_apart` gave; its parameters may lie in memory that is read-only."""
    known = dict(hollow.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that they are read-only
        for name, (data, shape) in parameters.items():
            known[name].data = torch.from_numpy(data).view(known[name].dtype).view(shape)
    return hollow


@contextlib.contextmanager
def _told(ray: Any) -> Iterator[None]:
    """Raise what a worker raised; say what happened to it in our words."""
    errors = ray.exceptions
    try:
        yield
    except errors.RayTaskError as error:
        if isinstance(error.cause, errors.RayError):
            raise ChildProcessError(f"a worker of Ray: {_line(error.cause)}") from error
        raise error.cause from error
    except (errors.OutOfMemoryError, errors.ObjectStoreFullError, errors.OutOfDiskError) as error:
        raise MemoryError(f"Ray's workers: {_line(error)}; lower memory, or give each more CPUs") from error
    except errors.RayActorError as error:
        if error.actor_init_failed:
            why = str(error).strip().splitlines()[-1]
            raise ChildProcessError(
                f"a worker of Ray could not start ({why}); each machine of the cluster needs "
                f"rlvar {version} and torch where its workers look for them"
            ) from error
        raise ChildProcessError(
            f"a worker of Ray died {_RETRIES + 1} times over the same rollouts, perhaps out of memory: lower "
            "memory, or give each worker more CPUs, so that there are fewer"
        ) from error
    except errors.RayError as error:
        raise ChildProcessError(f"Ray: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """Return what an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
