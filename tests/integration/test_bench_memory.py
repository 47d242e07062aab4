"""What `bench/memory.py` and `bench/ablations.py` say of memory, on a few seeds."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    import ablations

    return ablations


async def test_every_operation_that_is_left_out_costs_the_agent(bench: ModuleType) -> None:
    shares = await bench.run(12)
    assert fmean(shares["all"]) == 1.0
    for row in bench.rows_of(shares):
        low, high = row["difference_95"]
        assert 0 < low <= row["ours"] - row["peer"] <= high


async def test_a_task_is_the_same_whoever_solves_it(bench: ModuleType) -> None:
    from trees.solver import Agent, Task

    assert [await Agent(Task.of(7), "revise").solve() for _ in range(2)] == [
        await Agent(Task.of(7), "revise").solve()
    ] * 2
    assert len({Task.of(seed).truth()[-1] for seed in range(20)}) > 15


def test_an_interval_of_what_does_not_differ_holds_zero(bench: ModuleType) -> None:
    low, high = bench.interval([1.0, -1.0] * 30)
    assert low < 0 < high


async def test_a_chain_of_subgoals_stays_in_its_budget_and_forgets_nothing(bench: ModuleType) -> None:
    from trees.chains import Run

    outcome = await Run(1, 8).live()
    assert (outcome.over_budget, outcome.pins_missing) == (0, 0)
    assert outcome.in_context + outcome.found == outcome.asked == 40
    assert outcome.ours.uncached <= outcome.ours.prompt < outcome.appended.prompt / 2


def test_a_prefix_cache_shares_from_the_front_only(bench: ModuleType) -> None:
    from trees.chains import PrefixCache

    cache = PrefixCache()
    assert [cache.uncached(keys) for keys in ("abc", "abcd", "abd", "bc", "abd")] == [3, 1, 1, 2, 0]
