"""A GGUF file turned once into a standard folder: f32 safetensors, config.json and tokenizer files.

f32 because dequantised values (scale * q + minimum) do not fit bf16 without rounding; the deployment's dtype decides
when the folder is loaded. SmolLM2-135M takes 538 MB so. llama.cpp stores Q and K rows with the two halves of each
rotary pair interleaved; they are put back into the order of the original checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from katsura.domain.errors import DataLossError, UnimplementedError
from katsura.domain.units import MIB
from katsura.weights.gguf_tokenizer import tokenizer_config_json, tokenizer_json
from katsura.weights.progress import Progress, Stage
from katsura.weights.space import full_disk_named, require_space
from katsura.weights.writer import F32Writer

CONVERTER = "gguf-1"
"""Name and version of this conversion; a change of the output raises it, and cached folders are made again."""

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOKEN_IDS = {"bos": "bos", "eos": "eos", "pad": "padding"}
_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<part>\w+)\.weight\Z")
_SMALL_FILES_BYTES = 16 * MIB
"""Room for the tokenizer and configuration files."""


def convert(path: Path, folder: Path, progress: Progress) -> dict[str, str]:
    """Write the model in GGUF file `path` into the empty `folder`.

    Returns:
        SHA-256 (hex) of the files whose digest is known from writing them.

    Raises:
        DataLossError: the file is not GGUF or ends too early.
        UnimplementedError: another architecture, quantisation or tokenizer than this reads.
        ResourceExhaustedError: the disk is full (`DISK_FULL`).
    """
    reader = _open(path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    names = {tensor.name: _hf_name(tensor.name) for tensor in reader.tensors}
    try:
        config = config_json(meta, set(names))
        small: dict[str, dict[str, Any]] = {
            "config.json": config,
            "generation_config.json": {key: value for key, value in config.items() if key.endswith("_token_id")},
            "tokenizer.json": tokenizer_json(meta),
            "tokenizer_config.json": tokenizer_config_json(meta, config["max_position_embeddings"]),
        }
    except KeyError as missing:
        raise DataLossError(f"{path.name} lacks the metadata {missing}; fetch it again") from missing
    weights = folder / "model.safetensors"
    shapes = {names[t.name]: tuple(int(n) for n in reversed(t.shape)) for t in reader.tensors}
    writer = F32Writer(weights, shapes)
    needed = writer.tensor_bytes + _SMALL_FILES_BYTES
    require_space(folder, needed)
    with full_disk_named(folder, needed):
        for name, value in small.items():
            (folder / name).write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")
        with writer:
            done = 0
            for tensor in reader.tensors:
                values = _restored(tensor, config)
                writer.write(names[tensor.name], values)
                done += values.nbytes
                progress.advance(Stage.CONVERT, done, writer.tensor_bytes)
    return {weights.name: writer.sha256}


def config_json(meta: Mapping[str, Any], tensors: set[str]) -> dict[str, Any]:
    """The `config.json` of a Llama-family model described by GGUF metadata and the names of its tensors."""
    if (architecture := meta.get("general.architecture")) != "llama":
        raise UnimplementedError(f"this GGUF file holds a {architecture!r} model; only 'llama' is read")
    llama = {key.removeprefix("llama."): value for key, value in meta.items() if key.startswith("llama.")}
    odd = [key for key in llama if key.startswith("rope.scaling.") or key.startswith("expert_")]
    odd += [name for name in tensors if name.startswith("rope_freqs")]
    if odd:
        raise UnimplementedError(
            f"this GGUF file uses {', '.join(sorted(odd))}, which is not read from GGUF; take the model as a "
            "safetensors folder instead"
        )
    heads, hidden = llama["attention.head_count"], llama["embedding_length"]
    head_dim = llama.get("attention.key_length", hidden // heads)
    if llama.get("rope.dimension_count", head_dim) != head_dim:
        raise UnimplementedError("this GGUF file rotates a part of each head only, which is not a Llama model")
    ids = {f"{name}_token_id": meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in _TOKEN_IDS.items()}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": llama.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": llama.get("vocab_size", len(meta["tokenizer.ggml.tokens"])),
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": _decimal(llama["attention.layer_norm_rms_epsilon"]),
        "rope_theta": _decimal(llama.get("rope.freq_base", 10000.0)),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensors,
        **{name: value for name, value in ids.items() if value is not None},
    }


def unpermuted(rows: npt.NDArray[np.float32], head_count: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's row order of a Q or K projection with `head_count` heads.

    llama.cpp keeps row `i` and row `i + head_size/2` of a head next to each other; checkpoints keep them apart.
    """
    pairs = rows.reshape(head_count, rows.shape[0] // head_count // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise DataLossError(f"{path.name} is not a whole GGUF file ({error}); fetch it again") from error


def _hf_name(name: str) -> str:
    match = _NAME.match(name)
    if match is not None and match["layer"] is None and match["part"] in _TOP:
        return f"{_TOP[match['part']]}.weight"
    if match is not None and match["layer"] is not None and match["part"] in _BLOCK:
        return f"model.layers.{int(match['layer'])}.{_BLOCK[match['part']]}.weight"
    if name.startswith("rope_freqs"):
        return name
    raise UnimplementedError(f"this GGUF file holds a tensor {name!r} that a Llama model does not have")


def _restored(tensor: gguf.ReaderTensor, config: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise UnimplementedError(
            f"{tensor.name} is quantised as {tensor.tensor_type.name}, which is not read"
        ) from error
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    part = tensor.name.split(".")[-2]
    return unpermuted(values, config[heads[part]]) if part in heads else values


def _decimal(value: float) -> float:
    """The short decimal an f32 was written from: 9.999999747378752e-06 -> 1e-05 (the same f32)."""
    return float(str(np.float32(value)))
