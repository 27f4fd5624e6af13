"""Models and tokenizers by name, as transformers takes them, and text into tokens."""

from __future__ import annotations

import importlib
import logging as stdlib_logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from rlvar.recorded.container import Ids, Marks, RecordedRollouts

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
_RETOKENISED = (
    "text was split into tokens by the model's tokenizer, prompt and response apart: perhaps not as it was "
    "sampled"
)


def load_model(name: str, dtype: Dtype, device: str | None) -> torch.nn.Module:
    """Return a causal language model from a local folder or the hub, with no parameter made up."""
    transformers = _transformers()
    with _named("model", name):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            trust_remote_code=False,
            output_loading_info=True,
        )
        missing = sorted(map(str, info.get("missing_keys", ())))
        if missing:
            raise ValueError(f"its files lack {len(missing)} parameters, such as {missing[0]}")
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        result: torch.nn.Module = model.to(where)
    return result


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a model."""
    transformers = _transformers()
    with _named("tokenizer of", name):
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError("models by name need transformers: pip install 'rlvar[torch]'") from None


@contextmanager
def _named(what: str, name: str) -> Iterator[None]:
    """Keep transformers quiet, and say of what an error is, in one line."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    if name.startswith(("/", ".", "~")) and not os.path.isdir(name):
        raise FileNotFoundError(2, "no such folder", name)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = stdlib_logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(stdlib_logging.CRITICAL)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise MemoryError(f"{what} {name}: it is too large for the device's memory") from None
    except Exception as error:  # of hubs, parsers and networks
        raise ValueError(f"{what} {name}: {' '.join(str(error).split())[:300]}") from error
    finally:
        logging.set_verbosity(verbosity)
        hub.setLevel(level)
        if bars:
            logging.enable_progress_bar()


def tokenised(recorded: RecordedRollouts, tokenizer: Any) -> RecordedRollouts:
    """Return recorded text as tokens: prompts through the chat template where they are messages."""
    ids: list[Ids] = []
    masks: list[Marks] = []
    for number, (prompt, response) in enumerate(recorded.texts or []):
        try:
            before, after = _prompt_ids(prompt, tokenizer), _ids(response, tokenizer, special=False)
        except Exception as error:  # of a template
            what = " ".join(str(error).split())[:300]
            raise ValueError(f"{recorded.source}: rollout {number} cannot be tokenised: {what}") from error
        if not before:
            raise ValueError(
                f"{recorded.source}: rollout {number} has no prompt, so its first token has no score"
            )
        ids.append(np.array(before + after, np.int64))
        masks.append(np.arange(len(before) + len(after)) >= len(before))
    return recorded.tokenised(ids, masks, _RETOKENISED)


def _prompt_ids(prompt: Any, tokenizer: Any) -> list[int]:
    if not isinstance(prompt, str):
        text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        return _ids(text, tokenizer, special=False)
    # What has its own first token, such as text that a template made, needs no other.
    begun = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    ids = _ids(prompt, tokenizer, special=not begun)
    ended = bool(tokenizer.eos_token) and prompt.endswith(tokenizer.eos_token)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and not ended else ids


def _ids(text: str, tokenizer: Any, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])
