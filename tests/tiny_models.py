"""Tiny language models from configs, with random weights that matter, and tokens for them."""

import torch
import transformers as hf
from torch.overrides import TorchFunctionMode

VOCABULARY = 23
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_FEW_KEYS = {"num_key_value_heads": 1}


def _gpt2():
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


_MAKERS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_COMMON, **_FEW_KEYS)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(
        hf.Qwen3Config(**_COMMON, **_FEW_KEYS, head_dim=8, tie_word_embeddings=True)
    ),
    "gemma2": lambda: hf.Gemma2ForCausalLM(  # soft-caps attention and logits, ties embeddings
        hf.Gemma2Config(**_COMMON, **_FEW_KEYS, head_dim=8, final_logit_softcapping=3.0)
    ),
    "gpt2": _gpt2,
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_COMMON)),
    "moe": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**_COMMON, **_FEW_KEYS, num_local_experts=4, num_experts_per_tok=2)
    ),
    "deepseek": lambda: hf.DeepseekV3ForCausalLM(  # latent attention: arrays of other shapes in between
        hf.DeepseekV3Config(
            **_COMMON,
            num_key_value_heads=2,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            first_k_dense_replace=2,
        )
    ),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**_COMMON, **_FEW_KEYS, logit_scale=0.3)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**_COMMON, **_FEW_KEYS, logits_scaling=3.0)),
}
NAMES = tuple(_MAKERS)


def make(name, seed=0):
    """Return a model in float64. transformers runs some norms in float32: see `precise`."""
    torch.manual_seed(seed)
    model = _MAKERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if name == "moe":
        model.set_experts_implementation("eager")  # grouped products know no float64
    return model.double().eval()


def batch(rows=5, seed=1):
    """Return ids, attention mask and response mask (rows, 12): prompts padded left, responses right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, 12), generator=generator)
    attended, response = torch.ones_like(ids), torch.zeros_like(ids)
    for row in range(rows):
        start, prompt, answer = row % 3, 4, 3 + (row % 4)
        attended[row, :start] = 0
        attended[row, prompt + answer :] = 0
        response[row, prompt : prompt + answer] = 1
    return ids * attended, attended, response


def log_probs(model, ids, attended, policy=lambda z: z.log_softmax(-1)):
    """Log-probabilities (rows, L - 1) of each token after the first, positions from the mask."""
    options = {"position_ids": (attended.cumsum(1) - 1).clamp(min=0), "use_cache": False}
    logits = model(input_ids=ids, attention_mask=attended, **options).logits[:, :-1]
    return policy(logits).gather(-1, ids[:, 1:, None])[..., 0]


def one_backward_a_token(model, ids, attended, response, parameters=None, policy=lambda z: z.log_softmax(-1)):
    """Gradient of each response token's log-probability, a list of (row, t, {name: gradient})."""
    every = dict(model.named_parameters()) if parameters is None else parameters
    found = []
    for row in range(len(ids)):
        kept = attended[row] == 1  # without padding
        values = log_probs(model, ids[row : row + 1, kept], attended[row : row + 1, kept], policy)[0]
        for t, place in enumerate(response[row, kept].nonzero()[:, 0].tolist()):
            gradients = torch.autograd.grad(
                values[place - 1], list(every.values()), retain_graph=True, allow_unused=True
            )
            zeros = map(torch.zeros_like, every.values())
            filled = [z if g is None else g for g, z in zip(gradients, zeros, strict=True)]
            found.append((row, t, dict(zip(every, filled, strict=True))))
    return found


class precise(TorchFunctionMode):
    """Within, what transformers computes in float32 (norms, softmax, rotations) stays in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def kept(value):
            return torch.float64 if value is torch.float32 else value

        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(kept, args), **{name: kept(value) for name, value in (kwargs or {}).items()})
