"""A step's attention through torch's operators: queries in tiles, pages in runs, a merge of the parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from katsura.model.attention import NEVER, merge_outputs, part_function
from katsura.model.batch import StepBatch
from katsura.model.config import ModelConfig
from katsura.model.kernels import KernelPlan
from katsura.model.kv import KvArena
from katsura.model.norm import rms_norm
from katsura.model.rope import rotate_
from katsura.model.step import PreparedStep, Run, Singles, StepPreparer, Tile
from katsura.model.weights import AttentionWeights


class TiledAttention:
    """`Decoder`'s layers on every machine and in every dtype."""

    def __init__(self, config: ModelConfig, weights: AttentionWeights, arena: KvArena, kernels: KernelPlan) -> None:
        shape = config.shape
        self._config, self._weights, self._arena = config, weights, arena
        self._part = part_function(kernels.attention.backend)
        self._preparer = StepPreparer(config, kernels, arena)
        self._kv_heads, self._dim = shape.kv_head_count, shape.head_size
        self._group = shape.head_count // shape.kv_head_count
        self._q_width = shape.head_count * shape.head_size
        self._rotated_heads = shape.head_count + shape.kv_head_count
        self._single_rows = self._preparer.padded(1)

    def step(self, batch: StepBatch) -> Callable[[int, Tensor], Tensor]:
        """See `Decoder.prepare`; `batch` has been checked."""
        return partial(self._attend, self._preparer.prepare(batch))

    def _attend(self, step: PreparedStep, layer: int, residual: Tensor) -> Tensor:
        config, weights = self._config, self._weights.layers[layer]
        qkv = weights.qkv(rms_norm(residual, weights.input_norm, config.norm_eps))
        rows = qkv.shape[0]
        heads = qkv.view(rows, -1, self._dim)
        rotate_(heads[:, : self._rotated_heads], step.cos, step.sin)
        self._arena.write(layer, step.kv_rows, qkv[:, self._q_width :])
        q = qkv[:, : self._q_width].view(rows, self._kv_heads, self._group, self._dim)
        residual.add_(weights.o(self._attention(layer, q, step)))
        return rms_norm(residual, weights.post_norm, config.norm_eps)

    def _attention(self, layer: int, q: Tensor, step: PreparedStep) -> Tensor:
        """Attention output `[rows, heads * dim]` of `q` `[rows, kv_heads, group, dim]`."""
        singles = step.singles
        if singles is not None and singles.rows is None:
            return self._alone(layer, q, singles)
        out = q.new_empty(q.shape[0], self._q_width)
        if singles is not None and singles.rows is not None:
            out.index_copy_(0, singles.rows, self._alone(layer, q.index_select(0, singles.rows), singles))
        for tile in step.tiles:
            rows = slice(tile.first_row, tile.first_row + tile.row_count)
            out[rows] = self._wide(layer, q[rows], tile)
        return out

    def _alone(self, layer: int, q: Tensor, singles: Singles) -> Tensor:
        """All tiles of one query: one kernel call per run of anybody's pages, one merge for all."""
        if self._single_rows != self._group:
            padded = q.new_zeros(q.shape[0], self._kv_heads, self._single_rows, self._dim)
            padded[:, :, : self._group] = q
            q = padded
        if singles.owner is not None:
            q = q.index_select(0, singles.owner)
        o, lse = _joined(self._run_parts(layer, q, singles.runs))
        if singles.page_count_max > 1:
            o = merge_outputs(*_grid(o, lse, singles))
        elif singles.cells is not None:
            o = torch.empty_like(o).index_copy_(0, singles.cells, o)
        return o[:, :, : self._group].reshape(-1, self._q_width).to(q.dtype)

    def _wide(self, layer: int, q: Tensor, tile: Tile) -> Tensor:
        """One tile of several queries: their heads folded into rows."""
        used, rows = tile.row_count * self._group, self._preparer.padded(tile.row_count)
        folded = q.new_zeros(1, self._kv_heads, rows, self._dim)
        folded[0, :, :used] = q.permute(1, 0, 2, 3).reshape(self._kv_heads, used, self._dim)
        o, lse = _joined(self._run_parts(layer, folded, tile.runs))
        merged = o[0] if o.shape[0] == 1 else merge_outputs(o, lse)
        unfolded = merged[:, :used].view(self._kv_heads, tile.row_count, self._group, self._dim)
        return unfolded.permute(1, 0, 2, 3).reshape(tile.row_count, self._q_width).to(q.dtype)

    def _run_parts(self, layer: int, q: Tensor, runs: tuple[Run, ...]) -> list[tuple[Tensor, Tensor]]:
        """Parts of `q` `[pages, kv_heads, rows, dim]` (or one query for all pages) over `runs`, a part per page."""
        parts, first, one = [], 0, q.shape[0] == 1
        for run in runs:
            k, v = self._arena.run(layer, run.first_page, run.page_count)
            mine = q.expand(run.page_count, -1, -1, -1) if one else q[first : first + run.page_count]
            parts.append(self._part(mine, k, v, run.mask))
            first += run.page_count
        return parts


def _grid(o: Tensor, lse: Tensor, singles: Singles) -> tuple[Tensor, Tensor]:
    """Parts of the singles as `[page, single, ...]`; those with fewer pages end in empty parts."""
    if singles.cells is None:
        return o.unsqueeze(1), lse.unsqueeze(1)
    cells = singles.page_count_max * singles.count
    if cells == o.shape[0]:
        grid_o, grid_lse = torch.empty_like(o), torch.empty_like(lse)
    else:
        grid_o, grid_lse = o.new_zeros(cells, *o.shape[1:]), lse.new_full((cells, *lse.shape[1:]), NEVER)
    grid_o.index_copy_(0, singles.cells, o)
    grid_lse.index_copy_(0, singles.cells, lse)
    return (
        grid_o.view(singles.page_count_max, singles.count, *o.shape[1:]),
        grid_lse.view(singles.page_count_max, singles.count, *lse.shape[1:]),
    )


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])
