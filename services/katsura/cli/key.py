"""`katsura key create|list|revoke`: API keys, written through `state` into the store of a run."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.table import Table

from katsura.cli.exit import Exit
from katsura.domain.ids import TenantId

if TYPE_CHECKING:
    from katsura.state.tenants import TenantStore

T = TypeVar("T")


def create(store_url: str, tenant: str, name: str, as_json: bool, console: Console) -> Exit:
    """Make a key and show it, this once."""
    made = _with_store(store_url, lambda keys: keys.create_key(TenantId(tenant), name))
    if as_json:
        console.print_json(json.dumps({"key": made.secret, "id": made.record.key_id, "tenant": tenant, "name": name}))
        return Exit.OK
    console.print(made.secret, style="bold", soft_wrap=True, highlight=False)
    console.print(
        f"This is {made.record.key_id} of tenant {tenant}. It is shown once and stored as a hash: keep it now.\n"
        f"Use it as a header (Authorization: Bearer {made.record.hint}…) or as KATSURA_API_KEY.",
        soft_wrap=True,
        highlight=False,
    )
    return Exit.OK


def export(store_url: str, tenant: str, name: str, memory_address: str, console: Console) -> Exit:
    """Make a key and print it as shell commands, with where the memory service is ("": not said)."""
    made = _with_store(store_url, lambda keys: keys.create_key(TenantId(tenant), name))
    values = {"KATSURA_API_KEY": made.secret, "KATSURA_MEMORY_ADDRESS": memory_address}
    for variable, value in values.items():
        if value:
            console.print(f"export {variable}={shlex.quote(value)}", soft_wrap=True, highlight=False, markup=False)
    return Exit.OK


def list_keys(store_url: str, tenant: str, as_json: bool, console: Console) -> Exit:
    """Show keys; `tenant` empty shows those of all."""
    keys = _with_store(store_url, lambda keys: keys.list_keys(TenantId(tenant) if tenant else None))
    if as_json:
        rows = [
            {
                "id": key.key_id,
                "tenant": key.tenant_id,
                "name": key.name,
                "hint": key.hint,
                "created": _when(key.create_ms),
                "revoked": _when(key.revoke_ms),
            }
            for key in keys
        ]
        console.print_json(json.dumps(rows))
        return Exit.OK
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("id", "tenant", "name", "begins with", "created", "revoked"):
        table.add_column(title)
    for key in keys:
        table.add_row(key.key_id, key.tenant_id, key.name, key.hint, _when(key.create_ms), _when(key.revoke_ms) or "-")
    console.print(table if keys else "no keys; `katsura key create` makes one")
    return Exit.OK


def revoke(store_url: str, key_id: str, console: Console) -> Exit:
    """Revoke a key for good."""
    key = _with_store(store_url, lambda keys: keys.revoke_key(key_id))
    console.print(f"{key.key_id} of tenant {key.tenant_id} is revoked since {_when(key.revoke_ms)}")
    return Exit.OK


def _with_store(url: str, work: Callable[[TenantStore], Awaitable[T]]) -> T:
    # Imported here: redis belongs to the extra `services`, which a client of a remote installation need not have.
    from katsura.rpc.clock import SystemClock
    from katsura.state.connect import Store
    from katsura.state.tenants import RedisTenantStore

    async def run() -> T:
        store = await Store.open(url, wait_s=5.0)
        try:
            return await work(RedisTenantStore(store, SystemClock()))
        finally:
            await store.close()

    return asyncio.run(run())


def _when(ms: int | None) -> str | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
