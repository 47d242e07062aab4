from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from katsura.domain.shape import DType
from katsura.model.attention import NEVER, TILED, Part, flash_works, mask_dtype, merge, merge_all, merge_outputs, part
from katsura.model.kernels import AttentionBackend


def tensors(segments: int, keys: int, rows: int = 6, heads: int = 2, dim: int = 16):
    generator = torch.Generator().manual_seed(segments * 100 + keys)
    q = torch.randn(1, heads, rows, dim, generator=generator).expand(segments, -1, -1, -1)
    k, v = torch.randn(2, segments, heads, keys, dim, generator=generator)
    return q, k, v


@pytest.mark.parametrize("backend", TILED)
def test_merged_parts_equal_softmax_attention_over_all_keys(backend):
    q, k, v = tensors(5, 8)
    merged = merge_all(part(backend, q, k, v))
    keys, values = (x.transpose(0, 1).reshape(1, 2, 40, 16) for x in (k, v))
    wanted = functional.scaled_dot_product_attention(q[:1], keys, values)[0]
    assert torch.allclose(merged.o, wanted, atol=1e-6)
    assert torch.allclose(merged.lse, (q[0] @ keys[0].transpose(1, 2) / 4).logsumexp(-1), atol=1e-5)


@pytest.mark.parametrize("backend", TILED)
def test_an_all_masked_row_gives_no_mass_and_no_nan(backend):
    q, k, v = tensors(2, 8)
    mask = torch.zeros(2, 1, 6, 8, dtype=mask_dtype(backend, DType.F32))
    mask[1] = NEVER
    mask[0, :, 3] = NEVER
    seen = part(backend, q, k, v, mask)
    assert (seen.lse[1] == NEVER).all()
    assert (seen.lse[0, :, 3] == NEVER).all()
    assert (seen.o[1] == 0).all()
    assert not seen.o.isnan().any()
    assert torch.isfinite(seen.lse[0, :, :3]).all()


def test_merging_two_parts_over_no_keys_gives_a_part_over_no_keys():
    nothing = Part(torch.zeros(2, 3, 4), torch.full((2, 3), NEVER))
    both = merge(nothing, nothing)
    assert (both.lse == NEVER).all()
    assert (both.o == 0).all()


def test_the_inner_loop_merge_equals_the_general_one_and_ignores_trailing_empty_parts():
    q, k, v = tensors(7, 8, rows=4)
    o, lse = part(AttentionBackend.MATMUL, q, k, v)
    merged = merge_outputs(o, lse)
    assert torch.allclose(merged, merge_all(Part(o, lse)).o, atol=1e-6)
    padded_o = torch.cat((o, o.new_zeros(30, *o.shape[1:])))
    padded_lse = torch.cat((lse, lse.new_full((30, *lse.shape[1:]), NEVER)))
    for count in range(7, 37):
        assert torch.equal(merge_outputs(padded_o[:count], padded_lse[:count]), merged)


def test_a_backend_that_answers_wrong_is_not_called_working(monkeypatch):
    assert flash_works(DType.F32)
    monkeypatch.setattr("katsura.model.attention._flash", lambda q, k, v, mask: (q, q[..., 0]))
    assert not flash_works(DType.F32)
