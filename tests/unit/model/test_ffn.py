from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from katsura.domain.shape import DType, FfnLayout, ModelShape, Numerics
from katsura.model.calibrate import plan_kernels
from katsura.model.ffn import FfnInput, GroupSet, LocalFfn, group_partial, sum_groups
from katsura.model.gate import Routing
from katsura.model.kernels import LinearBackend, LinearKernel
from katsura.model.linear import PackedLinear
from katsura.model.weights import FfnBlock, GroupWeights

PLAIN = LinearKernel(LinearBackend.PLAIN, 4, 512)
SHAPE = ModelShape("llama", 1, 8, 1, 1, 8, 256, 0, 0, 16, 64)


def block(seed: int, width: int = 12) -> tuple[FfnBlock, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gate_up, down = torch.randn(2 * width, 8, generator=generator), torch.randn(8, width, generator=generator)
    return FfnBlock(PackedLinear(gate_up, PLAIN), PackedLinear(down, PLAIN)), gate_up, down


def swiglu(x, gate_up, down):
    gate, up = (x @ gate_up.t()).chunk(2, -1)
    return (functional.silu(gate) * up) @ down.t()


def test_a_group_of_experts_weighs_and_adds_only_its_own():
    blocks = [block(seed) for seed in range(4)]
    group = GroupWeights(0, 1, (2, 3), (blocks[2][0], blocks[3][0]))
    hidden = torch.randn(5, 8)
    ids = torch.tensor([[0, 1], [2, 3], [3, 0], [1, 2], [3, 2]])
    weights = torch.rand(5, 2)
    wanted = torch.zeros(5, 8)
    for token in range(5):
        for expert, weight in zip(ids[token].tolist(), weights[token], strict=True):
            if expert in (2, 3):
                wanted[token] += weight * swiglu(hidden[token], *blocks[expert][1:])
    partial = group_partial(group, hidden, Routing(ids, weights))
    assert partial.dtype == torch.float32
    assert torch.allclose(partial, wanted, atol=1e-4)
    assert (partial[0] == 0).all()


def test_a_dense_partial_is_f32_whatever_the_weights():
    held, gate_up, down = block(1)
    partial = group_partial(GroupWeights(0, 0, (), (held,)), torch.ones(3, 8), None)
    assert partial.dtype == torch.float32
    assert torch.allclose(partial[0], swiglu(torch.ones(8), gate_up, down), atol=1e-4)


def test_groups_are_added_by_ascending_id_whatever_order_they_come_in():
    parts = {group: torch.randn(64, 64) * 10**group for group in range(6)}
    wanted = ((((parts[0] + parts[1]) + parts[2]) + parts[3]) + parts[4]) + parts[5]
    for order in ([5, 3, 1, 0, 2, 4], [0, 1, 2, 3, 4, 5], [4, 5, 0, 1, 2, 3]):
        assert torch.equal(sum_groups({group: parts[group] for group in order}), wanted)


def test_summing_changes_no_partial():
    parts = {0: torch.ones(2, 2), 1: torch.ones(2, 2)}
    sum_groups(parts)
    assert (parts[0] == 1).all()


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("held", [(0, 1, 2, 3), (3, 1), (2,)])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_groups_held_together_give_the_bits_of_each_alone(fuse, held, rows):
    kernels = plan_kernels(SHAPE, FfnLayout(4, 4), DType.F32, Numerics.INVARIANT, time.perf_counter)
    assert kernels.fuse_groups
    groups = [GroupWeights(0, number, (), (block(number, 64)[0],)) for number in held]
    hidden = torch.randn(rows, 8)
    alone = {group.group: group_partial(group, hidden, None) for group in groups}
    together = GroupSet(groups, replace(kernels, fuse_groups=fuse)).partials(hidden, None)
    assert sorted(together) == sorted(held)
    assert all(torch.equal(together[number], alone[number]) for number in held)
    local = LocalFfn([groups], replace(kernels, fuse_groups=fuse)).apply(0, FfnInput(hidden, None))
    assert torch.equal(local, sum_groups(alone))
