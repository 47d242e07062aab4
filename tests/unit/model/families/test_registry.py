from __future__ import annotations

import pytest
import torch

from katsura.domain.shape import layout_for
from katsura.model.config import parse_config
from katsura.model.families.registry import FAMILIES
from katsura.model.weights import attention_slices, group_slices

RAW = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 199,
}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_that_parses_has_a_table_and_the_parts_share_no_tensor(name):
    config = parse_config(RAW | {"model_type": name})
    layout = layout_for(config.shape, 8, 4)
    attention = {piece.name for piece in attention_slices(config)}
    ffn = {
        piece.name for layer in range(2) for group in range(4) for piece in group_slices(config, layout, layer, group)
    }
    assert attention
    assert ffn
    assert not attention & ffn


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_units_of_a_layer_cover_each_ffn_weight_once(name):
    config = parse_config(RAW | {"model_type": name})
    layout = layout_for(config.shape, 8, 4)
    covered: dict[str, torch.Tensor] = {}
    for group in range(4):
        for piece in group_slices(config, layout, 1, group):
            whole = (64, 48) if piece.shape[1] == 48 and piece.cols is None else (48, 64)
            cells = covered.setdefault(piece.name, torch.zeros(whole, dtype=torch.int64))
            part = cells[slice(*(piece.rows or (0, whole[0]))), slice(*(piece.cols or (0, whole[1])))]
            assert tuple(part.shape) == piece.shape
            part += 1
    assert covered
    assert all((cells == 1).all() for cells in covered.values())
