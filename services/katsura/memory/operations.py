"""What every operation of the memory service stands on: what a write says about itself, retries, late work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, TypeVar

from katsura.domain.errors import ConflictError, InvalidArgumentError, Reason
from katsura.domain.trees import Request
from katsura.memory.core import limits
from katsura.state.trees import (
    TreeRef,
    TreeStore,
)
from katsura.telemetry import metrics, names, trace

_COMMITS = metrics.counter(names.MEMORY_COMMITS, "Commits acknowledged.", ("operation",))
_CONFLICTS = metrics.counter(names.MEMORY_CONFLICTS, "Writes that lost a compare-and-set.", ("operation",))
_ATTEMPTS: Final = 16
ID_MAX: Final = (1 << 53) - 1
"""Largest node id that is taken."""
_IN_PLACE: Final = 32
"""Work on more nodes than this is done on a thread, so that other calls go on."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Write:
    """What every write to a branch says about itself. `expected_head` None is refused unless `unconditional`."""

    request_id: str
    tree: TreeRef
    branch: str
    expected_head: int | None
    unconditional: bool
    lease_token: int = 0

    def under(self, request: Request) -> Request:
        """The request, made under the lease of this write."""
        return replace(request, lease_token=self.lease_token) if self.lease_token else request

    def checked(self) -> Write:
        """This, with `expected_head` None exactly where any head will do."""
        if self.expected_head is None and not self.unconditional:
            raise InvalidArgumentError(
                "expected_head: say which head you have seen (0: an empty branch), or set unconditional",
                reason=Reason.HEAD_REQUIRED,
                field="expected_head",
            )
        if self.expected_head is not None and self.unconditional:
            raise limits.refuse("unconditional", "expected_head is given too; send one of them")
        limits.check_range(self.lease_token, "lease_token", 0, ID_MAX)
        if self.expected_head is not None:
            limits.check_range(self.expected_head, "expected_head", 0, ID_MAX)
        return self


class Operations:
    """Trees of all tenants, and the work that outlives the call which began it.

    Args:
        trees: the store.
    """

    def __init__(self, trees: TreeStore) -> None:
        self._trees = trees
        self._late: set[asyncio.Task[None]] = set()

    @property
    def trees(self) -> TreeStore:
        """The store."""
        return self._trees

    async def close(self) -> None:
        """Wait for validations that still run."""
        await asyncio.gather(*self._late)

    async def _until_it_holds(self, write: Write, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run a read-then-write again while others move the branch in between, if any head will do."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await attempt()
            except ConflictError as error:
                if write.expected_head is not None or error.reason in (Reason.LEASE_HELD, Reason.LEASE_LOST):
                    raise
        return await attempt()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)


class committing:  # noqa: N801  a context manager, used as a verb; a generator would cost each commit twice as much
    """Count and trace a commit, or the conflict that it lost."""

    __slots__ = ("_operation", "_span")

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._span = trace.span(names.SPAN_COMMIT, {names.OPERATION: operation})

    def __enter__(self) -> None:
        self._span.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._span.__exit__(kind, error, tb)
        if error is None:
            metrics.child(_COMMITS, self._operation).inc()
        elif isinstance(error, ConflictError):
            metrics.child(_CONFLICTS, self._operation).inc()


def as_answer(kind: type[T], found: object) -> T:
    """The answer of a repeated request. The digest covers the operation, so its kind cannot differ."""
    assert isinstance(found, kind)
    return found


async def thread_if(size: int, work: Callable[[], T]) -> T:
    """`work`, on a thread where it is about more than a few nodes."""
    return await asyncio.to_thread(work) if size > _IN_PLACE else work()
