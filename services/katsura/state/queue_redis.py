"""Tasks of trees in Valkey or Redis (functions/memory_a_queue.lua), and the hint that tells which trees have some."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

from katsura.domain.ids import BranchName, NodeId, TenantId, TreeId
from katsura.domain.trees import Request
from katsura.domain.work import ATTEMPTS_MAX, Fence, WorkItem, WorkKind
from katsura.state import keys
from katsura.state.connect import Arg, Store, translated
from katsura.state.contents import TreeRef
from katsura.state.queue import SEGMENT_STEPS_MAX
from katsura.state.tree_calls import TreeCalls
from katsura.state.tree_records import known_fields
from katsura.state.trees import Limits
from katsura.state.usage import Count, uncounted

_TREES_LOOKED_AT: Final = 32
_SWEEP_EVERY_S: Final = 10.0


class RedisQueue(TreeCalls):
    """The part of the store that keeps tasks."""

    def __init__(self, store: Store, limits: Limits, count: Count = uncounted) -> None:
        super().__init__(store, limits, count)
        self._swept: dict[TenantId, tuple[float, str]] = {}

    async def schedule(self, ref: TreeRef, kind: WorkKind, branch: str, summary: int, reason: str) -> WorkItem:
        """Ask for a task."""
        answer = await self._call(ref, "schedule", int(kind), branch, summary, reason)
        await self._has_work(ref)
        return _item(answer[1])

    async def claim(self, ref: TreeRef, kind: WorkKind, worker: str, most: int, lease_ms: int) -> tuple[WorkItem, ...]:
        """Tasks of a tree that nobody holds."""
        return _claimed(await self._call(ref, *_claiming(kind, worker, most, lease_ms)))

    async def claim_any(
        self, tenant: TenantId, kind: WorkKind, worker: str, most: int, lease_ms: int
    ) -> tuple[tuple[TreeRef, WorkItem], ...]:
        """Tasks of a tenant's trees; where the hint names none, some trees that it does not name are asked too."""
        index = keys.work_index(tenant)
        with translated(self._store.url):
            now: Any = await self._store.client.time()
            ms = now[0] * 1000 + now[1] // 1000
            names: Any = await self._store.client.zrangebyscore(index, "-inf", ms, start=0, num=_TREES_LOOKED_AT)
        found = await self._claim_of(tenant, [bytes(n).decode() for n in names], kind, worker, most, lease_ms)
        return found or await self._claim_of(tenant, await self._unnamed(tenant), kind, worker, most, lease_ms)

    async def held(self, ref: TreeRef, fence: Fence) -> WorkItem:
        """The task, if this claim of it is the newest."""
        return _item((await self._call(ref, "held", *_fence(fence), read_only=True))[1])

    async def renew(self, ref: TreeRef, fence: Fence, lease_ms: int) -> WorkItem:
        """Hold a task longer."""
        return _item((await self._call(ref, "renew", *_fence(fence), lease_ms))[1])

    async def give_back(self, ref: TreeRef, fence: Fence, reason: str, retry_ms: int) -> WorkItem:
        """End a claim without a result."""
        answer = await self._call(ref, "give_back", *_fence(fence), reason, retry_ms, ATTEMPTS_MAX)
        return _item(answer[1])

    async def work(self, ref: TreeRef) -> tuple[WorkItem, ...]:
        """Every task of a tree, by name."""
        found: dict[str, WorkItem] = {}
        cursor: Any = b"0"
        while True:
            _, cursor, flat = await self._call(ref, "work", cursor, read_only=True)
            found.update({item.work_id: item for item in map(_item, flat[1::2])})
            if int(cursor) == 0:
                return tuple(item for _, item in sorted(found.items()))

    async def _write_fenced(
        self, ref: TreeRef, function: str, request: Request, fence: Fence | None, *arguments: Arg
    ) -> dict[str, Any]:
        """A write that may be a task's result, and may make a task."""
        if fence is None:
            said = await self._write(ref, function, request, *arguments)
        else:
            said = await self._write(ref, f"{function}_fenced", request, *arguments, *_fence(fence))
        if said.get("asked"):
            await self._has_work(ref)
        return said

    async def _has_work(self, ref: TreeRef) -> None:
        with translated(self._store.url):
            await self._store.client.zadd(keys.work_index(ref.tenant), {ref.tree: 0})

    async def _claim_of(
        self, tenant: TenantId, trees: list[str], kind: WorkKind, worker: str, most: int, lease_ms: int
    ) -> tuple[tuple[TreeRef, WorkItem], ...]:
        index, found = keys.work_index(tenant), list[tuple[TreeRef, WorkItem]]()
        for name in trees:
            ref, due = TreeRef(tenant, TreeId(name)), 0
            # As no other call: a cold tree has no tasks, and is not brought back to hear that.
            answer = await TreeCalls._answer(self, ref, *_claiming(kind, worker, most - len(found), lease_ms))
            if answer[0] == b"OK":  # else it was dropped, or is cold
                due = answer[1]
                found += [(ref, item) for item in _claimed(answer)]
            with translated(self._store.url):
                if due:
                    await self._store.client.zadd(index, {name: due})
                else:
                    await self._store.client.zrem(index, name)
            if len(found) >= most:
                break
        return tuple(found)

    async def _unnamed(self, tenant: TenantId) -> list[str]:
        """The next trees of the tenant's index, one page every _SWEEP_EVERY_S: finds tasks whose hint was lost."""
        now = asyncio.get_running_loop().time()
        last, token = self._swept.get(tenant, (float("-inf"), ""))
        if now - last < _SWEEP_EVERY_S:
            return []
        newest = b"(" + token.encode() if token else b"+"
        with translated(self._store.url):
            page: Any = await self._store.client.zrevrangebylex(
                keys.tree_index(tenant), newest, b"-", start=0, num=_TREES_LOOKED_AT
            )
        names = [bytes(name).decode() for name in page]
        self._swept[tenant] = (now, names[-1] if len(names) == _TREES_LOOKED_AT else "")
        return [name.partition(":")[2] for name in names]


def _claiming(kind: WorkKind, worker: str, most: int, lease_ms: int) -> tuple[str, *tuple[Arg, ...]]:
    return "claim", int(kind), worker, lease_ms, most, ATTEMPTS_MAX, SEGMENT_STEPS_MAX


def _claimed(answer: Sequence[Any]) -> tuple[WorkItem, ...]:
    return tuple(map(_item, answer[2:]))


def _fence(fence: Fence) -> tuple[Arg, ...]:
    return fence.work_id, fence.token, fence.worker


def _item(text: bytes) -> WorkItem:
    found = json.loads(text)
    node = {name: NodeId(found[name]) for name in ("summary", "base", "last")}
    return WorkItem(
        **{
            **known_fields(WorkItem, found),
            **node,
            "kind": WorkKind(found["kind"]),
            "branch": BranchName(found["branch"]),
        }
    )
