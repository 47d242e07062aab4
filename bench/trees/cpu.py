"""Where the time of a call goes: CPU seconds of each process per call, and the service's Python by function.

    python bench/trees/cpu.py [--stacks]

CPU time, unlike time, is nearly the same on a busy machine; what is compared is measured by turns. `--stacks` samples
the service with py-spy (to be had by pip) while it serves, and prints for its most frequent functions which share of
the samples they are in, themselves and with what they call.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trees import calls
from trees.service import Service, serving

SHOWN, SAMPLED_S, ROUNDS = 40, 8, 4
Call = Callable[[], Awaitable[object]]


def cpu_s(pid: int) -> float:
    """CPU seconds that the threads of a process have taken, by the scheduler's own count."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def measured(name: str, service: Service, count: int, work: Awaitable[object], pid: int = 0) -> None:
    """Print CPU microseconds of the service (or of `pid`), store and client for each of the `count` calls of `work`."""
    pids = (pid or service.pid, (await service.store_info())["process_id"], os.getpid())
    before = [cpu_s(one) for one in pids]
    await work
    spent = [(cpu_s(one) - start) / count * 1e6 for one, start in zip(pids, before, strict=True)]
    print(f"{name:40} {spent[0]:8.0f} {spent[1]:8.0f} {spent[2]:8.0f}", flush=True)


async def grow(service: Service, count: int) -> None:
    """Grow beside what it stands on, and many at once."""
    memory = service.memory
    await memory.create_tree(tree_id="g")
    grower = calls.Grower(memory, "g", "main", 0)
    async with calls.floor(service) as (bare, pid):
        for _ in range(ROUNDS):
            await measured("floor: echo and a bare Lua call", service, count, calls.timed(bare, count), pid)
            await measured("Grow", service, count, calls.timed(grower.grow, count))
    for number in range(32):
        await memory.create_tree(tree_id=f"w{number}")
    growers = [calls.Grower(memory, f"w{number}", "main", 0) for number in range(32)]
    each = count // 32 + 1
    many = calls.in_flight(lambda n: growers[n].grow, 32, each)
    await measured("Grow, 32 in flight", service, each * 32, many)


async def deep(service: Service, count: int, depth: int) -> None:
    """The calls that have figures by depth."""
    memory, tree = service.memory, f"d{depth}"
    await memory.create_tree(tree_id=tree, goal="Find the cheapest room.")
    await calls.plant(memory, tree, 0, depth)
    made, left = iter(range(count)), iter(range(count))

    async def fork() -> None:
        await memory.fork(tree, branch="main", new_branch=f"f{next(made)}")

    async def revise() -> None:
        await memory.revise(tree, branch=f"f{next(left)}", restore_after=depth // 2, reason="measured")

    assemble = partial(memory.assemble_context, tree, branch="main", budget_tokens=calls.BUDGET)
    parts: tuple[tuple[str, Call], ...] = (("Fork", fork), ("Revise", revise), ("AssembleContext", assemble))
    for name, call in parts:
        await measured(f"{name} at {depth:,} steps", service, count, calls.timed(call, count))


async def stacks(service: Service, call: Call) -> None:
    """Sample the service while `call` is repeated, and print the shares of its functions."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "stacks"
        arguments = ["record", "-p", service.pid, "-d", SAMPLED_S, "-r", 400, "-f", "raw", "-o", file]
        spy = await asyncio.create_subprocess_exec(
            Path(sys.executable).parent / "py-spy", *map(str, arguments), stdout=asyncio.subprocess.DEVNULL
        )
        while spy.returncode is None:
            await call()
        lines = file.read_text().splitlines()
    own, within = Counter[str](), Counter[str]()
    for stack, _, count in (line.rpartition(" ") for line in lines):
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
    print(f"{'function':75} {'itself':>7} {'with calls':>10}")
    for frame, samples in within.most_common(SHOWN):
        print(f"{frame[-75:]:75} {own[frame] / own.total():7.1%} {samples / own.total():10.1%}")


async def run(with_stacks: bool, count: int) -> None:
    async with serving("everysec") as service:
        print(f"{'CPU us per call':40} {'service':>8} {'store':>8} {'client':>8}")
        await grow(service, count)
        for depth in (10, 1_000):
            await deep(service, count // 2, depth)
        if not with_stacks:
            return
        print("\nGrow")
        await service.memory.create_tree(tree_id="stacks")
        await stacks(service, calls.Grower(service.memory, "stacks", "main", 0).grow)
        print("\nAssembleContext at 1,000 steps")
        await stacks(
            service, partial(service.memory.assemble_context, "d1000", branch="main", budget_tokens=calls.BUDGET)
        )


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", action="store_true", help="sample the service with py-spy too")
    parser.add_argument("--calls", type=int, default=500, help="per figure")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(arguments.stacks, arguments.calls))


if __name__ == "__main__":
    main()
