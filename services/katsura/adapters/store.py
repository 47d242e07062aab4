"""LangGraph's long-term store on a memory service's blocks: named values with history, search by words, time to live.

    graph = builder.compile(checkpointer=KatsuraSaver(katsura), store=KatsuraStore(katsura))

Values are JSON. `query` finds the items that say all of its words (there is no embedding); reading does not prolong a
time to live; deleting forgets the history too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC
from itertools import islice
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final
from urllib.parse import quote, unquote

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
)

from katsura.api.memory.v1 import block_service_pb2 as pb
from katsura.domain.errors import InvalidArgumentError, NotFoundError
from katsura.sdk.blocks import TENANT
from katsura.sdk.sync import Katsura

Namespace = tuple[str, ...]

_ROOT: Final = "langgraph"
_KEY: Final = "="
"""Begins the last part of a name; quoted parts never hold it."""
_PAGE: Final = 200
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$eq": eq, "$ne": ne, "$gt": gt, "$gte": ge, "$lt": lt, "$lte": le,
}  # fmt: skip


class KatsuraStore(BaseStore):
    """Items of one owner; both the sync and the async face, in any event loop.

    Args:
        katsura: a connected client; close it after the store's last call.
        owner: whose blocks they are: `katsura.sdk.blocks.TENANT`, `of_user(...)` or `of_agent(...)`.
        ttl: LangGraph's defaults for the time to live, in minutes.
    """

    supports_ttl = True

    def __init__(self, katsura: Katsura, *, owner: pb.BlockOwner = TENANT, ttl: TTLConfig | None = None) -> None:
        self._katsura = katsura
        self._owner = owner
        self.ttl_config = ttl

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Carry out operations: reads see what was there before the batch; of two puts of one key the last counts."""
        return self._katsura.run(self._batch(list(ops)))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch`, without blocking."""
        return await asyncio.wrap_future(self._katsura.start(self._batch(list(ops))))

    async def _batch(self, ops: Sequence[Op]) -> list[Result]:
        results: list[Result] = list(await asyncio.gather(*map(self._read, ops)))
        puts = {name_of(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        await asyncio.gather(*(self._put(name, op) for name, op in puts.items()))
        return results

    async def _read(self, op: Op) -> Result:
        match op:
            case GetOp():
                return await self._get(op)
            case SearchOp():
                return await self._search(op)
            case ListNamespacesOp():
                return await self._namespaces(op)
            case _:
                return None

    async def _get(self, op: GetOp) -> Item | None:
        try:
            block = await self._katsura.blocks.get(self._owner, name_of(op.namespace, op.key))
        except NotFoundError:
            return None
        return Item(**_fields(block))

    async def _put(self, name: str, op: PutOp) -> None:
        if op.value is None:
            await self._katsura.blocks.delete(self._owner, name, forget=True)
            return
        value = json.dumps(op.value, ensure_ascii=False, separators=(",", ":")).encode()
        ttl_s = max(1, round(op.ttl * 60)) if op.ttl else 0
        await self._katsura.blocks.put(self._owner, name, value, media_type="application/json", ttl_s=ttl_s)

    async def _search(self, op: SearchOp) -> list[SearchItem]:
        found: list[SearchItem] = []
        async for block in self._blocks(op.namespace_prefix, op.query or ""):
            if len(found) >= op.offset + op.limit:
                break
            item = SearchItem(**_fields(block))
            if all(matches(item.value.get(name), wanted) for name, wanted in (op.filter or {}).items()):
                found.append(item)
        return found[op.offset : op.offset + op.limit]

    async def _namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        conditions = op.match_conditions or ()
        plain = [c.path for c in conditions if c.match_type == "prefix" and "*" not in c.path]
        found: dict[Namespace, None] = {}
        async for block in self._blocks(plain[0] if plain else ()):
            namespace, _ = place_of(block.name)
            if all(_fits(condition, namespace) for condition in conditions):
                found[namespace[: op.max_depth]] = None
        return list(islice(sorted(found), op.offset, op.offset + op.limit))

    async def _blocks(self, prefix: Namespace, query: str = "") -> AsyncIterator[pb.Block]:
        token = ""
        while True:
            page = await self._katsura.blocks.list_page(
                self._owner, prefix=_folder(prefix), query=query, page_size=_PAGE, page_token=token
            )
            for block in page.blocks:
                yield block
            token = page.next_page_token
            if not token:
                return


def name_of(namespace: Namespace, key: str) -> str:
    """The block's name of an item: a folder for each part of its namespace."""
    return f"{_folder(namespace)}{_KEY}{quote(key, safe='')}"


def place_of(name: str) -> tuple[Namespace, str]:
    """Namespace and key of a block's name."""
    *folders, key = name.split("/")[1:]
    return tuple(map(unquote, folders)), unquote(key[len(_KEY) :])


def matches(value: Any, wanted: Any) -> bool:
    """Whether a value fits a filter: equal, or every operator ($eq $ne $gt $gte $lt $lte) holds.

    Raises:
        InvalidArgumentError: there is no such operator.
    """
    if not isinstance(wanted, dict) or not any(str(name).startswith("$") for name in wanted):
        return bool(value == wanted)
    for name, other in wanted.items():
        if name not in _COMPARE:
            raise InvalidArgumentError(
                f"filter: there is no operator {name!r}; there are {', '.join(_COMPARE)}", field="filter"
            )
        if name not in ("$eq", "$ne") and (value is None or isinstance(value, str) != isinstance(other, str)):
            return False
        if not _COMPARE[name](value, other):
            return False
    return True


def _folder(namespace: Namespace) -> str:
    return "".join(f"{quote(part, safe='')}/" for part in (_ROOT, *namespace))


def _fields(block: pb.Block) -> dict[str, Any]:
    namespace, key = place_of(block.name)
    return {
        "namespace": namespace,
        "key": key,
        "value": json.loads(block.value),
        "created_at": block.create_time.ToDatetime(tzinfo=UTC),
        "updated_at": block.update_time.ToDatetime(tzinfo=UTC),
    }


def _fits(condition: MatchCondition, namespace: Namespace) -> bool:
    size = len(condition.path)
    if size > len(namespace):
        return False
    part = namespace[:size] if condition.match_type == "prefix" else namespace[len(namespace) - size :]
    return all(wanted in ("*", found) for wanted, found in zip(condition.path, part, strict=True))
