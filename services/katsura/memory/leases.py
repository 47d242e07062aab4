"""Leases on branches: one writer for a while, fenced by a token."""

from __future__ import annotations

from typing import Final

from katsura.domain.trees import Branch
from katsura.memory.core import limits
from katsura.memory.operations import ID_MAX, Operations
from katsura.state.trees import TreeRef

_DEFAULT_S: Final = 60
_MOST_S: Final = 86400
_HOLDER_BYTES_MAX: Final = 256


class Leases(Operations):
    """Taking a branch, holding it longer, giving it back."""

    async def acquire_lease(self, ref: TreeRef, branch: str, holder: str, ttl_s: int) -> Branch:
        """Take a branch; its `lease_token` goes with every write."""
        if not limits.check_text(holder, "holder", _HOLDER_BYTES_MAX):
            raise limits.refuse("holder", "it is empty; name who writes: one process, one name")
        return await self._trees.lease(ref, branch, holder, _lease_ms(ttl_s))

    async def renew_lease(self, ref: TreeRef, branch: str, token: int, ttl_s: int) -> Branch:
        """Hold a branch longer."""
        limits.check_range(token, "lease_token", 1, ID_MAX)
        return await self._trees.renew_lease(ref, branch, token, _lease_ms(ttl_s))

    async def release_lease(self, ref: TreeRef, branch: str, token: int) -> Branch:
        """Give a branch back."""
        limits.check_range(token, "lease_token", 1, ID_MAX)
        return await self._trees.release_lease(ref, branch, token)


def _lease_ms(ttl_s: int) -> int:
    return (limits.check_range(ttl_s, "ttl_s", 0, _MOST_S) or _DEFAULT_S) * 1000
