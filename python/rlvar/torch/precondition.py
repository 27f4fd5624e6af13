"""Gradients as Adam sees them: each coordinate over sqrt(v) + eps, v its running mean of squares.

What an optimiser steps along is not g but about g / (sqrt(v) + eps): variances of that are in the units of a
step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Scales(Mapping[str, torch.Tensor]):
    """sqrt(v) + eps of parameters by their names, made when asked for: all of them would fill a gradient."""

    _parts: dict[str, tuple[torch.Tensor, torch.Tensor, float, float]]  # parameter, v, its bias, eps

    def __getitem__(self, name: str) -> torch.Tensor:
        parameter, squares, bias, eps = self._parts[name]
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return squares.to(parameter.device, dtype).div(bias).sqrt_().add_(eps).view(parameter.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def scales_of(optimizer: Any, chosen: Mapping[str, torch.nn.Parameter]) -> Scales:
    """Return sqrt(v) + eps of each parameter, v without the bias of its start at 0; nothing for no optimiser.

    Raises ValueError unless `optimizer` is an Adam (AdamW, ...) that has stepped with all of them.
    """
    if optimizer is None:
        return Scales({})
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer  # accelerate's and DeepSpeed's
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"precondition must be a torch optimizer, got {type(optimizer).__name__}")
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    parts: dict[str, tuple[torch.Tensor, torch.Tensor, float, float]] = {}
    for name, parameter in chosen.items():
        group, state = groups.get(parameter), optimizer.state.get(parameter, {})
        squares, steps = state.get("max_exp_avg_sq", state.get("exp_avg_sq")), float(state.get("step", 0))
        if group is None or squares is None or "betas" not in group or not steps:
            why = (
                "does not train it"
                if group is None
                else "has no running squares of it: it must be an Adam that has stepped"
            )
            raise ValueError(f"precondition: the optimizer {why} ({name})")
        bias = 1.0 - float(group["betas"][1]) ** steps
        parts[name] = parameter, squares.detach(), bias, float(group["eps"])
    return Scales(parts)
