"""FFN partials and their sum.

Each reduction group gives one f32 partial per token and the shard adds them by ascending group id, so that no bit
depends on who computed which group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from katsura.model.gate import Routing
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
    gate_up = block.gate_up(hidden)
    width = gate_up.shape[1] // 2
    return block.down(functional.silu(gate_up[:, :width]).mul_(gate_up[:, width:]))


def sum_groups(partials: Mapping[int, Tensor]) -> Tensor:
    """The FFN output: f32 partials by group id, added in ascending order."""
    first, *rest = sorted(partials)
    total = partials[first]
    for group in rest:
        total = total + partials[group]
    return total


class LocalFfn:
    """All groups in this process (unified topology): the same bits as any split of the same layout."""

    def __init__(self, layers: Sequence[Sequence[GroupWeights]]) -> None:
        """`layers[l]` holds every group of layer `l`."""
        self._layers = [sorted(groups, key=lambda held: held.group) for groups in layers]

    def apply(self, layer: int, inputs: FfnInput) -> Tensor:
        """The FFN output of `layer`: f32 `[tokens, width]`, to be added to the residual."""
        groups = self._layers[layer]
        return sum_groups({held.group: group_partial(held, inputs.hidden, inputs.routing) for held in groups})
