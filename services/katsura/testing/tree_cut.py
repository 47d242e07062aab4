"""A service that dies in the middle of an operation: the store does some of its writes, and no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, cast

from katsura.domain.errors import KatsuraError, Reason, UnavailableError
from katsura.state.trees import TreeStore

WRITES: Final = frozenset((
    "create", "update", "drop", "grow", "summarise", "judge", "roll_up", "revise", "fork", "release", "merge",
    "set_slots", "redact", "refer", "unrefer", "invalidate", "look", "update_branch",
))  # fmt: skip
"""Calls of a tree store that commit."""


class CutStore:
    """A tree store that can be cut off at a write. Pass `store` where a `TreeStore` is asked for."""

    def __init__(self, trees: TreeStore) -> None:
        self._trees = trees
        self._left: int | None = None
        self._after = False

    @property
    def store(self) -> TreeStore:
        """This, as what it stands for."""
        return cast(TreeStore, self)

    async def during(self, cut: int, act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run `act` and cut it off at its write number `cut` (negative: after that is done). What it says is lost."""
        self._left, self._after = abs(cut), cut < 0
        try:
            await act()
        except KatsuraError:
            return
        finally:
            self._left = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._trees, name)
        return self._cut(found) if name in WRITES and self._left is not None else found

    def _cut(self, write: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def called(*arguments: object, **named: object) -> object:
            if self._left is None:
                return await write(*arguments, **named)
            self._left -= 1
            if self._left < 0 or (self._left == 0 and not self._after):
                raise _dead()
            answer = await write(*arguments, **named)
            if self._left == 0:
                raise _dead()
            return answer

        return called


def _dead() -> UnavailableError:
    return UnavailableError("the service died here", reason=Reason.STORE_UNAVAILABLE)
