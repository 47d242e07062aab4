"""What every part of the tree store in Redis stands on: calling the functions of one tree, and their answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from katsura.domain.trees import (
    Branch,
    Relation,
    Request,
    Step,
    Tree,
)
from katsura.domain.usage import Usage
from katsura.state import keys
from katsura.state.connect import Arg, Library, Store
from katsura.state.tree_records import blob_of, references_json
from katsura.state.tree_replies import (
    branch_of,
    tree_of,
)
from katsura.state.trees import (
    Limits,
    TreeRef,
    refusal,
)
from katsura.state.usage import Count, uncounted
from katsura.state.watching import NOTICES_MAX

MEMORY_FUNCTIONS: Final = Library.read("memory_")
"""Load it with `Store.open(libraries=[...])`."""
NO_LIMIT: Final = 1 << 52
_NOTICES_KEPT_MS: Final = 600_000


class TreeCalls:
    """Calls of functions/memory_*.lua for trees of all tenants in one store."""

    def __init__(self, store: Store, limits: Limits, count: Count = uncounted) -> None:
        self._store = store
        self._limits = limits
        self._count = count

    async def _read(self, ref: TreeRef) -> tuple[Tree, tuple[Branch, ...]]:
        _, meta, branches, stale = await self._call(ref, "read", read_only=True)
        found = [branch_of(json.loads(text)) for text in branches[1::2]]
        return replace(tree_of(ref, meta), stale_count=stale), tuple(sorted(found, key=lambda b: b.order))

    async def _index(self, ref: TreeRef, name: bytes, *, made: bool = False) -> None:
        """Let the tenant's index have a tree; whoever watches by label hears of one that it did not have."""
        if made:  # told first: one that is only in the index is not told by a repeated request
            await self._notice(ref, 1)
        added = await self._store.command("ZADD", keys.tree_index(ref.tenant), 0, name)
        if added and not made:
            await self._notice(ref, 1)

    async def _notice(self, ref: TreeRef, revision: int) -> None:
        """Tell whoever watches by label to look at a tree."""
        stream = keys.tree_notices(ref.tenant)
        await asyncio.gather(
            self._store.command("XADD", stream, "MAXLEN", "~", NOTICES_MAX, "*", "t", ref.tree, "r", revision),
            self._store.command("PEXPIRE", stream, _NOTICES_KEPT_MS),
        )

    async def _replayed(self, ref: TreeRef, request: Request) -> dict[str, Any] | None:
        """What a write answered to this request before."""
        if not request.request_id:
            return None
        answer = await self._call(ref, "replay", self._limits.events, self._limits.replays, *identity(request))
        if len(answer) == 1:
            return None
        said: dict[str, Any] = json.loads(answer[1])
        return said

    async def _write(self, ref: TreeRef, function: str, request: Request, *arguments: Arg) -> dict[str, Any]:
        answer = await self._write_answer(ref, function, request, *arguments)
        self._added(ref, answer)
        return await self._settled(ref, said_of(ref, answer))

    async def _write_answer(self, ref: TreeRef, function: str, request: Request, *arguments: Arg) -> list[Any]:
        """What a write answers; one under a lease is another function, which takes the token last."""
        lease: tuple[Arg, ...] = ()
        if request.lease_token:
            function, lease = f"{function}_leased", (request.lease_token,)
        kept = (self._limits.events, self._limits.replays)
        return await self._answer(ref, function, *kept, *identity(request), *arguments, *lease)

    async def _settled(self, ref: TreeRef, said: dict[str, Any]) -> dict[str, Any]:
        """What a commit answers, once every mark that it leads to was spread."""
        if said.get("unsettled"):
            await self._settle(ref)
        return said

    async def _settle(self, ref: TreeRef) -> None:
        while not (await self._call(ref, "settle"))[1]:
            pass

    def _added(self, ref: TreeRef, answer: Sequence[Any]) -> None:
        """Count what a commit added; an answer that repeats an older one says nothing about it."""
        if answer[0] == b"OK" and len(answer) > 2:
            self._count(ref.tenant, Usage(0, answer[2], answer[3]))

    async def _call(self, ref: TreeRef, function: str, *arguments: Arg, read_only: bool = False) -> list[Any]:
        return checked(ref, await self._answer(ref, function, *arguments, read_only=read_only))

    async def _answer(self, ref: TreeRef, function: str, *arguments: Arg, read_only: bool = False) -> list[Any]:
        meta = keys.tree(ref.tenant, ref.tree, "meta")
        answer: list[Any] = await self._store.call(MEMORY_FUNCTIONS, function, [meta], arguments, read_only=read_only)
        return answer


def checked(ref: TreeRef, answer: list[Any]) -> list[Any]:
    """`answer`, if it is no refusal."""
    if answer[0] != b"OK":
        raise refusal(ref, *(part.decode() if isinstance(part, bytes) else str(part) for part in answer))
    return answer


def said_of(ref: TreeRef, answer: list[Any]) -> dict[str, Any]:
    """The JSON that a commit answers."""
    said: dict[str, Any] = json.loads(checked(ref, answer)[1].decode())
    return said


def identity(request: Request) -> tuple[str, str]:
    """A request as arguments."""
    return request.request_id, request.digest


def step_arguments(step: Step, tokens: int, digest: str, record: bytes, chained: bytes) -> list[Arg]:
    """A step as arguments; without `chained`, its content hash, it is planned as one that exists."""
    related = " ".join(map(str, step.related_node_ids))
    head: list[Arg] = [step.client_step_id, digest, int(step.mergeable), tokens, int(not step.harmless), related]
    written: list[Arg] = [record, chained.hex(), blob_of(step)] if chained else [b"", b"", b""]
    references = references_json(step.references, declared=True) if step.references else ""
    waits = (int(step.wait is not None), step.resolves)
    return [*head, *written, references, int(step.relation is Relation.REPLACE), *waits]
