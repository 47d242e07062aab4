"""Upkeep of one tree after the other: what its retention does not keep is collected, and what its steps refer to in
other trees is looked after, a bounded number of calls a turn."""

from __future__ import annotations

from typing import Final

from katsura.domain.errors import ConflictError, NotFoundError
from katsura.domain.retention import Retention
from katsura.memory.foreign import Lookout
from katsura.memory.upkeep import every_retention
from katsura.state.tenants import TenantStore
from katsura.state.trees import TreeRef, TreeStore
from katsura.telemetry import log, metrics, names

_LOG = log.get(__name__)
_LOOKS: Final = 500
_CALLS_PER_TREE: Final = 64
_CALLS_PER_TURN: Final = 512
_LEASE_MS: Final = 60_000
_NODES = metrics.counter(names.MEMORY_COLLECTED_NODES, "Nodes whose content the service collected by itself.")
_BRANCHES = metrics.counter(names.MEMORY_COLLECTED_BRANCHES, "Abandoned branches that the service dropped by itself.")
_LOST = metrics.counter(names.MEMORY_COLLECT_LOST, "Claims to collect that another process took over.")


class Collector:
    """Collects trees of all tenants. Several processes may: each tree is claimed, and a late claim is refused.

    Args:
        worker: names the process.
        default: what trees keep that have no retention of their own; None forgets nothing of theirs.
    """

    def __init__(self, trees: TreeStore, tenants: TenantStore, worker: str, default: Retention | None = None) -> None:
        self._trees = trees
        self._tenants = tenants
        self._worker = worker
        self._default = default
        self._lookout = Lookout(trees)
        self._turns = 0

    async def turn(self) -> None:
        """Collect what is due, and look after other trees, in about 512 calls; a tree that takes more goes on in the
        next turn, and so do the trees behind it. Each turn begins at another tenant."""
        calls = _CALLS_PER_TURN
        async for ref, own, foreign in every_retention(self._trees, self._tenants, self._turns):
            keep = own or self._default
            if keep is not None:
                calls -= await self._collect(ref, keep, min(calls, _CALLS_PER_TREE))
            if foreign:
                calls -= await self._lookout.turn(ref, min(calls, _CALLS_PER_TREE))
            if calls <= 0:
                break
        self._turns += 1

    async def _collect(self, ref: TreeRef, keep: Retention, calls: int) -> int:
        """How many calls it took."""
        nodes = branches = made = 0
        try:
            token = await self._trees.claim_collecting(ref, keep, self._worker, _LEASE_MS)
            while token and made < calls:
                made += 1
                part = await self._trees.collect(ref, keep, _LOOKS, token)
                nodes, branches = nodes + len(part.nodes), branches + len(part.branches)
                if part.done:
                    break
        except NotFoundError:
            pass  # dropped, or moved out, meanwhile
        except ConflictError:
            _LOST.inc()
        if nodes or branches:
            _NODES.inc(nodes)
            _BRANCHES.inc(branches)
            _LOG.info("collected", tree_id=ref.tree, nodes=nodes, branches=branches)
        return made
