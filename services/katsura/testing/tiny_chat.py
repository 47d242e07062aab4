"""A tiny random model that can be talked to: a byte-level tokenizer and a ChatML template beside its weights.

What it says is noise, but the same noise every time, through the same code as every real model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from katsura.testing.tiny import TinyModel, save_tiny

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_tiny_chat(folder: Path, **changes: Any) -> TinyModel:
    """Make the model in `folder`; `changes` go to its configuration."""
    vocabulary, end = save_tiny_tokenizer(folder)
    sizes = {"vocab_size": vocabulary, "eos_token_id": end, "max_position_embeddings": 1024}
    return save_tiny(folder, "llama", **(sizes | changes))


def save_tiny_tokenizer(folder: Path) -> tuple[int, int]:
    """Make its tokenizer and template alone: the size of the vocabulary, and the id that ends an answer.

    The tokens are the 256 bytes and `SPECIAL_TOKENS`; `<|im_end|>` ends an answer.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    end = tokenizer.token_to_id("<|im_end|>")
    assert end is not None, "it was just added"
    return tokenizer.get_vocab_size(), end
