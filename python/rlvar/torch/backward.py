"""Gradients with respect to all chosen parameters of a network, of which D coordinates are kept.

Leaves that share the memory of the parameters take their places while the network runs. A gradient that
reaches a leaf goes into the coordinates and is freed at once, so there is never more of it than one
parameter's. No `grad` of the model is touched, and no hook that a wrapper or an optimiser has on its
parameters runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from rlvar._types import Double
from rlvar.torch import inputs
from rlvar.torch.count_sketch import Coordinates, CountSketch, Exact
from rlvar.torch.inputs import Chunk, Module, Network
from rlvar.torch.policy import Policy, of_tokens
from rlvar.torch.sketch import Sketch


class Backward:
    """A network from tokens to sums of their log-probabilities, and these to D coordinates of gradients."""

    def __init__(
        self,
        network: Network,
        policy: Policy,
        chosen: Mapping[str, torch.nn.Parameter],
        sketch: Sketch | None,
        scales: Mapping[str, torch.Tensor],
    ) -> None:
        self._network, self._policy, self._chosen, self._scales = network, policy, chosen, scales
        self._coordinates: Coordinates = Exact(chosen) if sketch is None else CountSketch(sketch)

    @property
    def size(self) -> int:
        """Number D of coordinates."""
        return self._coordinates.size

    @contextlib.contextmanager
    def ready(self, *, checkpointed: bool = True) -> Iterator[None]:
        """Let gradients flow into the coordinates, in any context of the caller's; restore the model."""
        module = self._network.module
        with contextlib.ExitStack() as stack:
            for context in (torch.inference_mode(False), torch.enable_grad(), inputs.still(module)):
                stack.enter_context(context)
            if checkpointed:
                _checkpoint_layers(module, stack)
            leaves = {}
            for name, parameter in self._chosen.items():
                leaf = leaves[parameter] = torch.nn.Parameter(parameter.detach())
                leaf.register_post_accumulate_grad_hook(self._catch(name))  # type: ignore[no-untyped-call]
            for each in module.modules():
                for key, own in list(each._parameters.items()):
                    if own in leaves:
                        stack.callback(each._parameters.__setitem__, key, own)
                        each._parameters[key] = leaves[own]
            yield

    def _catch(self, name: str) -> Callable[[torch.Tensor], None]:
        def catch(leaf: torch.Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            assert gradient is not None
            gradient = gradient.to_dense() if gradient.is_sparse else gradient
            if name in self._scales:
                gradient = gradient / self._scales[name]
            self._coordinates.add(name, gradient)

        return catch

    def log_probs(self, chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the tokens (n, t), 0 where there is none, and of all tokens (n, t, V)."""
        every = self._policy.log_probs(self._network.logits(chunk))
        values = of_tokens(every, self._network.targets(chunk))
        if not values.requires_grad:
            raise ValueError(f"no gradient flows from the logits of {inputs.name_of(self._network.module)}")
        return torch.where(chunk.live, values, 0.0), every

    def gradient(self, values: torch.Tensor, weights: torch.Tensor | float, *, again: bool = False) -> Double:
        """Coordinates (D,) of the gradient of sum_t w_t log pi(y_t), by one backward pass.

        What warping removes, with a log-probability of minus infinity, has no score. Unless there will be
        another pass from the same `values`, `again`, what they have kept for it is freed.
        """
        value = (torch.where(values.isneginf(), 0.0, values) * weights).sum()
        value.backward(retain_graph=again)  # type: ignore[no-untyped-call]
        return self._coordinates.take()

    def kept(self, chunk: Chunk) -> int:
        """Bytes that some rows keep for their backward pass, without checkpointing; somewhat too many."""
        count = 0
        own = {each.untyped_storage().data_ptr() for each in self._network.module.parameters()}

        def counted(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal count
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                count += min(tensor.numel() * tensor.element_size(), storage.nbytes())
            return tensor.new_empty(0)

        with self.ready(checkpointed=False), saved_tensors_hooks(counted, lambda kept: kept):
            self.log_probs(chunk)
        return count


def _checkpoint_layers(model: Module, stack: contextlib.ExitStack) -> None:
    """Checkpoint the layers that transformers would in training mode: it does not in evaluation mode."""
    for module in model.modules():
        kinds = {each.__name__ for each in type(module).__mro__}
        if "GradientCheckpointingLayer" in kinds and getattr(module, "gradient_checkpointing", False):
            if "forward" in vars(module):
                stack.callback(setattr, module, "forward", module.forward)
            else:
                stack.callback(delattr, module, "forward")
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
