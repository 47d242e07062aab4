"""Our service on a real Valkey, for one measurement after the other, and the floor that it stands on."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.clock import SystemClock
from katsura.rpc.context import CallContext
from katsura.sdk.connection import connect
from katsura.sdk.memory import MemoryClient
from katsura.state.connect import Store
from katsura.state.tenants import RedisTenantStore
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore

TEXT = "The agent looked at one more page of results and noted what it said. " * 3


def text_of(number: object) -> str:
    """200 bytes that are like no other's."""
    return f"{number} {TEXT}"[:200]


@dataclass(frozen=True)
class Service:
    """A memory process, its store, and clients of one tenant.

    Attributes:
        memory: calls as our own processes do, with the installation's secret.
        keyed: calls with an API key, which the service looks up each time.
        address, key: for other processes that call it.
        pid: of the memory process.
    """

    store: EmbeddedStore
    memory: MemoryClient
    keyed: MemoryClient
    address: str
    key: str
    pid: int

    async def store_info(self) -> Mapping[str, int]:
        """Numbers of the store's INFO."""
        opened = await Store.open(self.store.url)
        try:
            info = await opened.client.info()
        finally:
            await opened.close()
        return {str(name): value for name, value in info.items() if isinstance(value, int)}


@asynccontextmanager
async def serving(appendfsync: str) -> AsyncIterator[Service]:
    """A fresh store and a fresh service; `everysec` is relaxed, `always` is strict."""
    async with AsyncExitStack() as stack:
        store = stack.enter_context(EmbeddedStore(appendfsync))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened = await Store.open(store.url)
        key = await RedisTenantStore(opened, SystemClock()).create_key(TenantId("bench"))
        await opened.close()
        environment = {
            "KATSURA_LISTEN": f"unix:{store.folder}/memory.sock",
            "KATSURA_STORE_URL": store.url,
            "KATSURA_INTERNAL_TOKEN": "bench",
        }
        process = await stack.enter_async_context(ServedProcess("katsura.memory", environment, folder / "log"))
        internal = await stack.enter_async_context(connect(process.address, internal_token="bench"))
        keyed = await stack.enter_async_context(connect(process.address, api_key=key.secret))
        call = CallContext(Tenant(TenantId("bench"), bytes(32)), internal=True)
        clients = MemoryClient(internal.acting_for(call)), MemoryClient(keyed)
        yield Service(store, *clients, process.address, key.secret, process.pid)
