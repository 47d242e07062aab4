"""Laws of the merge: any segmentation of the keys, in any order, with empty segments, is softmax attention."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from katsura.model.attention import NEVER, Part, merge, part
from katsura.model.kernels import AttentionBackend


def parts_of(cuts: list[int], seed: int, scale: float) -> tuple[list[Part], Part]:
    """Parts over the segments between `cuts` of 24 keys (equal cuts give empty segments), and the whole."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 2, 3, 8, generator=generator) * scale
    k, v = torch.randn(2, 1, 2, 24, 8, generator=generator)
    parts = []
    for start, end in zip([0, *cuts], [*cuts, 24], strict=True):
        if start == end:
            parts.append(Part(torch.zeros(1, 2, 3, 8), torch.full((1, 2, 3), NEVER)))
        else:
            parts.append(part(AttentionBackend.MATMUL, q, k[:, :, start:end], v[:, :, start:end]))
    return parts, part(AttentionBackend.MATMUL, q, k, v)


CUTS = st.lists(st.integers(0, 24), max_size=6).map(sorted)


@settings(deadline=None, max_examples=60)
@given(CUTS, st.integers(0, 1000), st.sampled_from([0.1, 1.0, 30.0]), st.randoms(use_true_random=False))
def test_any_segmentation_in_any_order_is_the_whole(cuts, seed, scale, shuffler):
    parts, whole = parts_of(cuts, seed, scale)
    shuffler.shuffle(parts)
    while len(parts) > 1:
        parts.append(merge(parts.pop(0), parts.pop(0)))
        shuffler.shuffle(parts)
    assert torch.allclose(parts[0].o.float(), whole.o, atol=2e-5)
    assert torch.allclose(parts[0].lse, whole.lse, atol=2e-5 * max(1.0, scale))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.booleans())
def test_an_empty_part_is_neutral_to_the_bit(seed, first):
    (only,), _ = parts_of([], seed, 1.0)
    nothing = Part(torch.zeros_like(only.o), torch.full_like(only.lse, NEVER))
    both = merge(nothing, only) if first else merge(only, nothing)
    assert torch.equal(both.o, only.o)
    assert torch.equal(both.lse, only.lse)
