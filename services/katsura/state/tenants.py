"""Tenants, and the API keys that speak for them.

The gateway and every service that takes a caller's key resolve it here; `katsura key` makes, lists and revokes keys.
A key is 256 random bits, so one SHA-256 is all the hashing it needs: slow hashes protect secrets that can be guessed,
and there is nothing to guess. The key itself is shown once and never stored; the store finds its record by the digest,
so comparing takes no secret-dependent time. A tenant's salt is drawn when its record is made and never changes: page
hashes under it could not be found again otherwise.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from katsura.domain.clock import Clock
from katsura.domain.errors import NotFoundError, Reason
from katsura.domain.ids import TenantId, checked_name
from katsura.domain.tenant import SALT_BYTES, Tenant
from katsura.state import keys
from katsura.state.connect import Store, translated

KEY_PREFIX = "ksk_"
_KEY_BYTES = 32
_KEY_CHARS_MAX = 128
_HINT_CHARS = len(KEY_PREFIX) + 4


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is known of a key; not the key.

    Attributes:
        key_id: names it in commands (`key_...`).
        name: what its owner calls it.
        hint: its first characters, to recognise it by.
        create_ms: milliseconds since the Unix epoch; revoke_ms likewise, None while it lives.
    """

    key_id: str
    tenant_id: TenantId
    name: str
    hint: str
    create_ms: int
    revoke_ms: int | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment when its secret is known."""

    secret: str = field(repr=False)
    record: ApiKey


class TenantStore(Protocol):
    """Tenants and keys. Raises UnavailableError (STORE_UNAVAILABLE) when the store cannot be reached."""

    async def ensure_tenant(self, tenant_id: TenantId) -> Tenant:
        """The tenant, made with a fresh salt if it is new; callers at once get the same one."""
        ...

    async def list_tenants(self) -> list[TenantId]:
        """Every tenant, by name."""
        ...

    async def create_key(self, tenant_id: TenantId, name: str = "") -> NewKey:
        """Make a key, and its tenant if that is new."""
        ...

    async def list_keys(self, tenant_id: TenantId | None = None) -> list[ApiKey]:
        """Keys of a tenant or of all, oldest first, revoked ones included."""
        ...

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Revoke a key for good; again is no error. NotFoundError (API_KEY_NOT_FOUND) for an unknown id."""
        ...

    async def resolve(self, api_key: str) -> Tenant | None:
        """Whom a live key speaks for, None for one that is unknown or revoked (`rpc.context.TenantResolver`)."""
        ...


def digest_of(secret: str) -> str | None:
    """The name of a key's record: SHA-256, hexadecimal; None for text that cannot be a key."""
    if not secret.startswith(KEY_PREFIX) or len(secret) > _KEY_CHARS_MAX or not secret.isascii():
        return None
    return hashlib.sha256(secret.encode()).hexdigest()


def _new_key(tenant_id: TenantId, name: str, now_ms: int) -> tuple[str, NewKey]:
    checked_name(tenant_id, "tenant")
    secret = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    record = ApiKey(f"key_{secrets.token_hex(8)}", tenant_id, name, secret[:_HINT_CHARS], now_ms)
    return hashlib.sha256(secret.encode()).hexdigest(), NewKey(secret, record)


def _unknown(key_id: str) -> NotFoundError:
    return NotFoundError(
        f"there is no API key {key_id!r}; 'katsura key list' shows them", reason=Reason.API_KEY_NOT_FOUND
    )


