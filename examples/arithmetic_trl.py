"""The sums of `arithmetic.py` as a run of TRL, watched.

python examples/arithmetic_trl.py  # two minutes on one thread
"""

from __future__ import annotations

import os

import numpy as np
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trl import GRPOConfig, GRPOTrainer

import arithmetic
import rlvar.torch.trl


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Every character is a token."""
    vocabulary = {character: i for i, character in enumerate(arithmetic.CHARACTERS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="_"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="_", eos_token=".")


def prompts(count: int, rng: np.random.Generator) -> Dataset:
    pairs = arithmetic.draw_prompts(count, rng).tolist()
    return Dataset.from_list([{"prompt": f"{a}+{b}=", "a": a, "b": b} for a, b in pairs])


def right(completion_ids, a, b, **_) -> list[float]:
    """1 for a completion that is all right."""
    written = map(arithmetic.decode, completion_ids)
    wanted = map(arithmetic.right_completion, a, b)
    return [float(one == other) for one, other in zip(written, wanted, strict=True)]


def partly(completion_ids, a, b, **_) -> list[float]:
    """The share of the right completion that is written before the first wrong character."""
    wanted = list(map(arithmetic.right_completion, a, b))
    written = map(arithmetic.decode, completion_ids)
    pairs = zip(wanted, written, strict=True)
    return [len(os.path.commonprefix(pair)) / len(pair[0]) for pair in pairs]  # noqa: RUF071 - of texts


def make_trainer(model, folder, *, steps: int, reward=right, seed: int = 0, **options) -> GRPOTrainer:
    """Return a trainer for steps of 8 prompts with 8 completions each."""
    arguments = {
        "per_device_train_batch_size": 64,
        "num_generations": 8,
        "max_completion_length": arithmetic.LONGEST,
        "max_steps": steps,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "constant",
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": seed,
    }
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(folder), **{**arguments, **options}),
        train_dataset=prompts(8 * steps, np.random.default_rng(seed)),
        processing_class=make_tokenizer(),
    )


def main() -> None:
    rng = np.random.default_rng(0)
    model = arithmetic.make_model(0)
    arithmetic.teach(model, 300, rng)
    trainer = make_trainer(model, "arithmetic_trl", steps=100)
    watcher = rlvar.torch.trl.watch(trainer, every=5, whole_every=5)
    trainer.train()
    print(watcher.report())


if __name__ == "__main__":
    main()
