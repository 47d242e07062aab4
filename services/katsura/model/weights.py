"""Containers of loaded weights, and how they are built from slices that a reader hands in.

The reader is any function from a `TensorSlice` to its tensor (the `weights` room reads safetensors, tests read a state
dict). q, k and v are fused into one product and gate and up into another: at few rows a product costs its call as
much as its bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from katsura.domain.shape import FfnLayout
from katsura.model.config import ModelConfig
from katsura.model.families.registry import FAMILIES
from katsura.model.families.tensors import TensorSlice, UnitTensors
from katsura.model.kernels import KernelPlan
from katsura.model.linear import TORCH_DTYPE, PackedLinear
from katsura.native.library import Ffn

Reader = Callable[[TensorSlice], Tensor]
"""Returns the slice as a tensor of exactly `slice.shape`, any float dtype."""


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The attention side of one layer. `qkv` stacks the rows of q, k and v; `router` is None in dense models."""

    input_norm: Tensor
    qkv: PackedLinear
    o: PackedLinear
    post_norm: Tensor
    router: PackedLinear | None


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """All that an attention shard holds: `embedding` `[vocab, hidden]`, layers, final norm, `lm_head`."""

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    lm_head: PackedLinear


@dataclass(frozen=True, slots=True)
class FfnBlock:
    """One SwiGLU: `gate_up` stacks the rows of gate and up `[2 * width, hidden]`, `down` is `[hidden, width]`."""

    gate_up: PackedLinear
    down: PackedLinear
    native: Ffn | None = field(init=False, default=None)
    """All of it as one call, where our own kernels compute both products."""

    def __post_init__(self) -> None:
        gate_up, down = self.gate_up.panels, self.down.panels
        if gate_up is not None and down is not None:
            object.__setattr__(self, "native", Ffn(gate_up, down, self.down.out_width, self.down.in_width))

    @property
    def size_bytes(self) -> int:
        """Bytes of weights that one use reads."""
        return self.gate_up.size_bytes + self.down.size_bytes


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """One reduction group of one layer.

    Dense: a single block, the slices of the group side by side. MoE: one block per expert, `expert_ids` ascending;
    empty in dense models.
    """

    layer: int
    group: int
    expert_ids: tuple[int, ...]
    blocks: tuple[FfnBlock, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of weights held."""
        return sum(block.size_bytes for block in self.blocks)


def attention_slices(config: ModelConfig) -> list[TensorSlice]:
    """Everything that an attention shard reads, in reading order."""
    family = FAMILIES[config.shape.family]
    model = family.model_tensors(config)
    slices = [model.embedding, model.final_norm, model.lm_head]
    for layer in range(config.shape.layer_count):
        names = family.layer_tensors(config, layer)
        slices += [names.input_norm, names.q, names.k, names.v, names.o, names.post_norm, names.router]
    return [piece for piece in slices if piece is not None]


def group_slices(config: ModelConfig, layout: FfnLayout, layer: int, group: int) -> list[TensorSlice]:
    """Everything that the holder of reduction group `group` of `layer` reads, in reading order."""
    units = _units(config, layout, layer, group)
    return [piece for unit in units for piece in (unit.gate, unit.up, unit.down)]


def build_attention(config: ModelConfig, read: Reader, kernels: KernelPlan) -> AttentionWeights:
    """Read and pack what an attention shard holds."""
    family, dtype = FAMILIES[config.shape.family], TORCH_DTYPE[kernels.dtype]

    def dense(piece: TensorSlice) -> Tensor:
        return read(piece).to(dtype).contiguous()

    layers = []
    for layer in range(config.shape.layer_count):
        names = family.layer_tensors(config, layer)
        layers.append(
            LayerWeights(
                input_norm=dense(names.input_norm),
                qkv=_pack(torch.cat([dense(names.q), dense(names.k), dense(names.v)]), kernels),
                o=_pack(dense(names.o), kernels),
                post_norm=dense(names.post_norm),
                router=None if names.router is None else _pack(dense(names.router), kernels),
            )
        )
    model = family.model_tensors(config)
    embedding = dense(model.embedding)
    head = embedding if model.lm_head is None else dense(model.lm_head)
    return AttentionWeights(embedding, tuple(layers), dense(model.final_norm), _pack(head, kernels))


def build_group(
    config: ModelConfig, layout: FfnLayout, layer: int, group: int, read: Reader, kernels: KernelPlan
) -> GroupWeights:
    """Read and pack one reduction group of one layer."""
    units = _units(config, layout, layer, group)
    if config.shape.is_moe:
        blocks = tuple(_block([unit], read, kernels) for unit in units)
        return GroupWeights(layer, group, tuple(layout.units_of(group)), blocks)
    return GroupWeights(layer, group, (), (_block(units, read, kernels),))


def _units(config: ModelConfig, layout: FfnLayout, layer: int, group: int) -> list[UnitTensors]:
    family = FAMILIES[config.shape.family]
    return [family.unit_tensors(config, layout, layer, unit) for unit in layout.units_of(group)]


def _block(units: list[UnitTensors], read: Reader, kernels: KernelPlan) -> FfnBlock:
    dtype = TORCH_DTYPE[kernels.dtype]
    rows = [read(unit.gate).to(dtype) for unit in units] + [read(unit.up).to(dtype) for unit in units]
    down = [read(unit.down).to(dtype) for unit in units]
    return FfnBlock(_pack(torch.cat(rows), kernels), _pack(torch.cat(down, 1), kernels))


def _pack(weight: Tensor, kernels: KernelPlan) -> PackedLinear:
    out_width, in_width = weight.shape
    return PackedLinear(weight, kernels.linear_for(in_width, out_width))
