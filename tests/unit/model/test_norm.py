from __future__ import annotations

import pytest
import torch

from katsura.model.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_rounds_as_transformers_does_and_each_row_alone(dtype):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    peer = LlamaRMSNorm(100, eps=1e-5).to(dtype)
    torch.nn.init.normal_(peer.weight)
    x = torch.randn(70, 100).to(dtype)
    ours = rms_norm(x, peer.weight.detach(), 1e-5)
    assert torch.allclose(ours, peer(x), atol=1e-6)
    assert all(torch.equal(rms_norm(x[:rows], peer.weight.detach(), 1e-5), ours[:rows]) for rows in range(1, 70))
