"""Quotas of tenants: whether a call may begin, by what it would add to sums that are about a second old.

Every tree counts itself exactly (`state.usage`). What the processes add together is settled once a second, so a tenant
may pass a quota by what was written since, and by the calls under way. What a call would add is told by its message:
its nodes, and its size for the bytes that it leaves behind, which are about as many. A refusal is never founded on an
old sum: before it, every tree is counted anew, at most once a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from katsura.domain.clock import Clock
from katsura.domain.errors import KatsuraError, Reason, ResourceExhaustedError
from katsura.domain.ids import TenantId
from katsura.domain.usage import Counted, Quotas, Usage
from katsura.state.usage import Settled, UsageStore
from katsura.telemetry import log

_LOG = log.get(__name__)
_SETTLE_EVERY_S: Final = 1.0
_RECOUNT_EVERY_S: Final = 60.0
_MINUTE_MS: Final = 60_000
_ADDS: Final[Mapping[str, tuple[str, ...]]] = {
    "CreateTree": ("trees",),
    "ImportTree": ("trees", "nodes", "bytes"),
    "Grow": ("nodes", "bytes"),
    "Merge": ("nodes", "bytes"),
    "SetSlots": ("nodes", "bytes"),
    "PutAttachments": ("bytes",),
    "PutBlock": ("bytes",),
}
"""Calls that may be refused for what they add. Going back, compressing and erasing stay possible."""
_NODES: Final[Mapping[str, str]] = {"Grow": "steps", "Merge": "pick", "SetSlots": "writes"}
"""Fields of their requests that become a node each."""
_FREE: Final = ("GetUsage", "GetTreeUsage", "GrowStream")
"""Calls that count as no request: who is refused may ask why, and each request of a stream is a Grow."""


@dataclass(slots=True)
class _Account:
    """What this process knows of a tenant: the last settled sums, and what it has counted since."""

    added: Usage = field(default_factory=Usage)
    requests: int = 0
    minute: int = 0
    settled: Settled | None = None
    settled_s: float = 0.0
    recounted_s: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Meter:
    """Counts and admits (`rpc.interceptor.Admission`).

    Args:
        defaults: quotas of tenants that have none of their own.
    """

    def __init__(self, store: UsageStore, defaults: Quotas, clock: Clock) -> None:
        self._store = store
        self._defaults = defaults
        self._clock = clock
        self._accounts: dict[TenantId, _Account] = {}
        self._settling: set[asyncio.Task[None]] = set()

    def count(self, tenant: TenantId, added: Usage) -> None:
        """Note what a commit added."""
        account = self._accounts.setdefault(tenant, _Account())
        account.added += added

    async def admit(self, method: str, tenant: TenantId, request: Any = None) -> None:
        """Count a request, and refuse it where it would pass a quota that it adds to.

        Raises:
            ResourceExhaustedError: QUOTA_EXCEEDED, with metadata "quota", "used" and "limit".
        """
        account = self._accounts.setdefault(tenant, _Account())
        if method in _FREE:
            return
        minute = self._clock.wall_ms() // _MINUTE_MS
        if account.settled is None or account.minute != minute:
            await self._settle(tenant, account)
        elif self._clock.monotonic_s() - account.settled_s >= _SETTLE_EVERY_S and not account.lock.locked():
            self._settle_later(tenant, account)
        settled = account.settled
        assert settled is not None, "settling sets it"
        quotas = settled.quotas or self._defaults
        requests = settled.requests + account.requests
        if 0 < quotas.requests_per_minute <= requests:
            raise _refusal("requests_per_minute", requests, 1, quotas.requests_per_minute, self._minute_left_s())
        account.requests += 1
        for name in _ADDS.get(method, ()):
            if getattr(quotas, name):
                await self._check(tenant, account, name, _added(method, name, request), quotas)

    async def fits(self, tenant: TenantId, adds: Usage) -> None:
        """Refuse what would pass a quota, without counting a request. Raises as `admit` does."""
        account = self._accounts.setdefault(tenant, _Account())
        if account.settled is None:
            await self._settle(tenant, account)
        quotas = (account.settled.quotas if account.settled else None) or self._defaults
        for name in ("nodes", "bytes"):
            await self._check(tenant, account, name, getattr(adds, name), quotas)

    async def usage(self, tenant: TenantId, recount: bool) -> tuple[Settled, Quotas, Counted | None]:
        """The sums now, the quotas that hold, and with `recount` what each agent took."""
        account = self._accounts.setdefault(tenant, _Account())
        counted = await self._recount(tenant, account) if recount else None
        await self._settle(tenant, account)
        assert account.settled is not None, "settling sets it"
        return account.settled, account.settled.quotas or self._defaults, counted

    async def close(self) -> None:
        """Settle what is left."""
        await asyncio.gather(*self._settling)
        for tenant, account in self._accounts.items():
            if account.added != Usage() or account.requests:
                await self._try_to_settle(tenant, account)

    async def _check(self, tenant: TenantId, account: _Account, name: str, adds: int, quotas: Quotas) -> None:
        limit: int = getattr(quotas, name)
        if not limit or _used(account, name) + adds <= limit:
            return
        if self._clock.monotonic_s() - account.recounted_s >= _RECOUNT_EVERY_S:
            await self._recount(tenant, account)
            await self._settle(tenant, account)
        if (used := _used(account, name)) + adds > limit:
            raise _refusal(name, used, adds, limit, None)

    async def _recount(self, tenant: TenantId, account: _Account) -> Counted:
        async with account.lock:
            before = account.added
            counted = await self._store.recount(tenant)
            # What was written before the count is in it; what was written meanwhile may be in it twice, for a minute.
            account.added = _less(account.added, before)
            account.recounted_s = self._clock.monotonic_s()
            return counted

    async def _settle(self, tenant: TenantId, account: _Account) -> None:
        async with account.lock:
            added, requests, minute = account.added, account.requests, account.minute
            now = self._clock.wall_ms() // _MINUTE_MS
            account.added, account.requests, account.minute = Usage(), 0, now
            try:
                account.settled = await self._store.settle(tenant, added, requests if minute == now else 0, now)
            except BaseException:
                account.added += added
                raise
            account.settled_s = self._clock.monotonic_s()

    def _settle_later(self, tenant: TenantId, account: _Account) -> None:
        task = asyncio.get_running_loop().create_task(self._try_to_settle(tenant, account))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _try_to_settle(self, tenant: TenantId, account: _Account) -> None:
        try:
            await self._settle(tenant, account)
        except KatsuraError as error:
            _LOG.warning("usage could not be settled; it is kept", error=error.message)

    def _minute_left_s(self) -> float:
        return (_MINUTE_MS - self._clock.wall_ms() % _MINUTE_MS) / 1000


def _added(method: str, name: str, request: Any) -> int:
    """What a call would add at least: nodes, or bytes by the size of its message."""
    if request is None or name == "trees":
        return 1
    return int(request.ByteSize()) if name == "bytes" else max(1, len(getattr(request, _NODES[method])))


def _used(account: _Account, name: str) -> int:
    settled: int = getattr(account.settled.usage, name) if account.settled else 0
    added: int = getattr(account.added, name)
    return settled + added


def _less(usage: Usage, other: Usage) -> Usage:
    return usage + Usage(-other.trees, -other.nodes, -other.bytes, -other.blocks)


def _refusal(quota: str, used: int, adds: int, limit: int, retry_after_s: float | None) -> ResourceExhaustedError:
    what = "wait" if quota == "requests_per_minute" else "delete trees, or ask for more"
    more = f", and this adds {adds}" if adds > 1 else ""
    return ResourceExhaustedError(
        f"quota {quota}: {used} of {limit} are used{more}; {what}",
        reason=Reason.QUOTA_EXCEEDED,
        metadata={"quota": quota, "used": str(used), "limit": str(limit), "adds": str(adds)},
        retry_after_s=retry_after_s,
    )
