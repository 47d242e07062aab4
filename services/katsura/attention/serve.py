"""Composition of the RPC process: compute process, shard, servicer, server and fleet, from start to drain."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from katsura.api.attention.v1 import attention_service_pb2 as pb
from katsura.api.attention.v1.attention_service_pb2_grpc import add_AttentionServiceServicer_to_server
from katsura.attention import messages
from katsura.attention.config import ShardConfig
from katsura.attention.fleet import Fleet
from katsura.attention.server import AttentionServicer
from katsura.attention.shard import Shard
from katsura.domain.errors import KatsuraError, UnavailableError
from katsura.rpc.serve import Server
from katsura.state.connect import Store
from katsura.state.hints_redis import RedisHintStore
from katsura.telemetry import log, setup
from katsura.text.digest import tokenizer_digest
from katsura.wire.pipe import AsyncPipe, spawn

_LOG = log.get(__name__)
PROBE_TIMEOUT_S = 30.0
CHECK_EVERY_S = 0.2
END_TIMEOUT_S = 5.0


async def run_shard(role: str, worker: str, environ: Mapping[str, str], *, has_pool: bool) -> None:
    """Serve until SIGTERM, or until the other half dies.

    Args:
        role: `attention` or `engine`.
        worker: module of the compute process.
        environ: the process environment.
        has_pool: whether experts are members that an expert table names.
    """
    config = ShardConfig.from_env(environ, role)
    setup.configure(role, config.serve.instance_id, environ)
    start_s = time.monotonic()
    child, sock = spawn(worker, _environment_of_child(environ))
    pipe = await AsyncPipe.open(sock)
    try:
        hello = messages.read_hello(await pipe.receive())
        _LOG.info("loaded", seconds=round(time.monotonic() - start_s, 3))
        shard = Shard(config, hello, tokenizer_digest(config.model_path), pipe)
        await shard.start()
        await _serve(config, shard, has_pool=has_pool)
    finally:
        await pipe.close()
        await asyncio.get_running_loop().run_in_executor(None, _end, child)


async def _serve(config: ShardConfig, shard: Shard, *, has_pool: bool) -> None:
    server = Server(config.serve)
    servicer = AttentionServicer(shard)
    add_AttentionServiceServicer_to_server(servicer, server.grpc)
    address = await server.start(pb.DESCRIPTOR.services_by_name["AttentionService"].full_name)
    died: list[KatsuraError] = []
    server.keep(_listen(shard, server, died))
    server.keep(shard.watch_readers())
    fleet = None
    if config.hints_url:
        store = await Store.open(config.hints_url, report=_LOG.warning)
        fleet = Fleet(shard, RedisHintStore(store), address, has_pool)
        for work in (fleet.heartbeat(), fleet.publish(), fleet.follow_tables()):
            server.keep(work)
    server.keep(_watch_readiness(server, shard, servicer, fleet))

    async def drain() -> None:
        if not died:
            await shard.drain(max(0.0, config.serve.drain_timeout_s - END_TIMEOUT_S))

    await server.run(drain)
    if fleet is not None:
        await fleet.leave()
    if died:
        raise died[0]


async def _listen(shard: Shard, server: Server, died: list[KatsuraError]) -> None:
    try:
        await shard.listen()
    except UnavailableError as error:
        died.append(error)
        server.stop()


async def _watch_readiness(server: Server, shard: Shard, servicer: AttentionServicer, fleet: Fleet | None) -> None:
    """Ready while every group has a member and, once per table, a probe token was drawn through all of them."""
    probed_epoch = -1
    while True:
        pool = shard.state.pool
        epoch, missing = (0, "") if pool is None else (pool.epoch, pool.missing)
        why = "draining" if shard.draining else missing
        if not why and probed_epoch != epoch:
            start_s = time.monotonic()
            try:
                await servicer.probe(1, start_s + PROBE_TIMEOUT_S)
                probed_epoch = epoch
                _LOG.info("probed", epoch=epoch, seconds=round(time.monotonic() - start_s, 3))
            except KatsuraError as error:
                why = f"the probe failed: {error.message}"
        server.set_ready(not why, why)
        if fleet is not None:
            fleet.set_ready(not why, why)
        await asyncio.sleep(CHECK_EVERY_S)


def _environment_of_child(environ: Mapping[str, str]) -> dict[str, str]:
    """The compute process holds none of our descriptors: it lives as long as the pipe."""
    ours = ("KATSURA_READY_FD", "KATSURA_SUPERVISOR_FD")
    return {name: value for name, value in environ.items() if name not in ours}


def _end(child: subprocess.Popen[Any]) -> None:
    try:
        child.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
