import pytest

from katsura.domain.errors import UnauthenticatedError
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.rpc.context import CallContext, incoming, outgoing

ANN = Tenant(TenantId("ann"), b"a" * 32)


class Keys:
    async def resolve(self, api_key: str) -> Tenant | None:
        return ANN if api_key == "good" else None


async def test_our_own_processes_speak_for_any_tenant() -> None:
    call = await incoming(outgoing(CallContext(ANN, request_id="r1", session_id="s1"), "token"), "token", None)
    assert call == CallContext(ANN, internal=True, request_id="r1", session_id="s1")


async def test_a_client_is_the_tenant_of_its_key() -> None:
    call = await incoming(outgoing(None, api_key="good"), "token", Keys())
    assert (call.tenant, call.internal) == (ANN, False)


@pytest.mark.parametrize("token", ["", "other"])
async def test_a_wrong_internal_token_is_refused(token: str) -> None:
    with pytest.raises(UnauthenticatedError):
        await incoming(outgoing(CallContext(ANN), "guess"), token, Keys())


async def test_a_wrong_key_is_refused_and_cannot_name_a_tenant() -> None:
    with pytest.raises(UnauthenticatedError):
        await incoming((("authorization", "Bearer bad"), ("x-katsura-tenant", "ann")), "token", Keys())


async def test_a_tenant_named_without_the_token_is_not_believed() -> None:
    metadata = (("x-katsura-tenant", "ann"), ("x-katsura-tenant-salt-bin", b"a" * 32))
    assert (await incoming(metadata, "token", Keys())).tenant is None
