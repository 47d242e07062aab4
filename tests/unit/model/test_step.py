from __future__ import annotations

import torch

from katsura.domain.shape import DType, Numerics
from katsura.model.attention import NEVER
from katsura.model.batch import SequenceStep, StepBatch
from katsura.model.config import parse_config
from katsura.model.kernels import AttentionBackend, AttentionKernel, KernelPlan
from katsura.model.kv import KvArena
from katsura.model.step import StepPreparer, rows_multiple

RAW = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 9,
}
CONFIG = parse_config(RAW)


def kernels(numerics: Numerics = Numerics.INVARIANT, multiple: int = 4, one_token: bool = False) -> KernelPlan:
    return KernelPlan(DType.F32, numerics, {}, AttentionKernel(AttentionBackend.FLASH, multiple, one_token))


def prepare(*sequences: SequenceStep, plan: KernelPlan | None = None):
    arena = KvArena(CONFIG, 32, 8, DType.F32)
    return StepPreparer(CONFIG, plan or kernels(), arena).prepare(StepBatch(sequences))


def runs(tile):
    return [(run.first_page, run.page_count, run.mask is not None) for run in tile.runs]


def test_a_chunk_is_cut_at_page_ends():
    step = prepare(SequenceStep(5, 20, [3, 4, 9, 10], []))
    assert [(tile.first_row, tile.row_count) for tile in step.tiles] == [(0, 3), (3, 8), (11, 8)]
    assert step.singles.rows.tolist() == [19]
    assert [runs(tile) for tile in step.tiles] == [
        [(3, 1, True)],
        [(3, 1, False), (4, 1, True)],
        [(3, 2, False), (9, 1, True)],
    ]
    assert runs(step.singles) == [(3, 2, False), (9, 2, True)]


def test_adjacent_pages_are_one_run_whosever_they_are_and_a_full_page_needs_no_mask():
    step = prepare(SequenceStep(23, 1, [8, 9, 10], []), SequenceStep(17, 1, [1, 6, 7], []))
    assert runs(step.singles) == [(1, 1, False), (6, 5, True)]
    assert step.singles.owner.tolist() == [1, 1, 1, 0, 0, 0]
    mask = step.singles.runs[1].mask
    assert mask.shape == (5, 1, 1, 8)
    assert mask.flatten().tolist() == [0.0] * 10 + [NEVER] * 6 + [0.0] * 24


def test_a_shared_page_is_an_entry_of_each_of_its_sequences():
    step = prepare(SequenceStep(8, 1, [3, 4], []), SequenceStep(8, 1, [3, 6], []))
    assert runs(step.singles) == [(3, 1, False), (3, 2, True), (6, 1, True)]
    assert step.singles.owner.tolist() == [0, 1, 0, 1]
    assert step.singles.cells.tolist() == [0, 1, 2, 3]


def test_a_wide_mask_is_causal_for_each_query_and_leaves_padding_a_key():
    tile = prepare(SequenceStep(2, 3, [0], [])).tiles[0]
    mask = tile.runs[0].mask[0, 0]
    assert mask.shape == (12, 8)
    assert (mask == 0).sum(1).tolist() == [3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6]


def test_sequences_of_unequal_length_share_a_grid():
    step = prepare(SequenceStep(20, 1, [0, 1, 2], []), SequenceStep(3, 1, [5], []), SequenceStep(9, 1, [7, 8], []))
    assert step.singles.page_count_max == 3
    assert step.singles.cells.tolist() == [0, 3, 6, 1, 2, 5]
    assert step.singles.rows is None


def test_kernels_without_independent_rows_get_one_query_per_tile():
    step = prepare(SequenceStep(0, 9, [0, 1], []), plan=kernels(one_token=True))
    assert not step.tiles
    assert step.singles.count == 9
    assert step.singles.rows is None


def test_padded_rows_fill_whole_column_blocks_where_bits_matter():
    assert rows_multiple(CONFIG, kernels()) == 4
    assert rows_multiple(CONFIG, kernels(multiple=1)) == 4
    assert rows_multiple(CONFIG, kernels(multiple=3)) == 12
    assert rows_multiple(CONFIG, kernels(Numerics.FAST, multiple=1)) == 1


def test_keys_go_to_the_page_and_slot_of_their_position():
    step = prepare(SequenceStep(7, 2, [3, 5], []))
    rows = step.kv_rows.view(2, 4)
    assert rows[0].tolist() == [3 * 16 + 7, 3 * 16 + 15, 512 + 3 * 16 + 7, 512 + 3 * 16 + 15]
    assert rows[1].tolist() == [5 * 16, 5 * 16 + 8, 512 + 5 * 16, 512 + 5 * 16 + 8]
    assert step.cos.shape == (2, 1, 8)
    assert torch.equal(step.cos[0, 0, :4], step.cos[0, 0, 4:])
