"""What tells two members apart before they serve: the bits that they compute, and how fast.

The fingerprint covers weights and kernels, not what happens to be loaded: fixed inputs of every tile height run through
made-up weights of the model's shapes. A machine whose kernels give other bits (another instruction set) has another
fingerprint, and never stands in for this one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import pairwise

import torch
from torch import Tensor

from katsura.domain.cost import FrameCost
from katsura.domain.shape import FfnLayout, ModelShape
from katsura.domain.units import MIB
from katsura.experts.core.fit import Sample, fit
from katsura.experts.groups import group_bytes
from katsura.model.ffn import group_partial
from katsura.model.gate import Routing
from katsura.model.kernels import KernelPlan
from katsura.model.linear import TORCH_DTYPE, PackedLinear
from katsura.model.weights import FfnBlock, GroupWeights

CANARY_ROWS = (1, 2, 3, 4, 7, 8, 16, 33, 64, 128)
"""Row counts of canary inputs: what decoding and prefill chunks ask for, and where kernels change their tiles."""
_TIMED_ROWS = (1, 2, 4, 8, 16, 32, 64)
_COLD_BYTES = 64 * MIB
_COPIES_MAX = 24
"""Timings go round over copies that do not fit a cache, as layers do."""


Partial = Callable[[Tensor, Routing | None], Tensor]
"""Computes one group: (activations, routing) -> f32 partial."""


def canary_digest(partial: Partial, expert_ids: Sequence[int], shape: ModelShape, kernels: KernelPlan) -> bytes:
    """16 bytes over the output bits of one group for canary inputs of every row count; `expert_ids` of the group."""
    digest = blake2b(digest_size=16, person=b"katsura-canary")
    with torch.inference_mode():
        for rows in CANARY_ROWS:
            output = partial(*canary_input(rows, expert_ids, shape, kernels))
            digest.update(output.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def canary_input(
    rows: int, expert_ids: Sequence[int], shape: ModelShape, kernels: KernelPlan
) -> tuple[Tensor, Routing | None]:
    """Activations `[rows, hidden]` that are the same everywhere; in a MoE group every token uses every expert."""
    hidden = _noise(rows, shape.hidden_size, rows).to(TORCH_DTYPE[kernels.dtype])
    if not shape.is_moe:
        return hidden, None
    ids = torch.tensor(expert_ids).expand(rows, -1).contiguous()
    return hidden, Routing(ids, torch.full(ids.shape, 1 / len(expert_ids)))


def fingerprint(weights_digest: bytes, shape: ModelShape, layout: FfnLayout, kernels: KernelPlan) -> str:
    """Hexadecimal: members with equal ones may stand in for each other."""
    digest = blake2b(weights_digest, digest_size=16, person=b"katsura-member")
    digest.update(json.dumps(kernels.to_json(), sort_keys=True).encode())
    made_up = _made_up(shape, layout, kernels, seed=1)
    digest.update(canary_digest(partial_of(made_up), made_up.expert_ids, shape, kernels))
    return digest.hexdigest()


def partial_of(weights: GroupWeights) -> Partial:
    """How one group of its own is computed."""
    return lambda hidden, routing: group_partial(weights, hidden, routing)


def measure(shape: ModelShape, layout: FfnLayout, kernels: KernelPlan, now: Callable[[], float]) -> FrameCost:
    """Cost per activated unit and per (token, unit), over weights that are not in a cache; well under a second.

    Of each size the quickest call counts: what else the machine does only adds, and a member that measures while others
    start must not seem slower than they are.
    """
    copies = max(2, min(_COPIES_MAX, _COLD_BYTES // group_bytes(shape, layout, kernels)))
    groups = [_made_up(shape, layout, kernels, seed) for seed in range(copies)]
    samples = []
    with torch.inference_mode():
        for rows in _TIMED_ROWS:
            hidden, routing = canary_input(rows, groups[0].expert_ids, shape, kernels)
            for group in groups[:1]:
                group_partial(group, hidden, routing)
            times = [now()]
            for group in groups:
                group_partial(group, hidden, routing)
                times.append(now())
            units, quickest_s = layout.units_per_group, min(end - begin for begin, end in pairwise(times))
            samples.append(Sample(units, units * rows, max(1e-9, quickest_s)))
    return fit(samples)


def _made_up(shape: ModelShape, layout: FfnLayout, kernels: KernelPlan, seed: int) -> GroupWeights:
    blocks = layout.units_per_group if shape.is_moe else 1
    width = shape.ffn_size if shape.is_moe else shape.ffn_size // layout.group_count

    def pack(out_width: int, in_width: int, salt: int) -> PackedLinear:
        weight = (_noise(out_width, in_width, 7919 * seed + salt) * in_width**-0.5).to(TORCH_DTYPE[kernels.dtype])
        return PackedLinear(weight, kernels.linear_for(in_width, out_width))

    made = tuple(
        FfnBlock(pack(2 * width, shape.hidden_size, 2 * i), pack(shape.hidden_size, width, 2 * i + 1))
        for i in range(blocks)
    )
    return GroupWeights(0, 0, tuple(range(blocks)) if shape.is_moe else (), made)


def _noise(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
