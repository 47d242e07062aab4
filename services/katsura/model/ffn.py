"""FFN partials and their sum.

Each reduction group gives one f32 partial per token and the shard adds them by ascending group id, so that no bit
depends on who computed which group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from katsura.model.gate import Routing
from katsura.model.kernels import KernelPlan
from katsura.model.linear import PackedLinear
from katsura.model.weights import FfnBlock, GroupWeights


@dataclass(frozen=True, slots=True)
class FfnInput:
    """What one layer's FFN is applied to: `hidden` `[tokens, width]` in the model's dtype; `routing` for MoE."""

    hidden: Tensor
    routing: Routing | None


def group_partial(group: GroupWeights, hidden: Tensor, routing: Routing | None) -> Tensor:
    """The contribution of one group: f32 `[tokens, width]`.

    MoE: the outputs of the group's experts, weighted, added by ascending expert id; a token that uses none of them
    gets zeros.
    """
    if routing is None:
        return swiglu(group.blocks[0], hidden).float()
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    flat = routing.ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=group.expert_ids[-1] + 1).tolist()
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    tokens, weights = order // routing.ids.shape[1], routing.weights.reshape(-1, 1)
    for expert, block in zip(group.expert_ids, group.blocks, strict=True):
        span = slice(starts[expert], starts[expert + 1])
        if counts[expert]:
            rows = tokens[span]
            output = swiglu(block, hidden.index_select(0, rows)).float()
            total.index_add_(0, rows, output.mul_(weights.index_select(0, order[span])))
    return total


def swiglu(block: FfnBlock, hidden: Tensor) -> Tensor:
    """`down(silu(gate(x)) * up(x))` in the model's dtype."""
    if block.native is not None:
        return block.native(hidden)
    return block.down(_activated(block.gate_up(hidden)))


def _activated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, 1)
    return _silu(gate).mul_(up)


def sum_groups(partials: Mapping[int, Tensor]) -> Tensor:
    """The FFN output: f32 partials by group id, added in ascending order."""
    first, *rest = sorted(partials)
    total = partials[first]
    for group in rest:
        total = total + partials[group]
    return total


_silu: Callable[[Tensor], Tensor] = getattr(torch._C._nn, "silu", functional.silu)  # without a Python frame


class GroupSet:
    """Groups of one layer held in one place: their partials, with the bits of `group_partial`, in fewer products.

    Where the plan allows, gate and up of all dense groups are one product; only `down` is one per group, because the
    sums of two groups must not meet before `sum_groups`. The groups' own gate and up are not kept. Our own kernels
    compute group by group, each in one call.
    """

    def __init__(self, groups: Sequence[GroupWeights], kernels: KernelPlan) -> None:
        """`groups` are of one layer, in any order."""
        self._groups = sorted(groups, key=lambda held: held.group)
        self._gate_up: PackedLinear | None = None
        self._downs: list[tuple[int, PackedLinear]] = []
        dense = all(not held.expert_ids for held in self._groups)
        blocks = [held.blocks[0].native for held in self._groups if dense]
        self._native = [block for block in blocks if block is not None]
        if self._native or not dense or (len(self._groups) > 1 and not kernels.fuse_groups):
            return
        first = self._groups[0].blocks[0].gate_up
        self._gate_up = first
        if len(self._groups) > 1:
            parts = [held.blocks[0].gate_up.dense().chunk(2) for held in self._groups]
            stacked = torch.cat([gate for gate, _ in parts] + [up for _, up in parts])
            self._gate_up = PackedLinear(stacked, kernels.linear_for(first.in_width, first.out_width))
        self._downs = [(held.group, held.blocks[0].down) for held in self._groups]
        self._groups = []

    def partials(self, hidden: Tensor, routing: Routing | None) -> dict[int, Tensor]:
        """f32 `[tokens, width]` by group id."""
        if self._gate_up is None:
            return {held.group: group_partial(held, hidden, routing) for held in self._groups}
        pieces = self._pieces(self._gate_up, hidden)
        return {group: down(piece).float() for (group, down), piece in zip(self._downs, pieces, strict=True)}

    def write_partials(self, hidden: Tensor, sums: Sequence[Tensor]) -> None:
        """The partials of dense groups by ascending group id, into f32 `[tokens, width]` each."""
        if self._native:
            for native, into in zip(self._native, sums, strict=True):
                native.write(hidden, into)
            return
        assert self._gate_up is not None, "an expert's partials need its routes"
        if len(self._downs) == 1:  # flat: see `wire.repeat`
            gate, up = self._gate_up(hidden).chunk(2, 1)
            sums[0].copy_(self._downs[0][1](_silu(gate).mul_(up)))
            return
        for (_, down), piece, into in zip(self._downs, self._pieces(self._gate_up, hidden), sums, strict=True):
            into.copy_(down(piece))

    def _pieces(self, gate_up: PackedLinear, hidden: Tensor) -> Sequence[Tensor]:
        """What each group's `down` takes."""
        activated = _activated(gate_up(hidden))
        if len(self._downs) == 1:
            return (activated,)
        return [piece.contiguous() for piece in torch.chunk(activated, len(self._downs), 1)]


class LocalFfn:
    """All groups in this process (unified topology): the same bits as any split of the same layout."""

    def __init__(self, layers: Sequence[Sequence[GroupWeights]], kernels: KernelPlan) -> None:
        """`layers[l]` holds every group of layer `l`; drop them afterwards, or they are in memory twice."""
        self._layers = [GroupSet(groups, kernels) for groups in layers]

    def apply(self, layer: int, inputs: FfnInput) -> Tensor:
        """The FFN output of `layer`: f32 `[tokens, width]`, to be added to the residual."""
        return sum_groups(self._layers[layer].partials(inputs.hidden, inputs.routing))
