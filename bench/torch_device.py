"""Token scores on a CUDA device: the numbers of the CPU, and tokens a second with 0.5 B parameters.

    python bench/torch_device.py

The model is random. A forward pass with logits is what a trainer does anyway. Without a device it says so
and exits with 0.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlvar.torch import Sketch, token_scores

ROWS, PROMPT, RESPONSE, REPEATS = 16, 128, 384, 3


def model_of(layers: int, width: int, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            tie_word_embeddings=True,
        )
    ).eval()


def same_numbers() -> None:
    model = model_of(2, 64, 100)
    ids, response = torch.randint(100, (6, 20)), torch.ones(6, 12)
    for of in ("all", "final_norm", "last_block", "head"):
        here = token_scores(model.cpu(), ids, None, response, of=of, sketch=Sketch(16)).scores
        there = token_scores(model.cuda(), ids.cuda(), None, response.cuda(), of=of, sketch=Sketch(16)).scores
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-4 * np.abs(here).max())


def seconds(run) -> float:
    times = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return 0
    same_numbers()
    model = model_of(24, 1024, 32_000).to("cuda", torch.bfloat16)
    count = sum(each.numel() for each in model.parameters())
    ids = torch.randint(32_000, (ROWS, PROMPT + RESPONSE), device="cuda")
    response = torch.ones(ROWS, RESPONSE)
    print(f"{torch.cuda.get_device_name()}, {count:,} parameters, {ROWS} x {RESPONSE} response tokens")

    @torch.no_grad()
    def forward():
        model(ids, use_cache=False).logits[:, PROMPT - 1 : -1].float().log_softmax(-1)

    def scored(of, k):
        return token_scores(model, ids, None, response, of=of, sketch=Sketch(k), memory=16 << 30)

    runs = {
        "a forward pass": forward,
        "the final norm": lambda: scored("final_norm", 1),
        "the last block, k = 64": lambda: scored("last_block", 64),
        "the head, k = 64": lambda: scored("head", 64),
        "all parameters, k = 16": lambda: scored("all", 16),
    }
    base = 0.0
    for name, run in runs.items():
        took = seconds(run)
        base = base or took
        print(f"{name:24} {ROWS * RESPONSE / took:12,.0f} tokens/s  {took / base:7.2f} forward passes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
