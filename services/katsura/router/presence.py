"""A router's own lease: how others find it, and how it learns that a later life has taken its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from katsura.domain.errors import ConflictError, TemporaryError
from katsura.domain.leases import RouterLease
from katsura.state.hints import HEARTBEAT_S, HintStore, Role
from katsura.telemetry import log

_LOG = log.get(__name__)


async def keep_lease(store: HintStore, lease: Callable[[], RouterLease]) -> None:
    """Put the lease at every heartbeat until cancelled. Raises ConflictError (LEASE_LOST): this life is over."""
    while True:
        try:
            await store.put_router(lease())
        except ConflictError:
            raise
        except TemporaryError as error:
            _LOG.debug("the lease was not refreshed", why=error.message)
        await asyncio.sleep(HEARTBEAT_S)


async def drop_lease(store: HintStore, lease: RouterLease) -> None:
    """Give the lease back at a clean end, if the store can be reached."""
    try:
        await store.drop_lease(Role.ROUTER, lease.instance_id, lease.incarnation)
    except TemporaryError as error:
        _LOG.debug("the lease ends by itself", why=error.message)
