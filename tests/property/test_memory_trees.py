"""Random lives of a tree keep the invariants of memory (I1-I16), in the twin and in a real Valkey or Redis, which must
also answer alike, whatever strikes it in the middle. (I17, kill -9 of the service, is in tests/fault.)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from katsura.memory.foreign import Lookout
from katsura.state.connect import Store
from katsura.state.objects import FolderObjects
from katsura.state.trees import Limits, TreeRef
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.trees_twin import TwinTreeStore
from katsura.testing import tree_repro
from katsura.testing.power import PowerStore
from katsura.testing.store import EmbeddedStore
from katsura.testing.tree_life import NAMES, Operation
from katsura.testing.tree_lives import ALL_KINDS, life_of, live

branches = st.sampled_from(["", "", *NAMES])
small = st.integers(0, 6)
often = ["grow", "grow", "effect", "compress", "lie", "revise", "fork", "assemble"] * 6
seldom = ["attach", "redact", "search", "switch", "slot", "rollback", "chain", "chain", "merge", "pin", "named"]
structural = ["rest", "rest", "unrest", "replace", "invalidate", "revalidate", "wait", "resume", "collect"]
judging = ["verdict", "verdict", "lease", "late", "rollup", "mark", "mark"]
subgoals = ["begin", "begin", "end", "end", "state"] * 3
between = ["cross", "cross", "look", "drop", "freeze", "offshoot", "bring"] * 2
kinds = often + seldom + structural + judging + subgoals + between
operations = st.builds(
    Operation, st.sampled_from(kinds), branches, small, st.booleans(), st.integers(0, 2), st.integers(-3, 3)
)
lives = st.lists(operations, max_size=30)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(lives)
@example(
    [Operation("chain", "main", 4, False), Operation("revise", "main", 2, False), Operation("chain", "b2", 4, False)]
)
@example(
    [
        Operation("grow", "main", 0, False),
        Operation("compress", "main", 0, False),
        Operation("assemble", "main", 0, False),
    ]
)
def test_a_random_life_keeps_the_invariants(operations: list[Operation]) -> None:
    asyncio.run(live(TwinTreeStore(Limits()), operations))


@pytest.mark.soak
@settings(max_examples=2000, deadline=None)
@given(lives)
def test_two_thousand_random_lives_keep_the_invariants(operations: list[Operation]) -> None:
    asyncio.run(live(TwinTreeStore(Limits()), operations))


def seeds(few: int, in_full: int) -> pytest.MarkDecorator:
    """The first seeds, and in `make soak` all of them."""
    soaked = [pytest.param(n, marks=pytest.mark.soak) for n in range(few, in_full)]
    return pytest.mark.parametrize("seed", [*range(few), *soaked])


@seeds(few=40, in_full=2000)
def test_a_seeded_life_keeps_the_invariants(seed: int) -> None:
    asyncio.run(live(TwinTreeStore(Limits()), life_of(seed)))


def test_seeded_lives_do_everything_there_is() -> None:
    assert {kind for seed in range(40) for kind, *_ in life_of(seed)} == set(ALL_KINDS) == set(kinds)


def test_a_life_that_breaks_is_told_with_as_little_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def blind(lookout: Lookout, ref: TreeRef, calls: int) -> int:
        return 0

    monkeypatch.setattr(Lookout, "turn", blind)
    seed = next(seed for seed in range(100) if tree_repro.breaks(life_of(seed)))
    assert tree_repro.main([str(seed)]) == 1
    how, *left = capsys.readouterr().out.splitlines()
    assert how.startswith(f"seed {seed}: AssertionError")
    assert 0 < len(left) < len(life_of(seed)) / 2
    monkeypatch.undo()
    assert tree_repro.main([str(seed)]) == 0


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as server:
        yield server


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives)
def test_a_real_store_lives_the_same_life(server: EmbeddedStore, operations: list[Operation]) -> None:
    async def both() -> None:
        connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
        try:
            real = await live(
                RedisTreeStore(connection, Limits(), objects=FolderObjects(server.folder / "cold")), operations
            )
        finally:
            await connection.close()
        assert real == await live(TwinTreeStore(Limits()), operations)

    asyncio.run(both())


@pytest.fixture(scope="module")
def power() -> Iterator[PowerStore]:
    with PowerStore("always") as power:
        yield power


def interrupted(server: EmbeddedStore, operations: list[Operation], blow: Callable[[], None]) -> None:
    """A life on `server` that is struck in the middle goes as on the twin."""

    async def both() -> None:
        connection = await Store.open(server.url, libraries=[MEMORY_FUNCTIONS])
        try:
            real = await live(
                RedisTreeStore(connection, Limits(), objects=FolderObjects(server.folder / "cold")), operations, blow
            )
        finally:
            await connection.close()
        assert real == await live(TwinTreeStore(Limits()), operations)

    asyncio.run(both())


def cut(power: PowerStore, seed: int) -> None:
    """Off and on again, with torn tails."""
    power.power_cut(random.Random(seed))
    power.start()


struck = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@seeds(few=32, in_full=500)
def test_a_seeded_life_goes_the_same_way_on_a_real_store(server: EmbeddedStore, seed: int) -> None:
    interrupted(server, life_of(seed), lambda: None)


@seeds(few=2, in_full=200)
def test_a_seeded_life_goes_on_in_a_store_that_is_killed_in_the_middle(power: PowerStore, seed: int) -> None:
    interrupted(power, life_of(seed), power.restart)


@seeds(few=2, in_full=200)
def test_a_seeded_life_goes_on_after_a_power_cut_in_the_middle(power: PowerStore, seed: int) -> None:
    interrupted(power, life_of(seed), lambda: cut(power, seed))


@struck
@given(st.lists(operations, min_size=10, max_size=20))
def test_a_store_killed_in_the_middle_of_a_life_goes_on_as_if_nothing_had_been(
    power: PowerStore, operations: list[Operation]
) -> None:
    interrupted(power, operations, power.restart)


@struck
@given(st.lists(operations, min_size=10, max_size=20))
def test_a_power_cut_in_the_middle_of_a_life_takes_nothing_from_it(
    power: PowerStore, operations: list[Operation]
) -> None:
    interrupted(power, operations, lambda: cut(power, len(operations)))


@pytest.mark.soak
@settings(struck, max_examples=100, derandomize=False)
@given(st.lists(operations, min_size=10, max_size=30))
def test_a_hundred_power_cuts_take_nothing_from_the_lives_that_they_fall_into(
    power: PowerStore, operations: list[Operation]
) -> None:
    interrupted(power, operations, lambda: cut(power, len(operations)))
