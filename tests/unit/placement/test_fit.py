from __future__ import annotations

import statistics

import pytest

from katsura.domain.errors import InvalidArgumentError
from katsura.placement.catalogue import built_in
from katsura.placement.cost import BF16, Coefficients, ErrorClass, Layout, Load, decode_terms
from katsura.placement.fit import SCATTER, First, Point, believe, fit, fit_first
from katsura.testing.clusters import cards


def points(truth: Coefficients) -> list[Point]:
    made = []
    for card in cards():
        for device in ("A100-80", "H100", "L40S"):
            for batch in (1, 8, 64, 256):
                for tensor in (1, 4):
                    load = Load(500 * tensor, 100)
                    terms = decode_terms(card, built_in().named(device), BF16, Layout(tensor), batch, load)
                    made.append(Point(terms, truth.step_s(terms), batch, load.context))
    return made


def test_known_coefficients_are_found_again_despite_outliers() -> None:
    truth = Coefficients(weights=1.5, kv=2.0, layers=1e-4, linked_layers=3e-5, prefill=1.8, moe_layers=1e-5)
    made = points(truth)
    spoiled = [Point(p.terms, p.seconds * 10, p.batch, p.context) for p in made[:4]]
    found = fit([*spoiled, *made[4:]], Coefficients(moe_layers=1e-5), ErrorClass.MEASURED, "2026-01-01")
    errors = sorted(abs(found.step_s(p.terms) / p.seconds - 1) for p in made[4:])
    assert errors[len(errors) // 2] < 0.02
    assert found.rows == len(made)
    assert found.error_class is ErrorClass.MEASURED
    assert found.batch_range == (1, 256)


def test_no_points_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="no measured points"):
        fit([], Coefficients(), ErrorClass.MEASURED, "")


def test_a_few_points_of_an_unknown_engine_move_what_is_thought_of_its_other_steps() -> None:
    prior, truth = Coefficients(), Coefficients(weights=2.2, kv=2.4, layers=1.4e-4)
    made = points(truth)
    shown, asked = made[:40:8], made[1:40:8]
    before, after = (believe(seen, prior, [p.terms for p in asked]) for seen in ([], shown))
    for point, thought, known in zip(asked, before, after, strict=True):
        assert thought.seconds == pytest.approx(prior.step_s(point.terms))
        assert abs(known.seconds / point.seconds - 1) < abs(thought.seconds / point.seconds - 1)
        assert SCATTER < known.spread < thought.spread


def test_times_to_the_first_token_are_told_apart_by_what_they_are_made_of() -> None:
    truth = Coefficients(first=(0.05, 3.0, 4.0, 0.2), first_collective=(5.0, 0.3))
    seen = [
        First(floor, ring, step, batch, truth.first_s(floor, ring, step, batch))
        for floor in (0.01, 0.1, 1.0)
        for ring in (0.0, 0.01, 0.2)
        for step in (0.005, 0.03)
        for batch in (1.0, 16.0, 128.0)
    ]

    def error(c: Coefficients) -> float:
        return statistics.median(abs(c.first_s(p.floor, p.ring, p.step, p.batch) / p.seconds - 1) for p in seen)

    prior = Coefficients()
    assert error(fit_first(seen, prior)) < 0.15 < 0.5 < error(prior)
    assert error(fit_first(seen * 20, prior)) < 0.02
