"""Sums of usage and quotas in Valkey or Redis: plain counters, each harmless to lose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from katsura.domain.ids import TenantId
from katsura.domain.trees import NO_COST, Step
from katsura.domain.usage import Counted, Quotas, Usage
from katsura.state import keys
from katsura.state.connect import Store, translated
from katsura.state.usage import Settled, charges_from

_PAGE: Final = 200
_REQUESTS_KEPT_S: Final = 180
_SUMS: Final = ("trees", "nodes", "bytes", "blocks")
_QUOTAS: Final = ("quota_trees", "quota_nodes", "quota_bytes", "quota_requests_per_minute")


class RedisUsageStore:
    """Sums and quotas of all tenants in one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def settle(self, tenant: TenantId, added: Usage, requests: int, minute: int) -> Settled:
        """Add what a process has counted."""
        counter = keys.requests(tenant, minute)
        pipeline = self._store.client.pipeline(transaction=False)
        for name in _SUMS:
            pipeline.hincrby(keys.usage(tenant), name, getattr(added, name))
        pipeline.incrby(counter, requests)
        pipeline.expire(counter, _REQUESTS_KEPT_S)
        pipeline.hmget(keys.tenant(tenant), *_QUOTAS)
        with translated(self._store.url):
            *sums, made, _, quotas = await pipeline.execute()
        own = Quotas(*(int(value or 0) for value in quotas)) if any(v is not None for v in quotas) else None
        return Settled(Usage(*(max(0, found) for found in sums)), made, own)

    async def recount(self, tenant: TenantId) -> Counted:
        """Count every tree of a tenant, and its blocks."""
        total, after = Counted(await self._blocks(tenant)), b"-"
        while True:
            with translated(self._store.url):
                found: Any = await self._store.client.zrangebylex(
                    keys.tree_index(tenant), after, b"+", start=0, num=_PAGE
                )
            names = [bytes(name) for name in found]
            for counted in await self._count(tenant, [name.decode().partition(":")[2] for name in names]):
                total += counted
            if len(names) < _PAGE:
                break
            after = b"(" + names[-1]
        sums: Mapping[Any, int] = {name: getattr(total.usage, name) for name in _SUMS}
        with translated(self._store.url):
            await self._store.client.hset(keys.usage(tenant), mapping=sums)
        return total

    async def set_quotas(self, tenant: TenantId, quotas: Quotas | None) -> None:
        """Give a tenant quotas of its own."""
        name = keys.tenant(tenant)
        with translated(self._store.url):
            if quotas is None:
                await self._store.client.hdel(name, *_QUOTAS)
            else:
                mapping: Mapping[Any, int] = {field: getattr(quotas, field[6:]) for field in _QUOTAS}
                await self._store.client.hset(name, mapping=mapping)

    async def _blocks(self, tenant: TenantId) -> Usage:
        """What the blocks of all owners take."""
        with translated(self._store.url):
            found: Any = await self._store.client.smembers(keys.block_owners(tenant))
        pipeline = self._store.client.pipeline(transaction=False)
        for scope, _, owner in (name.decode().partition(":") for name in found):
            pipeline.get(keys.blocks(tenant, scope, owner, "bytes"))
            pipeline.zcard(keys.blocks(tenant, scope, owner, "names"))
        with translated(self._store.url):
            answers = await pipeline.execute() if found else []
        return Usage(bytes=sum(int(size or 0) for size in answers[::2]), blocks=sum(answers[1::2]))

    async def _count(self, tenant: TenantId, trees: Sequence[str]) -> list[Counted]:
        pipeline = self._store.client.pipeline(transaction=False)
        for tree in trees:
            pipeline.hmget(keys.tree(tenant, tree, "meta"), "revision", "next", "bytes")
            pipeline.hgetall(keys.tree(tenant, tree, "usage"))
        with translated(self._store.url):
            answers = await pipeline.execute() if trees else []
        return [
            counted_of(int(nodes), int(size or 0), charges)
            for (revision, nodes, size), charges in zip(answers[::2], answers[1::2], strict=True)
            if revision is not None
        ]


def counted_of(nodes: int, size: int, charges: Mapping[bytes, bytes]) -> Counted:
    """What one tree counted."""
    flat = {name.decode(): int(count) for name, count in charges.items()}
    return Counted(Usage(1, nodes, max(0, size)), charges_from(flat))


def charges_of(steps: Sequence[Step]) -> str:
    """Whom steps are charged to, as Grow takes it: empty where none names an agent or a cost."""
    charges = [_charge(step) for step in steps]
    return json.dumps(charges, separators=(",", ":")) if any(charges) else ""


def _charge(step: Step) -> tuple[str | int, ...] | None:
    c = step.cost
    if not step.agent_id and (c is NO_COST or c == NO_COST):
        return None
    return step.agent_id, c.prompt_tokens, c.cached_tokens, c.completion_tokens, c.micros
