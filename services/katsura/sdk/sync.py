"""The synchronous face: the same calls for people without an event loop.

with Katsura("127.0.0.1:7001", api_key=key) as katsura:
    tree = katsura.create_tree(goal="book a train")
    tree.grow("user", "Two seats to Kyoto, please.")
    other = tree.fork()
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.rpc.channel import open_channel
from katsura.rpc.renewal import TlsFiles
from katsura.sdk.blocking import blocking
from katsura.sdk.blocks import BlockClient
from katsura.sdk.connection import Connection
from katsura.sdk.memory import MemoryClient, step

T = TypeVar("T")


class Katsura:
    """Trees of one tenant. One background thread runs the event loop; close it, or use it as a context manager.

    Args:
        address: of the memory service, `unix:/path` or `host:port`.
        api_key: from `katsura key create`.
        internal_token: secret of the installation, for our own tools instead of a key.
    """

    def __init__(
        self, address: str, *, api_key: str = "", internal_token: str = "", tls: TlsFiles | None = None
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="katsura-sdk", daemon=True)
        self._thread.start()
        self._connection = self.run(_open(address, api_key, internal_token, tls))
        self.memory = MemoryClient(self._connection)
        """The asynchronous client; await its calls through `run`."""
        self._blocking = blocking(address, self._connection) if tls is None or address.startswith("unix:") else None
        self.memory_here = MemoryClient(self._blocking) if self._blocking else None
        """Calls that block the thread that makes them: run them `at_once` (`sdk.blocking`). None over TLS."""
        self.blocks = BlockClient(self._connection)
        """The asynchronous client of blocks; await its calls through `run`."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs on this client's loop."""
        return self.start(work).result()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a coroutine on this client's loop: await it elsewhere with `asyncio.wrap_future`."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def create_tree(self, goal: str = "", *, tree_id: str = "", pins: Sequence[str] = ()) -> SyncTree:
        """Make a tree and stand on its first branch."""
        made = self.run(self.memory.create_tree(tree_id=tree_id, goal=goal, pins=pins))
        return SyncTree(self, made.tree.tree_id, made.branch)

    def tree(self, tree_id: str, branch: str = "") -> SyncTree:
        """Stand on a branch of a tree, its default one where none is named."""
        page = self.run(self.memory.get_path(tree_id, branch=branch, page_size=1))
        return SyncTree(self, tree_id, page.branch)

    def list_trees(self) -> list[tree_pb.Tree]:
        """The newest trees."""
        return list(self.run(self.memory.list_trees()).trees)

    def delete_tree(self, tree_id: str) -> None:
        """Drop a tree and everything in it."""
        self.run(self.memory.delete_tree(tree_id))

    def close(self) -> None:
        """Close the connection and end the thread."""
        if not self._thread.is_alive():
            return
        self.run(self._connection.close())
        if self._blocking is not None:
            self.run(self._blocking.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Katsura:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SyncTree:
    """One branch of a tree, and where we stand on it: writes expect the head that this object has seen.

    Attributes:
        tree_id: the tree.
        branch: the branch as of the last call.
    """

    def __init__(self, katsura: Katsura, tree_id: str, branch: tree_pb.Branch) -> None:
        self._katsura = katsura
        self.tree_id = tree_id
        self.branch = branch

    def grow(self, role: str, content: str) -> int:
        """Append a message and return its node; ABORTED / HEAD_MOVED if somebody else wrote first."""
        memory, run = self._katsura.memory, self._katsura.run
        grown = run(
            memory.grow(self.tree_id, [step(role, content)], branch=self.branch.name, expected_head=self.branch.head)
        )
        self.branch = grown.branch
        return grown.node_ids[0]

    def path(self) -> list[tree_pb.Node]:
        """The steps from the root to the head."""
        memory, run = self._katsura.memory, self._katsura.run
        return run(memory.get_whole_path(self.tree_id, branch=self.branch.name))

    def fork(self, at_node: int = 0, name: str = "") -> SyncTree:
        """A new branch at a step (0: the head)."""
        memory, run = self._katsura.memory, self._katsura.run
        made = run(memory.fork(self.tree_id, branch=self.branch.name, at_node=at_node, new_branch=name))
        return SyncTree(self._katsura, self.tree_id, made.branch)

    def revise(self, restore_after: int, reason: str = "") -> pb.ReviseResponse:
        """Go back to a step on a new branch, and stand there."""
        memory, run = self._katsura.memory, self._katsura.run
        revised = run(
            memory.revise(
                self.tree_id,
                restore_after=restore_after,
                reason=reason,
                branch=self.branch.name,
                expected_head=self.branch.head,
            )
        )
        self.branch = revised.branch
        return revised

    def compress(self) -> pb.CompressResponse:
        """Close the raw segment with a validated summary."""
        memory, run = self._katsura.memory, self._katsura.run
        done = run(memory.compress(self.tree_id, branch=self.branch.name, expected_head=self.branch.head))
        self.branch = done.branch
        return done

    def context(self, budget_tokens: int) -> list[pb.Segment]:
        """The prompt of this branch under a budget."""
        memory, run = self._katsura.memory, self._katsura.run
        made = run(memory.assemble_context(self.tree_id, branch=self.branch.name, budget_tokens=budget_tokens))
        return list(made.segments)


async def _open(address: str, api_key: str, internal_token: str, tls: TlsFiles | None) -> Connection:
    return Connection(open_channel(address, tls), internal_token, api_key)
