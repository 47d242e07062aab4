"""A `StepBatch` turned into index tensors and tiles, once per step, for all layers.

A **tile** is the queries of one sequence that lie in one page: they see the same whole pages, and part of their own.
A prefill chunk is cut at page ends, so a token meets the same tile boundaries however the prompt is chunked. Decoding
sequences are tiles of one query: **singles**. Their pages are taken together, whosever they are, in the order of their
ids, so that a whole batch is a few kernel calls; the parts then go to their cells of one grid and are merged at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

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
class Singles:
    """Every tile of one query of a step. An entry is one page of one of them.

    Attributes:
        rows: their residual rows; None: all rows of the step, in order.
        count: how many.
        owner: i64 `[entries]`, whose query looks at each entry's page (None: there is one single).
        runs: over the entries, in their order.
        cells: i64 `[entries]`, where each entry's part goes in a `[page_count_max, count]` grid (None: already there).
        page_count_max: pages of the longest single.
    """

    rows: Tensor | None
    count: int
    owner: Tensor | None
    runs: tuple[Run, ...]
    cells: Tensor | None
    page_count_max: int


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """What every layer of a step shares.

    Attributes:
        batch: the plan.
        cos: and `sin` `[rows, 1, head_size]`.
        kv_rows: where the new keys and values go.
        singles: queries that are alone in their tile, None where there is none.
        tiles: tiles of several queries.
    """

    batch: StepBatch
    cos: Tensor
    sin: Tensor
    kv_rows: Tensor
    singles: Singles | None
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class _Single:
    """A query, the residual row it is in, its last slot in its last page, and its pages."""

    row: int
    slot: int
    pages: Sequence[int]


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
        """Index tensors and tiles of `batch`, which has been checked."""
        positions = batch.positions()
        singles: list[_Single] = []
        tiles: list[Tile] = []
        pages: list[int] = []
        first_row = 0
        for sequence in batch.sequences:
            self._cut(sequence, first_row, singles, tiles)
            ends = range(sequence.start, sequence.start + sequence.count)
            pages += [sequence.pages[position // self._page_tokens] for position in ends]
            first_row += sequence.count
        cos, sin = self._rope.at(self._ints(positions), max(positions))
        return PreparedStep(
            batch=batch,
            cos=cos,
            sin=sin,
            kv_rows=self._arena.slot_rows(pages, [position % self._page_tokens for position in positions]),
            singles=self._singles(singles, alone=not tiles) if singles else None,
            tiles=tuple(tiles),
        )

    def _ints(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _cut(self, sequence: SequenceStep, first_row: int, singles: list[_Single], tiles: list[Tile]) -> None:
        position, end = sequence.start, sequence.start + sequence.count
        while position < end:
            page, slot = divmod(position, self._page_tokens)
            count = 1 if self._one_token else min(end - position, self._page_tokens - slot)
            row, pages = first_row + position - sequence.start, sequence.pages[: page + 1]
            if count == 1:
                singles.append(_Single(row, slot, pages))
            else:
                tiles.append(Tile(row, count, self._runs(pages, self._mask(slot, count))))
            position += count

    def _singles(self, singles: list[_Single], *, alone: bool) -> Singles:
        entries = [(page, i, place) for i, single in enumerate(singles) for place, page in enumerate(single.pages)]
        if len(singles) > 1:
            entries.sort()
        mask = torch.zeros(len(entries), 1, 1, self._page_tokens, dtype=self._mask_dtype, device=self._device)
        masked = [False] * len(entries)
        for at, (_, i, place) in enumerate(entries):
            slot = singles[i].slot
            if place == len(singles[i].pages) - 1 and slot < self._page_tokens - 1:
                mask[at, :, :, slot + 1 :] = NEVER
                masked[at] = True
        longest = max(len(single.pages) for single in singles)
        shared = len(singles) > 1
        return Singles(
            rows=None if alone else self._ints([single.row for single in singles]),
            count=len(singles),
            owner=self._ints([i for _, i, _ in entries]) if shared else None,
            runs=tuple(
                Run(entries[first][0], end - first, mask[first:end] if any(masked[first:end]) else None)
                for first, end in _adjacent([page for page, _, _ in entries])
            ),
            cells=self._ints([place * len(singles) + i for _, i, place in entries]) if shared else None,
            page_count_max=longest,
        )

    def _mask(self, slot: int, count: int) -> Tensor:
        """Additive mask `[1, 1, rows, page_tokens]` of the last page for the queries at `slot` and on."""
        slots = torch.arange(self._page_tokens, device=self._device)
        last = torch.arange(self.padded(count), device=self._device).div_(self._group, rounding_mode="floor") + slot
        mask = torch.zeros(last.shape[0], self._page_tokens, dtype=self._mask_dtype, device=self._device)
        return mask.masked_fill_(slots > last.unsqueeze(1), NEVER).view(1, 1, -1, self._page_tokens)

    def _runs(self, pages: Sequence[int], mask: Tensor) -> tuple[Run, ...]:
        """Runs of adjacent ids. `mask` is the last page's; it is as large as a page's scores: no other page gets it."""
        whole = [Run(pages[first], end - first, None) for first, end in _adjacent(pages[:-1])]
        return (*whole, Run(pages[-1], 1, mask))


def _adjacent(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Spans `[first, end)` of `pages` in which each id is one more than the id before it."""
    breaks = [i for i in range(1, len(pages)) if pages[i] != pages[i - 1] + 1]
    return list(pairwise([0, *breaks, len(pages)])) if pages else []


def rows_multiple(config: ModelConfig, kernels: KernelPlan) -> int:
    """Query rows of a tile are padded to this: the kernel's own multiple, and whole column blocks for the merge."""
    row = config.shape.kv_head_count * config.shape.head_size
    multiple = kernels.attention.rows_multiple
    while kernels.numerics is Numerics.INVARIANT and row * multiple % COLUMN_BLOCK:
        multiple += kernels.attention.rows_multiple
    return multiple
