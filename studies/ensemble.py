"""Many copies of one small Llama that train together, each with its own parameters.

The parameters are those of `transformers`' LlamaForCausalLM, by its names, with an axis of R copies in front;
token ids have shape (R, B, L). A thousand runs of a model of 125,000 parameters then take one step in the
time of a few, where one after the other they would wait for the launch of kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

HEADS, LAYERS, EPS, THETA = 4, 3, 1e-6, 10_000.0  # as in examples/arithmetic.py
Parameters = dict[str, torch.Tensor]


def stacked(states: list[Mapping[str, torch.Tensor]], device: str) -> Parameters:
    """State dicts of R models as one dict of tensors (R, ...)."""
    return {name: torch.stack([state[name] for state in states]).to(device) for name in states[0]}


def _normed(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight[:, None, None]


def _product(x, weight):
    """x (R, B, L, H) with each copy's weight (R, O, H): (R, B, L, O)."""
    copies, batch, length, width = x.shape
    return torch.bmm(x.reshape(copies, batch * length, width), weight.mT).view(copies, batch, length, -1)


def _turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def logits(p: Parameters, ids: torch.Tensor, past: list | None = None) -> torch.Tensor:
    """Logits (R, B, L, V) of the next token; `past`, a list, keeps keys and values from call to call."""
    copies, batch, length = ids.shape
    vocabulary = p["lm_head.weight"].shape[1]
    words = p["model.embed_tokens.weight"]
    words = torch.cat([words[:, :1].detach(), words[:, 1:]], 1)  # the first pads: it has no gradient
    x = _product(torch.nn.functional.one_hot(ids, vocabulary).float(), words.mT)
    start = past[0][0].shape[-2] if past else 0
    width = x.shape[-1] // HEADS
    turns = THETA ** (-torch.arange(0, width, 2, device=ids.device) / width)
    angles = torch.arange(start, start + length, device=ids.device)[:, None] * turns
    cos, sin = angles.cos(), angles.sin()
    hidden = torch.ones(length, start + length, dtype=torch.bool, device=ids.device).triu(start + 1)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        y = _normed(x, p[name + "input_layernorm.weight"])
        q, k, v = (
            _product(y, p[name + f"self_attn.{part}_proj.weight"])
            .view(copies * batch, length, HEADS, width)
            .transpose(1, 2)
            for part in "qkv"
        )
        q, k = _turned(q, cos, sin), _turned(k, cos, sin)
        if past is not None:
            if start:
                k, v = (torch.cat(pair, -2) for pair in zip(past[layer], (k, v), strict=True))
                past[layer] = (k, v)
            else:
                past.append((k, v))
        attention = (q @ k.mT * width**-0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        mixed = (attention @ v).transpose(1, 2).reshape(copies, batch, length, -1)
        x = x + _product(mixed, p[name + "self_attn.o_proj.weight"])
        y = _normed(x, p[name + "post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(_product(y, p[name + "mlp.gate_proj.weight"]))
        inner = gate * _product(y, p[name + "mlp.up_proj.weight"])
        x = x + _product(inner, p[name + "mlp.down_proj.weight"])
    return _product(_normed(x, p["model.norm.weight"]), p["lm_head.weight"])


@torch.no_grad()
def sample(p: Parameters, prompts: torch.Tensor, longest: int, end: int, generator: torch.Generator):
    """Complete prompts (R, B, L): ids (R, B, L + longest), zeros after the end, and which were written."""
    written, open_, mask, past, new = [], torch.ones_like(prompts[..., 0], dtype=torch.bool), [], [], prompts
    for _ in range(longest):
        shares = logits(p, new, past)[:, :, -1].softmax(-1)
        token = torch.multinomial(shares.flatten(0, 1), 1, generator=generator).view(open_.shape)
        token = token.where(open_, 0)
        written.append(token)
        mask.append(open_)
        open_ = open_ & (token != end)
        new = token[..., None]
    return torch.cat([prompts, torch.stack(written, -1)], -1), torch.stack(mask, -1)


def completion_logits(p: Parameters, ids: torch.Tensor, longest: int) -> torch.Tensor:
    """Log-probabilities (R, B, longest, V) of the policy at the tokens of a completion."""
    return logits(p, ids[..., :-1])[:, :, -longest:].log_softmax(-1)


class Adam:
    """torch.optim.Adam with a learning rate for each copy, (R,)."""

    def __init__(self, p: Parameters, rates: torch.Tensor, betas=(0.9, 0.999), eps: float = 1e-8):
        self.p, self.rates, self.betas, self.eps, self.steps = p, rates, betas, eps, 0
        self.first = {name: torch.zeros_like(x) for name, x in p.items()}
        self.second = {name: torch.zeros_like(x) for name, x in p.items()}

    @torch.no_grad()
    def step(self, gradients: Parameters) -> None:
        self.steps += 1
        b1, b2 = self.betas
        for name, g in gradients.items():
            m, v = self.first[name], self.second[name]
            m.lerp_(g, 1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            down = (v / (1 - b2**self.steps)).sqrt_().add_(self.eps)
            rates = self.rates.view(-1, *(1,) * (g.ndim - 1)) / (1 - b1**self.steps)
            self.p[name].sub_(rates * m / down)

    def keep(self, which: torch.Tensor) -> None:
        """Go on with these copies alone."""
        self.rates = self.rates[which]
        for part in (self.first, self.second, self.p):
            for name in part:
                part[name] = part[name][which].detach()


def gradients_of(p: Parameters, loss) -> Parameters:
    """Gradients of `loss`, a function of parameters: the sum over copies of each one's loss."""
    leaves = {name: x.detach().requires_grad_() for name, x in p.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))
