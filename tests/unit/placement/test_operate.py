from __future__ import annotations

from dataclasses import replace

import pytest

from katsura.placement.catalogue import built_in
from katsura.placement.cost import BF16, Coefficients, Layout, Load, decode_terms
from katsura.placement.operate import Point, Refusal, Slo, largest_batch, replica_point, wait_s
from katsura.testing.clusters import cards

A100 = built_in().named("A100-80")


def line(batch: int) -> tuple[float, float]:
    return 0.010 + 0.001 * batch, 0.5


def test_the_batch_grows_until_the_time_between_tokens_is_used_up() -> None:
    batch, itl, _, stopped = largest_batch(1000, Slo(itl_s=0.050), 1.0, line)  # type: ignore[misc]
    assert (batch, stopped) == (40, "itl")
    assert itl <= 0.050
    assert largest_batch(1000, Slo(itl_s=0.050), 2.0, line)[0] < 20  # type: ignore[index]


def test_memory_stops_the_batch_where_time_does_not() -> None:
    assert largest_batch(7, Slo(itl_s=1.0), 1.0, line)[0] == 6  # type: ignore[index]
    assert largest_batch(7, Slo(), 1.0, line)[3] == "kv"  # type: ignore[index]


@pytest.mark.parametrize(("slo", "reason"), [(Slo(itl_s=0.005), "itl"), (Slo(ttft_s=0.1), "ttft")])
def test_a_shape_that_is_too_slow_at_batch_one_is_refused_in_words(slo: Slo, reason: str) -> None:
    refusal = largest_batch(64, slo, 1.0, line)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == reason
    assert "allowed" in refusal.detail


def test_a_model_that_does_not_fit_is_refused_with_its_size() -> None:
    refusal = replica_point(cards()[2], A100, BF16, Layout(), Load(100, 10), Slo(), Coefficients(), 1.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "memory"


def test_capacity_follows_littles_law() -> None:
    load = Load(500, 100)
    point = replica_point(cards()[0], A100, BF16, Layout(), load, Slo(itl_s=0.05), Coefficients(), 1.0)
    assert isinstance(point, Point)
    assert point.requests_s == pytest.approx(0.85 * point.batch / (100 * point.itl_s))


def test_a_kv_limit_bounds_the_batch() -> None:
    few = replica_point(
        cards()[0], A100, BF16, Layout(), Load(500, 100), Slo(), Coefficients(), 1.0, kv_bytes=600 * 2**20
    )
    assert isinstance(few, Point)
    assert few.batch * 600 * 131072 <= 600 * 2**20


def test_more_places_wait_less() -> None:
    waits = [wait_s(n, 10.0) for n in (1, 4, 64)]
    assert waits == sorted(waits, reverse=True)
    assert wait_s(1, 1.0, 0.5) == pytest.approx(1.0)  # M/M/1: rho / (1 - rho)


KNOWN = Coefficients(batch_range=(16, 32), context_range=(100, 1000))


def at(prompt: int, slo: Slo, c: Coefficients) -> Point | Refusal:
    return replica_point(cards()[0], A100, BF16, Layout(), Load(prompt, 100), slo, c, 1.0)


def test_nothing_is_planned_on_contexts_far_from_what_was_measured_unless_a_guess_is_asked_for() -> None:
    refusal = at(6000, Slo(), KNOWN)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "extrapolation"
    assert "--extrapolate" in refusal.detail
    guess = at(6000, Slo(), replace(KNOWN, extrapolate=True))
    assert isinstance(guess, Point)
    assert guess.error_class == "extrapolated"


def test_a_batch_stops_where_nobody_measured_further() -> None:
    point = at(500, Slo(), KNOWN)
    assert isinstance(point, Point)
    assert (point.batch, point.limit) == (128, "batch")
    further = at(500, Slo(), replace(KNOWN, extrapolate=True))
    assert isinstance(further, Point)
    assert further.batch > 128


def test_a_batch_smaller_than_anything_like_it_is_refused() -> None:
    two_at_once = KNOWN.step_s(decode_terms(cards()[0], A100, BF16, Layout(), 2, Load(500, 100)))
    refusal = at(500, Slo(itl_s=1.001 * two_at_once), KNOWN)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "extrapolation"
