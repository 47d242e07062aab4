"""Composition root: `python -m katsura.gateway`."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import uvicorn

from katsura.domain.errors import InvalidArgumentError
from katsura.gateway.app import create_app
from katsura.gateway.config import GatewayConfig
from katsura.gateway.deps import Background, Deps
from katsura.gateway.texts import Texts
from katsura.rpc.channel import open_channel
from katsura.rpc.clock import SystemClock
from katsura.rpc.serve import announce_ready, run_process, watch_supervisor
from katsura.sdk import Connection, MemoryClient, RouterClient, ShardPool
from katsura.state.connect import Store
from katsura.state.responses import RedisResponseStore
from katsura.state.tenants import RedisTenantStore
from katsura.telemetry import log, setup

_LOG = log.get(__name__)
_BACKLOG = 1024


class _Server(uvicorn.Server):
    """uvicorn, told to stop by our signal handlers, telling whoever started us when it serves."""

    def __init__(self, config: uvicorn.Config, ready_fd: int | None, address: str) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd
        self._address = address

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then report ready."""
        await super().startup(sockets)
        _LOG.info("serving", address=self._address)
        announce_ready(self._ready_fd, self._address)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain; a clean end is exit status 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        yield

    def _stop(self) -> None:
        self.should_exit = True


async def main() -> None:
    """Run one gateway until SIGTERM."""
    config = GatewayConfig.from_env(os.environ)
    setup.configure("gateway", config.instance_id, os.environ)
    watch_supervisor(config.supervisor_fd)
    async with AsyncExitStack() as stack:
        listener = _listen(*config.http_address) if config.http_fd is None else socket.socket(fileno=config.http_fd)
        stack.callback(listener.close)
        host, port = config.http_address[0], listener.getsockname()[1]
        store = await Store.open(config.store_url, report=_LOG.info)
        stack.push_async_callback(store.close)
        deps = _deps(config, store, stack)
        settings = uvicorn.Config(
            create_app(deps),
            lifespan="off",
            http="httptools",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=max(1, int(config.drain_timeout_s)),
        )
        await _Server(settings, config.ready_fd, f"{host}:{port}").serve(sockets=[listener])
        await deps.background.finish(config.drain_timeout_s)
    _LOG.info("stopped")


def _deps(config: GatewayConfig, store: Store, stack: AsyncExitStack) -> Deps:
    """Connections to our services, closed by `stack`."""
    clock = SystemClock()

    def connection(address: str) -> Connection:
        made = Connection(open_channel(address, config.tls), config.internal_token)
        stack.push_async_callback(made.close)
        return made

    memory = connection(config.memory_address)
    routers = [connection(address) for address in config.router_addresses]
    shards = ShardPool(internal_token=config.internal_token, tls=config.tls)
    stack.push_async_callback(shards.close)
    return Deps(
        config=config,
        memory=MemoryClient(memory),
        router=RouterClient(routers),
        shards=shards,
        tenants=RedisTenantStore(store, clock),
        responses=RedisResponseStore(store),
        texts=Texts(),
        clock=clock,
        random_bits=secrets.randbits,
        background=Background(),
        peers={"memory": memory, **{f"router-{index}": router for index, router in enumerate(routers)}},
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 picks a free one."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot listen on {host}:{port}: {error.strerror}. Is another gateway running? Choose another port, or 0 "
            "for a free one.",
            field="KATSURA_HTTP_LISTEN",
        ) from error


if __name__ == "__main__":
    run_process(main)
