"""Choosing the kernels of a revision: which work here, which are row-invariant, which is fastest.

Run once when a revision is made; its `KernelPlan` then travels to every process. Machines differ (AVX2 or AVX-512
with bf16 dot products), so nothing here is assumed: a backend is tried, its rows are compared bit by bit over many row
counts, and only then is it timed by the clock that the caller hands in.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from katsura.domain.shape import DType, FfnLayout, ModelShape, Numerics
from katsura.model.attention import COLUMN_BLOCK, NEVER, PartFunction, flash_works, mask_dtype, part_function
from katsura.model.kernels import AttentionBackend, AttentionKernel, KernelPlan, LinearBackend, LinearKernel
from katsura.model.linear import TORCH_DTYPE, PackedLinear, backend_function, packed_works
from katsura.native import library as native

Now = Callable[[], float]
"""A clock in seconds."""

CALIBRATION = 4
"""Version of these tests: a plan made by another version says nothing about what this one promises."""
ROWS_MAX = 512
"""Rows of one product whose invariance is tested; more are cut into calls of this size."""
_ROW_COUNTS = (*range(1, 65), 65, 79, 96, 127, 128, 129, 200, 255, 256, 384, 511, ROWS_MAX)
_ROW_MINIMA = (1, 2, 4, 8, 16, 32)
_FUSED_ROWS = (1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 64)
_TIMED_ROWS = (1, 4, 16)
_SPREAD = 8
_WEIGHT_ELEMENTS_MAX = 1 << 24
"""Wider weights (lm_head) are tested on their first rows: the inner loops are the same."""


def linear_shapes(shape: ModelShape, layout: FfnLayout) -> set[tuple[int, int]]:
    """`(input, output)` widths of every product of the model under `layout`."""
    hidden, q_width = shape.hidden_size, shape.head_count * shape.head_size
    block = shape.ffn_size if shape.is_moe else shape.ffn_size // layout.group_count
    shapes = {
        (hidden, q_width + 2 * shape.kv_head_count * shape.head_size),
        (q_width, hidden),
        (hidden, shape.vocab_size),
        (hidden, 2 * block),
        (block, hidden),
    }
    return shapes | {(hidden, shape.expert_count)} if shape.is_moe else shapes


def plan_kernels(
    shape: ModelShape,
    layout: FfnLayout,
    dtype: DType,
    numerics: Numerics,
    now: Now,
    backends: Sequence[LinearBackend] = tuple(LinearBackend),
) -> KernelPlan:
    """Try, test and time the kernels of this machine on one torch thread; a few seconds for a small model.

    Our own kernels compute all of a model wherever they work; torch's are chosen product by product. `backends`
    narrows the choice: `PLAIN` alone adds in the blocks that transformers adds in, so that f32 logits come within its
    own rounding, at three times the time of a decode step.
    """
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(1)
        is_native = LinearBackend.NATIVE in backends and native_works(dtype)
        tried = [each for each in backends if (each is LinearBackend.NATIVE) == is_native]
        linear = {
            (k, n): _plan_linear(k, n, dtype, numerics, now, generator, tried)
            for k, n in sorted(linear_shapes(shape, layout))
        }
        if is_native:  # a set of blocks that are not stacked: no bit can change
            fuse = not shape.is_moe and layout.group_count > 1
            return KernelPlan(dtype, numerics, linear, AttentionKernel(AttentionBackend.NATIVE), fuse)
        attention = _plan_attention(shape, dtype, numerics, now, generator)
        return KernelPlan(dtype, numerics, linear, attention, _may_fuse(shape, layout, dtype, linear, generator))


def native_works(dtype: DType) -> bool:
    """Whether our own kernels are there and compute in `dtype`."""
    return dtype is DType.F32 and native.available()


def _plan_linear(
    k: int,
    n: int,
    dtype: DType,
    numerics: Numerics,
    now: Now,
    generator: torch.Generator,
    backends: Sequence[LinearBackend],
) -> LinearKernel:
    n = min(n, max(1, _WEIGHT_ELEMENTS_MAX // k))
    x, weight = cancelling_operands(ROWS_MAX, k, n, dtype, generator)
    best: tuple[float, LinearKernel] | None = None
    for backend in backends:
        if backend is LinearBackend.PACKED and not packed_works(dtype):
            continue
        product = backend_function(backend, weight)
        kernel = LinearKernel(backend) if numerics is Numerics.FAST else invariant_kernel(backend, product, x)
        linear = PackedLinear(weight, kernel)
        seconds = sum(_seconds(linear, x[:rows], now) for rows in _TIMED_ROWS)
        if best is None or seconds < best[0]:
            best = seconds, kernel
    assert best is not None, "PLAIN always works: name it among the backends"
    return best[1]


def cancelling_operands(rows: int, k: int, n: int, dtype: DType, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`x` `[rows, k]` and `weight` `[n, k]` whose product is zero but for rounding.

    Each term meets its negative at a random other place of the sum, so what is left is the trace of the order of
    addition: a kernel that adds in another order is seen in most elements, even through rounding to bf16. The terms
    spread over many magnitudes, or sums of short bf16 products would be exact in any order.
    """
    half = k // 2
    x, weight = torch.zeros(rows, k), torch.zeros(n, k)
    mirror = torch.randperm(half, generator=generator)
    x[:, :half], weight[:, :half] = (torch.randn(m, half, generator=generator) for m in (rows, n))
    x[:, :half] *= 2.0 ** torch.randint(-_SPREAD, _SPREAD, (half,), generator=generator)
    x, weight = x.to(TORCH_DTYPE[dtype]), weight.to(TORCH_DTYPE[dtype])
    x[:, half : 2 * half], weight[:, half : 2 * half] = -x[:, mirror], weight[:, mirror]
    return x, weight


