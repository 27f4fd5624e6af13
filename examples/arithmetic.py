"""A small language model that learns two-digit sums: the task, the policy and its training.

A prompt is "37+45=". The model writes the sum of the ones, a space, and the answer: "12 82." Characters are
tokens. It is taught on a few right answers, then trained by policy gradient (RLOO) with reward 1 for a
completion that is all right.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import rlvar

CHARACTERS = "_0123456789+= ."  # the first pads
END = CHARACTERS.index(".")
PROMPT, LONGEST = 6, 8  # tokens: "37+45=", and the longest completion


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]


def decode(tokens) -> str:
    return "".join(CHARACTERS[token] for token in tokens)


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=PROMPT + LONGEST,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config)


def draw_prompts(count: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of numbers (count, 2), each of two digits."""
    return rng.integers(10, 100, (count, 2))


def right_completion(a: int, b: int) -> str:
    return f"{a % 10 + b % 10} {a + b}."


def prompts_as_tokens(pairs: np.ndarray) -> torch.Tensor:
    return torch.tensor([encode(f"{a}+{b}=") for a, b in pairs])


@torch.no_grad()
def sample(model, pairs: np.ndarray, policy=lambda logits: logits.log_softmax(-1)):
    """Complete each pair: ids (N, 14), which tokens the model wrote (N, 8), and their log-probabilities."""
    ids = prompts_as_tokens(pairs)
    logp, open_ = [], torch.ones(len(pairs), dtype=torch.bool)
    mask = []
    for _ in range(LONGEST):
        log_probs = policy(model(ids).logits[:, -1].float())
        token = torch.multinomial(log_probs.exp(), 1)[:, 0].where(open_, 0)
        logp.append(log_probs.gather(1, token[:, None])[:, 0].where(open_, 0.0))
        mask.append(open_)
        ids = torch.cat([ids, token[:, None]], dim=1)
        open_ = open_ & (token != END)
    return ids, torch.stack(mask, 1), torch.stack(logp, 1)


def rewards_of(pairs: np.ndarray, ids: torch.Tensor, mask: torch.Tensor):
    """Whether each completion is all right (N,), and 1 for each token up to the first wrong one (N, 8)."""
    right, by_token = np.zeros(len(pairs)), np.zeros((len(pairs), LONGEST))
    for n, (a, b) in enumerate(pairs):
        wanted = right_completion(a, b)
        written = decode(ids[n, PROMPT:][mask[n]].tolist())
        right[n] = written == wanted
        for t, (got, want) in enumerate(zip(written, wanted, strict=False)):
            if got != want:
                break
            by_token[n, t] = 1.0
    return right, by_token


def teach(model, steps: int, rng: np.random.Generator) -> None:
    """Supervised steps on right completions."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        pairs = draw_prompts(64, rng)
        texts = [right_completion(a, b) for a, b in pairs]
        answers = torch.tensor([encode(text.ljust(LONGEST, "_")) for text in texts])
        ids = torch.cat([prompts_as_tokens(pairs), answers], dim=1)
        log_probs = model(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
        logp = log_probs.gather(-1, answers[..., None])[..., 0]
        loss = -logp[answers != 0].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def improve(model, optimizer, rng: np.random.Generator, prompts: int = 32, completions: int = 8) -> float:
    """One step of policy gradient with RLOO; return the share of right completions."""
    pairs = np.repeat(draw_prompts(prompts, rng), completions, axis=0)
    ids, mask, _ = sample(model, pairs)
    right, _ = rewards_of(pairs, ids, mask)
    advantages = torch.from_numpy(rlvar.rloo(right, np.repeat(np.arange(prompts), completions)))
    log_probs = model(ids).logits[:, PROMPT - 1 : -1].log_softmax(-1)
    logp = log_probs.gather(-1, ids[:, PROMPT:, None])[..., 0]
    loss = -(advantages[:, None] * logp * mask).sum() / len(pairs)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(right.mean())


def success(model, rng: np.random.Generator, count: int = 1000) -> float:
    """Share of right completions at temperature 1."""
    pairs = draw_prompts(count, rng)
    return float(rewards_of(pairs, *sample(model, pairs)[:2])[0].mean())


def train(seed: int, until: float, taught: int = 300, rate: float = 2e-4):
    """Teach a model, then train it by policy gradient until so many completions in one are right."""
    model, rng = make_model(seed), np.random.default_rng(seed)
    teach(model, taught, rng)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    steps = 0
    while (rate_now := success(model, np.random.default_rng(99))) < until:
        for _ in range(10):
            improve(model, optimizer, rng)
        steps += 10
        print(f"after {steps} steps of policy gradient: {rate_now:.1%} right")
    return model, optimizer
