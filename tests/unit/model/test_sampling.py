from __future__ import annotations

import math

import pytest
import torch

from katsura.domain.errors import InvalidArgumentError
from katsura.model.sampling import Sampled, SamplingParams, greedy, sample, uniform

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5])


def counts(params: SamplingParams, draws: int = 4000, logits: torch.Tensor = LOGITS) -> list[float]:
    seen = [0] * logits.shape[0]
    for position in range(draws):
        seen[sample(logits, params, choice=0, position=position).token] += 1
    return [count / draws for count in seen]


def test_the_draw_is_a_fixed_function_of_its_counter():
    assert uniform(7, 0, 3) == uniform(7, 0, 3)
    assert (
        len({uniform(seed, choice, position) for seed in range(4) for choice in range(4) for position in range(4)})
        == 64
    )
    assert [round(uniform(1, 0, position), 6) for position in range(3)] == [0.721076, 0.153281, 0.400035]


def test_draws_are_uniform():
    values = sorted(uniform(-5, 1, position) for position in range(10000))
    worst = max(abs(value - i / 10000) for i, value in enumerate(values))
    assert worst < 1.95 / math.sqrt(10000)
    assert values[0] >= 0.0
    assert values[-1] < 1.0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_sampling_follows_the_softmax(temperature):
    wanted = torch.softmax(LOGITS / temperature, -1).tolist()
    got = counts(SamplingParams(temperature=temperature, seed=3))
    assert all(abs(a - b) < 0.035 for a, b in zip(got, wanted, strict=True))


def test_top_k_keeps_the_k_most_probable():
    got = counts(SamplingParams(top_k=2, seed=4))
    assert got[0] == got[2] == got[3] == 0
    assert got[1] == pytest.approx(math.exp(0.5) / (1 + math.exp(0.5)), abs=0.03)


def test_top_p_keeps_the_smallest_set_with_that_mass():
    mass = torch.softmax(LOGITS, -1).sort(descending=True).values.cumsum(0).tolist()
    got = counts(SamplingParams(top_p=(mass[0] + mass[1]) / 2, seed=5))
    assert [value > 0 for value in got] == [False, True, False, False, True]
    assert counts(SamplingParams(top_p=0.0, seed=5), 50) == [0, 1, 0, 0, 0]


def test_top_p_looks_beyond_its_first_thousand_candidates_when_they_do_not_suffice():
    flat = torch.zeros(5000)
    tokens = {sample(flat, SamplingParams(top_p=0.9, seed=1), choice=0, position=i).token for i in range(300)}
    assert len(tokens) > 270


def test_temperature_zero_is_greedy_and_ignores_the_seed():
    assert {sample(LOGITS, SamplingParams(temperature=0, seed=s), choice=0, position=s).token for s in range(9)} == {1}
    assert greedy(torch.stack((LOGITS, -LOGITS))) == [1, 3]


def test_a_row_is_drawn_alike_alone_and_in_a_batch():
    rows = torch.randn(8, 1000, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=12)
    together = [sample(row, params, choice=0, position=4).token for row in rows]
    assert together == [sample(row.clone(), params, choice=0, position=4).token for row in rows]
    assert len(set(together)) > 1


def test_penalties_lower_what_was_generated():
    once = SamplingParams(temperature=0, presence_penalty=1.0)
    often = SamplingParams(temperature=0, frequency_penalty=0.2)
    assert sample(LOGITS, once, choice=0, position=0, generated={1: 1}).token == 4
    assert sample(LOGITS, often, choice=0, position=0, generated={1: 2}).token == 1
    assert sample(LOGITS, often, choice=0, position=0, generated={1: 3}).token == 4
    assert LOGITS[1] == 2.0


def test_logprobs_are_the_models_own():
    wanted = torch.log_softmax(LOGITS, -1).tolist()
    params = SamplingParams(temperature=0, presence_penalty=2.0, top_logprobs=2)
    got = sample(LOGITS, params, choice=0, position=0, generated={1: 1})
    assert got.token == 4
    assert got.logprob == pytest.approx(wanted[4], abs=1e-6)
    assert [token for token, _ in got.top] == [1, 4]
    assert [value for _, value in got.top] == pytest.approx([wanted[1], wanted[4]], abs=1e-6)
    assert sample(LOGITS, SamplingParams(temperature=0), choice=0, position=0) == Sampled(1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", -0.1),
        ("top_k", -1),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("seed", 1 << 63),
        ("top_logprobs", 21),
    ],
)
def test_a_value_out_of_range_names_its_field(field, value):
    with pytest.raises(InvalidArgumentError) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
