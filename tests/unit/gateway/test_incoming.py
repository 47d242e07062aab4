from __future__ import annotations

import pytest
from starlette.requests import Request
from starlette.types import Message

from katsura.domain.errors import InvalidArgumentError, Reason, UnauthenticatedError
from katsura.domain.ids import DEFAULT_TENANT, TenantId
from katsura.gateway.config import GatewayConfig
from katsura.gateway.incoming import KEY_CACHE_S, Doorkeeper, json_body, named_once, timeout_of
from katsura.state.tenants import TwinTenantStore

LOCAL = {"host": "127.0.0.1:8080"}


class Clock:
    now = 0.0

    def wall_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now


def request(headers: dict[str, str] | None = None, *chunks: bytes) -> Request:
    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    left = list(chunks) or [b""]

    async def receive() -> Message:
        body = left.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": raw}, receive)


def config(*, keyless: bool = False) -> GatewayConfig:
    return GatewayConfig("g", "127.0.0.1:0", "unix:/m", ("unix:/r",), "unix:///s", "token", allow_keyless=keyless)


class House:
    """A doorkeeper, its store and its clock."""

    def __init__(self, *, keyless: bool = False) -> None:
        self.clock = Clock()
        self.tenants = TwinTenantStore(self.clock)
        self.door = Doorkeeper(config(keyless=keyless), self.tenants, self.clock)


def with_key(key: str, **more: str) -> Request:
    return request({**LOCAL, "authorization": f"Bearer {key}", **more})


async def test_a_key_opens_its_tenant() -> None:
    house = House()
    key = await house.tenants.create_key(TenantId("acme"))
    assert await house.door.tenant(with_key(key.secret)) == await house.tenants.ensure_tenant(TenantId("acme"))


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer nonsense"}, {"authorization": "Basic x"}])
async def test_without_a_known_key_nobody_comes_in(header: dict[str, str]) -> None:
    with pytest.raises(UnauthenticatedError):
        await House().door.tenant(request({**LOCAL, **header}))


async def test_a_revoked_key_is_believed_for_two_seconds_at_most() -> None:
    house = House()
    key = await house.tenants.create_key(TenantId("acme"))
    await house.door.tenant(with_key(key.secret))
    await house.tenants.revoke_key(key.record.key_id)
    house.clock.now = KEY_CACHE_S
    with pytest.raises(UnauthenticatedError) as failure:
        await house.door.tenant(with_key(key.secret))
    assert failure.value.reason is Reason.INVALID_CREDENTIAL


async def test_on_this_machine_the_default_tenant_needs_no_key() -> None:
    house = House(keyless=True)
    default = await house.tenants.ensure_tenant(DEFAULT_TENANT)
    assert await house.door.tenant(request(LOCAL)) == default
    assert await house.door.tenant(with_key("local")) == default


async def test_a_key_names_its_tenant_on_this_machine_too() -> None:
    house = House(keyless=True)
    key = await house.tenants.create_key(TenantId("acme"))
    assert (await house.door.tenant(with_key(key.secret))).tenant_id == "acme"
    with pytest.raises(UnauthenticatedError):
        await house.door.tenant(with_key("ksk_mistyped"))


@pytest.mark.parametrize("headers", [{"host": "rebound.example:8080"}, {**LOCAL, "origin": "https://evil.example"}])
async def test_a_page_from_elsewhere_is_not_this_machine(headers: dict[str, str]) -> None:
    with pytest.raises(UnauthenticatedError):
        await House(keyless=True).door.tenant(request(headers))


def test_a_name_may_come_by_header_or_by_metadata() -> None:
    plain = request()
    assert named_once(plain, "x-session-id", {}, "session_id") == ("", "metadata.session_id")
    assert named_once(plain, "x-session-id", {"session_id": "a"}, "session_id") == ("a", "metadata.session_id")
    both = request({"x-session-id": "a"})
    assert named_once(both, "x-session-id", {"session_id": "a"}, "session_id") == ("a", "x-session-id")
    with pytest.raises(InvalidArgumentError, match="different things"):
        named_once(both, "x-session-id", {"session_id": "b"}, "session_id")
    with pytest.raises(InvalidArgumentError) as failure:
        named_once(request({"x-session-id": "no spaces"}), "x-session-id", {}, "session_id")
    assert failure.value.field == "x-session-id"


def test_a_client_may_only_shorten_the_deadline() -> None:
    assert timeout_of(request(), 600) == 600
    assert timeout_of(request({"x-request-timeout-s": "1.5"}), 600) == 1.5
    assert timeout_of(request({"x-request-timeout-s": "1e9"}), 600) == 600


async def test_a_body_is_json_or_refused() -> None:
    assert await json_body(request(None, b'{"a":', b" 1}"), 100) == {"a": 1}
    for chunks in ((b"",), (b"{",), (b"\xff",), (b'{"a": Infinity}',), (b"[" * 99_999,)):
        with pytest.raises(InvalidArgumentError):
            await json_body(request(None, *chunks), 100_000)


@pytest.mark.parametrize(
    ("headers", "chunks"), [({"content-length": "101"}, (b"{}",)), ({}, (b" " * 60, b" " * 60)), ({}, (b" " * 101,))]
)
async def test_a_body_over_the_limit_is_refused(headers: dict[str, str], chunks: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidArgumentError) as failure:
        await json_body(request(headers, *chunks), 100)
    assert failure.value.reason is Reason.BODY_TOO_LARGE


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    assert await json_body(request({"content-length": "100"}, b"{}" + b" " * 98), 100) == {}
