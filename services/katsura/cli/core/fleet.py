"""When to start, restart and end each process: a state machine that never reads a clock.

    waiting --start--> starting --ready--> ready           an end in `starting` or `ready` leads to `backoff`,
                          ^                  |             a due backoff to `starting`; a process that ends
                          `----- backoff <---'             ATTEMPTS times before it was ever ready ends the fleet

`advance` maps (fleet, event, now) to (fleet, actions); `supervisor.Supervisor` carries the actions out. Stages start in
ascending order, each when every process of the lower stages was ready once; they end in descending order of `rank`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

ATTEMPTS = 4
"""A process that ended so often before it was ever ready will not get better by itself."""
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 60.0
"""Ready for so long, a process starts its backoff anew."""


class Phase(StrEnum):
    """Where a process stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"


_ALIVE = frozenset((Phase.STARTING, Phase.READY, Phase.STOPPING))


@dataclass(frozen=True, slots=True)
class Child:
    """One supervised process.

    Attributes:
        name: unique in the fleet.
        stage: starts after all lower stages were ready once.
        rank: ends before all lower ranks.
        start_timeout_s: from start to ready, after which it is killed and started again.
        grace_s: from SIGTERM to SIGKILL.
        since_s: when it came into `phase`; due_s: when something must happen next.
        failures: ends since it was last steady; it doubles the backoff. restarts: starts after the first.
    """

    name: str
    stage: int
    rank: int
    start_timeout_s: float = 300.0
    grace_s: float = 30.0
    phase: Phase = Phase.WAITING
    pid: int | None = None
    address: str = ""
    since_s: float = 0.0
    due_s: float | None = None
    failures: int = 0
    restarts: int = 0
    was_ready: bool = False
    last_end: str = ""

    @property
    def alive(self) -> bool:
        """Whether there is a process to end."""
        return self.phase in _ALIVE


@dataclass(frozen=True, slots=True)
class Started:
    """The process exists."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class BecameReady:
    """The process says that it serves at `address`."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone; `status` as `Popen.returncode` has it: negative for a signal."""

    name: str
    status: int


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants everything to end; asked a second time, at once."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Started | BecameReady | Ended | StopAsked | Tick


@dataclass(frozen=True, slots=True)
class Start:
    """Start the process."""

    name: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """Ask the process to drain and end (SIGTERM)."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process now (SIGKILL)."""

    name: str


@dataclass(frozen=True, slots=True)
class Say:
    """Tell the person."""

    text: str
    trouble: bool = False


Action = Start | Terminate | Kill | Say


@dataclass(frozen=True, slots=True)
class Fleet:
    """All processes. `stopping`: they are being ended; `hurry`: without grace; `failure`: why, if not by wish."""

    children: Mapping[str, Child]
    stopping: bool = False
    hurry: bool = False
    failure: str = ""

    @classmethod
    def of(cls, children: Iterable[Child]) -> Fleet:
        """A fleet in which nothing has started."""
        return cls({child.name: child for child in children})

    @property
    def all_ready(self) -> bool:
        """Whether every process serves."""
        return all(child.phase is Phase.READY for child in self.children.values())

    @property
    def ended(self) -> bool:
        """Whether the stop is complete."""
        return self.stopping and not any(child.alive for child in self.children.values())

    @property
    def due_s(self) -> float | None:
        """When the next `Tick` is needed, if at all."""
        times = [child.due_s for child in self.children.values() if child.due_s is not None]
        return min(times, default=None)


def advance(fleet: Fleet, event: Event, now_s: float) -> tuple[Fleet, tuple[Action, ...]]:
    """What `event` at `now_s` makes of the fleet, and what has to be done, in order."""
    fleet, said = _apply(fleet, event, now_s)
    fleet, done = _stop(fleet, now_s) if fleet.stopping else _run(fleet, now_s)
    return fleet, (*said, *done)


def backoff_s(failures: int) -> float:
    """Pause before the next start after `failures` ends (>= 1) in a row, in seconds."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))


def describe_end(status: int) -> str:
    """`3` -> `ended with status 3`, `-9` -> `ended by SIGKILL`."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


