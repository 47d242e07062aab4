"""`tokenizer.json` and `tokenizer_config.json` rebuilt from a GGUF file's metadata (byte-level BPE).

GGUF keeps tokens, merges and the *name* of a pre-tokeniser. SmolLM's splits every digit off before the GPT-2 pattern
applies; transformers' own GGUF reader leaves that step out, which only shows where several spaces precede a digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from katsura.domain.errors import UnimplementedError

Json = dict[str, Any]

_BYTE_LEVEL: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_PRE_TOKENIZERS: Mapping[str, Json] = {
    "gpt-2": _BYTE_LEVEL,
    "default": _BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` values that matter here."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4


def tokenizer_json(meta: Mapping[str, Any]) -> Json:
    """The `tokenizer.json` of a byte-level BPE described by GGUF metadata.

    Raises:
        UnimplementedError: another tokeniser model, or a pre-tokeniser whose pattern is not known here.
    """
    model, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "default")
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise UnimplementedError(
            f"this GGUF file has a tokenizer {model!r} with pre-tokeniser {pre!r}; only gpt2 with "
            f"{', '.join(sorted(_PRE_TOKENIZERS))} can be rebuilt. Take the model as a safetensors folder instead"
        )
    tokens = meta["tokenizer.ggml.tokens"]
    types = meta.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    added = [
        _added(index, text, special=kind == TokenType.CONTROL)
        for index, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": _bos_first(meta, tokens) if meta.get("tokenizer.ggml.add_bos_token") else None,
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in meta["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config_json(meta: Mapping[str, Any], context_length: int) -> Json:
    """The `tokenizer_config.json`: special tokens by name, and the chat template where there is one."""
    tokens = meta["tokenizer.ggml.tokens"]
    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    template = meta.get("tokenizer.chat_template")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token")),
        **{name: tokens[index] for name, index in ids.items() if index is not None},
        **({"chat_template": template} if template is not None else {}),
    }


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _added(index: int, text: str, special: bool) -> Json:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": text, **flags, "special": special}


def _bos_first(meta: Mapping[str, Any], tokens: list[str]) -> Json:
    index = meta["tokenizer.ggml.bos_token_id"]
    bos = {"SpecialToken": {"id": tokens[index], "type_id": 0}}
    text: list[Json] = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [bos, text[0]],
        "pair": [bos, text[0], bos, text[1]],
        "special_tokens": {tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]}},
    }
