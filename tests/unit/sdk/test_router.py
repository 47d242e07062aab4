from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from katsura.api.router.v1 import router_service_pb2 as pb
from katsura.domain.errors import KatsuraError, Reason, UnavailableError
from katsura.rpc.status import CODES, to_status
from katsura.sdk.connection import Connection
from katsura.sdk.router import RouterClient


class Replica:
    """The stub of one router: fails until it recovers."""

    def __init__(self, *failures: KatsuraError) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def ListModels(self, request: object, **_: object) -> pb.ListModelsResponse:
        self.calls += 1
        if self.failures:
            error = self.failures.pop(0)
            trailing = grpc.aio.Metadata(("grpc-status-details-bin", to_status(error).SerializeToString()))
            raise grpc.aio.AioRpcError(CODES[error.code], grpc.aio.Metadata(), trailing, details=error.message)
        return pb.ListModelsResponse(models=[pb.Model(name="m")])


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    channel = grpc.aio.insecure_channel("unix:/nowhere")
    yield Connection(channel)
    await channel.close()


def client(connection: Connection, *replicas: Replica) -> RouterClient:
    made = RouterClient([connection] * len(replicas))
    made._stubs = list(replicas)  # type: ignore[assignment]
    return made


AWAY = UnavailableError("away", retry_after_s=0.0)


async def test_the_next_replica_is_asked_when_one_is_away(connection: Connection) -> None:
    first, second = Replica(AWAY), Replica()
    assert [model.name for model in await client(connection, first, second).list_models()] == ["m"]
    assert (first.calls, second.calls) == (1, 1)


async def test_a_draining_replica_counts_as_away(connection: Connection) -> None:
    draining, second = Replica(UnavailableError("draining", reason=Reason.DRAINING)), Replica()
    await client(connection, draining, second).list_models()
    assert second.calls == 1


async def test_rounds_are_repeated_while_all_are_away(connection: Connection) -> None:
    first, second = Replica(AWAY, AWAY), Replica(AWAY)
    await client(connection, first, second).list_models()
    assert (first.calls, second.calls) == (2, 2)


async def test_a_decision_is_not_asked_for_elsewhere(connection: Connection) -> None:
    first, second = Replica(UnavailableError("none", reason=Reason.NO_SHARD)), Replica()
    with pytest.raises(UnavailableError):
        await client(connection, first, second).list_models()
    assert second.calls == 0
