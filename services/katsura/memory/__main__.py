"""Start a memory process: `python -m katsura.memory`, configured by KATSURA_ variables (`katsura.memory.config`)."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from katsura.api.memory.v1 import (
    block_service_pb2,
    block_service_pb2_grpc,
    memory_service_pb2,
    memory_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
    work_service_pb2,
    work_service_pb2_grpc,
)
from katsura.domain.errors import KatsuraError
from katsura.memory.block_server import BlockServicer
from katsura.memory.blocks import Blocks
from katsura.memory.cold import Sweeper
from katsura.memory.collecting import Collector
from katsura.memory.config import MemoryConfig
from katsura.memory.queue_server import WorkServicer
from katsura.memory.quotas import Meter
from katsura.memory.server import MemoryServicer
from katsura.memory.service import Memory
from katsura.memory.upkeep import hold_to, repeat
from katsura.memory.usage_server import UsageServicer
from katsura.rpc.clock import SystemClock
from katsura.rpc.serve import Server, run_process
from katsura.state.blocks_redis import BLOCK_FUNCTIONS, RedisBlockStore
from katsura.state.connect import Store
from katsura.state.objects import FolderObjects
from katsura.state.tenants import RedisTenantStore
from katsura.state.trees_redis import MEMORY_FUNCTIONS, RedisTreeStore
from katsura.state.usage_redis import RedisUsageStore
from katsura.telemetry import log
from katsura.telemetry.setup import configure

_LOG = log.get(__name__)
_MESSAGE_CHARS = 2000


async def main() -> None:
    """Compose the process and serve until it is told to stop."""
    config = MemoryConfig.from_env(os.environ)
    configure("memory", config.serve.instance_id, os.environ)
    store = await _open(config)
    _LOG.info("store open", durability=store.durability.name.lower(), incarnation=store.incarnation)
    clock = SystemClock()
    meter = Meter(RedisUsageStore(store), config.quotas, clock)
    objects = FolderObjects(Path(config.cold_folder)) if config.cold_folder else None
    trees = RedisTreeStore(store, config.limits, meter.count, objects)
    memory = Memory(trees, lambda: f"t{secrets.token_hex(10)}", config.heartbeat_s)
    tenants = RedisTenantStore(store, clock)
    server = Server(config.serve, tenants, meter)
    memory_service_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryServicer(memory, meter), server.grpc)
    work_service_pb2_grpc.add_WorkServiceServicer_to_server(WorkServicer(memory), server.grpc)
    usage_service_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(meter, trees), server.grpc)
    blocks = BlockServicer(Blocks(RedisBlockStore(store, config.limits.replays, meter.count)))
    block_service_pb2_grpc.add_BlockServiceServicer_to_server(blocks, server.grpc)
    await server.start(
        memory_service_pb2.DESCRIPTOR.services_by_name["MemoryService"].full_name,
        block_service_pb2.DESCRIPTOR.services_by_name["BlockService"].full_name,
        work_service_pb2.DESCRIPTOR.services_by_name["WorkService"].full_name,
        usage_service_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name,
    )

    server.keep(hold_to(store, config.durability, config.settings_every_s))
    server.set_ready(True)
    upkeep = [asyncio.create_task(repeat(turn, every_s)) for turn, every_s in _upkeep(config, trees, tenants, clock)]
    try:
        await server.run(drain=memory.close)
    finally:
        for task in upkeep:
            task.cancel()
        await asyncio.gather(*upkeep, return_exceptions=True)
        await meter.close()
        await store.close()


async def _open(config: MemoryConfig) -> Store:
    """The store, if it keeps what it is to promise; else its message file says why not."""
    store = None
    try:
        store = await Store.open(
            config.store_url,
            libraries=(MEMORY_FUNCTIONS, BLOCK_FUNCTIONS),
            wait_s=config.store_wait_s,
            report=_LOG.warning,
            replicas=config.store_replicas,
        )
        store.require(config.durability)
    except KatsuraError as error:
        if store is not None:
            await store.close()
        _leave_word(config.message_file, error)
        raise
    return store


def _leave_word(file: str, error: KatsuraError) -> None:
    if file:
        Path(file).write_text(f"{error.reason}: {error.message}"[:_MESSAGE_CHARS], "utf-8")


def _upkeep(
    config: MemoryConfig, trees: RedisTreeStore, tenants: RedisTenantStore, clock: SystemClock
) -> Iterator[tuple[Callable[[], Awaitable[None]], float]]:
    """What the process does beside serving, and how often."""
    if config.cold_after_s:
        yield Sweeper(trees, tenants, clock, config.cold_after_s).turn, config.cold_every_s
    if config.collect_every_s:
        worker = f"{config.serve.instance_id}:{secrets.token_hex(4)}"
        yield Collector(trees, tenants, worker, config.retention).turn, config.collect_every_s


if __name__ == "__main__":
    run_process(main)
