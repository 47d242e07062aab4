"""Calls of the service over gRPC: latencies by depth, rates, bytes, and what watchers wait."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from trees.service import Service, text_of

from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.api.memory.v1.memory_pb2 import Step
from katsura.sdk.connection import new_request_id
from katsura.sdk.memory import MemoryClient, step

BATCH = 250
BUDGET = 4_000
WATCHERS, EVENTS_PER_S, WRITERS = 20, 500, 10
_HERE = Path(__file__).resolve().parent


async def timed(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """Seconds of each of `count` calls, one after the other."""
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - start)
    return seconds


def p50_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1000


def p99_ms(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98] * 1000


def rate(seconds: Sequence[float]) -> float:
    """Calls per second at the median."""
    return 1 / statistics.median(seconds)


async def plant(memory: MemoryClient, tree: str, first: int, last: int) -> None:
    """Append steps `first` to `last` to a tree."""
    for begin in range(first, last, BATCH):
        await memory.grow(tree, [step("user", text_of(i)) for i in range(begin, min(last, begin + BATCH))])


class Grower:
    """Grows one branch, one call in flight, as an agent does: each write names the head that it has seen."""

    def __init__(self, memory: MemoryClient, tree: str, branch: str, head: int) -> None:
        self._memory, self._tree, self._branch, self._head = memory, tree, branch, head

    async def grow(self) -> None:
        new = [step("user", text_of(f"{self._branch} {self._head}"))]
        grown = await self._memory.grow(self._tree, new, branch=self._branch, expected_head=self._head)
        self._head = grown.branch.head


async def calls_at(memory: MemoryClient, tree: str, depth: int, mark: str, count: int) -> dict[str, list[float]]:
    """Seconds of each call on a tree of `depth` steps, which stays as deep as it is: writes go to forks."""
    names = iter(range(count))
    found = {
        "Fork": await timed(lambda: memory.fork(tree, branch="main", new_branch=f"f{mark}.{next(names)}"), count // 4)
    }
    await memory.fork(tree, branch="main", new_branch=f"g{mark}")
    found["Grow"] = await timed(Grower(memory, tree, f"g{mark}", depth).grow, count)
    branches = [f"f{mark}.{i}" for i in range(count // 4)]
    drawn = iter(branches)
    found["Revise to half the depth"] = await timed(
        lambda: memory.revise(tree, branch=next(drawn), restore_after=depth // 2, reason="measured"), count // 4
    )
    found["AssembleContext"] = await timed(
        lambda: memory.assemble_context(tree, branch="main", budget_tokens=BUDGET), count // 2
    )
    found["GetPath of 10"] = await timed(lambda: memory.get_path(tree, branch="main", page_size=10), count // 2)
    return found


@asynccontextmanager
async def floor(service: Service) -> AsyncIterator[tuple[Callable[[], Awaitable[None]], int]]:
    """Grow as it would be if it only echoed and appended: `bench/peers/echo_grow.py` on the same store, and its pid."""
    address = f"unix:{service.store.folder}/echo.sock"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_HERE.parent / "peers" / "echo_grow.py"),
        address,
        service.store.url,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_unary("/floor/Grow")

            async def grow() -> None:
                request = pb.GrowRequest(
                    request_id=new_request_id(),
                    tree_id="floor",
                    expected_head=1,
                    steps=[step("user", text_of("floor"))],
                )
                await call(request.SerializeToString())

            yield grow, process.pid
    finally:
        process.kill()
        await process.wait()


async def in_flight(grow: Callable[[int], Callable[[], Awaitable[object]]], clients: int, count: int) -> float:
    """Calls per second of `clients` that each have one call in flight, `count` calls each."""

    async def one(number: int) -> None:
        call = grow(number)
        for _ in range(count):
            await call()

    start = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(clients)))
    return clients * count / (time.perf_counter() - start)


async def batched(memory: MemoryClient, size: int, calls: int) -> float:
    """Steps per second in calls of `size` steps, two in flight on trees of their own."""

    async def one(tree: str) -> None:
        await memory.create_tree(tree_id=tree)
        for i in range(calls):
            await memory.grow(tree, [step("user", text_of(f"{i}.{j}")) for j in range(size)])

    start = time.perf_counter()
    await asyncio.gather(one(f"batch{size}a"), one(f"batch{size}b"))
    return 2 * calls * size / (time.perf_counter() - start)


async def one_writer(memory: MemoryClient, tree: str, count: int, waits: bool) -> float:
    """Steps per second of one writer that expects its own heads, and waits for each answer or streams."""
    await memory.create_tree(tree_id=tree)

    async def batches() -> AsyncIterator[list[Step]]:
        for i in range(count):
            yield [step("user", text_of(i))]

    start, head = time.perf_counter(), 0
    if waits:
        async for steps in batches():
            head = (await memory.grow(tree, steps, expected_head=head)).branch.head
    else:
        async for grown in memory.grow_stream(tree, batches(), expected_head=0):
            head = grown.branch.head
    assert head == count
    return count / (time.perf_counter() - start)


async def bytes_per_step(service: Service, first: int, last: int) -> float:
    """Bytes of the store's memory per step, between `first` and `last` steps, one request each."""
    memory, tree = service.memory, f"bytes{last}"
    await memory.create_tree(tree_id=tree)
    await plant(memory, tree, 0, first)
    before = (await service.store_info())["used_memory_dataset"]
    for begin in range(first, last, 16):
        await asyncio.gather(
            *(memory.grow(tree, [step("user", text_of(i), client_step_id=f"c{i}")]) for i in range(begin, begin + 16))
        )
    return ((await service.store_info())["used_memory_dataset"] - before) / (last - first)


async def watch_lag(service: Service, seconds: int) -> tuple[list[float], float]:
    """Seconds from sending a Grow to each watcher's event of it, and how many commits a second there really were.

    Watchers and writers are two processes; each writer has a branch of one tree, and one call in flight.
    """
    memory, tree = service.memory, "watched"
    await memory.create_tree(tree_id=tree)
    for number in range(WRITERS):
        await memory.fork(tree, branch="main", new_branch=f"b{number}")
    last = 1 + WRITERS + seconds * EVENTS_PER_S
    arguments = [str(_HERE / "watchers.py"), service.address, service.key, tree, str(WATCHERS), str(last)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, limit=1 << 26
    )
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"ready")
    sent: dict[int, float] = {}

    loop = asyncio.get_running_loop()
    begin = loop.time()

    async def write(number: int) -> None:
        branch, head = f"b{number}", 0
        for turn in range(number, seconds * EVENTS_PER_S, WRITERS):
            await asyncio.sleep(begin + turn / EVENTS_PER_S - loop.time())
            before = time.monotonic()
            grown = await memory.grow(tree, [step("user", text_of(turn))], branch=branch, expected_head=head)
            head = grown.branch.head
            sent[grown.position.revision] = before

    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    rate = seconds * EVENTS_PER_S / (loop.time() - begin)
    heard = json.loads(await process.stdout.readline())
    await process.wait()
    lags = [at - sent[int(revision)] for one in heard for revision, at in one.items() if int(revision) in sent]
    return lags, rate
