from __future__ import annotations

import math
from dataclasses import replace

import pytest

from katsura.placement import calibration, catalogue
from katsura.placement.cost import BF16, Layout, Load, decode_terms
from katsura.placement.interpolate import Campaign, Spot, Told
from katsura.testing.clusters import cards

DEVICE = catalogue.built_in().named("H100")
PRIOR = calibration.built_in().of(DEVICE)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def spot(batch: float, prompt: int = 1000) -> Spot:
    load, layout = Load(prompt, 200), Layout()
    return Spot(layout, load, batch, decode_terms(cards()[0], DEVICE, BF16, layout, batch, load))


def campaign(*spots: Spot, slower: float = 1.5) -> Campaign:
    """An engine that is slower than the prior, the more the larger the batch."""
    seconds = tuple(slower * s.batch**0.05 * PRIOR.step_s(s.terms) for s in spots)
    return Campaign(spots, seconds, PRIOR)


def test_what_lies_between_rows_is_told_better_than_by_the_prior() -> None:
    wanted = campaign(spot(12)).seconds[0]
    (told,) = campaign(*(spot(b) for b in BATCHES)).tell([spot(12)])
    assert abs(told.seconds / wanted - 1) < 0.03
    assert abs(PRIOR.step_s(spot(12).terms) / wanted - 1) > 0.3


def test_spreads_grow_with_the_distance_to_the_rows() -> None:
    known = campaign(spot(4), spot(64))
    near, far = known.tell([spot(5), spot(16)])
    assert near.spread < far.spread


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (spot(128), "batches of 128; measured were 1 to 64"),
        (spot(8, 500), "prompts of 500"),
        (replace(spot(8), load=Load(1000, 900)), "answers of 900"),
        (replace(spot(8), layout=Layout(2)), "2 devices"),
    ],
)
def test_what_lies_beyond_the_rows_is_told_with_a_wider_margin(asked: Spot, said: str) -> None:
    known = campaign(*(spot(b) for b in BATCHES))
    why = known.outside(asked)
    assert why is not None
    assert said in why
    assert known.outside(spot(12)) is None
    between, beyond = known.foretell([spot(12), asked])
    assert (between.between, beyond.between) == (True, False)
    assert between.margin < beyond.margin
    assert beyond.margin == pytest.approx(math.exp(2 * known.tell([asked])[0].spread))


@pytest.mark.parametrize("asked", [spot(300), spot(8, 9000), replace(spot(8), layout=Layout(8))])
def test_nothing_is_said_four_times_beyond_the_rows(asked: Spot) -> None:
    known = campaign(*(spot(b) for b in BATCHES))
    assert known.too_far(asked) is not None
    assert known.too_far(spot(200)) is None
    assert Campaign((), (), PRIOR).too_far(spot(8)) is not None


def test_the_median_keeps_a_limit_and_nine_of_ten_keep_it_with_its_tolerance() -> None:
    assert Told(0.030, 1.01, True).held_s == 0.030
    assert Told(0.030, 1.26, True).held_s == pytest.approx(0.036)


def test_a_campaign_judges_itself_by_rows_that_were_left_out() -> None:
    smooth = campaign(*(spot(b, p) for p in (500, 1000, 2000) for b in BATCHES))
    rough = replace(smooth, seconds=tuple(s * (1.3 if i % 2 else 1.0) for i, s in enumerate(smooth.seconds)))
    assert 10 <= smooth.judged().rows <= len(smooth.spots)
    assert smooth.judged().median < 0.05 < rough.judged().median
    assert smooth.judged().factor < rough.judged().factor


def test_few_rows_take_the_margin_of_a_normal() -> None:
    assert campaign(spot(1), spot(8), spot(64)).judged().factor == pytest.approx(1.2816)
