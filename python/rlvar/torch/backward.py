"""Gradients of all chosen parameters of a network, a few coordinates of them kept, one backward pass at a time.

Leaves that share the parameters' memory take their places while the network runs. A gradient that reaches a leaf
goes into the coordinates and is freed at once, so there is never more than the largest parameter's: no `grad` of
the model is touched, and no hook of a wrapper or an optimiser on its parameters is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from rlvar._types import Double
from rlvar.torch import inputs
from rlvar.torch.count_sketch import Coordinates, CountSketch, Exact
from rlvar.torch.inputs import Chunk, Network, Tokens
from rlvar.torch.policy import Policy, of_tokens
from rlvar.torch.sketch import Sketch


class Backward:
    """A network whose token log-probabilities are summed up with weights, and differentiated."""

    def __init__(
        self,
        network: Network,
        policy: Policy,
        chosen: dict[str, torch.nn.Parameter],
        sketch: Sketch | None,
        scales: Mapping[str, torch.Tensor],
    ) -> None:
        self._network, self._policy, self._chosen, self._scales = network, policy, chosen, scales
        self._coordinates: Coordinates = Exact(chosen) if sketch is None else CountSketch(sketch)
        self._reached = False

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return self._coordinates.size

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Make gradients flow into the coordinates, whatever is around; leave the model as it was."""
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            inputs.still(self._network.module),
            _checkpointed(self._network.module),
            self._leaves(),
        ):
            yield

    @contextlib.contextmanager
    def _leaves(self) -> Iterator[None]:
        module = self._network.module
        others = {id(each) for each in module.parameters()} - {id(each) for each in self._chosen.values()}
        every = {id(each): each for each in module.parameters()}
        leaves = {}
        for name, each in self._chosen.items():
            leaf = torch.nn.Parameter(each.detach())
            leaf.register_post_accumulate_grad_hook(self._hook(name))
            leaves[id(each)] = leaf
        # Nothing flows to what is not chosen.
        leaves |= {key: torch.nn.Parameter(every[key].detach(), False) for key in others if every[key].requires_grad}
        places = [
            (each, key, parameter)
            for each in module.modules()
            for key, parameter in each._parameters.items()
            if id(parameter) in leaves
        ]
        try:
            for each, key, parameter in places:
                each._parameters[key] = leaves[id(parameter)]
            yield
        finally:
            for each, key, parameter in places:
                each._parameters[key] = parameter