class TwinTenantStore:
    """The store in one process's memory."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tenants: dict[TenantId, Tenant] = {}
        self._keys: dict[str, ApiKey] = {}

    async def ensure_tenant(self, tenant_id: TenantId) -> Tenant:
        """See `TenantStore`."""
        checked_name(tenant_id, "tenant")
        return self._tenants.setdefault(tenant_id, Tenant(tenant_id, secrets.token_bytes(SALT_BYTES)))

    async def list_tenants(self) -> list[TenantId]:
        """See `TenantStore`."""
        return sorted(self._tenants)

    async def create_key(self, tenant_id: TenantId, name: str = "") -> NewKey:
        """See `TenantStore`."""
        await self.ensure_tenant(tenant_id)
        digest, made = _new_key(tenant_id, name, self._clock.wall_ms())
        self._keys[digest] = made.record
        return made

    async def list_keys(self, tenant_id: TenantId | None = None) -> list[ApiKey]:
        """See `TenantStore`."""
        return _in_order(key for key in self._keys.values() if tenant_id in (None, key.tenant_id))

    async def revoke_key(self, key_id: str) -> ApiKey:
        """See `TenantStore`."""
        for digest, key in self._keys.items():
            if key.key_id == key_id:
                if key.revoke_ms is None:
                    self._keys[digest] = replace(key, revoke_ms=self._clock.wall_ms())
                return self._keys[digest]
        raise _unknown(key_id)

    async def resolve(self, api_key: str) -> Tenant | None:
        """See `TenantStore`."""
        key = self._keys.get(digest_of(api_key) or "")
        return None if key is None or key.revoke_ms is not None else self._tenants[key.tenant_id]


_KNOWN_MAX: Final = 4096


class RedisTenantStore:
    """The store in Valkey or Redis. Each record is one key, so nothing here needs a function."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: dict[tuple[str, TenantId], Tenant] = {}
        """By the store's life: a tenant's salt is written once, so a call with a key need not read it again."""

    async def ensure_tenant(self, tenant_id: TenantId) -> Tenant:
        """See `TenantStore`."""
        name = keys.tenant(checked_name(tenant_id, "tenant"))
        with translated(self._store.url):
            found = await self._store.client.hget(name, "salt")
            if found is None:
                # The first of several writers wins; all of them read what it wrote.
                await self._store.client.hsetnx(name, "salt", secrets.token_bytes(SALT_BYTES))
                await self._store.client.hsetnx(name, "create_ms", str(self._clock.wall_ms()))
                await self._store.client.sadd(keys.TENANTS, tenant_id)
                found = await self._store.client.hget(name, "salt")
        assert isinstance(found, bytes), "a tenant's salt is written once and never deleted"
        return Tenant(tenant_id, found)

    async def list_tenants(self) -> list[TenantId]:
        """See `TenantStore`."""
        with translated(self._store.url):
            return sorted(TenantId(_text(name)) for name in await self._store.client.smembers(keys.TENANTS))

    async def create_key(self, tenant_id: TenantId, name: str = "") -> NewKey:
        """See `TenantStore`."""
        await self.ensure_tenant(tenant_id)
        digest, made = _new_key(tenant_id, name, self._clock.wall_ms())
        key = made.record
        record: dict[bytes | bytearray | memoryview[int] | str | int | float, str | int] = {
            "id": key.key_id,
            "tenant": key.tenant_id,
            "name": key.name,
            "hint": key.hint,
            "create_ms": key.create_ms,
        }
        with translated(self._store.url):
            await self._store.client.hset(keys.api_key(digest), mapping=record)
            # Should we die here, the secret was never shown: an unlisted record that nobody can use.
            await self._store.client.hset(keys.API_KEY_DIGESTS, key.key_id, digest)
        return made

    async def list_keys(self, tenant_id: TenantId | None = None) -> list[ApiKey]:
        """See `TenantStore`."""
        with translated(self._store.url):
            digests = (await self._store.client.hgetall(keys.API_KEY_DIGESTS)).values()
            found = [await self._store.client.hgetall(keys.api_key(_text(digest))) for digest in digests]
        return _in_order(key for key in map(_read, found) if tenant_id in (None, key.tenant_id))

    async def revoke_key(self, key_id: str) -> ApiKey:
        """See `TenantStore`."""
        with translated(self._store.url):
            digest = await self._store.client.hget(keys.API_KEY_DIGESTS, key_id)
            if digest is None:
                raise _unknown(key_id)
            name = keys.api_key(_text(digest))
            await self._store.client.hsetnx(name, "revoke_ms", str(self._clock.wall_ms()))
            return _read(await self._store.client.hgetall(name))

    async def resolve(self, api_key: str) -> Tenant | None:
        """See `TenantStore`."""
        digest = digest_of(api_key)
        if digest is None:
            return None
        tenant, revoked = await self._store.command("HMGET", keys.api_key(digest), "tenant", "revoke_ms")
        if tenant is None or revoked is not None:
            return None
        known = self._store.incarnation, TenantId(_text(tenant))
        if known not in self._known:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[known] = await self.ensure_tenant(known[1])
        return self._known[known]


def _read(found: Mapping[bytes | str, bytes | str]) -> ApiKey:
    text = {_text(name): _text(value) for name, value in found.items()}
    revoked = text.get("revoke_ms")
    return ApiKey(
        key_id=text["id"],
        tenant_id=TenantId(text["tenant"]),
        name=text["name"],
        hint=text["hint"],
        create_ms=int(text["create_ms"]),
        revoke_ms=None if revoked is None else int(revoked),
    )


def _in_order(found: Iterable[ApiKey]) -> list[ApiKey]:
    return sorted(found, key=lambda key: (key.create_ms, key.key_id))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
