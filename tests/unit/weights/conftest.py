from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType as Quant
from tokenizers.pre_tokenizers import ByteLevel

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, FFN, LAYERS = 64, 4, 2, 16, 96, 2


class TinyGguf:
    """A Llama with random weights, as llama.cpp would store it, and what must come out of it."""

    def __init__(self, path: Path, quant: Quant = Quant.F32, *, tied: bool = True, **extra: Any) -> None:
        self.path = path
        self.tokens = ["<|end|>", "<|im|>", *sorted(ByteLevel.alphabet()), "he", "llo", "<tool>"]
        self.merges = ["h e", "l l", "ll o"]
        self.tokens.insert(-1, "ll")
        self.expected: dict[str, npt.NDArray[np.float32]] = {}
        self._quant = quant
        self._rng = np.random.default_rng(7)
        self._writer = gguf.GGUFWriter(path, "llama")
        self._metadata(extra)
        self._tensors(tied)
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_tensors_to_file()
        self._writer.close()

    def _metadata(self, extra: dict[str, Any]) -> None:
        writer = self._writer
        writer.add_block_count(LAYERS)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(FFN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(100000.0)
        writer.add_tokenizer_model(extra.get("model", "gpt2"))
        writer.add_tokenizer_pre(extra.get("pre", "smollm"))
        writer.add_token_list(self.tokens)
        writer.add_token_types([3, 3, *[1] * (len(self.tokens) - 3), 4])
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(extra.get("add_bos", False))
        writer.add_chat_template("{{ messages }}")
        if "rope_scaling" in extra:
            writer.add_string("llama.rope.scaling.type", extra["rope_scaling"])

    def _tensors(self, tied: bool) -> None:
        self._add("token_embd", "model.embed_tokens", (len(self.tokens), HIDDEN))
        self._add("output_norm", "model.norm", (HIDDEN,))
        if not tied:
            self._add("output", "lm_head", (len(self.tokens), HIDDEN))
        for i in range(LAYERS):
            block, layer = f"blk.{i}", f"model.layers.{i}"
            self._add(f"{block}.attn_norm", f"{layer}.input_layernorm", (HIDDEN,))
            self._add(f"{block}.ffn_norm", f"{layer}.post_attention_layernorm", (HIDDEN,))
            self._add(f"{block}.attn_q", f"{layer}.self_attn.q_proj", (HEADS * HEAD_SIZE, HIDDEN), HEADS)
            self._add(f"{block}.attn_k", f"{layer}.self_attn.k_proj", (KV_HEADS * HEAD_SIZE, HIDDEN), KV_HEADS)
            self._add(f"{block}.attn_v", f"{layer}.self_attn.v_proj", (KV_HEADS * HEAD_SIZE, HIDDEN))
            self._add(f"{block}.attn_output", f"{layer}.self_attn.o_proj", (HIDDEN, HEADS * HEAD_SIZE))
            self._add(f"{block}.ffn_gate", f"{layer}.mlp.gate_proj", (FFN, HIDDEN))
            self._add(f"{block}.ffn_up", f"{layer}.mlp.up_proj", (FFN, HIDDEN))
            self._add(f"{block}.ffn_down", f"{layer}.mlp.down_proj", (HIDDEN, FFN))

    def _add(self, name: str, expected: str, shape: tuple[int, ...], heads: int = 0) -> None:
        value = self._rng.standard_normal(shape).astype(np.float32)
        quant = self._quant if value.ndim == 2 else Quant.F32
        # What a quantised file holds is known only after quantising; rows are independent, so order does not matter.
        data = gguf.quantize(value, quant)
        self.expected[f"{expected}.weight"] = gguf.dequantize(data, quant)
        self._writer.add_tensor(f"{name}.weight", _interleaved(data, heads) if heads else data, raw_dtype=quant)


def _interleaved(rows: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """llama.cpp's order: row i of a head's first half is followed by row i of its second half."""
    half = rows.shape[0] // heads // 2
    order = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in (0, 1)]
    return np.ascontiguousarray(rows[order])


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> type[TinyGguf]:
    return TinyGguf
