"""The client repeats only what may be repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from katsura.api.memory.v1 import block_service_pb2, memory_service_pb2
from katsura.api.memory.v1.memory_pb2 import Attachment
from katsura.domain.errors import UnavailableError
from katsura.rpc.status import CODES, to_status
from katsura.sdk.connection import ATTEMPTS_MAX, Connection
from katsura.sdk.memory import MemoryClient, step

SERVICES = (
    memory_service_pb2.DESCRIPTOR.services_by_name["MemoryService"],
    block_service_pb2.DESCRIPTOR.services_by_name["BlockService"],
)
READS = ("Get", "List", "Find", "Search", "Diff", "AssembleContext", "Export", "Verify", "Watch", "Recall")
LEASES = {"AcquireLease", "RenewLease", "ReleaseLease"}
HARMLESS = {"AttachTokens", "CollectGarbage", "FreezeTree", "PutAttachments", "DeleteTree", "ImportTree", *LEASES}
"""Writes without a request_id: the first tokens and bytes stay whoever repeats, a branch taken again is under the newer
token, giving back twice is giving back once; the others are sent once."""


class Gone:
    """A server that lost the answer of every call."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def method(self, name: str) -> Callable[..., Awaitable[object]]:
        async def call(request: object, **_: object) -> object:
            self.requests.append(request)
            error = UnavailableError("gone", retry_after_s=0.0)
            trailing = grpc.aio.Metadata(("grpc-status-details-bin", to_status(error).SerializeToString()))
            raise grpc.aio.AioRpcError(CODES[error.code], grpc.aio.Metadata(), trailing, details=error.message)

        return call


@pytest.fixture
def gone() -> Gone:
    return Gone()


@pytest.fixture
async def memory(gone: Gone, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MemoryClient]:
    channel = grpc.aio.insecure_channel("unix:/nowhere")
    client = MemoryClient(Connection(channel))
    monkeypatch.setattr(client, "_stub", type("Stub", (), {"__getattr__": lambda _, name: gone.method(name)})())
    yield client
    await channel.close()


def test_every_write_of_the_api_carries_an_idempotency_key_or_is_known_to_need_none() -> None:
    writes = [method for service in SERVICES for method in service.methods if not method.name.startswith(READS)]
    grow = memory_service_pb2.GrowRequest.DESCRIPTOR  # in each message of GrowStream
    bodies = {method.name: grow if method.name == "GrowStream" else method.input_type for method in writes}
    bare = {name for name, body in bodies.items() if "request_id" not in body.fields_by_name}
    assert bare <= HARMLESS
    assert len(writes) > 15


async def test_a_write_is_repeated_under_the_key_that_it_was_first_sent_with(memory: MemoryClient, gone: Gone) -> None:
    with pytest.raises(UnavailableError):
        await memory.grow("t", [step("user", "once")])
    assert len(gone.requests) == ATTEMPTS_MAX
    assert len({request.request_id for request in gone.requests}) == 1
    assert gone.requests[0].request_id


async def test_a_write_without_a_key_is_sent_once(memory: MemoryClient, gone: Gone) -> None:
    for attempt in (
        memory.delete_tree("t"),
        memory.put_attachments("t", 1, [Attachment(task="a")], replace=True),
        memory._call("Grow", memory_service_pb2.GrowRequest(tree_id="t")),
    ):
        gone.requests.clear()
        with pytest.raises(UnavailableError):
            await attempt
        assert len(gone.requests) == 1


async def test_what_stays_as_it_was_first_put_may_be_repeated(memory: MemoryClient, gone: Gone) -> None:
    with pytest.raises(UnavailableError):
        await memory.put_attachments("t", 1, [Attachment(task="a")])
    assert len(gone.requests) == ATTEMPTS_MAX
