from __future__ import annotations

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from katsura.text.tokenizer import Tokenizer

CORPUS = [
    "the capital of France is Paris",
    "hello world, hello you",
    "naïve café 日本語 🎉🎉 12345",
    "  spaces   here\n\n",
] * 4
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    """A small byte-level BPE (GPT-2, Llama 3, SmolLM)."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return Tokenizer(library.to_str().encode(), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})


@pytest.fixture(scope="session")
def sentence_piece() -> Tokenizer:
    """A small BPE with byte fallback and word marks (Llama 2, Mixtral)."""
    library = Library(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=tokens, show_progress=False)
    words = pre_tokenizers.Split(Regex("▁"), "merged_with_next")
    library.pre_tokenizer = words
    library.train_from_iterator(["the capital of France is Paris", "hello world, hello you"] * 4, trainer)
    library.pre_tokenizer = None  # as published: the merges alone decide
    plain = Library.from_str(_without_special(library.to_str(), keep={"<unk>", "<s>", "</s>"}))
    plain.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    return Tokenizer(plain.to_str().encode(), {"bos_token": "<s>", "eos_token": "</s>"})


def _without_special(definition: str, keep: set[str]) -> str:
    """Byte tokens are plain vocabulary in published tokenizers; the trainer can only add them as special ones."""
    import json

    raw = json.loads(definition)
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in keep]
    return json.dumps(raw)
