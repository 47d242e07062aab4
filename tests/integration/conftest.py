"""A model that can be talked to and a house that serves it, each made once per test process."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from katsura.testing.house import House
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
