from __future__ import annotations

import pytest
import torch

from katsura.model.config import Llama3Scaling, RopeConfig
from katsura.model.rope import RopeTable, inverse_frequencies, rotate_


@pytest.mark.parametrize("scaling", [None, Llama3Scaling(8.0, 1.0, 4.0, 8192)])
def test_frequencies_equal_those_of_transformers(scaling):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": 500000.0}
    if scaling:
        rope = rope | {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, rope_parameters=rope, max_position_embeddings=32768)
    peer = LlamaRotaryEmbedding(config).inv_freq
    assert torch.allclose(inverse_frequencies(RopeConfig(500000.0, scaling), 128), peer, rtol=1e-6)


def test_rotation_depends_on_the_distance_of_positions_only():
    table = RopeTable(RopeConfig(10000.0), 16, torch.float32, torch.device("cpu"))
    q, k = torch.randn(2, 1, 3, 16)

    def score(a: int, b: int) -> torch.Tensor:
        left, right = q.clone(), k.clone()
        rotate_(left, *table.at(torch.tensor([a]), a))
        rotate_(right, *table.at(torch.tensor([b]), b))
        return (left * right).sum(-1)

    assert torch.allclose(score(7, 3), score(1507, 1503), atol=1e-4)
    assert not torch.allclose(score(7, 3), score(7, 4), atol=1e-2)


def test_a_position_has_the_same_bits_whenever_the_table_grew():
    early, late = (RopeTable(RopeConfig(10000.0), 16, torch.float32, torch.device("cpu")) for _ in range(2))
    for position in (5, 1023, 1024, 3000):
        early.at(torch.tensor([position]), position)
    positions = torch.tensor([5, 1023, 1024, 2999])
    assert all(torch.equal(a, b) for a, b in zip(early.at(positions, 3000), late.at(positions, 3000), strict=True))
