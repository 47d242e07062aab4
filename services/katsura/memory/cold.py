"""Moving trees out that nobody has needed for long."""

from __future__ import annotations

from typing import Final

from katsura.domain.clock import Clock
from katsura.domain.errors import NotFoundError
from katsura.domain.trees import Tree
from katsura.memory.upkeep import every_tree
from katsura.state.tenants import TenantStore
from katsura.state.trees import TreeRef, TreeStore
from katsura.telemetry import log

_LOG = log.get(__name__)
_TREES_PER_SWEEP: Final = 256


class Sweeper:
    """Looks through the trees of all tenants. Several processes may: a tree is moved once.

    Args:
        after_s: what was neither written nor brought back for so long is moved.
    """

    def __init__(self, trees: TreeStore, tenants: TenantStore, clock: Clock, after_s: float) -> None:
        self._trees = trees
        self._tenants = tenants
        self._clock = clock
        self._after_ms = after_s * 1000

    async def turn(self) -> None:
        """One sweep, and a word about it."""
        if moved := await self.sweep():
            _LOG.info("moved cold trees out", trees=moved)

    async def sweep(self) -> int:
        """Move what is due, at most 256 trees; how many."""
        moved = 0
        async for ref, tree in every_tree(self._trees, self._tenants):
            moved += await self._move(ref) if self._due(tree) else 0
            if moved == _TREES_PER_SWEEP:
                break
        return moved

    def _due(self, tree: Tree) -> bool:
        return not tree.cold and not tree.policy.ttl_s and self._clock.wall_ms() - tree.update_ms >= self._after_ms

    async def _move(self, ref: TreeRef) -> int:
        try:
            return int(await self._trees.freeze(ref))
        except NotFoundError:
            return 0  # dropped meanwhile
