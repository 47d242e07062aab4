"""How a family's checkpoint maps onto the split: which slices of which tensors each part reads.

An attention shard reads what `attention_tensors` and `model_tensors` name and nothing else, an expert member what
`unit_tensors` names: neither ever touches the other's bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from katsura.domain.shape import FfnLayout
from katsura.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """A tensor on disk, or the half-open range of its `rows` (dim 0) or `cols` (dim 1) that is wanted.

    `shape` is that of the slice: what the reader must return.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    cols: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ModelTensors:
    """Tensors outside the layers. `lm_head` is None where it is tied to the embedding."""

    embedding: TensorSlice
    final_norm: TensorSlice
    lm_head: TensorSlice | None


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """The attention side of one layer. `router` (the MoE gate, `[experts, hidden]`) is None in dense models."""

    input_norm: TensorSlice
    q: TensorSlice
    k: TensorSlice
    v: TensorSlice
    o: TensorSlice
    post_norm: TensorSlice
    router: TensorSlice | None


@dataclass(frozen=True, slots=True)
class UnitTensors:
    """One FFN unit: `gate` and `up` are `[width, hidden]`, `down` is `[hidden, width]`."""

    gate: TensorSlice
    up: TensorSlice
    down: TensorSlice


class Family(Protocol):
    """The tensor names of one model family."""

    def model_tensors(self, config: ModelConfig) -> ModelTensors:
        """Tensors outside the layers."""
        ...

    def layer_tensors(self, config: ModelConfig, layer: int) -> LayerTensors:
        """The attention side of `layer`."""
        ...

    def unit_tensors(self, config: ModelConfig, layout: FfnLayout, layer: int, unit: int) -> UnitTensors:
        """FFN unit `unit` of `layer`: an expert, or a slice along the width of a dense FFN."""
        ...


def decoder_model_tensors(config: ModelConfig) -> ModelTensors:
    """The names that Llama and its descendants share outside the layers."""
    shape = config.shape
    table = (shape.vocab_size, shape.hidden_size)
    return ModelTensors(
        embedding=TensorSlice("model.embed_tokens.weight", table),
        final_norm=TensorSlice("model.norm.weight", (shape.hidden_size,)),
        lm_head=None if config.tied_embeddings else TensorSlice("lm_head.weight", table),
    )


def decoder_layer_tensors(config: ModelConfig, layer: int, router_name: str | None) -> LayerTensors:
    """The names that Llama and its descendants share on the attention side of a layer."""
    shape, prefix = config.shape, f"model.layers.{layer}"
    q_width, kv_width = shape.head_count * shape.head_size, shape.kv_head_count * shape.head_size
    router = TensorSlice(f"{prefix}.{router_name}", (shape.expert_count, shape.hidden_size)) if router_name else None
    return LayerTensors(
        input_norm=TensorSlice(f"{prefix}.input_layernorm.weight", (shape.hidden_size,)),
        q=TensorSlice(f"{prefix}.self_attn.q_proj.weight", (q_width, shape.hidden_size)),
        k=TensorSlice(f"{prefix}.self_attn.k_proj.weight", (kv_width, shape.hidden_size)),
        v=TensorSlice(f"{prefix}.self_attn.v_proj.weight", (kv_width, shape.hidden_size)),
        o=TensorSlice(f"{prefix}.self_attn.o_proj.weight", (shape.hidden_size, q_width)),
        post_norm=TensorSlice(f"{prefix}.post_attention_layernorm.weight", (shape.hidden_size,)),
        router=router,
    )
