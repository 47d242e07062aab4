"""Moving trees out that nobody has needed for long."""

from __future__ import annotations

import asyncio
from typing import Final

from katsura.domain.clock import Clock
from katsura.domain.errors import KatsuraError, NotFoundError
from katsura.domain.ids import TenantId
from katsura.domain.trees import Tree
from katsura.state.tenants import TenantStore
from katsura.state.trees import TreeRef, TreeStore
from katsura.telemetry import log

_LOG = log.get(__name__)
_PAGE: Final = 100
_TREES_PER_SWEEP: Final = 256


class Sweeper:
    """Looks through the trees of all tenants every `every_s` seconds. Several processes may: a tree is moved once.

    Args:
        after_s: what was neither written nor brought back for so long is moved.
    """

    def __init__(
        self, trees: TreeStore, tenants: TenantStore, clock: Clock, after_s: float, every_s: float = 300.0
    ) -> None:
        self._trees = trees
        self._tenants = tenants
        self._clock = clock
        self._after_ms = after_s * 1000
        self._every_s = every_s

    async def run(self) -> None:
        """Sweep until cancelled. A store that is away is tried again at the next turn."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                moved = await self.sweep()
            except KatsuraError as error:
                _LOG.warning("cold trees could not be moved; trying again later", error=error.message)
                continue
            if moved:
                _LOG.info("moved cold trees out", trees=moved)

    async def sweep(self) -> int:
        """Move what is due, at most 256 trees; how many."""
        moved = 0
        for tenant in await self._tenants.list_tenants():
            token = ""
            while moved < _TREES_PER_SWEEP:
                trees, token = await self._trees.trees(tenant, _PAGE, token)
                for tree in trees:
                    moved += await self._move(tenant, tree) if self._due(tree) and moved < _TREES_PER_SWEEP else 0
                if not token:
                    break
        return moved

    def _due(self, tree: Tree) -> bool:
        return not tree.cold and not tree.policy.ttl_s and self._clock.wall_ms() - tree.update_ms >= self._after_ms

    async def _move(self, tenant: TenantId, tree: Tree) -> int:
        try:
            return int(await self._trees.freeze(TreeRef(tenant, tree.tree_id)))
        except NotFoundError:
            return 0  # dropped meanwhile
