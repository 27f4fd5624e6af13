"""Trainers of TRL on a model of a few thousand parameters; sums of two numbers, a character a token."""

import torch
import transformers as hf
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

CHARACTERS = "_0123456789+= ."  # the first pads, the last ends
CONFIGS = {GRPOTrainer: GRPOConfig, RLOOTrainer: RLOOConfig}
PROMPTS = Dataset.from_dict({"prompt": [f"{i}+{j}=" for i in range(7, 20) for j in (3, 42)]})


def tokenizer():
    words = Tokenizer(models.WordLevel({each: i for i, each in enumerate(CHARACTERS)}, unk_token="_"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return hf.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="_", eos_token=".")


def model(seed=0, **changed):
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(CHARACTERS), "hidden_size": 8, "intermediate_size": 16}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    ends = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": CHARACTERS.index(".")}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**sizes, **layers, **ends, **changed}))


def by_tokens(prompts, completion_ids, **_):
    """A reward that tells prompt and completion."""
    pairs = zip(prompts, completion_ids, strict=True)
    return [(sum(ids) * (1 + CHARACTERS.index(prompt[0]))) % 7 for prompt, ids in pairs]


def trainer(
    folder, kind=GRPOTrainer, *, rewards=by_tokens, model=model, peft=None, eval_dataset=None, **changed
):
    """Return a trainer for two steps of 3 prompts with 4 completions each, or as changed."""
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 12,
        "num_generations": 4,
        "max_completion_length": 5,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "beta": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return kind(
        model=model(),
        reward_funcs=rewards,
        args=CONFIGS[kind](**{**arguments, **changed}),
        train_dataset=PROMPTS,
        eval_dataset=eval_dataset,
        processing_class=tokenizer(),
        peft_config=peft,
    )
