"""The OpenAI Agents SDK's session on a memory service.

    with Katsura("127.0.0.1:7001", api_key=key) as katsura:
        await Runner.run(agent, "Hello", session=KatsuraSession("user-123", katsura))

A session is a tree of plain steps: `katsura tree` draws it, the gateway can go on with it, and it can be compressed,
searched, forked and revised like any other. Adding is atomic; taking back the last item moves the session to a branch
that begins before it, so that of two who take back at once each gets another item, and nothing is overwritten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Self, TypeVar, cast

from agents import TResponseInputItem
from agents.memory import SessionABC, SessionSettings

from katsura.adapters.items import item_of, step_of
from katsura.api.memory.v1 import memory_pb2 as tree_pb
from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.domain.errors import AlreadyExistsError, ConflictError, FailedPreconditionError, NotFoundError, Reason
from katsura.domain.ids import checked_name
from katsura.sdk.memory import EMPTY_ROOT
from katsura.sdk.sync import Katsura

T = TypeVar("T")
_STEPS_A_GROW: Final = 256
_PAGE: Final = 500
_ATTEMPTS: Final = 64


class Turn(NamedTuple):
    """A user message: its number from 1, its text, and the node before it (0: none)."""

    number: int
    content: str
    after_node: int


class KatsuraSession(SessionABC):
    """The history of one conversation, on one branch of a tree.

    Args:
        session_id: names the tree: 1 to 128 letters, digits and `. _ : -`.
        katsura: a connected client; close it after the session's last call.
        branch: branch to stand on; "" is whichever is the tree's default.
        session_settings: the SDK's, for instance a default limit of items.

    Raises:
        InvalidArgumentError: `session_id` is no name.
    """

    def __init__(
        self, session_id: str, katsura: Katsura, *, branch: str = "", session_settings: SessionSettings | None = None
    ) -> None:
        self.session_id = checked_name(session_id, "session_id")
        self.session_settings = session_settings or SessionSettings()
        self.branch = branch
        self._katsura = katsura

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """The newest `limit` items (none: the settings' limit, else all), oldest first."""
        most = limit if limit is not None or self.session_settings is None else self.session_settings.limit
        steps = await self._there(self._newest(most))
        return [cast(TResponseInputItem, item_of(node.step)) for node in steps]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Append items, all or none (256 at a time)."""
        if items:
            await self._there(self._grow([step_of(cast(dict[str, Any], item)) for item in items]))

    async def pop_item(self) -> TResponseInputItem | None:
        """Take back the newest item and return it; None where there is none."""
        node = await self._there(self._until_it_holds(self._take_back))
        return None if node is None else cast(TResponseInputItem, item_of(node.step))

    async def clear_session(self) -> None:
        """Drop the tree and everything in it."""
        await self._there(self._clear())

    async def fork(self, new_branch: str = "", *, before_turn: int | None = None) -> Self:
        """A session that shares this one's items so far, on a branch of its own: constant cost, nothing is copied.

        Args:
            before_turn: only the items before this user message, counted from 1 (`turns`).

        Raises:
            NotFoundError: there is no such turn, or no session yet.
        """
        made = await self._there(self._fork(new_branch, before_turn))
        return self._on(made)

    async def turns(self) -> list[Turn]:
        """The user messages of this branch, oldest first."""
        steps = await self._there(self._newest(None))
        asked = [node for node in steps if node.step.role == "user"]
        return [Turn(number, node.step.content, node.parent_id) for number, node in enumerate(asked, 1)]

    async def branches(self) -> list[Self]:
        """A session for every branch that may grow, in the order in which they were made."""
        try:
            found = await self._there(self._katsura.memory.get_tree(self.session_id))
        except NotFoundError:
            return []
        return [self._on(each.name) for each in found.branches if each.state == tree_pb.BRANCH_STATE_ACTIVE]

    def _on(self, branch: str) -> Self:
        return type(self)(self.session_id, self._katsura, branch=branch, session_settings=self.session_settings)

    async def _fork(self, new_branch: str, before_turn: int | None) -> str:
        at = 0
        if before_turn is not None:
            asked = [node for node in await self._newest(None) if node.step.role == "user"]
            if not 1 <= before_turn <= len(asked):
                raise NotFoundError(
                    f"there is no turn {before_turn}; the session has {len(asked)}", field="before_turn"
                )
            at = asked[before_turn - 1].parent_id or EMPTY_ROOT
        made = await self._katsura.memory.fork(self.session_id, branch=self.branch, at_node=at, new_branch=new_branch)
        return made.branch.name

    async def _there(self, work: Coroutine[Any, Any, T]) -> T:
        """`work` on the client's loop: one channel serves every loop and thread of the program."""
        return await asyncio.wrap_future(self._katsura.start(work))

    async def _newest(self, most: int | None) -> Sequence[tree_pb.Node]:
        pages: list[Sequence[tree_pb.Node]] = []
        left, end = most, 0
        while left is None or left > 0:
            page = await self._path(end, _PAGE if left is None else min(left, _PAGE))
            if page is None:
                break
            pages.append(page.nodes)
            left = None if left is None else left - len(page.nodes)
            end = page.next_end_node
            if not end:
                break
        return [node for nodes in reversed(pages) for node in nodes if not node.redacted]

    async def _path(self, end: int, size: int) -> pb.GetPathResponse | None:
        try:
            return await self._katsura.memory.get_path(
                self.session_id, branch=self.branch, end_node=end, page_size=size
            )
        except NotFoundError:
            return None

    async def _grow(self, steps: Sequence[tree_pb.Step]) -> None:
        for at in range(0, len(steps), _STEPS_A_GROW):
            batch = steps[at : at + _STEPS_A_GROW]
            await self._until_it_holds(partial(self._append, batch))

    async def _append(self, steps: Sequence[tree_pb.Step]) -> None:
        memory = self._katsura.memory
        try:
            await memory.grow(self.session_id, steps, branch=self.branch, dedupe=pb.DEDUPE_ALWAYS_NEW)
        except NotFoundError:
            if self.branch:
                raise
            await self._create()
            await memory.grow(self.session_id, steps, dedupe=pb.DEDUPE_ALWAYS_NEW)

    async def _create(self) -> None:
        try:
            await self._katsura.memory.create_tree(tree_id=self.session_id)
        except AlreadyExistsError:
            return  # another writer was quicker

    async def _take_back(self) -> tree_pb.Node | None:
        page = await self._path(0, 1)
        if page is None or not page.nodes:
            return None
        node = page.nodes[-1]
        revised = await self._katsura.memory.revise(
            self.session_id,
            restore_after=node.parent_id,
            reason="taken back",
            branch=page.branch.name,
            expected_head=node.node_id,
        )
        if self.branch:
            self.branch = revised.branch.name
        return node

    async def _until_it_holds(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, again where somebody added or took back in between."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await work()
            except ConflictError:
                continue
            except FailedPreconditionError as error:  # the default branch was left just now
                if self.branch or error.reason is not Reason.BRANCH_NOT_WRITABLE:
                    raise
        return await work()

    async def _clear(self) -> None:
        try:
            await self._katsura.memory.delete_tree(self.session_id)
        except NotFoundError:
            return
