"""What token scores of the final norm cost beside the forward pass with logits that a trainer does anyway.

    python bench/torch_final_norm.py [--threads 2] [--rounds 5] [--small]

4 layers, 512 wide, 32,000 tokens, 8 rows of 512 tokens; timed in turn in one process, after a check of the
result against autograd. It exits with status 1 if scores of responses of half a row take more than 1.2
times the forward pass with the log-probabilities of all tokens. The product W^T e costs what the head does:
where every token is a response token the ratio is larger, and printed.
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

from rlvar.torch import token_scores  # noqa: E402

LIMIT = 1.2
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
sys.exit(not args.small and of_half / every > LIMIT)
