r"""Sketches of token scores with respect to all parameters, by forward mode.

The derivative of all token log-probabilities along one direction v of the parameters is <S[n,t], v> for every
token of every rollout at once, exact token by token: one forward pass that carries a tangent beside each
number (two products of matrices where the plain pass has one). k directions are k coordinates of a sketch.
Directions that are taken together share the plain part, so k of them cost 2 k + 1 passes in products and
somewhat more in what lies between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch.func import jvp, vmap

from rlvar._types import Float
from rlvar.torch import inputs
from rlvar.torch.inputs import Chunk, Network, Tokens
from rlvar.torch.policy import Policy, of_tokens
from rlvar.torch.sketch import Sketch


def sketched(
    network: Network,
    tokens: Tokens,
    chosen: dict[str, torch.nn.Parameter],
    sketch: Sketch,
    policy: Policy,
    scales: Mapping[str, torch.Tensor],
    memory: int,
    report: Callable[[int], object],
) -> Float:
    """Return <S[n,t], v_j> / sqrt(k) (N, T, k), with tangents of about `memory` bytes at most.

    `scales` divide each direction, and so each gradient, by parameter; `report` is told the directions done,
    times rows.
    """
    result = np.zeros((*tokens.live.shape, sketch.k), np.float32)
    plain = {name: each.detach() for name, each in chosen.items()}
    size = sum(each.numel() * each.element_size() for each in plain.values())
    widest = int(tokens.lengths.max()) * network.width(tokens) * 4
    # Half of the memory holds directions, half what passes through: tangents and, one more, the plain part.
    together = int(max(1, min(sketch.k, memory // 2 // size, memory // 2 // widest - 1)))
    rows = int(max(1, memory // 2 // (widest * (together + 1))))
    done = 0
    for start in range(0, sketch.k, together):
        stop = min(start + together, sketch.k)
        directions = {
            name: sketch.directions(name, each.shape, start, stop, dtype=each.dtype, device=each.device)
            for name, each in plain.items()
        }
        for name, scale in scales.items():
            directions[name] /= scale
        for chunk in tokens.chunks(rows):
            on_device = chunk.to(network.device)
            found = _along(network, on_device, plain, directions, policy)
            found = torch.where(on_device.live[..., None], found, 0.0)
            result[chunk.rows, : found.shape[1], start:stop] = found.float().cpu().numpy()
            done += len(chunk.rows) * (stop - start)
            report(done)
    return result


def _along(
    network: Network,
    chunk: Chunk,
    plain: dict[str, torch.Tensor],
    directions: dict[str, torch.Tensor],
    policy: Policy,
) -> torch.Tensor:
    """Derivatives (n, t, j) of token log-probabilities along j directions."""
    targets = network.targets(chunk)

    def log_probs(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return of_tokens(policy.log_probs(network.logits(chunk, parameters)), targets)

    def along(direction: dict[str, torch.Tensor]) -> torch.Tensor:
        value, slope = jvp(log_probs, (plain,), (direction,))[:2]
        # What warping has removed has no score.
        return torch.where(value.isneginf(), 0.0, slope)

    try:
        return vmap(along, out_dims=-1)(directions)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # of an operation that vmap does not know: one at a time
        count = len(next(iter(directions.values())))
    try:
        every = (along({name: each[j] for name, each in directions.items()}) for j in range(count))
        return torch.stack(list(every), dim=-1)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        name, why = inputs.name_of(network.module), str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"of='all' needs forward-mode derivatives, which an operation of {name} lacks ({why}); use "
            "of='last_block', sequence_scores or unit_gradients"
        ) from error


def exact(
    network: Network,
    tokens: Tokens,
    chosen: dict[str, torch.nn.Parameter],
    policy: Policy,
    scales: Mapping[str, torch.Tensor],
    report: Callable[[int], object],
) -> Float:
    """Return S[n,t] in the coordinates of all parameters (N, T, D), by one backward pass per token."""
    sizes = [each.numel() for each in chosen.values()]
    result = np.zeros((*tokens.live.shape, sum(sizes)), np.float32)
    scale = torch.cat([scales[name].flatten() for name in chosen]) if scales else None
    with inputs.only_requiring_grad(network.module, chosen):
        for done, chunk in enumerate(tokens.chunks(1)):
            chunk = chunk.to(network.device)
            values = of_tokens(policy.log_probs(network.logits(chunk)), network.targets(chunk))[0]
            for t, value in enumerate(values):
                if value.isneginf():
                    continue
                found = torch.autograd.grad(
                    value, list(chosen.values()), retain_graph=True, materialize_grads=True
                )
                flat = torch.cat([each.flatten() for each in found]).float()
                result[chunk.rows[0], t] = (flat if scale is None else flat / scale).cpu().numpy()
            report(done + 1)
    return result