def _apply(fleet: Fleet, event: Event, now_s: float) -> tuple[Fleet, tuple[Action, ...]]:
    match event:
        case Started(name, pid):
            return _set(fleet, name, pid=pid), ()
        case BecameReady(name, address):
            child = fleet.children[name]
            if child.phase is not Phase.STARTING:
                return fleet, ()
            again = (Say(f"{name} is back"),) if child.was_ready else ()
            changed = _set(fleet, name, phase=Phase.READY, address=address, since_s=now_s, due_s=None, was_ready=True)
            return changed, again
        case Ended(name, status):
            return _end(fleet, name, status, now_s)
        case StopAsked():
            return replace(fleet, stopping=True, hurry=fleet.stopping), ()
        case Tick():
            return fleet, ()


def _end(fleet: Fleet, name: str, status: int, now_s: float) -> tuple[Fleet, tuple[Action, ...]]:
    child = fleet.children[name]
    how = describe_end(status)
    if fleet.stopping:
        return _set(fleet, name, phase=Phase.STOPPED, pid=None, due_s=None, last_end=how), ()
    steady = child.phase is Phase.READY and now_s - child.since_s >= STEADY_S
    failures = 1 if steady else child.failures + 1
    if not child.was_ready and failures >= ATTEMPTS:
        fleet = _set(fleet, name, phase=Phase.STOPPED, pid=None, due_s=None, failures=failures, last_end=how)
        why = f"{name} {how}, {failures} times before it was ever ready"
        return replace(fleet, stopping=True, failure=why), (Say(why, trouble=True),)
    pause_s = backoff_s(failures)
    fleet = _set(
        fleet,
        name,
        phase=Phase.BACKOFF,
        pid=None,
        since_s=now_s,
        due_s=now_s + pause_s,
        failures=failures,
        last_end=how,
    )
    return fleet, (Say(f"{name} {how}; starting it again in {pause_s:g} s", trouble=True),)


def _run(fleet: Fleet, now_s: float) -> tuple[Fleet, tuple[Action, ...]]:
    actions: list[Action] = []
    held = min((child.stage for child in fleet.children.values() if not child.was_ready), default=None)
    for child in fleet.children.values():
        due = child.due_s is not None and now_s >= child.due_s
        if child.phase is Phase.WAITING and (held is None or child.stage <= held):
            fleet = _start(fleet, child, now_s, child.restarts)
            actions.append(Start(child.name))
        elif child.phase is Phase.BACKOFF and due:
            fleet = _start(fleet, child, now_s, child.restarts + 1)
            actions.append(Start(child.name))
        elif child.phase is Phase.STARTING and due:
            fleet = _set(fleet, child.name, due_s=None)
            slow = f"{child.name} is not ready after {child.start_timeout_s:g} s; killing it"
            actions += [Say(slow, trouble=True), Kill(child.name)]
    return fleet, tuple(actions)


def _start(fleet: Fleet, child: Child, now_s: float, restarts: int) -> Fleet:
    due_s = now_s + child.start_timeout_s
    return _set(fleet, child.name, phase=Phase.STARTING, since_s=now_s, due_s=due_s, restarts=restarts)


def _stop(fleet: Fleet, now_s: float) -> tuple[Fleet, tuple[Action, ...]]:
    actions: list[Action] = []
    for child in fleet.children.values():
        if not child.alive and child.phase is not Phase.STOPPED:
            fleet = _set(fleet, child.name, phase=Phase.STOPPED, due_s=None)
    rank = max((child.rank for child in fleet.children.values() if child.alive), default=None)
    for child in fleet.children.values():
        if not child.alive:
            continue
        if fleet.hurry:
            if child.phase is not Phase.STOPPING or child.due_s is not None:
                fleet = _set(fleet, child.name, phase=Phase.STOPPING, due_s=None)
                actions.append(Kill(child.name))
        elif child.rank == rank and child.phase is not Phase.STOPPING:
            fleet = _set(fleet, child.name, phase=Phase.STOPPING, since_s=now_s, due_s=now_s + child.grace_s)
            actions.append(Terminate(child.name))
        elif child.phase is Phase.STOPPING and child.due_s is not None and now_s >= child.due_s:
            fleet = _set(fleet, child.name, due_s=None)
            slow = f"{child.name} did not end within {child.grace_s:g} s; killing it"
            actions += [Say(slow, trouble=True), Kill(child.name)]
        elif child.rank != rank and child.phase is not Phase.STOPPING:
            fleet = _set(fleet, child.name, due_s=None)
    return fleet, tuple(actions)


def _set(fleet: Fleet, name: str, **changes: object) -> Fleet:
    child = replace(fleet.children[name], **changes)  # type: ignore[arg-type]
    return replace(fleet, children={**fleet.children, name: child})
