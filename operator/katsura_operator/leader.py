"""Holds the election: renews the lease, says whether this process may write, and ends it when it must not.

kubernetes_asyncio brings an election of its own; it cannot say until when a write is safe, and that is what `fence`
needs: a process that slept through its lease must not write when it wakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from katsura.domain.errors import AlreadyExistsError, ConflictError, KatsuraError, UnavailableError
from katsura.telemetry import log
from katsura_operator.core.election import RENEW_S, Standing, claim, may_take, observe, released, renewed
from katsura_operator.core.objects import LEASE
from katsura_operator.kube import Kube

LEASE_NAME: Final = "katsura-operator"
_RETURNS_MAX: Final = 3
_LOG = log.get(__name__)


class LostLeadershipError(UnavailableError):
    """This process may not write any more."""


class Leader:
    """One candidate. `kube` must be a door of its own, without a fence: the lease is what the fence is made of."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kube, self._namespace, self._identity = kube, namespace, identity
        self._clock, self._sleep = clock, sleep
        self._standing = Standing()
        self.known = False

    @property
    def leads(self) -> bool:
        """Whether a write may start now."""
        return self._standing.may_write(self._clock())

    def fence(self) -> None:
        """Raise LostLeadershipError unless a write may start now."""
        if not self.leads:
            raise LostLeadershipError("another operator may hold the lease by now; this one stops writing")

    async def step(self) -> bool:
        """Look at the lease and take or renew it where that is ours to do; whether this process leads."""
        now_s = self._clock()
        try:
            lease = await self._kube.get(LEASE, self._namespace, LEASE_NAME)
            self.known = True
            self._standing = observe(self._standing, lease, now_s)
            if may_take(self._standing, lease, self._identity, now_s):
                body = claim(lease, self._namespace, LEASE_NAME, self._identity, _micro_time())
                made = await (self._kube.create(body) if lease is None else self._kube.replace(body))
                self._standing = renewed(str(made["metadata"]["resourceVersion"]), now_s)
            else:
                self._standing = Standing(self._standing.seen_version, self._standing.seen_at_s)
        except (ConflictError, AlreadyExistsError):
            self._standing = Standing()  # somebody was faster
        except KatsuraError as error:
            _LOG.warning("the lease could not be renewed", why=error.message)
        return self.leads

    async def win(self) -> None:
        """Wait until this process leads."""
        while True:
            if await self.step():
                break
            await self._sleep(RENEW_S)
        _LOG.info("leads", identity=self._identity)

    async def hold(self) -> None:
        """Renew until the lease is lost, then raise LostLeadershipError."""
        while True:
            await self._sleep(RENEW_S)
            led = False
            with contextlib.suppress(TimeoutError):
                # An API server that is silent, not away, would be waited for longer.
                async with asyncio.timeout(self._standing.writes_until_s - self._clock()):
                    led = await self.step()
            if not led:
                raise LostLeadershipError("the lease is lost; this process ends and starts anew as a candidate")

    async def give_back(self) -> None:
        """Free the lease at an orderly end."""
        if not self.leads:
            return
        self._standing = Standing()
        for _ in range(_RETURNS_MAX):
            try:
                lease = await self._kube.get(LEASE, self._namespace, LEASE_NAME)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    await self._kube.replace(released(lease))
                return
            except ConflictError:
                continue  # with a renewal of ours that was under way when we were told to stop
            except KatsuraError:
                return


def _micro_time() -> str:
    """Now, to the microsecond: a renewal that wrote what stands already would change nothing and count for nothing."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
