"""Start a router: `python -m katsura.router`, configured by KATSURA_ variables (`katsura.router.config`)."""

from __future__ import annotations

import os
import secrets
import time

from katsura.api.router.v1 import router_service_pb2, router_service_pb2_grpc
from katsura.domain.ids import Incarnation, InstanceId
from katsura.domain.leases import RouterLease
from katsura.router.config import RouterConfig
from katsura.router.coordinator import Coordinator
from katsura.router.decisions import Decider
from katsura.router.presence import drop_lease, keep_lease
from katsura.router.server import RouterServicer
from katsura.router.view import View
from katsura.rpc.serve import Server, run_process
from katsura.state.connect import Store
from katsura.state.hints_redis import LIBRARY, RedisHintStore
from katsura.telemetry import log
from katsura.telemetry.setup import configure

_LOG = log.get(__name__)


class _SystemClock:
    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


async def main() -> None:
    """Compose the process and serve until it is told to stop."""
    config = RouterConfig.from_env(os.environ)
    configure("router", config.serve.instance_id, os.environ)
    opened = await Store.open(config.hints_url, libraries=(LIBRARY,), wait_s=config.store_wait_s, report=_LOG.warning)
    store, clock = RedisHintStore(opened), _SystemClock()
    instance_id, incarnation = InstanceId(config.serve.instance_id), Incarnation(secrets.randbits(63))
    start_ms = clock.wall_ms()
    view = View(store, clock)
    decider = Decider(store, view)
    coordinator = Coordinator(store, view, clock, instance_id, incarnation, config.prepare_patience_s)
    server = Server(config.serve)

    def lease() -> RouterLease:
        return RouterLease(instance_id, incarnation, start_ms, server.address, decider.draining)

    async def drain() -> None:
        decider.draining = True
        server.set_ready(False, "draining")
        await coordinator.resign()

    async def ready_when_caught_up() -> None:
        await view.caught_up.wait()
        if not decider.draining:
            server.set_ready(True)

    servicer = RouterServicer(decider, view, coordinator, lease, lambda: server.boundary.active_count, drain)
    router_service_pb2_grpc.add_RouterServiceServicer_to_server(servicer, server.grpc)
    await server.start(router_service_pb2.DESCRIPTOR.services_by_name["RouterService"].full_name)
    for work in (view.run(), coordinator.run(), keep_lease(store, lease), ready_when_caught_up()):
        server.keep(work)
    try:
        await server.run(drain=drain)
        await drop_lease(store, lease())
    finally:
        await store.close()


if __name__ == "__main__":
    run_process(main)
