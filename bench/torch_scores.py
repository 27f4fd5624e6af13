"""What token scores cost beside the forward pass with logits that a trainer does anyway.

    python bench/torch_scores.py [--threads 2] [--rounds 5] [--small]

4 layers, 512 wide, 32,000 tokens, 8 rows of 512 tokens; timed in turn in one process, after a check of the
result against autograd. It exits with status 1 if one of two promises is missed: scores of the final norm, of
responses of half a row, take at most 1.2 times the forward pass with log-probabilities of all tokens (the
product W^T e costs what the head does: where all tokens are of a response the ratio is larger, and printed);
a direction of a sketch of all parameters, 8 together, takes at most 2.2 times that of the same tokens.
"""

import argparse
import sys

from timing import in_turn, limit_threads

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--small", action="store_true", help="shows that it runs; promises nothing")
args = parser.parse_args()
limit_threads(args.threads)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers as hf  # noqa: E402

from rlvar.torch import Sketch, token_scores  # noqa: E402

LIMIT, LIMIT_OF_A_DIRECTION, DIRECTIONS = 1.2, 2.2, 8
torch.set_num_threads(args.threads)
torch.manual_seed(0)
rows, length, vocabulary, wide = (2, 32, 500, 64) if args.small else (8, 512, 32_000, 512)
model = hf.LlamaForCausalLM(
    hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=wide,
        intermediate_size=3 * wide,
        num_hidden_layers=4,
        num_attention_heads=8,
    )
).eval()
ids = torch.randint(3, vocabulary, (rows, length))


def trainer(kept=length):
    """Log-probabilities of all tokens, or of the last ones alone."""
    with torch.no_grad():
        logits = model(ids, use_cache=False, logits_to_keep=kept + (kept < length)).logits[:, :-1]
        targets = ids[:, -logits.shape[1] :, None]
        return logits.log_softmax(-1).gather(-1, targets)[..., 0]


def scores(response):
    return token_scores(model, ids, None, np.ones((rows, response)), of="final_norm")


half = length // 2
found = scores(half)
np.testing.assert_allclose(found.logp, trainer()[:, -half:].numpy(), atol=1e-4)
logp = model(ids[:1], use_cache=False).logits[0, -2].log_softmax(-1)[ids[0, -1]]
(expected,) = torch.autograd.grad(logp, model.model.norm.weight)
np.testing.assert_allclose(found.scores[0, -1], expected.numpy(), atol=1e-4 * float(expected.abs().max()))

seconds = in_turn(
    trainer, lambda: trainer(half), lambda: scores(half), lambda: scores(length - 1), rounds=args.rounds
)
every, windowed, of_half, of_every = seconds
print(f"forward with log-probabilities of all tokens       {every:7.3f} s")
print(f"the same of the last half alone                    {windowed:7.3f} s")
for name, taken in (("half of each row is response", of_half), ("all of each row is response", of_every)):
    print(f"scores of the final norm, {name:<29}{taken:5.3f} s, {taken / every:.2f} times the first")

some = ids[:2, : length // 2]  # one chunk, so that both passes see the same tokens


def forward():
    """Log-probabilities of some rows."""
    with torch.no_grad():
        return model(some, use_cache=False).logits[:, :-1].log_softmax(-1)


def directions():
    response = np.ones((len(some), some.shape[1] - 1))
    return token_scores(model, some, None, response, sketch=Sketch(DIRECTIONS), memory=16 << 30)


plain, sketched = in_turn(forward, directions, rounds=args.rounds)
each = (sketched - plain) / plain / DIRECTIONS  # it computes the log-probabilities first
print(f"forward with log-probabilities of {some.numel():,} tokens        {plain:7.3f} s")
took = f"{each * plain:7.3f} s, {each:.2f} times that"
print(f"a direction of all parameters, {DIRECTIONS} together              {took}")
sys.exit(not args.small and (of_half / every > LIMIT or each > LIMIT_OF_A_DIRECTION))
