"""Writers on memory trees that know what every acknowledged write must have left, through any number of deaths.

Each writer repeats a call under one request id until it is answered, as the API asks of clients; some give up after
one attempt, and what they wrote may be there once or not at all. `check` holds the trees to that.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

from katsura.api.memory.v1.memory_slots_pb2 import SlotWrite
from katsura.domain.errors import DeadlineExceededError, TemporaryError, UnavailableError
from katsura.sdk.memory import MemoryClient, step

R = TypeVar("R")

_AWAY: Final = (UnavailableError, DeadlineExceededError)
"""What is repeated. A head that moved is no accident: each writer is the only one of its tree."""
SHARED: Final = "shared"
"""The tree that all writers append to."""


class TreeLoad:
    """Seeded writers, each on a tree of its own and all on one more.

    Args:
        clients: of one or more service processes; each attempt of a call goes to a random one.
        seed: of what the writers do. When they do it depends on the machine.
    """

    def __init__(self, clients: Sequence[MemoryClient], seed: int, writers: int = 6) -> None:
        self.clients = clients
        """Who may serve the next call; checks read through the first."""
        self._random = random.Random(seed)  # noqa: S311 - repeatable, no secret
        self._writers = [_Writer(self, f"own{n}", seed * 1000 + n) for n in range(writers)]
        self._stopping = False
        self._changed = asyncio.Condition()
        self.acknowledged = 0
        """Writes answered so far."""
        self.failures: list[TemporaryError] = []
        """What attempts failed with, before one was answered."""
        self.pauses_s: list[float] = []
        """From each blow to the next acknowledged write."""
        self.shared: dict[str, int] = {}
        """Contents acknowledged on the shared tree, and the nodes they became."""
        self.doubtful: set[str] = set()
        """Contents that a writer gave up on: on the shared tree once, or not at all."""

    async def through(self, blows: int, strike: Callable[[], Awaitable[object]], limit_s: float = 60.0) -> None:
        """Write, let `strike` do its worst `blows` times at random moments, stop and check.

        Raises:
            ExceptionGroup: a writer was refused, or TimeoutError: no write was acknowledged for `limit_s` seconds.
        """
        self._stopping = False
        async with asyncio.TaskGroup() as running:
            writing = [running.create_task(writer.run()) for writer in self._writers]
            for _ in range(blows):
                await self._advanced(self._random.randint(5, 30), limit_s)
                await strike()
                struck = time.monotonic()
                await self._advanced(1, limit_s)
                self.pauses_s.append(time.monotonic() - struck)
            self._stopping = True
            async with asyncio.timeout(limit_s):
                await asyncio.wait(writing)
        async with asyncio.timeout(limit_s):
            await self._reached(self.clients[0])
        await self.check()

    async def check(self) -> None:
        """Nothing acknowledged is missing, changed, doubled or out of order, and every hash holds."""
        for writer in self._writers:
            await writer.check()
        path = await self.clients[0].get_whole_path(SHARED)
        found = Counter(node.step.content for node in path)
        assert max(found.values(), default=1) == 1, "a write was doubled"
        at = {node.step.content: node.node_id for node in path}
        assert self.shared.items() <= at.items(), "an acknowledged write is missing"
        assert at.keys() - self.shared.keys() <= self.doubtful, "a write that nobody made"
        await self.sound(SHARED)

    async def _reached(self, client: MemoryClient) -> None:
        """Return once `client` is answered: others may have served the writers while its channel waits to connect."""
        while True:
            try:
                await client.get_tree(SHARED)
            except _AWAY as error:
                self.failures.append(error)
            else:
                return

    async def sound(self, tree_id: str) -> None:
        """Every hash of a tree holds and Watch tells of each of its commits once."""
        assert not (await self.clients[0].verify_tree(tree_id)).mismatches
        revision = (await self.clients[0].get_tree(tree_id)).tree.revision
        events = self.clients[0].watch(tree_id, after_revision=max(0, revision - 500))
        for wanted in range(max(1, revision - 499), revision + 1):
            assert (await anext(events)).position.revision == wanted
        await events.aclose()

    async def answered(self, call: Callable[[MemoryClient], Awaitable[R]]) -> R:
        """What `call` answers once it does."""
        while True:
            try:
                answer = await call(self._random.choice(self.clients))
            except _AWAY as error:
                self.failures.append(error)
                continue
            async with self._changed:
                self.acknowledged += 1
                self._changed.notify_all()
            return answer

    async def tried(self, call: Callable[[MemoryClient], Awaitable[R]]) -> R | None:
        """What `call` answers, or None where it failed for now."""
        try:
            return await call(self._random.choice(self.clients))
        except _AWAY as error:
            self.failures.append(error)
            return None

    async def _advanced(self, count: int, limit_s: float) -> None:
        wanted = self.acknowledged + count
        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(lambda: self.acknowledged >= wanted)

    @property
    def stopping(self) -> bool:
        """Whether writers end after the write at hand."""
        return self._stopping


class _Writer:
    """The only writer of one tree: what it was told is what must be there."""

    def __init__(self, load: TreeLoad, tree: str, seed: int) -> None:
        self._load = load
        self._tree = tree
        self._random = random.Random(seed)  # noqa: S311 - repeatable, no secret
        self._number = 0
        self._branch = "main"
        self._raw = 0
        self._paths: dict[str, list[tuple[int, str]]] = {"main": []}
        self._slots: dict[str, list[tuple[int, str, str]]] = {"main": []}

    async def run(self) -> None:
        """Write until the load stops."""
        await self._load.answered(lambda m: m.create_tree(tree_id=SHARED, request_id="create-shared"))
        await self._load.answered(lambda m: m.create_tree(tree_id=self._tree, request_id=f"create-{self._tree}"))
        acts = (self._grow, self._share, self._doubt, self._set, self._compress, self._fork, self._revise)
        while not self._load.stopping:
            self._number += 1
            (act,) = self._random.choices(acts, (40, 30, 5, 10, 7, 3, 5))
            await act(f"{self._tree}.{self._number}")

    async def check(self) -> None:
        """Its tree holds what was acknowledged, on every branch."""
        memory = self._load.clients[0]
        for branch, path in self._paths.items():
            nodes = await memory.get_whole_path(self._tree, branch=branch)
            assert [(n.node_id, n.step.content) for n in nodes] == path, f"branch {branch} of {self._tree}"
            held = {key: value for _, key, value in self._slots[branch]}
            assert await memory.get_slots(self._tree, branch=branch) == held
        await self._load.sound(self._tree)

    @property
    def _path(self) -> list[tuple[int, str]]:
        return self._paths[self._branch]

    @property
    def _head(self) -> int:
        return self._path[-1][0] if self._path else 0

    async def _write(self, name: str, **arguments: Any) -> Any:
        """One call on this tree and branch, repeated until it is answered."""
        request = f"{self._tree}.{self._number}"
        return await self._load.answered(
            lambda m: getattr(m, name)(self._tree, branch=self._branch, request_id=request, **arguments)
        )

    async def _grow(self, text: str) -> None:
        steps = [step("user", f"{text}.{i}") for i in range(self._random.choice((1, 1, 1, 4)))]
        grown = await self._write("grow", steps=steps, expected_head=self._head)
        self._path.extend(zip(grown.node_ids, (s.content for s in steps), strict=True))
        self._raw += 1

    async def _share(self, text: str) -> None:
        grown = await self._load.answered(lambda m: m.grow(SHARED, [step("user", text)], request_id=text))
        self._load.shared[text] = grown.node_ids[0]

    async def _doubt(self, text: str) -> None:
        self._load.doubtful.add(text)
        await self._load.tried(lambda m: m.grow(SHARED, [step("user", text)], request_id=text))

    async def _set(self, text: str) -> None:
        key = self._random.choice("abc")
        await self._write("set_slots", writes=[SlotWrite(key=key, value=text)])
        self._slots[self._branch].append((len(self._path), key, text))

    async def _compress(self, text: str) -> None:
        if self._raw:
            await self._write("compress", expected_head=self._head)
            self._raw = 0

    async def _fork(self, text: str) -> None:
        made = await self._write("fork")
        self._continue_on(made.branch.name, len(self._path))

    async def _revise(self, text: str) -> None:
        if not self._path:
            return
        kept = self._random.randint(max(0, len(self._path) - 20), len(self._path) - 1)
        restore = self._path[kept - 1][0] if kept else 0
        made = await self._write("revise", restore_after=restore, reason=text, expected_head=self._head)
        self._continue_on(made.branch.name, kept)

    def _continue_on(self, branch: str, kept: int) -> None:
        self._paths[branch] = self._path[:kept]
        self._slots[branch] = [slot for slot in self._slots[self._branch] if slot[0] <= kept]
        self._branch = branch
        self._raw = 0
