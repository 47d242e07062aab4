"""Where the time of a call goes: CPU seconds of each process per call, and the service's Python by function.

    python bench/trees/cpu.py [--stacks]

CPU time, unlike time, is nearly the same on a busy machine. `--stacks` samples the service with py-spy while it serves
and prints for the most frequent functions which share of the samples they are in, themselves and with what they call.
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

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SHOWN = 45


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken, its threads included; the scheduler's own count where there is one."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S


async def measured(name: str, service: Service, count: int, work: Callable[[], Awaitable[object]]) -> None:
    """Print CPU microseconds per call of service, store and client, over `count` calls made by `work`."""
    pids = (service.pid, (await service.store_info())["process_id"], os.getpid())
    before = [cpu_s(pid) for pid in pids]
    await work()
    spent = [(cpu_s(pid) - start) / count * 1e6 for pid, start in zip(pids, before, strict=True)]
    print(f"{name:40} {spent[0]:8.0f} {spent[1]:8.0f} {spent[2]:8.0f}", flush=True)


async def every_call(service: Service, count: int) -> None:
    """The calls that the issue has figures for."""
    memory = service.memory
    print(f"{'CPU us per call':40} {'service':>8} {'store':>8} {'client':>8}")
    await memory.create_tree(tree_id="g")
    grower = calls.Grower(memory, "g", "main", 0)
    await calls.timed(grower.grow, 100)
    await measured("Grow, one in flight", service, count, lambda: calls.timed(grower.grow, count))
    for number in range(32):
        await memory.create_tree(tree_id=f"w{number}")
    growers = [calls.Grower(memory, f"w{number}", "main", 0) for number in range(32)]
    each = max(1, count // 32)
    await measured(
        "Grow, 32 in flight", service, each * 32, lambda: calls.in_flight(lambda n: growers[n].grow, 32, each)
    )
    for depth in (10, 1_000):
        tree = f"d{depth}"
        await memory.create_tree(tree_id=tree, goal="Find the cheapest room.")
        await calls.plant(memory, tree, 0, depth)
        names = iter(range(count))

        async def fork(tree: str = tree, names: object = names) -> None:
            await memory.fork(tree, branch="main", new_branch=f"f{next(names)}")  # type: ignore[call-overload]

        drawn = iter(range(count))

        async def revise(tree: str = tree, drawn: object = drawn, depth: int = depth) -> None:
            branch = f"f{next(drawn)}"  # type: ignore[call-overload]
            await memory.revise(tree, branch=branch, restore_after=depth // 2, reason="measured")

        async def assemble(tree: str = tree) -> None:
            await memory.assemble_context(tree, branch="main", budget_tokens=calls.BUDGET)

        few = count // 4
        for name, call in (("Fork", fork), ("Revise", revise), ("AssembleContext", assemble)):
            await measured(f"{name} at {depth:,} steps", service, few, partial(calls.timed, call, few))


async def stacks(service: Service, seconds: int, work: Callable[[], Awaitable[object]]) -> None:
    """Sample the service while `work` is repeated, and print the shares of its functions."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "stacks"
        spy = str(Path(sys.executable).parent / "py-spy")
        arguments = ["record", "-p", str(service.pid), "-d", str(seconds), "-r", "400", "-f", "raw", "-o", str(file)]
        process = await asyncio.create_subprocess_exec(spy, *arguments, stdout=asyncio.subprocess.DEVNULL)
        while process.returncode is None:
            await work()
        own, within, total = Counter[str](), Counter[str](), 0
        for line in file.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            frames = [frame.rpartition(":")[0] if frame.endswith(")") else frame for frame in stack.split(";")]
            total += int(count)
            own[frames[-1]] += int(count)
            for frame in set(frames):
                within[frame] += int(count)
        print(f"{'function':75} {'itself':>7} {'with calls':>10}")
        for frame, count in within.most_common(SHOWN):
            print(f"{frame[-75:]:75} {own[frame] / total:7.1%} {count / total:10.1%}")


async def run(with_stacks: bool, count: int) -> None:
    async with serving("everysec") as service:
        await every_call(service, count)
        if with_stacks:
            for name, work in (
                ("Grow, one in flight", lambda: calls.timed(calls.Grower(service.memory, "g", "main", 0).grow, 1)),
                (
                    "AssembleContext at 1,000 steps",
                    lambda: service.memory.assemble_context("d1000", branch="main", budget_tokens=calls.BUDGET),
                ),
            ):
                print(f"\n{name}")
                if name.startswith("Grow"):
                    await service.memory.create_tree(tree_id="stacks")
                    work = calls.Grower(service.memory, "stacks", "main", 0).grow
                await stacks(service, 8, work)


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", action="store_true", help="sample the service with py-spy too")
    parser.add_argument("--calls", type=int, default=2_000)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(arguments.stacks, arguments.calls))


if __name__ == "__main__":
    main()
