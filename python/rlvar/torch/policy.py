"""The policy that was sampled from: logits, divided by a temperature and warped, to log-probabilities of
tokens.

log pi(y) = z_y - log sum_{v in K} exp z_v with z = logits / temperature and K what top-k, top-p and min-p
keep, in the order in which transformers samples. Inside of K scores are gradients of this; K itself is taken
as constant. A token outside of K has log-probability minus infinity, and no score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rlvar import _check


@dataclass(frozen=True)
class Policy:
    """What is done to logits before a token is drawn from their softmax."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        _check.positive_number("temperature", self.temperature)
        if self.top_k is not None:
            _check.positive_integer("top_k", self.top_k)
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < _check.positive_number(name, value) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of all tokens (..., V) from a model's logits, in float32 or more."""
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1:
            z = z / self.temperature
        removed = self.removed(z)
        return (z if removed is None else z.masked_fill(removed, -torch.inf)).log_softmax(-1)

    def removed(self, z: torch.Tensor) -> torch.Tensor | None:
        """Tokens (..., V) that warping removes; None if it removes none. Nothing flows back through it."""
        if self.top_k is None and self.top_p in (None, 1.0) and self.min_p is None:
            return None
        from transformers.generation import logits_process as warpers

        kept = z.detach().flatten(0, -2)
        ids: Any = kept.new_empty(len(kept), 0, dtype=torch.int64)  # which no warper reads
        if self.top_k is not None:
            kept = warpers.TopKLogitsWarper(self.top_k)(ids, kept)
        if self.top_p is not None and self.top_p < 1:
            kept = warpers.TopPLogitsWarper(self.top_p)(ids, kept)
        if self.min_p is not None:
            kept = warpers.MinPLogitsWarper(self.min_p)(ids, kept)
        return kept.isneginf().view(z.shape)


def of_tokens(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (...) of `tokens` (...) from those of all (..., V)."""
    return log_probs.gather(-1, tokens[..., None])[..., 0]


def log_sum_squares(log_probs: torch.Tensor) -> torch.Tensor:
    """Log of the sum of squared probabilities (...): verl's sum_pi_squared, TRL's log_sum_sq_probs."""
    return (2 * log_probs).logsumexp(-1)
