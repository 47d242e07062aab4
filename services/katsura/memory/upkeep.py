"""What a memory process does beside serving: going over the trees of all tenants, turn by turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from katsura.domain.errors import KatsuraError
from katsura.domain.trees import Tree
from katsura.state.tenants import TenantStore
from katsura.state.trees import TreeRef, TreeStore
from katsura.telemetry import log

_LOG = log.get(__name__)
_PAGE: Final = 100


async def every_tree(trees: TreeStore, tenants: TenantStore, first: int = 0) -> AsyncIterator[tuple[TreeRef, Tree]]:
    """The trees of all tenants, newest first, from the `first` tenant on (counted in a circle)."""
    found = await tenants.list_tenants()
    start = first % max(1, len(found))
    for tenant in (*found[start:], *found[:start]):
        token, more = "", True
        while more:
            page, token = await trees.trees(tenant, _PAGE, token)
            for tree in page:
                yield TreeRef(tenant, tree.tree_id), tree
            more = bool(token)


async def repeat(turn: Callable[[], Awaitable[None]], every_s: float) -> None:
    """One turn every `every_s` seconds until cancelled. A store that is away is tried again at the next one."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await turn()
        except KatsuraError as error:
            _LOG.warning("a turn of upkeep broke off; trying again later", error=error.message)
