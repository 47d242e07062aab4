from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.domain.errors import OutOfRangeError
from katsura.placement.catalogue import built_in
from katsura.placement.cost import (
    BF16,
    Coefficients,
    ErrorClass,
    Layout,
    Load,
    batch_limit,
    decode_terms,
    sequence_bytes,
    weights_bytes,
)
from katsura.testing.clusters import cards

A100 = built_in().named("A100-80")
LOAD = Load(1000, 200)


def test_a_step_of_one_sequence_reads_every_weight_and_its_kv_once() -> None:
    card = cards()[0]
    terms = decode_terms(card, A100, BF16, Layout(), 1, LOAD)
    # All but the embedding look-up and the last norm: 7.5 G parameters of 2 bytes at 2.039 TB/s.
    assert terms.weights == pytest.approx((card.parameters - card.embedding - card.final_norm) * 2 / 2.039e12)
    assert terms.kv == pytest.approx(1100 * 32 * 2 * 8 * 128 * 2 / 2.039e12)
    assert terms.collective == terms.linked_layers == 0
    assert terms.layers == 32


def test_tensor_parallelism_cuts_weights_and_kv_and_adds_collectives() -> None:
    card = cards()[0]
    one, four = (decode_terms(card, A100, BF16, Layout(n), 16, LOAD) for n in (1, 4))
    assert four.weights == pytest.approx(one.weights / 4)
    assert four.kv == pytest.approx(one.kv / 4)
    assert four.flops == pytest.approx(one.flops / 4)
    assert four.collective > 0
    assert four.linked_layers == 32


def test_kv_is_not_cut_further_than_it_has_heads() -> None:
    card = cards()[0]  # 8 KV heads
    assert sequence_bytes(card, BF16, Layout(16), LOAD) == sequence_bytes(card, BF16, Layout(8), LOAD)


def test_a_mixture_reads_only_the_experts_that_a_batch_uses() -> None:
    card = cards()[3]
    one, many = (decode_terms(card, A100, BF16, Layout(2), batch, LOAD).weights for batch in (1, 256))
    assert one < 0.35 * many
    assert many == pytest.approx((card.parameters - card.embedding - card.final_norm) / A100.memory_bytes_s, rel=1e-3)


def test_the_step_grows_with_batch_and_context() -> None:
    card, c = cards()[0], Coefficients()
    steps = [c.step_s(decode_terms(card, A100, BF16, Layout(), b, LOAD)) for b in (1, 8, 64, 512)]
    assert steps == sorted(steps)
    longer = decode_terms(card, A100, BF16, Layout(), 8, Load(8000, 200))
    assert c.step_s(longer) > steps[1]


def test_what_is_held_and_what_fits_add_up_to_the_memory() -> None:
    card, layout = cards()[0], Layout(2)
    limit = batch_limit(card, A100, BF16, layout, LOAD)
    held = weights_bytes(card, BF16, layout) + limit * sequence_bytes(card, BF16, layout, LOAD)
    assert held == pytest.approx(A100.usable_bytes)
    assert batch_limit(cards()[2], A100, BF16, Layout(), LOAD) < 0


def test_what_lies_far_beyond_the_measurements_is_refused_unless_a_guess_is_asked_for() -> None:
    c = replace(Coefficients(error_class=ErrorClass.MEASURED), batch_range=(8, 64), context_range=(100, 1000))
    assert c.trust(256, 4000) is c.trust(2, 25) is ErrorClass.MEASURED
    for batch, context, said in ((257, 1000, "batch of 257"), (1, 1000, "batch of 1;"), (8, 4001, "4001 tokens")):
        with pytest.raises(OutOfRangeError, match=said):
            c.trust(batch, context)
        assert replace(c, extrapolate=True).trust(batch, context) is ErrorClass.EXTRAPOLATED
    assert replace(c, extrapolate=True).trust(8, 1000) is ErrorClass.MEASURED


def test_prompts_cost_a_step_their_arithmetic_and_what_they_send_between_devices() -> None:
    card, load = cards()[0], Load(4000, 100)
    alone, cut = (decode_terms(card, A100, BF16, Layout(n), 32, load) for n in (1, 8))
    assert alone.prefill_collective == 0
    # 4000 prompt tokens are sent for every 100 that are generated.
    assert cut.prefill_collective == pytest.approx(40 * cut.collective)
    assert cut.decoding.prefill == cut.decoding.prefill_collective == 0
    assert cut.decoding.kv == cut.kv


def test_what_is_held_already_saves_its_arithmetic_and_its_sending_and_not_its_kv() -> None:
    card, layout = cards()[0], Layout(2)
    whole, shared = Load(4000, 100), Load(4000, 100, cached_share=0.75)
    full, part = (decode_terms(card, A100, BF16, layout, 32, load) for load in (whole, shared))
    assert shared.new_prompt == 1000
    assert part.kv == full.kv
    assert part.prefill_collective == pytest.approx(full.prefill_collective / 4)
    # New tokens still look back at all that is held: a little more than a quarter.
    assert 0.25 < part.prefill / full.prefill < 0.3
    assert sequence_bytes(card, BF16, layout, shared) == sequence_bytes(card, BF16, layout, whole)
