"""What the gateway is told by its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from katsura.domain.errors import InvalidArgumentError
from katsura.domain.units import MIB
from katsura.gateway.core.access import is_loopback
from katsura.rpc.env import Env
from katsura.rpc.renewal import TlsFiles


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Configuration of one gateway process.

    Attributes:
        instance_id: which gateway.
        http_listen: `host:port` of the HTTP server; port 0 picks a free one.
        memory_address: gRPC address of the memory service.
        router_addresses: gRPC addresses of the routers, in order of preference.
        store_url: durable store, for keys and stored responses.
        internal_token: secret shared by the processes of one installation.
        allow_keyless: whether requests without a key are the default tenant's; needs a loopback address.
        body_bytes_max: largest request body.
        request_timeout_s: deadline of a request that names none, and the longest one it may name.
        shard_wait_s: how long a request waits for a shard when there is none, or none that goes on with it.
        keepalive_s: a silent stream gets a comment this often.
        http_fd: inherited socket that listens at `http_listen` already: it outlives this process, so connections made
            while the process is restarted wait instead of being refused.
        drain_timeout_s: how long running requests may take after SIGTERM.
        supervisor_fd: inherited pipe whose end means exit at once.
        ready_fd: inherited pipe that gets one JSON line when requests are served.
        tls: files of mutual TLS towards our other services.
    """

    instance_id: str
    http_listen: str
    memory_address: str
    router_addresses: tuple[str, ...]
    store_url: str
    internal_token: str = field(repr=False)
    allow_keyless: bool = False
    body_bytes_max: int = MIB
    request_timeout_s: float = 600.0
    shard_wait_s: float = 60.0
    keepalive_s: float = 10.0
    http_fd: int | None = None
    drain_timeout_s: float = 30.0
    supervisor_fd: int | None = None
    ready_fd: int | None = None
    tls: TlsFiles | None = None

    @property
    def http_address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        host, _, port = self.http_listen.rpartition(":")
        return host.strip("[]"), int(port)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> GatewayConfig:
        """Read KATSURA_ variables.

        Raises:
            InvalidArgumentError: lists every variable that is missing, malformed or unknown.
        """
        env = Env(environ)
        files = [env.text(name, "") for name in ("KATSURA_TLS_CERT", "KATSURA_TLS_KEY", "KATSURA_TLS_CA")]
        config = cls(
            instance_id=env.text("KATSURA_INSTANCE_ID", f"gateway-{os.getpid()}"),
            http_listen=env.text("KATSURA_HTTP_LISTEN", "127.0.0.1:8080"),
            memory_address=env.text("KATSURA_MEMORY_ADDRESS"),
            router_addresses=env.names("KATSURA_ROUTER_ADDRESSES"),
            store_url=env.text("KATSURA_STORE_URL"),
            internal_token=env.text("KATSURA_INTERNAL_TOKEN"),
            allow_keyless=env.flag("KATSURA_ALLOW_KEYLESS", False),
            body_bytes_max=env.number("KATSURA_BODY_BYTES_MAX", MIB, low=1),
            request_timeout_s=env.real("KATSURA_REQUEST_TIMEOUT_S", 600.0, low=1.0),
            shard_wait_s=env.real("KATSURA_SHARD_WAIT_S", 60.0),
            keepalive_s=env.real("KATSURA_KEEPALIVE_S", 10.0, low=0.1),
            http_fd=env.descriptor("KATSURA_HTTP_FD"),
            drain_timeout_s=env.real("KATSURA_DRAIN_TIMEOUT_S", 30.0),
            supervisor_fd=env.descriptor("KATSURA_SUPERVISOR_FD"),
            ready_fd=env.descriptor("KATSURA_READY_FD"),
            tls=TlsFiles(*map(Path, files)) if all(files) else None,
        )
        env.finish()
        config.require_sound()
        return config

    def require_sound(self) -> None:
        """Refuse settings that are well-formed but make no sense together."""
        host, _, port = self.http_listen.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise InvalidArgumentError(
                f"KATSURA_HTTP_LISTEN: expected host:port, got {self.http_listen!r}", field="KATSURA_HTTP_LISTEN"
            )
        if not self.router_addresses:
            raise InvalidArgumentError(
                "KATSURA_ROUTER_ADDRESSES: name at least one router", field="KATSURA_ROUTER_ADDRESSES"
            )
        if self.allow_keyless and not is_loopback(host):
            raise InvalidArgumentError(
                f"KATSURA_ALLOW_KEYLESS: requests without a key are only served on a loopback address, not on {host}; "
                "listen on 127.0.0.1 or make keys with 'katsura key create'",
                field="KATSURA_ALLOW_KEYLESS",
            )
