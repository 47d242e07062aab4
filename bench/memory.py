"""Milliseconds of Grow and AssembleContext at 10, 1,000 and 10,000 steps, over gRPC on a real Valkey.

    python bench/memory.py --quick      half a minute, for a first look
    python bench/memory.py --json FILE  all rows, for docs/benchmarks.md

The peer is ourselves at 10 steps: a tree that costs more as it grows has a falling ratio. Depths are measured in turn,
round by round, in one run of one service process (uvloop, hiredis) and one client with one call in flight; `--fsync`
picks the store's durability (`always` is strict: on disk before the answer). Steps carry 200 bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.context import CallContext
from katsura.sdk.connection import connect
from katsura.sdk.memory import MemoryClient, step
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore

DEPTHS = (10, 1_000, 10_000)
TEXT = "The agent looked at one more page of results and noted what it said. " * 3
BUDGETS = (512, 4096)
"""Ten steps fill the first one; the second holds about 40 steps, so its curve begins at 1,000."""
GOAL = 0.9
"""A call at 10,000 steps keeps at least this share of its rate at 10."""
BATCH = 250
TOKEN = "bench"


Rounds = dict[str, dict[int, list[list[float]]]]
"""Operation, depth, round: seconds of each call."""


@dataclass(frozen=True)
class Plan:
    """How often each call is made: rounds over all depths, and calls per round."""

    rounds: int
    calls: int
    in_flight: int


async def timed(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Seconds of each of `count` calls, one after the other."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return seconds


async def plant(memory: MemoryClient, depth: int) -> None:
    """A tree of `depth` steps."""
    await memory.create_tree(tree_id=f"d{depth}", goal="Find the cheapest room.")
    for first in range(0, depth, BATCH):
        texts = range(first, min(depth, first + BATCH))
        await memory.grow(f"d{depth}", [step("user", f"{i} {TEXT}"[:200]) for i in texts])


async def measure(memory: MemoryClient, plan: Plan) -> Rounds:
    """Seconds of each operation at each depth. Each round grows a fresh fork, so that depths stay what they are."""
    found: Rounds = {}
    for number in range(plan.rounds):
        for depth in (*DEPTHS[number % 3 :], *DEPTHS[: number % 3]):
            for name, seconds in (await one_round(memory, f"d{depth}", depth, number, plan.calls)).items():
                found.setdefault(name, {}).setdefault(depth, []).append(seconds)
    return found


async def one_round(memory: MemoryClient, tree: str, depth: int, number: int, calls: int) -> dict[str, list[float]]:
    """Seconds of each operation on one tree."""
    names = iter(range(calls))
    branch = f"r{number}"
    forks = await timed(lambda: memory.fork(tree, branch="main", new_branch=f"{branch}.{next(names)}"), calls // 10)
    await memory.fork(tree, branch="main", new_branch=branch)
    head = depth

    async def grow() -> None:
        nonlocal head
        new = [step("user", f"{number}.{head} {TEXT}"[:200])]
        head = (await memory.grow(tree, new, branch=branch, expected_head=head)).branch.head

    seconds = {"Fork": forks, "Grow": await timed(grow, calls)}
    for budget in BUDGETS:
        seconds[f"AssembleContext of {budget:,} tokens"] = await timed(
            lambda budget=budget: memory.assemble_context(tree, branch="main", budget_tokens=budget),  # type: ignore[misc]
            calls // 2,
        )
    seconds["GetPath of 10 steps"] = await timed(lambda: memory.get_path(tree, branch="main", page_size=10), calls // 2)
    return seconds


async def throughput(memory: MemoryClient, plan: Plan) -> float:
    """Grow calls per second with `in_flight` clients, each on a tree of its own."""
    count = plan.calls

    async def one(number: int) -> None:
        await memory.create_tree(tree_id=f"w{number}")
        for i in range(count):
            await memory.grow(f"w{number}", [step("user", f"{i} {TEXT}"[:200])])

    start = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(plan.in_flight)))
    return plan.in_flight * count / (time.perf_counter() - start)


def rows_of(found: Rounds) -> list[dict[str, object]]:
    """Rows as architecture.md section 9: medians in ms; the ratio is the median of the rounds' own ratios."""
    rows: list[dict[str, object]] = []
    for name, by_depth in found.items():
        least = DEPTHS[1] if "4,096" in name else DEPTHS[0]
        medians = {depth: [statistics.median(seconds) for seconds in rounds] for depth, rounds in by_depth.items()}
        for depth, rounds in by_depth.items():
            ours, peer = (statistics.median(medians[d]) * 1000 for d in (depth, least))
            ratio = statistics.median(p / o for p, o in zip(medians[least], medians[depth], strict=True))
            seconds = [second for one in rounds for second in one]
            goal = GOAL if depth > least else None
            rows.append(
                {
                    "name": f"{name} at {depth:,} steps, p50",
                    "ours": round(ours, 3),
                    "peer": round(peer, 3),
                    "peer_name": f"katsura at {least:,} steps",
                    "unit": "ms",
                    "ratio": round(ratio, 3),
                    "goal": goal,
                    "holds": goal is None or ratio >= goal,
                    "p99": round(statistics.quantiles(seconds, n=100)[98] * 1000, 3),
                }
            )
    return rows


