from __future__ import annotations

import torch

from katsura.model.gate import route
from katsura.model.kernels import LinearBackend, LinearKernel
from katsura.model.linear import PackedLinear


def router() -> PackedLinear:
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    return PackedLinear(weight, LinearKernel(LinearBackend.PLAIN, 4, 64))


def test_the_chosen_weights_are_softmax_scores_and_renormalise_to_one():
    hidden = torch.randn(9, 8)
    scores = torch.softmax(router()(hidden), -1)
    kept, scaled = (route(hidden, router(), 2, renormalise=flag) for flag in (False, True))
    assert torch.equal(kept.ids, scores.topk(2).indices)
    assert torch.equal(kept.weights, scores.gather(1, kept.ids))
    assert torch.allclose(scaled.weights, kept.weights / kept.weights.sum(-1, keepdim=True))


def test_a_token_is_routed_alike_in_any_company():
    hidden = torch.randn(40, 8)
    whole = route(hidden, router(), 2, renormalise=True)
    for first, count in ((0, 1), (3, 1), (5, 7), (0, 39)):
        some = route(hidden[first : first + count], router(), 2, renormalise=True)
        assert torch.equal(some.ids, whole.ids[first : first + count])
        assert torch.equal(some.weights, whole.weights[first : first + count])
