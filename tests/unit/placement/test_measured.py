from __future__ import annotations

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.catalogue import built_in, cores_of
from katsura.placement.cost import F32, Coefficients, Layout, Load, decode_terms
from katsura.placement.measured import Measurement, learn, read_table
from katsura.testing.clusters import cards

CORES = cores_of(built_in().named("cpu"), 4, 64 * 2.0**30)


def test_a_machine_twice_as_slow_as_its_prior_is_found_out() -> None:
    card, prior = cards()[0], Coefficients()
    slow = Coefficients(
        **{name: 2 * getattr(prior, name) for name in ("weights", "kv", "flops", "layers", "sequences")}
    )
    made = []
    for batch in (1, 2, 4, 8, 16):
        for prompt in (64, 512, 2048):
            terms = decode_terms(card, CORES, F32, Layout(), batch, Load(prompt, 32))
            seconds = slow.step_s(terms.decoding)
            made.append(Measurement(batch, prompt, 32, seconds, 0.1 + seconds))
    found = learn(made, card, CORES, F32, Layout(), prior, "2026-01-01")
    errors = []
    for m in made:
        terms = decode_terms(card, CORES, F32, Layout(), m.batch, Load(m.prompt, 32))
        errors.append(abs(found.step_s(terms.decoding) / m.itl_s - 1))
    assert sorted(errors)[len(errors) // 2] < 0.05
    assert max(errors) < 0.2  # the prior's step is off by half


@pytest.mark.parametrize("factor", [0.3, 4.0])
def test_five_points_of_a_machine_far_from_its_prior_are_believed(factor: float) -> None:
    card, prior = cards()[0], Coefficients()
    made = []
    for batch, prompt in ((1, 64), (1, 512), (4, 64), (8, 128), (16, 64)):
        terms = decode_terms(card, CORES, F32, Layout(), batch, Load(prompt, 32))
        made.append(Measurement(batch, prompt, 32, factor * prior.step_s(terms.decoding), 1.0))
    found = learn(made, card, CORES, F32, Layout(), prior, "2026-01-01")
    for m in made:
        terms = decode_terms(card, CORES, F32, Layout(), m.batch, Load(m.prompt, 32))
        assert found.step_s(terms.decoding) == pytest.approx(m.itl_s, rel=0.05)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 4"):
        learn([Measurement(1, 1, 1, 1, 1)], cards()[0], CORES, F32, Layout(), Coefficients(), "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks batch, prompt"),
        ("batch,prompt\n1,2\n", "lacks output, itl_ms, ttft_ms"),
        ("batch,prompt,output,itl_ms,ttft_ms\n1,2,3,4,5\n1,2,3,x,5\n", "line 3: expected 5 numbers above 0"),
        ("batch,prompt,output,itl_ms,ttft_ms\n1,2,3,-4,5\n", "line 2"),
        ("batch,prompt,output,itl_ms,ttft_ms\n1,2,3\n", "line 2"),
    ],
)
def test_a_table_without_numbers_is_refused(text: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        read_table(text)
