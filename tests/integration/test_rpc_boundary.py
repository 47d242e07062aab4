"""A real server and a real channel: who calls, errors and traces as they cross the wire."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from katsura.api.memory.v1 import memory_service_pb2 as pb
from katsura.api.memory.v1 import memory_service_pb2_grpc as stubs
from katsura.domain.errors import ConflictError, InternalError, NotFoundError, Reason, UnauthenticatedError
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc import status
from katsura.rpc.channel import open_channel
from katsura.rpc.context import CallContext, Metadata, current_tenant, outgoing
from katsura.rpc.serve import ServeConfig, Server
from katsura.telemetry import log

TENANT = Tenant(TenantId("ann"), b"a" * 32)
ANN: Metadata = outgoing(CallContext(TENANT), "token")


class Servicer(stubs.MemoryServiceServicer):
    async def GetTree(self, request: pb.GetTreeRequest, context: object) -> pb.GetTreeResponse:  # type: ignore[override]
        tenant = current_tenant()
        if request.tree_id == "missing":
            raise NotFoundError("no tree", reason=Reason.TREE_NOT_FOUND, field="tree_id", retry_after_s=1.5)
        if request.tree_id == "bug":
            raise ZeroDivisionError("secret detail")
        response = pb.GetTreeResponse()
        response.tree.tree_id = tenant.tenant_id
        return response

    async def Watch(self, request: pb.WatchRequest, context: object) -> AsyncIterator[pb.WatchResponse]:  # type: ignore[override]
        yield pb.WatchResponse(branch="main")
        raise ConflictError("moved", metadata={"head": "7"})


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[stubs.MemoryServiceStub]:
    server = Server(ServeConfig("memory", "m1", f"unix:{tmp_path}/s", "token"))
    stubs.add_MemoryServiceServicer_to_server(Servicer(), server.grpc)
    await server.start()
    async with open_channel(server.address) as channel:
        yield stubs.MemoryServiceStub(channel)
    server.stop()
    await server.run()


async def failure(call: object) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return status.from_rpc_error(caught.value)


async def test_the_tenant_of_the_call_is_known_to_the_servicer(stub: stubs.MemoryServiceStub) -> None:
    assert (await stub.GetTree(pb.GetTreeRequest(), metadata=ANN)).tree.tree_id == "ann"


async def test_a_call_without_a_credential_is_refused_where_a_tenant_is_needed(stub: stubs.MemoryServiceStub) -> None:
    assert isinstance(await failure(stub.GetTree(pb.GetTreeRequest())), UnauthenticatedError)


async def test_our_errors_arrive_whole(stub: stubs.MemoryServiceStub) -> None:
    error = await failure(stub.GetTree(pb.GetTreeRequest(tree_id="missing"), metadata=ANN))
    assert isinstance(error, NotFoundError)
    assert (error.reason, error.field, error.retry_after_s) == (Reason.TREE_NOT_FOUND, "tree_id", 1.5)


async def test_a_bug_is_answered_without_its_details(stub: stubs.MemoryServiceStub) -> None:
    error = await failure(stub.GetTree(pb.GetTreeRequest(tree_id="bug"), metadata=ANN))
    assert isinstance(error, InternalError)
    assert "secret" not in error.message


async def test_a_bug_is_logged_under_the_ids_of_its_call(
    stub: stubs.MemoryServiceStub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.configure("memory", log.LogFormat.JSON, "warning")
    call = CallContext(TENANT, request_id="req-7", session_id="trip")
    await failure(stub.GetTree(pb.GetTreeRequest(tree_id="bug"), metadata=outgoing(call, "token")))
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "our own fault" in line]
    assert (line["katsura.tenant"], line["katsura.request"], line["katsura.session"]) == ("ann", "req-7", "trip")
    assert "ZeroDivisionError" in line["exception"]


async def test_a_stream_delivers_before_it_fails(stub: stubs.MemoryServiceStub) -> None:
    stream = stub.Watch(pb.WatchRequest(), metadata=ANN)
    assert (await stream.read()).branch == "main"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    error = status.from_rpc_error(caught.value)
    assert isinstance(error, ConflictError)
    assert error.metadata == {"head": "7"}
