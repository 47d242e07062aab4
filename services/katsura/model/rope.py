"""Rotary position embedding, Llama's half-split form, with Llama 3.1's frequency scaling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from katsura.model.config import RopeConfig

_BLOCK = 1024
"""Positions per table block. Blocks have one size so that a position's bits never depend on when it was asked for."""


def inverse_frequencies(rope: RopeConfig, head_size: int) -> Tensor:
    """The `[head_size / 2]` angular frequencies in radians per position.

    Scaling as Llama 3.1 defines it: wavelengths beyond `original_context / low` are stretched by `factor`, those
    below `original_context / high` are kept, and between them the two are blended linearly.
    """
    frequencies = 1.0 / (rope.theta ** (torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size))
    scaling = rope.scaling
    if scaling is None:
        return frequencies
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    wavelengths = 2 * math.pi / frequencies
    blend = ((scaling.original_context / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


class RopeTable:
    """Cosines and signed sines by position, grown in fixed blocks on demand."""

    def __init__(self, rope: RopeConfig, head_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._frequencies = inverse_frequencies(rope, head_size).to(device)
        self._dtype = dtype
        self._cos = torch.empty(0, 1, head_size, dtype=dtype, device=device)
        self._sin = torch.empty(0, 1, head_size, dtype=dtype, device=device)

    def at(self, positions: Tensor, position_max: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[n, 1, head_size]` of int64 `positions`, all of which are at most `position_max`.

        The first half of the sines is negated, so that a rotation is `x * cos + swap_halves(x) * sin`.
        """
        while self._cos.shape[0] <= position_max:
            self._grow()
        return self._cos.index_select(0, positions), self._sin.index_select(0, positions)

    def _grow(self) -> None:
        start = self._cos.shape[0]
        positions = torch.arange(start, start + _BLOCK, device=self._frequencies.device).float()
        angles = torch.outer(positions, self._frequencies)
        cos, sin = angles.cos(), angles.sin()
        block_cos = torch.cat((cos, cos), -1).unsqueeze(1).to(self._dtype)
        block_sin = torch.cat((-sin, sin), -1).unsqueeze(1).to(self._dtype)
        self._cos, self._sin = torch.cat((self._cos, block_cos)), torch.cat((self._sin, block_sin))


def rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate `[n, heads, head_size]` in place by what `RopeTable.at` returned."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), -1).mul_(sin)
    x.mul_(cos).add_(swapped)
