"""Gradients as Adam sees them: each coordinate over sqrt(v) + eps, v its running mean of squares.

What an optimiser steps along is not g but about g / (sqrt(v) + eps): variances of that are in the units of a
step.
"""

from __future__ import annotations

from typing import Any

import torch


def scales_of(optimizer: Any, chosen: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Return sqrt(v) + eps of each parameter, v without the bias of its start at 0; nothing for no optimiser.

    Raises ValueError unless `optimizer` is an Adam (AdamW, ...) that has stepped with all of them.
    """
    if optimizer is None:
        return {}
    while not isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer  # accelerate's and DeepSpeed's
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"precondition must be a torch optimizer, got {type(optimizer).__name__}")
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    scales = {}
    for name, parameter in chosen.items():
        group, state = groups.get(parameter), optimizer.state.get(parameter, {})
        squares = state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
        if group is None or squares is None or "betas" not in group:
            why = (
                "does not train it"
                if group is None
                else "has no running squares of it: it must be an Adam that has stepped"
            )
            raise ValueError(f"precondition: the optimizer {why} ({name})")
        unbiased = squares / (1 - group["betas"][1] ** float(state["step"]))
        scales[name] = (unbiased.sqrt() + group["eps"]).detach()
    return scales