def invariant_kernel(backend: LinearBackend, product: Callable[[Tensor], Tensor], x: Tensor) -> LinearKernel:
    """The widest range of row counts in which a row's bits depend on nothing but the row; one row where none does."""
    whole = product(x)

    def agrees(rows: int) -> bool:
        first = min(5, x.shape[0] - rows)
        return torch.equal(product(x[first : first + rows]), whole[first : first + rows])

    agreeing = {rows: agrees(rows) for rows in _ROW_COUNTS if rows <= x.shape[0]}
    for rows_min in _ROW_MINIMA:
        if all(same for rows, same in agreeing.items() if rows >= rows_min):
            return LinearKernel(backend, rows_min, x.shape[0])
    return LinearKernel(backend, 1, 1)


def _seconds(product: Callable[[Tensor], object], x: Tensor, now: Now) -> float:
    times = []
    for _ in range(7):
        start = now()
        product(x)
        times.append(now() - start)
    return statistics.median(times)


def _may_fuse(
    shape: ModelShape,
    layout: FfnLayout,
    dtype: DType,
    linear: Mapping[tuple[int, int], LinearKernel],
    generator: torch.Generator,
) -> bool:
    """Whether stacking gate and up of any number of dense groups leaves every column of the product its bits."""
    block, count = shape.ffn_size // layout.group_count, layout.group_count
    if shape.is_moe or count == 1 or block % COLUMN_BLOCK:
        return False  # an odd width would also move the ends of the vectors that the activation works in
    kernel = linear[shape.hidden_size, 2 * block]
    x, weight = cancelling_operands(64, shape.hidden_size, 2 * block * count, dtype, generator)
    gates, ups = (torch.split(half, block) for half in weight.chunk(2))
    alone = [PackedLinear(torch.cat(pair), kernel) for pair in zip(gates, ups, strict=True)]
    for held in range(2, count + 1):
        fused = PackedLinear(torch.cat((*gates[:held], *ups[:held])), kernel)
        for rows in _FUSED_ROWS:
            columns = torch.split(fused(x[:rows]), block, 1)
            parts = [torch.split(one(x[:rows]), block, 1) for one in alone[:held]]
            apart = [gate for gate, _ in parts] + [up for _, up in parts]
            if not all(torch.equal(a, b) for a, b in zip(columns, apart, strict=True)):
                return False
    return True


