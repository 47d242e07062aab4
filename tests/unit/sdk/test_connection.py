from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from katsura.domain.errors import ConflictError, DeadlineExceededError, KatsuraError, Reason, UnavailableError
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc import context as calls
from katsura.rpc.status import CODES, to_status
from katsura.sdk.connection import BACKOFF_MAX_S, Connection, backoff_s


def failed(error: KatsuraError) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", to_status(error).SerializeToString()))
    return grpc.aio.AioRpcError(CODES[error.code], grpc.aio.Metadata(), trailing, details=error.message)


class Method:
    """A stub's method that answers by a script, errors raised and everything else returned."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.requests: list[object] = []
        self.metadata: calls.Metadata = ()

    async def __call__(self, request: object, *, timeout: float, metadata: calls.Metadata) -> object:
        assert timeout > 0
        self.requests.append(request)
        self.metadata = metadata
        answer = self.answers.pop(0)
        if isinstance(answer, grpc.aio.AioRpcError):
            raise answer
        return answer


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    channel = grpc.aio.insecure_channel("unix:/nowhere")
    yield Connection(channel, internal_token="secret", timeout_s=30)
    await channel.close()


GONE = failed(UnavailableError("gone", retry_after_s=0.0))


async def test_what_failed_on_the_way_is_sent_again_unchanged(connection: Connection) -> None:
    method, request = Method(GONE, GONE, "answer"), object()
    assert await connection.unary(method, "m", request) == "answer"
    assert method.requests == [request] * 3


async def test_it_gives_up_with_the_peers_error(connection: Connection) -> None:
    method = Method(*[GONE] * 9)
    with pytest.raises(UnavailableError, match="gone"):
        await connection.unary(method, "m", object())
    assert len(method.requests) == 4


@pytest.mark.parametrize(
    "error",
    [ConflictError("moved", metadata={"head": "3"}), UnavailableError("none", reason=Reason.NO_SHARD)],
)
async def test_an_answer_is_an_answer(connection: Connection, error: KatsuraError) -> None:
    method = Method(failed(error))
    with pytest.raises(type(error)) as failure:
        await connection.unary(method, "m", object())
    assert (failure.value.reason, failure.value.metadata) == (error.reason, error.metadata)


async def test_a_pause_beyond_the_deadline_is_not_begun(connection: Connection) -> None:
    method = Method(failed(UnavailableError("gone", retry_after_s=3600.0)))
    with pytest.raises(UnavailableError):
        await connection.unary(method, "m", object(), timeout_s=1.0)


async def test_no_time_left_is_said_without_calling(connection: Connection) -> None:
    method = Method("answer")
    with pytest.raises(DeadlineExceededError):
        await connection.unary(method, "m", object(), timeout_s=0.0)
    assert not method.requests


async def test_our_own_processes_speak_for_the_tenant_of_the_call(connection: Connection) -> None:
    tenant = Tenant(TenantId("ada"), b"s" * 32)
    method = Method("answer")
    acting = connection.acting_for(calls.CallContext(tenant, request_id="r1", session_id="s1"))
    await acting.unary(method, "m", object())
    sent = dict(method.metadata)
    assert sent[calls.INTERNAL] == "secret"
    assert (sent[calls.TENANT], sent[calls.TENANT_SALT]) == ("ada", tenant.salt)
    assert (sent[calls.REQUEST], sent[calls.SESSION]) == ("r1", "s1")
    assert connection.call is None


def test_secrets_are_not_printed(connection: Connection) -> None:
    assert "secret" not in repr(connection)


def test_pauses_grow_to_a_bound_and_the_peers_wish_wins() -> None:
    assert all(0 <= backoff_s(attempt, UnavailableError("x")) <= BACKOFF_MAX_S for attempt in range(30))
    assert backoff_s(0, UnavailableError("x", retry_after_s=7.0)) == 7.0
