"""When processes start, restart and end. Time is a number that the test turns."""

from __future__ import annotations

from katsura.cli.core.fleet import (
    ATTEMPTS,
    BACKOFF_MAX_S,
    STEADY_S,
    Action,
    BecameReady,
    Child,
    Ended,
    Event,
    Fleet,
    Kill,
    Phase,
    Say,
    Start,
    Started,
    StopAsked,
    Terminate,
    Tick,
    advance,
    backoff_s,
    describe_end,
)

FLEET = Fleet.of(
    [
        Child("store", stage=0, rank=0, grace_s=10),
        Child("memory", stage=1, rank=1, grace_s=10),
        Child("gateway", stage=1, rank=2, grace_s=10, start_timeout_s=100),
    ]
)


class World:
    """A fleet, a clock, and what was done."""

    def __init__(self, fleet: Fleet = FLEET) -> None:
        self.fleet = fleet
        self.now_s = 0.0

    def on(self, event: Event, after_s: float = 0.0) -> list[Action]:
        self.now_s += after_s
        self.fleet, actions = advance(self.fleet, event, self.now_s)
        return [a for a in actions if not isinstance(a, Say)]

    def said(self, event: Event) -> list[str]:
        self.fleet, actions = advance(self.fleet, event, self.now_s)
        return [a.text for a in actions if isinstance(a, Say)]

    def bring_up(self) -> World:
        self.on(Tick())
        for pid, name in enumerate(self.fleet.children, start=100):
            self.on(Started(name, pid))
            self.on(BecameReady(name, f"unix:/{name}"))
        assert self.fleet.all_ready
        return self


def test_a_stage_starts_when_the_lower_ones_were_ready() -> None:
    world = World()
    assert world.on(Tick()) == [Start("store")]
    assert world.on(Started("store", 7)) == []
    assert world.on(Tick()) == []
    assert world.on(BecameReady("store", "unix:/s")) == [Start("memory"), Start("gateway")]
    assert world.fleet.children["store"].pid == 7
    assert not world.fleet.all_ready
    world.on(BecameReady("memory", ""))
    assert world.on(BecameReady("gateway", "")) == []
    assert world.fleet.all_ready
    assert world.fleet.due_s is None


def test_a_process_that_ends_is_started_again_after_a_pause_and_it_is_said() -> None:
    world = World().bring_up()
    assert world.said(Ended("memory", -9)) == ["memory ended by SIGKILL; starting it again in 0.5 s"]
    assert world.fleet.due_s == 0.5
    assert world.on(Tick(), after_s=0.4) == []
    assert world.on(Tick(), after_s=0.1) == [Start("memory")]
    assert world.said(BecameReady("memory", "unix:/m")) == ["memory is back"]
    assert world.fleet.children["memory"].restarts == 1


def test_a_store_that_ends_does_not_hold_back_what_was_ready_once() -> None:
    world = World().bring_up()
    world.on(Ended("store", 1))
    world.on(Ended("gateway", 1))
    assert world.on(Tick(), after_s=0.5) == [Start("store"), Start("gateway")]


def test_pauses_double_up_to_a_bound_and_begin_anew_after_a_steady_time() -> None:
    assert [backoff_s(n) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert backoff_s(50) == BACKOFF_MAX_S
    world = World().bring_up()
    for failures in (1, 2, 3):
        world.on(Ended("memory", 1))
        assert world.fleet.children["memory"].failures == failures
        world.on(Tick(), after_s=backoff_s(failures))
        world.on(BecameReady("memory", ""))
    world.now_s += STEADY_S
    world.on(Ended("memory", 1))
    assert world.fleet.children["memory"].failures == 1


def test_a_process_that_never_gets_ready_ends_the_fleet_with_the_reason() -> None:
    world = World()
    world.on(Tick())
    for _ in range(ATTEMPTS - 1):
        world.on(Ended("store", 1))
        assert world.on(Tick(), after_s=BACKOFF_MAX_S) == [Start("store")]
    assert world.on(Ended("store", 1)) == []
    assert world.fleet.failure == "store ended with status 1, 4 times before it was ever ready"
    assert world.fleet.ended


def test_a_process_that_was_ready_once_is_started_again_for_ever() -> None:
    world = World().bring_up()
    for _ in range(3 * ATTEMPTS):
        world.on(Ended("memory", 1))
        assert world.on(Tick(), after_s=BACKOFF_MAX_S) == [Start("memory")]
    assert not world.fleet.stopping


def test_a_start_that_takes_too_long_is_killed_and_tried_again() -> None:
    world = World()
    world.on(Tick())
    world.on(BecameReady("store", ""))
    world.on(BecameReady("memory", ""))
    assert world.fleet.due_s == 100
    assert world.on(Tick(), after_s=100) == [Kill("gateway")]
    assert world.on(Tick(), after_s=1) == []
    world.on(Ended("gateway", -9))
    assert world.fleet.children["gateway"].phase is Phase.BACKOFF


def test_a_stop_ends_the_highest_rank_first_and_waits_for_it() -> None:
    world = World().bring_up()
    assert world.on(StopAsked()) == [Terminate("gateway")]
    assert world.on(Tick()) == []
    assert world.on(Ended("gateway", 0)) == [Terminate("memory")]
    assert world.on(Ended("memory", 0)) == [Terminate("store")]
    assert not world.fleet.ended
    assert world.on(Ended("store", 0)) == []
    assert world.fleet.ended
    assert world.fleet.failure == ""


def test_what_does_not_end_in_time_is_killed() -> None:
    world = World().bring_up()
    world.on(StopAsked())
    assert world.fleet.due_s == 10
    assert world.on(Tick(), after_s=10) == [Kill("gateway")]
    assert world.on(Tick(), after_s=10) == []
    assert world.on(Ended("gateway", -9)) == [Terminate("memory")]


def test_a_second_wish_kills_everything_at_once_and_only_once() -> None:
    world = World().bring_up()
    world.on(StopAsked())
    assert world.on(StopAsked()) == [Kill("store"), Kill("memory"), Kill("gateway")]
    assert world.on(StopAsked()) == []


def test_a_stop_while_starting_ends_what_lives_and_starts_nothing_more() -> None:
    world = World()
    world.on(Tick())
    world.on(BecameReady("store", ""))
    world.on(Ended("memory", 1))
    assert world.on(StopAsked()) == [Terminate("gateway")]
    assert world.on(Ended("gateway", 0), after_s=60) == [Terminate("store")]
    assert world.on(Ended("store", 0)) == []
    assert world.fleet.ended
    assert world.fleet.due_s is None


def test_a_stop_before_anything_started_is_complete() -> None:
    world = World()
    assert world.on(StopAsked()) == []
    assert world.fleet.ended


def test_the_way_a_process_ended_is_told_in_words() -> None:
    assert [describe_end(s) for s in (0, 3, -15, -200)] == [
        "ended with status 0",
        "ended with status 3",
        "ended by SIGTERM",
        "ended by signal 200",
    ]
