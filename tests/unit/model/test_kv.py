from __future__ import annotations

import torch

from katsura.domain.shape import DType
from katsura.model.config import parse_config
from katsura.model.kv import KvArena

RAW = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 9,
}
CONFIG = parse_config(RAW)


def test_written_tokens_are_found_in_their_page_and_slot():
    arena = KvArena(CONFIG, 5, 4, DType.F32)
    kv = torch.randn(3, 2 * 2 * 8)
    arena.write(1, arena.slot_rows([3, 3, 0], [2, 3, 0]), kv)
    k, v = arena.run(1, 3, 1)
    assert torch.equal(k[0, :, 2], kv[0, :16].view(2, 8))
    assert torch.equal(v[0, :, 3], kv[1, 16:].view(2, 8))
    assert torch.equal(arena.run(1, 0, 1)[0][0, 1, 0], kv[2, 8:16])
    assert torch.count_nonzero(arena.data) == kv.numel()


def test_a_run_is_a_view_of_adjacent_pages():
    arena = KvArena(CONFIG, 5, 4, DType.BF16)
    k, _ = arena.run(2, 1, 3)
    assert k.shape == (3, 2, 4, 8)
    assert k.untyped_storage().data_ptr() == arena.data.untyped_storage().data_ptr()


def test_a_page_is_copied_in_all_layers():
    arena = KvArena(CONFIG, 5, 4, DType.F32)
    arena.data.normal_()
    before = arena.data.clone()
    arena.copy_page(1, 4)
    assert torch.equal(arena.data[:, :, 4], before[:, :, 1])
    assert torch.equal(arena.data[:, :, :4], before[:, :, :4])


def test_the_size_of_a_page_counts_all_layers():
    arena = KvArena(CONFIG, 5, 4, DType.BF16)
    assert arena.size_bytes == 5 * KvArena.page_bytes(CONFIG, 4, DType.BF16) == 5 * 2 * 3 * 2 * 4 * 8 * 2
