"""Leases on branches, as the store sees them. `TreeStore` (trees.py) includes this.

A write under a lease carries its token in the `Request`. It is compared with the branch's newest one in the call that
writes: in Grow, SetSlots, Merge and Revise, never where summaries or verdicts are written.
"""

from __future__ import annotations

from typing import Protocol

from katsura.domain.errors import ConflictError, Reason
from katsura.domain.trees import Branch
from katsura.state.contents import TreeRef


class TreeLeases(Protocol):
    """The part of a tree store that leases branches. None of it is a commit. Errors: see `katsura.state.trees`."""

    async def lease(self, ref: TreeRef, branch: str, holder: str, lease_ms: int) -> Branch:
        """Take a branch, under a token higher than any before. Raises LEASE_HELD where somebody else has it."""
        ...

    async def renew_lease(self, ref: TreeRef, branch: str, token: int, lease_ms: int) -> Branch:
        """Hold it longer, also where the lease has ended. Raises LEASE_LOST where the token is not the newest."""
        ...

    async def release_lease(self, ref: TreeRef, branch: str, token: int) -> Branch:
        """Give it back; doing so twice is doing so once. Raises LEASE_LOST where the token is not the newest."""
        ...


def lease_refusal(held: bool, head: str, branch: str, holder: str) -> ConflictError:
    """The error where another has a branch (`held`), or a token is not its newest; an empty `holder` is nobody."""
    if held:
        text = f"branch {branch!r} is leased by {holder!r}, its head is {head}; wait, or fork it"
    else:
        now = f"{holder!r} has it" if holder else "nobody has it"
        text = f"the lease on branch {branch!r} is not the newest: {now}, its head is {head}; take it anew"
    reason = Reason.LEASE_HELD if held else Reason.LEASE_LOST
    return ConflictError(
        text, reason=reason, field="lease_token", metadata={"holder": holder, "branch": branch, "head": head}
    )
