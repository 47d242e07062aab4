from __future__ import annotations

import pytest
import torch

PROMPT = [(i * 37 + 11) % 199 for i in range(100)]


@pytest.mark.parametrize("page_tokens", [8, 16, 64])
@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_logits_equal_those_of_transformers(tiny, engine_of, page_tokens, chunk):
    engine = engine_of(tiny, page_tokens=page_tokens)
    ours = engine.prompt(PROMPT, list(range(20)), chunk)
    assert torch.allclose(ours, tiny.peer_logits(PROMPT), atol=1e-5, rtol=0), (
        ours - tiny.peer_logits(PROMPT)
    ).abs().max()
