from __future__ import annotations

from katsura.placement.catalogue import built_in
from katsura.placement.cost import BF16, Coefficients, Layout, Load, decode_terms
from katsura.placement.trials import Candidate, beliefs, next_trial, propose, settle
from katsura.testing.clusters import cards

H100 = built_in().named("H100")
LOAD = Load(2000, 500)
LIMIT_S = 0.03
PRIOR = Coefficients()


def candidates() -> list[Candidate]:
    made = []
    for tensor in (1, 2, 4, 8):
        for batch in (4, 8, 16, 32, 64, 128, 256):
            terms = decode_terms(cards()[0], H100, BF16, Layout(tensor), batch, LOAD)
            made.append(Candidate(terms, batch / tensor, PRIOR))
    return made


def run(truth: Coefficients, runs: int) -> tuple[float, float, int]:
    """The seconds of what is kept, its rate against the best that keeps the limit, and the runs it took."""
    made = candidates()
    seconds = [truth.step_s(c.terms) for c in made]
    best = max(c.rate(s) for c, s in zip(made, seconds, strict=True) if s <= LIMIT_S)
    tried: dict[int, float] = {}
    while (i := propose(made, tried, LIMIT_S, runs)) is not None:
        tried[i] = seconds[i]
    kept = settle(made, tried, LIMIT_S)
    return tried[kept], made[kept].rate(tried[kept]) / best, len(tried)


def test_an_engine_slower_than_thought_is_found_out_in_a_few_runs() -> None:
    slow = Coefficients(weights=2.5, kv=2.5, layers=1.3e-4, sequences=4e-5, prefill=4.0)
    seconds, share, runs = run(slow, 5)
    assert seconds <= LIMIT_S
    assert share > 0.9
    assert runs <= 5


def test_an_engine_faster_than_thought_is_pushed_further() -> None:
    quick = Coefficients(weights=0.9, kv=0.8, layers=3e-5, sequences=3e-6, prefill=1.2)
    seconds, share, _ = run(quick, 5)
    assert seconds <= LIMIT_S
    assert share > 0.9


def test_it_stops_asking_where_nothing_is_left_to_gain() -> None:
    made = candidates()
    tried = dict(enumerate(PRIOR.step_s(c.terms) for c in made))
    assert next_trial(made, tried, LIMIT_S) is None
    assert settle(made, tried, LIMIT_S) == max(
        (i for i, s in tried.items() if s <= LIMIT_S), key=lambda i: made[i].rate(tried[i])
    )


def test_where_nothing_keeps_the_limit_the_nearest_is_taken() -> None:
    made = candidates()
    assert settle(made, {3: 0.9, 5: 0.4, 9: 0.7}, LIMIT_S) == 5


def test_a_run_makes_its_neighbours_surer() -> None:
    made = candidates()
    before, after = beliefs(made, {}), beliefs(made, {2: 0.02})
    assert all(a.spread < b.spread for a, b in zip(after, before, strict=True))
