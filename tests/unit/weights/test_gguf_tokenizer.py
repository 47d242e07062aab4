from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from katsura.domain.errors import UnimplementedError
from katsura.weights.gguf_tokenizer import tokenizer_config_json, tokenizer_json


def metadata(**changes: Any) -> dict[str, Any]:
    tokens = ["<|end|>", "<|im|>", *"helo12", "\u0120", "he", "ll", "\u0120\u0120", "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 3), 4],
        "tokenizer.ggml.merges": ["h e", "l l", "\u0120 \u0120"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
        **changes,
    }


def built(**changes: Any) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json(metadata(**changes))))


def test_merges_and_special_tokens_are_those_of_the_file() -> None:
    tokenizer = built()
    assert tokenizer.encode("<|im|>hello<tool>").tokens == ["<|im|>", "he", "ll", "o", "<tool>"]
    assert tokenizer.decode(tokenizer.encode("<|im|>hello<tool>").ids) == "hello<tool>"


def test_smollm_splits_every_digit_off_before_anything_else() -> None:
    assert built().encode("  12").tokens == ["\u0120\u0120", "1", "2"]
    assert built(**{"tokenizer.ggml.pre": "gpt-2"}).encode("  12").tokens == ["\u0120", "\u0120", "1", "2"]


def test_a_bos_token_comes_first_where_the_file_says_so_and_the_caller_asks() -> None:
    tokenizer = built(**{"tokenizer.ggml.add_bos_token": True})
    assert tokenizer.encode("he").tokens == ["<|im|>", "he"]
    assert tokenizer.encode("he", add_special_tokens=False).tokens == ["he"]
    assert built().encode("he").tokens == ["he"]


@pytest.mark.parametrize("change", [{"tokenizer.ggml.model": "llama"}, {"tokenizer.ggml.pre": "qwen2"}])
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused_by_name(change: dict[str, str]) -> None:
    with pytest.raises(UnimplementedError, match=next(iter(change.values()))):
        built(**change)


def test_the_configuration_names_special_tokens_and_carries_the_template(tmp_path: Path) -> None:
    config = tokenizer_config_json(metadata(**{"tokenizer.chat_template": "T"}), 128)
    assert (config["bos_token"], config["eos_token"], config["chat_template"]) == ("<|im|>", "<|end|>", "T")
    assert "pad_token" not in config
    assert "chat_template" not in tokenizer_config_json(metadata(), 128)
