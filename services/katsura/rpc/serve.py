"""One served process from start to end: listen, report ready, drain on SIGTERM, end with the supervisor.

    config = ServeConfig.from_env(env, "memory")
    server = Server(config, resolver)
    add_MemoryServiceServicer_to_server(servicer, server.grpc)
    await server.start()
    server.set_ready(True)
    await server.run(drain=servicer.drain)

An inherited supervisor pipe at its end means that whoever started us is gone: the process exits at once, so that
`kill -9` of `katsura up` leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from katsura.domain.errors import InvalidArgumentError, KatsuraError
from katsura.rpc.channel import MESSAGE_BYTES_MAX, require_local
from katsura.rpc.context import TenantResolver
from katsura.rpc.env import Env
from katsura.rpc.interceptor import Admission, Boundary
from katsura.rpc.renewal import TlsFiles, server_credentials
from katsura.telemetry import log, metrics

_LOG = log.get(__name__)
_CANCEL_AGAIN_S = 0.5
EXIT_ORPHANED = 70
"""Exit status of a process whose supervisor went away."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What every served process is told.

    Attributes:
        role: what this process is (`memory`, `router`, `attention`, `experts`, `engine`).
        instance_id: which one.
        listen: `unix:/path` or `host:port` (port 0 picks a free one).
        internal_token: secret shared by the processes of one installation.
        metrics_listen: `host:port` of Prometheus metrics; empty serves none.
        health_listen: `host:port` of the gRPC health service alone, without TLS, for a kubelet's probes, which have no
            certificate; empty serves none.
        supervisor_fd: inherited pipe whose end means exit at once.
        ready_fd: inherited pipe that gets one JSON line when the process is ready.
        drain_timeout_s: how long running work may take after SIGTERM.
        tls: files of mutual TLS; required where `listen` leaves this machine.
    """

    role: str
    instance_id: str
    listen: str
    internal_token: str
    metrics_listen: str = ""
    health_listen: str = ""
    supervisor_fd: int | None = None
    ready_fd: int | None = None
    drain_timeout_s: float = 30.0
    tls: TlsFiles | None = None

    @classmethod
    def from_env(cls, env: Env, role: str) -> ServeConfig:
        """Read the variables that every process shares; the caller calls `env.finish()`."""
        files = [env.text(name, "") for name in ("KATSURA_TLS_CERT", "KATSURA_TLS_KEY", "KATSURA_TLS_CA")]
        return cls(
            role=role,
            instance_id=env.text("KATSURA_INSTANCE_ID", f"{role}-{os.getpid()}"),
            listen=env.text("KATSURA_LISTEN", "127.0.0.1:0"),
            internal_token=env.text("KATSURA_INTERNAL_TOKEN"),
            metrics_listen=env.text("KATSURA_METRICS_LISTEN", ""),
            health_listen=env.text("KATSURA_HEALTH_LISTEN", ""),
            supervisor_fd=env.descriptor("KATSURA_SUPERVISOR_FD"),
            ready_fd=env.descriptor("KATSURA_READY_FD"),
            drain_timeout_s=env.real("KATSURA_DRAIN_TIMEOUT_S", 30.0),
            tls=TlsFiles(*map(Path, files)) if all(files) else None,
        )


class Server:
    """A gRPC server with health, reflection and our boundary; one per process."""

    def __init__(
        self, config: ServeConfig, resolver: TenantResolver | None = None, admission: Admission | None = None
    ) -> None:
        self.config = config
        self._grpc = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.so_reuseport", 0),
            ),
        )
        self.boundary = Boundary(self._grpc, config.internal_token, resolver, admission)
        self.grpc = cast(grpc.aio.Server, self.boundary)
        """Where servicers are added: `add_..._to_server(servicer, server.grpc)`."""
        self.address = ""
        self._health = health.aio.HealthServicer()
        self._probed: grpc.aio.Server | None = None
        self.health_address = ""
        self._ready: bool | None = None
        self._why = ""
        self._announced = False
        self._stop = asyncio.Event()
        self._lasting: set[asyncio.Task[None]] = set()

    async def start(self, *services: str) -> str:
        """Listen, answer calls (health says NOT_SERVING until `set_ready`) and heed signals; returns the bound address.

        Args:
            services: full names of the services added to `self.grpc`, for reflection.
        """
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self.address = self._bind(self.config.listen)
        await self._grpc.start()
        await self._serve_probes()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        watch_supervisor(self.config.supervisor_fd)
        if self.config.metrics_listen:
            host, _, port = self.config.metrics_listen.rpartition(":")
            metrics.serve(host, int(port))
        return self.address

    def set_ready(self, ready: bool, why: str = "") -> None:
        """Say whether this process can do its work, and why not; the first yes is told to whoever started us."""
        if ready == self._ready and why == self._why:
            return
        self._ready, self._why = ready, why
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        self.keep(self._set_health(state))
        _LOG.info("ready" if ready else "not ready", address=self.address, **({"why": why} if why else {}))
        if ready:
            self.announce()

    def announce(self) -> None:
        """Tell whoever started us, once, that this process answers; whether it can do its work is health's."""
        if not self._announced:
            self._announced = True
            announce_ready(self.config.ready_fd, self.address)

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the server; if it ends by an error, the process stops and says so."""
        task = asyncio.get_running_loop().create_task(work)
        self._lasting.add(task)
        task.add_done_callback(self._ended)

    def stop(self) -> None:
        """Begin to stop, as SIGTERM does."""
        self._stop.set()

    async def run(self, drain: Callable[[], Awaitable[None]] | None = None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; then refuse new work, drain and return."""
        await self._stop.wait()
        self.set_ready(False, "draining")
        if drain is not None:
            try:
                await asyncio.wait_for(drain(), self.config.drain_timeout_s)
            except TimeoutError:
                _LOG.warning("drain timed out; ending what is left", seconds=self.config.drain_timeout_s)
        await self._end_lasting()
        await self._grpc.stop(grace=2.0)
        if self._probed is not None:
            await self._probed.stop(grace=None)
        _LOG.info("stopped")

    async def _end_lasting(self) -> None:
        """Cancel until each has ended: `asyncio.wait_for` of Python 3.11, which the store's client uses, loses a cancel
        that comes in the moment in which what it waits for is done."""
        while self._lasting:
            for task in self._lasting:
                task.cancel()
            await asyncio.wait(self._lasting, timeout=_CANCEL_AGAIN_S)

    async def _serve_probes(self) -> None:
        if not self.config.health_listen:
            return
        self._probed = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probed)
        self.health_address = _add_port(self._probed, self.config.health_listen, None, "KATSURA_HEALTH_LISTEN")
        await self._probed.start()

    def _bind(self, listen: str) -> str:
        if listen.startswith("unix:"):
            Path(listen.removeprefix("unix:")).unlink(missing_ok=True)
        credentials = None
        if self.config.tls is not None and not listen.startswith("unix:"):
            credentials = server_credentials(self.config.tls)
        else:
            require_local(listen)
        return _add_port(self._grpc, listen, credentials, "KATSURA_LISTEN")

    async def _set_health(self, state: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        await self._health.set("", state)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._lasting.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            _LOG.error("a background task failed; stopping", exc=error)
            self._stop.set()


def _add_port(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials | None, field: str) -> str:
    """Bind and return the address; port 0 becomes the port that was found."""
    try:
        if credentials is not None:
            port = server.add_secure_port(listen, credentials)
        else:
            port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"cannot listen on {listen}: is the port taken, or the folder of the socket missing?", field=field
        ) from error
    return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


def announce_ready(ready_fd: int | None, address: str) -> None:
    """Tell whoever started us, by one JSON line on the inherited pipe, that we serve at `address`."""
    if ready_fd is None:
        return
    try:
        os.write(ready_fd, json.dumps({"address": address, "pid": os.getpid()}).encode() + b"\n")
    except OSError:
        _LOG.warning("nobody waits for the ready line any more")


def watch_supervisor(supervisor_fd: int | None) -> None:
    """Exit at once, without any clean-up, when the inherited pipe ends."""
    if supervisor_fd is not None:
        asyncio.get_running_loop().add_reader(supervisor_fd, os._exit, EXIT_ORPHANED)


def run_process(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a process's `main` on uvloop; an error of ours ends it with one plain line and status 1."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except KatsuraError as error:
        _LOG.error(error.message)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