def _plan_attention(
    shape: ModelShape, dtype: DType, numerics: Numerics, now: Now, generator: torch.Generator
) -> AttentionKernel:
    backends = [AttentionBackend.MATMUL]
    if flash_works(dtype):
        backends = (
            [AttentionBackend.FLASH] if dtype is DType.F32 else [AttentionBackend.FLASH, AttentionBackend.FLASH_F32]
        )
    by_speed = sorted(backends, key=lambda backend: _part_seconds(part_function(backend), shape, dtype, now))
    if numerics is Numerics.FAST:
        return AttentionKernel(by_speed[0])
    for backend in [*by_speed, AttentionBackend.MATMUL]:
        for multiple in _ROW_MINIMA:
            if attention_is_invariant(backend, shape, dtype, multiple, generator):
                return AttentionKernel(backend, multiple)
    return AttentionKernel(by_speed[0], one_token=True)


def _part_seconds(attend: PartFunction, shape: ModelShape, dtype: DType, now: Now) -> float:
    """Time of a decode step's parts over 2 and over 16 pages."""
    group = shape.head_count // shape.kv_head_count
    k = torch.zeros(16, shape.kv_head_count, 64, shape.head_size, dtype=TORCH_DTYPE[dtype])
    q = torch.zeros(1, shape.kv_head_count, group, shape.head_size, dtype=TORCH_DTYPE[dtype])
    return sum(
        _seconds(lambda pages: attend(q.expand(pages.shape[0], -1, -1, -1), pages, pages, None), k[:count], now)
        for count in (2, 16)
    )


def attention_is_invariant(
    backend: AttentionBackend, shape: ModelShape, dtype: DType, multiple: int, generator: torch.Generator
) -> bool:
    """Whether a query row's part has the same bits in calls of any multiple of `multiple` rows, pages and masks."""
    heads, dim, attend = shape.kv_head_count, shape.head_size, part_function(backend)
    rows_max = 256
    for page_tokens in (8, 64):
        q = torch.randn(1, heads, rows_max, dim, generator=generator).to(TORCH_DTYPE[dtype])
        k, v = torch.randn(2, 3, heads, page_tokens, dim, generator=generator).to(TORCH_DTYPE[dtype])
        half = page_tokens // 2  # equal keys with opposite values: the output shows the order of addition
        k[:, :, half:], v[:, :, half:] = k[:, :, :half].flip(2), -v[:, :, :half].flip(2)
        mask = torch.zeros(3, 1, 1, page_tokens, dtype=mask_dtype(backend, dtype))
        whole = attend(q.expand(3, -1, -1, -1), k, v, None)
        masked = attend(q, k[:1], v[:1], _last_hidden(mask, rows_max))
        for rows in _multiples(multiple, rows_max):
            few = q[:, :, :rows]
            tried = (
                (attend(few.expand(3, -1, -1, -1), k, v, mask), whole, 3),
                (attend(few, k[:1], v[:1], None), whole, 1),
                (attend(few, k[:1], v[:1], _last_hidden(mask, 1)), masked, 1),
            )
            if not all(_same(few_part, part, pages, rows) for few_part, part, pages in tried):
                return False
    return True


def _last_hidden(mask: Tensor, rows: int) -> Tensor:
    hidden = mask[:1].expand(1, 1, rows, -1).clone()
    hidden[..., -1] = NEVER
    return hidden


def _multiples(multiple: int, rows_max: int) -> Iterable[int]:
    return (rows for rows in _ROW_COUNTS if rows <= rows_max and rows % multiple == 0)


def _same(few: tuple[Tensor, Tensor], whole: tuple[Tensor, Tensor], pages: int, rows: int) -> bool:
    return torch.equal(few[0], whole[0][:pages, :, :rows]) and torch.equal(few[1], whole[1][:pages, :, :rows])
