"""Token scores of a language model: S[n,t] = gradient of log pi(y_t given x, y_<t), for every token of a
response.

See `rlvar.torch.forward` for sketches of all parameters, and `rlvar.torch.parts` for parts of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from rlvar import _check
from rlvar._types import Double, Float
from rlvar.rollouts import Rollouts
from rlvar.torch import inputs
from rlvar.torch.forward import exact, sketched
from rlvar.torch.inputs import Network, Tokens
from rlvar.torch.parts import part_scores
from rlvar.torch.policy import Policy, log_sum_squares, of_tokens
from rlvar.torch.precondition import scales_of
from rlvar.torch.sketch import Sketch

Of = Literal["all", "last_block", "final_norm", "head"]


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of the tokens of N responses: what `token_scores` returns.

    Attributes
    ----------
    scores : ndarray, shape (N, T, D)
        Score of each response token, float32: T is the most that any row has, gaps are skipped, and rows are
        0 behind their end.
    lengths : ndarray of int, shape (N,)
        Number of response tokens of each row.
    logp : ndarray, shape (N, T)
        Log-probability of each token under the policy; minus infinity for one that warping removes, whose
        score is 0.
    log_sum_squares : ndarray, shape (N, T)
        Logarithm of the sum of all tokens' squared probabilities.
    scores_of : str
        What the scores are gradients with respect to, such as "all 162,368 parameters of LlamaForCausalLM".
    sketch : Sketch or None
        The sketch whose coordinates they are; None for exact coordinates.
    """

    scores: Float
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    logp: Double
    log_sum_squares: Double
    scores_of: str
    sketch: Sketch | None
    _tokens: Tokens = field(repr=False)

    @classmethod
    def unscored(cls, tokens: Tokens, logp: Double, log_sum_squares: Double) -> TokenScores:
        """Return log-probabilities (N, T) with NaN for scores, which cannot pass for numbers."""
        nothing = np.broadcast_to(np.float32(np.nan), (*tokens.live.shape, 1))
        return cls(nothing, tokens.counts, logp, log_sum_squares, "nothing", None, tokens)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Where (N, T) a row has a token."""
        return self._tokens.live

    @property
    def score_squares(self) -> Double:
        """Squared norms (N, T) of the scores by logits."""
        with np.errstate(over="ignore"):
            return 1.0 - 2.0 * np.exp(self.logp) + np.exp(self.log_sum_squares)

    def rollouts(
        self,
        rewards: ArrayLike,
        *,
        behavior_logp: ArrayLike | None = None,
        values: ArrayLike | None = None,
        **others: Any,
    ) -> Rollouts:
        """Return them as `Rollouts`, with their log-probabilities and the scores' squares in logit space.

        Parameters
        ----------
        rewards : array_like, shape (N,), or one per token
            Numbers per token have the shape of the response mask, or (N, T).
        behavior_logp, values : array_like, one per token, optional
            As for `Rollouts`: `behavior_logp` is what the sampler recorded.
        **others
            The rest of `Rollouts`, such as `groups`.

        Returns
        -------
        Rollouts

        Raises
        ------
        ValueError
            As `Rollouts`, and for a shape that is neither.
        """
        steps = self._tokens.by_step
        by_token = {
            name: None if given is None else steps(name, _check.floats(name, given).astype(np.float64))
            for name, given in (("behavior_logp", behavior_logp), ("values", values))
        }
        earned = _check.floats("rewards", rewards)
        return Rollouts(
            self.scores,
            earned if earned.ndim == 1 else steps("rewards", earned.astype(np.float64)),
            lengths=self.lengths,
            logp=self.logp,
            score_squares=self.score_squares,
            scores_of=self.scores_of,
            sketched=self.sketch is not None,
            **by_token,
            **others,
        )


def token_scores(
    model: torch.nn.Module,
    input_ids: ArrayLike,
    attention_mask: ArrayLike | None,
    response_mask: ArrayLike,
    *,
    of: Of = "all",
    sketch: Sketch | None = Sketch(),  # noqa: B008 - frozen
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    precondition: torch.optim.Optimizer | None = None,
    memory: int = 1 << 30,
    progress: bool | Callable[[int, int], object] = False,
) -> TokenScores:
    r"""Compute the score of every response token of a language model, and its log-probability.

    Parameters
    ----------
    model : torch.nn.Module
        A causal language model of transformers, also wrapped by PEFT or DistributedDataParallel, or any
        module that takes ``(input_ids, attention_mask=...)`` and returns logits (N, L, V), alone or as
        ``.logits``. It runs on its device and in its precision, in evaluation mode, and is left as it was.
    input_ids : array_like of int, shape (N, L)
        Prompts and responses, padded on either side.
    attention_mask : array_like, shape (N, L), or None
        1 for a token, 0 for padding. None if there is no padding.
    response_mask : array_like, shape (N, L) or (N, Tc)
        1 for each token that the policy chose and the loss sees, or for the last Tc columns alone, as
        trainers keep it. With several turns it has gaps.
    of : {"all", "last_block", "final_norm", "head"}, default "all"
        What the gradients are with respect to. "all": all trainable parameters (or all parameters, if the
        whole model is frozen), sketched by forward mode. Parts cost a pass or two and are good for
        `on_policy_test` and a first look; their ratios may be off by factors of up to four, their noise
        scales by tens. "final_norm": the gain of the last norm, exact, D its width. "last_block": those
        parameters of the last block, the final norm and an untied head that are exact in one backward pass.
        "head": the output matrix.
    sketch : Sketch or None, default Sketch(64)
        Coordinates of the sketch; None for the exact coordinates of `of`, as many as it has parameters. The
        gain of the final norm is never sketched.
    temperature, top_k, top_p, min_p
        As the rollouts were sampled: they are part of the policy. A trainer may divide by the temperature
        outside of the model, as TRL does.
    precondition : torch.optim.Optimizer, optional
        An Adam that trains the model: gradients are then divided by its ``sqrt(v) + eps``, before the sketch.
    memory : int, default 2**30
        Bytes for what passes through the network at a time, beside the model and the result, as far as they
        can be estimated beforehand.
    progress : bool or callable, default False
        Whether to show a progress bar (it needs tqdm), or a function of what is done and the whole.

    Returns
    -------
    TokenScores
        ``.rollouts(rewards, groups=...)`` turns it into `Rollouts`.

    Raises
    ------
    ValueError, TypeError
        For shapes that do not fit, a response token that is masked or has none before it, sharded models,
        encoder-decoders, and parts that the model does not have.

    Examples
    --------
    >>> import torch, rlvar.torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8,
    ...     num_hidden_layers=1, num_attention_heads=1))
    >>> ids = torch.randint(20, (4, 6))
    >>> scored = rlvar.torch.token_scores(model, ids, None, response_mask=torch.ones(4, 4))
    >>> scored.scores.shape, scored.scores_of
    ((4, 4, 64), 'all 792 parameters of LlamaForCausalLM')
    """
    _check.choice("of", of, Of)
    memory = _check.positive_integer("memory", memory)
    policy = Policy(temperature, top_k, top_p, min_p)
    if sketch is not None and not isinstance(sketch, Sketch):
        raise TypeError(f"sketch must be a Sketch or None, got {type(sketch).__name__}")
    network, tokens = inputs.prepared(model, input_ids, attention_mask, response_mask)
    if of != "all":
        with contextlib.ExitStack() as stack:
            stack.enter_context(inputs.still(network.module))
            rows = int(np.count_nonzero(tokens.counts))
            shown = _check.reporter(progress, rows, " rollouts", stack)
            found = part_scores(
                network, tokens, of, sketch, policy, precondition, memory, lambda done: shown(done, rows)
            )
        scores, logp, squares, scores_of, sketch = found
        return TokenScores(scores, tokens.counts, logp, squares, scores_of, sketch, tokens)
    chosen = inputs.named(network.module)
    scales = scales_of(precondition, chosen)
    scores_of = inputs.described(network.module, chosen)
    with contextlib.ExitStack() as stack:
        stack.enter_context(inputs.still(network.module, forward_mode=True))
        began = time.perf_counter()
        logp, squares = _log_probs(network, tokens, policy, memory)
        each = 2.2 * (time.perf_counter() - began)  # of a forward-mode pass, as measured on two processors
        total = int(np.count_nonzero(tokens.counts)) * (1 if sketch is None else sketch.k)
        seconds = None if sketch is None else each * sketch.k
        shown = _check.reporter(progress, total, " rollouts x directions", stack, seconds)

        def report(done: int) -> object:
            return shown(done, total)

        if sketch is None:
            scores = exact(network, tokens, chosen, policy, scales, report)
        else:
            scores = sketched(network, tokens, chosen, sketch, policy, scales, memory, report)
    if precondition is not None:
        scores_of += ", preconditioned"
    return TokenScores(scores, tokens.counts, logp, squares, scores_of, sketch, tokens)


def _log_probs(network: Network, tokens: Tokens, policy: Policy, memory: int) -> tuple[Double, Double]:
    """Log-probabilities of the tokens (N, T) and logs of sums of squared probabilities; 0 where none."""
    logp, squares = np.zeros((2, *tokens.live.shape))
    rows = max(1, memory // (8 * network.width(tokens) * int(tokens.lengths.max())))
    with torch.no_grad():
        for chunk in tokens.chunks(rows):
            chunk = chunk.to(network.device)
            every = policy.log_probs(network.logits(chunk))
            for result, found in (
                (logp, of_tokens(every, network.targets(chunk))),
                (squares, log_sum_squares(every)),
            ):
                found = torch.where(chunk.live, found, 0.0)
                result[chunk.rows, : found.shape[1]] = found.double().cpu().numpy()
    return logp, squares
