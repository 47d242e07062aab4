"""The one attention primitive: `part` over a segment of keys, and the associative `merge`.

Softmax over any set of segments is a merge of its parts (online softmax, Milakov and Gimelshein 2018):

    lse = logaddexp(lse_a, lse_b)        o = o_a * exp(lse_a - lse) + o_b * exp(lse_b - lse)

Pages are the segments. A page is one batch item of one kernel call, so a part's shape never depends on the length of
the sequence, its chunking or its neighbours, and neither do its bits. The query heads of a KV head are folded into the
query rows: keys and values are read once, in place, in their storage dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from katsura.domain.shape import DType
from katsura.model.kernels import AttentionBackend
from katsura.model.linear import TORCH_DTYPE

NEVER = float("-inf")
"""Log-sum-exp of nothing, and the additive mask of a key that must not be seen."""
_LOWEST = -3.0e38
_TINY = 1.0e-38

PartFunction = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""`(q, k, v, mask) -> (o, lse)` with the shapes of `part`, for masks that leave every query at least one key."""


class Part(NamedTuple):
    """Attention over some keys: `o` `[..., dim]` normalised over them, `lse` f32 `[...]`, `NEVER` over no keys."""

    o: Tensor
    lse: Tensor


def part_function(backend: AttentionBackend) -> PartFunction:
    """The bare kernel of one of torch's backends."""
    return _PARTS[backend]


def mask_dtype(backend: AttentionBackend, dtype: DType) -> torch.dtype:
    """The dtype that a backend wants its masks in, for q of `dtype`."""
    return torch.float32 if backend is AttentionBackend.FLASH_F32 else TORCH_DTYPE[dtype]


def part(backend: AttentionBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Part:
    """Attention of `q` over one segment per batch item, scaled by `dim ** -0.5`.

    Args:
        backend: kernel to use.
        q: `[segments, kv_heads, rows, dim]`; may be expanded along segments.
        k: `[segments, kv_heads, keys, dim]`.
        v: the same.
        mask: additive, of `mask_dtype`, broadcastable to `[segments, kv_heads, rows, keys]`; 0 or `NEVER`.
    """
    o, lse = part_function(backend)(q, k, v, mask)
    if mask is None:
        return Part(o, lse)
    unseen = (mask == NEVER).all(-1).expand(lse.shape)
    return Part(o.masked_fill(unseen.unsqueeze(-1), 0.0), lse.masked_fill(unseen, NEVER))


def merge(a: Part, b: Part) -> Part:
    """Attention over the keys of both. Associative and commutative up to rounding; a part over no keys is neutral."""
    return merge_all(Part(torch.stack((a.o.float(), b.o.float())), torch.stack((a.lse, b.lse))))


def merge_all(parts: Part) -> Part:
    """Merge along dim 0: `o` `[segments, ..., dim]` to f32 `[..., dim]`."""
    peak = parts.lse.amax(0).clamp_min_(_LOWEST)
    weights = (parts.lse - peak).exp_()
    total = weights.sum(0)
    o = (parts.o * weights.unsqueeze(-1)).sum(0).div_(total.clamp_min(_TINY).unsqueeze(-1))
    return Part(o, peak.add_(total.log()))


def merge_outputs(o: Tensor, lse: Tensor) -> Tensor:
    """`merge_all(...).o` for a layer's inner loop: every query sees a key, and trailing empty segments change no bit.

    The weights are added by `cumsum`, which goes from segment to segment whatever their count; `sum` does so for `o`
    because the caller keeps its row width a multiple of `COLUMN_BLOCK`.
    """
    weights = (lse - lse.amax(0)).exp_()
    total = weights.cumsum(0)[-1]
    return (o * weights.unsqueeze(-1)).sum(0).div_(total.unsqueeze(-1))


COLUMN_BLOCK = 64
"""Columns that torch reduces together along dim 0; the rest of a row is added in another order."""


def flash_works(dtype: DType) -> bool:
    """Whether the fused kernel is in this torch build and agrees with two plain products."""
    q, k, v = (torch.linspace(a, b, 2 * 4 * 16).reshape(1, 2, 4, 16).to(TORCH_DTYPE[dtype]) for a, b in _RANGES)
    try:
        o, lse = _flash(q, k, v, None)
    except (AttributeError, RuntimeError):
        return False
    wanted_o, wanted_lse = _matmul(q.float(), k.float(), v.float(), None)
    return torch.allclose(o.float(), wanted_o, atol=0.02) and torch.allclose(lse, wanted_lse, atol=0.02)


_RANGES = ((-1.0, 1.0), (1.0, -2.0), (0.0, 1.0))


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    o, lse = attend(q, k, v, 0.0, False, attn_mask=mask)
    return o, lse


def _flash_f32(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return _flash(q.float(), k.float(), v.float(), mask)


def _matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(q, k.transpose(-1, -2)).float().mul_(q.shape[-1] ** -0.5)
    if mask is not None:
        scores.add_(mask)
    peak = scores.amax(-1, keepdim=True).clamp_min_(_LOWEST)
    exps = scores.sub_(peak).exp_()
    total = exps.sum(-1, keepdim=True)
    o = torch.matmul(exps.div_(total.clamp_min(_TINY)).to(v.dtype), v)
    return o, peak.add_(total.log_()).squeeze(-1)


_PARTS = {AttentionBackend.FLASH: _flash, AttentionBackend.FLASH_F32: _flash_f32, AttentionBackend.MATMUL: _matmul}
TILED = tuple(_PARTS)
"""The backends that compute parts."""
