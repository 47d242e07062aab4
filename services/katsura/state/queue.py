"""Tasks of trees for workers outside: the store's side of claiming, renewing and giving back (domain/work.py).

`TreeStore` (trees.py) includes `TreeQueue`; finishing a task is `summarise` or `judge` with a `Fence`. Reasons of
refusal: LEASE_LOST (ConflictError) where the task is done or another claim of it is newer, and NO_WORK
(FailedPreconditionError).
"""

from __future__ import annotations

from typing import Final, Protocol

from katsura.domain.ids import TenantId
from katsura.domain.work import Fence, WorkItem, WorkKind
from katsura.state.contents import TreeRef

SEGMENT_STEPS_MAX: Final = 4096
"""Steps of the segment that one COMPRESS task covers; a longer one is summarised in parts."""


class TreeQueue(Protocol):
    """The part of a tree store that keeps tasks. A task lives with its tree and is not in its archives."""

    async def schedule(self, ref: TreeRef, kind: WorkKind, branch: str, summary: int, reason: str) -> WorkItem:
        """Ask for a summary of a branch's raw segment, or for a verdict. What waits already stays as it is; what was
        given up is taken up again. Raises NO_WORK where nothing is raw, or the summary is not PENDING."""
        ...

    async def claim(self, ref: TreeRef, kind: WorkKind, worker: str, most: int, lease_ms: int) -> tuple[WorkItem, ...]:
        """Tasks of a tree that nobody holds, or whose lease has ended; verdicts before summaries."""
        ...

    async def claim_any(
        self, tenant: TenantId, kind: WorkKind, worker: str, most: int, lease_ms: int
    ) -> tuple[tuple[TreeRef, WorkItem], ...]:
        """Tasks of a tenant's trees. Which trees have some is a repairable hint: one may be found a while late."""
        ...

    async def held(self, ref: TreeRef, fence: Fence) -> WorkItem:
        """The task, if this claim of it is the newest (else LEASE_LOST), whether or not its lease has ended."""
        ...

    async def renew(self, ref: TreeRef, fence: Fence, lease_ms: int) -> WorkItem:
        """Hold a task longer, from now on."""
        ...

    async def give_back(self, ref: TreeRef, fence: Fence, reason: str, retry_ms: int) -> WorkItem:
        """End a claim without a result; after ATTEMPTS_MAX of them the task is given up."""
        ...

    async def work(self, ref: TreeRef) -> tuple[WorkItem, ...]:
        """Every task of a tree, by name."""
        ...
