"""Who is calling: tenant, session and request ids, carried as gRPC metadata.

Our own processes prove themselves by the installation's internal token and may speak for any tenant; everybody else
is the tenant of their API key. A tenant is never read from a request body.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from katsura.domain.errors import PermissionDeniedError, Reason, UnauthenticatedError
from katsura.domain.ids import TenantId
from katsura.domain.tenant import Tenant
from katsura.telemetry import trace

INTERNAL = "x-katsura-internal"
TENANT = "x-katsura-tenant"
TENANT_SALT = "x-katsura-tenant-salt-bin"
REQUEST = "x-request-id"
SESSION = "x-session-id"
AUTHORIZATION = "authorization"
TRACEPARENT = "traceparent"

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class CallContext:
    """Who calls and for what.

    Attributes:
        tenant: whose data; None for calls between our processes that touch nobody's (Drain, Probe).
        internal: whether the caller is one of our own processes.
        request_id: identity of the request, for logs.
        session_id: agent session, for logs.
    """

    tenant: Tenant | None
    internal: bool = False
    request_id: str = ""
    session_id: str = ""


class TenantResolver(Protocol):
    """Finds whom an API key belongs to (`state.tenants` provides it)."""

    async def resolve(self, api_key: str) -> Tenant | None:
        """The tenant of a live key, or None."""
        ...


_CURRENT: ContextVar[CallContext | None] = ContextVar("katsura_call", default=None)


def current() -> CallContext:
    """The context of the call being served."""
    call = _CURRENT.get()
    if call is None:
        raise AssertionError("no call is being served here")
    return call


def current_tenant() -> Tenant:
    """The tenant of the call being served; UNAUTHENTICATED where it has none."""
    call = current()
    if call.tenant is None:
        raise UnauthenticatedError("this call acts for no tenant; send an API key as 'authorization: Bearer <key>'")
    return call.tenant


def require_internal() -> None:
    """Refuse callers that are not our own processes."""
    if not current().internal:
        raise PermissionDeniedError("only Katsura's own processes may call this")


def enter(call: CallContext) -> None:
    """Make `call` current for the task that serves it."""
    _CURRENT.set(call)


def outgoing(call: CallContext | None, internal_token: str = "", api_key: str = "") -> Metadata:
    """Metadata that carries `call` to another process: by internal token for ours, by API key for clients."""
    pairs: list[tuple[str, str | bytes]] = []
    if internal_token:
        pairs.append((INTERNAL, internal_token))
        if call is not None and call.tenant is not None:
            pairs += [(TENANT, call.tenant.tenant_id), (TENANT_SALT, call.tenant.salt)]
    elif api_key:
        pairs.append((AUTHORIZATION, f"Bearer {api_key}"))
    if call is not None:
        pairs += [(name, value) for name, value in ((REQUEST, call.request_id), (SESSION, call.session_id)) if value]
    parent = trace.traceparent()
    if parent:
        pairs.append((TRACEPARENT, parent))
    return tuple(pairs)


async def incoming(
    metadata: Sequence[tuple[str, str | bytes]], internal_token: str, resolver: TenantResolver | None
) -> CallContext:
    """Read who is calling.

    Raises:
        UnauthenticatedError: the internal token or the API key is wrong. No credential at all is a call without a
            tenant, which `current_tenant` refuses where one is needed (health checks need none).
    """
    found = dict(metadata)
    request_id, session_id = str(found.get(REQUEST, "")), str(found.get(SESSION, ""))
    if INTERNAL in found:
        if not internal_token or not hmac.compare_digest(str(found[INTERNAL]).encode(), internal_token.encode()):
            raise UnauthenticatedError(
                "the internal token is not this installation's", reason=Reason.INVALID_CREDENTIAL
            )
        name, salt = found.get(TENANT), found.get(TENANT_SALT)
        tenant = Tenant(TenantId(str(name)), salt) if name and isinstance(salt, bytes) else None
        return CallContext(tenant, internal=True, request_id=request_id, session_id=session_id)
    scheme, _, key = str(found.get(AUTHORIZATION, "")).partition(" ")
    if not scheme:
        return CallContext(None, request_id=request_id, session_id=session_id)
    tenant = await resolver.resolve(key.strip()) if resolver is not None and scheme.lower() == "bearer" else None
    if tenant is None:
        raise UnauthenticatedError(
            "the API key is not known; make one with 'katsura key create'", reason=Reason.INVALID_CREDENTIAL
        )
    return CallContext(tenant, request_id=request_id, session_id=session_id)
