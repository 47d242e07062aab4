"""What the gateway's parts are handed: clients, stores, clock, randomness, and the tasks that outlive a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from katsura.domain.clock import Clock
from katsura.domain.errors import KatsuraError
from katsura.gateway.config import GatewayConfig
from katsura.gateway.texts import Texts
from katsura.sdk import Connection, MemoryClient, RouterClient, ShardPool
from katsura.state.responses import ResponseStore
from katsura.state.tenants import TenantStore
from katsura.telemetry import log

_LOG = log.get(__name__)


class Background:
    """Work that a finished request leaves behind: it is awaited before the process ends, and never unobserved."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, what: str, work: Coroutine[Any, Any, object]) -> None:
        """Run `work`; a failure is logged under the name `what` and is nobody's answer."""
        task = asyncio.get_running_loop().create_task(self._watched(what, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, timeout_s: float) -> None:
        """Wait for all of it, `timeout_s` at most; cancel what is left."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _watched(self, what: str, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except KatsuraError as error:
            _LOG.warning(f"{what} failed", reason=error.reason.value, error=error.message)
        except Exception as error:  # noqa: BLE001  # supervisor of tasks that nobody awaits: logged with traceback
            _LOG.error(f"{what} failed by our own fault", exc=error)


@dataclass(frozen=True, slots=True)
class Deps:
    """Collaborators of the app; made by `__main__`, or by a test.

    Attributes:
        peers: name to connection of the services whose health decides readiness.
        random_bits: uniformly random integers of that many bits, unpredictable.
    """

    config: GatewayConfig
    memory: MemoryClient
    router: RouterClient
    shards: ShardPool
    tenants: TenantStore
    responses: ResponseStore
    texts: Texts
    clock: Clock
    random_bits: Callable[[int], int]
    background: Background
    peers: dict[str, Connection]

    def token(self) -> str:
        """A fresh random name: 26 letters and digits."""
        digits, value = "0123456789abcdefghijklmnopqrstuv", self.random_bits(130)
        return "".join(digits[value >> shift & 31] for shift in range(0, 130, 5))
