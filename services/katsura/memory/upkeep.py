"""What a memory process does beside serving: going over the trees of all tenants, turn by turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

from katsura.domain.errors import KatsuraError
from katsura.domain.ids import TenantId
from katsura.domain.retention import Retention
from katsura.domain.trees import Durability, Tree
from katsura.state.connect import Store
from katsura.state.tenants import TenantStore
from katsura.state.trees import TreeRef, TreeStore
from katsura.telemetry import log

_LOG = log.get(__name__)
_PAGE: Final = 100

T = TypeVar("T")


async def every_tree(trees: TreeStore, tenants: TenantStore) -> AsyncIterator[tuple[TreeRef, Tree]]:
    """The trees of all tenants, cold ones included, newest first."""
    async for tenant, tree in _paged(tenants, trees.trees, 0):
        yield TreeRef(tenant, tree.tree_id), tree


async def every_retention(
    trees: TreeStore, tenants: TenantStore, first: int
) -> AsyncIterator[tuple[TreeRef, Retention | None, bool]]:
    """What each tree keeps that is in the store, and whether its steps refer to other trees, from the `first` tenant on
    (counted in a circle)."""
    async for tenant, (tree, retention, foreign) in _paged(tenants, trees.retentions, first):
        yield TreeRef(tenant, tree), retention, foreign


async def _paged(
    tenants: TenantStore, page_of: Callable[[TenantId, int, str], Awaitable[tuple[tuple[T, ...], str]]], first: int
) -> AsyncIterator[tuple[TenantId, T]]:
    found = await tenants.list_tenants()
    start = first % max(1, len(found))
    for tenant in (*found[start:], *found[:start]):
        token, more = "", True
        while more:
            page, token = await page_of(tenant, _PAGE, token)
            for item in page:
                yield tenant, item
            more = bool(token)


async def repeat(turn: Callable[[], Awaitable[None]], every_s: float) -> None:
    """One turn every `every_s` seconds until cancelled. A store that is away is tried again at the next one."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await turn()
        except KatsuraError as error:
            _LOG.warning("a turn of upkeep broke off; trying again later", error=error.message)


async def hold_to(store: Store, asked: Durability, every_s: float) -> None:
    """Look at the server's settings every `every_s` seconds: they change under way, and with restarts of the server.

    Raises:
        FailedPreconditionError: they promise less than `asked`; nothing more may be acknowledged.
    """
    while True:
        await asyncio.sleep(every_s)
        with contextlib.suppress(KatsuraError):  # a server that is away is what callers are told
            await store.refresh()
        store.require(asked)
