"""A `StepBatch` turned into index tensors and tiles, once per step, for all layers.

A **tile** is the queries of one sequence that lie in one page: they see the same whole pages, and part of their own.
Decoding sequences are tiles of one query, and are merged together; a prefill chunk is cut at page ends, so a token
meets the same tile boundaries however the prompt is chunked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import Numerics
from katsura.model.attention import COLUMN_BLOCK, NEVER, mask_dtype
from katsura.model.batch import SequenceStep, StepBatch
from katsura.model.config import ModelConfig
from katsura.model.kernels import KernelPlan
from katsura.model.kv import KvArena
from katsura.model.linear import TORCH_DTYPE
from katsura.model.rope import RopeTable


@dataclass(frozen=True, slots=True)
class Run:
    """Pages with adjacent ids: one kernel call. `mask` hides slots beyond the query's position."""

    first_page: int
    page_count: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries of one page of one sequence: residual rows `[first_row, first_row + row_count)`."""

    first_row: int
    row_count: int
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """What every layer of a step shares.

    Attributes:
        batch: the plan.
        cos: and `sin` `[rows, 1, head_size]`.
        kv_rows: where the new keys and values go.
        singles: tiles of one query, and `single_rows` their residual rows (None: all rows, in order).
        merge_index: where each part of the singles goes in a `[page_count_max, singles]` grid (None: already there).
        page_count_max: pages of the longest single.
        tiles: tiles of several queries.
    """

    batch: StepBatch
    cos: Tensor
    sin: Tensor
    kv_rows: Tensor
    singles: tuple[Tile, ...]
    single_rows: Tensor | None
    merge_index: Tensor | None
    page_count_max: int
    tiles: tuple[Tile, ...]


class StepPreparer:
    """Prepares the steps of one model on one arena."""

    def __init__(self, config: ModelConfig, kernels: KernelPlan, arena: KvArena) -> None:
        shape = config.shape
        self._page_tokens, self._arena, self._one_token = arena.page_tokens, arena, kernels.attention.one_token
        self._mask_dtype = mask_dtype(kernels.attention.backend, kernels.dtype)
        self._device = arena.device
        self._group = shape.head_count // shape.kv_head_count
        self._multiple = rows_multiple(config, kernels)
        self._rope = RopeTable(config.rope, shape.head_size, TORCH_DTYPE[kernels.dtype], self._device)

    def padded(self, queries: int) -> int:
        """Kernel rows of a tile of `queries` queries: their heads, folded and padded."""
        return -(-queries * self._group // self._multiple) * self._multiple

    def prepare(self, batch: StepBatch) -> PreparedStep:
        """Index tensors and tiles of `batch`.

        Raises:
            InvalidArgumentError: a sequence has no new token or fewer pages than it needs.
        """
        positions = batch.positions()
        singles: list[Tile] = []
        tiles: list[Tile] = []
        pages: list[int] = []
        first_row = 0
        for index, sequence in enumerate(batch.sequences):
            self._check(sequence, index)
            for tile in self._tiles(sequence, first_row):
                (singles if tile.row_count == 1 else tiles).append(tile)
            ends = range(sequence.start, sequence.start + sequence.count)
            pages += [sequence.pages[position // self._page_tokens] for position in ends]
            first_row += sequence.count
        cos, sin = self._rope.at(self._ints(positions), max(positions))
        rows = [tile.first_row for tile in singles]
        merge_index, page_count_max = self._merge_grid(singles)
        return PreparedStep(
            batch=batch,
            cos=cos,
            sin=sin,
            kv_rows=self._arena.slot_rows(pages, [position % self._page_tokens for position in positions]),
            singles=tuple(singles),
            single_rows=None if not tiles else self._ints(rows),
            merge_index=merge_index,
            page_count_max=page_count_max,
            tiles=tuple(tiles),
        )

    def _ints(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _check(self, sequence: SequenceStep, index: int) -> None:
        needed = -(-(sequence.start + sequence.count) // self._page_tokens)
        if sequence.count < 1 or len(sequence.pages) < needed:
            raise InvalidArgumentError(
                f"sequence {index} of the step has {sequence.count} new tokens and {len(sequence.pages)} pages where "
                f"it needs at least 1 and {needed}",
                field=f"sequences[{index}]",
            )

    def _tiles(self, sequence: SequenceStep, first_row: int) -> list[Tile]:
        tiles: list[Tile] = []
        position, end = sequence.start, sequence.start + sequence.count
        while position < end:
            page, slot = divmod(position, self._page_tokens)
            count = 1 if self._one_token else min(end - position, self._page_tokens - slot)
            runs = self._runs(sequence.pages[: page + 1], self._mask(slot, count))
            tiles.append(Tile(first_row + position - sequence.start, count, runs))
            position += count
        return tiles

    def _mask(self, slot: int, count: int) -> Tensor | None:
        """Additive mask `[1, 1, rows or 1, page_tokens]` of the last page for queries at `slot` and on."""
        if count == 1:
            if slot == self._page_tokens - 1:
                return None
            mask = torch.zeros(self._page_tokens, dtype=self._mask_dtype, device=self._device)
            mask[slot + 1 :] = NEVER
            return mask.view(1, 1, 1, -1)
        slots = torch.arange(self._page_tokens, device=self._device)
        last = torch.arange(self.padded(count), device=self._device).div_(self._group, rounding_mode="floor") + slot
        mask = torch.zeros(last.shape[0], self._page_tokens, dtype=self._mask_dtype, device=self._device)
        return mask.masked_fill_(slots > last.unsqueeze(1), NEVER).view(1, 1, -1, self._page_tokens)

    def _runs(self, pages: Sequence[int], mask: Tensor | None) -> tuple[Run, ...]:
        """Runs of adjacent ids; `mask` belongs to the last page."""
        runs: list[Run] = []
        first = 0
        for index in range(1, len(pages) + 1):
            if index == len(pages) or pages[index] != pages[index - 1] + 1:
                runs.append(Run(pages[first], index - first, None))
                first = index
        if mask is None:
            return tuple(runs)
        last = runs.pop()
        if mask.shape[2] > 1 and last.page_count > 1:
            # The mask of a wide tile is as large as a page's scores: never spread it over pages that need none.
            runs.append(Run(last.first_page, last.page_count - 1, None))
            last = Run(last.first_page + last.page_count - 1, 1, None)
        if last.page_count > 1:
            mask = torch.cat((mask.new_zeros(last.page_count - 1, *mask.shape[1:]), mask))
        return (*runs, Run(last.first_page, last.page_count, mask))

    def _merge_grid(self, singles: Sequence[Tile]) -> tuple[Tensor | None, int]:
        counts = [sum(run.page_count for run in tile.runs) for tile in singles]
        longest = max(counts, default=0)
        if longest <= 1 or len(singles) == 1:
            return None, longest
        width = len(singles)
        return self._ints([page * width + i for i, count in enumerate(counts) for page in range(count)]), longest


def rows_multiple(config: ModelConfig, kernels: KernelPlan) -> int:
    """Query rows of a tile are padded to this: the kernel's own multiple, and whole column blocks for the merge."""
    row = config.shape.kv_head_count * config.shape.head_size
    multiple = kernels.attention.rows_multiple
    while kernels.numerics is Numerics.INVARIANT and row * multiple % COLUMN_BLOCK:
        multiple += kernels.attention.rows_multiple
    return multiple