async def run(plan: Plan, fsync: str) -> list[dict[str, object]]:
    """Start the store and the service, measure, stop them."""
    with EmbeddedStore(fsync) as store, tempfile.TemporaryDirectory() as folder:
        environment = {
            "KATSURA_LISTEN": f"unix:{store.folder}/memory.sock",
            "KATSURA_STORE_URL": store.url,
            "KATSURA_INTERNAL_TOKEN": TOKEN,
        }
        process = ServedProcess("katsura.memory", environment, Path(folder) / "log")
        async with process, connect(process.address, internal_token=TOKEN) as connection:
            memory = MemoryClient(
                connection.acting_for(CallContext(Tenant(TenantId("bench"), bytes(32)), internal=True))
            )
            for depth in DEPTHS:
                await plant(memory, depth)
            rows = rows_of(await measure(memory, plan))
            rate = await throughput(memory, plan)
    name = f"Grow, {plan.in_flight} in flight, one process"
    rows.append({"name": name, "ours": round(rate), "peer": None, "peer_name": "none", "unit": "calls/s"})
    rows[-1] |= {"ratio": None, "goal": None, "holds": True}
    return rows


def machine() -> str:
    """The machine in one line: CPU, its flags that matter, cores, load."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = fields.get("flags", "").split()
    shown = " ".join(flag for flag in flags if flag.startswith(("avx", "amx", "sha", "aes", "f16c", "fma")))
    name = fields.get("model name", platform.machine())
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, flags: {shown}"


def main() -> None:
    """Parse arguments, run, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few calls, for a first look")
    parser.add_argument("--setup", action="store_true", help="nothing to set up: the peer is ourselves")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument(
        "--fsync", choices=("always", "everysec"), default="always", help="when the store writes to disk"
    )
    arguments = parser.parse_args()
    if arguments.setup:
        print("nothing to set up: the peer is Katsura at 10 steps, in the same run")
        return
    plan = Plan(rounds=6, calls=60, in_flight=16) if arguments.quick else Plan(rounds=8, calls=150, in_flight=32)
    print(f"{machine()}\nstore: Valkey, appendfsync {arguments.fsync}; one call in flight unless said otherwise")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(run(plan, arguments.fsync))
    for row in rows:
        extra = f"p99 {row['p99']:>8} ms  rate ratio {row['ratio']}" if "p99" in row else ""
        print(f"{row['name']:<52} {row['ours']:>9} {row['unit']:<8} {extra} {'' if row['holds'] else '  BELOW GOAL'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
