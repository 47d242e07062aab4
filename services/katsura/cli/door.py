"""The embedded Valkey behind mutual TLS: the server speaks none, so this process starts it and speaks it for it.

    python -m katsura.cli.door --listen 0.0.0.0:6379 --tls /etc/katsura/tls -- SERVER ARGUMENTS...

The server listens on a unix socket only. The door opens when it answers, lets in whoever shows a certificate of the
installation's authority, hands bytes through as they are, and ends with the server, by its exit status. Certificates
are read for each handshake, so who renews them restarts nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvloop

from katsura.telemetry import log
from katsura.telemetry.setup import configure
from katsura.wire.tls import Contexts, server_contexts

_LOG = log.get(__name__)
_HANDSHAKE_S = 10.0
_LOOK_AGAIN_S = 0.05
_BACKLOG = 511


class _End(asyncio.Protocol):
    """One end of a connection: what it hears goes out at the other, no faster than that one takes it."""

    transport: asyncio.Transport
    other: _End | None = None
    """None until the other end is there: nobody reads before, and nobody is left to tell after."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


class Door:
    """Lets clients of a TCP socket through to a unix socket."""

    def __init__(self, listener: socket.socket, server_path: str, contexts: Contexts) -> None:
        self._listener, self._path, self._contexts = listener, server_path, contexts
        self._greeting: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Let clients in until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            task = loop.create_task(self._admit(client))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _admit(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        inner, outer = _End(), _End()
        try:
            # The server first: what a client sends right behind its handshake has somewhere to go.
            await loop.create_unix_connection(lambda: inner, self._path)
        except OSError as error:
            _LOG.warning("the server does not answer", error=str(error))
            client.close()
            return
        inner.transport.pause_reading()
        outer.other = inner
        try:
            await loop.connect_accepted_socket(
                lambda: outer, client, ssl=self._contexts(), ssl_handshake_timeout=_HANDSHAKE_S
            )
        except (OSError, asyncio.CancelledError) as error:
            inner.transport.close()
            client.close()
            if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
                _LOG.warning("refused", error=error.reason or str(error))  # a probe just hangs up
            return
        inner.other = outer
        outer.resume_writing()


async def run(listen: str, tls: Path, arguments: Sequence[str]) -> int:
    """Start the server, open the door, and return the server's exit status. SIGTERM ends the server, which saves."""
    contexts = server_contexts(tls / "tls.crt", tls / "tls.key", tls / "ca.crt")
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="kd-") as folder:
        path = str(Path(folder) / "s")
        line = [sys.executable, "-m", "katsura.cli.embedded", str(os.getpid()), *arguments]
        server = await asyncio.create_subprocess_exec(*line, "--port", "0", "--unixsocket", path)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.terminate)
        ended = loop.create_task(server.wait())
        opened = loop.create_task(_open(listen, path, contexts))
        await asyncio.wait({ended, opened}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            server.terminate()
            await ended
        opened.cancel()
        results = await asyncio.gather(opened, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                raise error
        return ended.result()


async def _open(listen: str, path: str, contexts: Contexts) -> None:
    """Wait until the server takes connections, then let clients in; a listener is what a kubelet calls ready."""
    while not _answers(path):  # noqa: ASYNC110  the server tells nobody
        await asyncio.sleep(_LOOK_AGAIN_S)
    host, _, port = listen.rpartition(":")
    with socket.create_server((host.strip("[]"), int(port)), backlog=_BACKLOG) as listener:
        listener.setblocking(False)
        _LOG.info("open", address=f"{host}:{listener.getsockname()[1]}")
        await Door(listener, path, contexts).serve()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", required=True, help="host:port")
    parser.add_argument("--tls", required=True, type=Path, help="folder with tls.crt, tls.key and ca.crt")
    parser.add_argument("arguments", nargs="*", help="arguments of the server, behind --")
    return parser


def main() -> None:
    """Serve until the server ends."""
    said = build_parser().parse_args()
    configure("store-door", socket.gethostname(), os.environ)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(run(said.listen, said.tls, said.arguments)))


if __name__ == "__main__":
    main()
