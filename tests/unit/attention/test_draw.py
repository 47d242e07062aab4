from __future__ import annotations

import math

import pytest
import torch

from katsura.attention.draw import Drawer, draw_all, make_drawer
from katsura.attention.messages import Sampling
from katsura.domain.errors import InternalError, InvalidArgumentError

LOGITS = torch.tensor([0.0, 1.0, 3.0, 2.0])


def drawer(**sampling: object) -> Drawer:
    return make_drawer(Sampling(**sampling), 0, (), 4)  # type: ignore[arg-type]


def draw(*drawers: Drawer, logits: torch.Tensor = LOGITS, position: int = 5) -> list[int]:
    ids = [f"s{i}" for i in range(len(drawers))]
    rows = logits.repeat(len(drawers), 1)
    drawn, broken = draw_all(rows, ids, [position] * len(ids), dict(zip(ids, drawers, strict=True)))
    assert not broken
    return [drawn[name].token for name in ids]


def test_a_bias_decides_and_is_not_reported() -> None:
    one = drawer(bias_ids=(0,), bias_values=(10.0,), top_logprobs=1)
    drawn, _ = draw_all(LOGITS[None], ["s"], [5], {"s": one})
    assert drawn["s"].token == 0
    assert drawn["s"].top[0][0] == 2
    assert drawn["s"].logprob is not None
    assert math.isclose(drawn["s"].logprob, float(torch.log_softmax(LOGITS, -1)[0]), rel_tol=1e-5)


def test_penalties_count_what_this_answer_drew_before() -> None:
    one = drawer(presence_penalty=1.5)
    assert [draw(one)[0] for _ in range(3)] == [2, 3, 2], "once a token was drawn it costs 1.5, once"
    rebuilt = make_drawer(Sampling(presence_penalty=1.5), 0, (2,), 4)
    assert draw(rebuilt) == [3]


def test_neighbours_in_the_batch_change_nothing() -> None:
    hot = [drawer(temperature=1.5, seed=seed) for seed in range(20)]
    assert draw(*hot) == [draw(one)[0] for one in hot]
    assert len(set(draw(*hot))) > 1


def test_rows_that_are_no_numbers_are_errors() -> None:
    rows = torch.stack((LOGITS, torch.full((4,), math.nan), torch.tensor([0.0, math.inf, 0.0, 0.0])))
    ids = ["a", "b", "c"]
    drawn, broken = draw_all(rows, ids, [1, 1, 1], {name: drawer() for name in ids})
    assert drawn.keys() == {"a"}
    assert {type(error) for error in broken.values()} == {InternalError}


def test_a_bias_for_an_id_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        drawer(bias_ids=(4,), bias_values=(1.0,))
    assert caught.value.field == "sampling.logit_bias"
