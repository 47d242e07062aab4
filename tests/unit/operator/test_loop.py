"""When passes are made, and what happens after one that did not end well."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from katsura.domain.errors import ResourceExhaustedError, UnavailableError
from katsura_operator.execute import Outcome
from katsura_operator.leader import LostLeadershipError
from katsura_operator.loop import Loop, backoff_s


def script(*results: Outcome | Exception) -> tuple[Callable[[], Awaitable[Outcome]], list[int]]:
    """Passes that end so, one after another; the loop is ended after the last."""
    made: list[int] = []

    async def run() -> Outcome:
        made.append(len(made))
        if len(made) > len(results):
            raise LostLeadershipError("the end")
        result = results[len(made) - 1]
        if isinstance(result, Exception):
            raise result
        return result

    return run, made


class Sleeper:
    """Notes how long it was asked to sleep, and asks for another pass meanwhile."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.loop: Loop | None = None

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert self.loop is not None
        self.loop.ask()


async def play(*results: Outcome | Exception) -> tuple[Loop, Sleeper, list[int]]:
    run, made = script(*results)
    sleeper = Sleeper()
    sleeper.loop = loop = Loop(run, 3600.0, sleeper)
    with pytest.raises(LostLeadershipError):
        await loop.run()
    return loop, sleeper, made


async def test_the_first_pass_waits_for_nothing_and_a_lost_lease_ends_the_loop() -> None:
    _, sleeper, made = await play(Outcome())
    assert made == [0, 1]
    assert sleeper.slept == [0.5]


async def test_a_pass_that_was_cut_off_is_told_and_made_again_later_and_later() -> None:
    lost = UnavailableError("the API server does not answer")
    loop, sleeper, _ = await play(lost, lost, lost, Outcome())
    assert loop.last_error == ""
    first, second, third, calm = sleeper.slept
    assert first >= 0.5
    assert 0.5 <= second <= 1.0
    assert 1.0 <= third <= 2.0
    assert calm == 0.5


async def test_what_went_wrong_is_known_until_a_pass_goes_well() -> None:
    run, _ = script(UnavailableError("it is away"), Outcome())
    loop = Loop(run, 3600.0)
    assert await loop._pass() > 0
    assert loop.last_error == "it is away"
    assert await loop._pass() == 0.0
    assert loop.last_error == ""


async def test_a_server_that_says_how_long_to_wait_is_listened_to() -> None:
    _, sleeper, _ = await play(ResourceExhaustedError("too many", retry_after_s=7.0))
    assert sleeper.slept[0] >= 7.0


@pytest.mark.parametrize("outcome", [Outcome(conflicts=1), Outcome(refused=[("a", "b")])])
async def test_after_a_conflict_or_a_refusal_it_looks_again_soon(outcome: Outcome) -> None:
    run, _ = script(outcome)
    assert await Loop(run, 3600.0)._pass() > 0


async def test_a_hundred_changes_are_one_pass() -> None:
    run, made = script(Outcome(), Outcome())
    loop = Loop(run, 3600.0, Sleeper())
    for _ in range(100):
        loop.ask()
    await loop._wait(3600.0)
    await loop._pass()
    assert made == [0]
    assert not loop._changed.is_set()


async def test_without_any_change_the_resync_makes_a_pass() -> None:
    run, _ = script(Outcome())
    loop = Loop(run, 3600.0)
    loop._changed.clear()
    await loop._wait(0.0)


def test_waiting_grows_to_half_a_minute_and_no_further() -> None:
    for failures in range(1, 40):
        assert 0.25 <= backoff_s(failures) <= 30.0
    assert min(backoff_s(20) for _ in range(100)) >= 15.0
