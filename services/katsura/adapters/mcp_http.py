"""The MCP server over HTTP, for clients that do not start it themselves (`katsura mcp --http PORT`).

Nothing is kept between requests, and each carries its own API key (`Authorization: Bearer`), so one server is enough
for every tenant, and any number of them may stand behind one address.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import uvicorn

from katsura.adapters.mcp import TreeTools, server_of
from katsura.domain.errors import InvalidArgumentError
from katsura.rpc.channel import is_local
from katsura.sdk.connection import Connection

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PATH: Final = "/mcp"
_KEY: ContextVar[str] = ContextVar("katsura_mcp_key")
_REFUSED: Final = b'{"error": "send an API key: Authorization: Bearer KEY (`katsura key create` makes one)"}'


@dataclass(frozen=True, slots=True)
class HttpPlace:
    """Where to listen; `port` 0 is a free one. Off this machine a certificate and its key (PEM files) are needed."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    def listen(self) -> socket.socket:
        """A socket that listens there.

        Raises:
            InvalidArgumentError: keys would cross a network in clear, or the address cannot be had.
        """
        if not self.certificate and not is_local(f"{self.host}:{self.port}"):
            raise InvalidArgumentError(
                f"{self.host} is not on this machine: name a certificate (--tls-cert, --tls-key), or put a proxy that "
                "speaks TLS in front of a loopback address",
                field="--tls-cert",
            )
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            raise InvalidArgumentError(f"cannot listen on {self.host} port {self.port}: {error.strerror}") from error

    def url(self, listener: socket.socket) -> str:
        """What clients are told."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{listener.getsockname()[1]}{PATH}"


async def serve_http(connection: Connection, place: HttpPlace, report: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `report` is told the URL when clients may come.

    Args:
        connection: to the memory service; its own key is never used.
    """
    tools = TreeTools(lambda: replace(connection, api_key=_KEY.get()))
    app = server_of(tools).streamable_http_app(streamable_http_path=PATH, stateless_http=True, host=place.host)
    with place.listen() as listener:
        config = uvicorn.Config(
            keyed(app),
            log_level="warning",
            ssl_certfile=place.certificate,
            ssl_keyfile=place.key,
        )
        report(place.url(listener))
        await uvicorn.Server(config).serve(sockets=[listener])


def keyed(app: App) -> App:
    """`app` for requests with a bearer token, which is the API key of what they ask for; 401 for others."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _REFUSED})
            return
        before = _KEY.set(key.strip())
        try:
            await app(scope, receive, send)
        finally:
            _KEY.reset(before)

    return guarded
