"""Certificates that are renewed in place: every handshake shows what the files hold at that moment, nobody restarts.

gRPC asks a server's credentials before each handshake, but a channel keeps the ones that it was made with. So a channel
of ours is made anew when the files change: calls that run end where they began, new ones go by the new channel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of mutual TLS between our processes; whoever renews them replaces their content."""

    certificate: Path
    key: Path
    authority: Path

    def read(self) -> Pem:
        """What they hold now."""
        return Pem(self.certificate.read_bytes(), self.key.read_bytes(), self.authority.read_bytes())

    def signature(self) -> tuple[tuple[int, int], ...]:
        """Changes with their content, and costs no reading."""
        stats = (path.stat() for path in (self.certificate, self.key, self.authority))
        return tuple((each.st_mtime_ns, each.st_ino) for each in stats)


@dataclass(frozen=True, slots=True)
class Pem:
    """Content of `TlsFiles`."""

    certificate: bytes
    key: bytes
    authority: bytes


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """For a server that admits whoever shows a certificate of the authority."""
    held = files.read()

    def configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pem.key, pem.certificate)], pem.authority)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal held
        try:
            found = files.read()
        except OSError:
            return None  # being replaced: what is held is still good
        if found == held:
            return None
        held = found
        return configuration(found)

    return grpc.dynamic_ssl_server_credentials(configuration(held), renewed, True)  # type: ignore[arg-type]  # or None


class RenewedChannel(grpc.aio.Channel):
    """A channel whose new calls go by the credentials that `files` hold.

    Args:
        open_with: makes a plain channel of credentials.
    """

    def __init__(self, files: TlsFiles, open_with: Callable[[Pem], grpc.aio.Channel]) -> None:
        self._files, self._open_with = files, open_with
        self._signature = files.signature()
        self._pem = files.read()
        self._link = _Link(open_with(self._pem))
        self._retired: set[_Link] = set()
        self._closing: set[asyncio.Task[None]] = set()

    def link(self) -> _Link:
        """The channel for a call that begins now."""
        try:
            signature = self._files.signature()
            if signature != self._signature:
                pem = self._files.read()
                self._signature = signature
                if pem != self._pem:
                    self._pem = pem
                    before, self._link = self._link, _Link(self._open_with(pem))
                    self._retired.add(before)
                    before.retire(self._close_later)
        except OSError:
            pass  # being replaced: the next call looks again
        return self._link

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """A method of a stub."""
        return _Method(self, "unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """A method of a stub."""
        return _Method(self, "unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """A method of a stub."""
        return _Method(self, "stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """A method of a stub."""
        return _Method(self, "stream_stream", args, kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the channel that new calls go by."""
        return self.link().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the channel that new calls go by."""
        await self.link().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the channel that new calls go by is connected."""
        await self.link().channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Close it, with the channels that calls still run over."""
        links, self._retired = (self._link, *self._retired), set()
        await asyncio.gather(*self._closing, *(link.channel.close(grace) for link in links))

    async def __aenter__(self) -> RenewedChannel:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self.close()

    def _close_later(self, link: _Link) -> None:
        if link not in self._retired:
            return  # `close` has it already
        self._retired.remove(link)
        task = asyncio.get_running_loop().create_task(link.channel.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Link:
    """A plain channel and how many calls run over it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._running = 0
        self._close: Callable[[_Link], None] | None = None

    def begins(self, call: Any) -> None:
        """Count a call until it ends."""
        self._running += 1
        call.add_done_callback(self._ended)

    def retire(self, close: Callable[[_Link], None]) -> None:
        """Close by `close` when the last call has ended."""
        self._close = close
        self._close_if_idle()

    def _ended(self, _: Any) -> None:
        self._running -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._close is not None and not self._running:
            self._close(self)


class _Method:
    """A stub's method, made anew for each channel."""

    def __init__(self, owner: RenewedChannel, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._owner, self._kind, self._args, self._kwargs = owner, kind, args, kwargs
        self._link: _Link | None = None
        self._call: Callable[..., Any] = lambda: None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        link = self._owner.link()
        if link is not self._link:
            self._link = link
            self._call = getattr(link.channel, self._kind)(*self._args, **self._kwargs)
        call = self._call(*args, **kwargs)
        link.begins(call)
        return call
