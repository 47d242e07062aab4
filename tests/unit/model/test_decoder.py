from __future__ import annotations

import pytest
import torch

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.shape import DType, Numerics
from katsura.model.batch import SequenceStep, StepBatch
from katsura.model.kernels import AttentionBackend, AttentionKernel, KernelPlan, LinearBackend, LinearKernel

PROMPT = [(i * 37 + 11) % 199 for i in range(100)]
PAGES = list(range(20))


def other_ids(seed: int, count: int) -> list[int]:
    return torch.randint(0, 199, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("page_tokens", [8, 16, 64])
@pytest.mark.parametrize("chunk", [1, 7, 64, 100])
def test_logits_equal_those_of_transformers(tiny, engine_of, page_tokens, chunk):
    engine = engine_of(tiny, page_tokens=page_tokens)
    assert torch.allclose(engine.prompt(PROMPT, PAGES, chunk), tiny.peer_logits(PROMPT), atol=1e-5, rtol=0)


def test_fast_numerics_equal_transformers_too(tiny, engine_of):
    engine = engine_of(tiny, numerics=Numerics.FAST)
    assert torch.allclose(engine.prompt(PROMPT, PAGES, 9), tiny.peer_logits(PROMPT), atol=1e-5, rtol=0)


def test_the_portable_kernels_equal_transformers_too(tiny, engine_of):
    kernels = engine_of(tiny).kernels
    plain = {shape: LinearKernel(LinearBackend.PLAIN, 1, 1) for shape in kernels.linear}
    attention = AttentionKernel(AttentionBackend.MATMUL, 1, one_token=True)
    engine = engine_of(tiny, kernels=KernelPlan(DType.F32, Numerics.INVARIANT, plain, attention))
    logits = engine.prompt(PROMPT, PAGES, 30)
    assert torch.allclose(logits, tiny.peer_logits(PROMPT), atol=1e-5, rtol=0)
    assert torch.equal(engine.prompt(PROMPT, PAGES, 7), logits)


def test_greedy_text_equals_that_of_transformers_for_64_tokens(tiny, engine_of):
    engine, prompt = engine_of(tiny), PROMPT[:23]
    with torch.inference_mode():
        peer = tiny.peer.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    ids, token = list(prompt), int(engine.prompt(prompt, PAGES, 16)[-1].argmax())
    while len(ids) < len(prompt) + 64:
        ids.append(token)
        token = int(engine.step(([token], len(ids) - 1, PAGES))[0][-1].argmax())
    assert ids == peer[0].tolist()


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("page_tokens", [8, 64])
def test_chunking_changes_no_bit(tiny, engine_of, dtype, page_tokens):
    engine = engine_of(tiny, dtype=dtype, page_tokens=page_tokens)
    whole = engine.prompt(PROMPT, PAGES, 100)
    for chunk in (1, 2, 7, 33, 64, 99):
        assert torch.equal(engine.prompt(PROMPT, PAGES, chunk), whole), f"chunks of {chunk}"


@pytest.mark.parametrize("dtype", list(DType))
def test_a_busy_batch_changes_no_bit(tiny, engine_of, dtype):
    engine = engine_of(tiny, dtype=dtype, page_tokens=8, page_count=400)
    alone = engine.prompt(PROMPT, list(range(13)), 100)
    scattered = [60, 61, 62, 20, 99, 98, 97, 40, 41, 42, 43, 12, 13]
    fillers = [(other_ids(seed, 60), list(range(100 + 12 * seed, 112 + 12 * seed))) for seed in range(20)]
    seen, rows = 0, []
    for turn, count in enumerate((1, 30, 1, 7, 5, 1, 1, 9, 40, 1, 1, 1, 2)):
        ours = (PROMPT[seen : seen + count], seen, scattered)
        neighbours = [
            (ids[turn * n : (turn + 1) * n], turn * n, pages)
            for n, (ids, pages) in zip([1, 4, 1, 2, 3, 1, 4] * 3, fillers, strict=False)
        ][: turn * 2]
        cut = turn % 3 if neighbours else 0
        rows.append(engine.step(*neighbours[:cut], ours, *neighbours[cut:])[cut])
        seen += count
    assert seen == 100
    assert torch.equal(torch.cat(rows), alone)


def test_a_prefix_computed_by_another_sequence_gives_the_same_bits(tiny, engine_of):
    engine = engine_of(tiny, page_tokens=8)
    alone = engine.prompt(PROMPT[:60], list(range(8)), 60)
    engine.prompt(PROMPT[:40] + other_ids(1, 20), list(range(20, 28)), 60)
    reused = engine.prompt(PROMPT[40:60], [*range(20, 25), 50, 51, 52], 20, start=40)
    assert torch.equal(reused, alone[40:])


def test_a_fork_inside_a_page_equals_an_independent_run(tiny, engine_of):
    engine = engine_of(tiny, page_tokens=16)
    engine.prompt(PROMPT[:37], [0, 1, 2], 37)
    branches = [other_ids(seed, 15) for seed in (1, 2, 3)]
    tables = [[0, 1, 2, 10], [0, 1, 5, 6], [0, 1, 7, 8]]
    for table in tables[1:]:
        engine.arena.copy_page(2, table[2])
    rows = [[], [], []]
    for i in range(15):
        out = engine.step(*[([ids[i]], 37 + i, table) for ids, table in zip(branches, tables, strict=True)])
        for held, logits in zip(rows, out, strict=True):
            held.append(logits)
    for ids, held in zip(branches, rows, strict=True):
        alone = engine.prompt(PROMPT[:37] + ids, list(range(30, 34)), 52)
        assert torch.equal(torch.cat(held), alone[37:])


def test_a_truncated_sequence_goes_on_as_if_the_rest_had_never_been(tiny, engine_of):
    engine = engine_of(tiny, page_tokens=16)
    engine.prompt(PROMPT, PAGES, 100)
    again = engine.prompt(other_ids(5, 30), PAGES, 30, start=50)
    alone = engine.prompt(PROMPT[:50] + other_ids(5, 30), list(range(30, 40)), 80)
    assert torch.equal(again, alone[50:])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_cut_of_the_ffn_is_exact(tiny, engine_of, groups):
    engine = engine_of(tiny, groups=groups)
    assert torch.allclose(engine.prompt(PROMPT, PAGES, 50), tiny.peer_logits(PROMPT), atol=1e-5, rtol=0)


def test_bf16_follows_f32(tiny, engine_of):
    exact, ours = (engine_of(tiny, dtype=dtype).prompt(PROMPT, PAGES, 50) for dtype in (DType.F32, DType.BF16))
    close = torch.cosine_similarity(exact, ours) > 0.999
    assert close.float().mean() >= 0.95, "a few rows may differ where two experts are all but tied"
    best = exact.topk(2).values
    sure = close & (best[:, 0] - best[:, 1] > 0.05)
    assert sure.any()
    assert torch.equal(exact.argmax(-1)[sure], ours.argmax(-1)[sure])


def test_only_the_wanted_rows_get_logits(tiny, engine_of):
    engine = engine_of(tiny)
    batch = StepBatch([SequenceStep(0, 5, [0], [4]), SequenceStep(0, 3, [1], []), SequenceStep(0, 2, [2], [0, 1])])
    step, ids = engine.decoder.prepare(batch), torch.tensor(PROMPT[:10])
    residual = engine.decoder.embed(ids)
    residual, _ = engine.decoder.attend(0, residual, step)
    some, every = engine.decoder.logits(residual, batch.logit_rows()), engine.decoder.logits(residual, range(10))
    assert some.shape == (3, 199)
    assert torch.equal(some, every[[4, 8, 9]])


def test_a_step_without_enough_pages_is_refused(tiny, engine_of):
    engine = engine_of(tiny, page_tokens=16)
    with pytest.raises(InvalidArgumentError, match="sequence 1 of the step") as caught:
        engine.decoder.prepare(StepBatch([SequenceStep(0, 1, [0], [0]), SequenceStep(10, 7, [1], [6])]))
    assert caught.value.field == "sequences[1]"


@pytest.mark.parametrize("page", [-1, 64])
def test_a_page_that_is_not_in_the_arena_is_refused(tiny, engine_of, page):
    engine = engine_of(tiny, page_count=64)
    with pytest.raises(InvalidArgumentError, match="beyond the 64"):
        engine.decoder.prepare(StepBatch([SequenceStep(0, 1, [page], [0])]))
