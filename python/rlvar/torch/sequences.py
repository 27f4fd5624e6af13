r"""Scores of whole responses of a language model, s[n] = sum_t S[n,t], by one backward pass each.

Estimators that weigh a rollout by one number (RLOO, GRPO, ...) need no more: sum_t w[n] S[n,t] = w[n] s[n].
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from rlvar import _check
from rlvar.rollouts import Rollouts
from rlvar.torch import inputs
from rlvar.torch.backward import Backward
from rlvar.torch.inputs import Network
from rlvar.torch.language import TokenScores
from rlvar.torch.policy import Policy, log_sum_squares
from rlvar.torch.precondition import scales_of
from rlvar.torch.sketch import Sketch


@dataclass(frozen=True, eq=False)
class SequenceScores(TokenScores):
    """Scores of N whole responses: what `sequence_scores` returns.

    Attributes
    ----------
    scores : ndarray, shape (N, 1, D)
        Sum of the scores of the tokens of each response, float32.
    lengths, logp, log_sum_squares, scores_of, sketch
        As those of `TokenScores`: log-probabilities are those of the tokens, (N, T).
    """

    def rollouts(
        self,
        rewards: ArrayLike,
        *,
        behavior_logp: ArrayLike | None = None,
        **others: Any,
    ) -> Rollouts:
        """Return them as `Rollouts` of one step, which holds all tokens of a response.

        Parameters
        ----------
        rewards : array_like, shape (N,), or one per token
            Numbers per token have the shape of the response mask, or (N, T). Rewards of tokens are added up:
            estimators that weigh tokens by later rewards need `token_scores`; here they are refused or, like
            "multi", reported to be "single".
        behavior_logp : array_like, one per token, optional
            What the sampler recorded, for ratios of whole sequences.
        **others
            The rest of `Rollouts` that is one for each rollout, such as `groups`.

        Returns
        -------
        Rollouts
            With `tokens`, the numbers of response tokens, for everything that depends on length.

        Raises
        ------
        ValueError, TypeError
            As for `Rollouts`; for a shape that is neither, and for arguments that only single tokens have.
        """
        for name in ("values", "terminated", "truncated", "next_values", "score_squares", "lengths", "mask"):
            if others.get(name) is not None:
                raise TypeError(f"{name} goes with token scores: use token_scores")
        earned = _check.floats("rewards", rewards).astype(np.float64)
        recorded = None
        if behavior_logp is not None:
            recorded = self._summed("behavior_logp", _check.floats("behavior_logp", behavior_logp))
        return Rollouts(
            self.scores,
            earned if earned.ndim == 1 else self._summed("rewards", earned)[:, 0],
            lengths=np.minimum(self.lengths, 1),
            tokens=self.lengths,
            logp=self._summed("logp", self.logp),
            behavior_logp=recorded,
            scores_of=self.scores_of,
            sketched=self.sketch is not None,
            **others,
        )

    def _summed(self, name: str, array: Any) -> Any:
        """Sums (N, 1) of numbers per token."""
        by_step = self._tokens.by_step(name, array.astype(np.float64))
        return np.where(self._tokens.live, by_step, 0.0).sum(axis=1, keepdims=True)


def sequence_scores(
    model: torch.nn.Module,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
    response_mask: ArrayLike,
    *,
    sketch: Sketch | None = Sketch(1024),  # noqa: B008 - frozen
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    precondition: torch.optim.Optimizer | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> SequenceScores:
    r"""Compute the score of every whole response of a language model: the sum of those of its tokens.

    It takes one backward pass per response with respect to all trainable parameters (the adapters alone, with
    LoRA), for a sketch of any size; `token_scores` takes more than a forward pass for each dimension.
    Enough for estimators that weigh a response by one number, such as "rloo" and "grpo".

    Parameters
    ----------
    model, input_ids, attention_mask, response_mask
        As for `token_scores`. Layers whose gradient checkpointing is on are checkpointed, without dropout.
    sketch : Sketch or None, default Sketch(1024)
        Size and seed of the count sketch; None for the exact coordinates, as many as there are parameters.
    temperature, top_k, top_p, min_p
        As the rollouts were sampled: they are part of the policy.
    precondition : torch.optim.Optimizer, optional
        An Adam that trains the model: gradients are then divided by its ``sqrt(v) + eps``, before the sketch.
    progress : bool or callable, default False
        Whether to show a progress bar (it needs tqdm), or a function of what is done and the whole.

    Returns
    -------
    SequenceScores
        ``.rollouts(rewards, groups=...)`` turns it into `Rollouts` that count tokens apart from steps.

    Raises
    ------
    ValueError, TypeError
        As `token_scores`, and for gradients that are not finite.

    Notes
    -----
    For fixed gradients the squared norm of a count sketch is unbiased, with a variance of about
    ``2 |g|^4 / k``.

    Examples
    --------
    >>> import torch, rlvar.torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=1))
    >>> ids = torch.randint(20, (4, 6))
    >>> scored = rlvar.torch.sequence_scores(model, ids, None, response_mask=torch.ones(4, 4))
    >>> scored.rollouts(rewards=[0, 1, 1, 0], groups=["a", "a", "b", "b"])
    Rollouts(N=4, T=1, D=1024, lengths 1 to 1, tokens 4 to 4, 2 groups)
    """
    policy = Policy(temperature, top_k, top_p, min_p)
    network, tokens = inputs.prepared(model, input_ids, attention_mask, response_mask)
    backward, scores_of = backward_of(network, policy, sketch, precondition)
    scores = np.zeros((len(tokens.counts), 1, backward.size), np.float32)
    logp, squares = np.zeros((2, *tokens.live.shape))
    total = int(np.count_nonzero(tokens.counts))
    with contextlib.ExitStack() as stack:
        report = _check.reporter(progress, total, " responses", stack)
        stack.enter_context(backward.ready())
        for done, chunk in enumerate(tokens.chunks(1)):
            n, chunk = int(chunk.rows[0]), chunk.to(network.device)
            values, every = backward.log_probs(chunk)
            end = values.shape[1]
            logp[n, :end] = values[0].tolist()
            squares[n, :end] = log_sum_squares(every.detach())[0].tolist()
            del every
            scores[n, 0] = backward.gradient(values, 1.0)
            if not np.isfinite(scores[n]).all():
                raise not_finite(f"response {n}")
            report(done + 1, total)
    return SequenceScores(scores, tokens.counts, logp, squares, scores_of, sketch, tokens)


def backward_of(
    network: Network, policy: Policy, sketch: Sketch | None, precondition: torch.optim.Optimizer | None
) -> tuple[Backward, str]:
    """Return the backward pass to all trainable parameters, and what they are."""
    if sketch is not None and not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a Sketch or None, got {type(sketch).__name__}")
    chosen = inputs.named(network.module)
    scores_of = inputs.described(network.module, chosen)
    backward = Backward(network, policy, chosen, sketch, scales_of(precondition, chosen))
    return backward, scores_of if precondition is None else f"{scores_of}, preconditioned"


def not_finite(what: str) -> ValueError:
    """Return the error for a gradient that is not finite."""
    return ValueError(
        f"the gradient of {what} is not finite: parameters of the model are not, or its precision overflows"
    )
