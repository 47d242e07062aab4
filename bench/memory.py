"""Everything that the memory service promises in figures, beside its goals and its peers.

    python bench/memory.py --setup      make the peer's environment (LangGraph's RedisSaver and its server)
    python bench/memory.py --quick      a minute or two, for a first look
    python bench/memory.py --json FILE  all of it, for docs/benchmarks.md
    python bench/memory.py --only grow saver

Parts: `grow` (Grow beside its floor, by durability), `depth` (calls at growing depth), `rates`, `bytes`, `watch`,
`tokens` (what a model reads over chains of subgoals), `saver` (LangGraph with a growing history beside RedisSaver).
One service process (uvloop, hiredis) on a real Valkey, over gRPC on a unix socket; steps of 200 bytes; one call in
flight unless said otherwise. What is compared is measured in turn, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import uvloop
from placing.report import Report
from trees import calls, growth
from trees.chains import BUDGET, SMALL_CACHE, Outcome, Run
from trees.service import serving


@dataclass(frozen=True)
class Plan:
    """How much of everything is done."""

    rounds: int
    calls: int
    depths: tuple[int, ...]
    chains: int
    watch_s: int
    bytes_at: tuple[int, ...]
    saver_steps: int
    savers: tuple[tuple[str, int], ...]
    """Theirs, and how many steps each takes: their time grows with the square."""


THEIRS = tuple((name, 3_000 if name in ("redis", "redis-async") else 900) for name in growth.THEIRS)
QUICK = Plan(3, 100, (10, 1_000, 10_000), 2, 3, (1_000, 3_000), 400, (("redis", 400), ("redis-shallow", 400)))
FULL = Plan(7, 400, (10, 1_000, 10_000, 100_000), 10, 20, (1_000, 10_000, 100_000), 3_000, THEIRS)


async def grow(plan: Plan, report: Report) -> None:
    """Grow beside the floor, in every durability. Strict pays a sync of the disk per call."""
    for appendfsync, durability in (("everysec", "relaxed"), ("always", "strict")):
        async with serving(appendfsync) as service, calls.floor(service) as (bare, _):
            ours: list[list[float]] = []
            floor: list[list[float]] = []
            await service.memory.create_tree(tree_id="grow")
            await service.memory.fork("grow", new_branch="keyed")
            grower = calls.Grower(service.memory, "grow", "main", 0)
            with_key = calls.Grower(service.keyed, "grow", "keyed", 0)
            keyed: list[float] = []
            for _ in range(plan.rounds + 1):
                floor.append(await calls.timed(bare, plan.calls))
                ours.append(await calls.timed(grower.grow, plan.calls))
                keyed += await calls.timed(with_key.grow, plan.calls // 4)
        seconds, bare_seconds = list(chain(*ours[1:])), list(chain(*floor[1:]))
        peer = "gRPC echo and a bare Lua call"
        report.add(
            f"Grow, {durability}, p50", calls.p50_ms(seconds), "ms", None, False, calls.p50_ms(bare_seconds), peer
        )
        report.add(f"Grow, {durability}, p99", calls.p99_ms(seconds), "ms")
        report.add(f"Grow, {durability}, with an API key, p50", calls.p50_ms(keyed), "ms")
        report.add(f"Grow, {durability}", calls.rate(seconds), "calls/s", peer=calls.rate(bare_seconds), peer_name=peer)
        shares = [statistics.median(f) / statistics.median(o) for o, f in zip(ours[1:], floor[1:], strict=True)]
        goal = 0.7 if durability == "relaxed" else None
        report.add(f"Grow, {durability}, share of the floor's rate", statistics.median(shares), "x", goal)


async def depth(plan: Plan, report: Report) -> None:
    """The same calls on a shallow and on a deep tree."""
    found: dict[int, list[dict[str, list[float]]]] = {deep: [] for deep in plan.depths}
    async with serving("everysec") as service:
        for deep in plan.depths:
            await service.memory.create_tree(tree_id=f"d{deep}", goal="Find the cheapest room.")
            await calls.plant(service.memory, f"d{deep}", 0, deep)
        for number in range(plan.rounds + 1):
            turn = number % len(plan.depths)
            for deep in (*plan.depths[turn:], *plan.depths[:turn]):
                seconds = await calls.calls_at(service.memory, f"d{deep}", deep, str(number), plan.calls // 2)
                if number:
                    found[deep].append(seconds)
    goals = {"Fork": 2.0, "Revise to half the depth": 2.0, "AssembleContext": 3.0}
    for name in found[plan.depths[0]][0]:
        for deep in plan.depths:
            seconds = [second for one in found[deep] for second in one[name]]
            report.add(f"{name} at {deep:,} steps, p50", calls.p50_ms(seconds), "ms", goals.get(name), False)
            report.add(f"{name} at {deep:,} steps, p99", calls.p99_ms(seconds), "ms", quiet=True)

    def against(name: str, few: int, many: int) -> float:
        return statistics.median(
            statistics.median(deep[name]) / statistics.median(flat[name])
            for flat, deep in zip(found[few], found[many], strict=True)
        )

    last = plan.depths[-1]
    kept = 1 / against("Grow", plan.depths[0], min(10_000, last))
    report.add("Grow, rate at 10,000 steps / rate at 10", kept, "x", 0.9)
    times = against("AssembleContext", plan.depths[0], last)
    report.add(f"AssembleContext(4k), p50 at {last:,} / p50 at 10", times, "x", 1.5, False)
    times = against("AssembleContext", plan.depths[1], last)
    report.add(f"AssembleContext(4k), p50 at {last:,} / p50 at 1,000 (a full context in both)", times, "x", 1.5, False)


async def rates(plan: Plan, report: Report) -> None:
    """Throughput, clients and service on the same cores."""
    async with serving("everysec") as service:
        memory = service.memory
        for number in range(32):
            await memory.create_tree(tree_id=f"w{number}")

        growers = [calls.Grower(memory, f"w{number}", "main", 0) for number in range(32)]
        found = [await calls.in_flight(lambda n: growers[n].grow, 32, plan.calls // 8) for _ in range(plan.rounds)]
        report.add("Grow, 32 in flight, one process", statistics.median(found), "calls/s", 2_000)
        ours = []
        for turn in range(plan.rounds):
            waits, streams = [
                await calls.one_writer(memory, f"one-{turn}-{waits}", plan.calls // 2, waits) for waits in (True, False)
            ]
            ours.append(streams / waits)
        report.add("GrowStream / Grow, one writer, each step expects the one before", statistics.median(ours), "x")
        for size, goal in ((16, None), (256, 10_000)):
            batched = await calls.batched(memory, size, max(8, 40 * plan.calls // size // 8))
            report.add(f"Grow, batches of {size}", batched, "steps/s", goal)


async def stored(plan: Plan, report: Report) -> None:
    """Memory of the store per step, request ids and client step ids included."""
    async with serving("everysec") as service:
        for first, last in pairwise(plan.bytes_at):
            name = f"stored per 200-byte step, {first:,} to {last:,}"
            report.add(name, await calls.bytes_per_step(service, first, last), "bytes", 1_024, False)


async def watch(plan: Plan, report: Report) -> None:
    """20 watchers at 500 events a second."""
    async with serving("everysec") as service:
        seconds, rate = await calls.watch_lag(service, plan.watch_s)
    name = f"Watch, {calls.WATCHERS} watchers, from the call to the event"
    report.add(f"commits while {calls.WATCHERS} watch", rate, "1/s", 0.95 * calls.EVENTS_PER_S)
    report.add(f"{name}, p50", calls.p50_ms(seconds), "ms")
    report.add(f"{name}, p99", calls.p99_ms(seconds), "ms", 50, False)


async def tokens(plan: Plan, report: Report) -> None:
    """What a model reads over chains of 30 subgoals."""
    runs = [await Run(seed, 30).live() for seed in range(plan.chains)]

    def share(of: Callable[[Outcome], float], to: Callable[[Outcome], float]) -> float:
        return sum(map(of, runs)) / max(1, sum(map(to, runs)))

    report.add("contexts over the budget of 4,000 tokens", sum(run.over_budget for run in runs), "contexts", 0, False)
    report.add("largest history / budget", max(run.appended.peak for run in runs) / BUDGET, "x")
    name = "cumulative prompt tokens / append-only history"
    report.add(name, share(lambda r: r.ours.prompt, lambda r: r.appended.prompt), "x", 0.15, False)
    name = "cumulative uncached tokens / append-only history, a prefix cache without limit"
    report.add(name, share(lambda r: r.ours.uncached, lambda r: r.appended.uncached), "x", 0.5, False)
    name = f"cumulative uncached tokens / append-only history, {SMALL_CACHE:,} tokens cached"
    report.add(name, share(lambda r: r.ours.uncached_small, lambda r: r.appended.uncached_small), "x", 0.5, False)
    summaries = share(lambda r: r.summaries, lambda r: r.ours.uncached)
    again = share(lambda r: r.again, lambda r: r.ours.uncached)
    report.add("  of our uncached tokens: steps, read once by whoever acts on them", 1 - summaries - again, "share")
    report.add("  of our uncached tokens: summaries and roll-ups", summaries, "share")
    report.add("  of our uncached tokens: shown before behind another prefix", again, "share")
    report.add("pins present", 1 - share(lambda r: r.pins_missing, lambda r: r.calls), "share", 1.0)
    report.add("probed facts in the last context", share(lambda r: r.in_context, lambda r: r.asked), "share")
    name = "probed facts in the last context or found by search"
    report.add(name, share(lambda r: r.in_context + r.found, lambda r: r.asked), "share", 0.99)


async def saver(plan: Plan, report: Report) -> None:
    """LangGraph supersteps, each checkpointed before the next, over a history that grows."""
    steps = plan.saver_steps
    ours = {name: (await _grown(name, steps))["seconds"] for name in ("none", *growth.OURS)}
    for name, seconds in ours.items():
        report.add(f"LangGraph on {name}, {steps:,} steps", steps / seconds[-1], "steps/s")
        report.add(f"LangGraph on {name}, the last tenth of them", steps / 10 / _last_tenth(seconds), "steps/s")
    for name, count in plan.savers:
        if why := growth.missing():
            report.missing(f"LangGraph, {count:,} steps", name, why)
            continue
        try:
            theirs = (await _grown(name, count))["seconds"]
        except RuntimeError as error:  # their client gives up on a server that is slow with a long history
            report.missing(f"LangGraph, {count:,} steps", name, str(error).strip().rpartition("\n")[2])
            continue
        label = f"LangGraph on {name}{' (keeps no history)' if name in growth.SHALLOW else ''}, {count:,} steps"
        report.add(label, count / theirs[-1], "steps/s")
        report.add(f"{label}, the last tenth", count / 10 / _last_tenth(theirs), "steps/s", quiet=count < steps)
        same = "katsura-async" if "async" in name else "katsura"
        goal = 20 if count >= 3_000 and name not in growth.SHALLOW else None
        report.add(f"  {same} / {name} over {count:,} steps", theirs[-1] / ours[same][count * 10 // steps], "x", goal)


def _last_tenth(seconds: list[float]) -> float:
    return seconds[-1] - seconds[-2]


async def _grown(name: str, steps: int) -> dict[str, list[float]]:
    if name in growth.OURS:
        async with serving("everysec") as service:
            return await growth.run(name, steps, service.address, service.key)
    if name in growth.THEIRS:
        async with growth.their_server() as url:
            return await growth.run(name, steps, url)
    return await growth.run(name, steps)


PARTS: dict[str, Callable[[Plan, Report], Awaitable[None]]] = {
    "grow": grow,
    "depth": depth,
    "rates": rates,
    "bytes": stored,
    "watch": watch,
    "tokens": tokens,
    "saver": saver,
}


async def run(plan: Plan, parts: list[str], report: Report) -> None:
    for name in parts:
        print(f"-- {name}: {PARTS[name].__doc__}", flush=True)
        await PARTS[name](plan, report)


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
    parser.add_argument("--setup", action="store_true", help="make the peer's environment and end")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows as JSON")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    arguments = parser.parse_args()
    if arguments.setup:
        growth.set_up()
        return
    print(machine())
    report = Report()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(QUICK if arguments.quick else FULL, arguments.only, report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
