"""The kernels are also tested through `model`, whose tests compute with them and with torch's operators in turn."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from katsura.domain.errors import FailedPreconditionError
from katsura.native import library
from katsura.native.library import Attention, Ffn, Step, linear, pack, unpack

pytestmark = pytest.mark.skipif(
    not library.available() and os.environ.get("CI") != "true", reason="no C compiler when Katsura was installed"
)

HEADS, KV_HEADS, HIDDEN = 6, 2, 83


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=library.SETS)
def instructions(request):
    """Computes with one instruction set, where the machine has it."""
    if not library.select(request.param):
        pytest.skip(f"this CPU has no {request.param}")
    yield request.param
    assert any(library.select(name) for name in library.SETS)


@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (50, 65), (33, 130), (96, 192)])
def test_products_are_right_at_every_width_and_row_count(instructions, shape):
    width, out = shape
    weight = random(out, width)
    assert torch.equal(unpack(pack(weight), out), weight)
    for rows in (*range(1, 15), 31, 64):
        x = random(rows, width, seed=rows)
        y = linear(x, pack(weight), out)
        assert torch.allclose(y, x @ weight.t(), atol=1e-5, rtol=1e-5)
        assert torch.equal(y, torch.cat([linear(x[i : i + 1], pack(weight), out) for i in range(rows)]))


def test_rows_that_do_not_lie_together_are_taken_too(instructions):
    x, weight = random(10, 7).t(), random(70, 10)
    assert torch.allclose(linear(x, pack(weight), 70), x @ weight.t(), atol=1e-5)


@pytest.mark.parametrize("width", [1, 24, 768])
def test_an_ffn_is_its_three_products(instructions, width):
    gate_up, down = random(2 * width, HIDDEN), random(HIDDEN, width, seed=2) / width
    ffn = Ffn(pack(gate_up), pack(down), HIDDEN, width)
    for rows in (1, 6, 47, 48, 49, 130):
        x = random(rows, HIDDEN, seed=rows)
        gate, up = (x @ gate_up.t()).chunk(2, 1)
        y = ffn(x)
        assert torch.allclose(y, (functional.silu(gate) * up) @ down.t(), atol=1e-3, rtol=1e-4)
        into = torch.empty_like(y)
        ffn.write(x, into)
        assert torch.equal(into, y)


def test_an_activation_far_from_zero_is_zero_or_itself(instructions):
    ffn = Ffn(pack(torch.tensor([[1.0], [0.0]]) + torch.tensor([[0.0], [1.0]])), pack(torch.ones(1, 1)), 1, 1)
    x = torch.tensor([[-1e4], [-200.0], [-88.0], [-87.0], [0.0], [50.0], [1e4]])
    assert torch.allclose(ffn(x), functional.silu(x) * x, atol=1e-30, rtol=1e-5)


class Layer:
    """One layer of attention over an arena of its own, and what torch says of it."""

    def __init__(self, dim: int, page_tokens: int, pages: int = 40) -> None:
        rows = (HEADS + 2 * KV_HEADS) * dim
        self.norms = 1 + random(HIDDEN) / 10, 1 + random(HIDDEN, seed=2) / 10
        self.qkv, self.o = random(rows, HIDDEN, seed=3) / 9, random(HIDDEN, HEADS * dim, seed=4) / 9
        self.arena = torch.zeros(2, pages, KV_HEADS, page_tokens, dim)
        arena = self.arena[0], self.arena[1]
        self.layer = Attention(self.norms, (pack(self.qkv), pack(self.o)), arena, HEADS, 1e-5)
        self.dim = dim
        angles = torch.arange(200)[:, None] * 0.7 ** torch.arange(dim // 2)
        self.cos, self.sin = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), 1)

    def run(self, residual: torch.Tensor, *sequences: tuple[int, int, list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        at = torch.cat([torch.arange(start, start + count) for count, start, _ in sequences])
        residual = residual.clone()
        hidden = self.layer(residual, Step(self.cos[at].contiguous(), self.sin[at].contiguous(), sequences))
        return residual, hidden

    def wanted(self, residual: torch.Tensor) -> torch.Tensor:
        """The residual after a whole sequence from position 0."""
        n, d = len(residual), self.dim
        q, k, v = (functional.rms_norm(residual, (HIDDEN,), self.norms[0], 1e-5) @ self.qkv.t()).split(
            [HEADS * d, KV_HEADS * d, KV_HEADS * d], 1
        )
        q, k = (x.view(n, -1, d) for x in (q, k))
        q, k = (
            x * self.cos[:n, None] + torch.cat((x[..., d // 2 :], x[..., : d // 2]), -1) * self.sin[:n, None]
            for x in (q, k)
        )
        o = functional.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (q, k, v.view(n, -1, d))), is_causal=True, enable_gqa=True
        )
        return residual + o.transpose(0, 1).reshape(n, -1) @ self.o.t()


@pytest.mark.parametrize("dim", [2, 8, 16, 24, 64, 80])
@pytest.mark.parametrize("page_tokens", [1, 8, 12, 16, 64])
def test_attention_is_that_of_torch_for_every_head_and_page(instructions, dim, page_tokens):
    pages, residual = list(range(39, -1, -1)), random(37, HIDDEN)
    layer = Layer(dim, page_tokens)
    after, hidden = layer.run(residual, (37, 0, pages))
    assert torch.allclose(after, layer.wanted(residual), atol=1e-4)
    assert torch.allclose(hidden, functional.rms_norm(after, (HIDDEN,), layer.norms[1], 1e-5), atol=1e-5)


@pytest.mark.parametrize("dim", [24, 64])
def test_no_bit_depends_on_chunks_pages_or_neighbours(instructions, dim):
    residual, pages = random(100, HIDDEN), list(range(5, 20))
    whole = Layer(dim, 16).run(residual, (100, 0, pages))
    for page_tokens, cuts in ((16, (0, 1, 2, 9, 64, 100)), (64, (0, 50, 100)), (8, (0, 33, 34, 100))):
        layer, rows = Layer(dim, page_tokens), []
        for start, end in pairwise(cuts):
            other = random(3, HIDDEN, seed=end)
            both = layer.run(torch.cat((residual[start:end], other)), (end - start, start, pages), (3, 0, [0, 1, 2]))
            rows.append([part[: end - start] for part in both])
        for got, wanted in zip(zip(*rows, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(got), wanted), f"pages of {page_tokens}"


def test_every_instruction_set_gives_the_same_bits():
    sets = [name for name in library.SETS if library.select(name)]
    assert sets, "no kernels: install a C compiler, then Katsura again"
    found = []
    for name in sets:
        assert library.select(name)
        ffn = Ffn(pack(random(200, HIDDEN)), pack(random(HIDDEN, 100, seed=2)), HIDDEN, 100)
        residual, hidden = Layer(24, 16).run(random(50, HIDDEN), (50, 0, list(range(10))))
        found.append(torch.cat((ffn(hidden), residual, hidden)))
    assert library.select(sets[0])
    assert all(torch.equal(one, found[0]) for one in found)


def test_weights_of_another_type_are_refused():
    with pytest.raises(FailedPreconditionError, match="f32"):
        pack(torch.zeros(2, 2, dtype=torch.bfloat16))


def test_an_installation_without_kernels_says_what_to_do(monkeypatch):
    monkeypatch.setattr(library, "PATH", Path("/nowhere/kernels.so"))
    library._library.cache_clear()
    try:
        assert not library.available()
        assert not library.select("avx2")
        with pytest.raises(FailedPreconditionError, match="C compiler"):
            pack(torch.zeros(2, 2))
    finally:
        library._library.cache_clear()
