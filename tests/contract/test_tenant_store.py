"""One suite over both tenant stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from katsura.domain.errors import InvalidArgumentError, NotFoundError, Reason
from katsura.domain.ids import TenantId
from katsura.state.connect import Store
from katsura.state.tenants import RedisTenantStore, TenantStore, TwinTenantStore
from katsura.testing.store import EmbeddedStore

ACME, BLUE = TenantId("acme"), TenantId("blue")


class TurnedClock:
    """A clock that ticks once each time it is read."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def wall_ms(self) -> int:
        self.now += 1
        return self.now

    def monotonic_s(self) -> float:
        return self.now / 1000


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedStore]:
    with EmbeddedStore() as running:
        yield running


@pytest.fixture(params=["twin", "valkey"])
async def tenants(request: pytest.FixtureRequest) -> AsyncIterator[TenantStore]:
    if request.param == "twin":
        yield TwinTenantStore(TurnedClock())
        return
    store = await Store.open(request.getfixturevalue("server").url)
    await store.client.flushall()
    yield RedisTenantStore(store, TurnedClock())
    await store.close()


async def test_a_tenant_keeps_its_salt_and_shares_it_with_nobody(tenants: TenantStore) -> None:
    first = await tenants.ensure_tenant(ACME)
    assert await tenants.ensure_tenant(ACME) == first
    assert (await tenants.ensure_tenant(BLUE)).salt != first.salt
    assert await tenants.list_tenants() == [ACME, BLUE]


async def test_callers_at_once_get_one_salt(tenants: TenantStore) -> None:
    made = await asyncio.gather(*(tenants.ensure_tenant(ACME) for _ in range(20)))
    assert len({tenant.salt for tenant in made}) == 1


async def test_a_key_speaks_for_its_tenant(tenants: TenantStore) -> None:
    key = await tenants.create_key(ACME, "laptop")
    assert key.secret.startswith("ksk_")
    assert len(key.secret) >= 47
    assert await tenants.resolve(key.secret) == await tenants.ensure_tenant(ACME)


@pytest.mark.parametrize("text", ["", "ksk_", "ksk_nobody", "Bearer x", "ksk_" + "x" * 500, "ksk_ü"])
async def test_a_text_that_is_no_key_speaks_for_nobody(tenants: TenantStore, text: str) -> None:
    await tenants.create_key(ACME)
    assert await tenants.resolve(text) is None


async def test_a_revoked_key_speaks_for_nobody_and_stays_listed(tenants: TenantStore) -> None:
    kept, gone = await tenants.create_key(ACME, "a"), await tenants.create_key(ACME, "b")
    revoked = await tenants.revoke_key(gone.record.key_id)
    assert revoked.revoke_ms is not None
    assert await tenants.revoke_key(gone.record.key_id) == revoked
    assert await tenants.resolve(gone.secret) is None
    assert await tenants.resolve(kept.secret) is not None
    assert await tenants.list_keys(ACME) == [kept.record, revoked]


async def test_keys_are_listed_by_tenant_or_together(tenants: TenantStore) -> None:
    one, two = await tenants.create_key(ACME), await tenants.create_key(BLUE)
    assert await tenants.list_keys(BLUE) == [two.record]
    assert await tenants.list_keys() == [one.record, two.record]


async def test_revoking_an_unknown_key_says_so(tenants: TenantStore) -> None:
    with pytest.raises(NotFoundError) as failure:
        await tenants.revoke_key("key_unknown")
    assert failure.value.reason is Reason.API_KEY_NOT_FOUND


async def test_a_tenant_needs_a_name(tenants: TenantStore) -> None:
    with pytest.raises(InvalidArgumentError, match="tenant"):
        await tenants.create_key(TenantId("no spaces"))


async def test_neither_secret_nor_salt_is_ever_printed(tenants: TenantStore) -> None:
    key, tenant = await tenants.create_key(ACME), await tenants.ensure_tenant(ACME)
    assert key.secret not in repr(key)
    assert repr(tenant.salt) not in repr(tenant)


async def test_the_secret_is_not_in_the_store(server: EmbeddedStore) -> None:
    store = await Store.open(server.url)
    key = await RedisTenantStore(store, TurnedClock()).create_key(ACME)
    await store.close()
    written = b"".join(path.read_bytes() for path in server.folder.rglob("*.aof"))
    assert b"api-key" in written
    assert key.secret.encode() not in written
