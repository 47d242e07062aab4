"""The MoE gate: which experts a token uses, and how much of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from katsura.model.linear import PackedLinear


@dataclass(frozen=True, slots=True)
class Routing:
    """`ids` int64 and `weights` f32, both `[tokens, experts_per_token]`."""

    ids: Tensor
    weights: Tensor


def route(hidden: Tensor, router: PackedLinear, chosen: int, *, renormalise: bool) -> Routing:
    """Softmax over all experts in f32, then the `chosen` largest, scaled to sum to one if `renormalise` (Mixtral)."""
    scores = torch.softmax(router(hidden).float(), -1)
    weights, ids = torch.topk(scores, chosen, dim=-1)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(ids, weights)
