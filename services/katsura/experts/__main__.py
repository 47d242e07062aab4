"""`python -m katsura.experts`: one member of an expert pool, configured by KATSURA_ variables."""

from __future__ import annotations

import os

from katsura.api.experts.v1.experts_service_pb2_grpc import add_ExpertServiceServicer_to_server
from katsura.experts.config import MemberConfig
from katsura.experts.server import ExpertServicer
from katsura.experts.service import MemberService, begin, draw_incarnation
from katsura.rpc.serve import Server, run_process, watch_supervisor
from katsura.state.connect import Store
from katsura.state.hints_redis import LIBRARY, RedisHintStore
from katsura.telemetry import log, setup
from katsura.wire.pipe import AsyncPipe, spawn

_LOG = log.get(__name__)


async def main() -> None:
    """Start the compute process, register, serve, drain."""
    config = MemberConfig.from_env(os.environ)
    setup.configure("experts", config.serve.instance_id, os.environ)
    watch_supervisor(config.serve.supervisor_fd)
    incarnation = draw_incarnation()
    compute, sock = spawn("katsura.experts.worker", os.environ)
    pipe = await AsyncPipe.open(sock)
    try:
        hello = await begin(pipe, incarnation)
        store = None
        if config.hints_url:
            opened = await Store.open(config.hints_url, libraries=[LIBRARY], wait_s=float("inf"), report=_LOG.warning)
            store = RedisHintStore(opened)
        member = MemberService(config, pipe, hello, incarnation, store)
        server = Server(config.serve)
        add_ExpertServiceServicer_to_server(ExpertServicer(member), server.grpc)
        member.address = await server.start("katsura.api.experts.v1.ExpertService")
        for work in (member.listen, member.follow_tables, member.reconcile, member.heartbeat):
            server.keep(work())
        _LOG.info("member", capacity_bytes=hello.capacity_bytes, endpoints=hello.data_endpoints)
        server.announce()
        server.keep(_show_readiness(server, member))
        await server.run(drain=lambda: member.drain(config.serve.drain_timeout_s))
        await member.leave()
        if store is not None:
            await store.close()
    finally:
        await pipe.close()
        compute.wait()


async def _show_readiness(server: Server, member: MemberService) -> None:
    """Ready from when a table counts on this member: a budget of disruptions then lets another one go.

    Nothing but its drain takes that back: an unready pod may be evicted at any time, whatever it alone has loaded.
    """
    server.set_ready(False, "no table in force counts on this member yet")
    await member.placed.wait()
    if not member.draining:
        server.set_ready(True)
    await member.drained.wait()
    server.set_ready(False, "drained")


if __name__ == "__main__":
    run_process(main)
