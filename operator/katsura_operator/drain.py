"""Tells pods to finish their work, over the same mutual TLS that they use among themselves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from katsura.domain.errors import KatsuraError
from katsura.rpc.channel import open_channel
from katsura.rpc.renewal import TlsFiles
from katsura.sdk.attention import AttentionClient
from katsura.sdk.connection import Connection
from katsura.sdk.experts import ExpertClient
from katsura.telemetry import log

_LOG = log.get(__name__)
_ASKED_MS: Final = 3_600_000
"""The pod's own drain limit ends it; this one only must not be shorter."""


class GrpcDrainer:
    """Asks each address once at a time; the answer comes when the pod is empty, and nobody waits for it here."""

    def __init__(self, token: str, folder: Path) -> None:
        """`token`: of the installation, empty where we do not know it. `folder`: where `Authority` puts our files."""
        self._token, self._folder = token, folder
        self._asked: dict[str, asyncio.Task[None]] = {}

    async def drain(self, role: str, address: str) -> None:
        """Ask the process at `address` to finish."""
        if self._token and address not in self._asked:
            task = asyncio.get_running_loop().create_task(self._ask(role, address))
            self._asked[address] = task
            task.add_done_callback(lambda _: self._asked.pop(address, None))

    async def close(self) -> None:
        """Stop asking."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)

    async def _ask(self, role: str, address: str) -> None:
        try:
            tls = TlsFiles(*(self._folder / name for name in ("tls.crt", "tls.key", "ca.crt")))
            async with open_channel(address, tls) as channel:
                connection = Connection(channel, self._token, timeout_s=_ASKED_MS / 1e3)
                client = ExpertClient(connection) if role == "experts" else AttentionClient(connection)
                await client.drain(_ASKED_MS)
        except (KatsuraError, OSError) as error:
            _LOG.warning("a pod was not drained by word; SIGTERM will", address=address, why=str(error))
