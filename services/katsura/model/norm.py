"""RMS norm with Hugging Face's rounding: the statistics in f32, the scale in the model's dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x^2) + eps) * weight` along the last axis of `[rows, width]`."""
    if x.dtype == torch.float32:
        return torch.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(eps))
    return wide.to(x.dtype).mul_(weight)
