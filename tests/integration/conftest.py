"""A model that can be talked to and a house that serves it, each made once per test process."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from katsura.domain.ids import TenantId
from katsura.rpc.clock import SystemClock
from katsura.sdk.sync import Katsura
from katsura.state.connect import Store
from katsura.state.tenants import RedisTenantStore
from katsura.testing.house import House
from katsura.testing.process import ServedProcess
from katsura.testing.store import EmbeddedStore
from katsura.testing.tiny_chat import save_tiny_chat


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random chat model; the engines' kernel plan is kept beside it after the first start."""
    folder = tmp_path_factory.mktemp("tiny-chat")
    save_tiny_chat(folder)
    return folder


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="kh-") as folder:
        yield Path(folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def house(tiny_chat: Path) -> AsyncIterator[House]:
    """One house for every test that leaves it whole. Tests that kill things make their own."""
    with tempfile.TemporaryDirectory(prefix="kh-") as folder:
        async with House(Path(folder), tiny_chat) as running:
            yield running


@pytest.fixture(scope="session")
def memory_store_url() -> Iterator[str]:
    """The store of that memory process."""
    with EmbeddedStore() as server:
        yield server.url


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def memory_key(memory_store_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """Address of a memory process for every test that leaves it whole, and a key."""
    store = await Store.open(memory_store_url)
    key = await RedisTenantStore(store, SystemClock()).create_key(TenantId("adapters"))
    await store.close()
    with tempfile.TemporaryDirectory(prefix="km-") as folder:
        environment = {
            "KATSURA_LISTEN": f"unix:{folder}/memory.sock",
            "KATSURA_STORE_URL": memory_store_url,
            "KATSURA_INTERNAL_TOKEN": "internal-secret",
        }
        async with ServedProcess("katsura.memory", environment, tmp_path_factory.mktemp("memory") / "log") as process:
            yield process.address, key.secret


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def other_key(memory_store_url: str) -> str:
    """A key of another tenant of that process."""
    store = await Store.open(memory_store_url)
    key = await RedisTenantStore(store, SystemClock()).create_key(TenantId("strangers"))
    await store.close()
    return key.secret


@pytest.fixture
def katsura(memory_key: tuple[str, str]) -> Iterator[Katsura]:
    """A synchronous client of that process."""
    with Katsura(memory_key[0], api_key=memory_key[1]) as katsura:
        yield katsura
