from __future__ import annotations

import torch

from katsura.domain.shape import DType, Numerics, layout_for
from katsura.model.kernels import AttentionBackend, AttentionKernel, KernelPlan, LinearBackend, LinearKernel
from katsura.model.weights import attention_slices, build_attention, build_group, group_slices


class AnyKernel(dict):
    def get(self, key, default=None):
        return LinearKernel(LinearBackend.PLAIN)


KERNELS = KernelPlan(DType.F32, Numerics.FAST, AnyKernel(), AttentionKernel(AttentionBackend.MATMUL))


def test_an_attention_shard_reads_what_its_slices_name_and_nothing_else(tiny):
    seen = []

    def read(piece):
        seen.append(piece)
        return tiny.read(piece)

    weights = build_attention(tiny.config, read, KERNELS)
    assert sorted(seen, key=repr) == sorted(attention_slices(tiny.config), key=repr)
    assert not [piece.name for piece in seen if "experts" in piece.name or "mlp" in piece.name]
    assert len(weights.layers) == 3
    assert (weights.lm_head.out_width, weights.lm_head.in_width) == (199, 48)


def test_a_group_reads_what_its_slices_name_and_nothing_else(tiny):
    layout, seen = layout_for(tiny.config.shape, 4, 2), []

    def read(piece):
        seen.append(piece)
        return tiny.read(piece)

    group = build_group(tiny.config, layout, 2, 1, read, KERNELS)
    assert sorted(seen, key=repr) == sorted(group_slices(tiny.config, layout, 2, 1), key=repr)
    assert group.expert_ids == ((2, 3) if tiny.config.shape.is_moe else ())
    assert group.size_bytes == sum(tiny.read(piece).numel() * 4 for piece in seen)


def test_fused_products_stack_their_parts_in_order(tiny):
    weights = build_attention(tiny.config, tiny.read, KERNELS)
    x = torch.randn(2, 48)
    fused = weights.layers[1].qkv(x)
    parts = [x @ tiny.tensors[f"model.layers.1.self_attn.{name}_proj.weight"].t() for name in "qkv"]
    assert torch.allclose(fused, torch.cat(parts, 1), atol=1e-5)
