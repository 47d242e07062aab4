"""Leases on branches in memory: the twin of `leases_redis`."""

from __future__ import annotations

from dataclasses import replace

from katsura.domain.trees import Branch
from katsura.state.contents import TreeRef
from katsura.state.twin_tree import TwinForest, lease_lost


class TwinLeases(TwinForest):
    """The part of the twin that leases branches."""

    async def lease(self, ref: TreeRef, branch: str, holder: str, lease_ms: int) -> Branch:
        """Take a branch, under a token higher than any before."""
        state = self._state(ref)
        found = state.writable(branch)
        if found.lease_holder != holder:
            state.guard(found, 0)
        state.claims += 1
        taken = replace(found, lease_token=state.claims, lease_holder=holder, lease_end_ms=self._tick() + lease_ms)
        state.branches[found.name] = taken
        return taken

    async def renew_lease(self, ref: TreeRef, branch: str, token: int, lease_ms: int) -> Branch:
        """Hold it longer."""
        state = self._state(ref)
        found = state.guard(state.writable(branch), token or -1)
        state.branches[found.name] = replace(found, lease_end_ms=self._tick() + lease_ms)
        return state.branches[found.name]

    async def release_lease(self, ref: TreeRef, branch: str, token: int) -> Branch:
        """Give it back."""
        state = self._state(ref)
        found = state.writable(branch)
        if token != found.lease_token or not token:
            raise lease_lost(ref, found)
        state.branches[found.name] = replace(found, lease_holder="", lease_end_ms=0)
        return state.branches[found.name]
