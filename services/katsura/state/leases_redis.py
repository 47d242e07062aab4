"""Leases on branches in Valkey or Redis (functions/memory_1_tree_leases.lua)."""

from __future__ import annotations

import json

from katsura.domain.trees import Branch
from katsura.state.connect import Arg
from katsura.state.contents import TreeRef
from katsura.state.tree_calls import TreeCalls
from katsura.state.tree_replies import branch_of


class RedisLeases(TreeCalls):
    """The part of the store that leases branches."""

    async def lease(self, ref: TreeRef, branch: str, holder: str, lease_ms: int) -> Branch:
        """Take a branch, under a token higher than any before."""
        return await self._leased(ref, "lease", branch, holder, lease_ms)

    async def renew_lease(self, ref: TreeRef, branch: str, token: int, lease_ms: int) -> Branch:
        """Hold it longer."""
        return await self._leased(ref, "renew_lease", branch, token, lease_ms)

    async def release_lease(self, ref: TreeRef, branch: str, token: int) -> Branch:
        """Give it back."""
        return await self._leased(ref, "release_lease", branch, token)

    async def _leased(self, ref: TreeRef, function: str, *arguments: Arg) -> Branch:
        return branch_of(json.loads((await self._call(ref, function, *arguments))[1]))
