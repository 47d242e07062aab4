"""What trees take, in memory: the twin of `usage_redis`, which counts nothing twice because it counts anew."""

from __future__ import annotations

from katsura.domain.ids import TenantId
from katsura.domain.trees import Body, Step
from katsura.domain.usage import Counted, Quotas, Usage
from katsura.state.blocks_twin import TwinBlockStore
from katsura.state.contents import TreeRef
from katsura.state.tree_records import SALT_BYTES, blob_of, extra_of, record_of
from katsura.state.twin_tree import TwinForest, TwinTree
from katsura.state.usage import Settled

_SALT = bytes(SALT_BYTES)


class TwinUsage(TwinForest):
    """The part of the twin that counts."""

    async def counted(self, ref: TreeRef) -> Counted:
        """What a tree takes, and whom its steps are charged to."""
        return _counted(self._state(ref))

    def counted_of(self, tenant: TenantId) -> Counted:
        """All trees of a tenant together."""
        trees = (_counted(state) for ref, state in self._trees.items() if ref.tenant == tenant)
        return sum(trees, start=Counted(Usage()))


class TwinUsageStore:
    """Sums and quotas of all tenants of one twin."""

    def __init__(self, trees: TwinUsage, blocks: TwinBlockStore | None = None) -> None:
        self._trees = trees
        self._blocks = blocks
        self._sums: dict[TenantId, Usage] = {}
        self._quotas: dict[TenantId, Quotas] = {}
        self._requests: dict[tuple[TenantId, int], int] = {}

    async def settle(self, tenant: TenantId, added: Usage, requests: int, minute: int) -> Settled:
        """Add what a process has counted."""
        self._sums[tenant] = self._sums.get(tenant, Usage()) + added
        made = self._requests[tenant, minute] = self._requests.get((tenant, minute), 0) + requests
        return Settled(self._sums[tenant], made, self._quotas.get(tenant))

    async def recount(self, tenant: TenantId) -> Counted:
        """Count every tree of a tenant."""
        counted = self._trees.counted_of(tenant) + Counted(self._blocks.taken(tenant) if self._blocks else Usage())
        self._sums[tenant] = counted.usage
        return counted

    async def set_quotas(self, tenant: TenantId, quotas: Quotas | None) -> None:
        """Give a tenant quotas of its own."""
        self._quotas.pop(tenant, None)
        if quotas is not None:
            self._quotas[tenant] = quotas


def _counted(state: TwinTree) -> Counted:
    size = sum(len(extra_of(item)) for extras in state.extras.values() for item in extras.values())
    size += sum(_size(node.body) for node in state.nodes.values())
    return Counted(Usage(1, len(state.nodes), size), dict(state.charges))


def _size(body: Body) -> int:
    return len(record_of(body, _SALT)) + (len(blob_of(body)) if isinstance(body, Step) else 0)
