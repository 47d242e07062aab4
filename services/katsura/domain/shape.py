"""Dimensions of a model that rooms without torch must know, and how its FFN is cut.

`weights` reads a `ModelShape` from `config.json`; leases carry it through the hints store; the router's coordinator
and the planner count with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from katsura.domain.errors import InvalidArgumentError


class Numerics(StrEnum):
    """What a deployment promises about its arithmetic (ADR 0003)."""

    INVARIANT = "invariant"
    """Identical tokens whatever the batch, chunking, placement or fail-over."""
    FAST = "fast"
    """Only that a replayed frame gives the same bits."""


class DType(StrEnum):
    """Storage type of weights and KV pages."""

    F32 = "f32"
    BF16 = "bf16"

    @property
    def size_bytes(self) -> int:
        """Bytes per element."""
        return 4 if self is DType.F32 else 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    Attributes:
        family: `llama` or `mixtral`.
        layer_count: decoder layers; each has one attention and one FFN.
        hidden_size: width of the residual stream.
        head_count: query heads; kv_head_count: key/value heads (a divisor); head_size: width of one head.
        ffn_size: intermediate width of the dense FFN, or of one expert.
        expert_count: experts per layer, 0 for a dense model; experts_per_token: how many of them a token uses.
        vocab_size: rows of the embedding; context_length: positions the model was trained for.
    """

    family: str
    layer_count: int
    hidden_size: int
    head_count: int
    kv_head_count: int
    head_size: int
    ffn_size: int
    expert_count: int
    experts_per_token: int
    vocab_size: int
    context_length: int

    @property
    def is_moe(self) -> bool:
        """Whether the FFN has a gate that picks experts."""
        return self.expert_count > 0


@dataclass(frozen=True, slots=True)
class FfnLayout:
    """How every FFN layer is cut, for the whole life of a revision.

    A **unit** is an expert of an MoE model or a slice along the width of a dense FFN. Units `[g*k, (g+1)*k)` with
    `k = unit_count / group_count` form **reduction group** `g`. Placement and fail-over move whole groups, and the
    shard adds one f32 partial per (token, group) by ascending group id; so the sum never depends on who computed it.
    """

    unit_count: int
    group_count: int

    def __post_init__(self) -> None:
        if self.unit_count < 1 or self.group_count < 1 or self.unit_count % self.group_count:
            raise InvalidArgumentError(
                f"{self.unit_count} FFN units cannot form {self.group_count} equal reduction groups; choose a "
                "group count that divides the unit count",
                field="ffn.groups",
            )

    @property
    def units_per_group(self) -> int:
        """Units of one group."""
        return self.unit_count // self.group_count

    def units_of(self, group: int) -> range:
        """Unit ids of reduction group `group`, ascending."""
        return range(group * self.units_per_group, (group + 1) * self.units_per_group)


def layout_for(shape: ModelShape, slices: int, groups: int) -> FfnLayout:
    """The layout of `shape`: its experts, or `slices` equal slices of its dense FFN, in `groups` reduction groups."""
    if shape.is_moe:
        return FfnLayout(shape.expert_count, groups)
    if shape.ffn_size % slices:
        raise InvalidArgumentError(
            f"an FFN of width {shape.ffn_size} cannot be cut into {slices} equal slices", field="ffn.slices"
        )
    return FfnLayout(slices, groups)
