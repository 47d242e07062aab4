from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import comb

import pytest

from katsura.placement.catalogue import built_in
from katsura.placement.cost import BF16, Coefficients, Load
from katsura.placement.operate import Point, Refusal, Slo
from katsura.placement.split import (
    Pool,
    Side,
    Steps,
    attention_bytes,
    layers_of,
    member_bytes,
    member_memory_bytes,
    members_hit,
    pool_point,
)
from katsura.testing.clusters import cards

MIXTRAL = cards()[3]
BLOCK = MIXTRAL.blocks[0]
LOAD = Load(1000, 200)


def pool(shards: int = 1, members: int = 8, hop_s: float = 1e-5) -> Pool:
    h100, l40s = built_in().named("H100"), built_in().named("L40S")
    return Pool(Side(h100, shards, 1, Coefficients()), Side(l40s, members, 1, Coefficients()), 38e9, hop_s)


@pytest.mark.parametrize("members", [1, 2, 4, 8])
def test_members_hit_is_the_mean_over_every_choice_of_experts(members: int) -> None:
    here = 8 // members
    choices = list(combinations(range(8), 2))
    assert len(choices) == comb(8, 2)
    mean = sum(len({expert // here for expert in chosen}) for chosen in choices) / len(choices)
    assert members_hit(BLOCK, members) == pytest.approx(mean)


def test_a_dense_ffn_visits_every_member() -> None:
    assert members_hit(cards()[0].blocks[0], 4) == 4


def test_one_micro_batch_goes_through_layer_after_layer() -> None:
    p = pool()
    loop = layers_of(MIXTRAL, BLOCK, BF16, p, LOAD).times(32).loop
    head = 1.27 * MIXTRAL.hidden * MIXTRAL.vocabulary * 2 / p.attention.device.memory_bytes_s
    assert Steps(MIXTRAL, BF16, p, LOAD).step_s(32, 1) == pytest.approx(32 * loop + head)


def test_ping_pong_hides_hops_where_they_are_long() -> None:
    far = pool(hop_s=5e-4)
    serial, two = (Steps(MIXTRAL, BF16, far, LOAD).step_s(512, m) for m in (1, 2))
    assert two < serial
    times = layers_of(MIXTRAL, BLOCK, BF16, far, LOAD).times(256)
    assert two >= 32 * 2 * times.busiest


def test_the_members_hold_the_experts_of_the_model_twice() -> None:
    held = attention_bytes(MIXTRAL, BF16, 1) + 4 * member_bytes(MIXTRAL, BF16, 4, 1, 8) / 2
    assert held == pytest.approx(2 * MIXTRAL.parameters)


@pytest.mark.parametrize(
    ("members", "units", "held"),
    [(1, 4, 4), (2, 4, 4), (3, 4, 3), (4, 4, 2), (6, 4, 2), (8, 4, 1), (9, 4, 1), (2, 1, 1), (3, 8, 6), (64, 64, 2)],
)
def test_a_member_holds_whole_units_and_at_most_the_model(members: int, units: int, held: int) -> None:
    whole = member_bytes(MIXTRAL, BF16, 1, 1, units)
    assert member_bytes(MIXTRAL, BF16, members, 1, units) == pytest.approx(whole * held / units)


def test_a_member_needs_room_to_pack_one_expert_besides_its_weights() -> None:
    weights, memory = (of(MIXTRAL, BF16, 4, 1, 8) for of in (member_bytes, member_memory_bytes))
    assert memory - weights == pytest.approx(3 * 3 * 4096 * 14336 * 2)


@pytest.mark.parametrize(("members", "alike"), [(5, 4), (6, 4), (7, 4), (16, 8)])
def test_members_are_as_slow_as_the_one_with_the_most_units(members: int, alike: int) -> None:
    some, same = (
        layers_of(MIXTRAL, BLOCK, BF16, replace(pool(members=n), units=8), LOAD).times(64).experts
        for n in (members, alike)
    )
    assert some == same


def test_a_point_reports_what_crosses_the_cut() -> None:
    point = pool_point(MIXTRAL, BF16, pool(), LOAD, Slo(itl_s=0.1), 1.0)
    assert isinstance(point, Point)
    assert point.itl_s <= 0.1
    hit = members_hit(BLOCK, 8)
    assert point.link_bytes_s == pytest.approx(point.batch * hit * 4096 * 6 * 32 / point.itl_s)


def test_a_pool_too_small_for_its_experts_is_refused() -> None:
    refusal = pool_point(MIXTRAL, BF16, pool(members=1), LOAD, Slo(), 1.0)
    assert isinstance(refusal, Refusal)
    assert "a member needs" in refusal.detail


def test_more_shards_carry_more_sequences() -> None:
    one, two = (pool_point(MIXTRAL, BF16, pool(shards=n), LOAD, Slo(), 1.0) for n in (1, 2))
    assert isinstance(one, Point)
    assert isinstance(two, Point)
    assert two.batch > one.batch
    slow = replace(pool(), hop_s=1e-3)
    delayed = pool_point(MIXTRAL, BF16, slow, LOAD, Slo(), 1.0)
    assert isinstance(delayed, Point)
    assert delayed.itl_s > one.itl_s


def test_a_split_answers_no_further_than_either_side_was_measured() -> None:
    p = pool(shards=2)
    narrow = replace(p, experts=replace(p.experts, coefficients=Coefficients(batch_range=(1, 16))))
    point = pool_point(MIXTRAL, BF16, narrow, LOAD, Slo(), 1.0)
    assert isinstance(point, Point)
    assert point.batch == 64
    refusal = pool_point(MIXTRAL, BF16, narrow, Load(400_000, 10), Slo(), 1.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "extrapolation"
