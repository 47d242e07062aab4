"""Calls that block need no event loop, and are otherwise what all calls are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from katsura.domain.errors import ConflictError, InvalidArgumentError, KatsuraError, UnavailableError
from katsura.rpc import context as calls
from katsura.rpc.status import CODES, to_status
from katsura.sdk.blocking import BlockingConnection, at_once, blocking
from katsura.sdk.connection import Connection


class Failed(grpc.RpcError):
    """What a blocking call raises."""

    def __init__(self, error: KatsuraError) -> None:
        self.error = error

    def code(self) -> grpc.StatusCode:
        return CODES[self.error.code]

    def details(self) -> str:
        return self.error.message

    def trailing_metadata(self) -> tuple[Any, ...]:
        return (("grpc-status-details-bin", to_status(self.error).SerializeToString()),)


class Method:
    """A blocking stub's method that answers by a script."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[object] = []
        self.metadata: calls.Metadata = ()

    def __call__(self, request: object, *, timeout: float, metadata: calls.Metadata) -> object:
        assert timeout > 0
        self.requests.append(request)
        self.metadata = metadata
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def connection() -> Iterator[BlockingConnection]:
    loop = asyncio.new_event_loop()  # the other one's channel wants one
    asyncio.set_event_loop(loop)
    other = Connection(grpc.aio.insecure_channel("unix:/nowhere"), api_key="k", timeout_s=30)
    made = blocking("unix:/nowhere", other)
    yield made
    at_once(made.close())
    loop.run_until_complete(other.close())
    asyncio.set_event_loop(None)
    loop.close()


def test_a_blocking_call_is_sent_again_where_it_failed_on_the_way_as_the_same_tenant(
    connection: BlockingConnection,
) -> None:
    gone = Failed(UnavailableError("gone", retry_after_s=0.0))
    method, request = Method(gone, gone, "answer"), object()
    assert at_once(connection.unary(method, "m", request)) == "answer"
    assert method.requests == [request] * 3
    assert ("authorization", "Bearer k") in method.metadata


def test_a_blocking_call_raises_the_peers_error(connection: BlockingConnection) -> None:
    method = Method(Failed(ConflictError("moved")))
    with pytest.raises(ConflictError, match="moved"):
        at_once(connection.unary(method, "m", object()))
    assert len(method.requests) == 1


def test_only_this_machine_is_called_without_a_certificate(connection: BlockingConnection) -> None:
    with pytest.raises(InvalidArgumentError, match="not on this machine"):
        blocking("10.0.0.1:7001", connection)


def test_what_waits_for_an_event_loop_does_not_work_at_once() -> None:
    async def sleeping() -> None:
        await asyncio.sleep(0)

    async def failing() -> None:
        raise ValueError("of its own")

    with pytest.raises(RuntimeError, match="waits for an event loop"):
        at_once(sleeping())
    with pytest.raises(ValueError, match="of its own"):
        at_once(failing())
